//! The template language: a subset of Go's `text/template` as `bao agent` uses Go's language.
//! Invariant: the module is pure, and no error has a value of a secret.
//!
//! Supported are text, `{{ with secret "PATH" }}` ... `{{ end }}` (also nested), `{{ .Data.x }}`,
//! `{{ .Data.data.x }}`, `{{ .Data.metadata.version }}`, `{{ "text" }}`, `` {{ `text` }} ``, comments
//! and trim markers. Anything else is refused with the position. Two rules are stricter than Go's: a
//! missing field or a null is an error, not `<no value>`; a list or an object is written as compact
//! JSON, not as `map[...]`.

mod parse;

use crate::names::SecretPath;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, Write};
use thiserror::Error;
use zeroize::Zeroizing;

pub use parse::{ParseError, ParseProblem};

/// The largest output of a template in bytes.
pub const MAX_OUTPUT: usize = 1 << 20;

/// A parsed template. `Q` names a query: `Read` after the parse, `QueryId` in a plan.
#[derive(Debug)]
pub struct Template<Q>(Vec<Piece<Q>>);

/// A read of a secret: `secret "PATH"` or `secret "PATH?version=3"` in a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Read {
    /// The path as written: KV v2 with or without `data/`.
    pub path: SecretPath,
    /// A pinned version of KV v2.
    pub version: Option<u32>,
}

/// A piece of a template. Pieces are executed in order.
#[derive(Debug)]
enum Piece<Q> {
    /// A text to copy: outside of actions, or quoted in an action.
    Text(String),
    /// A field of the dot to print; the path begins with `Data`.
    Field { path: Vec<String>, at: Position },
    /// `{{ with secret "PATH" }} body {{ end }}`: in the body the dot is the secret.
    With {
        read: Q,
        at: Position,
        body: Template<Q>,
    },
}

/// A position in a template's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The offset in bytes.
    pub offset: usize,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// The position of `offset` in `text`.
    fn of(text: &str, offset: usize) -> Self {
        let before = &text[..offset];
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self {
            offset,
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "template:{}:{}", self.line, self.column)
    }
}

/// The value of `.` inside `with secret`: a response of the server.
#[derive(Clone, Copy)]
pub enum SecretView<'a> {
    /// A secret of any engine but KV v2: `.Data.x` is a field.
    Plain(&'a Map<String, Value>),
    /// A secret of KV v2: `.Data.data.x` is a field, `.Data.metadata.x` describes the version.
    Versioned {
        /// The fields of the secret.
        data: &'a Map<String, Value>,
        /// The metadata of the version.
        metadata: &'a Map<String, Value>,
    },
}

/// A failed execution. The error has names of fields, never a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{at}: {problem}")]
pub struct ExecError {
    /// The position in the template.
    pub at: Position,
    /// The cause.
    pub problem: ExecProblem,
}

/// The cause of a failed execution. A path is the path of a field below `.Data`, such as `.user`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExecProblem {
    /// There is no response for the secret of a `with`.
    #[error("the secret of this `with` was not read")]
    NoSecret,
    /// The secret has no field with this path.
    #[error("the secret has no field `.Data{0}`")]
    Missing(String),
    /// The secret has no field with this path, but `.Data.data` has one: the secret is of KV v2.
    #[error(
        "the secret has no field `.Data{0}`; hint: the secret is of KV v2; write `.Data.data{0}`"
    )]
    MissingAboveData(String),
    /// The field is null.
    #[error("the field `.Data{0}` is null")]
    Null(String),
    /// The output exceeds `MAX_OUTPUT`.
    #[error("the output is larger than {MAX_OUTPUT} bytes")]
    TooLarge,
}

impl Template<Read> {
    /// Parses `text`.
    ///
    /// # Errors
    /// The first problem, with the position.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::parse(text).map(Self)
    }
}

