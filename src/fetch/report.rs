//! The report (`..baofs/status.json`), made from the state of the parts of `fetch`. The report is
//! written at the start and when the substance changed; a heartbeat of constant size is written while
//! the report stays true. Invariants: the report holds no value, token or lease id, and no name of a
//! secret's field but the configured ones; where the report does not fit, a smaller one is written.

use super::chunks::Chunks;
use super::private::file_shape;
use super::{Fetch, Settings};
use crate::clock::{Clock, Moment};
use crate::config::plan::{Content, File, Plan, Stale};
use crate::exit::Refused;
use crate::lease::source::Source;
use crate::lease::{Subject, SubjectStatus};
use crate::names::{FileId, SwapExposure};
use crate::observe::Incident;
use crate::render::{self, RenderError, json};
use crate::status::{
    self, Condition, Detail, FORMAT, FileReport, Heartbeat, Report, Roles, Served, Session,
    Trouble, seconds,
};
use nix::unistd::{getpid, getppid};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// The longest time between two reports or heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The shortest time between two checks for news, for few files; the first publication is checked at
/// once.
const CALM: Duration = Duration::from_millis(500);
/// The part of that time for each file, up to the heartbeat: a check takes about 2 us a file.
const CALM_PER_FILE: Duration = Duration::from_micros(450);

/// The times of the report and the last report.
pub(super) struct Reporter {
    settings: Settings,
    /// The exposure of files to a swap, as supervise reported last.
    pub(super) swap: Option<SwapExposure>,
    /// The start of this process.
    born: Moment,
    pub(super) state: ReporterState,
    /// By file the begin of the trouble, in seconds since 1970.
    pub(super) troubles: Chunks<Option<u64>>,
    last: Option<Report>,
    /// The last report or heartbeat, and the last check for news.
    written: Moment,
    checked: Option<Moment>,
    /// The shortest time between two checks for news.
    calm: Duration,
    /// Whether the last report stays true until an event: no file is in trouble, because a trouble
    /// becomes worse with time.
    quiet: bool,
    /// Whether there was an event since the last check.
    touched: bool,
    /// How much of the last report was written.
    fit: Fit,
}

/// The part of the checkpoint besides the table of files. Times are seconds since 1970.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct ReporterState {
    /// The start of the first `fetch`.
    since: u64,
    /// The begin of the trouble with the login.
    session: Option<u64>,
    /// The begin of the exposure to a swap.
    swap: Option<u64>,
}

impl Reporter {
    pub(super) fn new(settings: Settings, plan: &Plan, clock: &dyn Clock) -> Self {
        let count = plan.files.len();
        let files = u32::try_from(count).unwrap_or(u32::MAX);
        let troubles = vec![None; count];
        let state = ReporterState {
            since: seconds(clock.wall()),
            session: None,
            swap: None,
        };
        Self {
            settings,
            swap: None,
            born: clock.now(),
            state,
            troubles: Chunks::new(troubles, file_shape(plan)),
            last: None,
            written: clock.now(),
            checked: None,
            calm: calm(files),
            quiet: false,
            touched: false,
            fit: Fit::Whole,
        }
    }

    /// Takes note of an event that may be news.
    pub(super) fn touch(&mut self) {
        self.touched = true;
        self.quiet = false;
    }

    /// The time of the next check for news; `None` before the first one.
    pub(super) fn wake(&self) -> Option<Moment> {
        let calm = self.checked?.plus(self.calm);
        Some(if self.touched {
            calm
        } else {
            calm.max(self.written.plus(HEARTBEAT))
        })
    }

    /// Makes the next check due: the first publication is news at once.
    pub(super) fn check_now(&mut self) {
        self.checked = None;
    }

    /// Whether a check for news is due.
    fn check(&mut self, now: Moment) -> bool {
        if let Some(wake) = self.wake()
            && wake > now
        {
            return false;
        }
        self.checked = Some(now);
        self.touched = false;
        true
    }

    fn is_news(&self, report: &Report) -> bool {
        match &self.last {
            Some(last) => !is_same(last, report),
            None => true,
        }
    }

    /// Records the begin of each trouble in the report.
    fn record_troubles(&mut self, report: &Report) {
        let since = |trouble: &Option<Trouble>| {
            let trouble = trouble.as_ref()?;
            Some(trouble.since)
        };
        self.state.session = since(&report.session.trouble);
        self.state.swap = since(&report.served.swap);
        for (index, file) in report.files.iter().enumerate() {
            self.troubles
                .update(index, |trouble| *trouble = since(&file.trouble));
        }
    }

