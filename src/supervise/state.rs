//! All of PID 1's policy, without machinery: `step(input) -> outputs`. Invariants: the application is started once, after
//! the first secrets; the token is revoked after the application is gone; exactly one `Finish` ends the machine.

use crate::exit::Exit;
use crate::link::ToRole;
use crate::observe::Role;
use nix::sys::signal::Signal;
use std::time::Duration;

/// How long a killed application may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);
/// The code of what was ended by KILL, as a shell says it.
const KILLED: u8 = 128 + 9;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this code.
    Exited(u8),
    /// By this signal.
    Killed(i32),
}

impl Ending {
    /// As a shell says it: 128+n for a signal n.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
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
    /// A rotation was announced.
    SecretsChanged,
    /// A role says why it is about to end.
    RoleFailed(Exit),
    /// A role ended.
    RoleEnded(Role),
    /// The application ended.
    AppEnded(Ending),
    /// A timer ran out.
    Elapsed(Timer),
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
    /// Signal the application's process group.
    SignalApp(Signal),
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
    /// What tells the application of a rotation.
    pub change_signal: Option<Signal>,
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
    /// The application was asked to end, or killed; `code` is the agent's own, if it was its trouble.
    StoppingApp { code: Option<u8>, killed: bool },
    /// `fetch` revokes; then the end with `code`.
    Revoking { code: u8 },
    /// Over.
    Finished,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    policy: Policy,
    phase: Phase,
    /// Why a role said that it would end, until it has.
    reason: Option<Exit>,
    /// Whether `fetch` still lives: only then can it revoke.
    fetch_lives: bool,
}

impl Machine {
    /// A machine and the first thing to do.
    #[must_use]
    pub fn start(policy: Policy) -> (Self, Vec<Output>) {
        let machine = Self { policy, phase: Phase::Waiting, reason: None, fetch_lives: true };
        (machine, vec![Output::Arm(Timer::Secrets, policy.wait)])
    }

