//! The report on all this (`..baofs/status.json`), put together from what the parts of `fetch`
//! know. It is written at the start, when its substance changed, and as a sign of life. Invariants:
//! no value, token or lease's name is in it, and no name of a secret's field but those that the
//! configuration has; where it does not fit, a smaller one is written.

use super::press::{Outlet, OutletError};
use super::tracked::Tracked;
use super::{Fetch, Settings};
use crate::clock::{Clock, Moment};
use crate::config::plan::{Content, File, Stale};
use crate::lease::source::Source;
use crate::lease::{Subject, SubjectStatus};
use crate::names::{FileId, RestartHistory, SwapExposure};
use crate::observe::Incident;
use crate::render;
use crate::status::{
    Condition, Detail, FORMAT, FileReport, Report, Roles, Served, Session, Trouble, WallsReport,
    seconds,
};
use nix::unistd::{getpid, getppid};
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// The longest time between two reports.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The shortest time between two looks at whether there is news, of few files; what is served first
/// is news at once.
const CALM: Duration = Duration::from_millis(500);
/// How much longer that time is for each file, up to the heartbeat: a look takes about 2 us a file.
const CALM_PER_FILE: Duration = Duration::from_micros(450);

/// When the report is due, and what was in the last one.
pub(super) struct Reporter {
    served: Served,
    /// Why files could reach a swap, as supervise said last.
    swap: Option<SwapExposure>,
    walls: WallsReport,
    past: RestartHistory,
    /// When this `fetch` began.
    born: Moment,
    /// When the first `fetch` began, in seconds since 1970.
    since: u64,
    last: Tracked<Option<Report>>,
    /// When the last one was written, and when it was last looked whether there is news.
    written: Moment,
    looked: Option<Moment>,
    /// The shortest time between two looks.
    calm: Duration,
    /// The serialised files of the last report, while they cannot have changed: nothing happened
    /// since, and no file is in trouble, which alone becomes worse with time.
    files: Option<Vec<u8>>,
    /// Whether something happened since then.
    touched: bool,
    /// Whether the first publication was seen.
    ready: bool,
    /// How much of the last one was written.
    fit: Fit,
}

impl Reporter {
    pub(super) fn new(settings: &Settings, files: usize, clock: &impl Clock) -> Self {
        let (served, walls, past) = (
            settings.served.clone(),
            settings.walls.clone(),
            settings.past,
        );
        let since = seconds(clock.wall());
        let born = clock.now();
        let more = CALM_PER_FILE.saturating_mul(u32::try_from(files).unwrap_or(u32::MAX));
        Self {
            served,
            swap: None,
            walls,
            past,
            born,
            since,
            last: Tracked::new(None),
            written: born,
            looked: None,
            calm: CALM.saturating_add(more).min(HEARTBEAT),
            files: None,
            touched: false,
            ready: false,
            fit: Fit::Whole,
        }
    }

    /// The last report, which a successor goes on from: a part of the checkpoint that is written
    /// only when it changed.
    pub(super) fn last(&mut self) -> &mut Tracked<Option<Report>> {
        &mut self.last
    }

    /// Goes on from a predecessor's last report, if it wrote one: what began before its death began
    /// then.
    pub(super) fn resume(&mut self, last: Option<Report>) {
        self.since = last.as_ref().map_or(self.since, |last| last.since);
        self.last = Tracked::new(last);
    }

    /// Supervise says why files could reach a swap, or that they cannot any more.
    pub(super) fn swap(&mut self, found: Option<SwapExposure>) {
        self.swap = found;
    }

    /// Something happened that may be news.
    pub(super) fn touch(&mut self) {
        self.touched = true;
        self.files = None;
    }

    /// When to look next; `None` before the first time.
    pub(super) fn wake(&self) -> Option<Moment> {
        let calm = self.looked?.plus(self.calm);
        Some(if self.touched {
            calm
        } else {
            calm.max(self.written.plus(HEARTBEAT))
        })
    }

