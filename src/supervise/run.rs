//! The loop that obeys the machine: one `poll` over signals and links, one timer. Invariant: it decides nothing; a
//! role's last message is read before its death is.

use super::app::{self, Inherited, Terminal};
use super::state::{Ending, Input, Machine, Output, Timer};
use super::world::World;
use crate::clock::{Clock, Moment};
use crate::config::plan::App;
use crate::exit::Exit;
use crate::link::{End, FromRole, Received, ToRole};
use crate::names::Role;
use crate::observe::{self, Event};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

/// A role that runs.
#[derive(Debug)]
pub(super) struct RoleProcess {
    /// Which.
    pub(super) role: Role,
    /// Its process.
    pub(super) pid: Pid,
    /// The link to it, until its end was seen.
    pub(super) link: Option<End>,
    /// Whether its end is no surprise: it said why, or it was killed on purpose.
    pub(super) expected: bool,
}

/// What the loop works with.
pub(super) struct Loop<'a, C> {
    /// Time.
    pub(super) clock: &'a C,
    /// The signals that are read, not caught.
    pub(super) signals: SignalFd,
    /// What the roles serve.
    pub(super) world: &'a mut World,
    /// `fetch`, and on FUSE `serve`.
    pub(super) roles: Vec<RoleProcess>,
    /// What the application is.
    pub(super) app: &'a App,
    /// What it is given.
    pub(super) inherited: &'a Inherited,
    /// The terminal that it is given, if any.
    pub(super) terminal: Option<Terminal>,
    /// Its process group, once it was started.
    pub(super) group: Option<Pid>,
    /// Whether it still lives.
    pub(super) app_lives: bool,
    /// The one timer.
    pub(super) timer: Option<(Timer, Moment)>,
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
                outputs.extend(self.obey(output).into_iter().flat_map(|input| machine.step(input)));
            }
            self.wait();
            for input in self.inputs() {
                outputs.extend(machine.step(input));
            }
            observe::report_dropped();
        }
    }

    /// Does one thing; what comes of it at once is an input.
    fn obey(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::StartApp => return self.start_app(),
            Output::SignalApp(signal) => self.signal_app(signal),
            Output::TellFetch(message) => self.tell_fetch(message),
            Output::KillRoles => self.kill_roles(),
            Output::AbortMount => self.world.abort(),
            Output::Arm(timer, after) => self.timer = Some((timer, self.clock.now().plus(after))),
            Output::Finish(_) => {}
        }
        None
    }

    fn start_app(&mut self) -> Option<Input> {
        match app::start(self.app, self.inherited, self.terminal.as_ref()) {
            Ok(pid) => {
                Event::AppStarted { pid: pid.as_raw() }.emit();
                (self.group, self.app_lives) = (Some(pid), true);
                None
            }
            Err(error) => {
                Event::Broken { what: &format!("no process can be forked for the application: {error}") }.emit();
                Some(Input::AppEnded(Ending::Exited(Exit::CannotExecute.code())))
            }
        }
    }

    fn signal_app(&mut self, signal: Signal) {
        let Some(group) = self.group.filter(|_| self.app_lives) else { return };
        if signal == Signal::SIGKILL {
            Event::AppKilled.emit();
        }
        match killpg(group, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                let what = format!("the application cannot be sent {signal}: {error}; hint: add the capability KILL");
                Event::Skipped { what: &what }.emit();
            }
        }
    }

    fn tell_fetch(&mut self, message: ToRole) {
        let link = self.roles.iter().find(|role| role.role == Role::Fetch).and_then(|role| role.link.as_ref());
        // A role that does not take it is dead or hangs: its end or the timer says so.
        let _ = link.map(|link| link.send(&message));
    }

    fn kill_roles(&mut self) {
        Event::NotRevoked { why: "fetch did not end in time" }.emit();
        for process in &mut self.roles {
            process.expected = true;
            let _ = kill(process.pid, Signal::SIGKILL);
        }
    }

    /// Waits for a signal, a message, or the timer.
    fn wait(&self) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let links = self.roles.iter().filter_map(|role| role.link.as_ref());
        fds.extend(links.map(|link| PollFd::new(link.as_fd(), PollFlags::POLLIN)));
        // Rounded up: a timer that is not quite due must not spin.
        let timeout = self.timer.map_or(PollTimeout::NONE, |(_, due)| {
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
            match i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) {
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
        if let Some((timer, due)) = self.timer
            && due <= self.clock.now()
        {
            self.timer = None;
            inputs.push(Input::Elapsed(timer));
        }
        inputs
    }

    fn messages(&mut self) -> Vec<Input> {
        let mut inputs = vec![];
        for process in &mut self.roles {
            while let Some(link) = &process.link {
                match (link.receive(), process.role) {
                    (Received::Message(FromRole::Ready), Role::Fetch) => inputs.push(Input::SecretsReady),
                    (Received::Message(FromRole::Changed(_)), Role::Fetch) => inputs.push(Input::SecretsChanged),
                    (Received::Message(FromRole::Failed(exit)), _) => {
                        process.expected = true;
                        inputs.push(Input::RoleFailed(exit));
                    }
                    (Received::Message(FromRole::Ready | FromRole::Changed(_)), _) => {}
                    (Received::Empty, _) => break,
                    // The end of the link is the end of the role.
                    (Received::Closed, _) => {
                        process.link = None;
                        let _ = kill(process.pid, Signal::SIGKILL);
                    }
                }
            }
        }
        inputs
    }

    /// Takes every child that has ended: roles, the application, and orphans, which nobody else reaps.
    fn reap(&mut self) -> Vec<Input> {
        let mut inputs = vec![];
        loop {
            let (pid, ending) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Ending::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ending::Killed(signal as i32)),
                Err(Errno::EINTR) => continue,
                Ok(_) | Err(_) => return inputs,
            };
            if self.group == Some(pid) {
                self.app_lives = false;
                Event::AppEnded { code: ending.code() }.emit();
                inputs.push(Input::AppEnded(ending));
            } else if let Some(at) = self.roles.iter().position(|role| role.pid == pid) {
                let process = self.roles.remove(at);
                if !process.expected {
                    report(process.role, ending);
                }
                inputs.push(Input::RoleEnded(process.role));
            }
        }
    }
}

fn report(role: Role, ending: Ending) {
    match ending {
        Ending::Exited(0) => {}
        Ending::Exited(code) => Event::RoleDied { role, how: &format!("exit code {code}") }.emit(),
        Ending::Killed(signal) => Event::RoleDied { role, how: &format!("signal {signal}") }.emit(),
    }
}
