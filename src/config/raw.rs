//! Text to a tree that is the same for HCL and JSON: what was typed, with positions, and nothing
//! more. Invariant: every position is one of the original text.
//!
//! `hcl-edit` parses both. What it reads differently from `bao agent` (HCL 1) is rewritten first,
//! byte for byte of the same length, so that positions stay: `${` and `%{` are plain text, keys may
//! be quoted; of JSON the escapes that HCL lacks. `OPEN` stands for a brace that must not begin an
//! interpolation and `PAD` for nothing; both leave the texts again when these are taken out.

use super::problem::{At, Findings, SourceFile};
use hcl_edit::Span;
use hcl_edit::expr::{Expression, ObjectKey};
use hcl_edit::structure::{Body, Structure};
use hcl_edit::template::Element;
use serde::de::IgnoredAny;
use std::ops::Range;

const OPEN: u8 = 1;
const PAD: u8 = 2;
const CONTROL: &str = "control characters are not allowed";

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// Its position.
    pub(super) at: At<'a>,
    /// What it is.
    pub(super) value: Value<'a>,
}

/// A value as typed.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// Quoted or a heredoc.
    Text(String),
    /// Its literal: `0400` keeps its zero.
    Number(&'a str),
    /// `true` or `false`.
    Bool(bool),
    /// In brackets.
    List(Vec<Node<'a>>),
    /// A block or an object; labels of a block are tables in tables.
    Table(Vec<Pair<'a>>),
    /// Null, or an expression that a configuration cannot hold.
    Other,
}

/// A key and its value.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    /// The key.
    pub(super) key: String,
    /// Where the key stands.
    pub(super) at: At<'a>,
    /// Its value.
    pub(super) node: Node<'a>,
}

impl<'a> Node<'a> {
    /// The entries of a block or object; HCL 1 and its JSON also write a list around one.
    pub(super) fn table(&self) -> Option<&[Pair<'a>]> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            Value::List(items) if items.len() == 1 => items[0].table(),
            Value::List(_) | Value::Text(_) | Value::Number(_) | Value::Bool(_) | Value::Other => {
                None
            }
        }
    }

    /// The items of a list; anything else is its own only item.
    pub(super) fn items(&self) -> &[Self] {
        if let Value::List(items) = &self.value {
            items
        } else {
            std::slice::from_ref(self)
        }
    }

    /// What a single value says.
    pub(super) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Number(text) => Some(text),
            Value::Bool(value) => Some(if *value { "true" } else { "false" }),
            Value::List(_) | Value::Table(_) | Value::Other => None,
        }
    }

    /// The position of byte `offset` of this text: through escapes and a heredoc's indentation.
    pub(super) fn inside(&self, offset: usize, len: usize) -> At<'a> {
        let Value::Text(text) = &self.value else {
            return self.at;
        };
        let raw = self.at.text();
        let find = |offset: usize| {
            if raw.starts_with('"') {
                in_quotes(raw, offset)
            } else {
                in_heredoc(raw, text, offset)
            }
        };
        let end = find((offset + len).min(text.len()));
        At::new(
            self.at.source,
            self.at.start + find(offset),
            self.at.start + end,
        )
    }
}

/// Where byte `offset` of the unescaped text stands in the quoted `raw`.
fn in_quotes(raw: &str, offset: usize) -> usize {
    let (mut at, mut left) = (1, offset);
    while left > 0 && at < raw.len() {
        let (typed, meant) = match &raw.as_bytes()[at..] {
            [
                b'\\',
                b'u',
                b'd' | b'D',
                b'8' | b'9' | b'a' | b'b' | b'A' | b'B',
                ..,
            ] => (12, 4),
            [b'\\', b'u', ..] => (6, unicode(raw, at + 2..at + 6)),
            [b'\\', b'U', ..] => (10, unicode(raw, at + 2..at + 10)),
            [b'\\', ..] => (2, 1),
            _ => (1, 1),
        };
        at += typed;
        left = left.saturating_sub(meant);
    }
    at
}

/// How many bytes the character with the hexadecimal number at `digits` takes.
fn unicode(raw: &str, digits: Range<usize>) -> usize {
    let number = raw
        .get(digits)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    number.and_then(char::from_u32).map_or(1, char::len_utf8)
}

/// Where byte `offset` of the heredoc's `text` stands in `raw`: lines are whole but for their
/// indentation.
fn in_heredoc(raw: &str, text: &str, offset: usize) -> usize {
    let line = text[..offset].matches('\n').count();
    let begin = raw
        .match_indices('\n')
        .nth(line)
        .map_or(raw.len(), |(at, _)| at + 1);
    let text_begin = text[..offset].rfind('\n').map_or(0, |at| at + 1);
    let length = |text: &str| text.find('\n').unwrap_or(text.len());
    let removed = length(&raw[begin..]).saturating_sub(length(&text[text_begin..]));
    begin + removed + (offset - text_begin)
}

