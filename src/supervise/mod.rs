//! The parent of all: owns signals, every fork, the mounts and the exit code; reads no secret.
//! Invariants: it has one thread; it is the only place that starts, signals and waits; whatever
//! happens it takes down what it set up.

pub mod app;
mod calls;
mod guard;
pub mod hooks;
mod profile;
mod reach;
pub mod rebirth;
mod roles;
mod run;
pub mod state;
pub mod traces;
mod walls;
pub mod watchdog;
mod world;

use crate::clock::{Clock, Jitter, RealClock};
use crate::config::plan::{App, NewPrivileges, Plan};
use crate::exit::Exit;
use crate::memory;
use crate::observe::Event;
use crate::sys::caps::{self, Capability};
use app::{Inherited, Terminal};
use guard::Guard;
use hooks::Hooks;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, geteuid, getpid};
use roles::Roles;
use run::Loop;
use state::{Machine, Policy, SIGNALS};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use traces::Traces;
use watchdog::{Looks, Timing};
use world::World;

/// How long `fetch` may take to revoke and end, its own bound for the requests included. With the
/// application's `stop_timeout` (6 s) this stays under the 10 s that Docker gives.
const REVOKE_TIMEOUT: Duration = Duration::from_millis(2500);

/// How long killed children may take to die at the end, before the agent ends without them. 0.5 s
/// for one that even KILL does not end, and all of it still lies within Docker's 10 s.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// What supervise keeps besides what `fetch` needs: to unmount, to start the application as its
/// user and under its walls, to signal it, and to lower its bounding set.
const KEPT: [Capability; 5] = [
    Capability::SysAdmin,
    Capability::SetUid,
    Capability::SetGid,
    Capability::Kill,
    Capability::SetPcap,
];

/// Why the agent did not start: the code to end with, and cause and remedy in words.
#[derive(Debug)]
pub struct Refused {
    /// The code.
    pub exit: Exit,
    /// The words.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Refused {
    fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
        }
    }

    fn software(what: &str, error: impl fmt::Display) -> Self {
        Self::new(Exit::Software, format_args!("{what}: {error}"))
    }
}

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
    let mut traces = Traces::open(plan);
    let mut world = World::open(plan)?;
    let (code, guard) = match traces
        .make()
        .and_then(|()| guard(&world, &signals, &traces))
    {
        Ok(guard) => (
            supervise(
                plan,
                &mut world,
                signals,
                &inherited,
                guard.as_ref(),
                &traces.descriptors(),
            ),
            guard,
        ),
        Err(refused) => (Err(refused), None),
    };
    world.close();
    drop(world);
    // Only now: their directories may be the application's, and nothing that it does there delays
    // the unmount.
    traces.remove();
    if let Some(guard) = guard {
        guard.end();
    }
    code
}

fn guard(world: &World, signals: &SignalFd, traces: &Traces) -> Result<Option<Guard>, Refused> {
    world
        .without_arena(|| Guard::start(world, signals, &traces.descriptors()))
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
        let what = "with `no_new_privs = false`, what the application executes as root has SYS_ADMIN, because baofs needs it; \
                    hint: with `--cap-add SETPCAP` baofs can take it away for good";
        Event::Skipped { what }.emit();
    }
}

/// Gives up what was only needed to set up, where the application has a user of its own (else it
/// inherits what baofs has). The bounding set stays: the application inherits it. From now on
/// everything is done with what is kept here, the end included.
fn lower_rights(plan: &Plan, world: &World) -> io::Result<()> {
    if !app::has_own_uid(&plan.app) {
        return Ok(());
    }
    caps::lower_to(&[&KEPT, world.rights_of_fetch(plan)].concat())
}

/// Forks the roles, obeys the machine to its end, and takes down what is left.
fn supervise(
    plan: &Plan,
    world: &mut World,
    signals: SignalFd,
    inherited: &Inherited,
    guard: Option<&Guard>,
    held: &[BorrowedFd<'_>],
) -> Result<u8, Refused> {
    lower_rights(plan, world)
        .map_err(|error| Refused::software("capabilities cannot be given up", error))?;
    let clock = RealClock;
    let roles = Roles::start(plan, world, &signals, guard, held, clock.now());
    let roles = roles.map_err(not_started)?;
    let terminal = Terminal::foreground();
    let (app, hooks) = (&plan.app, Hooks::new(&plan.hooks, Jitter::new()));
    let (mut machine, first) = Machine::start(policy(app));
    let mut turning = Loop {
        clock: &clock,
        signals,
        world,
        roles,
        guard,
        app,
        inherited,
        terminal,
        hooks,
        group: None,
        app_lives: false,
        timer: None,
        looks: Looks::new(Timing::USUAL, clock.now()),
        swap: None,
    };
    let code = turning.run(&mut machine, first);
    if let Some(terminal) = &turning.terminal {
        terminal.take_back();
    }
    turning.tear_down();
    Ok(code)
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
