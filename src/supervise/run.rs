//! The loop that obeys the machine and the hooks: one `poll` over signals and links, until the next
//! moment of theirs. Invariant: it decides nothing; a role's last message is read before its death
//! is.

use super::app::{self, Inherited, Stdio, Terminal};
use super::children::Children;
use super::guard::Guard;
use super::hooks::{Deadline, Hooks};
use super::mounts::Mounts;
use super::state::{ExitStatus, Input, Machine, Notification, Output, Timer};
use super::watchdog::Looks;
use crate::clock::{Clock, Moment};
use crate::config::plan::{Action, App};
use crate::exit::Exit;
use crate::link::ToRole;
use crate::names::{Child, HookId, SwapExposure};
use crate::observe::{self, Event, Incident};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

/// What the loop works with.
pub(super) struct Loop<'a, C> {
    /// Time.
    pub(super) clock: &'a C,
    /// The signals that are read, not caught.
    pub(super) signals: SignalFd,
    /// What the roles serve.
    pub(super) mounts: &'a mut Mounts,
    /// `fetch`, and on FUSE `serve`.
    pub(super) children: Children<'a>,
    /// Who knows of the application and the commands, if there is one.
    pub(super) guard: Option<&'a Guard>,
    /// What the application is.
    pub(super) app: &'a App,
    /// What it is given.
    pub(super) inherited: &'a Inherited,
    /// The terminal that it is given, if any.
    pub(super) terminal: Option<Terminal>,
    /// What a rotation asks for, and the commands that run.
    pub(super) hooks: Hooks<'a>,
    /// The application's process group, while there is anybody in it.
    pub(super) group: Option<Pid>,
    /// Whether it still lives.
    pub(super) app_lives: bool,
    /// The machine's one timer.
    pub(super) timer: Option<(Timer, Moment)>,
    /// When it looks after the roles.
    pub(super) looks: Looks,
    /// Why files could reach a swap, as the last look found; `fetch` was told.
    pub(super) swap: Option<SwapExposure>,
}

/// The processes that are left at the end, to be killed and reaped.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// The roles, `serve` first.
    pub(super) roles: Vec<Pid>,
    /// The process groups of the application and of the commands.
    pub(super) groups: Vec<Pid>,
    /// The leaders of these groups that still live.
    pub(super) leaders: Vec<Pid>,
}

