//! Makes new versions heard: for each, the events of a file that is replaced and written (create,
//! rename, truncate, close), issued on the private mount by the one thread that may. Invariant: a
//! version that is served and not announced stays due, whatever fails; nothing is tried again
//! before somebody wakes the thread.

use super::tree::{HIDDEN, OLD};
use crate::names::{FileId, Generation};
use crate::snapshot::{Announcements, Arena};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::ftruncate;
use std::collections::BTreeSet;
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
    wake: Sender<Option<Published>>,
}

/// A publication.
#[derive(Debug)]
struct Published {
    generation: Generation,
    files: Vec<FileId>,
}

impl Announcer {
    /// Starts the thread, which at once announces what is due and then calls `done` after every
    /// round in which something was published, with the newest generation in it, or why it stopped
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

    /// Says that these files were published with `generation`. The thread looks at no others: each
    /// publication has to be told, in order.
    pub fn published(&self, generation: Generation, files: Vec<FileId>) {
        // The thread lives as long as this handle. Here and below.
        let _ = self.wake.send(Some(Published { generation, files }));
    }

    /// Asks for a round: for what a failed one left, and for old pages. Several calls may lead to
    /// one.
    pub fn wake(&self) {
        let _ = self.wake.send(None);
    }
}

/// What the next round is about.
struct Round {
    /// Whether all files are looked at: at first, and after a failure.
    is_full: bool,
    /// The files that were published.
    files: BTreeSet<FileId>,
    /// The generation to tell of, once everything up to it is announced.
    newest: Option<Generation>,
    /// How many inodes were known of which the kernel keeps pages.
    seen: u64,
}

impl Round {
    fn add(&mut self, published: Option<Published>) {
        if let Some(Published { generation, files }) = published {
            self.newest = self.newest.max(Some(generation));
            self.files.extend(files);
        }
    }
}

fn run(
    arena: Arc<Arena>,
    private: &OwnedFd,
    woken: &Receiver<Option<Published>>,
    mut done: impl FnMut(Result<Generation, AnnounceError>),
) {
    let announcements = Announcements::sign(arena);
    let mut round = Round {
        is_full: true,
        files: BTreeSet::new(),
        newest: None,
        seen: 0,
    };
    loop {
        let announced = announce_due(&announcements, private, &mut round);
        let dropped = drop_old_pages(&announcements, private, &mut round);
        round.is_full = announced.is_err() || dropped.is_err();
        round.files.clear();
        match announced {
            // Of a round that stopped short, too: it is told when the next one is through.
            Ok(()) => {
                if let Some(newest) = round.newest.take() {
                    done(Ok(newest));
                }
            }
            Err(error) => done(Err(error)),
        }
        if let Err(error) = dropped {
            done(Err(error));
        }
        let Ok(published) = woken.recv() else {
            return;
        };
        round.add(published);
        // What was said before the round that follows is covered by it.
        while let Ok(published) = woken.try_recv() {
            round.add(published);
        }
    }
}

/// Announces what is due of the round's files. A version that is published meanwhile is told of by
/// a later round, even if it was announced in this one: other files came with it.
fn announce_due(
    announcements: &Announcements,
    private: &OwnedFd,
    round: &mut Round,
) -> Result<(), AnnounceError> {
    if round.is_full {
        let served = announcements.generation();
        let due = announcements.due();
        if !due.is_empty() {
            round.newest = round.newest.max(Some(served));
        }
        round.files.extend(due);
    }
    for file in &round.files {
        if announcements.is_due(*file) {
            announce(announcements, private, *file)?;
        }
    }
    Ok(())
}

fn announce(
    announcements: &Announcements,
    private: &OwnedFd,
    file: FileId,
) -> Result<(), AnnounceError> {
    let name = announcements.name(file);
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
        announcements.begin(file);
        openat(private, hidden.as_str(), flags, Mode::S_IRUSR)
    };
    let fd = retry(create).map_err(failed("create"))?;
    // What `serve` made: a flip may have come since this file was found to be due.
    let made = announcements
        .made(file)
        .ok_or(Errno::ESTALE)
        .map_err(failed("create"))?;
    retry(|| renameat(private, hidden.as_str(), private, name)).map_err(failed("rename"))?;
    let len = i64::try_from(made.len)
        .map_err(|_| Errno::EFBIG)
        .map_err(failed("truncate"))?;
    retry(|| ftruncate(&fd, len)).map_err(failed("truncate"))?;
    drop(fd);
    announcements.done(file, made.generation);
    Ok(())
}

/// Has the kernel drop what it keeps of superseded versions, whoever has them open; they are read
/// from `serve` again.
///
/// A lookup of `..old.NAME` leads to such an inode with another modification time than before, and
/// the kernel then drops its pages (`FUSE_AUTO_INVAL_DATA`). It waits for pages that are being read
/// just now, thus for `serve`: so this is done here, and not by `serve` with
/// `FUSE_NOTIFY_INVAL_INODE`, which would wait for itself. Each lookup leads to another inode, and
/// the last one to none, so that the name keeps no inode alive.
fn drop_old_pages(
    announcements: &Announcements,
    private: &OwnedFd,
    round: &mut Round,
) -> Result<(), AnnounceError> {
    let (noted, seen) = announcements.kept_since(round.seen);
    round.seen = seen;
    let kept = match noted {
        Some(noted) if !round.is_full => {
            round.files.extend(noted);
            let files = round.files.iter().copied();
            files.filter(|file| announcements.is_kept(*file)).collect()
        }
        Some(_) | None => announcements.kept(),
    };
    for file in kept {
        let name = announcements.name(file);
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
