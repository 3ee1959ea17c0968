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

/// A block with no keys but `used`.
const fn block(name: &'static str, used: &'static str) -> Block {
    Block {
        name,
        used,
        many: "",
        quiet: "",
        other: &[],
    }
}

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

pub(super) const VAULT: Block = block(
    "`vault`",
    "address ca_cert ca_path client_cert client_key namespace retry tls_server_name tls_skip_verify",
);

/// baofs repeats a failed request without limit, with growing waits, so `num_retries` has no effect.
pub(super) const RETRY: Block = Block {
    quiet: "num_retries",
    ..block("`retry`", "")
};

pub(super) const AUTO_AUTH: Block = Block {
    many: "sink sinks",
    other: &[(
        "enable_reauth_on_new_credentials",
        Ignored("credentials are read again at each login"),
    )],
    ..block("`auto_auth`", "method")
};

pub(super) const METHOD: Block = Block {
    quiet: "exit_on_err min_backoff",
    other: &[(
        "wrap_ttl",
        Refused(WRAPPED, "remove the key: the token stays in locked memory"),
    )],
    ..block("`method`", "config max_backoff mount_path namespace type")
};

pub(super) const APPROLE: Block = Block {
    other: &[("secret_id_response_wrapping_path", Refused(WRAPPED, LATER))],
    ..block(
        "`config`",
        "remove_secret_id_file_after_reading role_id_file_path secret_id_file_path",
    )
};

pub(super) const SINK: Block = Block {
    other: &[
        ("aad", Refused(ENCRYPTED, LATER)),
        ("aad_env_var", Refused(ENCRYPTED, LATER)),
        ("derive_key", Only("false", ENCRYPTED)),
        ("dh_path", Refused(ENCRYPTED, LATER)),
        ("dh_type", Refused(ENCRYPTED, LATER)),
        ("wrap_ttl", Refused(WRAPPED, LATER)),
    ],
    ..block("`sink`", "config type")
};

pub(super) const SINK_CONFIG: Block = block("`config`", "gid mode path uid");

pub(super) const TEMPLATE: Block = Block {
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
    ..block(
        "`template`",
        "command command_timeout contents destination exec gid group on_change perms source stale uid user",
    )
};

pub(super) const TEMPLATE_CONFIG: Block = Block {
    quiet: "max_connections_per_host",
    other: &[
        ("exit_on_retry_failure", Ignored(WAITS)),
        (
            "lease_renewal_threshold",
            Ignored("baofs computes its own renewal schedule"),
        ),
    ],
    ..block("`template_config`", "static_secret_render_interval")
};

pub(super) const FILESYSTEM: Block = block(
    "`filesystem`",
    "dir_mode fallback group mode path size user",
);

pub(super) const SECRET: Block = block(
    "`secret`",
    "allow_empty field format group mode on_change path refresh stale user version",
);

pub(super) const APP: Block = block(
    "`app`",
    "command crash_loop_timeout no_new_privs on_change on_hup seccomp stop_signal stop_timeout user wait",
);

pub(super) const ON_CHANGE: Block = block(
    "`on_change`",
    "command debounce restart signal splay timeout",
);

pub(super) const EXEC: Block = Block {
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
    ..block("`exec`", "command splay timeout")
};

pub(super) const LOG: Block = block("`log`", "format level");

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
