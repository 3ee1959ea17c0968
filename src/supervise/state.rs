//! All of PID 1's policy, without machinery: `step(input) -> outputs`. Invariants: the application
//! is started after the first secrets, and again only when a restart has ended the one before;
//! nothing is started once a stop began; the token is revoked after the application is gone;
//! exactly one `Finish` ends the machine.

use crate::config::plan::OnHup;
use crate::exit::Exit;
use crate::link::ToRole;
use crate::names::{Child, HookId};
use nix::sys::signal::Signal;
use std::fmt;
use std::time::Duration;

/// How long a killed application, or a killed `fetch`, may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);
/// The code of what was ended by KILL, as a shell says it.
const KILLED: u8 = 128 + 9;

/// What a signal to baofs means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalClass {
    /// It begins the ordered stop; a second one hurries it.
    Stop,
    /// The application may read its configuration again, and `fetch` what has no lease; see
    /// `OnHup`.
    Reload,
    /// It is the application's.
    Relay,
}

/// A row of README's table: signals, what they mean, and that in words while the first secrets are
/// awaited, while the application runs, and while it stops.
type SignalRow = (&'static [Signal], SignalClass, [&'static str; 3]);

/// Every signal that baofs hears; the others do what the kernel lets them do.
pub const SIGNALS: [SignalRow; 3] = [
    (
        &[Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT],
        SignalClass::Stop,
        [
            "the token is revoked, exit 128+n",
            "relayed, and the stop begins",
            "the application is killed",
        ],
    ),
    (
        &[Signal::SIGHUP],
        SignalClass::Reload,
        [
            "secrets are read again",
            "relayed, and secrets are read again",
            "relayed",
        ],
    ),
    (
        &[
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
            Signal::SIGCONT,
            Signal::SIGTSTP,
        ],
        SignalClass::Relay,
        ["nothing", "relayed", "relayed"],
    ),
];

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// With this code.
    Exited(u8),
    /// By this signal.
    Killed(i32),
}

impl ExitStatus {
    /// As a shell says it: 128+n for a signal n.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
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

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A signal reached the agent.
    Signal(Signal),
    /// Every first secret is published.
    SecretsReady,
    /// A rotation is to be told now.
    Notify(Notification),
    /// A role says why it is about to end.
    RoleFailed(Child, Exit),
    /// A role ended for good.
    RoleEnded(Child),
    /// A role that died was born again.
    RoleBorn(Child),
    /// The application ended.
    AppEnded(ExitStatus),
    /// Nobody is left in its process group.
    GroupGone,
    /// A timer ran out.
    Elapsed(Timer),
}

/// How a rotation is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// By a signal to the application.
    Signal(Signal),
    /// By this hook's command.
    Command(HookId),
    /// By stopping the application and starting it again.
    Restart,
}

/// What is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The first secrets.
    Secrets,
    /// The application's end.
    App,
    /// The revocation, that is, the end of `fetch`.
    Revocation,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Start the application.
    StartApp,
    /// Signal the application's process group, or what is left of it.
    SignalApp(Signal),
    /// Run this hook's command.
    RunCommand(HookId),
    /// Say this to `fetch`.
    TellFetch(ToRole),
    /// Kill the roles: `fetch` did not end by itself.
    KillRoles,
    /// Give who waits for `serve` an error: it is dead.
    AbortMount,
    /// Wait so long for that; the machine has one timer.
    Arm(Timer, Duration),
    /// Take everything down and end with this code.
    Finish(u8),
}

/// Times and signals that the machine works with; from the Plan.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Whether there is an application (`run`), or only the filesystem (`mount`).
    pub has_app: bool,
    /// How long to wait for the first secrets.
    pub wait: Duration,
    /// What asks the application to stop when baofs itself decides so.
    pub stop_signal: Signal,
    /// How long the application may take.
    pub stop_timeout: Duration,
    /// How long the revocation may take, `fetch`'s own bound included.
    pub revoke_timeout: Duration,
    /// What HUP does.
    pub on_hup: OnHup,
}

