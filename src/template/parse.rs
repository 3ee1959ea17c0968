//! Text to nodes. Invariant: every byte of the text is either copied, trimmed on request, or
//! understood; nothing is skipped, and every error points at where it stands.

use super::{Expr, Piece, Position, Read};
use crate::names::SecretPath;
use std::fmt;

/// How deep `with` may stand in `with`: bounds the recursion of parser and executor.
const MAX_DEPTH: usize = 32;

/// What Go's trim markers remove.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Why a template is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Where in the template.
    pub at: Position,
    /// How many bytes are meant, from there; at least 1.
    pub len: usize,
    /// What is wrong.
    pub problem: ParseProblem,
}

/// What is wrong in a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseProblem {
    /// Something begins here and lacks this end.
    Unclosed(&'static str),
    /// A keyword, function, field or sign that the whole language knows and this subset does not.
    Unsupported(String),
    /// A character with no meaning here.
    Character(char),
    /// Anything else: what, and what to do about it.
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
    /// What to do about it, if there is something to say.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unsupported(_) | Self::Character(_) => SUBSET,
            Self::Wrong(_, hint) => hint,
            Self::Unclosed(_) => "",
        }
    }
}

impl fmt::Display for ParseProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclosed(end) => write!(f, "missing {end}"),
            Self::Unsupported(word) => write!(f, "`{word}` is not supported"),
            Self::Character(c) => write!(f, "unexpected character {c:?}"),
            Self::Wrong(what, _) => f.write_str(what),
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.problem)
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
        (nodes, None) => Ok(nodes),
        (_, Some(end)) => Err(parser.error(end, 2, STRAY_END)),
    }
}

/// A word of an action.
#[derive(Debug, PartialEq)]
enum Lexeme<'t> {
    /// `with`, `secret` or `end`.
    Word(&'t str),
    /// `.a.b`
    Field(Vec<String>),
    /// A quoted text, unquoted.
    Text(String),
}

/// A token and where it starts.
type Placed<'t> = (Lexeme<'t>, usize);

/// Where the parser stands.
struct Parser<'t> {
    text: &'t str,
    pos: usize,
    /// The action before this ended with `-}}`.
    trim: bool,
}

impl<'t> Parser<'t> {
    /// Nodes up to an `{{ end }}` (whose offset is given) or the end of the text.
    fn list(&mut self, depth: usize) -> Result<(Vec<Piece<Read>>, Option<usize>), ParseError> {
        let mut nodes = Vec::new();
        loop {
            let open = self.rest().find("{{").map(|at| self.pos + at);
            self.copy(open, &mut nodes);
            let Some(open) = open else {
                return Ok((nodes, None));
            };
            let Some(tokens) = self.action(open)? else {
                continue;
            };
            let mut tokens = tokens.into_iter();
            match tokens.next() {
                None => return Err(self.error(open, self.pos - open, EMPTY)),
                Some((Lexeme::Word("end"), at)) => {
                    self.nothing_after(tokens.next())?;
                    return Ok((nodes, Some(at)));
                }
                Some((Lexeme::Word("with"), at)) => {
                    nodes.push(self.with(at, &mut tokens, depth)?);
                }
                Some((token, at)) => {
                    nodes.push(Piece::Print(self.expr(token, at, depth)?));
                    self.nothing_after(tokens.next())?;
                }
            }
        }
    }

    /// The text up to `open` becomes a node, trimmed as the markers around it say.
    fn copy(&mut self, open: Option<usize>, nodes: &mut Vec<Piece<Read>>) {
        let mut piece = &self.text[self.pos..open.unwrap_or(self.text.len())];
        if std::mem::take(&mut self.trim) {
            piece = piece.trim_start_matches(SPACE);
        }
        if open.is_some_and(|open| trims(&self.text[open + 2..])) {
            piece = piece.trim_end_matches(SPACE);
        }
        if !piece.is_empty() {
            nodes.push(Piece::Text(piece.to_owned()));
        }
        self.pos = open.unwrap_or(self.text.len());
    }

    /// The tokens of the action at `open`, `None` for a comment; leaves the parser behind its `}}`.
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

    /// Consumes white space and `}}` or `-}}` if they stand here.
    fn closes(&mut self) -> bool {
        let spaced = self.skip_space();
        self.trim = spaced && self.rest().starts_with("-}}");
        let close = self.trim || self.rest().starts_with("}}");
        self.pos += if close { 2 + usize::from(self.trim) } else { 0 };
        close
    }

