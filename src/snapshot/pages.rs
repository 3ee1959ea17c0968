//! The pages of versions that the kernel may keep. Files are opened for direct I/O, but `sendfile`,
//! `splice` and `mmap` make the kernel keep pages, those of a superseded version until the last
//! descriptor is closed. `serve` notes each such read; `fetch` has the pages dropped once a newer
//! version is announced. Invariant: a note belongs to one version, and never to the next version in
//! the same record.
//!
//! A note is a word of the reader area, which `serve` alone writes. The upper half has the version's
//! tag. The lower half counts the drops of the version's pages; its two lowest bits mark the inodes
//! of which the kernel may keep pages.

use super::layout::LAST_KEPT;
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

/// The bits of both inodes.
const KEPT: u64 = 0b11;
/// One drop.
const DROP: u64 = 0b100;

impl Stage {
    fn bit(self) -> u64 {
        1 << self as u64
    }
}

impl Reader {
    /// Notes that the kernel keeps pages of this inode.
    pub fn keeps(&self, nodeid: u64, stage: Stage) {
        let word = self.note(nodeid);
        if word & stage.bit() != 0 {
            return;
        }
        self.set_note(nodeid, word | stage.bit());
        let words = self.arena().reader_area();
        let number = words.kept.load(SeqCst);
        // First the file, then the count that includes the file.
        let file = u64::from(self.file_of(nodeid).0);
        self.last_kept(number).store(file, SeqCst);
        words.kept.store(number + 1, SeqCst);
    }

    /// How often pages of this version were dropped.
    pub fn drops(&self, nodeid: u64) -> u64 {
        self.note(nodeid) / DROP
    }

    /// A superseded version of the file whose pages the kernel may keep, held, and the inode. The
    /// result stays the same until `dropped`. Counts one more drop.
    pub fn next_kept(&self, file: FileId) -> Option<(Version, Stage)> {
        for nodeid in self.kept_versions(file) {
            let word = self.note(nodeid);
            let stages = [Stage::Unannounced, Stage::Announced];
            let kept = stages.into_iter().find(|stage| word & stage.bit() != 0);
            let Some(stage) = kept else { continue };
            if let Some(held) = self.hold(nodeid) {
                self.set_note(nodeid, word + DROP);
                return Some((held, stage));
            }
        }
        None
    }

    /// Notes that the kernel was answered with that inode, and has dropped its pages.
    pub fn dropped(&self, nodeid: u64, stage: Stage) {
        self.set_note(nodeid, self.note(nodeid) & !stage.bit());
    }

    fn note(&self, nodeid: u64) -> u64 {
        let kept = self.arena().kept(self.arena().slot_of(nodeid));
        self.arena().untagged(nodeid, kept)
    }

    fn set_note(&self, nodeid: u64, word: u64) {
        let word = self.arena().tag(nodeid) << 32 | word & LOWER_HALF;
        let slot = self.arena().slot_of(nodeid);
        self.arena().kept(slot).store(word, SeqCst);
    }

    /// Where the file of the note with that number is named.
    fn last_kept(&self, number: u64) -> &AtomicU64 {
        let position = usize::try_from(number % LAST_KEPT as u64).expect("less than a length");
        &self.arena().reader_area().last_kept[position]
    }

    /// The files that were noted after the first `seen` notes, and how many notes there are now. No
    /// list when there were more notes than are named.
    pub(super) fn kept_since(&self, seen: u64) -> (Option<Vec<FileId>>, u64) {
        let kept = self.arena().reader_area().kept;
        let now = kept.load(SeqCst);
        let named = seen.max(now.saturating_sub(LAST_KEPT as u64))..now;
        let file = |number| u32::try_from(self.last_kept(number).load(SeqCst)).ok();
        let files: Option<Vec<_>> = named.map(|number| file(number).map(FileId)).collect();
        // The next note already overwrites the oldest name.
        let is_all = kept.load(SeqCst) - seen < LAST_KEPT as u64;
        (files.filter(|_| is_all), now)
    }

    /// Superseded versions of the file that are held and of which the kernel may keep pages.
    pub(super) fn kept_versions(&self, file: FileId) -> Vec<u64> {
        let mut found = Vec::new();
        // Most applications read, so the kernel keeps no page.
        if self.arena().reader_area().kept.load(SeqCst) == 0 {
            return found;
        }
        let Some(current) = self.current(file) else {
            return found;
        };
        for slot in self.arena().slots(file) {
            let word = self.arena().kept(slot).load(SeqCst);
            // The number that this record had with this tag.
            let nodeid = (word >> 32) * self.arena().record_count() as u64 + slot as u64;
            if word & KEPT == 0 || self.arena().holder_count(nodeid) == 0 {
                continue;
            }
            if let Some(version) = self.version(nodeid)
                && version.generation < current.generation
            {
                found.push(nodeid);
            }
        }
        found
    }
}
