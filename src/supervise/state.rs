//! The policy of PID 1 as a pure machine: `step(input) -> outputs`. Invariants: the application
//! starts after the first secrets, and again only after a restart has ended the predecessor;
//! nothing starts once a stop has begun; the token is revoked after the end of the application;
//! exactly one `Finish` ends the machine.

use super::guard::REVOKE_TIMEOUT;
use crate::config::plan::{App, OnHup};
use crate::exit::Exit;
use crate::link::ToRole;
use crate::names::{HookId, Role};
use Phase::{Clearing, Finished, Restarting, Revoking, Running, StoppingApp, Waiting};
use nix::sys::signal::Signal;
use std::fmt;
use std::time::Duration;

/// The time limit for the end of a killed process.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);
/// The exit code after KILL, as in a shell.
const KILLED: u8 = 128 + 9;

/// The meaning of a signal to baofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalClass {
    /// Begins the ordered stop; a second signal shortens the stop.
    Stop,
    /// Reloads the application, the secrets without a lease, or both; see `OnHup`.
    Reload,
    /// Goes to the application.
    Relay,
}

/// The signals handled by baofs; all others keep the kernel's default.
pub const SIGNALS: [(&[Signal], SignalClass); 3] = [
    (
        &[Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT],
        SignalClass::Stop,
    ),
    (&[Signal::SIGHUP], SignalClass::Reload),
    (
        &[
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
            Signal::SIGCONT,
            Signal::SIGTSTP,
        ],
        SignalClass::Relay,
    ),
];

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By an exit with a code.
    Exited(u8),
    /// By a signal.
    Killed(i32),
}

impl ExitStatus {
    /// The code of a shell: 128+n for signal n.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => {
                let code = 128 + signal;
                u8::try_from(code).unwrap_or(u8::MAX)
            }
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// An event of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A signal reached supervise. A signal without a row in `SIGNALS` has no effect.
    Signal(Signal),
    /// Every first secret is published.
    SecretsReady,
    /// A signal is due that tells the application of a rotation.
    TellApp(Signal),
    /// The command of a hook is due after a rotation.
    RunCommand(HookId),
    /// A stop and a start of the application are due after a rotation.
    RestartApp,
    /// A role announced the reason of a coming end.
    RoleFailed(Role, Exit),
    /// A role ended and will not be restarted.
    RoleEnded(Role),
    /// The successor of a dead role was started.
    RoleRestarted(Role),
    /// The application ended.
    AppEnded(ExitStatus),
    /// The application's process group is empty.
    GroupGone,
    /// The time limit of the present phase is over.
    Elapsed,
}

/// An action for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Start the application.
    StartApp,
    /// Signal all processes of the application's process group.
    SignalApp(Signal),
    /// Run the command of a hook.
    RunCommand(HookId),
    /// Send a message to `fetch`.
    TellFetch(ToRole),
    /// Kill the roles, because `fetch` did not end in time.
    KillRoles,
    /// Fail the pending requests of readers, because `serve` is dead.
    AbortMount,
    /// Set the time limit of the phase that begins; the limit of an earlier phase is void.
    Arm(Duration),
    /// Tear everything down and exit with a code.
    Finish(u8),
}

/// The state of the machine. A `code` is the agent's exit code, unless a later event decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the first secrets.
    Waiting,
    /// The application runs (or, for `mount`, the files are served).
    Running,
    /// The application was asked to end, or killed, and will be started again.
    Restarting { killed: bool },
    /// The application ended for a restart; the rest of its group was killed and must be gone
    /// before the next start needs its port.
    Clearing { code: u8 },
    /// The application was asked to end, or killed; without a `code`, the application's own counts.
    StoppingApp { code: Option<u8>, killed: bool },
    /// `fetch` was asked to revoke the token and to end, or killed; without a `code`, the first
    /// secrets are missing, and the reason that `fetch` gives counts.
    Revoking { code: Option<u8>, killed: bool },
    /// After `Finish`.
    Finished,
}

