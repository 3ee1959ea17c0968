//! The parent of all processes of the agent: owns the signals, every fork, the mounts and the exit
//! code; reads no secret. Invariants: supervise has a single thread; no other process starts,
//! signals or reaps; on every way out supervise tears down all that was set up.

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

use crate::config::plan::{App, NewPrivileges, Plan};
use crate::exit::{Exit, Refused};
use crate::memory;
use crate::observe::Incident;
use crate::sys::caps::{self, Capability};
use app::{Inherited, Launcher};
use children::Children;
use guard::Guard;
use mounts::Mounts;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, geteuid, getpid};
use run::{Loop, Remains};
use runfiles::RunFiles;
use state::SIGNALS;
use std::io;
use std::os::fd::AsFd;

/// Serves the files of `plan` and runs the application, if the plan has any. The result is the exit
/// code of the agent.
///
/// # Errors
/// If the agent cannot start. Then nothing is mounted and no process runs.
pub fn run(plan: &Plan) -> Result<u8, Refused> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    for (row, _) in SIGNALS {
        signals.extend(row.iter().copied());
    }
    let mut blocked = signals;
    // Otherwise a change of the terminal's foreground group would stop baofs in the background.
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
    let mut resources = Resources {
        run_files: RunFiles::open(plan),
        mounts: Mounts::open(plan)?,
        guard: None,
        processes: Remains::default(),
    };
    let result = supervise(plan, &mut resources, &signals, &inherited);
    resources.tear_down();
    result
}

/// Everything for supervise to tear down.
#[derive(Debug)]
struct Resources {
    run_files: RunFiles,
    mounts: Mounts,
    /// `None` if supervise is PID 1: no process survives PID 1.
    guard: Option<Guard>,
    /// The processes left by the loop.
    processes: Remains,
}

impl Resources {
    /// Kills the children, aborts the mount, reaps, and removes the files, in this order: a child may
    /// wait for an answer of the mount and dies only after the abort. The run files come last,
    /// because an application that owns their directories must not be able to delay the unmount.
    fn tear_down(mut self) {
        let Remains { mut roles, groups } = self.processes;
        for role in &roles {
            let _ = kill(*role, Signal::SIGKILL);
        }
        for group in &groups {
            let _ = killpg(*group, Signal::SIGKILL);
        }
        self.mounts.abort();
        self.mounts.unmount();
        // A group has the number of the leader, which is a child until reaped.
        roles.extend(groups);
        child::reap(roles);
        self.mounts.close();
        drop(self.mounts);
        self.run_files.remove();
        if let Some(guard) = self.guard {
            child::kill_and_reap(&[guard.pid]);
        }
    }
}

fn not_started(error: io::Error) -> Refused {
    Refused::software("a process of the agent cannot be started", error)
}

/// Refuses to start if baofs cannot change to the application's user; otherwise the failure would
/// come only with the start of the application or of a command.
fn may_become_user(app: &App) -> Result<(), Refused> {
    let Some(user) = app::other_user(app) else {
        return Ok(());
    };
    let uid = geteuid();
    let mut needed = vec![Capability::SetGid];
    if user.owner.uid != uid.as_raw() {
        needed.extend([Capability::SetUid, Capability::Kill]);
    }
    if uid.is_root() {
        needed.retain(|capability| !has(*capability));
    }
    if needed.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = needed.iter().map(|missing| missing.name()).collect();
    let message = format!(
        "the application cannot run as {}: baofs runs as uid {uid} and lacks {}\n\
         hint: start the container as root with `--cap-add {}`, or as that user",
        user.name,
        missing.join(", "),
        missing.join(" --cap-add ")
    );
    Err(Refused::new(Exit::Config, message))
}

/// Warns if the application can regain the capabilities taken away by baofs.
fn warn_of_rights(app: &App) {
    if app.new_privileges == NewPrivileges::Inherited
        && has(Capability::SysAdmin)
        && !has(Capability::SetPcap)
    {
        Incident::SysAdminRemains.emit(&"`no_new_privs = false`");
    }
}

fn has(capability: Capability) -> bool {
    caps::has(capability).unwrap_or(false)
}

/// Gives up the capabilities of the setup if the application has another user id; otherwise the
/// application inherits the capabilities of baofs. Supervise keeps the capabilities to unmount, to
/// start the application as another user and behind walls, to signal the application, to lower its
/// bounding set, and the capabilities of `fetch`. The bounding set of supervise stays, because the
/// application inherits the set.
fn lower_rights(plan: &Plan, mounts: &Mounts) -> io::Result<()> {
    if !app::has_own_uid(&plan.app) {
        return Ok(());
    }
    let of_fetch = mounts.rights_of_fetch(plan);
    let kept = [app::OWN, &[Capability::SetPcap], of_fetch].concat();
    caps::lower_to(&kept)
}

/// Makes the run files, forks the roles, and runs the loop to the end. The result is the exit code.
fn supervise(
    plan: &Plan,
    resources: &mut Resources,
    signals: &SignalFd,
    inherited: &Inherited,
) -> Result<u8, Refused> {
    let mounts = &mut resources.mounts;
    resources.run_files.make()?;
    let mut held = resources.run_files.descriptors();
    held.push(signals.as_fd());
    let guard = mounts.without_arena(|| Guard::start(mounts, &held));
    resources.guard = guard.map_err(not_started)?;
    let guard = resources.guard.as_ref();
    lower_rights(plan, mounts)
        .map_err(|error| Refused::software("capabilities cannot be given up", error))?;
    let children = Children::start(plan, mounts, guard, held).map_err(not_started)?;
    let launcher = Launcher::new(&plan.app, inherited, guard);
    let (code, processes) = Loop::new(plan, signals, mounts, children, launcher).run();
    resources.processes = processes;
    Ok(code)
}
