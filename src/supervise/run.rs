//! The loop around the machine: a `poll` over signals and links, with a timeout at the next planned
//! moment. Invariants: the loop decides nothing; the last message of a role takes effect before the
//! death of the role.

use super::app::{Launcher, Stdio, program};
use super::children::{Children, Turn};
use super::hooks::{Deadline, Hooks};
use super::mounts::Mounts;
use super::state::{ExitStatus, Input, Machine, Output};
use super::watchdog::Looks;
use crate::clock::{Clock, Jitter, Moment, RealClock};
use crate::config::plan::{Action, Plan};
use crate::exit::Exit;
use crate::link::ToRole;
use crate::names::{HookId, Role, SwapExposure};
use crate::observe::{self, Event, Incident};
use crate::sys::process;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

/// The state of the loop.
pub(super) struct Loop<'a> {
    plan: &'a Plan,
    signals: &'a SignalFd,
    mounts: &'a mut Mounts,
    children: Children<'a>,
    launcher: Launcher<'a>,
    hooks: Hooks<'a>,
    /// The application's process group, while any process is in the group.
    group: Option<Pid>,
    /// Whether the application, the leader of the group, still lives.
    app_lives: bool,
    /// The end of the time limit of the machine's phase.
    timer: Option<Moment>,
    /// The times at which the roles are checked.
    looks: Looks,
    /// The result of the last check for a swap, as sent to `fetch`.
    swap: Option<SwapExposure>,
}

/// The processes left at the end, to be killed and reaped.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// The roles, `serve` first.
    pub(super) roles: Vec<Pid>,
    /// The process groups of the application and of the commands.
    pub(super) groups: Vec<Pid>,
}

impl<'a> Loop<'a> {
    /// A loop over running roles, before the start of the application.
    pub(super) fn new(
        plan: &'a Plan,
        signals: &'a SignalFd,
        mounts: &'a mut Mounts,
        children: Children<'a>,
        launcher: Launcher<'a>,
    ) -> Self {
        Self {
            plan,
            signals,
            mounts,
            children,
            launcher,
            hooks: Hooks::new(&plan.hooks, Jitter::new()),
            group: None,
            app_lives: false,
            timer: None,
            looks: Looks::new(RealClock.now()),
            swap: None,
        }
    }

    /// Runs until the machine finishes. The result is the exit code and the processes left.
    pub(super) fn run(mut self) -> (u8, Remains) {
        let (mut machine, first) = Machine::start(&self.plan.app);
        let mut outputs = VecDeque::from(first);
        loop {
            while let Some(output) = outputs.pop_front() {
                if let Output::Finish(code) = output {
                    let mut groups: Vec<_> = self.hooks.running().collect();
                    groups.extend(self.group);
                    let roles = self.children.pids();
                    return (code, Remains { roles, groups });
                }
                for input in self.perform(output) {
                    outputs.extend(machine.step(input));
                }
            }
            // After the outputs, because a new phase replaces the time limit of the phase before.
            if let Some(due) = self.timer
                && due <= RealClock.now()
            {
                self.timer = None;
                outputs.extend(machine.step(Input::Elapsed));
                continue;
            }
            self.wait();
            for input in self.inputs() {
                outputs.extend(machine.step(input));
            }
            observe::report_dropped();
        }
    }

    /// Performs an action. The result is the immediate effects.
    fn perform(&mut self, output: Output) -> Vec<Input> {
        match output {
            Output::StartApp => return self.start_app(),
            Output::SignalApp(signal) => self.signal_app(signal),
            Output::RunCommand(hook) => self.run_command(hook),
            Output::TellFetch(message) => self.children.tell_fetch(message),
            Output::KillRoles => {
                Incident::NotRevoked.emit(&"fetch did not end in time");
                return self.children.stop();
            }
            Output::AbortMount => self.mounts.abort(),
            Output::Arm(after) => {
                let due = RealClock.now().plus(after);
                self.timer = Some(due);
            }
            Output::Finish(_) => {}
        }
        vec![]
    }

    fn start_app(&mut self) -> Vec<Input> {
        let command = &self.plan.app.command;
        match self
            .mounts
            .without_arena(|| self.launcher.start(command, Stdio::App))
        {
            Ok(pid) => {
                Event::AppStarted { pid: pid.as_raw() }.emit();
                self.group = Some(pid);
                self.app_lives = true;
                vec![]
            }
            Err(error) => {
                let program = program(command);
                Incident::AppNotStarted { program }.emit(&format_args!("cannot fork: {error}"));
                let status = ExitStatus::Exited(Exit::CannotExecute.code());
                vec![Input::AppEnded(status)]
            }
        }
    }

    fn signal_app(&mut self, signal: Signal) {
        let Some(group) = self.group else { return };
        if signal == Signal::SIGKILL && self.app_lives {
            Event::AppKilled.emit();
        }
        if let Err(errno) = killpg(group, signal)
            && errno != Errno::ESRCH
        {
            let signal = signal.as_str();
            Incident::NotSignalled { signal }.emit(&errno.desc());
        }
    }

    fn run_command(&mut self, id: HookId) {
        let Some(Action::Command { command, timeout }) = self.hooks.action(id) else {
            return;
        };
        match self
            .mounts
            .without_arena(|| self.launcher.start(command, Stdio::Hook))
        {
            Ok(pid) => {
                let until = RealClock.now().plus(*timeout);
                self.hooks.started(id, pid, until);
            }
            Err(error) => self.command_failed(id, &format!("cannot fork: {error}")),
        }
    }