/// The machine.
#[derive(Debug)]
pub struct Machine<'a> {
    app: &'a App,
    phase: Phase,
    /// The reason that each role gave for its end, until its next start; indexed by `Role`.
    reasons: [Option<Exit>; 2],
    /// Whether `fetch` has not ended for good: the dead cannot revoke the token.
    fetch_lives: bool,
}

impl<'a> Machine<'a> {
    /// A machine and its first outputs.
    pub fn start(app: &'a App) -> (Self, Vec<Output>) {
        let machine = Self {
            app,
            phase: Waiting,
            reasons: [None; 2],
            fetch_lives: true,
        };
        (machine, vec![Output::Arm(app.wait)])
    }

    /// Whether the plan has an application (`run`), or only files (`mount`).
    fn has_app(&self) -> bool {
        !self.app.command.is_empty()
    }

    /// Takes one input. An input that has no meaning in the present phase has no effect.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match (self.phase, input) {
            (_, Input::Signal(signal)) => self.signal(signal),
            (_, Input::Elapsed) => self.elapsed(),
            (_, Input::RoleEnded(role)) => self.role_ended(role),
            (_, Input::RoleRestarted(role)) => self.role_restarted(role),
            (_, Input::RoleFailed(role, exit)) => {
                self.reasons[role as usize] = Some(exit);
                vec![]
            }
            (Waiting, Input::SecretsReady) | (Clearing { .. }, Input::GroupGone) => {
                self.start_app()
            }
            (_, Input::RunCommand(hook)) if self.serves() => vec![Output::RunCommand(hook)],
            // An application that is being restarted will read the new files without a signal.
            (Running, Input::TellApp(signal)) => self.relay(signal),
            (Running, Input::RestartApp) if self.has_app() => {
                self.phase = Restarting { killed: false };
                self.ask_app(self.app.stop_signal)
            }
            (Running, Input::AppEnded(status)) => self.revoke(status.code()),
            (Restarting { .. }, Input::AppEnded(status)) => {
                let code = status.code();
                self.phase = Clearing { code };
                kill_and_wait()
            }
            (StoppingApp { code, .. }, Input::AppEnded(status)) => {
                self.revoke(code.unwrap_or(status.code()))
            }
            (
                _,
                Input::SecretsReady
                | Input::TellApp(_)
                | Input::RunCommand(_)
                | Input::RestartApp
                | Input::AppEnded(_)
                | Input::GroupGone,
            ) => vec![],
        }
    }

    fn signal(&mut self, signal: Signal) -> Vec<Output> {
        match SIGNALS.iter().find(|(row, _)| row.contains(&signal)) {
            Some((_, SignalClass::Stop)) => self.stop(signal),
            Some((_, SignalClass::Reload)) => self.reload(signal),
            Some((_, SignalClass::Relay)) => self.relay(signal),
            None => vec![],
        }
    }

    fn stop(&mut self, signal: Signal) -> Vec<Output> {
        match (self.phase, self.has_app()) {
            (Waiting | Running, false) => self.revoke(Exit::Ok.code()),
            (Waiting, true) => self.revoke(128 + signal as u8),
            (Running, true) => self.stop_app(signal, None),
            (Restarting { killed }, _) => self.stop_restart(killed, None),
            (Clearing { code }, _) => self.revoke(code),
            (StoppingApp { code, .. }, _) => self.kill_app(code),
            (Revoking { .. } | Finished, _) => vec![],
        }
    }

    fn reload(&self, signal: Signal) -> Vec<Output> {
        let mut outputs = vec![];
        if self.app.on_hup != OnHup::Refresh {
            outputs = self.relay(signal);
        }
        let may_refresh = self.phase == Waiting || self.serves();
        if self.app.on_hup != OnHup::App && may_refresh {
            outputs.push(Output::TellFetch(ToRole::Refresh));
        }
        outputs
    }

    fn relay(&self, signal: Signal) -> Vec<Output> {
        let stopping = matches!(self.phase, StoppingApp { .. });
        if self.has_app() && (stopping || self.serves()) {
            vec![Output::SignalApp(signal)]
        } else {
            vec![]
        }
    }

    /// Whether the first secrets are published and no stop has begun.
    fn serves(&self) -> bool {
        matches!(self.phase, Running | Restarting { .. } | Clearing { .. })
    }

    fn start_app(&mut self) -> Vec<Output> {
        self.phase = Running;
        if self.has_app() {
            vec![Output::StartApp]
        } else {
            vec![]
        }
    }

    /// Repeats the last message for a successor of `fetch`. The reason of the dead process is void;
    /// the reason of the other role stays.
    fn role_restarted(&mut self, role: Role) -> Vec<Output> {
        self.reasons[role as usize] = None;
        match (role, self.phase) {
            (Role::Fetch, Revoking { code, killed }) if !killed => {
                vec![Output::TellFetch(last_request(code))]
            }
            _ => vec![],
        }
    }

    fn role_ended(&mut self, role: Role) -> Vec<Output> {
        let reason = self.code_of(role);
        let mut outputs = vec![];
        match role {
            Role::Serve => outputs.push(Output::AbortMount),
            Role::Fetch => self.fetch_lives = false,
        }
        outputs.extend(match (self.phase, role) {
            (Running, _) if self.has_app() => {
                let signal = self.app.stop_signal;
                self.stop_app(signal, Some(reason))
            }
            (Waiting | Running | Clearing { .. }, _) => self.revoke(reason),
            (Restarting { killed }, _) => self.stop_restart(killed, Some(reason)),
            (StoppingApp { code, killed }, _) => {
                let code = code.or(Some(reason));
                self.phase = StoppingApp { code, killed };
                vec![]
            }
            (Revoking { code, .. }, Role::Fetch) => {
                let code = code.unwrap_or(reason);
                self.finish(code)
            }
            (Revoking { .. } | Finished, _) => vec![],
        });
        outputs
    }

    /// The agent's exit code after the end of `role`: the reason that the role gave, if any.
    fn code_of(&self, role: Role) -> u8 {
        match self.reasons[role as usize] {
            None | Some(Exit::Ok) => Exit::Software.code(),
            Some(reason) => reason.code(),
        }
    }

    /// A limit of an earlier phase can elapse in a phase without a limit, and has no effect then.
    fn elapsed(&mut self) -> Vec<Output> {
        match self.phase {
            Waiting => self.ask_fetch(None),
            // After KILL the machine waits for the end without a limit, because two applications
            // never run side by side.
            Restarting { killed: false } => {
                self.phase = Restarting { killed: true };
                vec![Output::SignalApp(Signal::SIGKILL)]
            }
            // A process still in the group is no child of supervise, so the start does not wait.
            Clearing { .. } => self.start_app(),
            StoppingApp {
                code,
                killed: false,
            } => self.kill_app(code),
            // KILL does not end a process that hangs in the kernel. The token is revoked all the
            // same.
            StoppingApp { code, killed: true } => {
                let code = code.unwrap_or(KILLED);
                self.revoke(code)
            }
            Revoking {
                code,
                killed: false,
            } => self.kill_roles(code),
            // A `fetch` that hangs in the kernel must not keep the container alive.
            Revoking { code, killed: true } => {
                self.finish(code.unwrap_or_else(|| self.code_of(Role::Fetch)))
            }
            Running | Restarting { killed: true } | Finished => vec![],
        }
    }

    /// `fetch` limits the time of its requests, so a `fetch` that is late hangs. A thread of `fetch`
    /// that waits for `serve` dies only after an answer, hence the abort.
    fn kill_roles(&mut self, code: Option<u8>) -> Vec<Output> {
        // Swarm would take an exit with 0 for a finished job.
        let code = match code {
            Some(0) => Some(Exit::Software.code()),
            other => other,
        };
        self.phase = Revoking { code, killed: true };
        vec![
            Output::KillRoles,
            Output::AbortMount,
            Output::Arm(KILL_TIMEOUT),
        ]
    }

    fn stop_app(&mut self, signal: Signal, code: Option<u8>) -> Vec<Output> {
        let killed = false;
        self.phase = StoppingApp { code, killed };
        self.ask_app(signal)
    }

    /// CONT follows, because a stopped process cannot end in order.
    fn ask_app(&self, signal: Signal) -> Vec<Output> {
        vec![
            Output::SignalApp(signal),
            Output::SignalApp(Signal::SIGCONT),
            Output::Arm(self.app.stop_timeout),
        ]
    }

    /// Turns a restart into a stop. The application was asked to end before, so its timer goes on.
    fn stop_restart(&mut self, killed: bool, code: Option<u8>) -> Vec<Output> {
        if killed {
            return self.kill_app(code);
        }
        self.phase = StoppingApp { code, killed };
        vec![]
    }

    fn kill_app(&mut self, code: Option<u8>) -> Vec<Output> {
        self.phase = StoppingApp { code, killed: true };
        kill_and_wait()
    }

    fn revoke(&mut self, code: u8) -> Vec<Output> {
        if self.fetch_lives {
            self.ask_fetch(Some(code))
        } else {
            self.finish(code)
        }
    }

    fn ask_fetch(&mut self, code: Option<u8>) -> Vec<Output> {
        let killed = false;
        self.phase = Revoking { code, killed };
        vec![
            Output::TellFetch(last_request(code)),
            Output::Arm(REVOKE_TIMEOUT),
        ]
    }

    fn finish(&mut self, code: u8) -> Vec<Output> {
        self.phase = Finished;
        vec![Output::Finish(code)]
    }
}

