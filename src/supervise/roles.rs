//! The roles as processes: forked, confined, and born again when they die. Invariants: of each role
//! at most one lives; a successor is forked by supervise alone, from the state in which the first
//! one was.

use super::END_TIMEOUT;
use super::guard::Guard;
use super::rebirth::{Death, Rebirth};
use super::state::{Ending, Input};
use super::walls::Walls;
use super::watchdog::{Look, Sign, Timing, Watch};
use super::world::World;
use crate::clock::{Clock, Jitter, Moment, RealClock};
use crate::config::plan::Plan;
use crate::exit::Exit;
use crate::link::{self, End, FromRole, Received, ToRole};
use crate::memory;
use crate::names::{HookId, Past, Role};
use crate::observe::{self, Event};
use crate::sys::caps::{self, Capability};
use crate::sys::process;
use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid, setpgid};
use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

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
pub(super) struct Roles<'a> {
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

impl<'a> Roles<'a> {
    /// Starts them; when one cannot be started, none stays.
    pub(super) fn start(
        plan: &'a Plan,
        world: &World,
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
        for role in world.roles() {
            let started = roles
                .fork(*role, Past::default(), world, signals)
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
    pub(super) fn turn(&mut self, world: &World, signals: &SignalFd, now: Moment) -> Vec<Input> {
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
                match self.fork(*role, past, world, signals) {
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
        world: &World,
        signals: &SignalFd,
    ) -> io::Result<Process> {
        let of_guard = self
            .guard
            .into_iter()
            .flat_map(|guard| guard.foreign_to(role));
        let of_world = world.descriptors().into_iter().chain(world.root());
        let of_world = of_world.chain(self.held.iter().copied());
        let foreign: Vec<_> = of_world
            .chain([signals.as_fd()])
            .chain(of_guard)
            .chain(self.links().map(AsFd::as_fd))
            .collect();
        match role {
            Role::Serve => self.start_role(
                role,
                &foreign,
                &[],
                world.serve(self.plan, past, self.walls)?,
            ),
            Role::Fetch | Role::Supervise => self.start_role(
                role,
                &foreign,
                world.rights_of_fetch(self.plan),
                world.fetch(self.plan, past, self.walls)?,
            ),
        }
    }

    /// Forks a role that closes what is `foreign` or inherited, drops every right but `keep`, and
    /// says why when it does not end well.
    fn start_role(
        &self,
        role: Role,
        foreign: &[BorrowedFd<'_>],
        keep: &[Capability],
        body: impl FnOnce(End) -> Exit,
    ) -> io::Result<Process> {
        let (inherited, group) = (
            &self.inherited,
            self.guard.map_or(Pid::from_raw(0), Guard::group),
        );
        let (ours, theirs) = link::pair()?;
        let last = theirs.try_clone()?;
        let parent = getpid();
        let close: Vec<_> = foreign.iter().copied().chain([ours.as_fd()]).collect();
        let pid = process::fork(&close, move || {
            let exit = match confine(name(role), inherited, keep, group)
                .and_then(|()| end_with(parent, role))
            {
                Ok(()) => body(theirs),
                Err(error) => {
                    Event::Broken {
                        what: &format!("{} cannot be confined: {error}", role.as_str()),
                    }
                    .emit();
                    Exit::Memory
                }
            };
            if exit != Exit::Ok {
                let _ = last.send(&FromRole::Failed(exit));
            }
            // The link ends with the process and not before: its end is the role's.
            mem::forget(last);
            exit.code()
        })?;
        Ok(Process::new(pid, ours, RealClock.now()))
    }
}

/// Kills children that have nothing left to do, and reaps them as far as they die within
/// `END_TIMEOUT`. One that hangs in the kernel is left to whoever inherits it: nobody waits for it
/// without a bound.
pub(super) fn kill_and_reap(children: &[Pid]) {
    for pid in children {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    reap(children.to_vec());
}

/// Reaps killed children as far as they die within `END_TIMEOUT`.
pub(super) fn reap(mut children: Vec<Pid>) {
    let (clock, mut pause) = (RealClock, Duration::from_micros(100));
    let end = clock.now().plus(END_TIMEOUT);
    loop {
        // Reaped, or no child of ours any more.
        children.retain(|pid| {
            matches!(
                waitpid(*pid, Some(WaitPidFlag::WNOHANG)),
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR)
            )
        });
        let now = clock.now();
        if children.is_empty() || now >= end {
            return;
        }
        let _ = poll(
            &mut [],
            PollTimeout::try_from(pause.min(end.since(now))).unwrap_or(PollTimeout::ZERO),
        );
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn name(role: Role) -> &'static CStr {
    match role {
        Role::Supervise => c"baofs",
        Role::Fetch => c"baofs-fetch",
        Role::Serve => c"baofs-serve",
    }
}

/// Makes a forked process what all of the agent's are: in `group`, without what was `inherited`
/// and the streams that the application has, no right but `keep`, no dump.
pub(super) fn confine(
    name: &CStr,
    inherited: &[RawFd],
    keep: &[Capability],
    group: Pid,
) -> io::Result<()> {
    let own = Pid::from_raw(0);
    // What a terminal sends is the application's alone. A dead guard leaves no group to join.
    setpgid(own, group).or_else(|_| setpgid(own, own))?;
    // Somebody may wait for the end of a pipe that only the application was to hold.
    process::close_inherited(inherited);
    process::leave_streams()?;
    observe::start_role();
    prctl::set_name(name)?;
    prctl::set_no_new_privs()?;
    caps::keep_only(keep)?;
    memory::forbid_cores().map_err(io::Error::other)
}

/// `serve` dies with its parent. `fetch` hears the end of its link, and revokes before it ends; if
/// it hangs, the guard kills it.
fn end_with(parent: Pid, role: Role) -> io::Result<()> {
    if role == Role::Fetch {
        return Ok(());
    }
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the line above.
    if getppid() == parent {
        Ok(())
    } else {
        Err(io::Error::other("the supervisor is gone"))
    }
}
