//! The verdict of a health check. Invariant: a pure function of the report, the time and the probe.

use crate::status::{
    Condition, Counts, Detail, FileReport, Now, Report, checkpoint_loss, describe, missing_detail,
    overdue, swap_exposure,
};

/// The result of a health check, with a line for each cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No trouble.
    Healthy,
    /// Everything is served, but there is trouble that a restart would not end.
    Degraded(Vec<String>),
    /// The agent or the application does not work.
    Unhealthy(Vec<String>),
}

/// The treatment of trouble that leaves everything served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Report the trouble.
    Tolerant,
    /// Fail the check (`--strict`).
    Strict,
}

/// Judges `report` and the result of the application's probe (`Ok` without a probe). The causes of
/// `Unhealthy` stand first.
pub fn judge(
    report: &Report,
    now: Now,
    probe: Result<(), String>,
    strictness: Strictness,
) -> Verdict {
    let mut bad = Vec::new();
    let mut weak = Vec::new();
    if report.is_overdue(now.moment) {
        bad.extend(overdue(report, now));
    } else {
        weak.extend(overdue(report, now));
    }
    bad.extend(probe.err());
    for (role, crashes) in [
        ("fetch", report.roles.fetch_crashes),
        ("serve", report.roles.serve_crashes),
    ] {
        if crashes > 1 {
            weak.push(format!(
                "agent: {role} has crashed {crashes} times in a row"
            ));
        }
    }
    weak.extend(swap_exposure(report, now));
    if let Some(trouble) = &report.session.trouble {
        weak.push(format!("login: {}", describe(trouble, now)));
    }
    weak.extend(checkpoint_loss(report));
    weak.extend(missing_detail(report));
    if let Detail::Counts(counts) = report.detail {
        count(counts, &mut bad, &mut weak);
    }
    for file in &report.files {
        let lines = match file.condition {
            Condition::Missing => &mut bad,
            Condition::Ended if file.strict => &mut bad,
            Condition::Fresh | Condition::Stale | Condition::Ended => &mut weak,
        };
        lines.extend(line(file, now));
    }
    let fails = strictness == Strictness::Strict || !bad.is_empty();
    bad.append(&mut weak);
    match bad {
        none if none.is_empty() => Verdict::Healthy,
        lines if fails => Verdict::Unhealthy(lines),
        lines => Verdict::Degraded(lines),
    }
}

/// Adds the lines for a report that only counts files.
fn count(counts: Counts, bad: &mut Vec<String>, weak: &mut Vec<String>) {
    let tolerated = counts.ended.saturating_sub(counts.ended_strict);
    let count = |lines: &mut Vec<String>, count: usize, state: &str| {
        if count > 0 {
            lines.push(format!("files: {count} {state}"));
        }
    };
    count(bad, counts.missing, "without a value yet");
    count(bad, counts.ended_strict, "past their life");
    count(weak, counts.stale, "stale");
    count(weak, tolerated, "past their life");
}