fn kill_and_wait() -> Vec<Output> {
    vec![
        Output::SignalApp(Signal::SIGKILL),
        Output::Arm(KILL_TIMEOUT),
    ]
}

/// The request that ends `fetch`: without an exit code yet, `fetch` reports the missing secrets
/// first.
fn last_request(code: Option<u8>) -> ToRole {
    match code {
        Some(_) => ToRole::Stop,
        None => ToRole::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::plan;
    use Input::{AppEnded, Elapsed, GroupGone, RoleEnded, RoleFailed, RoleRestarted, SecretsReady};
    use Output::{AbortMount, Arm, Finish, KillRoles, RunCommand, SignalApp, StartApp, TellFetch};
    use ToRole::{GiveUp, Refresh, Stop};
    use proptest::prelude::*;

    const WAIT: Duration = Duration::from_secs(30);
    const STOP: Duration = Duration::from_secs(6);
    const TERM: Input = Input::Signal(Signal::SIGTERM);
    const ASK_REVOKE: [Output; 2] = [TellFetch(Stop), Arm(REVOKE_TIMEOUT)];
    const ASK_TERM: [Output; 3] = [
        SignalApp(Signal::SIGTERM),
        SignalApp(Signal::SIGCONT),
        Arm(STOP),
    ];
    const KILL: [Output; 2] = [SignalApp(Signal::SIGKILL), Arm(KILL_TIMEOUT)];
    const ABANDON: [Output; 3] = [KillRoles, AbortMount, Arm(KILL_TIMEOUT)];
    const RESTART: Input = Input::RestartApp;
    const COMMAND: Input = Input::RunCommand(HookId(3));
    const TELL: Input = Input::TellApp(Signal::SIGUSR1);
    const TROUBLE: u8 = Exit::Software as u8;

    fn app(has_app: bool) -> App {
        let command = if has_app { vec!["app".into()] } else { vec![] };
        App {
            command,
            wait: WAIT,
            stop_signal: Signal::SIGTERM,
            stop_timeout: STOP,
            on_hup: OnHup::Both,
            ..plan(vec![], vec![]).app
        }
    }

    /// Drives a fresh machine through `script` and compares what it wants done at each step.
    fn drive(has_app: bool, script: &[(Input, &[Output])]) {
        let app = app(has_app);
        let (mut machine, first) = Machine::start(&app);
        assert_eq!(first, [Arm(WAIT)]);
        for (n, (input, outputs)) in script.iter().enumerate() {
            assert_eq!(machine.step(*input), *outputs, "step {n}: {input:?}");
        }
    }

    #[test]
    fn the_ordinary_life() {
        let ended = AppEnded(ExitStatus::Exited(7));
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (ended, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(7)]),
            ],
        );
    }

    #[test]
    fn a_signal_death_is_128_plus_n() {
        let ended = AppEnded(ExitStatus::Killed(9));
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (ended, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(137)]),
            ],
        );
    }

    #[test]
    fn term_is_relayed_then_killed_in_time() {
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (TERM, &ASK_TERM),
                (Elapsed, &KILL),
                (AppEnded(ExitStatus::Killed(9)), &ASK_REVOKE),
                (Elapsed, &ABANDON),
                (RoleEnded(Role::Fetch), &[Finish(137)]),
            ],
        );
    }

    #[test]
    fn a_fetch_that_hangs_is_no_end_with_0() {
        let (hung, killed) = (Elapsed, ABANDON);
        let stop = |ended| {
            [
                (SecretsReady, &[StartApp][..]),
                (AppEnded(ExitStatus::Exited(ended)), &ASK_REVOKE),
                (hung, &killed),
            ]
        };
        for (ended, code) in [(0, Exit::Software.code()), (7, 7)] {
            // Killed, it ends; or it hangs in the kernel, where KILL does not reach it.
            for last in [RoleEnded(Role::Fetch), hung] {
                drive(
                    true,
                    &[&stop(ended)[..], &[(last, &[Finish(code)])]].concat(),
                );
            }
        }
        let gave_up = [TellFetch(GiveUp), Arm(REVOKE_TIMEOUT)];
        let said = RoleFailed(Role::Fetch, Exit::Login);
        drive(
            true,
            &[
                (Elapsed, &gave_up),
                (said, &[]),
                (hung, &ABANDON),
                (hung, &[Finish(Exit::Login.code())]),
            ],
        );
    }

    #[test]
    fn a_second_term_skips_the_wait_for_the_app_but_not_the_revocation() {
        let killed = AppEnded(ExitStatus::Killed(9));
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (TERM, &ASK_TERM),
                (TERM, &KILL),
                (killed, &ASK_REVOKE),
                (TERM, &[]),
            ],
        );
    }

    #[test]
    fn an_app_that_cannot_even_be_killed_does_not_keep_the_token_alive() {
        let elapsed = Elapsed;
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (TERM, &ASK_TERM),
                (elapsed, &KILL),
                (elapsed, &ASK_REVOKE),
            ],
        );
    }

    #[test]
    fn hup_does_what_the_plan_says() {
        let (hup, relayed, refresh) = (
            Input::Signal(Signal::SIGHUP),
            SignalApp(Signal::SIGHUP),
            TellFetch(Refresh),
        );
        let table: [(OnHup, bool, [&[Output]; 3]); 4] = [
            (
                OnHup::Both,
                true,
                [&[refresh], &[relayed, refresh], &[relayed]],
            ),
            (OnHup::App, true, [&[], &[relayed], &[relayed]]),
            (OnHup::Refresh, true, [&[refresh], &[refresh], &[]]),
            (OnHup::Both, false, [&[refresh], &[refresh], &[]]),
        ];
        for (on_hup, has_app, [waiting, running, stopping]) in table {
            let app = App {
                on_hup,
                ..app(has_app)
            };
            let (mut machine, _) = Machine::start(&app);
            assert_eq!(machine.step(hup), waiting, "{on_hup:?}, waiting");
            machine.step(SecretsReady);
            assert_eq!(machine.step(hup), running, "{on_hup:?}, running");
            machine.step(TERM);
            assert_eq!(machine.step(hup), stopping, "{on_hup:?}, stopping");
        }
    }

    #[test]
    fn the_signals_of_the_application_are_relayed_while_it_lives() {
        for signal in SIGNALS
            .iter()
            .filter(|(_, class)| *class == SignalClass::Relay)
            .flat_map(|(signals, _)| *signals)
        {
            let (input, relayed) = (Input::Signal(*signal), [SignalApp(*signal)]);
            let ended = AppEnded(ExitStatus::Exited(0));
            let script: &[(Input, &[Output])] = &[
                (input, &[]),
                (SecretsReady, &[StartApp]),
                (input, &relayed),
                (TERM, &ASK_TERM),
                (input, &relayed),
                (ended, &ASK_REVOKE),
                (input, &[]),
            ];
            drive(true, script);
        }
    }

    #[test]
    fn readme_has_the_table_of_signals() {
        let readme = include_str!("../../README.md");
        for (signals, class) in SIGNALS {
            // The effect before the first secrets, while the application runs, and while the
            // application stops.
            let words = match class {
                SignalClass::Stop => [
                    "the token is revoked, exit 128+n",
                    "relayed, and the stop begins",
                    "the application is killed",
                ],
                SignalClass::Reload => [
                    "secrets are read again",
                    "relayed, and secrets are read again",
                    "relayed",
                ],
                SignalClass::Relay => ["nothing", "relayed", "relayed"],
            };
            let names: Vec<_> = signals
                .iter()
                .map(|signal| signal.as_str().trim_start_matches("SIG"))
                .collect();
            let row = format!("| {} | {} |", names.join(", "), words.join(" | "));
            assert!(readme.contains(&row), "README lacks {row}");
        }
    }

    #[test]
    fn term_while_waiting_revokes_and_ends_with_143() {
        drive(
            true,
            &[
                (TERM, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(143)]),
                (SecretsReady, &[]),
            ],
        );
    }

    #[test]
    fn an_elapsed_wait_asks_fetch_for_the_reason() {
        let gave_up = [TellFetch(GiveUp), Arm(REVOKE_TIMEOUT)];
        drive(
            true,
            &[
                (Elapsed, &gave_up),
                (SecretsReady, &[]),
                (RoleFailed(Role::Fetch, Exit::Login), &[]),
                (RoleEnded(Role::Fetch), &[Finish(Exit::Login.code())]),
            ],
        );
        drive(
            true,
            &[
                (Elapsed, &gave_up),
                (Elapsed, &ABANDON),
                (RoleEnded(Role::Fetch), &[Finish(70)]),
            ],
        );
    }

    #[test]
    fn the_death_of_a_role_stops_the_app_and_has_a_code_of_its_own() {
        let ended = AppEnded(ExitStatus::Exited(0));
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (RoleEnded(Role::Fetch), &ASK_TERM),
                (ended, &[Finish(70)]),
            ],
        );
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (
                    RoleEnded(Role::Serve),
                    &[AbortMount, ASK_TERM[0], ASK_TERM[1], ASK_TERM[2]],
                ),
                (ended, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(70)]),
            ],
        );
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (TERM, &ASK_TERM),
                (RoleEnded(Role::Fetch), &[]),
                (ended, &[Finish(70)]),
            ],
        );
    }

    #[test]
    fn a_restart_of_one_role_leaves_the_reason_of_the_other() {
        let (fetch, serve) = (
            RoleFailed(Role::Fetch, Exit::Login),
            RoleFailed(Role::Serve, Exit::Memory),
        );
        let (login, memory) = (Exit::Login.code(), Exit::Memory.code());
        // What is said and born before the role of the row ends for good, and the code of the
        // agent.
        let table: &[(&[Input], Role, u8)] = &[
            (&[fetch, RoleRestarted(Role::Serve)], Role::Fetch, login),
            (&[serve, RoleRestarted(Role::Fetch)], Role::Serve, memory),
            (
                &[serve, fetch, RoleRestarted(Role::Serve)],
                Role::Fetch,
                login,
            ),
            (&[fetch, serve], Role::Fetch, login),
            (&[fetch, RoleRestarted(Role::Fetch)], Role::Fetch, TROUBLE),
            (&[fetch], Role::Serve, TROUBLE),
        ];
        for (before, role, code) in table {
            let app = app(true);
            let (mut machine, _) = Machine::start(&app);
            let mut outputs: Vec<_> = before
                .iter()
                .flat_map(|input| machine.step(*input))
                .collect();
            outputs.extend(
                [RoleEnded(*role), RoleEnded(Role::Fetch)]
                    .into_iter()
                    .flat_map(|input| machine.step(input)),
            );
            assert_eq!(
                outputs.last(),
                Some(&Finish(*code)),
                "{before:?}, then {role:?} ends"
            );
        }
    }

    #[test]
    fn mount_has_no_app_and_ends_well_when_asked() {
        drive(
            false,
            &[(TERM, &ASK_REVOKE), (RoleEnded(Role::Fetch), &[Finish(0)])],
        );
        let run = [RunCommand(HookId(3))];
        drive(
            false,
            &[
                (SecretsReady, &[]),
                (TELL, &[]),
                (RESTART, &[]),
                (COMMAND, &run),
                (TERM, &ASK_REVOKE),
                (COMMAND, &[]),
            ],
        );
        drive(
            false,
            &[
                (SecretsReady, &[]),
                (TERM, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(0)]),
            ],
        );
    }

    #[test]
    fn a_rotation_is_told_only_while_the_app_runs() {
        let (told, run) = ([SignalApp(Signal::SIGUSR1)], [RunCommand(HookId(3))]);
        drive(
            true,
            &[
                (TELL, &[]),
                (COMMAND, &[]),
                (RESTART, &[]),
                (SecretsReady, &[StartApp]),
                (TELL, &told),
                (COMMAND, &run),
                (TERM, &ASK_TERM),
                (TELL, &[]),
                (COMMAND, &[]),
                (RESTART, &[]),
            ],
        );
    }

    const ENDED: Input = AppEnded(ExitStatus::Exited(7));

    #[test]
    fn a_restart_is_a_stop_and_a_start() {
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (RESTART, &ASK_TERM),
                // The next one reads the new files anyway.
                (RESTART, &[]),
                (TELL, &[]),
                (COMMAND, &[RunCommand(HookId(3))]),
                (ENDED, &KILL),
                (RESTART, &[]),
                (GroupGone, &[StartApp]),
                (GroupGone, &[]),
                (Elapsed, &[]),
                (RESTART, &ASK_TERM),
                (Elapsed, &KILL[..1]),
                (Elapsed, &[]),
                (ENDED, &KILL),
                (Elapsed, &[StartApp]),
                (AppEnded(ExitStatus::Exited(127)), &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(127)]),
            ],
        );
    }

    #[test]
    fn a_stop_during_a_restart_keeps_its_timer() {
        let began: [(Input, &[Output]); 2] = [(SecretsReady, &[StartApp]), (RESTART, &ASK_TERM)];
        let killed = [(Elapsed, &KILL[..1])];
        let serve = RoleEnded(Role::Serve);
        let lost = [AbortMount, ASK_REVOKE[0], ASK_REVOKE[1]];
        let table: &[&[(Input, &[Output])]] = &[
            &[
                (TERM, &[]),
                (TERM, &KILL),
                (ENDED, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(7)]),
            ],
            &[(TERM, &[]), (Elapsed, &KILL), (Elapsed, &ASK_REVOKE)],
            &[killed[0], (TERM, &KILL), (Elapsed, &ASK_REVOKE)],
            &[
                (ENDED, &KILL),
                (TERM, &ASK_REVOKE),
                (GroupGone, &[]),
                (RoleEnded(Role::Fetch), &[Finish(7)]),
            ],
            &[
                (serve, &[AbortMount]),
                (ENDED, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(TROUBLE)]),
            ],
            &[
                (ENDED, &KILL),
                (serve, &lost),
                (RoleEnded(Role::Fetch), &[Finish(TROUBLE)]),
            ],
        ];
        for rest in table {
            drive(true, &[&began, *rest].concat());
        }
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            prop_oneof![
                Just(Signal::SIGTERM),
                Just(Signal::SIGHUP),
                Just(Signal::SIGINT)
            ]
            .prop_map(Input::Signal),
            Just(SecretsReady),
            prop_oneof![Just(RESTART), Just(TELL), Just(COMMAND)],
            prop_oneof![
                Just(RoleFailed(Role::Fetch, Exit::Login)),
                Just(RoleFailed(Role::Serve, Exit::Memory))
            ],
            prop_oneof![Just(Role::Fetch), Just(Role::Serve)].prop_map(RoleEnded),
            prop_oneof![Just(Role::Fetch), Just(Role::Serve)].prop_map(RoleRestarted),
            any::<u8>().prop_map(|code| AppEnded(ExitStatus::Exited(code))),
            Just(GroupGone),
            Just(Elapsed),
        ]
    }

    /// Whether an input leaves the agent where it is: no stop, no end, no wait that is over.
    fn is_no_end(input: Input) -> bool {
        matches!(
            input,
            SecretsReady
                | Input::TellApp(_)
                | Input::RunCommand(_)
                | Input::RestartApp
                | RoleFailed(..)
                | RoleRestarted(_)
        )
    }

    /// All that a machine wants done for `inputs`, an end of the application only while it lives;
    /// whether it lives is followed, and that there is never a second one.
    fn live(machine: &mut Machine<'_>, inputs: Vec<Input>, lives: &mut bool) -> Vec<Output> {
        let mut all = vec![];
        for input in inputs {
            let ends = matches!(input, AppEnded(_));
            if ends && !*lives {
                continue;
            }
            *lives &= !ends;
            let outputs = machine.step(input);
            for _ in outputs.iter().filter(|output| **output == StartApp) {
                assert!(!*lives, "a second application is started");
                *lives = true;
            }
            all.extend(outputs);
        }
        all
    }

    proptest! {
        #[test]
        fn one_app_at_a_time_and_one_end_whatever_comes(inputs in proptest::collection::vec(any_input(), 0..80)) {
            let app = app(true);
            let (mut machine, _) = Machine::start(&app);
            let outputs = live(&mut machine, inputs, &mut false);
            prop_assert!(outputs.iter().filter(|o| matches!(o, Finish(_))).count() <= 1);
            let stop = outputs.iter().position(|o| matches!(o, TellFetch(Stop | GiveUp) | Finish(_)));
            let started = outputs.iter().rposition(|o| matches!(o, StartApp | RunCommand(_)));
            prop_assert!(stop.is_none_or(|stop| started.is_none_or(|started| started < stop)));
            if let Some(end) = outputs.iter().position(|o| matches!(o, Finish(_))) {
                prop_assert!(outputs[end + 1..].iter().all(|o| *o == AbortMount));
            }
        }

        #[test]
        fn no_restart_of_another_role_changes_a_reason(
            before in proptest::collection::vec(any_input().prop_filter("nothing ends yet", |input| is_no_end(*input)), 0..30),
            exit in prop_oneof![Just(Exit::Login), Just(Exit::NoSecret), Just(Exit::Unavailable)],
            restarts in 0_usize..4,
        ) {
            let app = app(false);
            let (mut machine, _) = Machine::start(&app);
            let mut inputs = before;
            inputs.push(RoleFailed(Role::Fetch, exit));
            inputs.extend(std::iter::repeat_n(RoleRestarted(Role::Serve), restarts));
            inputs.push(RoleEnded(Role::Fetch));
            let outputs: Vec<_> = inputs.into_iter().flat_map(|input| machine.step(input)).collect();
            prop_assert_eq!(outputs.last(), Some(&Finish(exit.code())));
        }

        #[test]
        fn a_stop_always_comes_to_an_end(inputs in proptest::collection::vec(any_input(), 0..30)) {
            let app = app(true);
            let (mut machine, _) = Machine::start(&app);
            let mut lives = false;
            let mut outputs = live(&mut machine, inputs, &mut lives);
            // Neither the application nor a role dies of KILL: time alone brings the end.
            let (app, fetch) = (Elapsed, Elapsed);
            outputs.extend(live(&mut machine, vec![TERM, TERM, app, fetch, fetch], &mut lives));
            prop_assert!(outputs.iter().any(|o| matches!(o, Finish(_))));
        }
    }
}
