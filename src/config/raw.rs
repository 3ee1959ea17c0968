//! Text to a tree that is the same for HCL and JSON: the typed values with their positions.
//! Invariant: every position is a position of the original text.
//!
//! `hcl-edit` parses both languages. Where `hcl-edit` differs from `bao agent` (HCL 1), the text is
//! rewritten before the parse, with the same length, so that positions stay: `${` and `%{` become
//! plain text, quoted keys become plain keys, and JSON escapes that HCL lacks are replaced. The byte
//! `OPEN` stands for a brace that must not begin an interpolation, and `PAD` for nothing; `restore`
//! removes both from the parsed texts.

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

/// A value with a position.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// The position.
    pub(super) at: At<'a>,
    /// The value.
    pub(super) value: Value<'a>,
}

/// A value as typed.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// A quoted text or a heredoc.
    Text(String),
    /// The literal of a number: `0400` keeps the zero.
    Number(&'a str),
    /// `true` or `false`.
    Bool(&'a str),
    /// A list in brackets.
    List(Vec<Node<'a>>),
    /// A block or an object; each label of a block is a table with one entry.
    Table(Vec<Pair<'a>>),
    /// Null, or an expression that a configuration cannot have.
    Other,
}

/// A key with a value.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    /// The key.
    pub(super) key: String,
    /// The position of the key.
    pub(super) at: At<'a>,
    /// The value.
    pub(super) node: Node<'a>,
}

impl<'a> Node<'a> {
    /// The entries of a block or object, also within a list of one item, as HCL 1 and JSON allow.
    pub(super) fn table(&self) -> Option<&[Pair<'a>]> {
        match (&self.value, self.items()) {
            (Value::Table(entries), _) => Some(entries),
            (Value::List(_), [only]) => only.table(),
            _ => None,
        }
    }

    /// The items of a list; any other value is a list of itself.
    pub(super) fn items(&self) -> &[Self] {
        if let Value::List(items) = &self.value {
            items
        } else {
            std::slice::from_ref(self)
        }
    }

    /// The text of a single value.
    pub(super) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Number(text) | Value::Bool(text) => Some(text),
            Value::List(_) | Value::Table(_) | Value::Other => None,
        }
    }

    /// The position of the bytes from `offset` in the unescaped text, with regard to escapes and to
    /// the indentation of a heredoc.
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
        let start = self.at.start;
        At::new(self.at.source, start + find(offset), start + end)
    }
}

/// The offset in the quoted `raw` of byte `offset` of the unescaped text.
fn in_quotes(raw: &str, offset: usize) -> usize {
    let mut at = 1;
    let mut left = offset;
    while left > 0 && at < raw.len() {
        let (typed, meant) = match &raw.as_bytes()[at..] {
            [b'\\', b'u', ..] => match unicode(raw, at + 2..at + 6) {
                Some(len) => (6, len),
                // A pair of surrogates.
                None => (12, 4),
            },
            [b'\\', b'U', ..] => (10, unicode(raw, at + 2..at + 10).unwrap_or(1)),
            [b'\\', ..] => (2, 1),
            _ => (1, 1),
        };
        at += typed;
        left = left.saturating_sub(meant);
    }
    at
}

/// The length in UTF-8 of the character with the hexadecimal number at `digits`; `None` for a
/// surrogate.
fn unicode(raw: &str, digits: Range<usize>) -> Option<usize> {
    let number = u32::from_str_radix(raw.get(digits)?, 16).ok()?;
    char::from_u32(number).map(char::len_utf8)
}

/// The offset in the heredoc `raw` of byte `offset` of `text`. Lines differ in their indentation, and
/// the first line of `raw` is the marker.
fn in_heredoc(raw: &str, text: &str, offset: usize) -> usize {
    let before = &text[..offset];
    let lines = before.matches('\n').count() + 1;
    let begin: usize = raw.split_inclusive('\n').take(lines).map(str::len).sum();
    let column = before.rsplit('\n').next().unwrap_or_default().len();
    let line = |text: &str| text.split('\n').next().unwrap_or_default().len();
    let typed = line(&raw[begin..]);
    let kept = line(&text[offset - column..]);
    let removed = typed.saturating_sub(kept);
    begin + removed + column
}

