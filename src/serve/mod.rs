//! The role that answers the kernel: arena, tree, adapter, one loop. Invariants: it opens nothing,
//! talks to nobody but the kernel and never waits; it can read every version and write none.

use crate::clock::{Clock, RealClock};
use crate::exit::Exit;
use crate::fuse::adapter::Adapter;
use crate::fuse::session::{self, Init};
use crate::fuse::tree::{Directory, Tree};
use crate::link::{End, FromRole};
use crate::memory::MemoryError;
use crate::memory::arena::Arena;
use crate::memory::locked::Bounce;
use crate::names::{Recovery, RestartHistory, Role};
use crate::observe::Incident;
use crate::snapshot::Reader;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What the forked process was given.
#[derive(Debug)]
pub struct Job {
    /// The versions.
    pub arena: Arc<Arena>,
    /// `/dev/fuse` of the mount.
    pub device: OwnedFd,
    /// The kernel's first request, which began the session of whoever came first.
    pub init: Init,
    /// What became of predecessors.
    pub past: RestartHistory,
    /// How a predecessor's requests may come back.
    pub recovery: Recovery,
    /// Permission bits of the directory.
    pub dir_mode: u32,
    /// To supervise.
    pub link: End,
}

/// Why `serve` ends before the mount does.
#[derive(Debug)]
enum ServeError {
    Memory(MemoryError),
    Kernel(io::Error),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Kernel(error) => write!(f, "cannot answer the kernel: {error}"),
        }
    }
}

/// Answers until the last mount of the filesystem is gone. To be called right after the fork, in a
/// process that supervise has confined: no capability, no dump, no descriptor that is not in the
/// job.
pub fn run(job: &Job) -> Exit {
    match answer(job) {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            let role = Role::Serve;
            Incident::RoleFailed { role }.emit(&failure);
            match failure {
                ServeError::Memory(_) => Exit::Memory,
                ServeError::Kernel(_) => Exit::Software,
            }
        }
    }
}

fn answer(job: &Job) -> Result<(), ServeError> {
    job.arena
        .protect_for(Role::Serve)
        .map_err(ServeError::Kernel)?;
    let bounce = Bounce::new().map_err(ServeError::Memory)?;
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    let last = job.arena.reader_area().last_request.load(Relaxed);
    let tree = Tree::new(
        Reader::new(Arc::clone(&job.arena)),
        Directory {
            mode: job.dir_mode,
            uid,
            gid,
        },
    );
    let adapter = Adapter::new(tree, bounce);
    let session = session::open(adapter, &job.device, &job.init).map_err(ServeError::Kernel)?;
    let recovery =
        session::recover(session.as_fd(), last, job.recovery).map_err(ServeError::Kernel)?;
    job.arena
        .serve_was_born(job.past, recovery, RealClock.now());
    job.link
        .send(&FromRole::Ready)
        .map_err(ServeError::Kernel)?;
    session.run().map_err(ServeError::Kernel)
}
