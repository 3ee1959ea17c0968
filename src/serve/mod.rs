//! The role that answers the kernel: arena, tree, adapter, one loop. Invariants: `serve` opens no
//! file, communicates only with the kernel and supervise, and never waits for anything else;
//! `serve` can read every version and write none.

use crate::clock::{Clock, RealClock};
use crate::exit::{Exit, Refused};
use crate::fuse::adapter::Adapter;
use crate::fuse::session;
use crate::fuse::tree::Tree;
use crate::link::{End, FromRole};
use crate::memory::bounce::Bounce;
use crate::names::{Owner, Recovery, RestartHistory, Role};
use crate::observe::Incident;
use crate::snapshot::{Arena, Reader};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The inputs of the forked process.
#[derive(Debug)]
pub struct Job {
    /// The versions.
    pub arena: Arc<Arena>,
    /// `/dev/fuse` of the mount.
    pub device: OwnedFd,
    /// The kernel's first request, which began the session of the first `serve`.
    pub init: Vec<u8>,
    /// The deaths of predecessors.
    pub past: RestartHistory,
    /// The way to recover a predecessor's requests.
    pub recovery: Recovery,
    /// Permission bits of the directory.
    pub dir_mode: u32,
    /// The link to supervise.
    pub link: End,
}

/// Answers until the last mount of the filesystem is gone. Must be called right after the fork, in
/// a process that supervise has confined: no capability, no core dump, no descriptor besides the
/// job's.
pub fn run(job: &Job) -> Exit {
    match answer(job) {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            let role = Role::Serve;
            Incident::RoleFailed { role }.emit(&failure);
            failure.exit
        }
    }
}

fn answer(job: &Job) -> Result<(), Refused> {
    let bounce = Bounce::new().map_err(|error| Refused::new(Exit::Memory, error))?;
    serve(job, bounce).map_err(|error| Refused::software("cannot answer the kernel", error))
}

fn serve(job: &Job, bounce: Bounce) -> io::Result<()> {
    job.arena.protect_for(Role::Serve)?;
    let last = job.arena.reader_area().last_request.load(Relaxed);
    let reader = Reader::new(Arc::clone(&job.arena));
    let tree = Tree::new(reader, job.dir_mode, Owner::of_process());
    let adapter = Adapter::new(tree, bounce);
    let session = session::open(adapter, &job.device, &job.init)?;
    let recovery = session::recover(session.as_fd(), last, job.recovery)?;
    job.arena
        .serve_was_born(job.past, recovery, RealClock.now());
    job.link.send(&FromRole::Ready)?;
    session.run()
}
