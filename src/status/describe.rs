//! Sentences about a report, shared by the status table and the health check. Invariant: each
//! function is pure, and returns `None` when the report has nothing of the kind.

use super::report::{Checkpoint, Detail, Report, Trouble};
use super::{Now, span};
use crate::clock::Moment;
use std::time::Duration;

/// A late report. The agent begins to write when the report is due, so less than a second is not
/// late.
pub fn overdue(report: &Report, now: Now) -> Option<String> {
    let late = now
        .moment
        .since(Moment::at(Duration::from_millis(report.due_monotonic_ms)))
        .as_secs();
    let fetch = report.roles.fetch;
    match late {
        0 => None,
        _ if report.is_overdue(now.moment) => Some(format!(
            "agent: its report is overdue by {}: fetch (pid {fetch}) hangs or is dead",
            span(late)
        )),
        _ => Some(format!(
            "agent: fetch (pid {fetch}) has not reported for {}",
            now.since(report.written)
        )),
    }
}

/// A swap for pages of files, although no swap was reachable when the agent started.
pub fn swap_exposure(report: &Report, now: Now) -> Option<String> {
    report.served.swap.as_ref().map(|trouble| {
        format!(
            "agent: files could be written to a swap: {}",
            describe(trouble, now)
        )
    })
}

/// A checkpoint that does not fit, so that a death of `fetch` costs a login and every lease.
pub fn checkpoint_loss(report: &Report) -> Option<String> {
    let needs = match report.roles.checkpoint {
        Checkpoint::Whole => return None,
        Checkpoint::Credentials => "logs in and reads everything anew",
        Checkpoint::Nothing => "needs the credential files, logs in and reads everything anew",
    };
    Some(format!(
        "agent: recovery is off: a successor of fetch {needs}, because its checkpoint does not fit; hint: raise `filesystem.size`"
    ))
}

/// The omitted parts of the report, for want of room.
pub fn missing_detail(report: &Report) -> Option<String> {
    let what = match report.detail {
        Detail::Full => return None,
        Detail::NoCauses => "has no causes",
        Detail::Counts(_) => "has no files, only their number",
    };
    Some(format!(
        "agent: its report {what}, because it does not fit; hint: the log has the causes; raise `filesystem.size`"
    ))
}

/// The cause of a trouble and its duration.
pub fn describe(trouble: &Trouble, now: Now) -> String {
    let cause = if trouble.cause.is_empty() {
        "the log has the cause"
    } else {
        &*trouble.cause
    };
    format!("{cause} (for {})", now.since(trouble.since))
}