    /// Records how much of `report` was written, and logs once when a report is reduced because of
    /// `error`.
    fn written(&mut self, report: Report, fit: Fit, error: Option<&Refused>, now: Moment) {
        if let Some(Refused { message: why, .. }) = error
            && fit > self.fit
        {
            match fit {
                Fit::Whole => {}
                Fit::NoCauses => Incident::ReportWithoutCauses.emit(why),
                Fit::Counts => Incident::ReportOfCounts.emit(why),
                Fit::Nothing => Incident::ReportNotWritten.emit(why),
            }
        }
        self.fit = fit;
        if fit == Fit::Nothing {
            self.touched = true;
            return;
        }
        let is_fresh = |file: &FileReport| file.condition == Condition::Fresh;
        self.quiet = fit == Fit::Whole
            && report.session.trouble.is_none()
            && report.files.iter().all(is_fresh);
        self.last = Some(report);
        self.written = now;
    }
}

/// The shortest time between two checks of a number of files.
fn calm(files: u32) -> Duration {
    let more = CALM_PER_FILE.saturating_mul(files);
    CALM.saturating_add(more).min(HEARTBEAT)
}

/// How much of a report was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Whole,
    NoCauses,
    Counts,
    Nothing,
}

/// Writes as much of the report as `write` has room for; returns how much that is, and the reason if
/// it is not the whole.
fn write_reduced(
    report: &Report,
    mut write: impl FnMut(&Report) -> Result<(), Refused>,
) -> (Fit, Option<Refused>) {
    let Err(error) = write(report) else {
        return (Fit::Whole, None);
    };
    let fit = if write(&report.without_causes()).is_ok() {
        Fit::NoCauses
    } else if write(&report.counted()).is_ok() {
        Fit::Counts
    } else {
        Fit::Nothing
    };
    (fit, Some(error))
}

impl<S: Source + 'static> Fetch<'_, S> {
    /// Writes the report or a heartbeat when due.
    pub(super) fn report(&mut self) {
        let now = self.clock.now();
        if !self.reporter.check(now) {
            return;
        }
        let times = Times {
            now,
            wall: self.clock.wall(),
        };
        let head = self.head(times);
        let heartbeat = Heartbeat {
            written: head.written,
            due_monotonic_ms: head.due_monotonic_ms,
        };
        if self.reporter.quiet
            && !self.reporter.is_news(&head)
            && self.write(status::HEARTBEAT, &heartbeat).is_ok()
        {
            self.reporter.written = now;
            return;
        }
        let files = (0_u32..).map(FileId).zip(&self.plan.files);
        let files = files.map(|(id, file)| self.describe_file(id, file, times));
        let report = Report {
            files: files.collect(),
            ..head
        };
        self.reporter.record_troubles(&report);
        let is_late = now.since(self.reporter.written) >= HEARTBEAT;
        if self.reporter.is_news(&report) || is_late {
            let write = |report: &Report| self.write(status::FILE, report);
            let (fit, error) = write_reduced(&report, write);
            self.reporter.written(report, fit, error.as_ref(), now);
        }
    }

    fn write(&mut self, name: &'static str, content: &impl Serialize) -> Result<(), Refused> {
        let bytes = json(content);
        self.queue
            .backend
            .report(&mut self.publisher, name, &bytes, self.clock)
    }

    /// The report without its files.
    fn head(&self, times: Times) -> Report {
        let session = self.machine.view(Subject::Session, times.now);
        let begins = self.reporter.state;
        let cause = session.trouble.map(|failure| failure.message.clone());
        let swap = self.reporter.swap.map(|why| why.to_string());
        let due = times.now.plus(HEARTBEAT).since_origin().as_millis();
        Report {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            since: begins.since,
            written: seconds(times.wall),
            due_monotonic_ms: u64::try_from(due).unwrap_or(u64::MAX),
            detail: Detail::Full,
            served: Served {
                swap: trouble(swap, begins.swap, times),
                ..self.reporter.settings.served.clone()
            },
            walls: self.reporter.settings.walls.clone(),
            roles: self.roles(times.now),
            session: Session {
                ends: session.ends.map(|end| times.at(end)),
                lost_logins: self.machine.orphaned_logins(),
                trouble: trouble(cause, begins.session, times),
            },
            files: Vec::new(),
        }
    }

