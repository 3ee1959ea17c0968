//! The role that talks to the server: one event loop that obeys `lease::Scheduler`, renders what was
//! read and hands it to an outlet. Invariants: nothing partial is published; values stay here and
//! in the outlet; it leaves no token behind.

mod checkpoint;
mod outlet;
mod press;
mod report;
mod requests;
mod secrets;
#[cfg(test)]
mod tests;
mod tracked;

pub use checkpoint::PARTS as CHECKPOINT;
pub use outlet::{ArenaOutlet, TmpfsOutlet};
pub use press::{Announced, Outlet, OutletError};

use crate::clock::{Clock, Jitter, Moment};
use crate::config::plan::Plan;
use crate::exit::Exit;
use crate::lease::source::{Failure, Reply, Source};
use crate::lease::{Effect, ScheduleInput, Scheduler, Subject, Timing, TokenId};
use crate::link::{End, FromRole, Received, ToRole};
use crate::names::{Generation, QueryId, RestartHistory};
use crate::observe::{Event, report_dropped};
use crate::snapshot::{Arena, Publisher};
use crate::status::{Served, WallsReport};
use crate::sys::watch;
use checkpoint::CheckpointFiles;
use press::{Announcements, Press};
use report::Reporter;
use requests::{Outcome, Requests, say_revoked};
use secrets::{Rendered, Secrets};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;

/// How often the credential files are looked at after a refused login.
const LOOK: Duration = Duration::from_millis(500);

/// How fast, how patiently, and what is reported of the rest of the agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The schedule's timing.
    pub timing: Timing,
    /// How long the revocations at the end may take in all.
    pub leave: Duration,
    /// How files are served.
    pub served: Served,
    /// What became of predecessors.
    pub past: RestartHistory,
    /// What stands between the roles and the kernel.
    pub walls: WallsReport,
}

impl Settings {
    /// What a plan asks for, two seconds to leave, and no walls.
    pub fn new(plan: &Plan, served: Served, past: RestartHistory) -> Self {
        Self {
            timing: Timing::new(plan.server.retry_max),
            leave: Duration::from_secs(2),
            served,
            past,
            walls: WallsReport::default(),
        }
    }
}

/// Runs until supervise says so or is gone. `open` makes the outlet, whose announcements come
/// through what it is given. `Ready` and `Changed` are sent on `link`; sending `Failed` is left to
/// the caller.
///
/// The result is `Ok` after a stop, else why the first secrets could not be served.
pub fn run<S, O, F>(
    plan: &Plan,
    source: S,
    arena: &Arc<Arena>,
    open: F,
    link: &End,
    clock: &impl Clock,
    settings: &Settings,
) -> Exit
where
    S: Source + 'static,
    O: Outlet,
    F: FnOnce(Announced) -> Result<O, OutletError>,
{
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        Event::Broken {
            what: "the event loop of fetch cannot be built",
        }
        .emit();
        return Exit::Software;
    };
    let exit = LocalSet::new().block_on(&runtime, async {
        let Ok(watch) = watch::readable(link.as_fd()) else {
            Event::Broken {
                what: "the link to supervise cannot be watched",
            }
            .emit();
            return Exit::Software;
        };
        let publisher = Publisher::new(Arc::clone(arena));
        let (press, announcements) = match Press::open(open, link, plan, settings.timing) {
            Ok(press) => press,
            Err(error) => {
                Event::Broken { what: &error.what }.emit();
                return error.exit;
            }
        };
        let machine = Scheduler::new(&plan.queries, settings.timing, Jitter::new(), clock.now());
        let (secrets, requests) = (Secrets::new(plan), Requests::new(source, &plan.queries));
        let reporter = Reporter::new(settings, plan.files.len(), clock);
        let checkpoint = CheckpointFiles::open(arena);
        let mut fetch = Fetch {
            clock,
            plan,
            arena,
            machine,
            secrets,
            requests,
            press,
            publisher,
            reporter,
            checkpoint,
            looked: None,
            settle: false,
        };
        fetch.resume(settings);
        let exit = fetch.run(&Control { link, watch }, announcements).await;
        fetch.press.close();
        fetch.requests.leave(settings.leave).await;
        exit
    });
    // A thread that resolves a name may hang in the system's library: it is not waited for.
    runtime.shutdown_background();
    exit
}

/// An event that ends the wait of the loop.
enum Wakeup {
    Told(Received<ToRole>),
    Answered(Outcome),
    Announced(Result<Generation, String>),
    Due,
    /// The time to compare the credential files with those of the last login.
    Look,
    Report,
}

