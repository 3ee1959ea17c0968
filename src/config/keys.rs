//! The known keys, one table for each block. Invariant: the lists are sorted and have no repetition. A
//! key of `bao agent` is in a table with the effect of the key in baofs, so no setting is ignored
//! silently.

/// A kind of block. Spaces separate the keys of `used`, `many` and `quiet`.
#[derive(Debug)]
pub(super) struct Block {
    /// The name in messages.
    pub(super) name: &'static str,
    /// Keys that are read and may stand at most once.
    pub(super) used: &'static str,
    /// Keys that are read and may be repeated.
    pub(super) many: &'static str,
    /// Keys of `bao agent` without effect in baofs.
    pub(super) quiet: &'static str,
    /// Keys of `bao agent` that are reported.
    pub(super) other: &'static [(&'static str, Fate)],
}

/// The report of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// A warning with the reason why the key has no effect.
    Ignored(&'static str),
    /// The only supported value, and the reason.
    Only(&'static str, &'static str),
    /// An error with the reason and the remedy.
    Refused(&'static str, &'static str),
}

use crate::shown::distance;
use Fate::{Ignored, Only, Refused};

const EMPTY: Block = Block {
    name: "",
    used: "",
    many: "",
    quiet: "",
    other: &[],
};

const LATER: &str = "remove the key, or use `bao agent` for this task";
const PROXY: &str = "baofs does not proxy requests: an application that talks to OpenBao needs `bao agent` beside baofs";
const ENCRYPTED: &str = "encrypted sinks are not supported";
const WRAPPED: &str = "wrapped tokens and secret_ids are not supported";
const COMMAND: &str =
    "write `app { command = [\"PROGRAM\", \"ARG\"] }`, or give the command after `--`";
const ENVIRONMENT: &str =
    "secrets in environment variables are not supported: every child process would inherit them";
const FILES: &str = "serve a file instead: `secret \"NAME\" { path, field }`";
const DELIMITERS: &str = "other delimiters are not supported";
const WAITS: &str =
    "a start without every secret fails after `app.wait`; later, the last good secret stays";

pub(super) const ROOT: Block = Block {
    name: "the configuration",
    used: "app auto_auth filesystem log log_format log_level pid_file template_config vault",
    many: "secret template",
    quiet: "cluster_name disable_idle_connections disable_keep_alives disable_mlock log_rotate_bytes log_rotate_duration log_rotate_max_files",
    other: &[
        ("api_proxy", Refused(PROXY, LATER)),
        (
            "cache",
            Ignored("baofs fetches each secret once and needs no cache"),
        ),
        ("env_template", Refused(ENVIRONMENT, FILES)),
        (
            "exec",
            Refused("baofs configures the application in `app`", COMMAND),
        ),
        (
            "exit_after_auth",
            Only("false", "baofs runs as long as its application"),
        ),
        ("listener", Refused(PROXY, LATER)),
        ("log_file", Ignored("the log goes to standard error")),
        ("telemetry", Ignored("metrics are not supported")),
    ],
};

pub(super) const VAULT: Block = Block {
    name: "`vault`",
    used: "address ca_cert ca_path client_cert client_key namespace retry tls_server_name tls_skip_verify",
    ..EMPTY
};

/// baofs repeats a failed request without limit, with growing waits, so `num_retries` has no effect.
pub(super) const RETRY: Block = Block {
    name: "`retry`",
    quiet: "num_retries",
    ..EMPTY
};

pub(super) const AUTO_AUTH: Block = Block {
    name: "`auto_auth`",
    used: "method",
    many: "sink sinks",
    other: &[(
        "enable_reauth_on_new_credentials",
        Ignored("credentials are read again at each login"),
    )],
    ..EMPTY
};

pub(super) const METHOD: Block = Block {
    name: "`method`",
    used: "config max_backoff mount_path namespace type",
    quiet: "exit_on_err min_backoff",
    other: &[(
        "wrap_ttl",
        Refused(WRAPPED, "remove the key: the token stays in locked memory"),
    )],
    ..EMPTY
};

pub(super) const APPROLE: Block = Block {
    name: "`config`",
    used: "remove_secret_id_file_after_reading role_id_file_path secret_id_file_path",
    other: &[("secret_id_response_wrapping_path", Refused(WRAPPED, LATER))],
    ..EMPTY
};

pub(super) const SINK: Block = Block {
    name: "`sink`",
    used: "config type",
    other: &[
        ("aad", Refused(ENCRYPTED, LATER)),
        ("aad_env_var", Refused(ENCRYPTED, LATER)),
        ("derive_key", Only("false", ENCRYPTED)),
        ("dh_path", Refused(ENCRYPTED, LATER)),
        ("dh_type", Refused(ENCRYPTED, LATER)),
        ("wrap_ttl", Refused(WRAPPED, LATER)),
    ],
    ..EMPTY
};

