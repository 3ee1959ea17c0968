//! Announces new versions. For each file, one thread issues the calls of a replaced and written
//! file (create, rename, truncate, close) on the private mount, and the kernel sends the inotify
//! events. Invariants: a version that is served and not announced stays due after every failure;
//! the thread repeats nothing before it is woken.

use super::tree::{HIDDEN, OLD};
use crate::names::{FileId, Generation};
use crate::snapshot::{Announcements, Arena};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::ftruncate;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// The limit of dropped inodes of one file in one round: twice the most versions of a file. Without
/// a limit, a reader that maps an old version again and again could keep the thread busy.
const MOST_DROPS: usize = 128;

/// A failed announcement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot announce {name}: {step}: {cause}")]
pub struct AnnounceError {
    /// The file's name.
    name: String,
    /// The failed step.
    step: &'static str,
    /// The error of the kernel or of `serve`.
    cause: Errno,
}

fn failed(name: &str, step: &'static str) -> impl FnOnce(Errno) -> AnnounceError {
    move |cause| AnnounceError {
        name: name.to_owned(),
        step,
        cause,
    }
}

/// The handle of the announcing thread. The thread may block for as long as nothing answers the
/// mount, so no code joins the thread: the thread ends after the drop of the handle, or with the
/// process.
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
    /// Starts the thread, which announces all due files at once. After every round the thread calls
    /// `done` with an error, or, if files were published, with the newest announced generation.
    ///
    /// # Errors
    /// `EAGAIN` at the system's limit of threads.
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

    /// Announces `files`, which were published with `generation`. Must be called for each
    /// publication, in order: the thread looks at no other files.
    pub fn published(&self, generation: Generation, files: Vec<FileId>) {
        // Cannot fail: the thread lives as long as the handle. Same below.
        let _ = self.wake.send(Some(Published { generation, files }));
    }

    /// Starts a round, for the rest of a failed round and for old pages. Several calls may share a
    /// round.
    pub fn wake(&self) {
        let _ = self.wake.send(None);
    }
}

/// The work of the next round.
struct Round {
    /// Whether all files are looked at: in the first round, and after a failure.
    is_full: bool,
    /// The published files.
    files: BTreeSet<FileId>,
    /// The generation to report when all earlier generations and this generation are announced.
    newest: Option<Generation>,
    /// The number of inodes with pages in the kernel that earlier rounds have handled.
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
            // After a failed round, `newest` stays until a later round succeeds.
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
        // The next round covers all publications so far.
        while let Ok(published) = woken.try_recv() {
            round.add(published);
        }
    }
}

/// Announces the due files of the round. A version that is published meanwhile is reported by a
/// later round, even if this round announces the version: the same publication has other files.
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
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let create = || {
        // Begins a new attempt: an interrupted create may have been executed, and the name of the
        // old attempt would be in the way.
        announcements.begin(file);
        openat(private, hidden.as_str(), flags, Mode::S_IRUSR)
    };
    let fd = retry(create).map_err(failed(name, "create"))?;
    // The version that `serve` created: newer than the due version if a flip came in between.
    let made = announcements
        .made(file)
        .ok_or(Errno::ESTALE)
        .map_err(failed(name, "create"))?;
    retry(|| renameat(private, hidden.as_str(), private, name)).map_err(failed(name, "rename"))?;
    let len = i64::try_from(made.len).unwrap_or(i64::MAX);
    retry(|| ftruncate(&fd, len)).map_err(failed(name, "truncate"))?;
    drop(fd);
    announcements.done(file, made.generation);
    Ok(())
}

/// Makes the kernel drop its pages of superseded versions, also of open files; later reads go to
/// `serve` again.
///
/// A lookup of `..old.NAME` leads to an inode of a superseded version with a new modification time,
/// for which the kernel drops the pages (`FUSE_AUTO_INVAL_DATA`). The kernel waits for pages that
/// are being read, thus for `serve`; so `fetch` does the lookup, and `serve` does not use
/// `FUSE_NOTIFY_INVAL_INODE`, which would wait for `serve`. Each lookup leads to another inode and
/// the last lookup to none, so that the name keeps no inode alive.
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
                // ESTALE: the version was evicted meanwhile.
                Ok(_) | Err(Errno::ESTALE) => {}
                Err(Errno::ENOENT) => break,
                Err(cause) => return Err(failed(name, "drop old pages")(cause)),
            }
        }
    }
    Ok(())
}

/// Repeats `call` after `EINTR`: from a signal, or, on a kernel without RESEND, from a new `serve`
/// for a request that a dead `serve` had taken.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