struct Fetch<'a, S: Source, O, C> {
    clock: &'a C,
    plan: &'a Plan,
    arena: &'a Arena,
    machine: Scheduler,
    secrets: Secrets<'a>,
    requests: Requests<S>,
    press: Press<'a, O>,
    /// The arena's one writer.
    publisher: Publisher,
    reporter: Reporter,
    checkpoint: CheckpointFiles,
    /// When it was last looked whether the credential files changed; `None` while the login does
    /// not wait for that.
    looked: Option<Moment>,
    /// Whether a login succeeded since the whole checkpoint was saved.
    settle: bool,
}

impl<S: Source + 'static, O: Outlet, C: Clock> Fetch<'_, S, O, C> {
    async fn run(&mut self, control: &Control<'_>, mut announcements: Announcements) -> Exit {
        self.step(ScheduleInput::Tick);
        self.commit().await;
        // The login is on its way while the first report is written.
        tokio::task::yield_now().await;
        self.report();
        self.press.tell(self.clock);
        loop {
            let wakeup = self.wait(control, &mut announcements).await;
            let news = match wakeup {
                Wakeup::Report | Wakeup::Told(Received::Message(ToRole::Ping)) => false,
                Wakeup::Look => self.look(),
                Wakeup::Told(_) | Wakeup::Answered(_) | Wakeup::Announced(_) | Wakeup::Due => true,
            };
            if news {
                self.reporter.touch();
            }
            let done = match wakeup {
                Wakeup::Told(Received::Message(ToRole::GiveUp)) => return self.give_up(),
                Wakeup::Told(Received::Message(ToRole::Stop) | Received::Closed) => {
                    return Exit::Ok;
                }
                Wakeup::Told(Received::Message(ToRole::Refresh)) => {
                    self.step(ScheduleInput::Refresh);
                    Ok(())
                }
                Wakeup::Told(Received::Message(ToRole::Ping)) => {
                    // A full link takes no answer; supervise asks again.
                    let _ = control.link.send(&FromRole::Alive);
                    Ok(())
                }
                Wakeup::Told(Received::Message(ToRole::Swap(found))) => {
                    self.reporter.swap(found);
                    Ok(())
                }
                Wakeup::Told(Received::Empty) | Wakeup::Report | Wakeup::Look => Ok(()),
                Wakeup::Answered(answer) => self.answered(answer),
                Wakeup::Announced(announced) => {
                    self.press.announced(announced, self.clock);
                    Ok(())
                }
                Wakeup::Due => {
                    self.step(ScheduleInput::Tick);
                    self.press.turn(&mut self.publisher, self.clock);
                    Ok(())
                }
            };
            if let Err(exit) = done {
                return exit;
            }
            if news {
                self.commit().await;
            }
            // Before supervise is told: what it starts finds the report.
            self.report();
            self.press.tell(self.clock);
            report_dropped();
        }
    }

