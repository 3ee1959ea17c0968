//! The template language: a small honest subset of Go's `text/template` as `bao agent` uses it.
//! Invariant: pure, and no error ever holds a value.
//!
//! Understood: text, `{{ with secret "PATH" }}` ... `{{ end }}` (nested too), `{{ .Data.x }}`, `{{
//! .Data.data.x }}`, `{{ .Data.metadata.version }}`, `{{ "text" }}`, `` {{ `text` }} ``, comments
//! and trim markers. All else is refused with its position. Stricter than Go on purpose: a field
//! that is missing or null is an error, never `<no value>`; a list or an object is written as
//! compact JSON, not as Go's `map[...]`.

mod parse;

use crate::names::SecretPath;
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, Write};
use zeroize::Zeroizing;

pub use parse::{ParseError, ParseProblem};

/// The largest file that a template may give, in bytes.
pub const MAX_OUTPUT: usize = 1 << 20;

/// A parsed template; `Q` is how it names a read (`Read` as parsed, a `QueryId` once checked).
#[derive(Debug)]
pub struct Template<Q>(Vec<Piece<Q>>);

/// A read of a secret: `secret "PATH"` or `secret "PATH?version=3"` in a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    /// The path as written: KV v2 with or without `data/`.
    pub path: SecretPath,
    /// A pinned version of KV v2.
    pub version: Option<u32>,
}

/// One piece of a template, executed in order.
#[derive(Debug)]
enum Piece<Q> {
    /// Copied as it is.
    Text(String),
    /// `{{ expr }}`.
    Print(Expr),
    /// `{{ with secret "PATH" }} body {{ end }}`: the body's dot is the secret.
    With {
        read: Q,
        at: Position,
        body: Vec<Piece<Q>>,
    },
}

/// What an action prints.
#[derive(Debug)]
enum Expr {
    /// A quoted text.
    Text(String),
    /// A field of the dot, `Data` first.
    Field { path: Vec<String>, at: Position },
}

/// A position in a template's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Byte offset.
    pub offset: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// The place of `offset` in `text`.
    fn of(text: &str, offset: usize) -> Self {
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            offset,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "template:{}:{}", self.line, self.column)
    }
}

/// What `.` is inside `with secret`: an answer of the server, seen as the language shows it.
#[derive(Clone, Copy)]
pub enum SecretView<'a> {
    /// Any engine but KV v2: `.Data.x` is a field.
    Plain(&'a Map<String, Value>),
    /// KV v2: `.Data.data.x` is a field, `.Data.metadata.x` is about the version.
    Versioned {
        /// The secret's fields.
        data: &'a Map<String, Value>,
        /// The version's metadata.
        metadata: &'a Map<String, Value>,
    },
}

/// Why a template could not be executed. Holds names of fields, never a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecError {
    /// Where in the template.
    pub at: Position,
    /// What is wrong there.
    pub problem: ExecProblem,
}

/// What is wrong in an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecProblem {
    /// The secret of this `with` was not read.
    NoSecret,
    /// The secret has no such field.
    Missing(String),
    /// As `Missing`, where `.Data.data.` would have found KV v2's fields.
    MissingAboveData(String),
    /// The field is null.
    Null(String),
    /// The output grew above `MAX_OUTPUT`.
    TooLarge,
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        match &self.problem {
            ExecProblem::NoSecret => f.write_str("the secret of this `with` was not read"),
            ExecProblem::Missing(path) => write!(f, "the secret has no field `{path}`"),
            ExecProblem::MissingAboveData(path) => {
                let rest = path.strip_prefix(".Data").unwrap_or(path);
                write!(
                    f,
                    "the secret has no field `{path}`; hint: the secret is of KV v2; write `.Data.data{rest}`"
                )
            }
            ExecProblem::Null(path) => write!(f, "the field `{path}` is null"),
            ExecProblem::TooLarge => write!(f, "the output is larger than {MAX_OUTPUT} bytes"),
        }
    }
}

impl Template<Read> {
    /// Parses `text`.
    ///
    /// # Errors
    /// The first thing that is wrong or not understood, with its place.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::parse(text).map(Self)
    }
}

