//! The role that talks to the server: one event loop that obeys `lease::Machine`, renders what was read and hands it to an
//! outlet. Invariants: nothing partial is published; values stay here and in the outlet; it leaves no token behind.

mod board;
mod press;
mod requests;
#[cfg(test)]
mod tests;

pub use press::{Announced, Outlet, OutletError};

use crate::clock::{Clock, Jitter};
use crate::config::plan::Plan;
use crate::exit::Exit;
use crate::lease::source::{Failure, Reply, Source};
use crate::lease::{Input, Machine, Output, Pace, Subject, TokenId};
use crate::link::{End, Received, ToRole};
use crate::names::{Generation, QueryId};
use crate::observe::{Event, report_dropped};
use crate::sys::watch;
use board::{Accepted, Board};
use press::Press;
use requests::{Answer, Requests, say_revoked};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;

/// How fast, and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The schedule's pace.
    pub pace: Pace,
    /// How long the revocations at the end may take in all.
    pub leave: Duration,
}

impl Settings {
    /// What a plan asks for, and two seconds to leave.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self { pace: Pace::new(plan.server.retry_max), leave: Duration::from_secs(2) }
    }
}

/// Runs until supervise says so or is gone. `Ready` and `Changed` are sent on `link`; sending `Failed` is left to the caller.
///
/// The result is `Ok` after a stop, else why the first secrets could not be served.
pub fn run<S: Source + 'static>(plan: &Plan, source: S, outlet: impl Outlet, link: &End, clock: &impl Clock, settings: &Settings) -> Exit {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        Event::Broken { what: "the event loop of fetch cannot be built" }.emit();
        return Exit::Software;
    };
    let exit = LocalSet::new().block_on(&runtime, async {
        let Ok(watch) = watch::readable(link.as_fd()) else {
            Event::Broken { what: "the link to supervise cannot be watched" }.emit();
            return Exit::Software;
        };
        let mut fetch = Fetch {
            clock,
            machine: Machine::new(&plan.queries, settings.pace, Jitter::new(), clock.now()),
            board: Board::new(plan),
            requests: Requests::new(source, &plan.queries),
            press: Press::new(outlet, link, settings.pace),
            jitter: Jitter::new(),
            login: None,
        };
        let exit = fetch.run(link, &watch).await;
        fetch.requests.leave(settings.leave).await;
        exit
    });
    // A thread that resolves a name may hang in the system's library: it is not waited for.
    runtime.shutdown_background();
    exit
}

/// What ends a wait.
enum Woken {
    Told(Received<ToRole>),
    Answered(Answer),
    Announced(Generation),
    Due,
}

struct Fetch<'a, S: Source, O, C> {
    clock: &'a C,
    machine: Machine,
    board: Board<'a>,
    requests: Requests<S>,
    press: Press<'a, O>,
    jitter: Jitter,
    /// Why there is no token.
    login: Option<Failure>,
}

impl<S: Source + 'static, O: Outlet, C: Clock> Fetch<'_, S, O, C> {
    async fn run(&mut self, link: &End, watch: &AsyncFd<BorrowedFd<'_>>) -> Exit {
        self.step(Input::Tick);
        loop {
            let done = match self.wait(link, watch).await {
                Woken::Told(Received::Message(ToRole::GiveUp)) => return self.give_up(),
                Woken::Told(Received::Message(ToRole::Stop) | Received::Closed) => return Exit::Ok,
                Woken::Told(Received::Empty) => Ok(()),
                Woken::Answered(answer) => self.answered(answer),
                Woken::Announced(generation) => {
                    self.press.tell(generation);
                    Ok(())
                }
                Woken::Due => self.due(),
            };
            if let Err(exit) = done {
                return exit;
            }
            report_dropped();
        }
    }