    fn comment(&mut self, open: usize) -> Result<(), ParseError> {
        let unclosed = self.error(open, 2, ParseProblem::Unclosed("`*/}}`"));
        let end = self.rest().find("*/").ok_or_else(|| unclosed.clone())?;
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
            c if c == '_' || c.is_alphabetic() => self.word()?,
            '|' | '$' | '(' | ')' | ':' | '0'..='9' => {
                return Err(self.error(start, 1, ParseProblem::Unsupported(next.into())));
            }
            c => return Err(self.error(start, c.len_utf8(), ParseProblem::Character(c))),
        };
        Ok((token, start))
    }

    /// A word that is understood; another is refused here, before what follows it can confuse.
    fn word(&mut self) -> Result<Lexeme<'t>, ParseError> {
        let start = self.pos;
        match self.identifier() {
            word @ ("with" | "secret" | "end") => Ok(Lexeme::Word(word)),
            word => Err(self.error(
                start,
                word.len(),
                ParseProblem::Unsupported(word.to_owned()),
            )),
        }
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
                '\\' => out.push(match chars.next().map(|(_, c)| c) {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some(c @ ('"' | '\\')) => c,
                    _ => return Err(self.error(at, 1, ESCAPE)),
                }),
                _ => out.push(c),
            }
        }
        Err(self.error(start, 1, ParseProblem::Unclosed("closing quote")))
    }

    fn backquoted(&mut self) -> Result<String, ParseError> {
        let start = self.pos + 1;
        let len = self.text[start..]
            .find('`')
            .ok_or_else(|| self.error(self.pos, 1, ParseProblem::Unclosed("closing quote")))?;
        self.pos = start + len + 1;
        Ok(self.text[start..start + len].to_owned())
    }

    /// `.a.b`; a lone dot gives no names.
    fn fields(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while self.rest().starts_with('.') {
            self.pos += 1;
            names.push(self.identifier().to_owned());
        }
        names
    }

    /// Letters, digits and underscores from here.
    fn identifier(&mut self) -> &'t str {
        let rest = self.rest();
        let len = rest
            .find(|c: char| c != '_' && !c.is_alphanumeric())
            .unwrap_or(rest.len());
        self.pos += len;
        &rest[..len]
    }

    fn expr(&self, token: Lexeme<'t>, at: usize, depth: usize) -> Result<Expr, ParseError> {
        match token {
            Lexeme::Text(text) => Ok(Expr::Text(text)),
            Lexeme::Word(word) => Err(self.error(at, word.len(), SECRET_ALONE)),
            Lexeme::Field(path) => self.field(path, at, depth),
        }
    }

    fn field(&self, path: Vec<String>, at: usize, depth: usize) -> Result<Expr, ParseError> {
        let name = format!(".{}", path.join("."));
        let problem = match path.first() {
            _ if depth == 0 => NO_DOT,
            Some(first)
                if first == "Data" && path.len() > 1 && !path.iter().any(String::is_empty) =>
            {
                return Ok(Expr::Field {
                    path,
                    at: Position::of(self.text, at),
                });
            }
            _ => ParseProblem::Unsupported(name.clone()),
        };
        Err(self.error(at, name.len(), problem))
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
        self.nothing_after(tokens.next())?;
        let read = read(&path)
            .map_err(|why| self.error(path_at, path.len() + 2, ParseProblem::Wrong(why, "")))?;
        if depth == MAX_DEPTH {
            return Err(self.error(at, 4, TOO_DEEP));
        }
        match self.list(depth + 1)? {
            (body, Some(_)) => Ok(Piece::With {
                read,
                at: Position::of(self.text, at),
                body,
            }),
            (_, None) => Err(self.error(at, 4, ParseProblem::Unclosed("`{{ end }}`"))),
        }
    }

    fn nothing_after(&self, token: Option<Placed<'t>>) -> Result<(), ParseError> {
        token.map_or(Ok(()), |(_, at)| Err(self.error(at, 1, TRAILING)))
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

/// Whether an action that continues so begins with a trim marker.
fn trims(action: &str) -> bool {
    action
        .strip_prefix('-')
        .is_some_and(|rest| rest.starts_with(SPACE))
}

/// `PATH` or `PATH?version=N`.
fn read(text: &str) -> Result<Read, &'static str> {
    let (path, version) = match text.split_once("?version=") {
        Some((path, version)) => (
            path,
            Some(
                version
                    .parse()
                    .map_err(|_| "invalid `?version=`: expected a whole number")?,
            ),
        ),
        None => (text, None),
    };
    Ok(Read {
        path: SecretPath::new(path)?,
        version,
    })
}