    /// Whether it is time to look.
    fn look(&mut self, now: Moment, ready: bool) -> bool {
        let first = ready && !std::mem::replace(&mut self.ready, ready);
        let due = first || self.wake().is_none_or(|wake| wake <= now);
        if due {
            (self.looked, self.touched) = (Some(now), false);
        }
        due
    }

    fn is_due(&self, report: &Report, now: Moment) -> bool {
        self.is_news(report) || now.since(self.written) >= HEARTBEAT
    }

    fn is_news(&self, report: &Report) -> bool {
        self.last.as_ref().is_none_or(|last| !is_same(last, report))
    }

    /// Takes note of what was written of `report`, and says once when it is less than before.
    /// `error` is why.
    fn written(&mut self, report: Report, fit: Fit, error: Option<OutletError>, now: Moment) {
        let (less, why) = (
            fit > self.fit,
            error.map(|error| error.what).unwrap_or_default(),
        );
        self.fit = fit;
        if less {
            match fit {
                Fit::Whole => {}
                Fit::NoCauses => Incident::ReportWithoutCauses.emit(&why),
                Fit::Counts => Incident::ReportOfCounts.emit(&why),
                Fit::Nothing => Incident::ReportNotWritten.emit(&why),
            }
        }
        if fit == Fit::Nothing {
            self.touched = true;
        } else {
            // A sign of life that says nothing new leaves the checkpoint as it is.
            if self.is_news(&report) {
                *self.last = Some(report);
            }
            self.written = now;
        }
    }
}

/// How much of a report was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Whole,
    NoCauses,
    Counts,
    Nothing,
}

impl<S: Source + 'static, O: Outlet, C: Clock> Fetch<'_, S, O, C> {
    /// Writes the report when it is time.
    pub(super) fn report(&mut self) {
        let now = self.clock.now();
        if !self.reporter.look(now, self.press.is_ready()) {
            return;
        }
        let times = Times {
            now,
            wall: self.clock.wall(),
        };
        if self.heartbeat(times) {
            return;
        }
        let report = self.describe(times);
        if self.reporter.is_due(&report, now) {
            let (fit, error) = self.write_report(&report);
            self.reporter.written(report, fit, error, now);
        }
    }

    /// Writes the files of the last report under a new head, if they cannot have changed.
    fn heartbeat(&mut self, times: Times) -> bool {
        let Some(files) = &self.reporter.files else {
            return false;
        };
        let bytes = with_files(&self.head(times), files);
        let written = self.press.report(&mut self.publisher, &bytes, self.clock);
        if written.is_ok() {
            self.reporter.written = times.now;
        }
        written.is_ok()
    }

    /// Writes as much of it as there is room for: how much that is, and why it is not the whole.
    fn write_report(&mut self, report: &Report) -> (Fit, Option<OutletError>) {
        let files = json(&report.files);
        let whole = json(report);
        let mut write = |bytes: &[u8]| self.press.report(&mut self.publisher, bytes, self.clock);
        let Err(error) = write(&whole) else {
            let is_fresh = |file: &FileReport| file.condition == Condition::Fresh;
            if report.session.trouble.is_none() && report.files.iter().all(is_fresh) {
                self.reporter.files = Some(files);
            }
            return (Fit::Whole, None);
        };
        let fit = if write(&json(&report.without_causes())).is_ok() {
            Fit::NoCauses
        } else if write(&json(&report.counted())).is_ok() {
            Fit::Counts
        } else {
            Fit::Nothing
        };
        (fit, Some(error))
    }

    fn describe(&self, times: Times) -> Report {
        let files = (0_u32..).map(FileId).zip(&self.plan.files);
        Report {
            files: files
                .map(|(id, file)| self.describe_file(id, file, times))
                .collect(),
            ..self.head(times)
        }
    }

