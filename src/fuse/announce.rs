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
    wake: Sender<Wake>,
}

/// The generation and the files of a publication; neither if only a round is to start.
type Wake = (Option<Generation>, Vec<FileId>);

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
            .spawn(move || run(arena, private, &woken, done))?;
        Ok(Self { wake })
    }

    /// Announces `files`, which were published with `generation`. Must be called for each
    /// publication, in order: the thread looks at no other files.
    pub fn published(&self, generation: Generation, files: Vec<FileId>) {
        // Cannot fail: the thread lives as long as the handle. Same below.
        let _ = self.wake.send((Some(generation), files));
    }

    /// Starts a round, for the rest of a failed round and for old pages. Several calls may share a
    /// round.
    pub fn wake(&self) {
        let _ = self.wake.send((None, vec![]));
    }
}

fn run(
    arena: Arc<Arena>,
    private: OwnedFd,
    woken: &Receiver<Wake>,
    mut done: impl FnMut(Result<Generation, AnnounceError>),
) {
    let mut round = Round {
        announcements: Announcements::sign(arena),
        private,
        is_full: true,
        files: BTreeSet::new(),
        newest: None,
        seen: 0,
    };
    loop {
        let announced = round.announce_due();
        let dropped = round.drop_old_pages().map(|()| None);
        round.is_full = announced.is_err() || dropped.is_err();
        round.files.clear();
        for result in [announced, dropped] {
            if let Some(said) = result.transpose() {
                done(said);
            }
        }
        let Ok(published) = woken.recv() else {
            return;
        };
        round.add(published);
        // The next round covers all publications so far.
        for published in woken.try_iter() {
            round.add(published);
        }
    }
}

/// The work of the next round.
struct Round {
    announcements: Announcements,
    private: OwnedFd,
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
    fn add(&mut self, (generation, files): Wake) {
        self.newest = self.newest.max(generation);
        self.files.extend(files);
    }

    /// Announces the due files of the round. Returns the newest announced generation, if files were
    /// published; after a failed round, `newest` stays until a later round succeeds. A version that
    /// is published meanwhile is reported by a later round, even if this round announces the
    /// version: the same publication has other files.
    fn announce_due(&mut self) -> Result<Option<Generation>, AnnounceError> {
        if self.is_full {
            let served = self.announcements.generation();
            let due = self.announcements.due();
            if !due.is_empty() {
                self.newest = self.newest.max(Some(served));
            }
            self.files.extend(due);
        }
        for file in &self.files {
            if self.announcements.is_due(*file) {
                self.announce(*file)?;
            }
        }
        Ok(self.newest.take())
    }

    fn announce(&self, file: FileId) -> Result<(), AnnounceError> {
        let name = self.announcements.name(file);
        let hidden = format!("{HIDDEN}{name}");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let create = || {
            // Begins a new attempt: an interrupted create may have been executed, and the name of
            // the old attempt would be in the way.
            self.announcements.begin(file);
            openat(&self.private, hidden.as_str(), flags, Mode::S_IRUSR)
        };
        let fd = retry(create).map_err(failed(name, "create"))?;
        // The version that `serve` created: newer than the due version if a flip came in between.
        let made = self.announcements.made(file).ok_or(Errno::ESTALE);
        let made = made.map_err(failed(name, "create"))?;
        retry(|| renameat(&self.private, hidden.as_str(), &self.private, name))
            .map_err(failed(name, "rename"))?;
        let len = i64::try_from(made.len).unwrap_or(i64::MAX);
        retry(|| ftruncate(&fd, len)).map_err(failed(name, "truncate"))?;
        drop(fd);
        self.announcements.done(file, made.generation);
        Ok(())
    }

    /// Makes the kernel drop its pages of superseded versions, also of open files; later reads go
    /// to `serve` again.
    ///
    /// A lookup of `..old.NAME` leads to an inode of a superseded version with a new modification
    /// time, for which the kernel drops the pages (`FUSE_AUTO_INVAL_DATA`). The kernel waits for
    /// pages that are being read, thus for `serve`; so `fetch` does the lookup, and `serve` does
    /// not use `FUSE_NOTIFY_INVAL_INODE`, which would wait for `serve`. Each lookup leads to another
    /// inode and the last lookup to none, so that the name keeps no inode alive.
    fn drop_old_pages(&mut self) -> Result<(), AnnounceError> {
        let (noted, seen) = self.announcements.kept_since(self.seen);
        self.seen = seen;
        let kept = match noted {
            Some(noted) if !self.is_full => {
                self.files.extend(noted);
                let files = self.files.iter().copied();
                files
                    .filter(|file| self.announcements.is_kept(*file))
                    .collect()
            }
            Some(_) | None => self.announcements.kept(),
        };
        for file in kept {
            let name = self.announcements.name(file);
            let old = format!("{OLD}{name}");
            let look_up = || fstatat(&self.private, old.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            for _ in 0..MOST_DROPS {
                match retry(look_up) {
                    // ESTALE: the version was evicted meanwhile.
                    Ok(_) | Err(Errno::ESTALE) => {}
                    Err(Errno::ENOENT) => break,
                    Err(cause) => return Err(failed(name, "drop old pages")(cause)),
                }
            }
        }
        Ok(())
    }
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
