//! The report and its JSON form. Invariants: `format` tells a reader of another version that the
//! report is of another version; every text is cut and cleaned when the report is written and again
//! when the report is read.

use crate::clock::Moment;
use crate::names::Recovery;
use crate::shown::{ShownCause, ShownName};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The current `Report::format`.
pub const FORMAT: u32 = 2;
/// The delay after `Report::due_monotonic_ms` from which the agent counts as hung.
pub const OVERDUE: Duration = Duration::from_secs(10);

/// The whole report. Times are whole seconds since 1970 unless a field says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `FORMAT`.
    pub format: u32,
    /// The agent's version.
    pub version: ShownName,
    /// The start of the agent.
    pub since: u64,
    /// The time of writing of the report or of the last heartbeat.
    pub written: u64,
    /// The time by which the next report or heartbeat will be written, in milliseconds of
    /// `CLOCK_MONOTONIC`, which does not jump.
    pub due_monotonic_ms: u64,
    /// The parts that were omitted because the whole report did not fit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detail: Detail,
    /// How the files are served.
    pub served: Served,
    /// The restrictions of the roles.
    #[serde(default)]
    pub walls: WallsReport,
    /// The agent's processes.
    pub roles: Roles,
    /// The login.
    pub session: Session,
    /// Every file, in the order of the configuration; empty where `detail` has counts.
    pub files: Vec<FileReport>,
}

/// A sign of life while the report stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// As `Report::written`.
    pub written: u64,
    /// As `Report::due_monotonic_ms`.
    pub due_monotonic_ms: u64,
}

/// The level of detail of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// The whole report.
    #[default]
    Full,
    /// Every cause is empty.
    NoCauses,
    /// Every cause is empty, and files are only counted.
    Counts(Counts),
}

/// The number of files in each condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// `Condition::Fresh`.
    pub fresh: usize,
    /// `Condition::Stale`.
    pub stale: usize,
    /// `Condition::Ended`, including `ended_strict`.
    pub ended: usize,
    /// `Condition::Ended` of files with `stale = "unhealthy"`.
    pub ended_strict: usize,
    /// `Condition::Missing`.
    pub missing: usize,
}

/// How the files are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// `fuse` or `tmpfs`.
    pub how: ShownName,
    /// The reason why FUSE was refused, if the fallback is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<ShownCause>,
    /// The reason why files of the fallback could now be written to a swap, although no swap was
    /// reachable at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Trouble>,
}

/// The restrictions of each role, in words: `capabilities` (the role has no capability), `seccomp`
/// (the role may make few system calls), `landlock 6` (the role reaches few files, ports and
/// processes; the number is the ABI, which tells what the kernel can deny).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallsReport {
    /// The restrictions of `fetch`.
    #[serde(default)]
    pub fetch: Vec<ShownName>,
    /// The restrictions of `serve`; empty on a tmpfs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serve: Vec<ShownName>,
}

/// Process ids, in the agent's own namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// The parent of the roles.
    pub supervise: i32,
    /// The writer of this report.
    pub fetch: i32,
    /// The role that answers the kernel; `None` on a tmpfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<i32>,
    /// Deaths of `fetch` since the start.
    #[serde(default)]
    pub fetch_deaths: u64,
    /// Deaths of `serve` since the start.
    #[serde(default)]
    pub serve_deaths: u64,
    /// Consecutive crashes of `fetch`: exits before ready, or without being told to stop; 0 once
    /// the current process is stable.
    #[serde(default)]
    pub fetch_crashes: u32,
    /// Consecutive crashes of `serve`.
    #[serde(default)]
    pub serve_crashes: u32,
    /// What becomes of the kernel's requests that a dead `serve` had taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// The part of the checkpoint that is saved.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint: Checkpoint,
}

/// The part of the checkpoint of `fetch` that is saved in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpoint {
    /// The whole checkpoint: a successor repeats no request.
    #[default]
    Whole,
    /// Only the credentials of the login, because the whole checkpoint does not fit: a successor logs
    /// in and reads every secret again.
    Credentials,
    /// Nothing: a successor also needs the credential files.
    Nothing,
}

/// The login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The end of the token, if a token exists and expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
    /// Logins in doubt: each may have left a token that lives until its TTL ends.
    #[serde(default)]
    pub lost_logins: u32,
    /// The trouble with the login or with the token's renewal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// The name.
    pub name: ShownName,
    /// The condition of the content.
    pub condition: Condition,
    /// Changes of the content since the start, including the first value.
    pub changes: u64,
    /// The version of the secret, if the file comes from one secret of KV v2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The last change of the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// The end of the lease (of the first lease, if the file has several).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ends: Option<u64>,
    /// The time of the next request for the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// `stale = "unhealthy"`: the file must not be served after the end of its secret.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// The current trouble.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// The condition of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// The content is the server's last answer and is still valid.
    Fresh,
    /// The content is still served, but the last renewal, read or rendering failed.
    Stale,
    /// The content is still served, but has expired: the lease has ended, or, without a lease, two
    /// refreshes in a row were missed.
    Ended,
    /// The file has no content yet.
    Missing,
}