impl<Q> Template<Q> {
    /// The same template with its reads renamed by `rename`.
    pub fn map_queries<R>(self, mut rename: impl FnMut(Q) -> R) -> Template<R> {
        Template(map_nodes(self.0, &mut rename))
    }

    /// Its reads in order of appearance, repetitions included.
    pub fn queries(&self) -> Vec<&Q> {
        let mut found = Vec::new();
        collect(&self.0, &mut found);
        found
    }

    /// Renders; `lookup` gives the answer to a read.
    ///
    /// # Errors
    /// The first field that is missing or null, or an output that is too large.
    pub fn execute<'a>(
        &self,
        lookup: &dyn Fn(&Q) -> Option<SecretView<'a>>,
    ) -> Result<Zeroizing<Vec<u8>>, ExecError> {
        let mut out = BoundedOutput(Zeroizing::new(Vec::new()));
        run(&self.0, None, lookup, &mut out).map(|()| out.0)
    }
}

fn map_nodes<Q, R>(nodes: Vec<Piece<Q>>, rename: &mut impl FnMut(Q) -> R) -> Vec<Piece<R>> {
    let one = |node| match node {
        Piece::Text(text) => Piece::Text(text),
        Piece::Print(expr) => Piece::Print(expr),
        Piece::With { read, at, body } => Piece::With {
            read: rename(read),
            at,
            body: map_nodes(body, rename),
        },
    };
    nodes.into_iter().map(one).collect()
}

fn collect<'t, Q>(nodes: &'t [Piece<Q>], found: &mut Vec<&'t Q>) {
    for node in nodes {
        if let Piece::With { read, body, .. } = node {
            found.push(read);
            collect(body, found);
        }
    }
}

fn run<'a, Q>(
    nodes: &[Piece<Q>],
    dot: Option<SecretView<'a>>,
    lookup: &dyn Fn(&Q) -> Option<SecretView<'a>>,
    out: &mut BoundedOutput,
) -> Result<(), ExecError> {
    let start = Position {
        offset: 0,
        line: 1,
        column: 1,
    };
    for node in nodes {
        match node {
            Piece::Text(text) | Piece::Print(Expr::Text(text)) => {
                out.print(text.as_bytes(), start)?;
            }
            Piece::Print(Expr::Field { path, at }) => print_field(dot, path, *at, out)?,
            Piece::With { read, at, body } => {
                let view = lookup(read).ok_or(ExecError {
                    at: *at,
                    problem: ExecProblem::NoSecret,
                })?;
                run(body, Some(view), lookup, out)?;
            }
        }
    }
    Ok(())
}

fn print_field(
    dot: Option<SecretView<'_>>,
    path: &[String],
    at: Position,
    out: &mut BoundedOutput,
) -> Result<(), ExecError> {
    let name = || format!(".{}", path.join("."));
    let fail = |problem| ExecError { at, problem };
    let view = dot.ok_or_else(|| fail(ExecProblem::NoSecret))?;
    match field(view, &path[1..]) {
        Some(Value::Null) => Err(fail(ExecProblem::Null(name()))),
        Some(Value::String(text)) => out.print(text.as_bytes(), at),
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => {
            serde_json::to_writer(&mut *out, other).map_err(|_| fail(ExecProblem::TooLarge))
        }
        None => Err(fail(match view {
            SecretView::Versioned { data, .. } if descend(data, &path[1..]).is_some() => {
                ExecProblem::MissingAboveData(name())
            }
            SecretView::Versioned { .. } | SecretView::Plain(_) => ExecProblem::Missing(name()),
        })),
    }
}

/// The value at `path`, which begins below `.Data`.
fn field<'a>(view: SecretView<'a>, path: &[String]) -> Option<&'a Value> {
    match view {
        SecretView::Plain(fields) => descend(fields, path),
        SecretView::Versioned { data, metadata } => match path.split_first()? {
            (first, rest) if first == "data" => descend(data, rest),
            (first, rest) if first == "metadata" => descend(metadata, rest),
            _ => None,
        },
    }
}

fn descend<'a>(fields: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(fields.get(first)?, |value, key| value.as_object()?.get(key))
}

/// The rendered bytes, bounded and wiped.
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
