//! Who takes everything away when supervise is killed. A container needs none: nothing survives its
//! PID 1. Invariants: it does nothing as long as supervise lives; it serves nobody, reads no secret
//! and has no right but to unmount and to kill.

use super::child::{confine, kill_and_reap};
use super::mounts::Mounts;
use crate::names::Child;
use crate::observe::{Event, Incident};
use crate::sys::caps::{self, Capability};
use crate::sys::process;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::{Pid, getpid, pipe2, setpgid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long `fetch` may take to revoke and end, its own bound for the requests included. With the
/// application's `stop_timeout` (6 s) this stays under the 10 s that Docker gives.
pub(super) const REVOKE_TIMEOUT: Duration = Duration::from_millis(2500);

/// The guard: a child whose process group the roles share.
#[derive(Debug)]
pub struct Guard {
    pid: Pid,
    /// Supervise's end of a socket: it closes with its death. Process groups to be killed then are
    /// told through it.
    life: OwnedFd,
    /// The end of a pipe, which `fetch` holds, too: it closes when that has left.
    leave: OwnedFd,
}

impl Guard {
    /// Starts one that takes `mounts` away; none for PID 1. `held` are descriptors that no child
    /// needs.
    pub(super) fn start(
        mounts: &Mounts,
        signals: &SignalFd,
        held: &[BorrowedFd<'_>],
    ) -> io::Result<Option<Self>> {
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
        let own = [signals.as_fd(), life.as_fd(), leave.as_fd()];
        let foreign: Vec<_> = mounts
            .descriptors()
            .into_iter()
            .chain(own)
            .chain(held.iter().copied())
            .collect();
        let inherited = process::inherited()?;
        let pid = process::fork(&foreign, move || {
            let rights = [Capability::SysAdmin, Capability::Kill]
                .into_iter()
                .filter(|right| caps::has(*right).unwrap_or(false));
            if let Err(why) = confine(
                c"baofs-guard",
                &inherited,
                &rights.collect::<Vec<_>>(),
                getpid(),
            ) {
                Incident::NoGuard.emit(&why);
                return 0;
            }
            let groups = groups(&lives);
            Event::SuperviseKilled.emit();
            for group in groups {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            // Until `fetch` has revoked.
            let timeout = PollTimeout::try_from(REVOKE_TIMEOUT).unwrap_or(PollTimeout::MAX);
            let _ = poll(
                &mut [PollFd::new(leaves.as_fd(), PollFlags::empty())],
                timeout,
            );
            mounts.close();
            // A role that hangs, and the guard itself.
            let _ = killpg(Pid::from_raw(0), Signal::SIGKILL);
            0
        })?;
        // Both sides do it, as the first role may be quicker.
        let _ = setpgid(pid, pid);
        Ok(Some(Self { pid, life, leave }))
    }

    /// Its process group.
    pub(super) fn group(&self) -> Pid {
        self.pid
    }

    /// What this role must close. `fetch` keeps one until it dies.
    pub(super) fn foreign_to(&self, role: Child) -> impl Iterator<Item = BorrowedFd<'_>> {
        [
            Some(self.life.as_fd()),
            (role != Child::Fetch).then(|| self.leave.as_fd()),
        ]
        .into_iter()
        .flatten()
    }

    /// The process group of this number is to be killed with supervise (its leader says so itself:
    /// it never runs without being known); of a negative one: not any more.
    pub(super) fn tell(&self, group: i32) {
        // Who does not listen is dead or stopped: nobody waits for it.
        let _ = send(
            self.life.as_raw_fd(),
            &group.to_ne_bytes(),
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        );
    }

    /// Ends it when supervise has taken everything away itself.
    pub(super) fn end(self) {
        kill_and_reap(&[self.pid]);
    }
}

/// The groups that there are when supervise dies; waits for that.
fn groups(lives: &OwnedFd) -> Vec<i32> {
    let (mut groups, mut bytes) = (vec![], [0; 4]);
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