impl<C: Clock> Loop<'_, C> {
    /// Runs until the machine finishes; the code to end with.
    pub(super) fn run(&mut self, machine: &mut Machine, first: Vec<Output>) -> u8 {
        let mut outputs = VecDeque::from(first);
        loop {
            while let Some(output) = outputs.pop_front() {
                if let Output::Finish(code) = output {
                    return code;
                }
                outputs.extend(
                    self.obey(output)
                        .into_iter()
                        .flat_map(|input| machine.step(input)),
                );
            }
            self.wait();
            for input in self.inputs() {
                outputs.extend(machine.step(input));
            }
            observe::report_dropped();
        }
    }

    /// The processes that are left when the machine has finished.
    pub(super) fn remains(&mut self) -> Remains {
        let mut leaders: Vec<_> = self.hooks.running().collect();
        let mut groups = leaders.clone();
        if let Some(group) = self.group {
            groups.push(group);
            if self.app_lives {
                leaders.push(group);
            }
        }
        Remains {
            roles: self.children.leave(),
            groups,
            leaders,
        }
    }

    /// Does one thing; what comes of it at once is an input.
    fn obey(&mut self, output: Output) -> Vec<Input> {
        match output {
            Output::StartApp => return self.start_app().into_iter().collect(),
            Output::SignalApp(signal) => self.signal_app(signal),
            Output::RunCommand(hook) => self.run_command(hook),
            Output::TellFetch(message) => self.tell_fetch(message),
            Output::KillRoles => return self.kill_roles(),
            Output::AbortMount => self.mounts.abort(),
            Output::Arm(timer, after) => self.timer = Some((timer, self.clock.now().plus(after))),
            Output::Finish(_) => {}
        }
        vec![]
    }

    fn start_app(&mut self) -> Option<Input> {
        let stdio = Stdio::App(self.terminal.as_ref());
        match self.mounts.without_arena(|| {
            app::start(
                &self.app.command,
                stdio,
                self.app,
                self.inherited,
                self.guard,
            )
        }) {
            Ok(pid) => {
                Event::AppStarted { pid: pid.as_raw() }.emit();
                (self.group, self.app_lives) = (Some(pid), true);
                None
            }
            Err(error) => {
                let program = &self.app.command[0];
                Incident::AppNotStarted { program }.emit(&format_args!("cannot fork: {error}"));
                Some(Input::AppEnded(ExitStatus::Exited(
                    Exit::CannotExecute.code(),
                )))
            }
        }
    }

    fn signal_app(&mut self, signal: Signal) {
        let Some(group) = self.group else { return };
        if signal == Signal::SIGKILL && self.app_lives {
            Event::AppKilled.emit();
        }
        match killpg(group, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                let signal = signal.as_str();
                Incident::NotSignalled { signal }.emit(&errno.desc());
            }
        }
    }

    fn run_command(&mut self, id: HookId) {
        let Some(Action::Command { command, timeout }) =
            self.hooks.hook(id).map(|hook| &hook.action)
        else {
            return;
        };
        match self.mounts.without_arena(|| {
            app::start(command, Stdio::Hook, self.app, self.inherited, self.guard)
        }) {
            Ok(pid) => self.hooks.started(id, pid, self.clock.now().plus(*timeout)),
            Err(error) => self.command_failed(id, &format!("no process can be forked: {error}")),
        }
    }

    fn command_ended(&self, id: HookId, deadline: Deadline, ending: ExitStatus) {
        match (deadline, ending) {
            (Deadline::Missed, _) => self.command_failed(id, "killed after its timeout"),
            (Deadline::Met, ExitStatus::Exited(0)) => {}
            (Deadline::Met, ExitStatus::Exited(126)) => {
                self.command_failed(id, "it cannot be executed (exit code 126)");
            }
            (Deadline::Met, ExitStatus::Exited(127)) => {
                self.command_failed(id, "not found (exit code 127)");
            }
            (Deadline::Met, ending) => self.command_failed(id, &ending.to_string()),
        }
    }

    /// One warning with the program's name: its arguments are the user's affair.
    fn command_failed(&self, id: HookId, how: &str) {
        if let Some(Action::Command { command, .. }) = self.hooks.hook(id).map(|hook| &hook.action)
        {
            let program = command.first().map_or("", String::as_str);
            Incident::CommandFailed { program }.emit(&how);
        }
    }

    fn tell_fetch(&mut self, message: ToRole) {
        // A role that does not take it is dead or hangs: its successor is told, or the timer says
        // so.
        let _ = self.children.fetch().map(|link| link.send(&message));
    }

    fn kill_roles(&mut self) -> Vec<Input> {
        Incident::NotRevoked.emit(&"fetch did not end in time");
        self.children.stop()
    }

    /// Waits for a signal, a message, or the next moment of the machine or the hooks.
    fn wait(&self) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.children
                .links()
                .map(|link| PollFd::new(link.as_fd(), PollFlags::POLLIN)),
        );
        // Rounded up: a timer that is not quite due must not spin.
        let wake = self
            .timer
            .map(|(_, due)| due)
            .into_iter()
            .chain(self.hooks.wake())
            .chain(self.children.wake())
            .chain([self.looks.wake()])
            .min();
        let timeout = wake.map_or(PollTimeout::NONE, |due| {
            let left = due.since(self.clock.now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // An interrupted or failed wait is a look at the same things again.
        let _ = poll(&mut fds, timeout);
    }

    /// What has happened: messages first, so that a role's reason is known before its death.
    fn inputs(&mut self) -> Vec<Input> {
        let mut inputs = self.messages();
        while let Ok(Some(info)) = self.signals.read_signal() {
            match i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|number| Signal::try_from(number).ok())
            {
                Some(Signal::SIGCHLD) | None => {}
                Some(signal) => inputs.push(Input::Signal(signal)),
            }
        }
        let dead = self.reap();
        if !dead.is_empty() {
            // What a role said between the first look and its death.
            inputs.extend(self.messages());
        }
        inputs.extend(dead);
        let app_lives = self.app_lives;
        if let Some(group) = self
            .group
            .take_if(|group| !app_lives && killpg(*group, None) == Err(Errno::ESRCH))
        {
            self.guard.inspect(|guard| guard.tell(-group.as_raw()));
            inputs.push(Input::GroupGone);
        }
        inputs.extend(self.elapsed(self.clock.now()));
        inputs
    }

    /// What it is time for.
    fn elapsed(&mut self, now: Moment) -> Vec<Input> {
        let timer = self
            .timer
            .take_if(|(_, due)| *due <= now)
            .map(|(timer, _)| Input::Elapsed(timer));
        for group in self.hooks.overdue(now) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let due: Vec<_> = self
            .hooks
            .due(now)
            .into_iter()
            .filter_map(|id| Some((id, &self.hooks.hook(id)?.action)))
            .collect();
        let told = due.into_iter().map(|(id, action)| {
            let (how, due) = match action {
                Action::Signal(signal) => (signal.as_str(), Notification::Signal(*signal)),
                Action::Command { command, .. } => (
                    command.first().map_or("", String::as_str),
                    Notification::Command(id),
                ),
                Action::Restart => ("restart", Notification::Restart),
            };
            Event::Notifying { how }.emit();
            Input::Notify(due)
        });
        let told: Vec<_> = told.collect();
        if let Some(look) = self.looks.look(now) {
            self.children.look(look, self.mounts.work_of_serve(), now);
            self.look_for_swap();
        }
        let born = self.children.turn(self.mounts, &self.signals, now);
        if born.contains(&Input::RoleRestarted(Child::Fetch)) && self.swap.is_some() {
            self.tell_fetch(ToRole::Swap(self.swap));
        }
        timer.into_iter().chain(told).chain(born).collect()
    }

    /// Looks whether the machine has turned a swap on, or off: that files cannot reach one was
    /// proved for the start alone.
    fn look_for_swap(&mut self) {
        let found = self.mounts.swap_risk();
        if found != self.swap {
            self.swap = found;
            match found {
                Some(exposure) => Incident::SwapFound.emit(&exposure),
                None => Event::SwapGone.emit(),
            }
            self.tell_fetch(ToRole::Swap(found));
        }
    }

    fn messages(&mut self) -> Vec<Input> {
        let (inputs, hooks) = self.children.messages(self.clock.now());
        for hook in hooks {
            self.hooks.asked(hook, self.clock.now());
        }
        inputs
    }

    /// Takes every child that has ended: roles, the application, commands, and orphans, which
    /// nobody else reaps.
    fn reap(&mut self) -> Vec<Input> {
        let mut inputs = vec![];
        loop {
            let (pid, ending) = match waitpid(
                None,
                Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED),
            ) {
                Ok(WaitStatus::Exited(pid, code)) => (
                    pid,
                    ExitStatus::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
                ),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, ExitStatus::Killed(signal as i32))
                }
                Ok(WaitStatus::Stopped(pid, _)) => {
                    self.children.stopped(pid, true);
                    continue;
                }
                Ok(WaitStatus::Continued(pid)) => {
                    self.children.stopped(pid, false);
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Ok(_) | Err(_) => return inputs,
            };
            if self.group == Some(pid) {
                self.app_lives = false;
                Event::AppEnded {
                    code: ending.code(),
                }
                .emit();
                inputs.push(Input::AppEnded(ending));
            } else if let Some((hook, deadline)) = self.hooks.ended(pid) {
                self.guard.inspect(|guard| guard.tell(-pid.as_raw()));
                self.command_ended(hook, deadline, ending);
            } else {
                inputs.extend(self.children.ended(pid, ending, self.clock.now()));
            }
        }
    }
}