/// Where the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No secrets yet.
    Waiting,
    /// The wait is over: `fetch` says what is missing, revokes, and ends with the reason.
    GivingUp,
    /// The application runs (or, for `mount`, the files are served).
    Running,
    /// The application was asked to end, or killed, to be started again.
    Restarting { killed: bool },
    /// It ended with `code`; what it left in its group is killed, and gone before the next one
    /// needs its port.
    Clearing { code: u8 },
    /// The application was asked to end, or killed; `code` is the agent's own, if it was its
    /// trouble.
    StoppingApp { code: Option<u8>, killed: bool },
    /// `fetch` revokes; then the end with `code`.
    Revoking { code: u8 },
    /// `fetch` did not end in time and was killed; then the end with `code`, or with the reason
    /// that it gave.
    Abandoning { code: Option<u8> },
    /// Over.
    Finished,
}

/// Why each role said that it would end, if it did.
#[derive(Debug, Default)]
struct Reasons {
    serve: Option<Exit>,
    fetch: Option<Exit>,
}

impl Reasons {
    /// The reason of `role`.
    fn of(&mut self, role: Child) -> &mut Option<Exit> {
        match role {
            Child::Serve => &mut self.serve,
            Child::Fetch => &mut self.fetch,
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    policy: Policy,
    phase: Phase,
    /// Why `serve` and `fetch` said that they would end, each until its next birth.
    reasons: Reasons,
    /// Whether `fetch` still lives: only then can it revoke.
    fetch_lives: bool,
}

impl Machine {
    /// A machine and the first thing to do.
    pub fn start(policy: Policy) -> (Self, Vec<Output>) {
        let machine = Self {
            policy,
            phase: Phase::Waiting,
            reasons: Reasons::default(),
            fetch_lives: true,
        };
        (machine, vec![Output::Arm(Timer::Secrets, policy.wait)])
    }

    /// Takes one input; an input that means nothing in this phase does nothing.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Signal(signal) => self.signal(signal),
            Input::SecretsReady => self.ready(),
            Input::Notify(due) => self.due(due),
            Input::RoleFailed(role, exit) => {
                *self.reasons.of(role) = Some(exit);
                vec![]
            }
            Input::RoleEnded(role) => self.role_ended(role),
            Input::RoleBorn(role) => self.role_born(role),
            Input::AppEnded(ending) => self.app_ended(ending),
            Input::GroupGone => self.cleared(),
            Input::Elapsed(timer) => self.elapsed(timer),
        }
    }

    fn signal(&mut self, signal: Signal) -> Vec<Output> {
        match SIGNALS
            .iter()
            .find(|(signals, ..)| signals.contains(&signal))
            .map(|(_, meaning, _)| meaning)
        {
            Some(SignalClass::Stop) => self.stop(signal),
            Some(SignalClass::Reload) => self.reload(signal),
            Some(SignalClass::Relay) => self.relay(signal),
            None => vec![],
        }
    }

    fn stop(&mut self, signal: Signal) -> Vec<Output> {
        match self.phase {
            Phase::Waiting | Phase::Running if !self.policy.has_app => self.revoke(Exit::Ok.code()),
            Phase::Waiting => self.revoke(128 + signal as u8),
            Phase::Running => self.stop_app(signal, None),
            Phase::Restarting { killed } => self.stop_restart(killed, None),
            Phase::Clearing { code } => self.revoke(code),
            Phase::StoppingApp { code, .. } => self.kill_app(code),
            Phase::GivingUp
            | Phase::Revoking { .. }
            | Phase::Abandoning { .. }
            | Phase::Finished => vec![],
        }
    }

    fn reload(&self, signal: Signal) -> Vec<Output> {
        let mut outputs = if self.policy.on_hup == OnHup::Refresh {
            vec![]
        } else {
            self.relay(signal)
        };
        if self.policy.on_hup != OnHup::App && (self.phase == Phase::Waiting || self.serves()) {
            outputs.push(Output::TellFetch(ToRole::Refresh));
        }
        outputs
    }

