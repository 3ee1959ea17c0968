//! Text to pieces. Invariant: every byte of the text is copied, trimmed on request, or parsed; no byte
//! is skipped, and every error has the position of the cause.

use super::{Piece, Position, Read, Template};
use crate::names::SecretPath;
use thiserror::Error;

/// The maximum depth of nested `with`: limits the recursion of the parser and of the execution.
const MAX_DEPTH: usize = 32;

/// The characters that Go's trim markers remove.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A refused template.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{at}: {problem}")]
pub struct ParseError {
    /// The position in the template.
    pub at: Position,
    /// The number of bytes to mark; at least 1.
    pub len: usize,
    /// The cause.
    pub problem: ParseProblem,
}

/// The cause of a refused template.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseProblem {
    /// The end of an action, a comment, a text or a `with` is missing.
    #[error("missing {0}")]
    Unclosed(&'static str),
    /// A keyword, function, field or sign of Go's language outside of the subset.
    #[error("`{0}` is not supported")]
    Unsupported(String),
    /// A character without a meaning at the position.
    #[error("unexpected character {0:?}")]
    Character(char),
    /// Another problem, with the message and the remedy.
    #[error("{0}")]
    Wrong(&'static str, &'static str),
}

const SUBSET: &str = "supported are `{{ with secret \"PATH\" }}{{ .Data.FIELD }}{{ end }}`, text, comments and trim markers; \
                      a `secret` block serves one field, or all fields as JSON, without a template";
const STRAY_END: ParseProblem = ParseProblem::Wrong("`{{ end }}` without `{{ with }}`", "");
const EMPTY: ParseProblem = ParseProblem::Wrong("empty action", "");
const TRAILING: ParseProblem = ParseProblem::Wrong("unexpected text: expected `}}`", "");
const TOO_DEEP: ParseProblem = ParseProblem::Wrong("`with` is nested too deeply", "");
const ESCAPE: ParseProblem = ParseProblem::Wrong(
    "unknown escape sequence",
    "use \\\" \\\\ \\n \\t or \\r; text between backquotes has no escape sequences",
);
const WITH_WHAT: ParseProblem = ParseProblem::Wrong(
    "unsupported `with`: only `with secret \"PATH\"` is supported",
    SUBSET,
);
const SECRET_ALONE: ParseProblem = ParseProblem::Wrong(
    "`secret` is supported only in `with secret \"PATH\"`",
    SUBSET,
);
const NO_DOT: ParseProblem = ParseProblem::Wrong(
    "a field outside of `with secret`",
    "put the field between `{{ with secret \"PATH\" }}` and `{{ end }}`",
);

impl ParseProblem {
    /// The remedy, or an empty text.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unsupported(_) | Self::Character(_) => SUBSET,
            Self::Wrong(_, hint) => hint,
            Self::Unclosed(_) => "",
        }
    }
}

/// Parses a whole template.
pub(super) fn parse(text: &str) -> Result<Vec<Piece<Read>>, ParseError> {
    let mut parser = Parser {
        text,
        pos: 0,
        trim: false,
    };
    match parser.list(0)? {
        (pieces, None) => Ok(pieces),
        (_, Some(end)) => Err(parser.error(end, 2, STRAY_END)),
    }
}

/// A token of an action.
#[derive(Debug, PartialEq)]
enum Lexeme<'t> {
    /// `with`, `secret` or `end`.
    Word(&'t str),
    /// `.a.b`.
    Field(Vec<String>),
    /// A quoted text, without the quotes.
    Text(String),
}

/// A token and the offset.
type Placed<'t> = (Lexeme<'t>, usize);

/// The state of the parser.
struct Parser<'t> {
    text: &'t str,
    pos: usize,
    /// Whether the last action ended with `-}}`.
    trim: bool,
}