    fn roles(&self, now: Moment) -> Roles {
        let past = self.reporter.settings.past;
        let mut roles = Roles {
            supervise: getppid().as_raw(),
            fetch: getpid().as_raw(),
            fetch_deaths: past.deaths,
            fetch_crashes: past.crashes_after(now.since(self.reporter.born)),
            checkpoint: self.checkpoint.saved,
            ..Roles::default()
        };
        if let Some(serve) = self.arena.last_serve() {
            roles.serve = Some(serve.pid);
            roles.serve_deaths = serve.past.deaths;
            roles.serve_crashes = serve.past.crashes_after(now.since(serve.born));
            roles.recovery = Some(serve.recovery);
        }
        roles
    }

    fn describe_file(&self, id: FileId, file: &File, times: Times) -> FileReport {
        let views = self.views(&file.content, times.now);
        let is_ready = self.secrets.is_complete();
        let cause = if is_ready {
            self.cause(id, &views)
        } else {
            let reason = self
                .secrets
                .reason(id, self.no_login(), RenderError::to_string);
            reason.map(|(why, _)| why)
        };
        let is_past = |view: &SubjectStatus<'_>| view.ended || (view.missed && cause.is_some());
        let condition = match &cause {
            _ if !is_ready => Condition::Missing,
            _ if views.iter().any(is_past) => Condition::Ended,
            Some(_) => Condition::Stale,
            None => Condition::Fresh,
        };
        let ends = views.iter().filter_map(|view| view.ends).min();
        let next = views.iter().filter_map(|view| view.next).min();
        let (changes, latest) = self.queue.history[id.index()];
        FileReport {
            name: file.name.as_str().into(),
            condition,
            changes,
            version: self.secrets.version(&file.content),
            changed: latest.map(seconds),
            lease_ends: ends.map(|end| times.at(end)),
            next: next.map(|next| times.at(next)),
            strict: file.stale == Stale::Unhealthy,
            trouble: trouble(cause, self.reporter.troubles[id.index()], times),
        }
    }

    /// The status of everything that a file is made of.
    fn views(&self, content: &Content, now: Moment) -> Vec<SubjectStatus<'_>> {
        if matches!(content, Content::Token) {
            return vec![self.machine.view(Subject::Session, now)];
        }
        let known = self.secrets.queries.len();
        render::queries(content)
            .into_iter()
            .filter(|query| query.index() < known)
            .map(|query| self.machine.view(Subject::Query(query), now))
            .collect()
    }

    /// The trouble with a file that is served.
    fn cause(&self, file: FileId, views: &[SubjectStatus<'_>]) -> Option<String> {
        let refusal = self.queue.refusal(file).map(str::to_owned);
        let failure = views.iter().find_map(|view| view.trouble);
        let failure = failure.map(|failure| failure.message.clone());
        let has_ended = views.iter().any(|view| view.ended);
        let end = has_ended.then(|| "it has ended, and no successor came yet".to_owned());
        refusal.or(self.secrets.error(file)).or(failure).or(end)
    }
}

/// A moment by both clocks.
#[derive(Clone, Copy)]
struct Times {
    now: Moment,
    wall: SystemTime,
}

impl Times {
    /// A moment in seconds since 1970, as far as the clocks agree.
    fn at(self, moment: Moment) -> u64 {
        let wall = self
            .wall
            .checked_add(moment.since(self.now))
            .and_then(|wall| wall.checked_sub(self.now.since(moment)));
        wall.map_or(u64::MAX, seconds)
    }
}

/// A trouble with this cause, which began at `since` or begins now.
fn trouble(cause: Option<String>, since: Option<u64>, times: Times) -> Option<Trouble> {
    Some(Trouble {
        cause: cause?.into(),
        since: since.unwrap_or(seconds(times.wall)),
    })
}

