//! The role that talks to the server: one event loop that obeys `lease::Scheduler`, renders the
//! replies and publishes the files in a backend. Invariants: no partial change is published; values
//! stay in this process and the backend; no token outlives the role.

mod backend;
mod checkpoint;
mod chunks;
mod notify;
mod private;
mod publish;
mod queries;
mod replies;
mod report;
mod requests;
mod secrets;
#[cfg(test)]
mod tests;

pub use backend::WriteRoot;
pub use private::private_files;

use crate::bao::Client;
use crate::clock::{Clock, Jitter, Moment, RealClock};
use crate::config::plan::{Plan, Query};
use crate::exit::Exit;
use crate::lease::source::{Failure, Reply, Source};
use crate::lease::{Effect, ReadValue, ScheduleInput, Scheduler, Subject, Timing, TokenId};
use crate::link::{End, FromRole, Received, ToRole};
use crate::names::{QueryId, RestartHistory, Role};
use crate::observe::{Event, Incident, report_dropped};
use crate::snapshot::{Arena, Publisher};
use crate::status::{Served, WallsReport};
use crate::sys::watch;
use backend::{Announced, Backend};
use checkpoint::CheckpointFiles;
use notify::Notifier;
use private::PrivateFiles;
use publish::Queue;
use report::Reporter;
use requests::{Outcome, Requests, say_revoked};
use secrets::{Rendered, Secrets};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{LocalSet, yield_now};

/// The time between two checks of the credential files after a refused login.
const LOOK: Duration = Duration::from_millis(500);

/// The time that all revocations at the end may take together.
const LEAVE: Duration = Duration::from_secs(2);

/// The work of a forked `fetch`.
#[derive(Debug)]
pub struct FetchJob<'a, S = Client> {
    plan: &'a Plan,
    arena: &'a Arc<Arena>,
    source: S,
    root: WriteRoot,
    link: End,
    settings: Settings,
}

/// The facts about the agent that the report names.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How files are served.
    pub served: Served,
    /// The deaths of predecessors.
    pub past: RestartHistory,
    /// The restrictions of the roles.
    pub walls: WallsReport,
}

impl<'a> FetchJob<'a> {
    /// Prepares the work in a process that supervise has not confined yet: reads the files of TLS
    /// and makes the parts of `arena` that only `serve` writes read-only. Uses no network and starts
    /// no thread. `Ready`, `Changed` and `Alive` are sent on `link`; the caller sends `Failed`.
    ///
    /// # Errors
    /// The exit code, after the cause was logged: the files of TLS cannot be used, or the arena
    /// cannot be protected.
    pub fn prepare(
        plan: &'a Plan,
        arena: &'a Arc<Arena>,
        root: WriteRoot,
        link: End,
        settings: Settings,
    ) -> Result<Self, Exit> {
        let source = Client::new(&plan.server, &plan.auth)
            .map_err(|error| failed(&error.to_string(), Exit::Config))?;
        if let Err(error) = arena.protect_for(Role::Fetch) {
            let why = format!("the arena cannot be protected: {error}");
            return Err(failed(&why, Exit::Memory));
        }
        Ok(Self {
            plan,
            arena,
            source,
            root,
            link,
            settings,
        })
    }

    /// The directory that the confinement must leave writable.
    pub fn root(&self) -> &WriteRoot {
        &self.root
    }
}

/// Runs a job in a process that supervise has confined, until supervise sends a stop or dies.
///
/// The result is `Exit::Ok` after a stop, else the reason why the first secrets are not served.
pub fn run(job: FetchJob<'_>) -> Exit {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return failed("the event loop cannot be built", Exit::Software);
    };
    let exit = LocalSet::new().block_on(&runtime, work(job, &RealClock));
    // A thread that resolves a name may hang in the system's library, so no thread is waited for.
    runtime.shutdown_background();
    exit
}

/// Does a job; must run in a `LocalSet`.
async fn work<S: Source + 'static>(job: FetchJob<'_, S>, clock: &dyn Clock) -> Exit {
    let FetchJob {
        plan,
        arena,
        source,
        root,
        link,
        settings,
    } = job;
    let Ok(watch) = watch::readable(link.as_fd()) else {
        return failed("the link to supervise cannot be watched", Exit::Software);
    };
    let publisher = Publisher::new(Arc::clone(arena));
    let (sender, announced) = unbounded_channel();
    let backend = match Backend::open(root, arena, plan, sender, clock.now()) {
        Ok(backend) => backend,
        Err(refused) => return failed(&refused.message, refused.exit),
    };
    let timing = Timing::new(plan.server.retry_max);
    let private = PrivateFiles::open(arena, plan);
    let mut fetch = Fetch {
        control: Control { link: &link, watch },
        announced,
        clock,
        plan,
        arena,
        machine: Scheduler::new(timing, Jitter::new(), clock.now()),
        secrets: Secrets::new(plan, &private),
        requests: Requests::new(source),
        queue: Queue::new(backend, plan, timing.slow),
        notifier: Notifier::new(&link, plan),
        publisher,
        reporter: Reporter::new(settings, plan, clock),
        checkpoint: CheckpointFiles::open(private),
        look_at: None,
        settle: false,
    };
    fetch.resume(timing);
    for query in &plan.queries {
        fetch.add_query(query);
    }
    let exit = fetch.run().await;
    fetch.queue.backend.close();
    fetch.requests.leave(LEAVE).await;
    exit
}