impl<'t> Parser<'t> {
    /// The pieces up to an `{{ end }}`, with the offset of `end`, or up to the end of the text.
    fn list(&mut self, depth: usize) -> Result<(Vec<Piece<Read>>, Option<usize>), ParseError> {
        let mut pieces = Vec::new();
        loop {
            let open = self.rest().find("{{").map(|at| self.pos + at);
            self.copy(open, &mut pieces);
            let Some(open) = open else {
                return Ok((pieces, None));
            };
            let Some(tokens) = self.action(open)? else {
                continue;
            };
            let mut tokens = tokens.into_iter();
            pieces.push(match tokens.next() {
                None => return Err(self.error(open, self.pos - open, EMPTY)),
                Some((Lexeme::Word("end"), at)) => {
                    self.expect_end(&mut tokens)?;
                    return Ok((pieces, Some(at)));
                }
                Some((Lexeme::Word("with"), at)) => self.with(at, &mut tokens, depth)?,
                Some((Lexeme::Word(word), at)) => {
                    return Err(self.error(at, word.len(), SECRET_ALONE));
                }
                Some((Lexeme::Text(text), _)) => Piece::Text(text),
                Some((Lexeme::Field(path), at)) => self.field(path, at, depth)?,
            });
            self.expect_end(&mut tokens)?;
        }
    }

    /// Copies the text up to `open`, or up to the end, and trims the text as the markers demand.
    fn copy(&mut self, open: Option<usize>, pieces: &mut Vec<Piece<Read>>) {
        let end = open.unwrap_or(self.text.len());
        let mut piece = &self.text[self.pos..end];
        if self.trim {
            piece = piece.trim_start_matches(SPACE);
        }
        if let Some(action) = self.text.get(end + 2..)
            && trims(action)
        {
            piece = piece.trim_end_matches(SPACE);
        }
        if !piece.is_empty() {
            pieces.push(Piece::Text(piece.to_owned()));
        }
        self.trim = false;
        self.pos = end;
    }

