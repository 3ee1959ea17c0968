//! One child of the agent's own: forked, confined, and ended. Invariant: no child is waited for
//! without a bound.

use crate::clock::{Clock, RealClock};
use crate::exit::Exit;
use crate::link::{self, End, FromRole};
use crate::memory;
use crate::names::Child;
use crate::observe::{self, Incident};
use crate::sys::caps::{self, Capability};
use crate::sys::process;
use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid, setpgid};
use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

/// How long killed children may take to die at the end, before the agent ends without them. 0.5 s
/// for one that even KILL does not end, and all of it still lies within Docker's 10 s.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// Forks a role into `group`. The child closes `foreign` and `inherited` descriptors, drops every
/// right but `keep`, runs `body`, and reports a failure over the link that the parent is given.
pub(super) fn start(
    role: Child,
    foreign: &[BorrowedFd<'_>],
    inherited: &[RawFd],
    keep: &[Capability],
    group: Pid,
    body: impl FnOnce(End) -> Exit,
) -> io::Result<(Pid, End)> {
    let (ours, theirs) = link::pair()?;
    let last = theirs.try_clone()?;
    let parent = getpid();
    let close: Vec<_> = foreign.iter().copied().chain([ours.as_fd()]).collect();
    let pid = process::fork(&close, move || {
        let confined = confine(name(role), inherited, keep, group);
        let exit = match confined.and_then(|()| end_with(parent, role)) {
            Ok(()) => body(theirs),
            Err(why) => {
                let role = role.role();
                Incident::NotConfined { role }.emit(&why);
                Exit::Memory
            }
        };
        if exit != Exit::Ok {
            let _ = last.send(&FromRole::Failed(exit));
        }
        // The link ends with the process and not before: its end is the role's.
        mem::forget(last);
        exit.code()
    })?;
    Ok((pid, ours))
}

/// Kills children that have nothing left to do, and reaps them as far as they die within
/// `END_TIMEOUT`. One that hangs in the kernel is left to whoever inherits it: nobody waits for it
/// without a bound.
pub(super) fn kill_and_reap(children: &[Pid]) {
    for pid in children {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    reap(children.to_vec());
}

/// Reaps killed children as far as they die within `END_TIMEOUT`.
pub(super) fn reap(mut children: Vec<Pid>) {
    let (clock, mut pause) = (RealClock, Duration::from_micros(100));
    let end = clock.now().plus(END_TIMEOUT);
    loop {
        // Reaped, or no child of ours any more.
        children.retain(|pid| {
            matches!(
                waitpid(*pid, Some(WaitPidFlag::WNOHANG)),
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR)
            )
        });
        let now = clock.now();
        if children.is_empty() || now >= end {
            return;
        }
        let _ = poll(
            &mut [],
            PollTimeout::try_from(pause.min(end.since(now))).unwrap_or(PollTimeout::ZERO),
        );
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn name(role: Child) -> &'static CStr {
    match role {
        Child::Fetch => c"baofs-fetch",
        Child::Serve => c"baofs-serve",
    }
}

/// Makes a forked process what all of the agent's are: in `group`, without what was `inherited`
/// and the streams that the application has, no right but `keep`, no dump.
pub(super) fn confine(
    name: &CStr,
    inherited: &[RawFd],
    keep: &[Capability],
    group: Pid,
) -> io::Result<()> {
    let own = Pid::from_raw(0);
    // What a terminal sends is the application's alone. A dead guard leaves no group to join.
    setpgid(own, group).or_else(|_| setpgid(own, own))?;
    // Somebody may wait for the end of a pipe that only the application was to hold.
    process::close_inherited(inherited);
    process::leave_streams()?;
    observe::start_role();
    prctl::set_name(name)?;
    prctl::set_no_new_privs()?;
    caps::keep_only(keep)?;
    memory::forbid_cores().map_err(io::Error::other)
}

/// `serve` dies with its parent. `fetch` hears the end of its link, and revokes before it ends; if
/// it hangs, the guard kills it.
fn end_with(parent: Pid, role: Child) -> io::Result<()> {
    if role == Child::Fetch {
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
