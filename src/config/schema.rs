//! The known keys, one table per block, and typed access to what was typed. Invariant: every key of every file is looked
//! up in a table; what is not used is said, and what would be silently wrong is refused.

use super::problem::{At, Report};
use super::raw::{Entry, Node, Value};
use super::value::{self, Bad};
use Fate::{Ignored, Many, Only, Quiet, Refused, Used};

/// A kind of block.
#[derive(Debug)]
pub(super) struct Block {
    /// What messages call it.
    pub(super) name: &'static str,
    /// Its keys, sorted.
    pub(super) keys: &'static [(&'static str, Fate)],
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// It is read; at most once.
    Used,
    /// It is read, as often as it is given.
    Many,
    /// Known to `bao agent`; whatever it says, it changes nothing here.
    Quiet,
    /// Known to `bao agent`; a warning says why it has no effect here.
    Ignored(&'static str),
    /// Known to `bao agent`; accepted with this one value, for the reason given.
    Only(&'static str, &'static str),
    /// Known to `bao agent`; refused: why, and the remedy.
    Refused(&'static str, &'static str),
}

const LATER: &str = "remove it, or keep `bao agent` for it until a later version of baofs knows it";
const PROXY: &str = "baofs is no proxy; an application that talks to OpenBao itself needs one beside it";
const ENCRYPTED: &str = "encrypted sinks are not supported yet";
const HOOKS: &str = "commands per template are not supported yet: the application would not learn of a change";
const ON_CHANGE: &str = "signal the application instead: `app { on_change = { signal = \"HUP\" } }`";
const SUPERVISED: &str = "it is not needed: `baofs run -- COMMAND` starts the application";
const DELIMITERS: &str = "other delimiters are not supported yet";

pub(super) const ROOT: Block = Block {
    name: "the configuration",
    keys: &[
        ("api_proxy", Refused(PROXY, LATER)),
        ("app", Used),
        ("auto_auth", Used),
        ("cache", Ignored("baofs fetches each secret once and needs no cache")),
        ("cluster_name", Quiet),
        ("disable_idle_connections", Quiet),
        ("disable_keep_alives", Quiet),
        ("disable_mlock", Quiet),
        (
            "env_template",
            Refused(
                "secrets in the environment are not supported: every child would inherit them",
                "serve a file: `secret \"NAME\" { path, field }`",
            ),
        ),
        ("exec", Refused("the application stands in `app`, or behind `--`", "write `app { command = [\"PROGRAM\", \"ARG\"] }`")),
        ("exit_after_auth", Only("false", "baofs lives as long as its application")),
        ("filesystem", Used),
        ("listener", Refused(PROXY, LATER)),
        ("log", Used),
        ("log_file", Ignored("the log goes to standard error")),
        ("log_format", Used),
        ("log_level", Used),
        ("log_rotate_bytes", Quiet),
        ("log_rotate_duration", Quiet),
        ("log_rotate_max_files", Quiet),
        ("pid_file", Used),
        ("secret", Many),
        ("telemetry", Ignored("there are no metrics yet")),
        ("template", Many),
        ("template_config", Used),
        ("vault", Used),
    ],
};

pub(super) const VAULT: Block = Block {
    name: "vault",
    keys: &[
        ("address", Used),
        ("ca_cert", Used),
        ("ca_path", Used),
        ("client_cert", Used),
        ("client_key", Used),
        ("namespace", Used),
        ("retry", Used),
        ("tls_server_name", Used),
        ("tls_skip_verify", Used),
    ],
};

/// `num_retries` changes nothing: a secret is asked for again, with a growing wait, for as long as it is wanted.
pub(super) const RETRY: Block = Block { name: "retry", keys: &[("num_retries", Quiet)] };

pub(super) const AUTO_AUTH: Block = Block {
    name: "auto_auth",
    keys: &[
        ("enable_reauth_on_new_credentials", Ignored("credentials are read again at each login")),
        ("method", Used),
        ("sink", Many),
        ("sinks", Many),
    ],
};