    /// The tokens of the action at `open`, or `None` for a comment. The parser then stands after `}}`.
    fn action(&mut self, open: usize) -> Result<Option<Vec<Placed<'t>>>, ParseError> {
        self.pos = open + 2;
        if trims(self.rest()) {
            self.pos += 1;
            self.skip_space();
        }
        if self.rest().starts_with("/*") {
            return self.comment(open).map(|()| None);
        }
        let mut tokens = Vec::new();
        while !self.closes() {
            if self.rest().is_empty() {
                return Err(self.error(open, 2, ParseProblem::Unclosed("`}}`")));
            }
            tokens.push(self.token()?);
        }
        Ok(Some(tokens))
    }

    /// Consumes white space, and then `}}` or `-}}`; returns whether the action is closed.
    fn closes(&mut self) -> bool {
        let spaced = self.skip_space();
        self.trim = spaced && self.rest().starts_with("-}}");
        let close = self.trim || self.rest().starts_with("}}");
        if close {
            self.pos += 2 + usize::from(self.trim);
        }
        close
    }

    fn comment(&mut self, open: usize) -> Result<(), ParseError> {
        let unclosed = self.error(open, 2, ParseProblem::Unclosed("`*/}}`"));
        let Some(end) = self.rest().find("*/") else {
            return Err(unclosed);
        };
        self.pos += end + 2;
        let spaced = self.rest().starts_with(SPACE);
        if self.closes() && spaced == self.trim {
            Ok(())
        } else {
            Err(unclosed)
        }
    }

    fn token(&mut self) -> Result<Placed<'t>, ParseError> {
        let start = self.pos;
        let next = self.rest().chars().next().unwrap_or(' ');
        let token = match next {
            '"' => Lexeme::Text(self.quoted()?),
            '`' => Lexeme::Text(self.backquoted()?),
            '.' => Lexeme::Field(self.fields()),
            // Other words are refused before the rest of the action is read, so that the error names
            // the word.
            c if c == '_' || c.is_alphabetic() => match self.identifier() {
                word @ ("with" | "secret" | "end") => Lexeme::Word(word),
                word => {
                    let problem = ParseProblem::Unsupported(word.to_owned());
                    return Err(self.error(start, word.len(), problem));
                }
            },
            '|' | '$' | '(' | ')' | ':' | '0'..='9' => {
                return Err(self.error(start, 1, ParseProblem::Unsupported(next.into())));
            }
            c => {
                let problem = ParseProblem::Character(c);
                return Err(self.error(start, c.len_utf8(), problem));
            }
        };
        Ok((token, start))
    }

    fn quoted(&mut self) -> Result<String, ParseError> {
        let start = self.pos;
        let mut out = String::new();
        let mut chars = self.text[start + 1..]
            .char_indices()
            .map(|(at, c)| (start + 1 + at, c));
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.pos = at + 1;
                    return Ok(out);
                }
                '\n' => break,
                '\\' => {
                    let escaped = chars.next().map(|(_, c)| c);
                    out.push(match escaped {
                        Some('n') => '\n',
                        Some('t') => '\t',
                        Some('r') => '\r',
                        Some(c @ ('"' | '\\')) => c,
                        _ => return Err(self.error(at, 1, ESCAPE)),
                    });
                }
                _ => out.push(c),
            }
        }
        Err(self.error(start, 1, ParseProblem::Unclosed("closing quote")))
    }

    fn backquoted(&mut self) -> Result<String, ParseError> {
        let start = self.pos + 1;
        let Some(len) = self.text[start..].find('`') else {
            let problem = ParseProblem::Unclosed("closing quote");
            return Err(self.error(self.pos, 1, problem));
        };
        self.pos = start + len + 1;
        Ok(self.text[start..start + len].to_owned())
    }

    /// The names of `.a.b`; a lone dot has one empty name.
    fn fields(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while self.rest().starts_with('.') {
            self.pos += 1;
            names.push(self.identifier().to_owned());
        }
        names
    }

    /// Consumes letters, digits and underscores.
    fn identifier(&mut self) -> &'t str {
        let rest = self.rest();
        let len = rest
            .find(|c: char| c != '_' && !c.is_alphanumeric())
            .unwrap_or(rest.len());
        self.pos += len;
        &rest[..len]
    }

    fn field(&self, path: Vec<String>, at: usize, depth: usize) -> Result<Piece<Read>, ParseError> {
        let name = format!(".{}", path.join("."));
        if depth == 0 {
            return Err(self.error(at, name.len(), NO_DOT));
        }
        let is_data = path[0] == "Data" && path.len() > 1;
        let has_gap = path.iter().any(String::is_empty);
        if !is_data || has_gap {
            let problem = ParseProblem::Unsupported(name.clone());
            return Err(self.error(at, name.len(), problem));
        }
        let at = Position::of(self.text, at);
        Ok(Piece::Field { path, at })
    }

    fn with(
        &mut self,
        at: usize,
        tokens: &mut impl Iterator<Item = Placed<'t>>,
        depth: usize,
    ) -> Result<Piece<Read>, ParseError> {
        let (Some((Lexeme::Word("secret"), _)), Some((Lexeme::Text(path), path_at))) =
            (tokens.next(), tokens.next())
        else {
            return Err(self.error(at, 4, WITH_WHAT));
        };
        self.expect_end(tokens)?;
        let read = read(&path).map_err(|why| {
            let problem = ParseProblem::Wrong(why, "");
            self.error(path_at, path.len() + 2, problem)
        })?;
        if depth == MAX_DEPTH {
            return Err(self.error(at, 4, TOO_DEEP));
        }
        let (body, Some(_)) = self.list(depth + 1)? else {
            let problem = ParseProblem::Unclosed("`{{ end }}`");
            return Err(self.error(at, 4, problem));
        };
        Ok(Piece::With {
            read,
            at: Position::of(self.text, at),
            body: Template(body),
        })
    }

    fn expect_end(&self, tokens: &mut impl Iterator<Item = Placed<'t>>) -> Result<(), ParseError> {
        match tokens.next() {
            Some((_, at)) => Err(self.error(at, 1, TRAILING)),
            None => Ok(()),
        }
    }

    fn skip_space(&mut self) -> bool {
        let rest = self.rest();
        let len = rest.len() - rest.trim_start_matches(SPACE).len();
        self.pos += len;
        len > 0
    }

    fn rest(&self) -> &'t str {
        &self.text[self.pos..]
    }

    fn error(&self, offset: usize, len: usize, problem: ParseProblem) -> ParseError {
        ParseError {
            at: Position::of(self.text, offset),
            len: len.min(self.text.len() - offset).max(1),
            problem,
        }
    }
}

/// Whether an action, given without `{{`, begins with a trim marker.
fn trims(action: &str) -> bool {
    matches!(action.strip_prefix('-'), Some(rest) if rest.starts_with(SPACE))
}

/// Parses `PATH` or `PATH?version=N`.
fn read(text: &str) -> Result<Read, &'static str> {
    let (path, number) = match text.split_once("?version=") {
        Some((path, number)) => (path, Some(number.parse())),
        None => (text, None),
    };
    let version = number
        .transpose()
        .map_err(|_| "invalid `?version=`: expected a whole number")?;
    let path = SecretPath::new(path)?;
    Ok(Read { path, version })
}