    /// The report without its files.
    fn head(&self, times: Times) -> Report {
        let session = self.machine.view(Subject::Session, times.now);
        let last = self.reporter.last.as_ref();
        let cause = session.trouble.map(|failure| failure.message.clone());
        let trouble = lasting(
            cause,
            last.and_then(|last| last.session.trouble.as_ref()),
            times,
        );
        let swap = self.reporter.swap.map(|why| why.to_string());
        Report {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            since: self.reporter.since,
            written: seconds(times.wall),
            due_monotonic_ms: u64::try_from(times.now.plus(HEARTBEAT).since_origin().as_millis())
                .unwrap_or(u64::MAX),
            detail: Detail::Full,
            served: Served {
                swap: lasting(swap, last.and_then(|last| last.served.swap.as_ref()), times),
                ..self.reporter.served.clone()
            },
            walls: self.reporter.walls.clone(),
            roles: self.roles(times.now),
            session: Session {
                ends: session.ends.map(|end| times.at(end)),
                lost_logins: self.machine.orphaned_logins(),
                trouble,
            },
            files: Vec::new(),
        }
    }

    fn roles(&self, now: Moment) -> Roles {
        let (serve, past) = (self.arena.last_serve(), self.reporter.past);
        Roles {
            supervise: getppid().as_raw(),
            fetch: getpid().as_raw(),
            serve: serve.map(|serve| serve.pid),
            fetch_deaths: past.deaths,
            fetch_crashes: past.crashes_after(now.since(self.reporter.born)),
            serve_deaths: serve.map_or(0, |serve| serve.past.deaths),
            serve_crashes: serve.map_or(0, |serve| serve.past.crashes_after(now.since(serve.born))),
            recovery: serve.map(|serve| serve.recovery),
            checkpoint: self.checkpoint.state(),
        }
    }

    fn describe_file(&self, id: FileId, file: &File, times: Times) -> FileReport {
        let views = self.views(&file.content, times.now);
        let unread = || {
            self.secrets
                .reason(id, self.no_login(), ToString::to_string)
                .map(|(why, _)| why)
        };
        let cause = if self.press.is_ready() {
            self.cause(id, &views)
        } else {
            unread()
        };
        let past = |view: &SubjectStatus| view.ended || (view.missed && cause.is_some());
        let condition = match &cause {
            _ if !self.press.is_ready() => Condition::Missing,
            _ if views.iter().any(past) => Condition::Ended,
            Some(_) => Condition::Stale,
            None => Condition::Fresh,
        };
        let last = self
            .reporter
            .last
            .as_ref()
            .and_then(|last| last.files.get(id.index()));
        let (changes, latest) = self.press.history(id);
        FileReport {
            name: file.name.as_str().into(),
            condition,
            changes,
            version: self.secrets.version(&file.content),
            changed: latest.map(seconds),
            lease_ends: views
                .iter()
                .filter_map(|view| view.ends)
                .min()
                .map(|end| times.at(end)),
            next: views
                .iter()
                .filter_map(|view| view.next)
                .min()
                .map(|next| times.at(next)),
            strict: file.stale == Stale::Unhealthy,
            trouble: lasting(cause, last.and_then(|last| last.trouble.as_ref()), times),
        }
    }

