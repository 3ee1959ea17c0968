//! The guard: a process for removing the mounts and killing all processes after supervise is killed.
//! A container needs no guard, because nothing survives PID 1. Invariants: the guard only waits while
//! supervise lives, serves no request, reads no secret, and has only the rights to unmount and to
//! kill.

use super::child::confine;
use super::has;
use super::mounts::Mounts;
use crate::names::Role;
use crate::observe::{Event, Incident};
use crate::sys::caps::Capability;
use crate::sys::process;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::{Pid, getpid, pipe2, setpgid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The time limit of `fetch` to revoke and to end, all requests included. Together with the
/// application's `stop_timeout` (6 s) less than Docker's limit of 10 s.
pub(super) const REVOKE_TIMEOUT: Duration = Duration::from_millis(2500);

/// The guard, a child of supervise. The roles are in the process group of the guard.
#[derive(Debug)]
pub struct Guard {
    /// The process, and the process group of the roles.
    pub(super) pid: Pid,
    /// Supervise's end of a socket, closed by the death of supervise. The socket carries the process
    /// groups for the guard to kill.
    life: OwnedFd,
    /// The write end of a pipe, also held by `fetch`: closed when both have ended.
    leave: OwnedFd,
}

impl Guard {
    /// Starts a guard of `mounts`, except in PID 1. No child needs the descriptors `held`.
    pub(super) fn start(mounts: &Mounts, held: &[BorrowedFd<'_>]) -> io::Result<Option<Self>> {
        if getpid() == Pid::from_raw(1) {
            return Ok(None);
        }
        let (lives, life) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let (leaves, leave) = pipe2(OFlag::O_CLOEXEC)?;
        let mut foreign = mounts.descriptors();
        foreign.extend([life.as_fd(), leave.as_fd()]);
        foreign.extend(held);
        let pid = process::fork(&foreign, move || {
            let mut rights = vec![Capability::SysAdmin, Capability::Kill];
            rights.retain(|right| has(*right));
            match confine(c"baofs-guard", &rights, getpid()) {
                Ok(()) => clean_up(mounts, &lives, &leaves),
                Err(error) => Incident::NoGuard.emit(&error),
            }
            0
        })?;
        // The guard calls setpgid, too; the group must exist before the fork of a role.
        let _ = setpgid(pid, pid);
        Ok(Some(Self { pid, life, leave }))
    }

    /// The descriptors to be closed by `role`. `fetch` holds the pipe to the end.
    pub(super) fn foreign_to(&self, role: Role) -> Vec<BorrowedFd<'_>> {
        match role {
            Role::Fetch => vec![self.life.as_fd()],
            Role::Serve => vec![self.life.as_fd(), self.leave.as_fd()],
        }
    }

    /// Adds the process group `group` to the groups to kill after the death of supervise; a negative
    /// number removes the group. The leader adds the group before executing a program.
    pub(super) fn tell(&self, group: i32) {
        // Without waiting, because the guard may be dead or stopped.
        let _ = send(
            self.life.as_raw_fd(),
            &group.to_ne_bytes(),
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        );
    }
}

/// Waits for the death of supervise, then kills every process, the guard included.
fn clean_up(mounts: &Mounts, lives: &OwnedFd, leaves: &OwnedFd) {
    let groups = groups(lives);
    Event::SuperviseKilled.emit();
    for group in groups {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    // Until `fetch` has revoked the token and ended.
    let timeout = PollTimeout::try_from(REVOKE_TIMEOUT).unwrap_or(PollTimeout::MAX);
    let mut end = [PollFd::new(leaves.as_fd(), PollFlags::empty())];
    let _ = poll(&mut end, timeout);
    mounts.close();
    // The guard's group, and with it every hanging role.
    let _ = killpg(Pid::from_raw(0), Signal::SIGKILL);
}

/// Waits for the death of supervise and returns the process groups left then.
fn groups(lives: &OwnedFd) -> Vec<i32> {
    let mut groups = vec![];
    let mut bytes = [0; 4];
    loop {
        match recv(lives.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(4) => match i32::from_ne_bytes(bytes) {
                began @ 1.. => groups.push(began),
                ended => groups.retain(|group| *group != -ended),
            },
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return groups,
        }
    }
}
