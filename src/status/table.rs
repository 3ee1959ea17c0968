//! The table of `baofs status`. Invariant: columns are aligned, and each file has a single line.

use super::describe::{checkpoint_loss, describe, missing_detail, overdue, swap_exposure};
use super::report::{Condition, Detail, FileReport, Report, WallsReport};
use super::{Now, span};
use crate::names::Recovery;
use crate::shown::ShownName;

/// The titles of the columns.
const TITLES: [&str; 8] = [
    "FILE",
    "CONDITION",
    "CHANGES",
    "VERSION",
    "AGE",
    "LEASE ENDS",
    "NEXT",
    "TROUBLE",
];

/// Formats the agent's state, then one row for each file.
pub fn table(report: &Report, now: Now) -> String {
    let mut rows = vec![TITLES.map(str::to_owned)];
    for file in &report.files {
        rows.push(row(file, now));
    }
    let mut widths = [0; TITLES.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = head(report, now);
    for row in &rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn head(report: &Report, now: Now) -> String {
    let roles = report.roles;
    let serve = roles
        .serve
        .map(|pid| format!(", serve {pid}"))
        .unwrap_or_default();
    let fallback = report
        .served
        .fallback
        .as_ref()
        .map(|why| format!(", because FUSE is refused: {why}"))
        .unwrap_or_default();
    let token = report.session.ends.map_or_else(
        || "the token has no known end".to_owned(),
        |ends| format!("token ends {}", until(ends, now)),
    );
    let trouble = report
        .session
        .trouble
        .as_ref()
        .map(|trouble| format!("; {}", describe(trouble, now)))
        .unwrap_or_default();
    let recovery = match roles.recovery {
        Some(Recovery::Resend) => ", recovery by resend",
        Some(Recovery::Interrupt) => ", recovery by interrupt",
        None => "",
    };
    let lost = match report.session.lost_logins {
        0 => String::new(),
        lost => format!("; lost logins: {lost}"),
    };
    let deaths = match (roles.fetch_deaths, roles.serve_deaths) {
        (0, 0) => String::new(),
        (fetch, serve) => format!("deaths  fetch {fetch}, serve {serve}\n"),
    };
    let walls = walls(&report.walls);
    let mut text = format!(
        "agent   {}, up {}, supervise {}, fetch {}{serve}\nserved  {}{recovery}{fallback}\n{walls}{deaths}login   {token}{lost}{trouble}\n",
        report.version,
        now.since(report.since),
        roles.supervise,
        roles.fetch,
        report.served.how
    );
    let notes = [
        overdue(report, now),
        swap_exposure(report, now),
        checkpoint_loss(report),
        missing_detail(report),
    ];
    for note in notes.into_iter().flatten() {
        text += &note;
        text.push('\n');
    }
    let Detail::Counts(it) = report.detail else {
        return text + "\n";
    };
    text + &format!(
        "files   {} fresh, {} stale, {} ended, {} missing\n\n",
        it.fresh, it.stale, it.ended, it.missing
    )
}

/// The line of the walls; empty for a report without walls.
fn walls(walls: &WallsReport) -> String {
    let mut all = Vec::new();
    for (role, words) in [("fetch", &walls.fetch), ("serve", &walls.serve)] {
        let words: Vec<_> = words.iter().map(ShownName::as_str).collect();
        if !words.is_empty() {
            all.push(format!("{role} behind {}", words.join(", ")));
        }
    }
    if all.is_empty() {
        String::new()
    } else {
        format!("walls   {}\n", all.join("; "))
    }
}

fn row(file: &FileReport, now: Now) -> [String; 8] {
    let condition = match file.condition {
        Condition::Fresh => "fresh",
        Condition::Stale => "stale",
        Condition::Ended => "ended",
        Condition::Missing => "missing",
    };
    let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    [
        file.name.to_string(),
        condition.to_owned(),
        file.changes.to_string(),
        or_none(file.version.map(|version| version.to_string())),
        or_none(file.changed.map(|changed| now.since(changed))),
        or_none(file.lease_ends.map(|ends| until(ends, now))),
        or_none(file.next.map(|next| until(next, now))),
        or_none(file.trouble.as_ref().map(|trouble| describe(trouble, now))),
    ]
}

/// The time until or since `then`.
fn until(then: u64, now: Now) -> String {
    if then >= now.wall {
        format!("in {}", span(then - now.wall))
    } else {
        format!("{} ago", now.since(then))
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Roles, Served, Session};
    use super::*;
    use crate::clock::Moment;
    use crate::status::FORMAT;
    use std::time::Duration;

    #[test]
    fn the_head_tells_of_deaths_and_what_they_cost() {
        let now = Now {
            moment: Moment::at(Duration::from_secs(10_000)),
            wall: 1_000_000,
        };
        let served = Served {
            how: "fuse".into(),
            fallback: None,
            swap: None,
        };
        let calm = Roles {
            supervise: 1,
            fetch: 7,
            serve: Some(8),
            recovery: Some(Recovery::Resend),
            ..Roles::default()
        };
        let before = Roles {
            recovery: Some(Recovery::Interrupt),
            fetch_deaths: 2,
            serve_deaths: 1,
            ..calm
        };
        let tmpfs = Roles {
            serve: None,
            recovery: None,
            fetch_deaths: 1,
            ..calm
        };
        // (roles, lost logins, the lines after the first)
        let table = [
            (
                calm,
                0,
                "served  fuse, recovery by resend\nlogin   token ends in 1m\n\n",
            ),
            (
                before,
                1,
                "served  fuse, recovery by interrupt\ndeaths  fetch 2, serve 1\nlogin   token ends in 1m; lost logins: 1\n\n",
            ),
            (
                tmpfs,
                0,
                "served  fuse\ndeaths  fetch 1, serve 0\nlogin   token ends in 1m\n\n",
            ),
        ];
        for (roles, lost_logins, lines) in table {
            let report = Report {
                format: FORMAT,
                version: "0.1.0".into(),
                since: 990_000,
                written: 999_990,
                due_monotonic_ms: 10_005_000,
                detail: Detail::Full,
                served: served.clone(),
                walls: WallsReport::default(),
                roles,
                session: Session {
                    ends: Some(1_000_060),
                    lost_logins,
                    trouble: None,
                },
                files: vec![],
            };
            assert_eq!(
                head(&report, now).split_once('\n').map(|(_, rest)| rest),
                Some(lines)
            );
        }
    }

    #[test]
    fn the_walls_of_each_role_are_told() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).into()).collect();
        let (all, few) = (
            words(&["capabilities", "seccomp", "landlock 7"]),
            words(&["capabilities but CHOWN", "seccomp"]),
        );
        let table = [
            (
                all,
                words(&["capabilities"]),
                "walls   fetch behind capabilities, seccomp, landlock 7; serve behind capabilities\n",
            ),
            (
                few,
                vec![],
                "walls   fetch behind capabilities but CHOWN, seccomp\n",
            ),
            (vec![], vec![], ""),
        ];
        for (fetch, serve, line) in table {
            assert_eq!(walls(&WallsReport { fetch, serve }), line);
        }
    }
}
