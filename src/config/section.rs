//! Typed access to the parsed tree. Invariant: every key of an opened block is looked up in the
//! block's table, and each problem is reported once, at its position.

use super::keys::{Block, Fate, ROOT, keys};
use super::problem::{At, Findings};
use super::raw::{Node, Pair, Value};
use super::value;

/// A value as typed, and the node.
type Scalar<'a> = (&'a str, &'a Node<'a>);

/// A block whose keys were looked up. An absent block is an empty section that needs no key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    entries: &'a [Pair<'a>],
    pub(super) report: &'a Findings,
    name: &'static str,
    /// The position of the block; `None` for an absent block.
    pub(super) at: Option<At<'a>>,
}

impl<'a> Section<'a> {
    /// Looks up every key of `node`, which must be a block or an object. A missing node, and a node
    /// of another kind after a report, is an absent block.
    pub(super) fn open(
        node: Option<&'a Node<'a>>,
        block: &'static Block,
        report: &'a Findings,
    ) -> Self {
        let mut section = Self {
            entries: &[],
            report,
            name: block.name,
            at: None,
        };
        let Some(node) = node else { return section };
        let Some(entries) = node.table() else {
            report.error(
                node.at.shape(),
                format!("invalid {}: expected a block", block.name),
                "write `NAME { KEY = VALUE }`",
            );
            return section;
        };
        section.entries = entries;
        section.at = Some(node.at);
        for (index, entry) in entries.iter().enumerate() {
            section.look_up(entry, &entries[..index], block);
        }
        section
    }

