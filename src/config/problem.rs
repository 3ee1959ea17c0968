//! What is wrong, where, and what to do about it. Invariant: a problem shows a source line only as
//! far as it cannot hold a credential: nothing behind an unknown key, and other quoted text masked.

use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::ops::Range;

/// One file of the configuration.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Its path as it was given.
    pub(super) name: String,
    /// What it holds.
    pub(super) text: String,
    /// The offset of each newline, once a line number was asked for.
    newlines: OnceCell<Vec<usize>>,
}

impl SourceFile {
    /// The file `name`, which holds `text`.
    pub(super) fn new(name: String, text: String) -> Self {
        Self {
            name,
            text,
            newlines: OnceCell::new(),
        }
    }

    /// The number of the line that byte `at` stands in, from 1 on.
    fn line(&self, at: usize) -> usize {
        let newlines = self
            .newlines
            .get_or_init(|| self.text.match_indices('\n').map(|(at, _)| at).collect());
        newlines.partition_point(|newline| *newline < at) + 1
    }
}

/// A range of bytes in a source.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    /// The file.
    pub(super) source: &'a SourceFile,
    /// First byte.
    pub(super) start: usize,
    /// One past the last byte.
    pub(super) end: usize,
}

impl<'a> At<'a> {
    /// The range from `start` to `end`, moved into the text and onto the beginnings of characters.
    pub(super) fn new(source: &'a SourceFile, start: usize, end: usize) -> Self {
        let floor = |at: usize| {
            (0..=at.min(source.text.len()))
                .rev()
                .find(|&at| source.text.is_char_boundary(at))
                .unwrap_or(0)
        };
        Self {
            source,
            start: floor(start),
            end: floor(end.max(start)),
        }
    }

    /// The text that is meant.
    pub(super) fn text(self) -> &'a str {
        &self.source.text[self.start..self.end]
    }

    /// `file:line`.
    pub(super) fn origin(self) -> String {
        format!("{}:{}", self.source.name, self.line())
    }

    fn line(self) -> usize {
        self.source.line(self.start)
    }

    fn place(self, show: Show) -> Location {
        let text = &self.source.text;
        let begin = text[..self.start].rfind('\n').map_or(0, |at| at + 1);
        let end = text[self.start..]
            .find('\n')
            .map_or(text.len(), |at| self.start + at);
        let caret = self.start - begin..self.end.clamp(self.start, end) - begin;
        let line = text[begin..end].trim_end();
        let shown = match show {
            Show::All => line.to_owned(),
            Show::Value => mask(line, &caret),
            Show::Key => {
                mask(&line[..caret.end.min(line.len())], &caret)
                    + if caret.end < line.len() { " ..." } else { "" }
            }
            Show::Shape => mask(line, &(0..0)),
        };
        Location {
            file: self.source.name.clone(),
            line: self.line(),
            column: text[begin..self.start].chars().count() + 1,
            width: text[begin..end][caret].trim_end().chars().count().max(1),
            shown,
        }
    }
}

/// How much of a source line a problem may show.
#[derive(Clone, Copy, Debug)]
enum Show {
    /// All of it: a line of a template.
    All,
    /// The value that is meant, its key being known; what else stands in quotes is masked.
    Value,
    /// Nothing behind the caret: an unknown key may hold anything.
    Key,
    /// Everything in quotes is masked.
    Shape,
}

/// `line` with what stands in quotes replaced by `*`, except for keys, labels, and a text that
/// `keep` touches.
fn mask(line: &str, keep: &Range<usize>) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(quote) = rest.find('"') {
        let start = line.len() - rest.len() + quote;
        let end = closing(line, start + 1);
        out.push_str(&rest[..quote]);
        let names = line[end..].trim_start().starts_with([':', '=', '{']);
        if names || start < keep.end && keep.start < end {
            out.push_str(&line[start..end]);
        } else {
            let inside = line[start + 1..end].trim_end_matches('"');
            out.push('"');
            out.extend(inside.chars().map(|_| '*'));
            out.push_str(&line[start + 1 + inside.len()..end]);
        }
        rest = &line[end..];
    }
    out + rest
}

