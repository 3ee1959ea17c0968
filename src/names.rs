//! Types that every module uses. Invariant: a `FileName`, a `SecretPath` and a `LeaseId` have private
//! fields and are valid by construction, so no other code checks the texts again. All other types are
//! plain data: an id is the index of a table, and the owner of the table checks the bounds.

use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The directory in the mount that holds the agent's own state. On FUSE the directory can be opened
/// by name but is not listed.
pub const STATE_DIRECTORY: &str = "..baofs";

/// The name of a served file: one path component, no control character, not `.` or `..`, not
/// beginning with `..` (baofs uses those names), at most 248 bytes. The limit is below `NAME_MAX`
/// (255), because the announcement of a file on FUSE puts a prefix before the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

impl FileName {
    /// The length limit in bytes.
    const MAX: usize = 248;

    /// Checks `name`.
    ///
    /// # Errors
    /// The rule that `name` breaks, without the name.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        match name {
            "" => Err("a file name cannot be empty"),
            "." => Err("`.` is not a file name"),
            _ if name.starts_with("..") => Err("names that begin with `..` belong to baofs"),
            _ if name.contains('/') => {
                Err("a file name cannot contain `/`: files are served in one directory")
            }
            _ if name.chars().any(char::is_control) => {
                Err("a file name cannot contain control characters")
            }
            _ if name.len() > Self::MAX => Err("a file name cannot be longer than 248 bytes"),
            _ => Ok(Self(name.to_owned())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path at the server, without `/v1/`, without leading or trailing slash, with no empty, `.` or
/// `..` segment. A path that is deserialised follows the same rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretPath(String);

impl TryFrom<String> for SecretPath {
    type Error = &'static str;

    fn try_from(path: String) -> Result<Self, Self::Error> {
        Self::new(&path)
    }
}

impl SecretPath {
    /// Checks and trims `path`.
    ///
    /// # Errors
    /// The rule that `path` breaks.
    pub fn new(path: &str) -> Result<Self, &'static str> {
        let path = path.trim_matches('/');
        let path = path.strip_prefix("v1/").unwrap_or(path);
        let is_refused = |c: char| c.is_control() || c == '?' || c == '#';
        match path {
            "" => Err("a secret's path cannot be empty"),
            _ if path.chars().any(is_refused) => {
                Err("a secret's path cannot contain control characters, `?` or `#`")
            }
            _ if path.split('/').any(|s| matches!(s, "" | "." | "..")) => {
                Err("a secret's path cannot contain an empty, `.` or `..` segment")
            }
            _ => Ok(Self(path.to_owned())),
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The index of a served file in `Plan::files` and in the arena, fixed while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u32);

impl FileId {
    /// As an index into a table of files.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The index of a query in the table of queries, in which `Plan::queries` come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueryId(pub u32);

impl QueryId {
    /// As an index into a table of queries.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The index of a hook in `Plan::hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HookId(pub u16);

impl HookId {
    /// As an index into a table of hooks.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The number of a publication. Generations only grow; 0 means that nothing was published yet.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

/// The id that the server gave a lease. A lease id is not a credential, but no log line has one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseId(String);

impl LeaseId {
    /// Wraps the server's text unchanged; `None` for an empty text, which means no lease.
    pub fn new(id: &str) -> Option<Self> {
        if id.is_empty() {
            None
        } else {
            Some(Self(id.to_owned()))
        }
    }

    /// The id as the server knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseId(..)")
    }
}

/// A process of the agent that supervise forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The client of the server.
    Fetch,
    /// The server of the filesystem, which answers the kernel.
    Serve,
}

impl Role {
    /// The name in log lines and process lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Serve => "serve",
        }
    }
}

/// The fate of requests of the kernel that a dead `serve` had taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recovery {
    /// The kernel sends the requests again (`FUSE_NOTIFY_RESEND`, Linux 6.9).
    Resend,
    /// The requests fail with EINTR, which every reader must expect.
    Interrupt,
}

/// The restarts of a role before the present process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestartHistory {
    /// The number of dead processes of the role.
    pub deaths: u64,
    /// Consecutive crashes: exits before ready, or without being told to stop.
    pub crashes: u32,
}

impl RestartHistory {
    /// The age from which a process is stable: earlier crashes no longer count.
    pub const STABLE_AFTER: Duration = Duration::from_secs(10);

    /// The number of consecutive crashes that still count for a process of the age `age`.
    pub fn crashes_after(self, age: Duration) -> u32 {
        if age < Self::STABLE_AFTER {
            self.crashes
        } else {
            0
        }
    }
}

/// The reason why the pages of a tmpfs may be written to a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SwapExposure {
    /// `/proc/swaps` cannot be read.
    Unknown = 1,
    /// The machine has a swap, and neither our cgroup nor an ancestor has `memory.swap.max` = 0.
    Reachable = 2,
    /// The machine has a swap, and the memory controller is cgroup v1, whose limits exclude
    /// nothing: with `memory.memsw.limit_in_bytes` equal to `memory.limit_in_bytes` a reclaim still
    /// swaps pages out, because the sum of memory and swap stays the same (measured on 6.18).
    CgroupV1 = 3,
}

impl SwapExposure {
    /// The variant with the discriminant `number`.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Unknown, Self::Reachable, Self::CgroupV1]
            .into_iter()
            .find(|known| *known as u8 == number)
    }
}

impl fmt::Display for SwapExposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "/proc/swaps cannot be read",
            Self::Reachable => {
                "the machine has a swap and no cgroup forbids it (memory.swap.max is not 0)"
            }
            Self::CgroupV1 => {
                "the machine has a swap, and a limit of cgroup v1 does not keep pages out of it"
            }
        })
    }
}

/// The owner of a file, in the kernel's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// The user and the group of the calling process.
    pub fn of_process() -> Self {
        Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names() {
        for good in [
            "a",
            "tls.crt",
            ".env",
            "db password",
            "x".repeat(248).as_str(),
        ] {
            assert!(FileName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "..data",
            "a/b",
            "a\nb",
            "x".repeat(249).as_str(),
        ] {
            assert!(FileName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secret_paths() {
        assert_eq!(
            SecretPath::new("/v1/secret/data/a b/")
                .expect("good")
                .as_str(),
            "secret/data/a b"
        );
        for bad in ["", "/", "a//b", "a/../b", "a?version=1", "a\n"] {
            assert!(SecretPath::new(bad).is_err(), "{bad}");
        }
    }
}
