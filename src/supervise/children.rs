//! The table of the roles' processes, which are forked again when they die. Invariants: of each role
//! at most one lives; a successor is forked by supervise alone, from the state in which the first
//! one was.

use super::child::{self, kill_and_reap};
use super::guard::Guard;
use super::mounts::Mounts;
use super::restart::{Death, Rebirth};
use super::state::{Ending, Input};
use super::walls::Walls;
use super::watchdog::{Look, Sign, Timing, Watch};
use crate::clock::{Clock, Jitter, Moment, RealClock};
use crate::config::plan::Plan;
use crate::exit::Exit;
use crate::link::{End, FromRole, Received, ToRole};
use crate::names::{HookId, Past, Role};
use crate::observe::Event;
use crate::sys::process;
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// How many messages of one role are taken before anything else is looked at: more than a link
/// holds, so that only a role which sends without end is interrupted.
const AT_ONCE: usize = 1024;

/// One role: its process, while it has one, and its lives.
#[derive(Debug)]
struct Member {
    role: Role,
    process: Option<Process>,
    lives: Rebirth,
    /// How many lives ended.
    deaths: u64,
    /// Whether it ever said that it works: until then a failure that it gives a reason for is a
    /// refusal.
    proven: bool,
    /// Whether its end is wanted: it was killed on purpose.
    dismissed: bool,
}

/// A life of a role.
#[derive(Debug)]
struct Process {
    pid: Pid,
    /// The link to it, until its end was seen.
    link: Option<End>,
    /// Whether it gave a reason for its end.
    explained: bool,
    /// Whether it has said that it works.
    ready: bool,
    watch: Watch,
    /// Whether the watchdog has killed it.
    hung: bool,
}

impl Process {
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

    /// What a look sees of it. `serve` is asked nothing, because it waits for the kernel and must
    /// wait for nobody else.
    fn sign(&mut self, role: Role, work: Option<u64>) -> Sign {
        match role {
            Role::Serve => self.watch.sign_of_work(work.filter(|_| self.ready)),
            Role::Fetch | Role::Supervise => self.watch.sign_of_answer(),
        }
    }

    /// Asks `fetch` for a sign of life. A full link or a dead peer is none.
    fn ask(&mut self) {
        self.watch.asked();
        let _ = self.link.as_ref().map(|link| link.send(&ToRole::Ping));
    }
}

/// `fetch`, and on FUSE `serve`.
#[derive(Debug)]
pub(super) struct Children<'a> {
    plan: &'a Plan,
    guard: Option<&'a Guard>,
    /// What supervise holds and no role needs.
    held: &'a [BorrowedFd<'a>],
    /// `serve` first: `fetch` announces what it answers.
    members: Vec<Member>,
    /// Descriptors that only the application is to have.
    inherited: Vec<RawFd>,
    jitter: Jitter,
    /// What stands between a role and the kernel.
    walls: Walls,
}

