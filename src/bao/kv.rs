//! The path to request for a configured path. Invariant: the server says which mounts are KV
//! version 2; nothing is guessed.

use super::response::MountInfo;
use crate::names::SecretPath;
use serde::{Deserialize, Serialize};

/// A mount of a secrets engine, as the server names the mount.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SecretMount {
    /// The path of the mount, with a final slash and with a namespace from the configured path.
    prefix: String,
    /// Whether the mount keeps versions (KV version 2).
    versioned: bool,
}

/// The request for a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The path to read.
    pub(super) path: String,
    /// Whether the response has the form of KV version 2's `data/`.
    pub(super) versioned: bool,
}

impl SecretMount {
    /// The mount of `path`, unless `info` describes another mount.
    pub(super) fn new(path: &SecretPath, info: &MountInfo) -> Option<Self> {
        let prefix = format!("{}/", info.path.trim_matches('/'));
        path.as_str().starts_with(&prefix).then(|| Self {
            prefix,
            versioned: info.versioned(),
        })
    }

    /// The route to `path`, if `path` lies in this mount. A path that continues with `data/`,
    /// `metadata/` or `subkeys/` after the mount is requested as written.
    pub(super) fn route(&self, path: &SecretPath) -> Option<Route> {
        let rest = path.as_str().strip_prefix(&self.prefix)?;
        let written_out = ["data/", "metadata/", "subkeys/"]
            .into_iter()
            .find(|part| rest.starts_with(part));
        Some(match written_out {
            _ if !self.versioned => Route {
                path: path.to_string(),
                versioned: false,
            },
            None => Route {
                path: format!("{}data/{rest}", self.prefix),
                versioned: true,
            },
            Some(part) => Route {
                path: path.to_string(),
                versioned: part == "data/",
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(mount: &str, versioned: bool, path: &str) -> Option<(String, bool)> {
        let options = versioned.then(|| serde_json::json!({ "version": "2" }));
        let info = serde_json::from_value(
            serde_json::json!({ "path": mount, "type": "kv", "options": options }),
        )
        .expect("info");
        let path = SecretPath::new(path).expect("path");
        let route = SecretMount::new(&path, &info)?.route(&path)?;
        Some((route.path, route.versioned))
    }

    #[test]
    fn paths_are_written_out_once() {
        for (mount, versioned, path, want) in [
            (
                "secret/",
                true,
                "secret/app",
                Some(("secret/data/app", true)),
            ),
            (
                "secret/",
                true,
                "secret/data/app",
                Some(("secret/data/app", true)),
            ),
            (
                "secret/",
                true,
                "secret/data",
                Some(("secret/data/data", true)),
            ),
            (
                "secret/",
                true,
                "secret/metadata/app",
                Some(("secret/metadata/app", false)),
            ),
            (
                "team/kv/",
                true,
                "team/kv/a/data/b",
                Some(("team/kv/data/a/data/b", true)),
            ),
            (
                "ns/secret/",
                true,
                "ns/secret/app",
                Some(("ns/secret/data/app", true)),
            ),
            ("kv/", false, "kv/data/app", Some(("kv/data/app", false))),
            (
                "database/",
                false,
                "database/creds/app",
                Some(("database/creds/app", false)),
            ),
            ("other/", true, "secret/app", None),
            ("sec/", true, "secret/app", None),
            ("secret/", true, "secret", None),
        ] {
            let want = want.map(|(path, versioned): (&str, bool)| (path.to_owned(), versioned));
            assert_eq!(route(mount, versioned, path), want, "{mount} {path}");
        }
    }
}
