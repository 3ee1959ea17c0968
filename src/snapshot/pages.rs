//! The pages of versions that the kernel may keep. Files are opened for direct I/O, but `sendfile`,
//! `splice` and `mmap` make the kernel keep pages, even of a superseded version until the last
//! descriptor is closed. `serve` notes the reads; `fetch` has the pages dropped once a newer
//! version is announced. Invariant: a note belongs to one version, and never to the next version in
//! the same record.
//!
//! A note is a word of the reader area, which `serve` alone writes. The upper half has the
//! version's tag. The lower half counts the drops of the version's pages; the two lowest bits mark
//! the inodes of which the kernel may keep pages.

use super::announcements::Announcements;
use super::layout::{LAST_KEPT, Visibility};
use super::reader::Reader;
use super::version::{LOWER_HALF, Version};
use crate::names::FileId;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// Which of a version's two inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The inode until the announcing rename.
    Unannounced = 0,
    /// The inode from the announcement's create on.
    Announced = 1,
}

/// The lower half of a note grows by this number with each drop.
const DROP: u64 = 0b100;

impl Stage {
    fn bit(self) -> u64 {
        1 << self as u64
    }
}

impl Reader {
    /// Notes that the kernel keeps pages of the inode.
    pub fn keeps(&self, nodeid: u64, stage: Stage) {
        let word = self.note(nodeid);
        if word & stage.bit() != 0 {
            return;
        }
        self.set_note(nodeid, word | stage.bit());
        let words = self.arena.reader_area();
        let number = words.kept.load(SeqCst);
        // The file comes before the count, because a reader of the count looks for the file.
        let file = u64::from(self.file_of(nodeid).0);
        self.last_kept(number).store(file, SeqCst);
        words.kept.store(number + 1, SeqCst);
    }

    /// How often pages of the version were dropped.
    pub fn drops(&self, nodeid: u64) -> u64 {
        self.note(nodeid) / DROP
    }

    /// A superseded version of the file whose pages the kernel may keep, held, and the inode.
    /// Counts a drop. The result stays the same until `dropped`.
    pub fn next_kept(&self, file: FileId) -> Option<(Version, Stage)> {
        for (nodeid, stage) in self.kept_versions(file) {
            if let Some(held) = self.hold(nodeid) {
                self.set_note(nodeid, self.note(nodeid) + DROP);
                return Some((held, stage));
            }
        }
        None
    }

    /// Notes that the kernel has dropped the pages of the inode, after the answer with the inode.
    pub fn dropped(&self, nodeid: u64, stage: Stage) {
        self.set_note(nodeid, self.note(nodeid) & !stage.bit());
    }

    fn note(&self, nodeid: u64) -> u64 {
        let kept = self.arena.kept(self.arena.slot_of(nodeid));
        self.arena.untagged(nodeid, kept)
    }

    fn set_note(&self, nodeid: u64, word: u64) {
        let word = self.arena.tag(nodeid) << 32 | word & LOWER_HALF;
        let slot = self.arena.slot_of(nodeid);
        self.arena.kept(slot).store(word, SeqCst);
    }

    /// The word for the file of the note with that number.
    fn last_kept(&self, number: u64) -> &AtomicU64 {
        let position = usize::try_from(number % LAST_KEPT as u64).expect("less than a length");
        &self.arena.reader_area().last_kept[position]
    }

    /// Superseded versions of the file with holders and pages that the kernel may keep; for each
    /// version, the first inode with such pages.
    fn kept_versions(&self, file: FileId) -> Vec<(u64, Stage)> {
        let arena = &self.arena;
        let mut found = Vec::new();
        let Some(current) = self.current(file) else {
            return found;
        };
        for slot in arena.slots(file) {
            let word = arena.kept(slot).load(SeqCst);
            // The number of the version that the word is about.
            let nodeid = (word >> 32) * arena.record_count() as u64 + slot as u64;
            let mut stages = [Stage::Unannounced, Stage::Announced].into_iter();
            let kept = stages.find(|stage| word & stage.bit() != 0);
            if let Some(stage) = kept
                && arena.holder_count(nodeid) > 0
                && let Some(version) = self.version(nodeid)
                && version.generation < current.generation
            {
                found.push((nodeid, stage));
            }
        }
        found
    }
}

impl Announcements {
    /// The files of all notes but the first `seen`, and the number of notes so far. No list when
    /// some of the files are no longer named.
    pub fn kept_since(&self, seen: u64) -> (Option<Vec<FileId>>, u64) {
        let kept = self.reader.arena.reader_area().kept;
        let now = kept.load(SeqCst);
        let named = seen.max(now.saturating_sub(LAST_KEPT as u64))..now;
        let file = |number| {
            let file = self.reader.last_kept(number).load(SeqCst);
            u32::try_from(file).ok().map(FileId)
        };
        let files: Option<Vec<_>> = named.map(file).collect();
        // The next note already overwrites the oldest name.
        let is_all = kept.load(SeqCst) - seen < LAST_KEPT as u64;
        (files.filter(|_| is_all), now)
    }

    /// Whether the listed file has a superseded version of which the kernel may keep pages.
    pub fn is_kept(&self, file: FileId) -> bool {
        self.reader.arena.file(file).visibility == Visibility::Listed
            && !self.reader.kept_versions(file).is_empty()
    }

    /// Listed files with a superseded version of which the kernel may keep pages. The search visits
    /// all files, as the search of `due` does.
    pub fn kept(&self) -> Vec<FileId> {
        let arena = &self.reader.arena;
        // Most applications read, so the kernel keeps no page.
        if arena.reader_area().kept.load(SeqCst) == 0 {
            return Vec::new();
        }
        let files = arena.files_in(Visibility::Listed);
        files.filter(|file| self.is_kept(*file)).collect()
    }
}
