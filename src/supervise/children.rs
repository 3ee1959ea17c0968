//! The table of the roles' processes, which are restarted after a death. Invariants: a role has a
//! process or a planned restart, never both; only supervise forks a successor, in the same state as
//! the first process.

use super::child::{self, kill_and_reap};
use super::guard::Guard;
use super::mounts::Mounts;
use super::restart::{EndCause, Restart};
use super::state::{ExitStatus, Input};
use super::walls::Confinement;
use super::watchdog::{Look, Watch};
use crate::clock::{Clock, Jitter, Moment, RealClock};
use crate::config::plan::Plan;
use crate::exit::Exit;
use crate::link::{End, FromRole, Received, ToRole};
use crate::names::{HookId, RestartHistory, Role};
use crate::observe::{Event, Incident};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The most messages read from a link in a row. A link holds fewer, so the limit interrupts only a
/// role that sends without end.
const AT_ONCE: usize = 1024;

/// The time and the events of a turn of the loop.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) now: Moment,
    /// Inputs for the machine.
    pub(super) inputs: Vec<Input>,
    /// The hooks of changed files.
    pub(super) changed: Vec<HookId>,
}

/// A role with a process or a planned restart.
#[derive(Debug)]
struct ChildRecord {
    role: Role,
    process: Option<ChildProcess>,
    restart: Restart,
    /// The number of dead processes of the role.
    deaths: u64,
    /// Whether any process of the role was ever ready. Before, a failure with a reason is a refusal
    /// to start.
    was_ready: bool,
}

/// A process of a role.
#[derive(Debug)]
struct ChildProcess {
    pid: Pid,
    /// The link to the process, until supervise has read the end of the link.
    link: Option<End>,
    /// Whether the process gave a reason for a coming end.
    explained: bool,
    watch: Watch,
    /// Whether the watchdog has killed the process.
    hung: bool,
}

impl ChildProcess {
    /// Sends a message. A process that does not take the message is dead or hangs: a successor gets
    /// the message, or a time limit ends the wait.
    fn send(&self, message: ToRole) {
        if let Some(link) = &self.link {
            let _ = link.send(&message);
        }
    }

    fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

impl ChildRecord {
    fn pid(&self) -> Option<Pid> {
        Some(self.process.as_ref()?.pid)
    }

    /// Reads the messages of the process.
    fn read(&mut self, turn: &mut Turn) {
        let Some(process) = &mut self.process else {
            return;
        };
        for _ in 0..AT_ONCE {
            let Some(link) = &process.link else { return };
            let message = match link.receive() {
                Received::Message(message) => message,
                Received::Empty => return,
                Received::Closed => {
                    process.link = None;
                    return;
                }
            };
            process.watch.answered();
            match message {
                FromRole::Alive => {}
                FromRole::Ready => {
                    if let Some(after) = self.restart.ready(turn.now)
                        && self.deaths > 0
                    {
                        let role = self.role;
                        Event::RoleRestarted { role, after }.emit();
                    }
                    self.was_ready = true;
                    if self.role == Role::Fetch {
                        turn.inputs.push(Input::SecretsReady);
                    }
                }
                FromRole::Changed(hook) => turn.changed.push(hook),
                FromRole::Failed(exit) => {
                    process.explained = true;
                    turn.inputs.push(Input::RoleFailed(self.role, exit));
                }
            }
        }
    }
}

/// The table: `fetch`, and on FUSE `serve`.
#[derive(Debug)]
pub(super) struct Children<'a> {
    plan: &'a Plan,
    guard: Option<&'a Guard>,
    /// Descriptors of supervise to be closed in every role.
    held: Vec<BorrowedFd<'a>>,
    /// `serve` first, because `fetch` announces files that `serve` answers.
    records: Vec<ChildRecord>,
    jitter: Jitter,
    /// The confinement offered by the kernel.
    walls: Confinement,
    /// Whether supervise has killed the roles on purpose, at the end of the agent.
    stopping: bool,
}