/// A failure that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The message, without a secret value. Empty in a report without causes.
    pub cause: ShownCause,
    /// The start of the trouble.
    pub since: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Counts {
    fn of(files: &[FileReport]) -> Self {
        let count = |condition| {
            files
                .iter()
                .filter(|file| file.condition == condition)
                .count()
        };
        Self {
            fresh: count(Condition::Fresh),
            stale: count(Condition::Stale),
            ended: count(Condition::Ended),
            ended_strict: files
                .iter()
                .filter(|file| file.condition == Condition::Ended && file.strict)
                .count(),
            missing: count(Condition::Missing),
        }
    }
}

impl Report {
    /// A copy without causes, for a report that does not fit.
    pub fn without_causes(&self) -> Self {
        let mut report = self.clone();
        report.detail = Detail::NoCauses;
        let troubles = report
            .files
            .iter_mut()
            .map(|file| &mut file.trouble)
            .chain([&mut report.session.trouble]);
        for trouble in troubles.flatten() {
            trouble.cause = ShownCause::default();
        }
        report
    }

    /// A copy with counts instead of files, for a report that does not fit without causes either: a
    /// few hundred bytes.
    pub fn counted(&self) -> Self {
        let mut small = self.without_causes();
        small.detail = Detail::Counts(Counts::of(&self.files));
        small.files = Vec::new();
        small.served.fallback = None;
        small
    }

    /// Moves the dates of the report to the ones of a later heartbeat.
    pub fn prolong(&mut self, heartbeat: Heartbeat) {
        if heartbeat.due_monotonic_ms > self.due_monotonic_ms {
            self.due_monotonic_ms = heartbeat.due_monotonic_ms;
            self.written = heartbeat.written;
        }
    }

    /// Whether the next report is overdue at `now` (`CLOCK_MONOTONIC`), so that the agent counts as
    /// hung.
    pub fn is_overdue(&self, now: Moment) -> bool {
        now > Moment::at(Duration::from_millis(self.due_monotonic_ms)).plus(OVERDUE)
    }
}

/// Whole seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report on `count` files, each with a trouble that fills its cause.
    fn report(count: u64) -> Report {
        let trouble = || {
            Some(Trouble {
                cause: "\u{1f511}".repeat(900).into(),
                since: 1,
            })
        };
        let conditions = [
            Condition::Fresh,
            Condition::Stale,
            Condition::Ended,
            Condition::Ended,
            Condition::Missing,
        ];
        let file = |n: u64| FileReport {
            name: "n".repeat(248).into(),
            condition: conditions[(n % 5) as usize],
            changes: u64::MAX,
            version: Some(u64::MAX),
            changed: Some(u64::MAX),
            lease_ends: Some(u64::MAX),
            next: Some(u64::MAX),
            strict: n % 5 == 3,
            trouble: trouble(),
        };
        Report {
            format: FORMAT,
            version: "0.1.0".into(),
            since: 1,
            written: u64::MAX,
            due_monotonic_ms: u64::MAX,
            detail: Detail::Full,
            served: Served {
                how: "tmpfs".into(),
                fallback: Some("why".repeat(300).into()),
                swap: None,
            },
            walls: WallsReport::default(),
            roles: Roles::default(),
            session: Session {
                ends: Some(u64::MAX),
                lost_logins: u32::MAX,
                trouble: trouble(),
            },
            files: (0..count).map(file).collect(),
        }
    }

    #[test]
    fn each_smaller_report_says_less_and_can_be_read() {
        let full = report(10);
        let (no_causes, counted) = (full.without_causes(), full.counted());
        let written = [&full, &no_causes, &counted]
            .map(|report| serde_json::to_string(report).expect("JSON"));
        let [a, b, c] = [0, 1, 2].map(|n| written[n].len());
        // 300 characters of four bytes, and what surrounds them.
        assert!(a < 11 * 1_800 && b < 10 * 500 && c < 700, "{a} {b} {c}");
        for (report, text) in [&full, &no_causes, &counted].into_iter().zip(&written) {
            assert_eq!(
                &serde_json::from_str::<Report>(text).expect("a report"),
                report
            );
        }
        assert!(!written[0].contains("detail") && !written[1].contains('\u{1f511}'));
        assert_eq!(
            no_causes.files[1].trouble,
            Some(Trouble {
                cause: "".into(),
                since: 1
            })
        );
        let counts = Counts {
            fresh: 2,
            stale: 2,
            ended: 4,
            ended_strict: 2,
            missing: 2,
        };
        assert_eq!(
            (counted.detail, counted.files.len()),
            (Detail::Counts(counts), 0)
        );
    }
}
