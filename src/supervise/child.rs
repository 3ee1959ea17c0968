//! The start, the confinement and the end of a process of the agent. Invariant: every wait for the
//! end of a process has a time limit.

use crate::clock::{Clock, RealClock};
use crate::exit::Exit;
use crate::link::{self, End, FromRole};
use crate::memory;
use crate::names::Role;
use crate::observe::{self, Incident};
use crate::sys::caps::{self, Capability};
use crate::sys::process;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid, setpgid};
use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

/// The time limit for the end of killed children when the agent ends. A process that hangs in the
/// kernel outlives KILL; with 0.5 s the whole stop stays within Docker's 10 s.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// Forks a role into the process group `group`. The child closes the descriptors `foreign`, drops
/// every capability except `keep`, runs `body`, and reports a failure over the link. The result is
/// the process and the parent's end of the link.
pub(super) fn start(
    role: Role,
    foreign: &[BorrowedFd<'_>],
    keep: &[Capability],
    group: Pid,
    body: impl FnOnce(End) -> Exit,
) -> io::Result<(Pid, End)> {
    let (ours, theirs) = link::pair()?;
    let last = theirs.try_clone()?;
    let parent = getpid();
    let name = match role {
        Role::Fetch => c"baofs-fetch",
        Role::Serve => c"baofs-serve",
    };
    let foreign = [foreign, &[ours.as_fd()]].concat();
    let pid = process::fork(&foreign, move || {
        let confined = confine(name, keep, group);
        let exit = match confined.and_then(|()| end_with(parent, role)) {
            Ok(()) => body(theirs),
            Err(why) => {
                Incident::NotConfined { role }.emit(&why);
                Exit::Memory
            }
        };
        if exit != Exit::Ok {
            let _ = last.send(&FromRole::Failed(exit));
        }
        // Supervise kills a role without a link, so the link must not end before the process.
        mem::forget(last);
        exit.code()
    })?;
    Ok((pid, ours))
}

/// Kills and reaps children; see [`reap`].
pub(super) fn kill_and_reap(children: &[Pid]) {
    for pid in children {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    reap(children.to_vec());
}

/// Reaps killed children for at most `END_TIMEOUT`. A child that hangs in the kernel is left to the
/// next reaper.
pub(super) fn reap(mut children: Vec<Pid>) {
    let mut pause = Duration::from_micros(100);
    let end = RealClock.now().plus(END_TIMEOUT);
    loop {
        // Every other result means: reaped now or before.
        children.retain(|pid| {
            matches!(
                waitpid(*pid, Some(WaitPidFlag::WNOHANG)),
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR)
            )
        });
        let left = end.since(RealClock.now());
        if children.is_empty() || left.is_zero() {
            return;
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Confines a forked process of the agent: joins `group`, closes the descriptors and the standard
/// streams of the application, drops every capability except `keep`, and forbids core dumps.
pub(super) fn confine(name: &CStr, keep: &[Capability], group: Pid) -> io::Result<()> {
    let own = Pid::from_raw(0);
    // Signals of a terminal are for the application alone. The group of a dead guard is gone.
    setpgid(own, group).or_else(|_| setpgid(own, own))?;
    // Another process may wait for the end of a pipe of the application.
    process::close_inherited(&process::inherited()?);
    process::leave_streams()?;
    observe::start_role();
    prctl::set_name(name)?;
    prctl::set_no_new_privs()?;
    caps::keep_only(keep)?;
    memory::forbid_cores().map_err(io::Error::other)
}

/// Makes `serve` die with the parent. `fetch` reads the end of the link instead, and ends after the
/// revocation; the guard kills a hanging `fetch`.
fn end_with(parent: Pid, role: Role) -> io::Result<()> {
    if role == Role::Fetch {
        return Ok(());
    }
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the line above.
    if getppid() == parent {
        Ok(())
    } else {
        Err(io::Error::other("the supervisor is gone"))
    }
}