impl<'a> Children<'a> {
    /// Starts the roles. A failure kills the roles started before.
    pub(super) fn start(
        plan: &'a Plan,
        mounts: &Mounts,
        guard: Option<&'a Guard>,
        held: Vec<BorrowedFd<'a>>,
    ) -> io::Result<Self> {
        let mut children = Self {
            plan,
            guard,
            held,
            records: vec![],
            jitter: Jitter::new(),
            walls: Confinement::find(),
            stopping: false,
        };
        for role in mounts.roles() {
            let process = children
                .fork(*role, RestartHistory::default(), mounts)
                .inspect_err(|_| kill_and_reap(&children.pids()))?;
            children.records.push(ChildRecord {
                role: *role,
                process: Some(process),
                restart: Restart::new(RealClock.now()),
                deaths: 0,
                was_ready: false,
            });
        }
        Ok(children)
    }

    /// The links, for `poll`.
    pub(super) fn links(&self) -> impl Iterator<Item = &End> {
        self.records
            .iter()
            .filter_map(|record| record.process.as_ref()?.link.as_ref())
    }

    /// The processes, `serve` first.
    pub(super) fn pids(&self) -> Vec<Pid> {
        self.records.iter().filter_map(ChildRecord::pid).collect()
    }

    /// Sends a message to `fetch`, if `fetch` has a process.
    pub(super) fn tell_fetch(&self, message: ToRole) {
        for record in &self.records {
            if let (Role::Fetch, Some(process)) = (record.role, &record.process) {
                process.send(message);
            }
        }
    }

    /// Reads the messages of all roles.
    pub(super) fn read(&mut self, turn: &mut Turn) {
        for record in &mut self.records {
            record.read(turn);
            // A role without a link can do no more work.
            if let Some(process) = &record.process
                && process.link.is_none()
            {
                process.kill();
            }
        }
    }

    /// Records the end of a reaped process. The role has ended for good, which gives an input, or
    /// will be restarted.
    pub(super) fn ended(&mut self, pid: Pid, status: ExitStatus, turn: &mut Turn) {
        let mut records = self.records.iter_mut();
        let Some(record) = records.find(|record| record.pid() == Some(pid)) else {
            return;
        };
        // The process may have sent a reason since the last read.
        record.read(turn);
        let Some(process) = record.process.take() else {
            return;
        };
        let role = record.role;
        let expected = status == ExitStatus::Exited(0) || self.stopping;
        if !expected && !process.explained {
            Incident::RoleDied { role }.emit(&status);
        }
        if expected || (process.explained && !record.was_ready) {
            self.records.retain(|record| record.role != role);
            turn.inputs.push(Input::RoleEnded(role));
            return;
        }
        let cause = if process.hung {
            EndCause::Hung(process.watch.heard())
        } else if status == ExitStatus::Killed(Signal::SIGKILL as i32) {
            EndCause::Killed
        } else {
            EndCause::Crashed
        };
        record.deaths += 1;
        record.restart.died(cause, turn.now, &mut self.jitter);
    }

    /// Records a stop or a continuation of a process.
    pub(super) fn stopped(&mut self, pid: Pid, stopped: bool) {
        for record in &mut self.records {
            if let Some(process) = &mut record.process
                && process.pid == pid
            {
                process.watch.stopped(stopped);
            }
        }
    }

    /// Checks all roles for signs of life and kills a hanging role, so that a successor takes over.
    /// `work` is the operation counter of `serve`.
    pub(super) fn look(&mut self, look: Look, work: u64, now: Moment) {
        for record in &mut self.records {
            let Some(process) = &mut record.process else {
                continue;
            };
            if process.hung || self.stopping {
                continue;
            }
            let sign = match record.role {
                // `serve` waits for the kernel and must wait for no other process, so supervise asks
                // `serve` nothing.
                Role::Serve => {
                    let is_ready = record.restart.is_ready();
                    let work = is_ready.then_some(work);
                    process.watch.sign_of_work(work)
                }
                Role::Fetch => process.watch.sign_of_answer(),
            };
            if process.watch.look(look, sign, now) {
                let since = now.since(process.watch.heard());
                let role = record.role;
                Event::RoleHung { role, since }.emit();
                process.hung = true;
                process.kill();
            } else if record.role == Role::Fetch {
                process.watch.asked();
                process.send(ToRole::Ping);
            }
        }
    }

    /// The next moment at which `restart` has work to do.
    pub(super) fn wake(&self) -> Option<Moment> {
        let patience = self.plan.app.crash_loop_timeout;
        let restarts = self.records.iter().map(|record| &record.restart);
        restarts
            .flat_map(|restart| [restart.wake(), restart.give_up_at(patience)])
            .flatten()
            .min()
    }