/// The line for one file, or `None` for a file without trouble.
fn line(file: &FileReport, now: Now) -> Option<String> {
    let state = match file.condition {
        Condition::Fresh => "",
        Condition::Stale => ": stale",
        Condition::Ended => ": past its life",
        Condition::Missing => ": has no value yet",
    };
    let mut line = format!("{}{state}", file.name);
    if let Some(trouble) = &file.trouble {
        line = format!("{line}: {}", describe(trouble, now));
    } else if state.is_empty() {
        return None;
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::status::{Checkpoint, FORMAT, Roles, Served, Session, Trouble, WallsReport};
    use std::time::Duration;

    /// The present: 10,000 s after the machine's start, at 1,000,000 s.
    const NOW: Now = Now {
        moment: Moment::at(Duration::from_secs(10_000)),
        wall: 1_000_000,
    };

    fn report(files: Vec<FileReport>) -> Report {
        Report {
            format: FORMAT,
            version: "0.1.0".into(),
            since: 990_000,
            written: 999_990,
            due_monotonic_ms: 10_005_000,
            detail: Detail::Full,
            served: Served {
                how: "fuse".into(),
                fallback: None,
                swap: None,
            },
            walls: WallsReport::default(),
            roles: Roles {
                supervise: 1,
                fetch: 7,
                serve: Some(8),
                ..Roles::default()
            },
            session: Session::default(),
            files,
        }
    }

    fn file(condition: Condition, cause: Option<&str>) -> FileReport {
        let trouble = cause.map(|cause| Trouble {
            cause: cause.into(),
            since: 999_800,
        });
        let name = "db".into();
        FileReport {
            name,
            condition,
            changes: 1,
            version: None,
            changed: None,
            lease_ends: None,
            next: None,
            strict: false,
            trouble,
        }
    }

    fn strict(condition: Condition) -> FileReport {
        FileReport {
            strict: true,
            ..file(condition, Some("sealed"))
        }
    }

    /// What `judge` says of a report, with `--strict` and without.
    fn judged(report: &Report, probe: Result<(), &str>) -> [Verdict; 2] {
        [Strictness::Tolerant, Strictness::Strict]
            .map(|strictness| judge(report, NOW, probe.map_err(str::to_owned), strictness))
    }

    #[test]
    fn conditions_of_files() {
        use Condition::{Ended, Fresh, Missing, Stale};
        let healthy = [Verdict::Healthy, Verdict::Healthy];
        let lines = |text: &[&str]| text.iter().map(ToString::to_string).collect::<Vec<_>>();
        let degraded = |text: &[&str]| {
            [
                Verdict::Degraded(lines(text)),
                Verdict::Unhealthy(lines(text)),
            ]
        };
        let unhealthy = |text: &[&str]| {
            [
                Verdict::Unhealthy(lines(text)),
                Verdict::Unhealthy(lines(text)),
            ]
        };
        for (files, expected) in [
            (vec![], healthy.clone()),
            (vec![file(Fresh, None)], healthy),
            (
                vec![file(Fresh, Some("sealed"))],
                degraded(&["db: sealed (for 3m20s)"]),
            ),
            (
                vec![file(Fresh, Some("two\nlines\x1b"))],
                degraded(&["db: two lines\u{fffd} (for 3m20s)"]),
            ),
            (
                vec![file(Stale, Some("sealed")), file(Fresh, None)],
                degraded(&["db: stale: sealed (for 3m20s)"]),
            ),
            (vec![file(Stale, None)], degraded(&["db: stale"])),
            (
                vec![file(Stale, Some(""))],
                degraded(&["db: stale: the log has the cause (for 3m20s)"]),
            ),
            (
                vec![strict(Stale)],
                degraded(&["db: stale: sealed (for 3m20s)"]),
            ),
            (
                vec![file(Ended, Some("sealed"))],
                degraded(&["db: past its life: sealed (for 3m20s)"]),
            ),
            (
                vec![strict(Ended)],
                unhealthy(&["db: past its life: sealed (for 3m20s)"]),
            ),
            (
                vec![file(Missing, None)],
                unhealthy(&["db: has no value yet"]),
            ),
            (
                vec![file(Stale, None), file(Missing, Some("denied"))],
                unhealthy(&["db: has no value yet: denied (for 3m20s)", "db: stale"]),
            ),
        ] {
            assert_eq!(
                judged(&report(files.clone()), Ok(())),
                expected,
                "{files:?}"
            );
        }
    }

    #[test]
    fn the_agent_the_login_and_the_application() {
        let mut late = report(vec![file(Condition::Fresh, None)]);
        let [verdict, _] = judged(&late, Err("refused"));
        assert_eq!(verdict, Verdict::Unhealthy(vec!["refused".into()]));
        late.session.trouble = Some(Trouble {
            cause: "no answer".into(),
            since: 999_999,
        });
        let [verdict, strict] = judged(&late, Ok(()));
        assert_eq!(
            verdict,
            Verdict::Degraded(vec!["login: no answer (for 1s)".into()])
        );
        assert!(matches!(strict, Verdict::Unhealthy(_)));
    }

    #[test]
    fn a_swap_that_files_could_reach() {
        let mut report = report(vec![file(Condition::Fresh, None)]);
        report.served.swap = Some(Trouble {
            cause: "the machine has a swap".into(),
            since: 999_800,
        });
        let line = || {
            vec![
                "agent: files could be written to a swap: the machine has a swap (for 3m20s)"
                    .to_owned(),
            ]
        };
        assert_eq!(
            judged(&report, Ok(())),
            [Verdict::Degraded(line()), Verdict::Unhealthy(line())]
        );
        report.served.swap = None;
        assert_eq!(
            judged(&report, Ok(())),
            [Verdict::Healthy, Verdict::Healthy]
        );
    }

    #[test]
    fn a_report_that_did_not_fit_says_what_it_can() {
        use Condition::{Ended, Fresh, Missing, Stale};
        const LACKS: &str = "agent: its report has no files, only their number, because it does not fit; hint: the log has the causes; raise `filesystem.size`";
        let weak =
            |lines: &[&str]| Verdict::Degraded(lines.iter().map(ToString::to_string).collect());
        let bad =
            |lines: &[&str]| Verdict::Unhealthy(lines.iter().map(ToString::to_string).collect());
        for (files, expected) in [
            (vec![file(Fresh, None)], weak(&[LACKS])),
            (
                vec![file(Stale, Some("x")), file(Ended, None)],
                weak(&[LACKS, "files: 1 stale", "files: 1 past their life"]),
            ),
            (
                vec![file(Stale, None), strict(Ended)],
                bad(&["files: 1 past their life", LACKS, "files: 1 stale"]),
            ),
            (
                vec![file(Missing, None), file(Missing, None)],
                bad(&["files: 2 without a value yet", LACKS]),
            ),
        ] {
            assert_eq!(
                judged(&report(files.clone()).counted(), Ok(()))[0],
                expected,
                "{files:?}"
            );
        }
        let no_causes = judged(
            &report(vec![file(Stale, Some("sealed"))]).without_causes(),
            Ok(()),
        )[0]
        .clone();
        let Verdict::Degraded(lines) = no_causes else {
            panic!("{no_causes:?}")
        };
        assert!(
            lines[0].contains("has no causes")
                && lines[1] == "db: stale: the log has the cause (for 3m20s)",
            "{lines:?}"
        );
    }

    #[test]
    fn roles_that_crash_again_and_again() {
        let mut report = report(vec![file(Condition::Fresh, None)]);
        for (fetch, serve, expected) in [
            (0, 0, None),
            (1, 1, None),
            (2, 0, Some("fetch has crashed 2")),
            (1, 7, Some("serve has crashed 7")),
        ] {
            (report.roles.fetch_crashes, report.roles.serve_crashes) = (fetch, serve);
            let line = expected.map(|row| format!("agent: {row} times in a row"));
            let expected = line.map_or(Verdict::Healthy, |line| Verdict::Degraded(vec![line]));
            assert_eq!(judged(&report, Ok(()))[0], expected, "{fetch} {serve}");
        }
    }

    #[test]
    fn a_checkpoint_that_does_not_fit() {
        let mut report = report(vec![file(Condition::Fresh, None)]);
        for (checkpoint, part) in [
            (Checkpoint::Credentials, "fetch logs in"),
            (Checkpoint::Nothing, "fetch needs the credential files"),
        ] {
            report.roles.checkpoint = checkpoint;
            let Verdict::Degraded(lines) = judged(&report, Ok(()))[0].clone() else {
                panic!("{checkpoint:?}")
            };
            assert!(
                lines[0].contains("recovery is off") && lines[0].contains(part),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn a_report_that_is_late() {
        let mut late = report(vec![file(Condition::Fresh, None)]);
        // (how late in milliseconds, the verdict with and without `--strict`, what its line begins
        // with)
        let table = [
            (-5_000, "HH", ""),
            (999, "HH", ""),
            (1_000, "DU", "agent: fetch (pid 7) has not reported for 10s"),
            (
                10_000,
                "DU",
                "agent: fetch (pid 7) has not reported for 10s",
            ),
            (
                10_001,
                "UU",
                "agent: its report is overdue by 10s: fetch (pid 7)",
            ),
            (
                3_600_000,
                "UU",
                "agent: its report is overdue by 1h: fetch (pid 7)",
            ),
        ];
        for (millis, letters, line) in table {
            late.due_monotonic_ms = 10_000_000_u64.saturating_add_signed(-millis);
            let (found, lines): (String, Vec<_>) = judged(&late, Ok(()))
                .into_iter()
                .map(|verdict| match verdict {
                    Verdict::Healthy => ('H', vec![]),
                    Verdict::Degraded(lines) => ('D', lines),
                    Verdict::Unhealthy(lines) => ('U', lines),
                })
                .unzip();
            assert_eq!(found, letters, "{millis} ms");
            assert!(
                lines.iter().flatten().all(|it| it.starts_with(line)),
                "{millis} ms: {lines:?}"
            );
            assert_eq!(lines.concat().is_empty(), line.is_empty(), "{millis} ms");
        }
    }
}
