//! The report as it is written and read. Invariants: a reader of another version can tell so by
//! `format`; every text in it is cut and cleaned, when it is written and again when it is read.

use crate::clock::Moment;
use crate::names::Recovery;
use crate::shown::{ShownCause, ShownName};
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
    pub version: ShownName,
    /// When the agent began.
    pub since: u64,
    /// When this was written.
    pub written: u64,
    /// By when the next one will be written, in milliseconds of `CLOCK_MONOTONIC`: it does not
    /// jump.
    pub due_monotonic_ms: u64,
    /// What it lacks, because the whole of it did not fit.
    #[serde(default, skip_serializing_if = "Detail::is_full")]
    pub detail: Detail,
    /// How the files are served.
    pub served: Served,
    /// What stands between the roles and the kernel.
    #[serde(default)]
    pub walls: WallsReport,
    /// The agent's processes.
    pub roles: Roles,
    /// The login.
    pub session: Session,
    /// Every file, in the order of the configuration; empty where `detail` has counts.
    pub files: Vec<FileReport>,
}

/// How much of a report there was room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// All of it.
    #[default]
    Full,
    /// Every cause is empty.
    NoCauses,
    /// Every cause is empty, and files are only counted.
    Counts(Counts),
}

/// How many files are in each condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// `Condition::Fresh`.
    pub fresh: usize,
    /// `Condition::Stale`.
    pub stale: usize,
    /// `Condition::Ended`, those that must not serve then included.
    pub ended: usize,
    /// `Condition::Ended` of files that must not serve past their life.
    pub ended_strict: usize,
    /// `Condition::Missing`.
    pub missing: usize,
}

/// How the files are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// `fuse` or `tmpfs`.
    pub how: ShownName,
    /// Why FUSE was refused, when a fallback is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<ShownCause>,
    /// Why files of the fallback could now reach a swap, which was excluded at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<Trouble>,
}

/// What a role that was taken over would find around it, in words: `capabilities` (it has none),
/// `seccomp` (it makes few system calls), `landlock 6` (it reaches few files, ports and processes;
/// with the ABI, which says what the kernel can deny).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallsReport {
    /// Of `fetch`.
    #[serde(default)]
    pub fetch: Vec<ShownName>,
    /// Of `serve`; empty on a tmpfs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serve: Vec<ShownName>,
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
    /// How many of the last `fetch` in a row ended by themselves, or before they worked; 0 once
    /// the present one is well.
    #[serde(default)]
    pub fetch_crashes: u32,
    /// The same of `serve`.
    #[serde(default)]
    pub serve_crashes: u32,
    /// How what a dead `serve` had taken comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// What a successor of `fetch` goes on from.
    #[serde(default, skip_serializing_if = "Checkpoint::is_whole")]
    pub checkpoint: Checkpoint,
}

/// How much of what a successor of `fetch` needs is saved in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpoint {
    /// All of it: a successor asks for nothing again.
    #[default]
    Whole,
    /// The credentials of the login alone, because the whole does not fit: a successor logs in and
    /// reads everything anew.
    Credentials,
    /// Nothing: so, and it needs the files of the credentials.
    Nothing,
}

impl Checkpoint {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

/// The login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// When the token ends, if there is one and it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
    /// How many logins were sent whose answers nobody heard: each may have left a token that lives
    /// to its end.
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
    pub name: ShownName,
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
    /// So, and it is past its life: the lease has ended, or, without one, two refreshes in a row
    /// are missed.
    Ended,
    /// There is none yet.
    Missing,
}

/// A failure that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Its message; never a value. Empty in a report without causes.
    pub cause: ShownCause,
    /// Since when.
    pub since: u64,
}

impl Detail {
    fn is_full(&self) -> bool {
        *self == Self::Full
    }
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
    /// The same without causes, for when it does not fit.
    #[must_use]
    pub fn without_causes(&self) -> Self {
        let mut report = Self {
            detail: Detail::NoCauses,
            ..self.clone()
        };
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

    /// The same with its files counted, for when it does not fit without causes either: a few
    /// hundred bytes.
    #[must_use]
    pub fn counted(&self) -> Self {
        let small = Self {
            files: Vec::new(),
            served: Served {
                fallback: None,
                ..self.served.clone()
            },
            ..self.clone()
        };
        Self {
            detail: Detail::Counts(Counts::of(&self.files)),
            ..small.without_causes()
        }
    }

    /// Whether the agent is alive, by what it promised: at `now` of the machine's
    /// `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn is_overdue(&self, now: Moment) -> bool {
        now > Moment::at(Duration::from_millis(self.due_monotonic_ms)).plus(OVERDUE)
    }
}

/// Whole seconds since 1970.
#[must_use]
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