    async fn wait(&mut self, link: &End, watch: &AsyncFd<BorrowedFd<'_>>) -> Woken {
        let wake = self.machine.wake().into_iter().chain(self.press.wake()).min();
        let sleep = wake.map(|wake| tokio::time::sleep(wake.since(self.clock.now())));
        let due = async {
            match sleep {
                Some(sleep) => sleep.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = receive(link, watch) => Woken::Told(told),
            answer = self.requests.next() => Woken::Answered(answer),
            generation = self.press.announced() => Woken::Announced(generation),
            () = due => Woken::Due,
        }
    }

    fn due(&mut self) -> Result<(), Exit> {
        self.step(Input::Tick);
        let now = self.clock.now();
        if self.press.wake().is_some_and(|wake| wake <= now) { self.press.publish(Vec::new(), now, &mut self.jitter) } else { Ok(()) }
    }

    fn answered(&mut self, answer: Answer) -> Result<(), Exit> {
        match answer {
            Answer::Read(query, token, result) => return self.read(query, token, result),
            Answer::Input(Input::LoggedIn(Ok(grant))) => {
                Event::LoggedIn { ttl: grant.ttl }.emit();
                self.login = None;
                self.step(Input::LoggedIn(Ok(grant)));
                let token = self.requests.exposed().unwrap_or_default();
                let accepted = self.board.renew_token(token);
                return self.accepted(accepted, None);
            }
            Answer::Input(Input::LoggedIn(Err(failure))) => {
                self.login = Some(failure.clone());
                self.step(Input::LoggedIn(Err(failure)));
            }
            Answer::Input(input) => self.step(input),
            Answer::Revoked(result) => say_revoked(&result),
        }
        Ok(())
    }

    fn read(&mut self, query: QueryId, token: TokenId, result: Result<Reply, Failure>) -> Result<(), Exit> {
        match result {
            Ok(reply) => {
                self.step(Input::Read(query, token, Ok(reply.lease.clone())));
                let accepted = self.board.accept(query, reply, self.requests.exposed());
                self.accepted(accepted, Some(query))
            }
            Err(failure) => {
                self.board.failed(query, &failure);
                self.step(Input::Read(query, token, Err(failure)));
                Ok(())
            }
        }
    }

    fn accepted(&mut self, accepted: Accepted, query: Option<QueryId>) -> Result<(), Exit> {
        match accepted {
            Accepted::Changes(changes) => self.press.publish(changes, self.clock.now(), &mut self.jitter),
            Accepted::Nothing => Ok(()),
            Accepted::Unusable(errors) => {
                for error in errors {
                    let (file, why) = (&error.name, &*error.to_string());
                    if self.board.complete() { Event::Stale { file, why } } else { Event::Unusable { why } }.emit();
                }
                if let Some(query) = query {
                    self.step(Input::Unusable(query));
                }
                Ok(())
            }
        }
    }

    fn step(&mut self, input: Input) {
        for output in self.machine.step(input, self.clock.now()) {
            match output {
                Output::Ask(request) => self.requests.start(request),
                Output::Forget(token) => self.requests.forget(token),
                Output::Failed(Subject::Query(query), failure, _) if self.board.complete() => self.stale(query, &failure.message),
                Output::Failed(_, failure, after) => Event::Retrying { failure: &failure.message, after }.emit(),
                Output::Ended(query) => self.stale(query, "its lease has ended, and no successor came yet"),
            }
        }
    }

    fn stale(&self, query: QueryId, why: &str) {
        for file in self.board.names(query) {
            Event::Stale { file, why }.emit();
        }
    }

    fn give_up(&self) -> Exit {
        let (missing, exit) = self.board.missing(self.login.as_ref());
        for (file, why) in missing {
            Event::Missing { file, why: &why }.emit();
        }
        exit
    }
}

async fn receive(link: &End, watch: &AsyncFd<BorrowedFd<'_>>) -> Received<ToRole> {
    loop {
        let Ok(mut ready) = watch.readable().await else { return Received::Closed };
        match link.receive() {
            Received::Empty => ready.clear_ready(),
            told @ (Received::Message(_) | Received::Closed) => return told,
        }
    }
}
