//! Typed access to what was typed. Invariant: every key of every opened block is looked up in its
//! table, and whatever is not as it should be is reported once, where it stands.

use super::keys::{Block, Fate, ROOT, keys};
use super::problem::{At, Findings};
use super::raw::{Node, Pair, Value};
use super::value;

/// A block whose keys were looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    entries: &'a [Pair<'a>],
    report: &'a Findings,
    name: &'static str,
    /// Where it begins.
    pub(super) at: At<'a>,
}

impl<'a> Section<'a> {
    /// Looks up every key of `node`, which must be a block or an object.
    pub(super) fn open(
        node: &'a Node<'a>,
        block: &'static Block,
        report: &'a Findings,
    ) -> Option<Self> {
        let Some(entries) = node.table() else {
            report.error_of_shape(
                node.at,
                format!("invalid {}: expected a block", block.name),
                "write `NAME { KEY = VALUE }`",
            );
            return None;
        };
        let section = Self {
            entries,
            report,
            name: block.name,
            at: node.at,
        };
        for (index, entry) in entries.iter().enumerate() {
            section.look_up(
                entry,
                block,
                entries[..index]
                    .iter()
                    .any(|earlier| earlier.key == entry.key),
            );
        }
        Some(section)
    }

    fn look_up(&self, entry: &Pair<'_>, block: &Block, repeated: bool) {
        let key = entry.key.as_str();
        let fate = block
            .other
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, fate)| *fate);
        match fate {
            Some(Fate::Ignored(why)) => {
                self.report
                    .warn(Some(entry.at), format!("`{key}` has no effect"), why);
            }
            Some(Fate::Only(value, _)) if entry.node.scalar() == Some(value) => {}
            Some(Fate::Only(value, why)) => self.report.error_at_key(
                entry.at,
                format!("unsupported value of `{key}`: only `{value}` is supported: {why}"),
                "",
            ),
            Some(Fate::Refused(why, hint)) => {
                self.report
                    .error_at_key(entry.at, format!("`{key}`: {why}"), hint);
            }
            None if [block.many, block.quiet]
                .into_iter()
                .flat_map(keys)
                .any(|known| known == key) => {}
            None if keys(block.used).any(|known| known == key) && !repeated => {}
            None if repeated => {
                self.report.error_at_key(
                    entry.at,
                    format!("duplicate key `{key}`"),
                    "remove one of them",
                );
            }
            None => self.unknown(entry, block),
        }
    }

    fn unknown(&self, entry: &Pair<'_>, block: &Block) {
        let known = || {
            keys(block.used)
                .chain(keys(block.many))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let hint = block.nearest(&entry.key).map_or_else(
            || format!("known keys: {}", known()),
            |known| format!("did you mean `{known}`?"),
        );
        let place = if block.name == ROOT.name {
            String::new()
        } else {
            format!(" in {}", block.name)
        };
        self.report.error_at_key(
            entry.at,
            format!("unknown key `{}`{place}", entry.key),
            hint,
        );
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Node<'a>> {
        self.entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.node)
    }

    /// Where `key` stands, else the block.
    pub(super) fn at(&self, key: &str) -> At<'a> {
        self.get(key).map_or(self.at, |node| node.at)
    }

    /// The section under `key`.
    pub(super) fn section(&self, key: &str, block: &'static Block) -> Option<Self> {
        Self::open(self.get(key)?, block, self.report)
    }

    /// Every value of a repeated `key`; a list counts as its items.
    pub(super) fn each(&self, key: &'static str) -> impl Iterator<Item = &'a Node<'a>> + use<'a> {
        self.entries
            .iter()
            .filter(move |entry| entry.key == key)
            .flat_map(|entry| entry.node.items())
    }

    /// The value of `key` as typed, and its node; a list, a block or nothing at all is an error.
    pub(super) fn scalar(&self, key: &str) -> Option<(&'a str, &'a Node<'a>)> {
        let node = self.get(key)?;
        match node.scalar() {
            Some(text) if !text.trim().is_empty() => return Some((text, node)),
            Some(_) => self.report.error(
                node.at,
                format!("`{key}` is empty"),
                "write a value, or remove the key",
            ),
            None => self.report.error(
                node.at,
                format!("invalid `{key}`: expected a single value"),
                "write `KEY = \"VALUE\"`",
            ),
        }
        None
    }

    /// The text of `key`, in quotes.
    pub(super) fn text(&self, key: &str) -> Option<(&'a str, &'a Node<'a>)> {
        let (text, node) = self.scalar(key)?;
        if matches!(node.value, Value::Text(_)) {
            return Some((text, node));
        }
        self.report.error(
            node.at,
            format!("invalid `{key}`: expected a string in quotes"),
            "",
        );
        None
    }

    /// The text of `key`, without which nothing goes.
    pub(super) fn required(&self, key: &str) -> Option<(&'a str, &'a Node<'a>)> {
        self.lacks(key);
        self.text(key)
    }

    /// Reports `key` if it is missing.
    pub(super) fn lacks(&self, key: &str) {
        if self.get(key).is_none() {
            self.report
                .error_of_shape(self.at, format!("{} needs the key `{key}`", self.name), "");
        }
    }

    /// Reports more than one of `keys`; gives whether there is any.
    pub(super) fn at_most_one(&self, keys: &[&str]) -> bool {
        let given: Vec<_> = keys
            .iter()
            .filter_map(|key| Some((format!("`{key}`"), self.get(key)?)))
            .collect();
        if let [_, .., (_, last)] = given.as_slice() {
            let names: Vec<_> = given.iter().map(|(name, _)| name.as_str()).collect();
            self.report.error_of_shape(
                last.at,
                format!("{} cannot be used together", names.join(" and ")),
                "remove one of them",
            );
        }
        !given.is_empty()
    }

    /// Reports none, or more than one, of `keys`.
    pub(super) fn exactly_one(&self, keys: &[&str], hint: &str) {
        if !self.at_most_one(keys) {
            self.report.error_of_shape(
                self.at,
                format!("{} needs the key `{}`", self.name, keys.join("` or `")),
                hint,
            );
        }
    }

    /// The value of `key` as `parse` understands it.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (text, node) = self.scalar(key)?;
        let failed = |why| self.report.error(node.at, format!("`{key}`: {why}"), "");
        parse(text).map_err(failed).ok()
    }

    /// The boolean of `key`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.parsed(key, value::boolean)
    }

    /// The permission bits of `key`: octal in quotes, or with a leading zero.
    pub(super) fn mode(&self, key: &str) -> Option<u32> {
        let number = matches!(self.get(key)?.value, Value::Number(_));
        self.parsed(
            key,
            if number {
                value::octal_number
            } else {
                value::octal
            },
        )
    }
}

/// The kind of a block, where it is said, and what it configures: `sink "file" { ... }` and JSON's
/// `"sink": {"file": {...}}` are one table whose only value is a table under a key that the block
/// does not know. Without a label, `type` says it.
pub(super) fn labelled<'a>(
    node: &'a Node<'a>,
    block: &'static Block,
    report: &'a Findings,
) -> Option<(&'a str, At<'a>, Section<'a>)> {
    let (label, node) = match node.table() {
        Some([only]) if only.node.scalar().is_none() && block.all().all(|key| key != only.key) => {
            (Some(only), &only.node)
        }
        Some(_) | None => (None, node),
    };
    let section = Section::open(node, block, report)?;
    section.lacks("config");
    match label {
        Some(label) => Some((&label.key, label.at, section)),
        None => section
            .required("type")
            .map(|(kind, node)| (kind, node.at, section)),
    }
}