pub(super) const SINK_CONFIG: Block = Block {
    name: "`config`",
    used: "gid mode path uid",
    ..EMPTY
};

pub(super) const TEMPLATE: Block = Block {
    name: "`template`",
    used: "command command_timeout contents destination exec gid group on_change perms source stale uid user",
    quiet: "create_dest_dirs error_fatal error_on_missing_key function_blacklist function_denylist sandbox_path",
    other: &[
        (
            "backup",
            Only("false", "baofs keeps no copies of old secrets"),
        ),
        ("left_delimiter", Only("{{", DELIMITERS)),
        ("right_delimiter", Only("}}", DELIMITERS)),
        (
            "wait",
            Ignored("all files of one change are published at once"),
        ),
    ],
    ..EMPTY
};

pub(super) const TEMPLATE_CONFIG: Block = Block {
    name: "`template_config`",
    used: "static_secret_render_interval",
    quiet: "max_connections_per_host",
    other: &[
        ("exit_on_retry_failure", Ignored(WAITS)),
        (
            "lease_renewal_threshold",
            Ignored("baofs computes its own renewal schedule"),
        ),
    ],
    ..EMPTY
};

pub(super) const FILESYSTEM: Block = Block {
    name: "`filesystem`",
    used: "dir_mode fallback group mode path size user",
    ..EMPTY
};

pub(super) const SECRET: Block = Block {
    name: "`secret`",
    used: "allow_empty field format group mode on_change path refresh stale user version",
    ..EMPTY
};

pub(super) const APP: Block = Block {
    name: "`app`",
    used: "command crash_loop_timeout no_new_privs on_change on_hup seccomp stop_signal stop_timeout user wait",
    ..EMPTY
};

pub(super) const ON_CHANGE: Block = Block {
    name: "`on_change`",
    used: "command debounce restart signal splay timeout",
    ..EMPTY
};

pub(super) const EXEC: Block = Block {
    name: "`exec`",
    used: "command splay timeout",
    quiet: "kill_timeout reload_signal",
    other: &[
        ("enabled", Only("true", "a disabled `exec` can be removed")),
        (
            "env",
            Refused(
                "a command inherits the application's environment",
                "set the variables in a shell line",
            ),
        ),
        (
            "kill_signal",
            Ignored("a command that exceeds its timeout is killed"),
        ),
    ],
    ..EMPTY
};

pub(super) const LOG: Block = Block {
    name: "`log`",
    used: "format level",
    ..EMPTY
};

impl Block {
    /// Every key of the table.
    pub(super) fn all(&self) -> impl Iterator<Item = &'static str> + use<> {
        let lists = keys(self.used)
            .chain(keys(self.many))
            .chain(keys(self.quiet));
        lists.chain(self.other.iter().map(|(key, _)| *key))
    }

    /// The known key that `key` was probably meant to be.
    pub(super) fn nearest(&self, key: &str) -> Option<&'static str> {
        let rank = |known: &'static str| {
            if key.len() > 2 && known.starts_with(key) {
                (1, known)
            } else {
                (distance(key, known), known)
            }
        };
        let (distance, known) = self.all().map(rank).min()?;
        if distance > 1 + key.len() / 4 {
            return None;
        }
        Some(known)
    }
}

/// The keys of a list.
pub(super) fn keys(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split_whitespace()
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
        &ON_CHANGE,
        &EXEC,
        &LOG,
    ];

    #[test]
    fn tables_are_sorted_and_unique() {
        for block in ALL {
            let other: Vec<_> = block.other.iter().map(|(key, _)| *key).collect();
            let [used, many, quiet] =
                [block.used, block.many, block.quiet].map(|list| keys(list).collect::<Vec<_>>());
            for list in [used, many, quiet, other] {
                assert!(list.is_sorted(), "{}: {list:?}", block.name);
            }
            let mut all: Vec<_> = block.all().collect();
            all.sort_unstable();
            assert!(
                all.windows(2).all(|pair| pair[0] != pair[1]),
                "{}: {all:?}",
                block.name
            );
        }
    }

    #[test]
    fn readme_names_every_key() {
        let readme = include_str!("../../README.md");
        for key in ALL
            .iter()
            .flat_map(|block| keys(block.used).chain(keys(block.many)))
        {
            let named = ["`", "{ "]
                .iter()
                .any(|before| readme.contains(&format!("{before}{key}")));
            let named = named || ["sinks", "type"].contains(&key);
            assert!(named, "README lacks `{key}`");
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
            assert_eq!(block.nearest(key), known, "{key}");
        }
    }
}