impl<Q> Template<Q> {
    /// The same template with each query renamed by `rename`.
    pub fn map_queries<R>(self, rename: &mut impl FnMut(Q) -> R) -> Template<R> {
        let pieces = self.0.into_iter().map(|piece| match piece {
            Piece::Text(text) => Piece::Text(text),
            Piece::Field { path, at } => Piece::Field { path, at },
            Piece::With { read, at, body } => Piece::With {
                read: rename(read),
                at,
                body: body.map_queries(rename),
            },
        });
        Template(pieces.collect())
    }

    /// The queries in order of appearance, with repetitions.
    pub fn queries(&self) -> Vec<&Q> {
        let mut found = Vec::new();
        for piece in &self.0 {
            if let Piece::With { read, body, .. } = piece {
                found.push(read);
                found.extend(body.queries());
            }
        }
        found
    }

    /// Renders the template; `lookup` returns the response to a query.
    ///
    /// # Errors
    /// The first secret that was not read, the first field that is missing or null, or an output
    /// that is too large.
    pub fn execute<'a>(
        &self,
        lookup: &dyn Fn(&Q) -> Option<SecretView<'a>>,
    ) -> Result<Zeroizing<Vec<u8>>, ExecError> {
        let mut out = BoundedOutput(Zeroizing::default());
        self.run(None, lookup, &mut out)?;
        Ok(out.0)
    }

    fn run<'a>(
        &self,
        dot: Option<SecretView<'a>>,
        lookup: &dyn Fn(&Q) -> Option<SecretView<'a>>,
        out: &mut BoundedOutput,
    ) -> Result<(), ExecError> {
        let start = Position::of("", 0);
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.print(text.as_bytes(), start)?,
                Piece::Field { path, at } => print_field(dot, path, *at, out)?,
                Piece::With { read, at, body } => {
                    let view = lookup(read).ok_or(ExecError {
                        at: *at,
                        problem: ExecProblem::NoSecret,
                    })?;
                    body.run(Some(view), lookup, out)?;
                }
            }
        }
        Ok(())
    }
}

fn print_field(
    dot: Option<SecretView<'_>>,
    path: &[String],
    at: Position,
    out: &mut BoundedOutput,
) -> Result<(), ExecError> {
    let path = &path[1..];
    let name = || format!(".{}", path.join("."));
    let fail = |problem| Err(ExecError { at, problem });
    let Some(view) = dot else {
        return fail(ExecProblem::NoSecret);
    };
    match (field(view, path), view) {
        (Some(Value::Null), _) => fail(ExecProblem::Null(name())),
        (Some(Value::String(text)), _) => out.print(text.as_bytes(), at),
        (Some(other), _) => {
            let written = serde_json::to_writer(out, other);
            written.or(fail(ExecProblem::TooLarge))
        }
        (None, SecretView::Versioned { data, .. }) if descend(data, path).is_some() => {
            fail(ExecProblem::MissingAboveData(name()))
        }
        (None, _) => fail(ExecProblem::Missing(name())),
    }
}

/// The value at `path` below `.Data`.
fn field<'a>(view: SecretView<'a>, path: &[String]) -> Option<&'a Value> {
    match view {
        SecretView::Plain(fields) => descend(fields, path),
        SecretView::Versioned { data, metadata } => {
            let (first, rest) = path.split_first()?;
            match first.as_str() {
                "data" => descend(data, rest),
                "metadata" => descend(metadata, rest),
                _ => None,
            }
        }
    }
}

fn descend<'a>(fields: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let mut value = fields.get(first)?;
    for key in rest {
        value = value.as_object()?.get(key)?;
    }
    Some(value)
}

/// The rendered bytes: at most `MAX_OUTPUT`, wiped on drop.
struct BoundedOutput(Zeroizing<Vec<u8>>);

impl BoundedOutput {
    fn print(&mut self, bytes: &[u8], at: Position) -> Result<(), ExecError> {
        self.write_all(bytes).map_err(|_| ExecError {
            at,
            problem: ExecProblem::TooLarge,
        })
    }
}

impl Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