    fn relay(&self, signal: Signal) -> Vec<Output> {
        let stopping = matches!(self.phase, Phase::StoppingApp { .. });
        if self.policy.has_app && (stopping || self.serves()) {
            vec![Output::SignalApp(signal)]
        } else {
            vec![]
        }
    }

    /// Whether the first secrets came and no stop began.
    fn serves(&self) -> bool {
        matches!(
            self.phase,
            Phase::Running | Phase::Restarting { .. } | Phase::Clearing { .. }
        )
    }

    fn ready(&mut self) -> Vec<Output> {
        if self.phase != Phase::Waiting {
            return vec![];
        }
        self.phase = Phase::Running;
        if self.policy.has_app {
            vec![Output::StartApp]
        } else {
            vec![]
        }
    }

    /// An application that is being started again reads the new files anyway.
    fn due(&mut self, due: Notification) -> Vec<Output> {
        let app_runs = self.phase == Phase::Running && self.policy.has_app;
        match due {
            Notification::Signal(signal) if app_runs => vec![Output::SignalApp(signal)],
            Notification::Restart if app_runs => {
                self.phase = Phase::Restarting { killed: false };
                self.ask_app(self.policy.stop_signal)
            }
            Notification::Command(hook) if self.serves() => vec![Output::RunCommand(hook)],
            Notification::Signal(_) | Notification::Restart | Notification::Command(_) => vec![],
        }
    }

    /// A successor is told what its predecessor was told last. The predecessor's reason is void;
    /// the other role's stands.
    fn role_born(&mut self, role: Child) -> Vec<Output> {
        *self.reasons.of(role) = None;
        match (role, self.phase) {
            (Child::Fetch, Phase::GivingUp) => vec![Output::TellFetch(ToRole::GiveUp)],
            (Child::Fetch, Phase::Revoking { .. }) => vec![Output::TellFetch(ToRole::Stop)],
            _ => vec![],
        }
    }

    fn role_ended(&mut self, role: Child) -> Vec<Output> {
        let mut outputs = if role == Child::Serve {
            vec![Output::AbortMount]
        } else {
            vec![]
        };
        outputs.extend(self.lost(role));
        outputs
    }

    fn lost(&mut self, role: Child) -> Vec<Output> {
        self.fetch_lives &= role != Child::Fetch;
        let trouble = self.trouble(role);
        match self.phase {
            Phase::GivingUp if role == Child::Fetch => self.finish(trouble),
            Phase::Running if self.policy.has_app => {
                self.stop_app(self.policy.stop_signal, Some(trouble))
            }
            Phase::Waiting | Phase::Running | Phase::Clearing { .. } => self.revoke(trouble),
            Phase::Restarting { killed } => self.stop_restart(killed, Some(trouble)),
            Phase::Revoking { code } if role == Child::Fetch => self.finish(code),
            Phase::Abandoning { code } if role == Child::Fetch => {
                self.finish(code.unwrap_or(trouble))
            }
            Phase::StoppingApp { code, killed } => {
                self.phase = Phase::StoppingApp {
                    code: Some(code.unwrap_or(trouble)),
                    killed,
                };
                vec![]
            }
            Phase::GivingUp
            | Phase::Revoking { .. }
            | Phase::Abandoning { .. }
            | Phase::Finished => vec![],
        }
    }

    /// The agent's own code when `role` ends: the reason that it gave, if it gave one.
    fn trouble(&mut self, role: Child) -> u8 {
        self.reasons
            .of(role)
            .filter(|reason| *reason != Exit::Ok)
            .unwrap_or(Exit::Software)
            .code()
    }

    fn app_ended(&mut self, ending: ExitStatus) -> Vec<Output> {
        match self.phase {
            Phase::Running => self.revoke(ending.code()),
            Phase::Restarting { .. } => {
                self.phase = Phase::Clearing {
                    code: ending.code(),
                };
                vec![
                    Output::SignalApp(Signal::SIGKILL),
                    Output::Arm(Timer::App, KILL_TIMEOUT),
                ]
            }
            Phase::StoppingApp { code, .. } => self.revoke(code.unwrap_or(ending.code())),
            Phase::Waiting
            | Phase::GivingUp
            | Phase::Clearing { .. }
            | Phase::Revoking { .. }
            | Phase::Abandoning { .. }
            | Phase::Finished => vec![],
        }
    }

