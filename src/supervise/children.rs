//! The table of the roles' processes, which are forked again when they die. Invariants: of each role
//! at most one restart; a successor is forked by supervise alone, from the state in which the first
//! one was.

use super::child::{self, kill_and_reap};
use super::guard::Guard;
use super::mounts::Mounts;
use super::restart::{EndCause, Restart};
use super::state::{ExitStatus, Input};
use super::walls::Confinement;
use super::watchdog::{Intervals, Look, Sign, Watch};
use crate::clock::{Clock, Jitter, Moment, RealClock};
use crate::config::plan::Plan;
use crate::exit::Exit;
use crate::link::{End, FromRole, Received, ToRole};
use crate::names::{Child, HookId, RestartHistory};
use crate::observe::{Event, Incident};
use crate::sys::process;
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// How many messages of one role are taken before anything else is looked at: more than a link
/// holds, so that only a role which sends without end is interrupted.
const AT_ONCE: usize = 1024;

/// One role: its process, while the role has one, and when the next process is started.
#[derive(Debug)]
struct ChildRecord {
    child: Child,
    process: Option<ChildProcess>,
    restart: Restart,
    /// How many processes of the role have died.
    deaths: u64,
    /// Whether any process of the role was ever ready. Before that, a failure with a reason is a
    /// refusal to start.
    was_ready: bool,
    /// Whether supervise has killed the role on purpose, at the end of the agent.
    stopping: bool,
}

/// One process of a role.
#[derive(Debug)]
struct ChildProcess {
    pid: Pid,
    /// The link to the process, until the end of the link was seen.
    link: Option<End>,
    /// Whether the process gave a reason for its end.
    explained: bool,
    /// Whether the process has said that it is ready.
    ready: bool,
    watch: Watch,
    /// Whether the watchdog has killed the process.
    hung: bool,
}

impl ChildProcess {
    fn new(pid: Pid, link: End, now: Moment) -> Self {
        Self {
            pid,
            link: Some(link),
            explained: false,
            ready: false,
            watch: Watch::new(now),
            hung: false,
        }
    }

    /// The sign of life that a look finds. `serve` is asked nothing: `serve` waits for the kernel
    /// and must wait for no other process.
    fn sign(&mut self, role: Child, work: Option<u64>) -> Sign {
        match role {
            Child::Serve => self.watch.sign_of_work(work.filter(|_| self.ready)),
            Child::Fetch => self.watch.sign_of_answer(),
        }
    }

    /// Asks `fetch` for a sign of life. A full link or a dead peer gives none.
    fn ask(&mut self) {
        self.watch.asked();
        let _ = self.link.as_ref().map(|link| link.send(&ToRole::Ping));
    }
}

/// The table: `fetch`, and on FUSE `serve`.
#[derive(Debug)]
pub(super) struct Children<'a> {
    plan: &'a Plan,
    guard: Option<&'a Guard>,
    /// Descriptors that supervise holds and no role needs.
    held: &'a [BorrowedFd<'a>],
    /// `serve` first: `fetch` announces what it answers.
    records: Vec<ChildRecord>,
    /// Descriptors that only the application is to have.
    inherited: Vec<RawFd>,
    jitter: Jitter,
    /// The confinement that this kernel offers.
    walls: Confinement,
}