/// Whether two reports are the same but for dates. A report without files is compared without files.
fn is_same(a: &Report, b: &Report) -> bool {
    let cause = |a: &Option<Trouble>, b: &Option<Trouble>| {
        let a = a.as_ref().map(|it| &it.cause);
        let b = b.as_ref().map(|it| &it.cause);
        a == b
    };
    let same = |(a, b): (&FileReport, &FileReport)| {
        (a.condition, a.changes, a.version) == (b.condition, b.changes, b.version)
            && cause(&a.trouble, &b.trouble)
    };
    a.roles == b.roles
        && cause(&a.served.swap, &b.served.swap)
        && cause(&a.session.trouble, &b.session.trouble)
        && a.files.iter().zip(&b.files).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::RealClock;
    use crate::exit::Exit;
    use crate::names::RestartHistory;
    use crate::render::tests::plan;
    use crate::status::{Counts, WallsReport};

    #[test]
    fn it_is_looked_at_twice_a_second_at_most_and_written_every_five() {
        let served = Served {
            how: "tmpfs".into(),
            fallback: None,
            swap: None,
        };
        let mut reporter = Reporter::new(
            Settings {
                served,
                past: RestartHistory::default(),
                walls: WallsReport::default(),
            },
            &plan(Vec::new(), Vec::new()),
            &RealClock,
        );
        let at = |millis: u64| Moment::at(Duration::from_millis(millis));
        reporter.written = at(0);
        assert_eq!(reporter.wake(), None);
        // (when, whether something happened before it, whether that was the first publication,
        // whether it is time)
        let table = [
            (0, false, false, true),
            (1, true, false, false),
            (499, true, false, false),
            (500, false, false, true),
            (501, true, true, true),
            (502, true, false, false),
            (1_001, true, false, true),
            (4_999, false, false, false),
            (5_000, false, false, true),
            (5_400, false, false, false),
        ];
        for (millis, touched, is_first, due) in table {
            if touched {
                reporter.touch();
            }
            if is_first {
                reporter.check_now();
            }
            assert_eq!(reporter.check(at(millis)), due, "at {millis} ms");
            assert!(
                reporter.wake() > Some(at(millis)) || !due,
                "a hot loop at {millis} ms"
            );
        }
    }

    #[test]
    fn a_report_that_does_not_fit_is_written_without_causes_or_only_counts() {
        let trouble = |cause: &str| Trouble {
            cause: cause.into(),
            since: 7,
        };
        let file = |name: &str, condition, trouble| FileReport {
            name: name.into(),
            condition,
            changes: 1,
            version: None,
            changed: None,
            lease_ends: None,
            next: None,
            strict: false,
            trouble,
        };
        let ended = trouble("rendering f1: the field `a` is null");
        let report = Report {
            format: FORMAT,
            version: "0".into(),
            since: 1,
            written: 2,
            due_monotonic_ms: 3,
            detail: Detail::Full,
            served: Served {
                how: "fuse".into(),
                fallback: None,
                swap: None,
            },
            walls: WallsReport::default(),
            roles: Roles::default(),
            session: Session::default(),
            files: vec![
                file("f0", Condition::Fresh, None),
                file("f1", Condition::Ended, Some(ended)),
            ],
        };
        let len = |report: &Report| json(report).len();
        let write_within = |room: usize| {
            let mut written = None;
            let write = |report: &Report| {
                if len(report) > room {
                    return Err(Refused::new(Exit::Memory, "no room"));
                }
                written = Some(report.clone());
                Ok(())
            };
            let (fit, error) = write_reduced(&report, write);
            assert_eq!(error.is_some(), fit != Fit::Whole);
            (fit, written)
        };
        let whole = len(&report);
        assert_eq!(write_within(whole), (Fit::Whole, Some(report.clone())));
        let (fit, written) = write_within(whole - 10);
        let less = written.expect("a report");
        assert_eq!((fit, &less.detail), (Fit::NoCauses, &Detail::NoCauses));
        assert_eq!(less.files[1].trouble, Some(trouble("")));
        let (fit, written) = write_within(len(&less) - 10);
        let counted = written.expect("a report");
        let (fresh, ended) = (1, 1);
        let counts = Counts {
            fresh,
            ended,
            ..Counts::default()
        };
        assert_eq!((fit, counted.detail), (Fit::Counts, Detail::Counts(counts)));
        assert!(counted.files.is_empty());
        assert_eq!(write_within(10), (Fit::Nothing, None));
    }

    #[test]
    fn many_files_are_looked_at_every_five_seconds_at_most() {
        let calm = [0, 1_000, 10_000, u32::MAX].map(|files| calm(files).as_millis());
        assert_eq!(calm, [500, 950, 5_000, 5_000]);
    }

    #[test]
    fn moments_become_seconds_by_their_distance_to_now() {
        let at = |seconds: u64| Moment::at(Duration::from_secs(seconds));
        let times = Times {
            now: at(100),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
        };
        assert_eq!(
            [90, 100, 110].map(|second| times.at(at(second))),
            [990, 1_000, 1_010]
        );
    }
}