pub(super) const METHOD: Block = Block {
    name: "method",
    keys: &[
        ("config", Used),
        ("exit_on_err", Quiet),
        ("max_backoff", Used),
        ("min_backoff", Quiet),
        ("mount_path", Used),
        ("namespace", Used),
        ("type", Used),
        ("wrap_ttl", Refused("wrapping the agent's own token is not supported", "remove it: the token stays in locked memory")),
    ],
};

pub(super) const APPROLE: Block = Block {
    name: "config of approle",
    keys: &[
        ("remove_secret_id_file_after_reading", Used),
        ("role_id_file_path", Used),
        ("secret_id_file_path", Used),
        ("secret_id_response_wrapping_path", Refused("a wrapped secret_id is not supported yet", LATER)),
    ],
};

pub(super) const SINK: Block = Block {
    name: "sink",
    keys: &[
        ("aad", Refused(ENCRYPTED, LATER)),
        ("aad_env_var", Refused(ENCRYPTED, LATER)),
        ("config", Used),
        ("derive_key", Only("false", ENCRYPTED)),
        ("dh_path", Refused(ENCRYPTED, LATER)),
        ("dh_type", Refused(ENCRYPTED, LATER)),
        ("type", Used),
        ("wrap_ttl", Refused("a wrapped sink is not supported yet", LATER)),
    ],
};

pub(super) const SINK_CONFIG: Block =
    Block { name: "config of sink", keys: &[("gid", Used), ("mode", Used), ("path", Used), ("uid", Used)] };

pub(super) const TEMPLATE: Block = Block {
    name: "template",
    keys: &[
        ("backup", Only("false", "baofs keeps no copy of an old secret")),
        ("command", Refused(HOOKS, ON_CHANGE)),
        ("command_timeout", Quiet),
        ("contents", Used),
        ("create_dest_dirs", Quiet),
        ("destination", Used),
        ("error_fatal", Quiet),
        ("error_on_missing_key", Quiet),
        ("exec", Refused(HOOKS, ON_CHANGE)),
        ("function_blacklist", Quiet),
        ("function_denylist", Quiet),
        ("gid", Used),
        ("group", Used),
        ("left_delimiter", Only("{{", DELIMITERS)),
        ("perms", Used),
        ("right_delimiter", Only("}}", DELIMITERS)),
        ("sandbox_path", Quiet),
        ("source", Used),
        ("uid", Used),
        ("user", Used),
        ("wait", Ignored("the files of one change are published at once")),
    ],
};

pub(super) const TEMPLATE_CONFIG: Block = Block {
    name: "template_config",
    keys: &[
        ("exit_on_retry_failure", Ignored("a start that lacks a secret ends after `app.wait`; later the last good secret stays")),
        ("lease_renewal_threshold", Ignored("baofs has a schedule of its own")),
        ("max_connections_per_host", Quiet),
        ("static_secret_render_interval", Used),
    ],
};

pub(super) const FILESYSTEM: Block = Block {
    name: "filesystem",
    keys: &[("dir_mode", Used), ("fallback", Used), ("group", Used), ("mode", Used), ("path", Used), ("size", Used), ("user", Used)],
};

pub(super) const SECRET: Block = Block {
    name: "secret",
    keys: &[
        ("allow_empty", Used),
        ("field", Used),
        ("format", Used),
        ("group", Used),
        ("mode", Used),
        ("path", Used),
        ("refresh", Used),
        ("user", Used),
        ("version", Used),
    ],
};

pub(super) const APP: Block = Block {
    name: "app",
    keys: &[
        ("command", Used),
        ("on_change", Used),
        ("restart_on_secret_changes", Refused("restarts are not supported yet", ON_CHANGE)),
        ("restart_stop_signal", Refused("its name here is `stop_signal`", SUPERVISED)),
        ("stop_signal", Used),
        ("stop_timeout", Used),
        ("user", Used),
        ("wait", Used),
    ],
};

pub(super) const ON_CHANGE_BLOCK: Block =
    Block { name: "on_change", keys: &[("command", Refused("hooks are not supported yet", "use `signal`")), ("signal", Used)] };

pub(super) const LOG: Block = Block { name: "log", keys: &[("format", Used), ("level", Used)] };

