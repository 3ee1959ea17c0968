//! Makes new versions heard: for each, the events of a file that is replaced and written (create,
//! rename, truncate, close), issued on the private mount by the one thread that may. Invariant: a
//! version that is served and not announced stays due, whatever fails; nothing is tried again
//! before somebody wakes the thread.

use super::tree::{HIDDEN, OLD};
use crate::memory::arena::Arena;
use crate::names::{FileId, Generation};
use crate::snapshot::Bulletin;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::ftruncate;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// How many inodes of one file are looked at in one round; a reader that goes on mapping an old
/// version could otherwise keep the thread busy. As many as a file has versions, twice.
const MOST_DROPS: usize = 128;

/// Why a version was not announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceError {
    /// The file's name.
    name: String,
    /// The step.
    step: &'static str,
    /// What the kernel, or `serve`, said.
    cause: Errno,
}

impl fmt::Display for AnnounceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot announce {}: {}: {}",
            self.name, self.step, self.cause
        )
    }
}

impl std::error::Error for AnnounceError {}

/// The announcing thread. It may block for as long as nothing answers the mount, so nobody waits
/// for it: when this handle is dropped it ends by itself, at the latest with its process.
#[derive(Debug)]
pub struct Announcer {
    wake: Sender<()>,
}

impl Announcer {
    /// Starts the thread, which at once announces what is due and then calls `done` after every
    /// round that announced something, with the newest generation in it, or why it stopped
    /// short.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        arena: Arc<Arena>,
        private: OwnedFd,
        done: impl FnMut(Result<Generation, AnnounceError>) + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = channel();
        thread::Builder::new()
            .name("announce".to_owned())
            .spawn(move || run(arena, &private, &woken, done))?;
        Ok(Self { wake })
    }

    /// Says that something was published; several calls may lead to one round.
    pub fn wake(&self) {
        // The thread lives as long as this handle.
        let _ = self.wake.send(());
    }
}

fn run(
    arena: Arc<Arena>,
    private: &OwnedFd,
    woken: &Receiver<()>,
    mut done: impl FnMut(Result<Generation, AnnounceError>),
) {
    let bulletin = Bulletin::sign(arena);
    // Of a round that stopped short, too: it is told when the next one is through.
    let mut newest = None;
    loop {
        match announce_due(&bulletin, private, &mut newest) {
            Ok(()) => newest
                .take()
                .into_iter()
                .for_each(|newest| done(Ok(newest))),
            Err(error) => done(Err(error)),
        }
        if let Err(error) = drop_old_pages(&bulletin, private) {
            done(Err(error));
        }
        if woken.recv().is_err() {
            return;
        }
        // What was said before the round that follows is covered by it.
        while woken.try_recv().is_ok() {}
    }
}

/// Announces until nothing is due; versions that are published meanwhile are due, too.
fn announce_due(
    bulletin: &Bulletin,
    private: &OwnedFd,
    newest: &mut Option<Generation>,
) -> Result<(), AnnounceError> {
    loop {
        let due = bulletin.due();
        if due.is_empty() {
            return Ok(());
        }
        for file in due {
            *newest = (*newest).max(Some(announce(bulletin, private, file)?));
        }
    }
}

fn announce(
    bulletin: &Bulletin,
    private: &OwnedFd,
    file: FileId,
) -> Result<Generation, AnnounceError> {
    let name = bulletin.name(file);
    let hidden = format!("{HIDDEN}{name}");
    let failed = |step| {
        move |cause| AnnounceError {
            name: name.to_owned(),
            step,
            cause,
        }
    };
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let create = || {
        // Anew each time: an interrupted create may have been made, and the name would be in the
        // way.
        bulletin.begin(file);
        openat(private, hidden.as_str(), flags, Mode::S_IRUSR)
    };
    let fd = retry(create).map_err(failed("create"))?;
    // What `serve` made: a flip may have come since this file was found to be due.
    let made = bulletin
        .made(file)
        .ok_or(Errno::ESTALE)
        .map_err(failed("create"))?;
    retry(|| renameat(private, hidden.as_str(), private, name)).map_err(failed("rename"))?;
    let len = i64::try_from(made.len)
        .map_err(|_| Errno::EFBIG)
        .map_err(failed("truncate"))?;
    retry(|| ftruncate(&fd, len)).map_err(failed("truncate"))?;
    drop(fd);
    bulletin.done(file, made.generation);
    Ok(made.generation)
}

/// Has the kernel drop what it keeps of superseded versions, whoever has them open; they are read
/// from `serve` again.
///
/// A lookup of `..old.NAME` leads to such an inode with another modification time than before, and
/// the kernel then drops its pages (`FUSE_AUTO_INVAL_DATA`). It waits for pages that are being read
/// just now, thus for `serve`: so this is done here, and not by `serve` with
/// `FUSE_NOTIFY_INVAL_INODE`, which would wait for itself. Each lookup leads to another inode, and
/// the last one to none, so that the name keeps no inode alive.
fn drop_old_pages(bulletin: &Bulletin, private: &OwnedFd) -> Result<(), AnnounceError> {
    for file in bulletin.kept() {
        let name = bulletin.name(file);
        let old = format!("{OLD}{name}");
        for _ in 0..MOST_DROPS {
            match retry(|| fstatat(private, old.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)) {
                // ESTALE: evicted meanwhile.
                Ok(_) | Err(Errno::ESTALE) => {}
                Err(Errno::ENOENT) => break,
                Err(cause) => {
                    return Err(AnnounceError {
                        name: name.to_owned(),
                        step: "drop old pages",
                        cause,
                    });
                }
            }
        }
    }
    Ok(())
}

/// Again after a signal; and `serve`, when it is born again on an old kernel, answers EINTR for its
/// predecessor.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