    /// Starts the due successors, and gives up a role after `crash_loop_timeout` of failures.
    pub(super) fn restart(&mut self, mounts: &Mounts, turn: &mut Turn) {
        let patience = self.plan.app.crash_loop_timeout;
        self.records.retain(|record| {
            let end = record.restart.give_up_at(patience);
            let over = end.is_some_and(|end| end <= turn.now);
            if over {
                let role = record.role;
                Incident::CrashLoop { role }.emit(&"`crash_loop_timeout` is over");
                turn.inputs.extend([
                    Input::RoleFailed(role, Exit::CrashLoop),
                    Input::RoleEnded(role),
                ]);
            }
            !over
        });
        for index in 0..self.records.len() {
            let record = &mut self.records[index];
            if !record.restart.begin(turn.now) {
                continue;
            }
            let role = record.role;
            let history = RestartHistory {
                deaths: record.deaths,
                crashes: record.restart.crashes(),
            };
            match self.fork(role, history, mounts) {
                Ok(process) => {
                    self.records[index].process = Some(process);
                    turn.inputs.push(Input::RoleRestarted(role));
                }
                Err(why) => {
                    Incident::ForkFailed.emit(&why);
                    let restart = &mut self.records[index].restart;
                    restart.died(EndCause::Crashed, turn.now, &mut self.jitter);
                }
            }
        }
    }

    /// Kills all roles for good. A role without a process gives an input at once, because no end of
    /// a process will follow.
    pub(super) fn stop(&mut self) -> Vec<Input> {
        self.stopping = true;
        let mut inputs = vec![];
        for record in &self.records {
            match &record.process {
                Some(process) => process.kill(),
                None => inputs.push(Input::RoleEnded(record.role)),
            }
        }
        self.records.retain(|record| record.process.is_some());
        inputs
    }

    fn fork(&self, role: Role, past: RestartHistory, mounts: &Mounts) -> io::Result<ChildProcess> {
        let mut foreign = mounts.descriptors();
        foreign.extend(mounts.root());
        foreign.extend(&self.held);
        foreign.extend(self.links().map(AsFd::as_fd));
        let mut group = Pid::from_raw(0);
        if let Some(guard) = self.guard {
            foreign.extend(guard.foreign_to(role));
            group = guard.pid;
        }
        let keep = match role {
            Role::Serve => &[],
            Role::Fetch => mounts.rights_of_fetch(self.plan),
        };
        let body = mounts.work(role, self.plan, past, self.walls)?;
        let (pid, link) = child::start(role, &foreign, keep, group, body)?;
        Ok(ChildProcess {
            pid,
            link: Some(link),
            explained: false,
            watch: Watch::new(RealClock.now()),
            hung: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link;
    use crate::render::tests::plan;

    #[test]
    fn a_reason_counts_that_was_sent_after_the_last_read() {
        let (ours, theirs) = link::pair().expect("a link");
        let (plan, pid) = (plan(vec![], vec![]), Pid::from_raw(11));
        let mut turn = Turn::default();
        let fetch = ChildRecord {
            role: Role::Fetch,
            process: Some(ChildProcess {
                pid,
                link: Some(ours),
                explained: false,
                watch: Watch::new(turn.now),
                hung: false,
            }),
            restart: Restart::new(turn.now),
            deaths: 0,
            was_ready: false,
        };
        let mut children = Children {
            plan: &plan,
            guard: None,
            held: vec![],
            records: vec![fetch],
            jitter: Jitter::seeded(1),
            walls: Confinement::find(),
            stopping: false,
        };
        children.read(&mut turn);
        assert_eq!(turn.inputs, []);
        let failed = FromRole::Failed(Exit::Login);
        theirs.send(&failed).expect("the link is open");
        children.ended(pid, ExitStatus::Exited(Exit::Login.code()), &mut turn);
        let (failed, ended) = (
            Input::RoleFailed(Role::Fetch, Exit::Login),
            Input::RoleEnded(Role::Fetch),
        );
        assert_eq!(turn.inputs, [failed, ended]);
        assert_eq!(children.wake(), None, "no restart is planned");
    }
}