    /// Takes one input; an input that means nothing in this phase does nothing.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Signal(signal) => self.signal(signal),
            Input::SecretsReady => self.ready(),
            Input::SecretsChanged => self.changed(),
            Input::RoleFailed(exit) => {
                self.reason = Some(exit);
                vec![]
            }
            Input::RoleEnded(role) => self.role_ended(role),
            Input::AppEnded(ending) => self.app_ended(ending),
            Input::Elapsed(timer) => self.elapsed(timer),
        }
    }

    fn signal(&mut self, signal: Signal) -> Vec<Output> {
        let stops = matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT);
        match self.phase {
            Phase::Waiting if stops => self.revoke(128 + signal as u8),
            Phase::Running if stops && !self.policy.has_app => self.revoke(Exit::Ok.code()),
            Phase::Running if stops => self.stop_app(signal, None),
            Phase::StoppingApp { code, .. } if stops => self.kill_app(code),
            Phase::Running | Phase::StoppingApp { .. } if self.policy.has_app => vec![Output::SignalApp(signal)],
            Phase::Waiting | Phase::GivingUp | Phase::Running | Phase::StoppingApp { .. } | Phase::Revoking { .. } | Phase::Finished => {
                vec![]
            }
        }
    }

    fn ready(&mut self) -> Vec<Output> {
        if self.phase != Phase::Waiting {
            return vec![];
        }
        self.phase = Phase::Running;
        if self.policy.has_app { vec![Output::StartApp] } else { vec![] }
    }

    fn changed(&self) -> Vec<Output> {
        match self.policy.change_signal {
            Some(signal) if self.phase == Phase::Running && self.policy.has_app => vec![Output::SignalApp(signal)],
            Some(_) | None => vec![],
        }
    }

    fn role_ended(&mut self, role: Role) -> Vec<Output> {
        let mut outputs = if role == Role::Serve { vec![Output::AbortMount] } else { vec![] };
        outputs.extend(self.lost(role));
        outputs
    }

    fn lost(&mut self, role: Role) -> Vec<Output> {
        self.fetch_lives &= role != Role::Fetch;
        let trouble = self.reason.unwrap_or(Exit::Software).code();
        match self.phase {
            Phase::GivingUp if role == Role::Fetch => self.finish(trouble),
            Phase::Running if self.policy.has_app => self.stop_app(self.policy.stop_signal, Some(trouble)),
            Phase::Waiting | Phase::Running => self.revoke(trouble),
            Phase::Revoking { code } if role == Role::Fetch => self.finish(code),
            Phase::StoppingApp { code, killed } => {
                self.phase = Phase::StoppingApp { code: Some(code.unwrap_or(trouble)), killed };
                vec![]
            }
            Phase::GivingUp | Phase::Revoking { .. } | Phase::Finished => vec![],
        }
    }

    fn app_ended(&mut self, ending: Ending) -> Vec<Output> {
        match self.phase {
            Phase::Running => self.revoke(ending.code()),
            Phase::StoppingApp { code, .. } => self.revoke(code.unwrap_or(ending.code())),
            Phase::Waiting | Phase::GivingUp | Phase::Revoking { .. } | Phase::Finished => vec![],
        }
    }

    fn elapsed(&mut self, timer: Timer) -> Vec<Output> {
        match (self.phase, timer) {
            (Phase::Waiting, Timer::Secrets) => {
                self.phase = Phase::GivingUp;
                vec![Output::TellFetch(ToRole::GiveUp), Output::Arm(Timer::Revocation, self.policy.revoke_timeout)]
            }
            (Phase::StoppingApp { code, killed: false }, Timer::App) => self.kill_app(code),
            // Not even KILL ends a process that hangs in the kernel: the token is not left alive for it.
            (Phase::StoppingApp { code, killed: true }, Timer::App) => self.revoke(code.unwrap_or(KILLED)),
            // A thread of `fetch` that waits for an answer of `serve` dies only when it gets one.
            (Phase::GivingUp | Phase::Revoking { .. }, Timer::Revocation) => vec![Output::KillRoles, Output::AbortMount],
            _ => vec![],
        }
    }

    fn stop_app(&mut self, signal: Signal, code: Option<u8>) -> Vec<Output> {
        self.phase = Phase::StoppingApp { code, killed: false };
        vec![Output::SignalApp(signal), Output::Arm(Timer::App, self.policy.stop_timeout)]
    }

    fn kill_app(&mut self, code: Option<u8>) -> Vec<Output> {
        self.phase = Phase::StoppingApp { code, killed: true };
        vec![Output::SignalApp(Signal::SIGKILL), Output::Arm(Timer::App, KILL_TIMEOUT)]
    }

    fn revoke(&mut self, code: u8) -> Vec<Output> {
        if !self.fetch_lives {
            return self.finish(code);
        }
        self.phase = Phase::Revoking { code };
        vec![Output::TellFetch(ToRole::Stop), Output::Arm(Timer::Revocation, self.policy.revoke_timeout)]
    }

    fn finish(&mut self, code: u8) -> Vec<Output> {
        self.phase = Phase::Finished;
        vec![Output::Finish(code)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Input::{AppEnded, Elapsed, RoleEnded, RoleFailed, SecretsChanged, SecretsReady};
    use Output::{AbortMount, Arm, Finish, KillRoles, SignalApp, StartApp, TellFetch};
    use ToRole::{GiveUp, Stop};
    use proptest::prelude::*;

    const WAIT: Duration = Duration::from_secs(30);
    const STOP: Duration = Duration::from_secs(6);
    const REVOKE: Duration = Duration::from_secs(2);
    const TERM: Input = Input::Signal(Signal::SIGTERM);
    const ASK_REVOKE: [Output; 2] = [TellFetch(Stop), Arm(Timer::Revocation, REVOKE)];
    const ASK_TERM: [Output; 2] = [SignalApp(Signal::SIGTERM), Arm(Timer::App, STOP)];
    const KILL: [Output; 2] = [SignalApp(Signal::SIGKILL), Arm(Timer::App, KILL_TIMEOUT)];

    fn policy(has_app: bool) -> Policy {
        let (stop_signal, change_signal) = (Signal::SIGTERM, Some(Signal::SIGUSR1));
        Policy { has_app, wait: WAIT, stop_signal, stop_timeout: STOP, revoke_timeout: REVOKE, change_signal }
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
        let ended = AppEnded(Ending::Exited(7));
        drive(true, &[(SecretsReady, &[StartApp]), (ended, &ASK_REVOKE), (RoleEnded(Role::Fetch), &[Finish(7)])]);
    }

    #[test]
    fn a_signal_death_is_128_plus_n() {
        let ended = AppEnded(Ending::Killed(9));
        drive(true, &[(SecretsReady, &[StartApp]), (ended, &ASK_REVOKE), (RoleEnded(Role::Fetch), &[Finish(137)])]);
    }

    #[test]
    fn term_is_relayed_then_killed_in_time() {
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (TERM, &ASK_TERM),
                (Elapsed(Timer::App), &KILL),
                (AppEnded(Ending::Killed(9)), &ASK_REVOKE),
                (Elapsed(Timer::Revocation), &[KillRoles, AbortMount]),
                (RoleEnded(Role::Fetch), &[Finish(137)]),
            ],
        );
    }

    #[test]
    fn a_second_term_skips_the_wait_for_the_app_but_not_the_revocation() {
        let killed = AppEnded(Ending::Killed(9));
        drive(true, &[(SecretsReady, &[StartApp]), (TERM, &ASK_TERM), (TERM, &KILL), (killed, &ASK_REVOKE), (TERM, &[])]);
    }

    #[test]
    fn an_app_that_cannot_even_be_killed_does_not_keep_the_token_alive() {
        let elapsed = Elapsed(Timer::App);
        drive(true, &[(SecretsReady, &[StartApp]), (TERM, &ASK_TERM), (elapsed, &KILL), (elapsed, &ASK_REVOKE)]);
    }

    #[test]
    fn hup_is_only_relayed() {
        let hup = Input::Signal(Signal::SIGHUP);
        drive(true, &[(hup, &[]), (SecretsReady, &[StartApp]), (hup, &[SignalApp(Signal::SIGHUP)])]);
    }

    #[test]
    fn term_while_waiting_revokes_and_ends_with_143() {
        drive(true, &[(TERM, &ASK_REVOKE), (RoleEnded(Role::Fetch), &[Finish(143)]), (SecretsReady, &[])]);
    }

    #[test]
    fn an_elapsed_wait_asks_fetch_for_the_reason() {
        let gave_up = [TellFetch(GiveUp), Arm(Timer::Revocation, REVOKE)];
        drive(
            true,
            &[
                (Elapsed(Timer::Secrets), &gave_up),
                (SecretsReady, &[]),
                (RoleFailed(Exit::Login), &[]),
                (RoleEnded(Role::Fetch), &[Finish(Exit::Login.code())]),
            ],
        );
        drive(
            true,
            &[
                (Elapsed(Timer::Secrets), &gave_up),
                (Elapsed(Timer::Revocation), &[KillRoles, AbortMount]),
                (RoleEnded(Role::Fetch), &[Finish(70)]),
            ],
        );
    }

    #[test]
    fn the_death_of_a_role_stops_the_app_and_has_a_code_of_its_own() {
        let ended = AppEnded(Ending::Exited(0));
        drive(true, &[(SecretsReady, &[StartApp]), (RoleEnded(Role::Fetch), &ASK_TERM), (ended, &[Finish(70)])]);
        drive(
            true,
            &[
                (SecretsReady, &[StartApp]),
                (RoleEnded(Role::Serve), &[AbortMount, ASK_TERM[0], ASK_TERM[1]]),
                (ended, &ASK_REVOKE),
                (RoleEnded(Role::Fetch), &[Finish(70)]),
            ],
        );
        drive(true, &[(SecretsReady, &[StartApp]), (TERM, &ASK_TERM), (RoleEnded(Role::Fetch), &[]), (ended, &[Finish(70)])]);
    }

    #[test]
    fn mount_has_no_app_and_ends_well_when_asked() {
        drive(false, &[(SecretsReady, &[]), (SecretsChanged, &[]), (TERM, &ASK_REVOKE), (RoleEnded(Role::Fetch), &[Finish(0)])]);
    }

    #[test]
    fn a_rotation_is_told_only_while_the_app_runs() {
        let told = [SignalApp(Signal::SIGUSR1)];
        drive(
            true,
            &[(SecretsChanged, &[]), (SecretsReady, &[StartApp]), (SecretsChanged, &told), (TERM, &ASK_TERM), (SecretsChanged, &[])],
        );
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            prop_oneof![Just(Signal::SIGTERM), Just(Signal::SIGHUP), Just(Signal::SIGINT)].prop_map(Input::Signal),
            Just(SecretsReady),
            Just(SecretsChanged),
            Just(RoleFailed(Exit::Login)),
            prop_oneof![Just(Role::Fetch), Just(Role::Serve)].prop_map(RoleEnded),
            any::<u8>().prop_map(|code| AppEnded(Ending::Exited(code))),
            prop_oneof![Just(Timer::Secrets), Just(Timer::App), Just(Timer::Revocation)].prop_map(Elapsed),
        ]
    }

    proptest! {
        #[test]
        fn one_start_and_one_end_whatever_comes(inputs in proptest::collection::vec(any_input(), 0..60)) {
            let (mut machine, _) = Machine::start(policy(true));
            let outputs: Vec<_> = inputs.into_iter().flat_map(|input| machine.step(input)).collect();
            prop_assert!(outputs.iter().filter(|o| matches!(o, StartApp)).count() <= 1);
            prop_assert!(outputs.iter().filter(|o| matches!(o, Finish(_))).count() <= 1);
            if let Some(end) = outputs.iter().position(|o| matches!(o, Finish(_))) {
                prop_assert!(outputs[end + 1..].iter().all(|o| *o == AbortMount));
            }
        }

        #[test]
        fn a_stop_always_comes_to_an_end(inputs in proptest::collection::vec(any_input(), 0..20)) {
            let (mut machine, _) = Machine::start(policy(true));
            let mut finished = inputs.into_iter().flat_map(|input| machine.step(input)).any(|o| matches!(o, Finish(_)));
            let end = [TERM, TERM, AppEnded(Ending::Killed(9)), Elapsed(Timer::Revocation), RoleEnded(Role::Fetch)];
            finished |= end.into_iter().flat_map(|input| machine.step(input)).any(|o| matches!(o, Finish(_)));
            prop_assert!(finished);
        }
    }
}