/// Logs why `fetch` ends.
fn failed(why: &str, exit: Exit) -> Exit {
    let role = Role::Fetch;
    Incident::RoleFailed { role }.emit(&why);
    exit
}

/// An event that ends the wait of the loop.
enum Wakeup {
    Told(ToRole),
    Answered(Outcome),
    Announced(Announced),
    /// The earliest timer ended.
    Time,
}

/// The loop and the parts that it connects.
struct Fetch<'a, S: Source> {
    control: Control<'a>,
    announced: UnboundedReceiver<Announced>,
    clock: &'a dyn Clock,
    plan: &'a Plan,
    arena: &'a Arena,
    machine: Scheduler,
    secrets: Secrets<'a>,
    requests: Requests<S>,
    queue: Queue,
    notifier: Notifier<'a>,
    /// The arena's one writer.
    publisher: Publisher,
    reporter: Reporter,
    checkpoint: CheckpointFiles,
    /// The next check of the credential files, while a refused login waits for others.
    look_at: Option<Moment>,
    /// Whether a login succeeded since the whole checkpoint was saved.
    settle: bool,
}

impl<S: Source + 'static> Fetch<'_, S> {
    async fn run(&mut self) -> Exit {
        self.step(ScheduleInput::Tick);
        self.commit().await;
        // The login is on the way while the first report is written.
        yield_now().await;
        loop {
            // The report comes first: supervise starts programs that read it.
            self.report();
            self.notifier.send(self.clock.now());
            report_dropped();
            let wakeup = self.wait().await;
            match self.handle(wakeup) {
                Ok(false) => {}
                Ok(true) => {
                    self.reporter.touch();
                    self.commit().await;
                }
                Err(exit) => return exit,
            }
        }
    }

    /// Returns whether the state may have changed.
    ///
    /// # Errors
    /// The exit code of a role that ends.
    fn handle(&mut self, wakeup: Wakeup) -> Result<bool, Exit> {
        match wakeup {
            Wakeup::Told(ToRole::Stop) => return Err(Exit::Ok),
            Wakeup::Told(ToRole::GiveUp) => return Err(self.give_up()),
            Wakeup::Told(ToRole::Ping) => {
                // Supervise asks again if the link is full.
                let _ = self.control.link.send(&FromRole::Alive);
                return Ok(false);
            }
            Wakeup::Told(ToRole::Refresh) => self.step(ScheduleInput::Refresh),
            Wakeup::Told(ToRole::Swap(found)) => self.reporter.swap = found,
            Wakeup::Answered(outcome) => self.answered(outcome)?,
            Wakeup::Announced(Ok(generation)) => self.notifier.announced(generation),
            Wakeup::Announced(Err(why)) => {
                let now = self.clock.now();
                self.queue.announcement_failed(&why, now);
            }
            Wakeup::Time => return Ok(self.turn()),
        }
        Ok(true)
    }

    /// Saves the checkpoint, then sends the requests that the checkpoint mentions. No other function
    /// sends. Other tasks run at both awaits, so chance cannot keep the order.
    async fn commit(&mut self) {
        yield_now().await;
        let saved = self.save();
        yield_now().await;
        self.requests.send(saved);
    }

