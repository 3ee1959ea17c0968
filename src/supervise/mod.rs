//! The parent of all: owns signals, every fork, the mounts and the exit code; reads no secret.
//! Invariants: it has one thread; it is the only place that starts, signals and waits; whatever
//! happens it takes down what it set up.

pub mod app;
mod calls;
mod child;
mod children;
mod guard;
pub mod hooks;
mod mounts;
mod profile;
mod reach;
pub mod restart;
mod run;
pub mod runfiles;
pub mod state;
mod walls;
pub mod watchdog;

use crate::clock::{Clock, Jitter, RealClock};
use crate::config::plan::{App, NewPrivileges, Plan};
use crate::exit::{Exit, Refused};
use crate::memory;
use crate::observe::Incident;
use crate::sys::caps::{self, Capability};
use app::{Inherited, Terminal};
use children::Children;
use guard::{Guard, REVOKE_TIMEOUT};
use hooks::Hooks;
use mounts::Mounts;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, geteuid, getpid};
use run::{Loop, Remains};
use runfiles::RunFiles;
use state::{Machine, Policy, SIGNALS};
use std::io;
use std::os::fd::BorrowedFd;
use watchdog::{Intervals, Looks};

/// What supervise keeps besides what `fetch` needs: to unmount, to start the application as its
/// user and under its walls, to signal it, and to lower its bounding set.
const KEPT: [Capability; 5] = [
    Capability::SysAdmin,
    Capability::SetUid,
    Capability::SetGid,
    Capability::Kill,
    Capability::SetPcap,
];

/// Serves what `plan` says, runs its application if it has one, and gives the code to end with.
///
/// # Errors
/// When it cannot start: nothing is mounted or running then.
pub fn run(plan: &Plan) -> Result<u8, Refused> {
    let heard = SIGNALS.iter().flat_map(|(signals, ..)| *signals).copied();
    let signals: SigSet = heard.chain([Signal::SIGCHLD]).collect();
    let mut blocked = signals;
    // Giving the terminal away from the background would stop us otherwise.
    blocked.extend([Signal::SIGTTOU, Signal::SIGTTIN]);
    let inherited = Inherited::take(&blocked)
        .map_err(|error| Refused::software("the signal mask cannot be set", error))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|error| Refused::software("no descriptor for signals", error))?;
    may_become_user(&plan.app)?;
    warn_of_rights(&plan.app);
    memory::harden().map_err(|error| Refused::new(Exit::Memory, error))?;
    if getpid() != Pid::from_raw(1) {
        prctl::set_child_subreaper(true)
            .map_err(|error| Refused::software("orphans cannot be adopted", error))?;
    }
    let mut run_files = RunFiles::open(plan);
    let mut mounts = Mounts::open(plan)?;
    let started = run_files
        .make()
        .and_then(|()| guard(&mounts, &signals, &run_files));
    let (result, left, guard) = match started {
        Ok(guard) => {
            let held = run_files.descriptors();
            match supervise(
                plan,
                &mut mounts,
                signals,
                &inherited,
                guard.as_ref(),
                &held,
            ) {
                Ok((code, left)) => (Ok(code), left, guard),
                Err(refused) => (Err(refused), Remains::default(), guard),
            }
        }
        Err(refused) => (Err(refused), Remains::default(), None),
    };
    tear_down(left, mounts, &run_files, guard);
    result
}

/// Takes everything down. Children are killed first, then the mount is aborted, which gives an
/// error to every reader that waits for an answer, and only then are children reaped, for a bounded
/// time: a child may itself wait for `serve`.
fn tear_down(left: Remains, mut mounts: Mounts, run_files: &RunFiles, guard: Option<Guard>) {
    for role in &left.roles {
        let _ = kill(*role, Signal::SIGKILL);
    }
    for group in &left.groups {
        let _ = killpg(*group, Signal::SIGKILL);
    }
    mounts.abort();
    mounts.unmount();
    let mut children = left.roles;
    children.extend(left.leaders);
    child::reap(children);
    mounts.close();
    drop(mounts);
    // The run files come last: their directories may be the application's, and nothing that the
    // application does there may delay the unmount.
    run_files.remove();
    if let Some(guard) = guard {
        guard.end();
    }
}