/// Parses `source`; reports a syntax error and returns `None`.
pub(super) fn parse<'a>(source: &'a SourceFile, report: &Findings) -> Option<Node<'a>> {
    let text = source
        .text
        .trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    let skipped = source.text.len() - text.len();
    let builder = TreeBuilder { source, skipped };
    let parsed = if text.starts_with('{') {
        builder.json(text.trim_end())
    } else {
        builder.hcl(text)
    };
    let reported = parsed.map_err(|(at, message)| {
        let at = skipped + at;
        report.error(At::new(source, at, at + 1).shape(), message, "");
    });
    reported.ok()
}

/// The byte offset of a syntax error in the parsed text, and the message.
type Refusal = (usize, String);

/// Makes nodes of one source.
struct TreeBuilder<'a> {
    source: &'a SourceFile,
    /// The number of bytes before the parsed text.
    skipped: usize,
}

impl<'a> TreeBuilder<'a> {
    fn hcl(&self, text: &str) -> Result<Node<'a>, Refusal> {
        let text = rewrite(text, Form::Hcl)?;
        let body = hcl_edit::parser::parse_body(&text).map_err(|e| refusal(&e))?;
        Ok(Node {
            at: self.span(&body),
            value: self.body(&body),
        })
    }

    /// Parses JSON. `serde_json` checks the text; then the text is also an expression of HCL, except
    /// for the escapes that `rewrite` replaces.
    fn json(&self, text: &str) -> Result<Node<'a>, Refusal> {
        if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
            let lines = text
                .split_inclusive('\n')
                .take(error.line().saturating_sub(1));
            let column = error.column().saturating_sub(1);
            let at = lines.map(str::len).sum::<usize>() + column;
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            return Err((at, format!("invalid JSON: {message}")));
        }
        let text = rewrite(text, Form::Json)?;
        let expr = hcl_edit::parser::parse_expr(&text).map_err(|e| refusal(&e))?;
        Ok(self.expr(&expr))
    }

    fn span(&self, of: &impl Span) -> At<'a> {
        let Range { start, end } = of.span().unwrap_or_default();
        At::new(self.source, self.skipped + start, self.skipped + end)
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
                let at = self.span(&block.ident);
                let mut node = Node {
                    at,
                    value: self.body(&block.body),
                };
                for label in block.labels.iter().rev() {
                    let at = self.span(label);
                    let key = label.as_str().to_owned();
                    let value = Value::Table(vec![Pair { key, at, node }]);
                    node = Node { at, value };
                }
                let key = block.ident.to_string();
                Pair { key, at, node }
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
            Expression::Bool(_) => Value::Bool(at.text()),
            Expression::Number(_) => Value::Number(at.text()),
            Expression::UnaryOp(op) if op.expr.is_number() => Value::Number(at.text()),
            Expression::String(text) => Value::Text(restore(text.value())),
            Expression::HeredocTemplate(heredoc) => {
                let mut text = String::new();
                for element in &heredoc.template {
                    if let Element::Literal(literal) = element {
                        text += &restore(literal);
                    }
                }
                Value::Text(text)
            }
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
        let at = self.span(key);
        let key = match key {
            ObjectKey::Ident(ident) => ident.to_string(),
            ObjectKey::Expression(expr) => restore(expr.as_str().unwrap_or(at.text())),
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

/// The language of a source.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Hcl,
    Json,
}

