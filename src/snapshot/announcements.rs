//! What is still to be announced, kept in the writer area for a successor of `fetch`.

use super::{Version, current, pages, version};
use crate::memory::arena::{Arena, Visibility};
use crate::names::{FileId, Generation};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// The announcing thread's side of the arena.
#[derive(Debug)]
pub struct Announcements {
    arena: Arc<Arena>,
}

impl Announcements {
    /// Registers the calling thread as the announcing one.
    pub fn sign(arena: Arc<Arena>) -> Self {
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        arena.writer_area().announcer.store(u64::from(tid), SeqCst);
        Self { arena }
    }

    /// The generation that is served.
    pub fn generation(&self) -> Generation {
        Generation(self.arena.writer_area().current.load(SeqCst))
    }

    /// Listed files whose current version is not announced. It looks at all files: for the first
    /// round, and for that after a failure.
    pub fn due(&self) -> Vec<FileId> {
        let files = self.arena.files_in(Visibility::Listed);
        files.filter(|file| self.is_due(*file)).collect()
    }

    /// Whether this listed file's current version is not announced.
    pub fn is_due(&self, file: FileId) -> bool {
        self.arena.visibility(file) == Visibility::Listed
            && current(&self.arena, file)
                .is_some_and(|version| version.generation > self.announced(file))
    }

    /// Whether the file has a superseded version of which the kernel may keep pages.
    pub fn is_kept(&self, file: FileId) -> bool {
        self.arena.visibility(file) == Visibility::Listed
            && !pages::superseded(&self.arena, file).is_empty()
    }

    /// The files of which the kernel came to keep pages since `seen` of them, and how many there
    /// are now; `None` when there were too many to name.
    pub fn kept_since(&self, seen: u64) -> (Option<Vec<FileId>>, u64) {
        pages::noted_since(&self.arena, seen)
    }

    /// Listed files that have a superseded version of which the kernel may keep pages; it looks at
    /// all files, as `due` does.
    pub fn kept(&self) -> Vec<FileId> {
        // Most applications read, and then there is nothing to look for.
        if self.arena.reader_area().kept.load(SeqCst) == 0 {
            return Vec::new();
        }
        self.arena
            .files_in(Visibility::Listed)
            .filter(|file| self.is_kept(*file))
            .collect()
    }

    /// The file's name.
    pub fn name(&self, file: FileId) -> &str {
        self.arena.files()[file.index()].name.as_str()
    }

    /// Begins an announcement: whatever an earlier one left half done counts no more.
    pub fn begin(&self, file: FileId) {
        self.arena.writer_files()[file.index()]
            .attempt
            .fetch_add(1, SeqCst);
    }

    /// The version that `serve` gave the hidden name to in this announcement.
    pub fn made(&self, file: FileId) -> Option<Version> {
        version(
            &self.arena,
            self.arena.reader_files()[file.index()].created.load(SeqCst),
        )
    }

    /// Ends it.
    pub fn done(&self, file: FileId, generation: Generation) {
        self.arena.writer_files()[file.index()]
            .announced
            .fetch_max(generation.0, SeqCst);
    }

    fn announced(&self, file: FileId) -> Generation {
        Generation(
            self.arena.writer_files()[file.index()]
                .announced
                .load(SeqCst),
        )
    }
}