/// A block whose keys were looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    entries: &'a [Entry<'a>],
    report: &'a Report,
    name: &'static str,
    /// Where it begins.
    pub(super) at: At<'a>,
}

impl<'a> Section<'a> {
    /// Looks up every key of `node`, which must be a block or an object.
    pub(super) fn open(node: &'a Node<'a>, block: &'static Block, report: &'a Report) -> Option<Self> {
        match &node.value {
            Value::Table(entries) => {
                let section = Self { entries, report, name: block.name, at: node.at };
                section.look_up(block);
                Some(section)
            }
            Value::List(items) if items.len() == 1 => Self::open(&items[0], block, report),
            Value::Text(_) | Value::Number(_) | Value::Bool(_) | Value::List(_) | Value::Other => {
                report.error_of_shape(node.at, format!("`{}` is a block", block.name), format!("write `{} {{ ... }}`", block.name));
                None
            }
        }
    }

    fn look_up(&self, block: &'static Block) {
        for (index, entry) in self.entries.iter().enumerate() {
            let fate = block.keys.iter().find(|(key, _)| *key == entry.key).map(|(_, fate)| *fate);
            let repeated = self.entries[..index].iter().any(|earlier| earlier.key == entry.key);
            let key = &entry.key;
            match fate {
                Some(Used) if repeated => self.report.error_at_key(entry.at, format!("`{key}` is given twice"), ""),
                Some(Used | Many | Quiet) => {}
                Some(Ignored(why)) => self.report.warn(Some(entry.at), format!("`{key}` has no effect"), why),
                Some(Only(value, _)) if scalar(&entry.node).is_some_and(|(text, _)| text == value) => {}
                Some(Only(value, why)) => self.report.error_at_key(entry.at, format!("`{key}` can only be `{value}`: {why}"), ""),
                Some(Refused(why, hint)) => self.report.error_at_key(entry.at, format!("`{key}`: {why}"), hint),
                None => self.unknown(entry, block),
            }
        }
    }

    fn unknown(&self, entry: &Entry<'_>, block: &Block) {
        let hint = match nearest(&entry.key, block) {
            Some(known) => format!("did you mean `{known}`?"),
            None => {
                format!("it knows {}", block.keys.iter().filter(|k| matches!(k.1, Used | Many)).map(|k| k.0).collect::<Vec<_>>().join(", "))
            }
        };
        let place = if block.name == ROOT.name { ROOT.name.to_owned() } else { format!("`{}`", block.name) };
        self.report.error_at_key(entry.at, format!("unknown key `{}` in {place}", entry.key), hint);
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Node<'a>> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The section under `key`.
    pub(super) fn section(&self, key: &str, block: &'static Block) -> Option<Self> {
        Self::open(self.get(key)?, block, self.report)
    }

    /// Every value of a repeated `key`; a list counts as its items.
    pub(super) fn each(&self, key: &'static str) -> impl Iterator<Item = &'a Node<'a>> + use<'a> {
        self.entries.iter().filter(move |entry| entry.key == key).flat_map(|entry| match &entry.node.value {
            Value::List(items) => items.iter().collect::<Vec<_>>(),
            Value::Text(_) | Value::Number(_) | Value::Bool(_) | Value::Table(_) | Value::Other => vec![&entry.node],
        })
    }

    /// The value of `key` as typed and where it stands; a list or a block is an error.
    pub(super) fn scalar(&self, key: &str) -> Option<(&'a str, &'a Node<'a>)> {
        let node = self.get(key)?;
        if scalar(node).is_none() {
            self.report.error(node.at, format!("`{key}` is a single value"), "write text in quotes");
        }
        scalar(node)
    }

    /// The text of `key`, in quotes.
    pub(super) fn text(&self, key: &str) -> Option<(&'a str, &'a Node<'a>)> {
        let (text, node) = self.scalar(key)?;
        let problem = match &node.value {
            Value::Text(_) if text.trim().is_empty() => "is empty",
            Value::Text(_) => return Some((text, node)),
            Value::Number(_) | Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other => "is a text in quotes",
        };
        self.report.error(node.at, format!("`{key}` {problem}"), "");
        None
    }

    /// The text of `key`, without which nothing goes.
    pub(super) fn required(&self, key: &str) -> Option<(&'a str, &'a Node<'a>)> {
        if self.get(key).is_none() {
            self.lacks(key);
        }
        self.text(key)
    }

    /// Reports that `key` is missing.
    pub(super) fn lacks(&self, key: &str) {
        self.report.error(self.at, format!("`{}` lacks `{key}`", self.name), "");
    }

    /// The value of `key` as `parse` understands it.
    pub(super) fn parsed<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Bad>) -> Option<T> {
        let (text, node) = self.scalar(key)?;
        let failed = |(why, hint): Bad| self.report.error(node.at, format!("`{key}`: {why}"), hint);
        parse(text).map_err(failed).ok()
    }

    /// The boolean of `key`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.parsed(key, value::boolean)
    }