    fn cleared(&mut self) -> Vec<Output> {
        if !matches!(self.phase, Phase::Clearing { .. }) {
            return vec![];
        }
        self.phase = Phase::Running;
        vec![Output::StartApp]
    }

    fn elapsed(&mut self, timer: Timer) -> Vec<Output> {
        match (self.phase, timer) {
            (Phase::Waiting, Timer::Secrets) => {
                self.phase = Phase::GivingUp;
                vec![
                    Output::TellFetch(ToRole::GiveUp),
                    Output::Arm(Timer::Revocation, self.policy.revoke_timeout),
                ]
            }
            (
                Phase::StoppingApp {
                    code,
                    killed: false,
                },
                Timer::App,
            ) => self.kill_app(code),
            // Once it is killed there is nothing to do but to wait for its end: there is never a
            // second one beside it.
            (Phase::Restarting { killed: false }, Timer::App) => {
                self.phase = Phase::Restarting { killed: true };
                vec![Output::SignalApp(Signal::SIGKILL)]
            }
            // What does not go is somebody else's child: it is not waited for.
            (Phase::Clearing { .. }, Timer::App) => self.cleared(),
            // Not even KILL ends a process that hangs in the kernel: the token is not left alive
            // for it.
            (Phase::StoppingApp { code, killed: true }, Timer::App) => {
                self.revoke(code.unwrap_or(KILLED))
            }
            (Phase::GivingUp, Timer::Revocation) => self.give_up_fetch(None),
            // That is no end with 0, which Swarm would take for a job that is done.
            (Phase::Revoking { code: 0 }, Timer::Revocation) => {
                self.give_up_fetch(Some(Exit::Software.code()))
            }
            (Phase::Revoking { code }, Timer::Revocation) => self.give_up_fetch(Some(code)),
            // A process that hangs in the kernel outlives KILL, and the container does not wait for
            // it.
            (Phase::Abandoning { code }, Timer::Revocation) => {
                let code = code.unwrap_or_else(|| self.trouble(Child::Fetch));
                self.finish(code)
            }
            _ => vec![],
        }
    }

    /// `fetch` bounds its own requests, so it hangs. A thread of it that waits for an answer of
    /// `serve` dies only when it gets one.
    fn give_up_fetch(&mut self, code: Option<u8>) -> Vec<Output> {
        self.phase = Phase::Abandoning { code };
        vec![
            Output::KillRoles,
            Output::AbortMount,
            Output::Arm(Timer::Revocation, KILL_TIMEOUT),
        ]
    }

    fn stop_app(&mut self, signal: Signal, code: Option<u8>) -> Vec<Output> {
        self.phase = Phase::StoppingApp {
            code,
            killed: false,
        };
        self.ask_app(signal)
    }

    /// CONT, because a stopped process cannot end in order.
    fn ask_app(&self, signal: Signal) -> Vec<Output> {
        vec![
            Output::SignalApp(signal),
            Output::SignalApp(Signal::SIGCONT),
            Output::Arm(Timer::App, self.policy.stop_timeout),
        ]
    }

    /// A stop during a restart: the application was asked already, and the time that it has goes
    /// on.
    fn stop_restart(&mut self, killed: bool, code: Option<u8>) -> Vec<Output> {
        if killed {
            return self.kill_app(code);
        }
        self.phase = Phase::StoppingApp { code, killed };
        vec![]
    }

    fn kill_app(&mut self, code: Option<u8>) -> Vec<Output> {
        self.phase = Phase::StoppingApp { code, killed: true };
        vec![
            Output::SignalApp(Signal::SIGKILL),
            Output::Arm(Timer::App, KILL_TIMEOUT),
        ]
    }

