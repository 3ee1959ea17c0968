//! The status report of `fetch` (`..baofs/status.json`) and the table that `baofs status` prints.
//! Invariant: a report holds no value of a secret and no lease id.

mod describe;
mod report;
mod table;

pub use describe::{checkpoint_loss, describe, missing_detail, overdue, swap_exposure};
pub use report::{
    Checkpoint, Condition, Counts, Detail, FORMAT, FileReport, Heartbeat, OVERDUE, Report, Roles,
    Served, Session, Trouble, WallsReport, seconds,
};
pub use table::table;

use crate::clock::{Clock, Moment, RealClock};

pub use crate::names::STATE_DIRECTORY as DIRECTORY;
/// The name of the report in `DIRECTORY`.
pub const FILE: &str = "status.json";
/// The name of the heartbeat in `DIRECTORY`.
pub const HEARTBEAT: &str = "heartbeat.json";
/// The files in `DIRECTORY`.
pub const FILES: [&str; 2] = [FILE, HEARTBEAT];

/// The current time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By `CLOCK_MONOTONIC`.
    pub moment: Moment,
    /// By the wall clock, in seconds since 1970.
    pub wall: u64,
}

impl Now {
    /// Reads the machine's clocks.
    pub fn real() -> Self {
        Self {
            moment: RealClock.now(),
            wall: seconds(RealClock.wall()),
        }
    }

    /// The time since `then`; zero for a time in the future.
    fn since(self, then: u64) -> String {
        span(self.wall.saturating_sub(then))
    }
}

/// Formats seconds in the two greatest units: `3m20s`.
fn span(seconds: u64) -> String {
    const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    for ((unit, name), (smaller, next)) in UNITS.iter().zip(&UNITS[1..]) {
        let count = seconds / unit;
        let rest = seconds % unit / smaller;
        match (count, rest) {
            (0, _) => {}
            (_, 0) => return format!("{count}{name}"),
            _ => return format!("{count}{name}{rest}{next}"),
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans_for_people() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (200, "3m20s"),
            (3_600, "1h"),
            (3_659, "1h"),
            (86_399, "23h59m"),
            (86_460, "1d"),
            (1_000_000, "11d13h"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }
}