    fn command_ended(&self, id: HookId, deadline: Deadline, status: ExitStatus) {
        let how = match (deadline, status) {
            (Deadline::Missed, _) => "killed after its timeout",
            (Deadline::Met, ExitStatus::Exited(0)) => return,
            (Deadline::Met, ExitStatus::Exited(126)) => "it cannot be executed (exit code 126)",
            (Deadline::Met, ExitStatus::Exited(127)) => "not found (exit code 127)",
            (Deadline::Met, status) => &status.to_string(),
        };
        self.command_failed(id, how);
    }

    /// Logs the name of the program; arguments are not logged.
    fn command_failed(&self, id: HookId, how: &str) {
        if let Some(Action::Command { command, .. }) = self.hooks.action(id) {
            let program = program(command);
            Incident::CommandFailed { program }.emit(&how);
        }
    }

    /// Waits for a signal, a message, or the next planned moment.
    fn wait(&self) {
        let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let mut fds = vec![signals];
        for link in self.children.links() {
            fds.push(PollFd::new(link.as_fd(), PollFlags::POLLIN));
        }
        let moments = [self.timer, self.hooks.wake(), self.children.wake()];
        let wake = moments
            .into_iter()
            .flatten()
            .fold(self.looks.wake(), Moment::min);
        // Rounded up, because `poll` counts milliseconds: otherwise the loop spins before a timer.
        let left = wake.since(RealClock.now()) + Duration::from_millis(1);
        // After an interrupted or failed wait the loop checks the same sources again.
        let _ = poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        );
    }

    /// The events since the last call: messages first, so that the reason of a role precedes the
    /// death of the role.
    fn inputs(&mut self) -> Vec<Input> {
        let mut turn = Turn {
            now: RealClock.now(),
            ..Turn::default()
        };
        self.children.read(&mut turn);
        // Signals before the reaping, because the CHLD of a later death must wake the loop again.
        while let Ok(Some(info)) = self.signals.read_signal() {
            if let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) {
                turn.inputs.push(Input::Signal(signal));
            }
        }
        self.reap(&mut turn);
        if let Some(group) = self.group
            && !self.app_lives
            && killpg(group, None) == Err(Errno::ESRCH)
        {
            self.group = None;
            self.launcher.ended(group);
            turn.inputs.push(Input::GroupGone);
        }
        self.elapsed(&mut turn);
        turn.inputs
    }

    /// Does the work due at the time of the turn.
    fn elapsed(&mut self, turn: &mut Turn) {
        let now = turn.now;
        for hook in turn.changed.drain(..) {
            self.hooks.changed(hook, now);
        }
        for group in self.hooks.overdue(now) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        for id in self.hooks.due(now) {
            let (how, input) = match self.hooks.action(id) {
                Some(Action::Signal(signal)) => {
                    let input = Input::TellApp(*signal);
                    (signal.as_str(), input)
                }
                Some(Action::Command { command, .. }) => {
                    let program = program(command);
                    (program, Input::RunCommand(id))
                }
                Some(Action::Restart) => ("restart", Input::RestartApp),
                None => continue,
            };
            Event::Notifying { how }.emit();
            turn.inputs.push(input);
        }
        if let Some(look) = self.looks.look(now) {
            self.children.look(look, self.mounts.work_of_serve(), now);
            self.look_for_swap();
        }
        self.children.restart(self.mounts, turn);
        let restarted = turn.inputs.contains(&Input::RoleRestarted(Role::Fetch));
        if restarted && self.swap.is_some() {
            self.children.tell_fetch(ToRole::Swap(self.swap));
        }
    }

    /// Tells `fetch` if the machine has turned a swap on or off: the proof at the start of the agent
    /// holds for the start alone.
    fn look_for_swap(&mut self) {
        let found = self.mounts.swap_risk();
        if found != self.swap {
            self.swap = found;
            match found {
                Some(exposure) => Incident::SwapFound.emit(&exposure),
                None => Event::SwapGone.emit(),
            }
            self.children.tell_fetch(ToRole::Swap(found));
        }
    }

    /// Reaps all dead children: roles, the application, commands, and orphans, which no other process
    /// reaps.
    fn reap(&mut self, turn: &mut Turn) {
        while let Some((pid, status)) = process::next_child() {
            if let Some(code) = status.code() {
                let code = u8::try_from(code).unwrap_or(u8::MAX);
                self.ended(pid, ExitStatus::Exited(code), turn);
            } else if let Some(signal) = status.signal() {
                self.ended(pid, ExitStatus::Killed(signal), turn);
            } else {
                self.children.stopped(pid, !status.continued());
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: ExitStatus, turn: &mut Turn) {
        if self.group == Some(pid) {
            self.app_lives = false;
            let code = status.code();
            Event::AppEnded { code }.emit();
            turn.inputs.push(Input::AppEnded(status));
        } else if let Some((hook, deadline)) = self.hooks.ended(pid) {
            self.launcher.ended(pid);
            self.command_ended(hook, deadline, status);
        } else {
            self.children.ended(pid, status, turn);
        }
    }
}