    /// The permission bits of `key`: octal in quotes, or with a leading zero.
    pub(super) fn mode(&self, key: &str) -> Option<u32> {
        match self.get(key)?.value {
            Value::Number(_) => self.parsed(key, value::octal_number),
            Value::Text(_) | Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other => self.parsed(key, value::octal),
        }
    }
}

/// What a single value says.
fn scalar<'a>(node: &'a Node<'a>) -> Option<(&'a str, &'a Node<'a>)> {
    match &node.value {
        Value::Text(text) => Some((text, node)),
        Value::Number(text) => Some((text, node)),
        Value::Bool(value) => Some((if *value { "true" } else { "false" }, node)),
        Value::List(_) | Value::Table(_) | Value::Other => None,
    }
}

/// A node and its label: `sink "file" { ... }` and JSON's `"sink": {"file": {...}}` are one table whose only value is a
/// table. Without a label, `None` and the node itself.
pub(super) fn label<'a>(node: &'a Node<'a>, block: &Block) -> (Option<&'a Entry<'a>>, &'a Node<'a>) {
    match &node.value {
        Value::Table(entries) => match entries.as_slice() {
            [only]
                if !block.keys.iter().any(|(key, _)| *key == only.key)
                    && !matches!(only.node.value, Value::Text(_) | Value::Number(_) | Value::Bool(_)) =>
            {
                (Some(only), &only.node)
            }
            _ => (None, node),
        },
        Value::List(items) if items.len() == 1 => label(&items[0], block),
        Value::Text(_) | Value::Number(_) | Value::Bool(_) | Value::List(_) | Value::Other => (None, node),
    }
}

/// The known key that was probably meant.
pub(super) fn nearest(key: &str, block: &Block) -> Option<&'static str> {
    let begins = |known: &str| key.len() > 2 && (known.starts_with(key) || key.starts_with(known) && known.len() > 2);
    let far = |known: &str| if begins(known) { 1 } else { distance(key, known) };
    let (known, distance) = block.keys.iter().map(|(known, _)| (*known, far(known))).min_by_key(|(_, distance)| *distance)?;
    (distance <= 1 + key.len() / 4).then_some(known)
}

/// How many insertions, removals and replacements make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[&Block] = &[
        &ROOT,
        &VAULT,
        &RETRY,
        &AUTO_AUTH,
        &METHOD,
        &APPROLE,
        &SINK,
        &SINK_CONFIG,
        &TEMPLATE,
        &TEMPLATE_CONFIG,
        &FILESYSTEM,
        &SECRET,
        &APP,
        &ON_CHANGE_BLOCK,
        &LOG,
    ];

    #[test]
    fn tables_are_sorted_and_unique() {
        for block in ALL {
            for pair in block.keys.windows(2) {
                assert!(pair[0].0 < pair[1].0, "{}: {} {}", block.name, pair[0].0, pair[1].0);
            }
        }
    }

    #[test]
    fn nearest_keys() {
        for (key, block, known) in [
            ("pth", &SECRET, Some("path")),
            ("fields", &SECRET, Some("field")),
            ("secret_id", &APPROLE, Some("secret_id_file_path")),
            ("adress", &VAULT, Some("address")),
            ("colour", &LOG, None),
            ("x", &LOG, None),
        ] {
            assert_eq!(nearest(key, block), known, "{key}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, n) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("path", "pth", 1)] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }
}