/// Parses `source`; a syntax error is reported and gives `None`.
pub(super) fn parse<'a>(source: &'a SourceFile, report: &Findings) -> Option<Node<'a>> {
    let text = source
        .text
        .trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    let parsed = if text.starts_with('{') {
        TreeBuilder {
            source,
            skipped: source.text.len() - text.len(),
        }
        .json(text.trim_end())
    } else {
        TreeBuilder { source, skipped: 0 }.hcl()
    };
    parsed
        .map_err(|(at, message)| report.error_of_shape(At::new(source, at, at + 1), message, ""))
        .ok()
}

/// A byte offset and what is wrong there.
type Refusal = (usize, String);

/// Makes nodes of one source.
struct TreeBuilder<'a> {
    source: &'a SourceFile,
    /// Bytes before the text that was parsed.
    skipped: usize,
}

impl<'a> TreeBuilder<'a> {
    fn at(&self, span: Range<usize>) -> At<'a> {
        At::new(
            self.source,
            self.skipped + span.start,
            self.skipped + span.end,
        )
    }

    fn hcl(&self) -> Result<Node<'a>, Refusal> {
        let body = hcl_edit::parser::parse_body(&rewrite(&self.source.text, Form::Hcl)?)
            .map_err(|e| refusal(&e))?;
        Ok(Node {
            at: self.at(0..0),
            value: self.body(&body),
        })
    }

    /// Is it JSON at all? Then it is HCL's expression too, but for the escapes that `rewrite`
    /// knows.
    fn json(&self, text: &str) -> Result<Node<'a>, Refusal> {
        let here = |(at, message)| (self.skipped + at, message);
        serde_json::from_str::<IgnoredAny>(text).map_err(|e| {
            let begin = e
                .line()
                .checked_sub(2)
                .and_then(|line| text.match_indices('\n').nth(line))
                .map_or(0, |(at, _)| at + 1);
            let message = e.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            here((
                begin + e.column().saturating_sub(1),
                format!("invalid JSON: {message}"),
            ))
        })?;
        let expr: Expression = rewrite(text, Form::Json)
            .map_err(here)?
            .parse()
            .map_err(|e| here(refusal(&e)))?;
        Ok(self.expr(&expr))
    }

    fn span(&self, of: &impl Span) -> At<'a> {
        self.at(of.span().unwrap_or(0..0))
    }

    fn body(&self, body: &Body) -> Value<'a> {
        Value::Table(
            body.iter()
                .map(|structure| self.structure(structure))
                .collect(),
        )
    }

    fn structure(&self, structure: &Structure) -> Pair<'a> {
        match structure {
            Structure::Attribute(attribute) => Pair {
                key: attribute.key.to_string(),
                at: self.span(&attribute.key),
                node: self.expr(&attribute.value),
            },
            Structure::Block(block) => {
                let mut node = Node {
                    at: self.span(&block.ident),
                    value: self.body(&block.body),
                };
                for label in block.labels.iter().rev() {
                    let at = self.span(label);
                    let entry = Pair {
                        key: label.as_str().to_owned(),
                        at,
                        node,
                    };
                    node = Node {
                        at,
                        value: Value::Table(vec![entry]),
                    };
                }
                Pair {
                    key: block.ident.to_string(),
                    at: self.span(&block.ident),
                    node,
                }
            }
        }
    }

    fn expr(&self, expr: &Expression) -> Node<'a> {
        let at = self.span(expr);
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the other crate's eight kinds of computed values are refused alike"
        )]
        let value = match expr {
            Expression::Bool(value) => Value::Bool(*value.value()),
            Expression::Number(_) => Value::Number(at.text()),
            Expression::UnaryOp(op) if op.expr.is_number() => Value::Number(at.text()),
            Expression::String(text) => Value::Text(restore(text.value())),
            Expression::HeredocTemplate(heredoc) => Value::Text(
                heredoc
                    .template
                    .iter()
                    .filter_map(Element::as_literal)
                    .map(|t| restore(t))
                    .collect(),
            ),
            Expression::Array(items) => {
                Value::List(items.iter().map(|item| self.expr(item)).collect())
            }
            Expression::Object(object) => Value::Table(
                object
                    .iter()
                    .map(|(key, value)| self.entry(key, value.expr()))
                    .collect(),
            ),
            _ => Value::Other,
        };
        Node { at, value }
    }

    fn entry(&self, key: &ObjectKey, value: &Expression) -> Pair<'a> {
        let (key, at) = match key {
            ObjectKey::Ident(ident) => (ident.to_string(), self.span(ident)),
            ObjectKey::Expression(expr) => (
                expr.as_str()
                    .map_or_else(|| self.span(expr).text().to_owned(), restore),
                self.span(expr),
            ),
        };
        Pair {
            key,
            at,
            node: self.expr(value),
        }
    }
}

fn refusal(error: &hcl_edit::parser::Error) -> Refusal {
    (
        error.location().offset(),
        format!("syntax error: {}", error.message()),
    )
}