    /// Saves the checkpoint, then sends the requests that it mentions: the only place that sends.
    /// The tests await before and between, so that no order by chance passes them.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_async, reason = "only the tests await")
    )]
    async fn commit(&mut self) {
        #[cfg(test)]
        tokio::task::yield_now().await;
        let saved = self.save();
        #[cfg(test)]
        tokio::task::yield_now().await;
        self.requests.send(saved);
    }

    async fn wait(&mut self, control: &Control<'_>, announcements: &mut Announcements) -> Wakeup {
        let wake = self
            .machine
            .wake()
            .into_iter()
            .chain(self.press.wake())
            .min();
        let look = self.next_look();
        let (due, report, look) = (
            self.sleep(wake),
            self.sleep(self.reporter.wake()),
            self.sleep(look),
        );
        tokio::select! {
            told = control.receive() => Wakeup::Told(told),
            answer = self.requests.next() => Wakeup::Answered(answer),
            Some(announced) = announcements.recv() => Wakeup::Announced(announced),
            () = due => Wakeup::Due,
            () = look => Wakeup::Look,
            () = report => Wakeup::Report,
        }
    }

    /// When to look at the credential files next, while a refused login waits for others.
    fn next_look(&mut self) -> Option<Moment> {
        let now = self.clock.now();
        self.looked = self
            .machine
            .awaits_credentials()
            .then(|| self.looked.unwrap_or(now));
        self.looked.map(|looked| looked.plus(LOOK))
    }

    /// Whether the credential files changed; then the login is sent.
    fn look(&mut self) -> bool {
        self.looked = Some(self.clock.now());
        let changed = self.requests.source().credentials_changed();
        if changed {
            self.step(ScheduleInput::CredentialsChanged);
        }
        changed
    }

    /// Until then; for ever, if it is never.
    fn sleep(&self, until: Option<Moment>) -> impl Future<Output = ()> + use<S, O, C> {
        let sleep = until.map(|until| tokio::time::sleep(until.since(self.clock.now())));
        async {
            match sleep {
                Some(sleep) => sleep.await,
                None => std::future::pending().await,
            }
        }
    }

    fn answered(&mut self, answer: Outcome) -> Result<(), Exit> {
        match answer {
            Outcome::Read(query, token, result) => return self.read(query, token, result),
            Outcome::ScheduleInput(ScheduleInput::LoggedIn(Ok(grant))) => {
                Event::LoggedIn { ttl: grant.ttl }.emit();
                self.settle = true;
                self.step(ScheduleInput::LoggedIn(Ok(grant)));
                let token = self.requests.exposed().unwrap_or_default();
                let rendered = self.secrets.renew_token(token);
                return self.rendered(rendered, None);
            }
            Outcome::ScheduleInput(input) => self.step(input),
            Outcome::Revoked(result) => say_revoked(&result),
        }
        Ok(())
    }

    fn read(
        &mut self,
        query: QueryId,
        token: TokenId,
        result: Result<Reply, Failure>,
    ) -> Result<(), Exit> {
        match result {
            Ok(reply) => {
                self.step(ScheduleInput::Read(query, token, Ok(reply.lease.clone())));
                let rendered = self.secrets.accept(query, reply, self.requests.exposed());
                self.rendered(rendered, Some(query))
            }
            Err(failure) => {
                self.secrets.failed(query, &failure);
                self.step(ScheduleInput::Read(query, token, Err(failure)));
                Ok(())
            }
        }
    }

    fn rendered(&mut self, rendered: Rendered, query: Option<QueryId>) -> Result<(), Exit> {
        match rendered {
            Rendered::Changes(changes) => {
                self.press.publish(&mut self.publisher, changes, self.clock)
            }
            Rendered::Nothing => Ok(()),
            Rendered::Unusable(errors) => {
                for error in errors {
                    let (file, why) = (&error.name, &*error.in_log());
                    if self.secrets.complete() {
                        Event::Stale { file, why }
                    } else {
                        Event::Unusable { why }
                    }
                    .emit();
                }
                if let Some(query) = query {
                    self.step(ScheduleInput::Unusable(query));
                }
                Ok(())
            }
        }
    }

    fn step(&mut self, input: ScheduleInput) {
        for output in self.machine.step(input, self.clock.now()) {
            match output {
                Effect::Ask(request) => self.requests.prepare(request),
                Effect::Forget(token) => self.requests.forget(token),
                Effect::Failed(Subject::Query(query), failure, _) if self.secrets.complete() => {
                    self.stale(query, &failure.message);
                }
                Effect::Failed(_, failure, after) => Event::Retrying {
                    failure: &failure.message,
                    after,
                }
                .emit(),
                Effect::Refused(failure) => Event::Refused {
                    failure: &failure.message,
                }
                .emit(),
                Effect::Ended(query) => {
                    self.stale(query, "its lease has ended, and no successor came yet");
                }
            }
        }
    }

    fn stale(&self, query: QueryId, why: &str) {
        for file in self.secrets.names(query) {
            Event::Stale { file, why }.emit();
        }
    }

    /// Why there is no token.
    fn no_login(&self) -> Option<&Failure> {
        let session = self.machine.view(Subject::Session, self.clock.now());
        session.trouble.filter(|_| session.ended)
    }

    fn give_up(&self) -> Exit {
        let (missing, exit) = self.secrets.missing(self.no_login());
        for (file, why) in missing {
            Event::Missing { file, why: &why }.emit();
        }
        exit
    }
}

/// The link to supervise, as the loop receives from it.
struct Control<'a> {
    link: &'a End,
    watch: AsyncFd<BorrowedFd<'a>>,
}

impl Control<'_> {
    async fn receive(&self) -> Received<ToRole> {
        loop {
            let Ok(mut ready) = self.watch.readable().await else {
                return Received::Closed;
            };
            match self.link.receive() {
                Received::Empty => ready.clear_ready(),
                told @ (Received::Message(_) | Received::Closed) => return told,
            }
        }
    }
}