    async fn wait(&mut self) -> Wakeup {
        let now = self.clock.now();
        if !self.machine.awaits_credentials() {
            self.look_at = None;
        } else if self.look_at.is_none() {
            self.look_at = Some(now.plus(LOOK));
        }
        let timers = [
            self.machine.wake(),
            self.queue.wake(),
            self.notifier.wake(),
            self.reporter.wake(),
            self.look_at,
        ];
        let sleep = async {
            match timers.into_iter().flatten().min() {
                Some(until) => {
                    let rest = until.since(now);
                    tokio::time::sleep(rest).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = self.control.receive() => Wakeup::Told(told),
            outcome = self.requests.next() => Wakeup::Answered(outcome),
            Some(announced) = self.announced.recv() => Wakeup::Announced(announced),
            () = sleep => Wakeup::Time,
        }
    }

    /// Does the work whose time has come; returns whether the state may have changed.
    fn turn(&mut self) -> bool {
        let now = self.clock.now();
        let is_due = |at| matches!(at, Some(at) if at <= now);
        let mut changed = false;
        if is_due(self.look_at) {
            self.look_at = None;
            changed = self.requests.source.credentials_changed();
            if changed {
                self.step(ScheduleInput::CredentialsChanged);
            }
        }
        if is_due(self.machine.wake()) || is_due(self.queue.wake()) {
            self.step(ScheduleInput::Tick);
            let publication = self.queue.turn(&mut self.publisher, self.clock);
            self.notifier.published(publication);
            changed = true;
        }
        changed
    }

    fn answered(&mut self, answer: Outcome) -> Result<(), Exit> {
        match answer {
            Outcome::Read(query, token, result) => return self.read(query, token, result),
            Outcome::Input(ScheduleInput::LoggedIn(Ok(grant))) => {
                Event::LoggedIn { ttl: grant.ttl }.emit();
                self.settle = true;
                self.step(ScheduleInput::LoggedIn(Ok(grant)));
                let token = self.requests.exposed().unwrap_or_default();
                let rendered = self.secrets.renew_token(&mut self.publisher, token);
                return self.rendered(rendered);
            }
            Outcome::Input(input) => self.step(input),
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
                let lease = reply.lease();
                let exposed = self.requests.exposed();
                let rendered = self
                    .secrets
                    .accept(&mut self.publisher, query, reply, exposed);
                let usable = !matches!(rendered, Rendered::Unusable(_));
                let value = ReadValue { lease, usable };
                self.step(ScheduleInput::Read(query, token, Ok(value)));
                self.rendered(rendered)
            }
            Err(failure) => {
                self.secrets.failed(query, &failure);
                self.step(ScheduleInput::Read(query, token, Err(failure)));
                Ok(())
            }
        }
    }

    fn rendered(&mut self, rendered: Rendered) -> Result<(), Exit> {
        match rendered {
            Rendered::First(changes) => {
                let published = self
                    .queue
                    .publish(&mut self.publisher, changes, self.clock)
                    .map_err(|refused| refused.exit)?;
                let files = published.files.len();
                Event::Ready { files }.emit();
                self.notifier.ready();
                self.reporter.check_now();
            }
            Rendered::Changes(changes) => {
                let published = self.queue.offer(&mut self.publisher, changes, self.clock);
                self.notifier.published(published);
            }
            Rendered::Nothing => {}
            Rendered::Unusable(errors) => {
                for error in errors {
                    let file = &error.name;
                    if self.secrets.is_complete() {
                        Incident::SecretStale { file }
                    } else {
                        Incident::ValueUnusable
                    }
                    .emit(&error.in_log());
                }
            }
        }
        Ok(())
    }

    /// The id of a known query with the same read; else adds the query, due at the next step.
    fn add_query(&mut self, query: &Query) -> QueryId {
        if let Some(known) = self.secrets.table.find(&query.read) {
            return known;
        }
        let id = self.machine.add(query, self.clock.now());
        self.secrets.add(query.read.clone());
        id
    }

    fn step(&mut self, input: ScheduleInput) {
        let effects = self.machine.step(input, self.clock.now());
        for effect in effects {
            match effect {
                Effect::Ask(request) => {
                    let queries = &self.secrets.table;
                    self.requests.prepare(request, queries);
                }
                Effect::Forget(token) => self.requests.forget(token),
                Effect::Failed(Subject::Query(query), failure, _) if self.secrets.is_complete() => {
                    self.stale(query, &failure.message);
                }
                Effect::Failed(_, failure, after) => {
                    Incident::Retrying { after }.emit(&failure.message);
                }
                Effect::Refused(failure) => Incident::LoginRefused.emit(&failure.message),
                Effect::Ended(query) => {
                    self.stale(query, "its lease has ended, and no successor came yet");
                }
            }
        }
    }

    fn stale(&self, query: QueryId, why: &str) {
        for file in self.secrets.names(query) {
            Incident::SecretStale { file }.emit(&why);
        }
    }

    /// The reason why there is no token.
    fn no_login(&self) -> Option<&Failure> {
        let session = self.machine.view(Subject::Session, self.clock.now());
        session.trouble.filter(|_| session.ended)
    }

    fn give_up(&self) -> Exit {
        let (missing, exit) = self.secrets.missing(self.no_login());
        for (file, why) in missing {
            Incident::SecretMissing { file }.emit(&why);
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
    /// The next message; the death of supervise counts as a stop.
    async fn receive(&self) -> ToRole {
        loop {
            let Ok(mut ready) = self.watch.readable().await else {
                return ToRole::Stop;
            };
            match self.link.receive() {
                Received::Empty => ready.clear_ready(),
                Received::Message(message) => return message,
                Received::Closed => return ToRole::Stop,
            }
        }
    }
}
