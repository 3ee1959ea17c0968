//! Who takes everything away when supervise is killed. A container needs none: nothing survives its PID 1. Invariants: it
//! does nothing as long as supervise lives; it serves nobody, reads no secret and has no right but to unmount and to kill.

use super::REVOKE_TIMEOUT;
use super::roles::{confine, end};
use super::world::World;
use crate::observe::Event;
use crate::sys::caps::{self, Capability};
use crate::sys::process;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, getpid, pipe2, read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The guard: a child whose process group the roles share.
#[derive(Debug)]
pub struct Guard {
    pid: Pid,
    /// The end of a pipe that supervise holds: it closes with its death. Applications write their process id into it.
    life: OwnedFd,
    /// The end of another one, which `fetch` holds, too.
    leave: OwnedFd,
}

impl Guard {
    /// Starts one that takes `world` away; none for PID 1.
    pub(super) fn start(world: &World, signals: &SignalFd) -> io::Result<Option<Self>> {
        if getpid() == Pid::from_raw(1) {
            return Ok(None);
        }
        let ((lives, life), (leaves, leave)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        let remains = world.remains()?;
        let foreign: Vec<_> = world.descriptors().into_iter().chain([signals.as_fd(), life.as_fd(), leave.as_fd()]).collect();
        let pid = process::fork(&foreign, move || {
            let rights = [Capability::SysAdmin, Capability::Kill].into_iter().filter(|right| caps::has(*right).unwrap_or(false));
            if let Err(error) = confine(c"baofs-guard", &rights.collect::<Vec<_>>(), getpid()) {
                Event::Skipped { what: &format!("nobody will clean up if baofs is killed: {error}") }.emit();
                return 0;
            }
            let group = last(&lives);
            Event::Broken { what: "supervise was killed: all is stopped and taken away" }.emit();
            let _ = group.map(|group| killpg(group, Signal::SIGKILL));
            // Until `fetch` has revoked.
            let timeout = PollTimeout::try_from(REVOKE_TIMEOUT).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(leaves.as_fd(), PollFlags::empty())], timeout);
            remains();
            // A role that hangs, and the guard itself.
            let _ = killpg(Pid::from_raw(0), Signal::SIGKILL);
            0
        })?;
        // Both sides do it, as the first role may be quicker.
        let _ = nix::unistd::setpgid(pid, pid);
        Ok(Some(Self { pid, life, leave }))
    }

    /// Its process group.
    pub(super) fn group(&self) -> Pid {
        self.pid
    }

    /// What no role holds.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.life.as_fd(), self.leave.as_fd()]
    }

    /// What `fetch` holds as long as it lives.
    pub(super) fn held_by_fetch(&self) -> io::Result<OwnedFd> {
        self.leave.try_clone()
    }

    /// To be called by the application itself, whose group the caller leads, so that it cannot run without being known.
    pub(super) fn tell(&self) {
        let _ = write(&self.life, &getpid().as_raw().to_ne_bytes());
    }

    /// Ends it when supervise has taken everything away itself.
    pub(super) fn end(self) {
        end(self.pid);
    }
}

/// The application that was told last, when the other end is closed.
fn last(lives: &OwnedFd) -> Option<Pid> {
    let (mut last, mut bytes) = (None, [0; 4]);
    loop {
        match read(lives, &mut bytes) {
            Ok(4) => last = Some(Pid::from_raw(i32::from_ne_bytes(bytes))),
            Err(nix::errno::Errno::EINTR) => {}
            Ok(_) | Err(_) => return last,
        }
    }
}