    fn revoke(&mut self, code: u8) -> Vec<Output> {
        if !self.fetch_lives {
            return self.finish(code);
        }
        self.phase = Phase::Revoking { code };
        vec![
            Output::TellFetch(ToRole::Stop),
            Output::Arm(Timer::Revocation, self.policy.revoke_timeout),
        ]
    }

    fn finish(&mut self, code: u8) -> Vec<Output> {
        self.phase = Phase::Finished;
        vec![Output::Finish(code)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Input::{AppEnded, Elapsed, GroupGone, RoleBorn, RoleEnded, RoleFailed, SecretsReady};
    use Output::{AbortMount, Arm, Finish, KillRoles, RunCommand, SignalApp, StartApp, TellFetch};
    use ToRole::{GiveUp, Refresh, Stop};
    use proptest::prelude::*;

    const WAIT: Duration = Duration::from_secs(30);
    const STOP: Duration = Duration::from_secs(6);
    const REVOKE: Duration = Duration::from_secs(2);
    const TERM: Input = Input::Signal(Signal::SIGTERM);
    const ASK_REVOKE: [Output; 2] = [TellFetch(Stop), Arm(Timer::Revocation, REVOKE)];
    const ASK_TERM: [Output; 3] = [
        SignalApp(Signal::SIGTERM),
        SignalApp(Signal::SIGCONT),
        Arm(Timer::App, STOP),
    ];
    const KILL: [Output; 2] = [SignalApp(Signal::SIGKILL), Arm(Timer::App, KILL_TIMEOUT)];
    const ABANDON: [Output; 3] = [KillRoles, AbortMount, Arm(Timer::Revocation, KILL_TIMEOUT)];
    const RESTART: Input = Input::Notify(Notification::Restart);
    const COMMAND: Input = Input::Notify(Notification::Command(HookId(3)));
    const TELL: Input = Input::Notify(Notification::Signal(Signal::SIGUSR1));
    const TROUBLE: u8 = Exit::Software as u8;

    fn policy(has_app: bool) -> Policy {
        let (stop_signal, on_hup) = (Signal::SIGTERM, OnHup::Both);
        Policy {
            has_app,
            wait: WAIT,
            stop_signal,
            stop_timeout: STOP,
            revoke_timeout: REVOKE,
            on_hup,
        }
    }

    /// Drives a fresh machine through `script` and compares what it wants done at each step.
    fn drive(has_app: bool, script: &[(Input, &[Output])]) {
        let (mut machine, first) = Machine::start(policy(has_app));
        assert_eq!(first, [Arm(Timer::Secrets, WAIT)]);
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
                (RoleEnded(Child::Fetch), &[Finish(7)]),
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
                (RoleEnded(Child::Fetch), &[Finish(137)]),
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
                (Elapsed(Timer::App), &KILL),
                (AppEnded(ExitStatus::Killed(9)), &ASK_REVOKE),
                (Elapsed(Timer::Revocation), &ABANDON),
                (RoleEnded(Child::Fetch), &[Finish(137)]),
            ],
        );
    }