impl<'a> Children<'a> {
    /// Starts them; when one cannot be started, none stays.
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
            members: vec![],
            inherited: process::inherited()?,
            jitter: Jitter::new(),
            walls: Walls::find(),
        };
        for role in mounts.roles() {
            let started = roles
                .fork(*role, Past::default(), mounts, signals)
                .inspect_err(|_| kill_and_reap(&roles.leave()))?;
            roles.members.push(Member {
                role: *role,
                process: Some(started),
                lives: Rebirth::new(now),
                deaths: 0,
                proven: false,
                dismissed: false,
            });
        }
        Ok(roles)
    }

    /// The links, to be waited for.
    pub(super) fn links(&self) -> impl Iterator<Item = &End> {
        self.members
            .iter()
            .filter_map(|member| member.process.as_ref()?.link.as_ref())
    }

    /// The link to `fetch`.
    pub(super) fn fetch(&self) -> Option<&End> {
        self.members
            .iter()
            .find(|member| member.role == Role::Fetch)?
            .process
            .as_ref()?
            .link
            .as_ref()
    }

    /// What they said: inputs, and hooks that are asked for.
    pub(super) fn messages(&mut self, now: Moment) -> (Vec<Input>, Vec<HookId>) {
        let (mut inputs, mut hooks) = (vec![], vec![]);
        for member in &mut self.members {
            let Some(process) = &mut member.process else {
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
                        if let Some(after) = member.lives.ready(now).filter(|_| member.deaths > 0) {
                            Event::WorksAgain {
                                role: member.role,
                                after,
                            }
                            .emit();
                        }
                        member.proven = true;
                        inputs.extend((member.role == Role::Fetch).then_some(Input::SecretsReady));
                    }
                    Received::Message(FromRole::Changed(hook)) => hooks.push(hook),
                    Received::Message(FromRole::Failed(exit)) => {
                        process.explained = true;
                        inputs.push(Input::RoleFailed(member.role, exit));
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

    /// A child ended. If it was a role that is not to be born again: its end, as an input.
    pub(super) fn ended(&mut self, pid: Pid, ending: Ending, now: Moment) -> Option<Input> {
        let is_it = |member: &&mut Member| {
            member
                .process
                .as_ref()
                .is_some_and(|process| process.pid == pid)
        };
        let member = self.members.iter_mut().find(is_it)?;
        let process = member.process.take()?;
        let explained = process.explained;
        if ending != Ending::Exited(0) && !explained && !member.dismissed {
            Event::RoleDied {
                role: member.role,
                how: &ending.to_string(),
            }
            .emit();
        }
        let last = ending == Ending::Exited(0) || (explained && !member.proven) || member.dismissed;
        if last {
            let role = member.role;
            self.members.retain(|member| member.role != role);
            return Some(Input::RoleEnded(role));
        }
        let death = match ending {
            _ if process.hung => Death::Hung(process.watch.heard()),
            Ending::Killed(signal) if signal == Signal::SIGKILL as i32 => Death::Killed,
            Ending::Exited(_) | Ending::Killed(_) => Death::Crashed,
        };
        member.deaths += 1;
        member.lives.died(death, now, &mut self.jitter);
        None
    }

    /// A child was stopped, or goes on.
    pub(super) fn stopped(&mut self, pid: Pid, stopped: bool) {
        let processes = self
            .members
            .iter_mut()
            .filter_map(|member| member.process.as_mut());
        processes
            .filter(|process| process.pid == pid)
            .for_each(|process| process.watch.stopped(stopped));
    }

    /// Looks after all of them, and kills who hangs: its successor does the work. `work` is how far
    /// `serve` is.
    pub(super) fn look(&mut self, look: Look, work: Option<u64>, now: Moment) {
        for Member {
            role,
            process,
            dismissed,
            ..
        } in &mut self.members
        {
            let Some(process) = process
                .as_mut()
                .filter(|process| !process.hung && !*dismissed)
            else {
                continue;
            };
            let sign = process.sign(*role, work);
            if process.watch.look(look, sign, Timing::USUAL, now) {
                Event::RoleHangs {
                    role: *role,
                    since: now.since(process.watch.heard()),
                }
                .emit();
                process.hung = true;
                let _ = kill(process.pid, Signal::SIGKILL);
            } else if *role == Role::Fetch {
                process.ask();
            }
        }
    }

    /// When `turn` has something to do.
    pub(super) fn wake(&self) -> Option<Moment> {
        let patience = self.plan.app.crash_loop_timeout;
        self.members
            .iter()
            .filter_map(|member| {
                member
                    .lives
                    .wake()
                    .into_iter()
                    .chain(member.lives.end_of_hope(patience))
                    .min()
            })
            .min()
    }

    /// Starts whose time has come; who was not well for too long is given up.
    pub(super) fn turn(&mut self, mounts: &Mounts, signals: &SignalFd, now: Moment) -> Vec<Input> {
        let mut inputs = vec![];
        let patience = self.plan.app.crash_loop_timeout;
        let hopeless = |member: &Member| {
            member
                .lives
                .end_of_hope(patience)
                .is_some_and(|end| end <= now)
        };
        // It is dead, or there would be hope.
        for member in self.members.extract_if(.., |member| hopeless(member)) {
            Event::GivenUp { role: member.role }.emit();
            inputs.extend([
                Input::RoleFailed(member.role, Exit::CrashLoop),
                Input::RoleEnded(member.role),
            ]);
        }
        for index in 0..self.members.len() {
            if self.members[index].lives.begin(now) {
                let Member {
                    role,
                    deaths,
                    lives,
                    ..
                } = &self.members[index];
                let past = Past {
                    deaths: *deaths,
                    crashes: lives.crashes(),
                };
                match self.fork(*role, past, mounts, signals) {
                    Ok(process) => {
                        self.members[index].process = Some(process);
                        inputs.push(Input::RoleBorn(self.members[index].role));
                    }
                    Err(error) => {
                        Event::Broken {
                            what: &format!("a process of the agent cannot be forked: {error}"),
                        }
                        .emit();
                        self.members[index]
                            .lives
                            .died(Death::Crashed, now, &mut self.jitter);
                    }
                }
            }
        }
        inputs
    }

    /// Kills all of them for good; an input for each that has no process, so that nobody waits for
    /// its end.
    pub(super) fn dismiss(&mut self) -> Vec<Input> {
        for member in &mut self.members {
            member.dismissed = true;
            if let Some(process) = &member.process {
                let _ = kill(process.pid, Signal::SIGKILL);
            }
        }
        self.members
            .extract_if(.., |member| member.process.is_none())
            .map(|member| Input::RoleEnded(member.role))
            .collect()
    }

    /// Lets go of whoever is left: their processes, `serve` first, still to be killed.
    pub(super) fn leave(&mut self) -> Vec<Pid> {
        self.members
            .drain(..)
            .filter_map(|member| member.process)
            .map(|process| process.pid)
            .collect()
    }

    fn fork(
        &self,
        role: Role,
        past: Past,
        mounts: &Mounts,
        signals: &SignalFd,
    ) -> io::Result<Process> {
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
            Role::Serve => {
                let body = mounts.serve(self.plan, past, self.walls)?;
                child::start(role, &foreign, &self.inherited, &[], group, body)?
            }
            Role::Fetch | Role::Supervise => {
                let body = mounts.fetch(self.plan, past, self.walls)?;
                let keep = mounts.rights_of_fetch(self.plan);
                child::start(role, &foreign, &self.inherited, keep, group, body)?
            }
        };
        Ok(Process::new(pid, link, RealClock.now()))
    }
}