/// One past the quote that closes the text beginning at `start`, or the end of the line.
fn closing(line: &str, start: usize) -> usize {
    let mut escaped = false;
    for (at, c) in line[start..].char_indices() {
        match c {
            '"' if !escaped => return start + at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    line.len()
}

/// Whether a problem stops baofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It does.
    Error,
    /// It is only said.
    Warning,
}

/// One problem of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether it stops baofs.
    pub severity: Severity,
    /// What is wrong, in lower case, without a value.
    pub message: String,
    /// What to do, if there is something to say.
    pub hint: String,
    /// Where; absent for flags, the environment, and files that cannot be read.
    place: Option<Location>,
}

/// Where a problem stands, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Location {
    file: String,
    line: usize,
    column: usize,
    width: usize,
    shown: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match &self.place {
            None => write!(f, "{word}: {}", self.message)?,
            Some(place) => place.write(f, word, &self.message)?,
        }
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

impl Location {
    fn write(&self, f: &mut fmt::Formatter<'_>, word: &str, message: &str) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            width,
            shown,
        } = self;
        let gutter = " ".repeat(line.to_string().len());
        let indent: String = shown
            .chars()
            .take(column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(f, "{file}:{line}:{column}: {word}: {message}")?;
        writeln!(f, "  {line} | {shown}")?;
        write!(f, "  {gutter} | {indent}{}", "^".repeat(*width))
    }
}

/// Every problem that was found, sorted by file and line; at least one of them is an error.
#[derive(Clone, Debug)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        let errors = self
            .0
            .iter()
            .filter(|p| p.severity == Severity::Error)
            .count();
        write!(
            f,
            "{errors} error{} in the configuration",
            if errors == 1 { "" } else { "s" }
        )
    }
}

/// Where problems gather while everything is checked.
#[derive(Debug, Default)]
pub(super) struct Findings(RefCell<Vec<Problem>>);

impl Findings {
    /// An error at a value of a known key.
    pub(super) fn error(&self, at: At<'_>, message: impl Into<String>, hint: impl Into<String>) {
        self.add(
            Severity::Error,
            Some(at.place(Show::Value)),
            message.into(),
            hint.into(),
        );
    }

    /// An error at a key whose value may be anything.
    pub(super) fn error_at_key(
        &self,
        at: At<'_>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(
            Severity::Error,
            Some(at.place(Show::Key)),
            message.into(),
            hint.into(),
        );
    }

    /// An error in the lines of a template.
    pub(super) fn error_in_text(
        &self,
        at: At<'_>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(
            Severity::Error,
            Some(at.place(Show::All)),
            message.into(),
            hint.into(),
        );
    }

    /// A text of another shape than the one that belongs here.
    pub(super) fn error_of_shape(
        &self,
        at: At<'_>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(
            Severity::Error,
            Some(at.place(Show::Shape)),
            message.into(),
            hint.into(),
        );
    }

    /// An error of a flag, of the environment, or of all files together.
    pub(super) fn error_anywhere(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Error, None, message.into(), hint.into());
    }

    /// Something to say that stops nothing.
    pub(super) fn warn(
        &self,
        at: Option<At<'_>>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(
            Severity::Warning,
            at.map(|at| at.place(Show::Key)),
            message.into(),
            hint.into(),
        );
    }

    fn add(&self, severity: Severity, place: Option<Location>, message: String, hint: String) {
        self.0.borrow_mut().push(Problem {
            severity,
            message,
            hint,
            place,
        });
    }

    /// Whether an error was found so far.
    pub(super) fn has_errors(&self) -> bool {
        self.0
            .borrow()
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// All problems, sorted: `Err` if one of them is an error, else the warnings.
    pub(super) fn finish(self) -> Result<Vec<Problem>, Problems> {
        let failed = self.has_errors();
        let mut all = self.0.into_inner();
        all.sort_by(|a, b| a.key().cmp(&b.key()));
        all.dedup();
        if failed { Err(Problems(all)) } else { Ok(all) }
    }
}

impl Problem {
    /// The position, the message and the hint in one line, for a log: without the source line.
    pub fn one_line(&self) -> String {
        let mut text = String::new();
        if let Some(Location { file, line, .. }) = &self.place {
            text = format!("{file}:{line}: ");
        }
        text.push_str(&self.message);
        if !self.hint.is_empty() {
            text = text + "; hint: " + &self.hint;
        }
        text
    }

    fn key(&self) -> Option<(&str, usize, usize)> {
        self.place
            .as_ref()
            .map(|p| (p.file.as_str(), p.line, p.column))
    }
}
