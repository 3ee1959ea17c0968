//! Finds the versions that the arena's records describe. Invariant: every result is consistent
//! although the publisher may change records at any time.

use super::layout::{Arena, State};
use crate::names::{FileId, Generation};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The lower half of a word.
pub(super) const LOWER_HALF: u64 = u32::MAX as u64;

/// An immutable version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Serial number, never used again.
    pub nodeid: u64,
    /// The file.
    pub file: FileId,
    /// The generation of the publication.
    pub generation: Generation,
    /// Length in bytes.
    pub len: u64,
    /// Time of the publication.
    pub mtime: SystemTime,
    /// Where the bytes begin in the heap.
    pub(super) offset: u64,
}

impl Arena {
    /// The served generation.
    pub(super) fn generation(&self) -> u64 {
        self.writer_area().current.load(SeqCst)
    }

    /// The version of a live record; `None` when the record is not live, or changed meanwhile.
    ///
    /// The publisher may use the record again between any two loads. A record is described under a
    /// new number before the record is live, so an equal id before and after the other loads proves
    /// that no word changed in between.
    pub(super) fn load(&self, slot: usize) -> Option<Version> {
        let record = self.record(slot);
        let id = record.id();
        let (offset, len) = record.bytes();
        let file = self.file_of(slot);
        let version = Version {
            nodeid: id.0,
            file,
            generation: Generation(record.generation()),
            len,
            mtime: UNIX_EPOCH + Duration::from_nanos(record.mtime.load(SeqCst)),
            offset,
        };
        let is_whole = id.1 == State::Live && record.id() == id;
        is_whole.then_some(version)
    }

    /// The record of a file's version at generation `at`. In another process than the publisher's,
    /// the result holds only if `current` is `at` before and after the call.
    ///
    /// Each record's generation is read once, and the same value is compared with `at` and with the
    /// generations of other records. With two loads, an old record that is used again for a staged
    /// version would pass the first comparison with the old generation and win the second with the
    /// new one. Invariant: while `current` is `at`, the record of `at` neither changes nor ends,
    /// and every record that is used again gets a generation above `at`.
    pub(super) fn slot_at(&self, file: FileId, at: u64) -> Option<usize> {
        let live = self
            .slots(file)
            .filter(|slot| self.record(*slot).is(State::Live));
        let generations = live.map(|slot| (self.record(slot).generation(), slot));
        let newest = generations
            .filter(|(generation, _)| *generation <= at)
            .max();
        newest.map(|(_, slot)| slot)
    }

    /// The index of the record that has, or had, the number.
    pub(super) fn slot_of(&self, nodeid: u64) -> usize {
        usize::try_from(nodeid % self.record_count() as u64).expect("less than a length")
    }

    /// How often the record had been used when the version got its number; 0 is never. The upper
    /// half of a word about a version is the tag, so a word about an earlier version of the record
    /// counts for nothing.
    pub(super) fn tag(&self, nodeid: u64) -> u64 {
        nodeid / self.record_count() as u64
    }

    /// The lower half of a word about the version; 0 when the word is about another version.
    pub(super) fn untagged(&self, nodeid: u64, word: &AtomicU64) -> u64 {
        let word = word.load(SeqCst);
        if word >> 32 == self.tag(nodeid) {
            word & LOWER_HALF
        } else {
            0
        }
    }

    /// How many lookups hold the version.
    pub(super) fn holder_count(&self, nodeid: u64) -> u64 {
        self.untagged(nodeid, self.holders(self.slot_of(nodeid)))
    }
}