    /// What is known of all that a file is made of.
    fn views(&self, content: &Content, now: Moment) -> Vec<SubjectStatus<'_>> {
        let session = matches!(content, Content::Token).then_some(Subject::Session);
        let subjects = render::queries(content)
            .into_iter()
            .map(Subject::Query)
            .chain(session);
        subjects
            .map(|subject| self.machine.view(subject, now))
            .collect()
    }

    /// What goes wrong with a file that is served.
    fn cause(&self, file: FileId, views: &[SubjectStatus<'_>]) -> Option<String> {
        let failure = || {
            views
                .iter()
                .find_map(|view| view.trouble)
                .map(|failure| failure.message.clone())
        };
        let ended = || {
            views
                .iter()
                .any(|view| view.ended)
                .then(|| "it has ended, and no successor came yet".to_owned())
        };
        let refused = self.press.refusal(file).map(str::to_owned);
        refused
            .or_else(|| self.secrets.error(file))
            .or_else(failure)
            .or_else(ended)
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a report is plain data, with names as keys")
}

/// A report, of its head and its serialised files.
fn with_files(head: &Report, files: &[u8]) -> Vec<u8> {
    let mut bytes = json(head);
    debug_assert!(bytes.ends_with(b"[]}"), "the files stand last");
    bytes.truncate(bytes.len() - b"[]}".len());
    bytes.extend_from_slice(files);
    bytes.push(b'}');
    bytes
}

/// One moment by both clocks.
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

/// A trouble lasts since it was first reported.
fn lasting(cause: Option<String>, last: Option<&Trouble>, times: Times) -> Option<Trouble> {
    cause.map(|cause| Trouble {
        cause: cause.into(),
        since: last.map_or(seconds(times.wall), |last| last.since),
    })
}

/// Whether two reports differ only in what time alone changes.
fn is_same(a: &Report, b: &Report) -> bool {
    let cause = |a: &Option<Trouble>, b: &Option<Trouble>| {
        a.as_ref().map(|it| &it.cause) == b.as_ref().map(|it| &it.cause)
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
    use crate::render::tests::plan;

    #[test]
    fn it_is_looked_at_twice_a_second_at_most_and_written_every_five() {
        let served = Served {
            how: "tmpfs".into(),
            fallback: None,
            swap: None,
        };
        let mut reporter = Reporter::new(
            &Settings::new(
                &plan(Vec::new(), Vec::new()),
                served,
                RestartHistory::default(),
            ),
            0,
            &RealClock,
        );
        let at = |millis: u64| Moment::at(Duration::from_millis(millis));
        reporter.written = at(0);
        assert_eq!(reporter.wake(), None);
        // (when, whether something happened before it, whether the first publication was made,
        // whether it is time)
        let table = [
            (0, false, false, true),
            (1, true, false, false),
            (499, true, false, false),
            (500, false, false, true),
            (501, true, true, true),
            (502, true, true, false),
            (1_001, true, true, true),
            (4_999, false, true, false),
            (5_000, false, true, true),
            (5_400, false, true, false),
        ];
        for (millis, touched, ready, due) in table {
            if touched {
                reporter.touch();
            }
            assert_eq!(reporter.look(at(millis), ready), due, "at {millis} ms");
            assert!(
                reporter.wake() > Some(at(millis)) || !due,
                "a hot loop at {millis} ms"
            );
        }
    }

    #[test]
    fn a_report_of_serialised_files_is_the_report() {
        let file = FileReport {
            name: "one".into(),
            condition: Condition::Fresh,
            changes: 1,
            version: Some(2),
            changed: None,
            lease_ends: None,
            next: Some(3),
            strict: false,
            trouble: None,
        };
        let head: Report = serde_json::from_value(serde_json::json!({
            "format": FORMAT, "version": "0", "since": 1, "written": 2, "due_monotonic_ms": 3,
            "served": Served { how: "fuse".into(), fallback: None, swap: None },
            "roles": Roles::default(), "session": Session::default(), "files": [],
        }))
        .expect("a report");
        for files in [Vec::new(), vec![file.clone()], vec![file.clone(), file]] {
            let whole = Report {
                files: files.clone(),
                ..head.clone()
            };
            assert_eq!(with_files(&head, &json(&files)), json(&whole));
        }
    }

    #[test]
    fn many_files_are_looked_at_every_five_seconds_at_most() {
        let served = Served {
            how: "tmpfs".into(),
            fallback: None,
            swap: None,
        };
        let settings = Settings::new(
            &plan(Vec::new(), Vec::new()),
            served,
            RestartHistory::default(),
        );
        let calm = [0, 1_000, 10_000, usize::MAX]
            .map(|files| Reporter::new(&settings, files, &RealClock).calm.as_millis());
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