impl<'a> Children<'a> {
    /// Starts the roles. When one cannot be started, the others are killed.
    pub(super) fn start(
        plan: &'a Plan,
        mounts: &Mounts,
        signals: &SignalFd,
        guard: Option<&'a Guard>,
        held: &'a [BorrowedFd<'a>],
        now: Moment,
    ) -> io::Result<Self> {
        let mut roles = Self {
            plan,
            guard,
            held,
            records: vec![],
            inherited: process::inherited()?,
            jitter: Jitter::new(),
            walls: Confinement::find(),
        };
        for role in mounts.roles() {
            let started = roles
                .fork(*role, RestartHistory::default(), mounts, signals)
                .inspect_err(|_| kill_and_reap(&roles.leave()))?;
            roles.records.push(ChildRecord {
                child: *role,
                process: Some(started),
                restart: Restart::new(now),
                deaths: 0,
                was_ready: false,
                stopping: false,
            });
        }
        Ok(roles)
    }

    /// The links, for `poll`.
    pub(super) fn links(&self) -> impl Iterator<Item = &End> {
        self.records
            .iter()
            .filter_map(|record| record.process.as_ref()?.link.as_ref())
    }

    /// The link to `fetch`.
    pub(super) fn fetch(&self) -> Option<&End> {
        self.records
            .iter()
            .find(|record| record.child == Child::Fetch)?
            .process
            .as_ref()?
            .link
            .as_ref()
    }

    /// Reads the messages of all roles: inputs for the machine, and hooks that `fetch` asks for.
    pub(super) fn messages(&mut self, now: Moment) -> (Vec<Input>, Vec<HookId>) {
        let (mut inputs, mut hooks) = (vec![], vec![]);
        for record in &mut self.records {
            let Some(process) = &mut record.process else {
                continue;
            };
            for _ in 0..AT_ONCE {
                let Some(link) = &process.link else { break };
                let received = link.receive();
                if matches!(received, Received::Message(_)) {
                    process.watch.answered();
                }
                match received {
                    Received::Message(FromRole::Alive) => {}
                    Received::Message(FromRole::Ready) => {
                        process.ready = true;
                        if let Some(after) = record.restart.ready(now).filter(|_| record.deaths > 0)
                        {
                            Event::RoleRestarted {
                                role: record.child.role(),
                                after,
                            }
                            .emit();
                        }
                        record.was_ready = true;
                        inputs
                            .extend((record.child == Child::Fetch).then_some(Input::SecretsReady));
                    }
                    Received::Message(FromRole::Changed(hook)) => hooks.push(hook),
                    Received::Message(FromRole::Failed(exit)) => {
                        process.explained = true;
                        inputs.push(Input::RoleFailed(record.child, exit));
                    }
                    Received::Empty => break,
                    // The end of the link is the end of the role.
                    Received::Closed => {
                        process.link = None;
                        let _ = kill(process.pid, Signal::SIGKILL);
                    }
                }
            }
        }
        (inputs, hooks)
    }

    /// Takes note of an ended process. The result is an input if a role has ended for good.
    pub(super) fn ended(&mut self, pid: Pid, ending: ExitStatus, now: Moment) -> Option<Input> {
        let is_it = |record: &&mut ChildRecord| {
            record
                .process
                .as_ref()
                .is_some_and(|process| process.pid == pid)
        };
        let record = self.records.iter_mut().find(is_it)?;
        let process = record.process.take()?;
        let explained = process.explained;
        if ending != ExitStatus::Exited(0) && !explained && !record.stopping {
            let role = record.child.role();
            Incident::RoleDied { role }.emit(&ending);
        }
        let last =
            ending == ExitStatus::Exited(0) || (explained && !record.was_ready) || record.stopping;
        if last {
            let role = record.child;
            self.records.retain(|record| record.child != role);
            return Some(Input::RoleEnded(role));
        }
        let cause = match ending {
            _ if process.hung => EndCause::Hung(process.watch.heard()),
            ExitStatus::Killed(signal) if signal == Signal::SIGKILL as i32 => EndCause::Killed,
            ExitStatus::Exited(_) | ExitStatus::Killed(_) => EndCause::Crashed,
        };
        record.deaths += 1;
        record.restart.died(cause, now, &mut self.jitter);
        None
    }

    /// Takes note that a process was stopped, or continues.
    pub(super) fn stopped(&mut self, pid: Pid, stopped: bool) {
        let processes = self
            .records
            .iter_mut()
            .filter_map(|record| record.process.as_mut());
        processes
            .filter(|process| process.pid == pid)
            .for_each(|process| process.watch.stopped(stopped));
    }

    /// Checks all roles for signs of life and kills a role that hangs, so that a successor takes
    /// over. `work` is the operation counter of `serve`.
    pub(super) fn look(&mut self, look: Look, work: Option<u64>, now: Moment) {
        for ChildRecord {
            child: role,
            process,
            stopping,
            ..
        } in &mut self.records
        {
            let Some(process) = process
                .as_mut()
                .filter(|process| !process.hung && !*stopping)
            else {
                continue;
            };
            let sign = process.sign(*role, work);
            if process.watch.look(look, sign, Intervals::USUAL, now) {
                Event::RoleHung {
                    role: role.role(),
                    since: now.since(process.watch.heard()),
                }
                .emit();
                process.hung = true;
                let _ = kill(process.pid, Signal::SIGKILL);
            } else if *role == Child::Fetch {
                process.ask();
            }
        }
    }

    /// The next moment at which `turn` has work to do.
    pub(super) fn wake(&self) -> Option<Moment> {
        let patience = self.plan.app.crash_loop_timeout;
        self.records
            .iter()
            .filter_map(|record| {
                record
                    .restart
                    .wake()
                    .into_iter()
                    .chain(record.restart.give_up_at(patience))
                    .min()
            })
            .min()
    }

    /// Starts the successors that are due, and gives up a role that has been failing for too long.
    pub(super) fn turn(&mut self, mounts: &Mounts, signals: &SignalFd, now: Moment) -> Vec<Input> {
        let mut inputs = vec![];
        let patience = self.plan.app.crash_loop_timeout;
        let gives_up = |record: &ChildRecord| {
            record
                .restart
                .give_up_at(patience)
                .is_some_and(|end| end <= now)
        };
        // A role with a live process has no such moment.
        for record in self.records.extract_if(.., |record| gives_up(record)) {
            let role = record.child.role();
            Incident::CrashLoop { role }.emit(&"`crash_loop_timeout` is over");
            inputs.extend([
                Input::RoleFailed(record.child, Exit::CrashLoop),
                Input::RoleEnded(record.child),
            ]);
        }
        for index in 0..self.records.len() {
            let record = &mut self.records[index];
            if !record.restart.begin(now) {
                continue;
            }
            let child = record.child;
            let history = RestartHistory {
                deaths: record.deaths,
                crashes: record.restart.crashes(),
            };
            match self.fork(child, history, mounts, signals) {
                Ok(process) => {
                    self.records[index].process = Some(process);
                    inputs.push(Input::RoleRestarted(child));
                }
                Err(why) => {
                    Incident::ForkFailed.emit(&why);
                    let restart = &mut self.records[index].restart;
                    restart.died(EndCause::Crashed, now, &mut self.jitter);
                }
            }
        }
        inputs
    }

    /// Kills all roles for good. A role without a process gives an input, because no end of a
    /// process will follow.
    pub(super) fn stop(&mut self) -> Vec<Input> {
        for record in &mut self.records {
            record.stopping = true;
            if let Some(process) = &record.process {
                let _ = kill(process.pid, Signal::SIGKILL);
            }
        }
        self.records
            .extract_if(.., |record| record.process.is_none())
            .map(|record| Input::RoleEnded(record.child))
            .collect()
    }

    /// Empties the table. The result is the processes that still have to be killed, `serve` first.
    pub(super) fn leave(&mut self) -> Vec<Pid> {
        self.records
            .drain(..)
            .filter_map(|record| record.process)
            .map(|process| process.pid)
            .collect()
    }

    fn fork(
        &self,
        role: Child,
        past: RestartHistory,
        mounts: &Mounts,
        signals: &SignalFd,
    ) -> io::Result<ChildProcess> {
        let of_guard = self
            .guard
            .into_iter()
            .flat_map(|guard| guard.foreign_to(role));
        let of_mounts = mounts.descriptors().into_iter().chain(mounts.root());
        let of_mounts = of_mounts.chain(self.held.iter().copied());
        let foreign: Vec<_> = of_mounts
            .chain([signals.as_fd()])
            .chain(of_guard)
            .chain(self.links().map(AsFd::as_fd))
            .collect();
        let group = self.guard.map_or(Pid::from_raw(0), Guard::group);
        let (pid, link) = match role {
            Child::Serve => {
                let body = mounts.serve(self.plan, past, self.walls)?;
                child::start(role, &foreign, &self.inherited, &[], group, body)?
            }
            Child::Fetch => {
                let body = mounts.fetch(self.plan, past, self.walls)?;
                let keep = mounts.rights_of_fetch(self.plan);
                child::start(role, &foreign, &self.inherited, keep, group, body)?
            }
        };
        Ok(ChildProcess::new(pid, link, RealClock.now()))
    }
}