/// A text without the marks of `rewrite`.
fn restore(text: &str) -> String {
    text.replace(char::from(OPEN), "{")
        .replace(char::from(PAD), "")
}

/// Which language a source is written in.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Hcl,
    Json,
}

/// `text` as `hcl-edit` should see it, of the same length; or an offset and what is wrong there.
fn rewrite(text: &str, form: Form) -> Result<String, Refusal> {
    let mut out = text.as_bytes().to_vec();
    if text.starts_with('\u{feff}') {
        out[..3].fill(b' ');
    }
    if let Some(at) = out
        .iter()
        .position(|&b| b < b' ' && !matches!(b, b'\n' | b'\r' | b'\t'))
    {
        return Err((at, CONTROL.to_owned()));
    }
    let mut at = 0;
    while at < out.len() {
        at = match &out[at..] {
            [b'"', ..] => string(&mut out, at, form)?,
            [b'#', ..] | [b'/', b'/', ..] if form == Form::Hcl => end_of(&text[at..], "\n", at),
            [b'/', b'*', ..] if form == Form::Hcl => end_of(&text[at..], "*/", at),
            [b'<', b'<', ..] if form == Form::Hcl => heredoc(text, &mut out, at),
            _ => at + 1,
        };
    }
    String::from_utf8(out).map_err(|e| {
        (
            e.utf8_error().valid_up_to(),
            "the file is not UTF-8".to_owned(),
        )
    })
}

fn end_of(rest: &str, what: &str, at: usize) -> usize {
    rest.find(what)
        .map_or(at + rest.len(), |found| at + found + what.len())
}

/// Rewrites the string that begins at `start`; gives the offset behind it.
fn string(out: &mut [u8], start: usize, form: Form) -> Result<usize, Refusal> {
    let mut at = start + 1;
    while at < out.len() && out[at] != b'"' {
        at += match &out[at..] {
            [b'$' | b'%', b'{', ..] => {
                out[at + 1] = OPEN;
                2
            }
            [b'\\', b'u', ..] => unicode_escape(out, at, form)?,
            [b'\\', b'b' | b'f', ..] if form == Form::Json => return Err((at, CONTROL.to_owned())),
            [b'\\', b'/', ..] if form == Form::Json => {
                out[at] = PAD;
                2
            }
            [b'\\', _, ..] => 2,
            _ => 1,
        };
    }
    if form == Form::Hcl && is_key(out, start, at) {
        out[start] = b' ';
        out[at] = b' ';
    }
    Ok(at + 1)
}

/// Rewrites a `\u` escape: a surrogate pair becomes `\U` and padding. Gives its length.
fn unicode_escape(out: &mut [u8], at: usize, form: Form) -> Result<usize, Refusal> {
    let digits = |from: usize| {
        std::str::from_utf8(out.get(from..from + 4)?)
            .ok()
            .and_then(|hex| u32::from_str_radix(hex, 16).ok())
    };
    let second = out.get(at + 6..at + 8) == Some(b"\\u".as_slice());
    match (digits(at + 2), digits(at + 8).filter(|_| second)) {
        (Some(0..=8), _) => Err((at, CONTROL.to_owned())),
        (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) if form == Form::Json => {
            let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            out[at..at + 10].copy_from_slice(format!("\\U{code:08x}").as_bytes());
            out[at + 10..at + 12].fill(PAD);
            Ok(12)
        }
        _ => Ok(2),
    }
}

/// Whether the quoted text between `start` and `end` is a key at the beginning of a line: HCL 1
/// allows quotes there.
fn is_key(out: &[u8], start: usize, end: usize) -> bool {
    let before = out[..start]
        .iter()
        .rev()
        .find(|b| !matches!(b, b' ' | b'\t'));
    let after = out
        .get(end + 1..)
        .and_then(|rest| rest.iter().find(|b| !matches!(b, b' ' | b'\t')));
    let word = out.get(start + 1..end).unwrap_or_default();
    let is_word = word.first().is_some_and(u8::is_ascii_alphabetic)
        && word.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
    is_word && matches!(before, None | Some(b'\n' | b'{')) && matches!(after, Some(b'=' | b'{'))
}

/// Rewrites the heredoc that begins at `start`, if one does; gives the offset behind it.
fn heredoc(text: &str, out: &mut [u8], start: usize) -> usize {
    let head = text[start + 2..].split('\n').next().unwrap_or_default();
    let word = head.trim_end_matches('\r').trim_start_matches('-');
    let mut at = start + 2 + head.len() + 1;
    if word.is_empty() || !word.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return start + 2;
    }
    while at < text.len() {
        let line = text[at..].split_inclusive('\n').next().unwrap_or_default();
        if line.trim_start().strip_prefix(word).is_some_and(|rest| {
            !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-')
        }) {
            return at + line.len();
        }
        for (found, _) in line.match_indices("${").chain(line.match_indices("%{")) {
            out[at + found + 1] = OPEN;
        }
        at += line.len();
    }
    text.len()
}