    #[test]
    fn a_fetch_that_hangs_is_no_end_with_0() {
        let (hung, killed) = (Elapsed(Timer::Revocation), ABANDON);
        let stop = |ended| {
            [
                (SecretsReady, &[StartApp][..]),
                (AppEnded(ExitStatus::Exited(ended)), &ASK_REVOKE),
                (hung, &killed),
            ]
        };
        for (ended, code) in [(0, Exit::Software.code()), (7, 7)] {
            // Killed, it ends; or it hangs in the kernel, where KILL does not reach it.
            for last in [RoleEnded(Child::Fetch), hung] {
                drive(
                    true,
                    &[&stop(ended)[..], &[(last, &[Finish(code)])]].concat(),
                );
            }
        }
        let gave_up = [TellFetch(GiveUp), Arm(Timer::Revocation, REVOKE)];
        let said = RoleFailed(Child::Fetch, Exit::Login);
        drive(
            true,
            &[
                (Elapsed(Timer::Secrets), &gave_up),
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
        let elapsed = Elapsed(Timer::App);
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
            let (mut machine, _) = Machine::start(Policy {
                on_hup,
                ..policy(has_app)
            });
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
            .filter(|(_, meaning, _)| *meaning == SignalClass::Relay)
            .flat_map(|(signals, ..)| *signals)
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
        for (signals, _, words) in SIGNALS {
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
                (RoleEnded(Child::Fetch), &[Finish(143)]),
                (SecretsReady, &[]),
            ],
        );
    }

    #[test]
    fn an_elapsed_wait_asks_fetch_for_the_reason() {
        let gave_up = [TellFetch(GiveUp), Arm(Timer::Revocation, REVOKE)];
        drive(
            true,
            &[
                (Elapsed(Timer::Secrets), &gave_up),
                (SecretsReady, &[]),
                (RoleFailed(Child::Fetch, Exit::Login), &[]),
                (RoleEnded(Child::Fetch), &[Finish(Exit::Login.code())]),
            ],
        );
        drive(
            true,
            &[
                (Elapsed(Timer::Secrets), &gave_up),
                (Elapsed(Timer::Revocation), &ABANDON),
                (RoleEnded(Child::Fetch), &[Finish(70)]),
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
                (RoleEnded(Child::Fetch), &ASK_TERM),
                (ended, &[Finish(70)]),
            ],
        );
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (
                    RoleEnded(Child::Serve),
                    &[AbortMount, ASK_TERM[0], ASK_TERM[1], ASK_TERM[2]],
                ),
                (ended, &ASK_REVOKE),
                (RoleEnded(Child::Fetch), &[Finish(70)]),
            ],
        );
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (TERM, &ASK_TERM),
                (RoleEnded(Child::Fetch), &[]),
                (ended, &[Finish(70)]),
            ],
        );
    }

    #[test]
    fn the_birth_of_one_role_leaves_the_reason_of_another() {
        let (fetch, serve) = (
            RoleFailed(Child::Fetch, Exit::Login),
            RoleFailed(Child::Serve, Exit::Memory),
        );
        let (login, memory) = (Exit::Login.code(), Exit::Memory.code());
        // What is said and born before the role of the row ends for good, and the code of the
        // agent.
        let table: &[(&[Input], Child, u8)] = &[
            (&[fetch, RoleBorn(Child::Serve)], Child::Fetch, login),
            (&[serve, RoleBorn(Child::Fetch)], Child::Serve, memory),
            (&[serve, fetch, RoleBorn(Child::Serve)], Child::Fetch, login),
            (&[fetch, serve], Child::Fetch, login),
            (&[fetch, RoleBorn(Child::Fetch)], Child::Fetch, TROUBLE),
            (&[fetch], Child::Serve, TROUBLE),
        ];
        for (before, role, code) in table {
            let (mut machine, _) = Machine::start(policy(true));
            let mut outputs: Vec<_> = before
                .iter()
                .flat_map(|input| machine.step(*input))
                .collect();
            outputs.extend(
                [RoleEnded(*role), RoleEnded(Child::Fetch)]
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
            &[(TERM, &ASK_REVOKE), (RoleEnded(Child::Fetch), &[Finish(0)])],
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
                (RoleEnded(Child::Fetch), &[Finish(0)]),
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
                (Elapsed(Timer::App), &[]),
                (RESTART, &ASK_TERM),
                (Elapsed(Timer::App), &KILL[..1]),
                (Elapsed(Timer::App), &[]),
                (ENDED, &KILL),
                (Elapsed(Timer::App), &[StartApp]),
                (AppEnded(ExitStatus::Exited(127)), &ASK_REVOKE),
                (RoleEnded(Child::Fetch), &[Finish(127)]),
            ],
        );
    }

    #[test]
    fn a_stop_during_a_restart_keeps_its_timer() {
        let began: [(Input, &[Output]); 2] = [(SecretsReady, &[StartApp]), (RESTART, &ASK_TERM)];
        let killed = [(Elapsed(Timer::App), &KILL[..1])];
        let serve = RoleEnded(Child::Serve);
        let lost = [AbortMount, ASK_REVOKE[0], ASK_REVOKE[1]];
        let table: &[&[(Input, &[Output])]] = &[
            &[
                (TERM, &[]),
                (TERM, &KILL),
                (ENDED, &ASK_REVOKE),
                (RoleEnded(Child::Fetch), &[Finish(7)]),
            ],
            &[
                (TERM, &[]),
                (Elapsed(Timer::App), &KILL),
                (Elapsed(Timer::App), &ASK_REVOKE),
            ],
            &[killed[0], (TERM, &KILL), (Elapsed(Timer::App), &ASK_REVOKE)],
            &[
                (ENDED, &KILL),
                (TERM, &ASK_REVOKE),
                (GroupGone, &[]),
                (RoleEnded(Child::Fetch), &[Finish(7)]),
            ],
            &[
                (serve, &[AbortMount]),
                (ENDED, &ASK_REVOKE),
                (RoleEnded(Child::Fetch), &[Finish(TROUBLE)]),
            ],
            &[
                (ENDED, &KILL),
                (serve, &lost),
                (RoleEnded(Child::Fetch), &[Finish(TROUBLE)]),
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
                Just(RoleFailed(Child::Fetch, Exit::Login)),
                Just(RoleFailed(Child::Serve, Exit::Memory))
            ],
            prop_oneof![Just(Child::Fetch), Just(Child::Serve)].prop_map(RoleEnded),
            prop_oneof![Just(Child::Fetch), Just(Child::Serve)].prop_map(RoleBorn),
            any::<u8>().prop_map(|code| AppEnded(ExitStatus::Exited(code))),
            Just(GroupGone),
            prop_oneof![
                Just(Timer::Secrets),
                Just(Timer::App),
                Just(Timer::Revocation)
            ]
            .prop_map(Elapsed),
        ]
    }

    /// Whether an input leaves the agent where it is: no stop, no end, no wait that is over.
    fn is_no_end(input: &Input) -> bool {
        matches!(
            input,
            SecretsReady | Input::Notify(_) | RoleFailed(..) | RoleBorn(_)
        )
    }

    /// All that a machine wants done for `inputs`, an end of the application only while it lives;
    /// whether it lives is followed, and that there is never a second one.
    fn live(machine: &mut Machine, inputs: Vec<Input>, lives: &mut bool) -> Vec<Output> {
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
            let (mut machine, _) = Machine::start(policy(true));
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
        fn the_reason_of_a_role_is_its_own_whatever_else_is_born(
            before in proptest::collection::vec(any_input().prop_filter("nothing ends yet", is_no_end), 0..30),
            exit in prop_oneof![Just(Exit::Login), Just(Exit::NoSecret), Just(Exit::Unavailable)],
            births in 0_usize..4,
        ) {
            let (mut machine, _) = Machine::start(policy(false));
            let mut inputs = before;
            inputs.push(RoleFailed(Child::Fetch, exit));
            inputs.extend(std::iter::repeat_n(RoleBorn(Child::Serve), births));
            inputs.push(RoleEnded(Child::Fetch));
            let outputs: Vec<_> = inputs.into_iter().flat_map(|input| machine.step(input)).collect();
            prop_assert_eq!(outputs.last(), Some(&Finish(exit.code())));
        }

        #[test]
        fn a_stop_always_comes_to_an_end(inputs in proptest::collection::vec(any_input(), 0..30)) {
            let (mut machine, _) = Machine::start(policy(true));
            let mut lives = false;
            let mut outputs = live(&mut machine, inputs, &mut lives);
            // Neither the application nor a role dies of KILL: time alone brings the end.
            let (app, fetch) = (Elapsed(Timer::App), Elapsed(Timer::Revocation));
            outputs.extend(live(&mut machine, vec![TERM, TERM, app, fetch, fetch], &mut lives));
            prop_assert!(outputs.iter().any(|o| matches!(o, Finish(_))));
        }
    }
}
