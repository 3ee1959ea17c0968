//! The report as it is written and read. Invariant: a reader of another version can tell so by `format`.

use crate::clock::Moment;
use crate::names::Recovery;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The present `Report::format`.
pub const FORMAT: u32 = 1;
/// How long after `Report::due_monotonic_ms` the next one may come before the agent counts as hung.
pub const OVERDUE: Duration = Duration::from_secs(10);

/// The whole report. Times are whole seconds since 1970 unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `FORMAT`.
    pub format: u32,
    /// The agent's version.
    pub version: String,
    /// When the agent began.
    pub since: u64,
    /// When this was written.
    pub written: u64,
    /// By when the next one will be written, in milliseconds of `CLOCK_MONOTONIC`: it does not jump.
    pub due_monotonic_ms: u64,
    /// How the files are served.
    pub served: Served,
    /// What stands between the roles and the kernel.
    #[serde(default)]
    pub walls: Walls,
    /// The agent's processes.
    pub roles: Roles,
    /// The login.
    pub session: Session,
    /// Every file, in the order of the configuration.
    pub files: Vec<FileReport>,
}

/// How the files are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// `fuse` or `tmpfs`.
    pub how: String,
    /// Why FUSE was refused, when a fallback is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Why files of the fallback could now reach a swap, which was excluded at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<Trouble>,
}

/// What a role that was taken over would find around it, in words: `capabilities` (it has none), `seccomp` (it makes few
/// system calls), `landlock 6` (it reaches few files, ports and processes; with the ABI, which says what the kernel can deny).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// Of `fetch`.
    #[serde(default)]
    pub fetch: Vec<String>,
    /// Of `serve`; empty on a tmpfs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serve: Vec<String>,
}

/// Process ids, in the agent's own namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// The parent of all.
    pub supervise: i32,
    /// Who writes this.
    pub fetch: i32,
    /// Who answers the kernel; none on a tmpfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<i32>,
    /// How many of those that were like `fetch` have died.
    #[serde(default)]
    pub fetch_deaths: u64,
    /// And of those that were like `serve`.
    #[serde(default)]
    pub serve_deaths: u64,
    /// How many of the last `fetch` in a row ended by themselves, or before they worked; 0 once the present one is well.
    #[serde(default)]
    pub fetch_crashes: u32,
    /// The same of `serve`.
    #[serde(default)]
    pub serve_crashes: u32,
    /// How what a dead `serve` had taken comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
}

/// The login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// When the token ends, if there is one and it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
    /// How many logins were sent whose answers nobody heard: each may have left a token that lives to its end.
    #[serde(default)]
    pub lost_logins: u32,
    /// What goes wrong with the login or the token's renewal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// What may be said of its content.
    pub condition: Condition,
    /// How often its content has changed since the start; the first one counts.
    pub changes: u64,
    /// The version that was read, of a file that is made of one secret of KV v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// When its content changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// When its lease ends (the first one, if it is made of several).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ends: Option<u64>,
    /// When the next request for it is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// Whether it must not serve past its life (`stale = "unhealthy"`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// What goes wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// What may be said of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It is what the server last gave, and its time is not over.
    Fresh,
    /// It serves on, although it could not be renewed, read again or rendered anew.
    Stale,
    /// So, and it is past its life: the lease has ended, or, without one, two refreshes in a row are missed.
    Ended,
    /// There is none yet.
    Missing,
}

/// A failure that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Its message; never a value.
    pub cause: String,
    /// Since when.
    pub since: u64,
}

impl Report {
    /// Whether the agent is alive, by what it promised: at `now` of the machine's `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn is_overdue(&self, now: Moment) -> bool {
        now > Moment::at(Duration::from_millis(self.due_monotonic_ms)).plus(OVERDUE)
    }
}

/// Whole seconds since 1970.
#[must_use]
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
