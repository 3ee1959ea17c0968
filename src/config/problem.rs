//! Problems of the configuration with their positions. Invariant: a problem shows only the parts of
//! a source line that cannot hold a credential: nothing after an unknown key, and quoted text masked.

use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::ops::Range;

/// One file of the configuration.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// The path as given.
    pub(super) name: String,
    /// The content.
    pub(super) text: String,
    /// The offset of each newline, computed for the first line number.
    newlines: OnceCell<Vec<usize>>,
}

impl SourceFile {
    /// The file `name` with the content `text`.
    pub(super) fn new(name: String, text: String) -> Self {
        Self {
            name,
            text,
            newlines: OnceCell::new(),
        }
    }

    /// The number of the line with byte `at`, from 1.
    fn line(&self, at: usize) -> usize {
        let newlines = self.newlines.get_or_init(|| {
            let found = self.text.match_indices('\n');
            found.map(|(at, _)| at).collect()
        });
        newlines.partition_point(|newline| *newline < at) + 1
    }
}

/// A range of bytes in a source.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    /// The file.
    pub(super) source: &'a SourceFile,
    /// The first byte.
    pub(super) start: usize,
    /// The end of the range, exclusive.
    pub(super) end: usize,
}

impl<'a> At<'a> {
    /// The range from `start` to `end`, limited to the text and rounded down to whole characters.
    pub(super) fn new(source: &'a SourceFile, start: usize, end: usize) -> Self {
        Self {
            source,
            start: source.text.floor_char_boundary(start),
            end: source.text.floor_char_boundary(end.max(start)),
        }
    }

    /// The text in the range.
    pub(super) fn text(self) -> &'a str {
        &self.source.text[self.start..self.end]
    }

    /// `file:line`.
    pub(super) fn origin(self) -> String {
        format!("{}:{}", self.source.name, self.source.line(self.start))
    }

    /// The location of a value whose key is known. Other quoted text is masked.
    pub(super) fn value(self) -> Location {
        self.locate(mask)
    }

    /// The location of a key. The rest of the line is hidden, because an unknown key may have any
    /// value.
    pub(super) fn key(self) -> Location {
        self.locate(|line, caret| {
            if caret.end < line.len() {
                mask(&line[..caret.end], caret) + " ..."
            } else {
                mask(line, caret)
            }
        })
    }

    /// The location of a value of the wrong type. All quoted text is masked.
    pub(super) fn shape(self) -> Location {
        self.locate(|line, _| mask(line, &(0..0)))
    }

    /// The location in the lines of a template, which are shown unmasked.
    pub(super) fn template(self) -> Location {
        self.locate(|line, _| line.to_owned())
    }

    /// The location with the line as `show` makes the line from the source and the marked range.
    fn locate(self, show: impl Fn(&str, &Range<usize>) -> String) -> Location {
        let (before, after) = self.source.text.split_at(self.start);
        let before = before.rsplit('\n').next().unwrap_or_default();
        let after = after.split('\n').next().unwrap_or_default();
        let marked = &after[..after.len().min(self.end - self.start)];
        let caret = before.len()..before.len() + marked.len();
        let line = format!("{before}{after}");
        Location {
            file: self.source.name.clone(),
            line: self.source.line(self.start),
            column: before.chars().count() + 1,
            width: marked.trim_end().chars().count().max(1),
            shown: show(line.trim_end(), &caret),
        }
    }
}

/// `line` with `*` for each quoted character, except in keys, labels and texts that overlap `keep`.
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

/// The offset after the quote that closes the text from `start`, or the end of the line.
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

/// The effect of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// baofs does not start.
    Error,
    /// baofs starts and reports the problem.
    Warning,
}

/// One problem of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The effect.
    pub severity: Severity,
    /// The cause, in lower case. A value appears only where no secret can stand.
    pub message: String,
    /// The remedy, or an empty text.
    pub hint: String,
    /// The position; `None` for flags, the environment, and files that cannot be read.
    location: Option<Location>,
}

/// The position of a problem and the line to show. The order is by position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Location {
    file: String,
    line: usize,
    column: usize,
    width: usize,
    shown: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = &self.message;
        let hint = &self.hint;
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        if let Some(Location {
            file,
            line,
            column,
            width,
            shown,
        }) = &self.location
        {
            let gutter = " ".repeat(line.to_string().len());
            let before = shown.chars().take(column - 1);
            let indent: String = before.map(|c| if c == '\t' { c } else { ' ' }).collect();
            let caret = "^".repeat(*width);
            writeln!(f, "{file}:{line}:{column}: {word}: {message}")?;
            writeln!(f, "  {line} | {shown}")?;
            write!(f, "  {gutter} | {indent}{caret}")?;
        } else {
            write!(f, "{word}: {message}")?;
        }
        if !hint.is_empty() {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// All problems, sorted by file and line. There is at least one error.
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

/// Collects the problems of a whole check.
#[derive(Debug, Default)]
pub(super) struct Findings(RefCell<Vec<Problem>>);

impl Findings {
    /// Adds an error; `None` for an error of a flag, of the environment, or of all files together.
    pub(super) fn error(
        &self,
        location: impl Into<Option<Location>>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(
            Severity::Error,
            location.into(),
            message.into(),
            hint.into(),
        );
    }

    /// Adds a warning.
    pub(super) fn warn(
        &self,
        location: impl Into<Option<Location>>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(
            Severity::Warning,
            location.into(),
            message.into(),
            hint.into(),
        );
    }

    /// The value of `result`, or `None` after adding the error at `at`.
    pub(super) fn accept<'a, T>(
        &self,
        at: impl Into<Option<At<'a>>>,
        result: Result<T, impl Into<String>>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(at.into().map(At::value), message, "");
                None
            }
        }
    }

    fn add(&self, severity: Severity, location: Option<Location>, message: String, hint: String) {
        self.0.borrow_mut().push(Problem {
            severity,
            message,
            hint,
            location,
        });
    }

    /// Whether an error was added so far.
    pub(super) fn has_errors(&self) -> bool {
        self.0
            .borrow()
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// All problems, sorted, as `Err` if there is an error among them; else the warnings.
    pub(super) fn finish(self) -> Result<Vec<Problem>, Problems> {
        let failed = self.has_errors();
        let mut all = self.0.into_inner();
        all.sort_by(|a, b| a.location.cmp(&b.location));
        all.dedup();
        if failed { Err(Problems(all)) } else { Ok(all) }
    }
}

impl Problem {
    /// The position, the message and the hint in one line for the log, without the source line.
    pub fn one_line(&self) -> String {
        let mut text = String::new();
        if let Some(Location { file, line, .. }) = &self.location {
            text = format!("{file}:{line}: ");
        }
        text.push_str(&self.message);
        if !self.hint.is_empty() {
            text = text + "; hint: " + &self.hint;
        }
        text
    }
}