/// `text` in the form that `hcl-edit` parses, with the same length.
fn rewrite(text: &str, form: Form) -> Result<String, Refusal> {
    let mut out = text.as_bytes().to_vec();
    if let Some(at) = out
        .iter()
        .position(|&b| b < b' ' && !matches!(b, b'\n' | b'\r' | b'\t'))
    {
        return Err((at, CONTROL.to_owned()));
    }
    let is_hcl = form == Form::Hcl;
    let mut at = 0;
    while at < out.len() {
        at = match &out[at..] {
            [b'"', ..] => string(&mut out, at, form)?,
            [b'#', ..] | [b'/', b'/', ..] if is_hcl => end_of(&text[at..], "\n", at),
            [b'/', b'*', ..] if is_hcl => end_of(&text[at..], "*/", at),
            [b'<', b'<', ..] if is_hcl => heredoc(text, &mut out, at),
            _ => at + 1,
        };
    }
    Ok(String::from_utf8(out).expect("ASCII characters replace ASCII characters"))
}

fn end_of(rest: &str, end: &str, at: usize) -> usize {
    match rest.find(end) {
        Some(found) => at + found + end.len(),
        None => at + rest.len(),
    }
}

/// Rewrites the string from `start`; returns the offset after the string.
fn string(out: &mut [u8], start: usize, form: Form) -> Result<usize, Refusal> {
    let mut at = start + 1;
    while at < out.len() && out[at] != b'"' {
        at += match &out[at..] {
            [b'$' | b'%', b'{', ..] => {
                out[at + 1] = OPEN;
                2
            }
            [b'\\', b'u', ..] => unicode_escape(out, at, form)?,
            [b'\\', b'b' | b'f', ..] if form == Form::Json => {
                return Err((at, CONTROL.to_owned()));
            }
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

/// Rewrites a `\u` escape: a surrogate pair becomes `\U` and padding. Returns the length.
fn unicode_escape(out: &mut [u8], at: usize, form: Form) -> Result<usize, Refusal> {
    let digits = |from: usize| {
        let bytes = out.get(from..from + 4)?;
        let hex = std::str::from_utf8(bytes).ok()?;
        u32::from_str_radix(hex, 16).ok()
    };
    let is_pair = out.get(at + 6..at + 8) == Some(b"\\u".as_slice());
    let first = digits(at + 2);
    let second = digits(at + 8).filter(|_| is_pair);
    match (first, second) {
        (Some(0..=8), _) => Err((at, CONTROL.to_owned())),
        (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) if form == Form::Json => {
            let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            let escape = format!("\\U{code:08x}");
            out[at..at + 10].copy_from_slice(escape.as_bytes());
            out[at + 10..at + 12].fill(PAD);
            Ok(12)
        }
        _ => Ok(2),
    }
}

/// Whether the quoted text from `start` to `end` is a key at the beginning of a line: HCL 1 allows
/// quotes there.
fn is_key(out: &[u8], start: usize, end: usize) -> bool {
    let is_blank = |b: &&u8| matches!(b, b' ' | b'\t');
    let word = out.get(start + 1..end).unwrap_or_default();
    let rest = out.get(end + 1..).unwrap_or_default();
    let before = out[..start].iter().rev().find(|b| !is_blank(b));
    let after = rest.iter().find(|b| !is_blank(b));
    matches!(word, [first, ..] if first.is_ascii_alphabetic())
        && word.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && matches!(before, None | Some(b'\n' | b'{'))
        && matches!(after, Some(b'=' | b'{'))
}

/// Rewrites the heredoc from `start`, if there is a heredoc; returns the offset after the heredoc.
fn heredoc(text: &str, out: &mut [u8], start: usize) -> usize {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let head = text[start + 2..].split('\n').next().unwrap_or_default();
    let word = head.trim_end_matches('\r').trim_start_matches('-');
    if word.is_empty() || !word.chars().all(in_word) {
        return start + 2;
    }
    let mut at = start + 2 + head.len() + 1;
    while at < text.len() {
        let line = text[at..].split_inclusive('\n').next().unwrap_or_default();
        if let Some(rest) = line.trim_start().strip_prefix(word)
            && !rest.starts_with(|c| in_word(c) || c == '-')
        {
            return at + line.len();
        }
        let values = line.match_indices("${");
        let directives = line.match_indices("%{");
        for (found, _) in values.chain(directives) {
            out[at + found + 1] = OPEN;
        }
        at += line.len();
    }
    text.len()
}