    fn look_up(&self, entry: &Pair<'_>, earlier: &[Pair<'_>], block: &Block) {
        let key = entry.key.as_str();
        let lists = |list| keys(list).any(|known| known == key);
        let found = block.other.iter().find(|(known, _)| *known == key);
        if let Some((_, fate)) = found {
            self.report_fate(entry, *fate);
            return;
        }
        if lists(block.many) || lists(block.quiet) {
            return;
        }
        if earlier.iter().any(|earlier| earlier.key == key) {
            self.report.error(
                entry.at.key(),
                format!("duplicate key `{key}`"),
                "remove one of them",
            );
        } else if !lists(block.used) {
            self.report_unknown(entry, block);
        }
    }

    fn report_fate(&self, entry: &Pair<'_>, fate: Fate) {
        let key = &entry.key;
        let at = entry.at.key();
        match fate {
            Fate::Ignored(why) => {
                let message = format!("`{key}` has no effect");
                self.report.warn(at, message, why);
            }
            Fate::Only(value, _) if entry.node.scalar() == Some(value) => {}
            Fate::Only(value, why) => self.report.error(
                at,
                format!("unsupported value of `{key}`: only `{value}` is supported: {why}"),
                "",
            ),
            Fate::Refused(why, hint) => {
                let message = format!("`{key}`: {why}");
                self.report.error(at, message, hint);
            }
        }
    }

    fn report_unknown(&self, entry: &Pair<'_>, block: &Block) {
        let hint = if let Some(known) = block.nearest(&entry.key) {
            format!("did you mean `{known}`?")
        } else {
            let known: Vec<_> = keys(block.used).chain(keys(block.many)).collect();
            format!("known keys: {}", known.join(", "))
        };
        let place = if block.name == ROOT.name {
            String::new()
        } else {
            format!(" in {}", block.name)
        };
        self.report.error(
            entry.at.key(),
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

    /// The section under `key`.
    pub(super) fn section(&self, key: &str, block: &'static Block) -> Self {
        Self::open(self.get(key), block, self.report)
    }

    /// Every value of a repeated `key`; a list counts as its items.
    pub(super) fn each(&self, key: &str) -> Vec<&'a Node<'a>> {
        let entries = self.entries.iter().filter(|entry| entry.key == key);
        entries.flat_map(|entry| entry.node.items()).collect()
    }

    /// The value of `key` as typed, and the node. Reports an empty text, a list and a block.
    pub(super) fn scalar(&self, key: &str) -> Option<Scalar<'a>> {
        let node = self.get(key)?;
        match node.scalar() {
            Some(text) if !text.trim().is_empty() => return Some((text, node)),
            Some(_) => self.report.error(
                node.at.value(),
                format!("`{key}` is empty"),
                "write a value, or remove the key",
            ),
            None => self.report.error(
                node.at.value(),
                format!("invalid `{key}`: expected a single value"),
                "write `KEY = \"VALUE\"`",
            ),
        }
        None
    }

    /// The quoted text of `key`.
    pub(super) fn text(&self, key: &str) -> Option<Scalar<'a>> {
        let (text, node) = self.scalar(key)?;
        if matches!(node.value, Value::Text(_)) {
            return Some((text, node));
        }
        self.report.error(
            node.at.value(),
            format!("invalid `{key}`: expected a string in quotes"),
            "",
        );
        None
    }

    /// The quoted text of `key`; reports a missing key.
    pub(super) fn required(&self, key: &str) -> Option<Scalar<'a>> {
        self.require(key)?;
        self.text(key)
    }

    /// The value of `key`; reports a key that is missing in a block that is there.
    pub(super) fn require(&self, key: &str) -> Option<&'a Node<'a>> {
        let node = self.get(key);
        if node.is_none() {
            self.report_missing(key, "");
        }
        node
    }

    fn report_missing(&self, key: &str, hint: &str) {
        if let Some(at) = self.at {
            let message = format!("{} needs the key `{key}`", self.name);
            self.report.error(at.shape(), message, hint);
        }
    }

    /// Reports more than one of `keys`; returns whether there is any.
    pub(super) fn at_most_one(&self, keys: &[&str]) -> bool {
        let mut names = Vec::new();
        let mut last = None;
        for key in keys {
            if let Some(node) = self.get(key) {
                names.push(format!("`{key}`"));
                last = Some(node.at);
            }
        }
        if names.len() > 1 {
            self.report.error(
                last.map(At::shape),
                format!("{} cannot be used together", names.join(" and ")),
                "remove one of them",
            );
        }
        !names.is_empty()
    }

    /// Reports none, or more than one, of `keys`.
    pub(super) fn exactly_one(&self, keys: &[&str], hint: &str) {
        if !self.at_most_one(keys) {
            self.report_missing(&keys.join("` or `"), hint);
        }
    }

    /// The value of `key`, parsed; reports an error of `parse`.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (text, node) = self.scalar(key)?;
        let parsed = parse(text).map_err(|why| format!("`{key}`: {why}"));
        self.report.accept(node.at, parsed)
    }

    /// The boolean of `key`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.parsed(key, value::boolean)
    }

    /// The permission bits of `key`: octal digits in quotes, or a number with a leading zero.
    pub(super) fn mode(&self, key: &str) -> Option<u32> {
        if matches!(self.get(key)?.value, Value::Number(_)) {
            self.parsed(key, value::octal_number)
        } else {
            self.parsed(key, value::octal)
        }
    }
}

/// The kind of a block with the position of the kind, and the section. The kind is a label or the
/// key `type`. A label is the only key of a table, has a table as its value, and is no key of the
/// block: so `sink "file" { ... }` and JSON's `"sink": {"file": {...}}` have one form.
pub(super) fn labelled<'a>(
    node: &'a Node<'a>,
    block: &'static Block,
    report: &'a Findings,
) -> Option<(&'a str, At<'a>, Section<'a>)> {
    let is_label = |pair: &Pair<'_>| {
        let is_known = block.all().any(|key| key == pair.key);
        pair.node.scalar().is_none() && !is_known
    };
    let (label, node) = match node.table() {
        Some([only]) if is_label(only) => (Some(only), &only.node),
        _ => (None, node),
    };
    let section = Section::open(Some(node), block, report);
    section.require("config");
    if let Some(label) = label {
        return Some((&label.key, label.at, section));
    }
    let (kind, node) = section.required("type")?;
    Some((kind, node.at, section))
}