fn guard(
    mounts: &Mounts,
    signals: &SignalFd,
    run_files: &RunFiles,
) -> Result<Option<Guard>, Refused> {
    mounts
        .without_arena(|| Guard::start(mounts, signals, &run_files.descriptors()))
        .map_err(not_started)
}

fn not_started(error: io::Error) -> Refused {
    Refused::software("a process of the agent cannot be started", error)
}

/// Another user takes root and its rights: that is said now rather than when the application (or a
/// command) starts.
fn may_become_user(app: &App) -> Result<(), Refused> {
    let Some(user) = app::other_user(app) else {
        return Ok(());
    };
    let uid = geteuid();
    let all = [Capability::SetGid, Capability::SetUid, Capability::Kill];
    let needed = if user.owner.uid == uid.as_raw() {
        &all[..1]
    } else {
        &all
    };
    let missing = needed
        .iter()
        .filter(|capability| !(uid.is_root() && caps::has(**capability).unwrap_or(false)));
    let missing: Vec<_> = missing.map(|capability| capability.name()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the application cannot run as {}: baofs runs as uid {uid} and lacks {}",
        user.name,
        missing.join(", ")
    );
    let hint = format!(
        "start the container as root with `--cap-add {}`, or as that user",
        missing.join(" --cap-add ")
    );
    Err(Refused::new(
        Exit::Config,
        format_args!("{message}\nhint: {hint}"),
    ))
}

/// Says when the application can get back what it is started without.
fn warn_of_rights(app: &App) {
    let has = |capability| caps::has(capability).unwrap_or(false);
    if app.new_privileges == NewPrivileges::Inherited
        && has(Capability::SysAdmin)
        && !has(Capability::SetPcap)
    {
        Incident::SysAdminRemains.emit(&"`no_new_privs = false`");
    }
}

/// Gives up what was only needed to set up, where the application has a user of its own (else it
/// inherits what baofs has). The bounding set stays: the application inherits it. From now on
/// everything is done with what is kept here, the end included.
fn lower_rights(plan: &Plan, mounts: &Mounts) -> io::Result<()> {
    if !app::has_own_uid(&plan.app) {
        return Ok(());
    }
    caps::lower_to(&[&KEPT, mounts.rights_of_fetch(plan)].concat())
}

/// Forks the roles and obeys the machine to its end. The result is the exit code, and the processes
/// that are left.
fn supervise(
    plan: &Plan,
    mounts: &mut Mounts,
    signals: SignalFd,
    inherited: &Inherited,
    guard: Option<&Guard>,
    held: &[BorrowedFd<'_>],
) -> Result<(u8, Remains), Refused> {
    lower_rights(plan, mounts)
        .map_err(|error| Refused::software("capabilities cannot be given up", error))?;
    let clock = RealClock;
    let children = Children::start(plan, mounts, &signals, guard, held, clock.now());
    let children = children.map_err(not_started)?;
    let terminal = Terminal::foreground();
    let (app, hooks) = (&plan.app, Hooks::new(&plan.hooks, Jitter::new()));
    let (mut machine, first) = Machine::start(policy(app));
    let mut turning = Loop {
        clock: &clock,
        signals,
        mounts,
        children,
        guard,
        app,
        inherited,
        terminal,
        hooks,
        group: None,
        app_lives: false,
        timer: None,
        looks: Looks::new(Intervals::USUAL, clock.now()),
        swap: None,
    };
    let code = turning.run(&mut machine, first);
    if let Some(terminal) = &turning.terminal {
        terminal.take_back();
    }
    Ok((code, turning.remains()))
}

fn policy(app: &App) -> Policy {
    Policy {
        has_app: !app.command.is_empty(),
        wait: app.wait,
        stop_signal: app.stop_signal,
        stop_timeout: app.stop_timeout,
        revoke_timeout: REVOKE_TIMEOUT,
        on_hup: app.on_hup,
    }
}
