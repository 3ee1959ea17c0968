//! Finds the versions that the arena's records describe. Invariant: every result is consistent
//! although the publisher may change records at any time.

use super::layout::{Arena, State};
use crate::names::{FileId, Generation, Owner};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One immutable version of one file.
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
    /// User and group.
    pub owner: Owner,
    /// Permission bits.
    pub mode: u32,
    /// Time of the publication.
    pub mtime: SystemTime,
    /// Where the bytes begin in the heap.
    pub(super) offset: u64,
}

/// The sums of all listed files of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the versions.
    pub used: u64,
    /// The newest time of a publication.
    pub mtime: SystemTime,
}

impl Arena {
    /// The generation that is served.
    pub(super) fn generation(&self) -> u64 {
        self.writer_area().current.load(SeqCst)
    }

    /// The version of a live record; `None` when the record is not live, or changed meanwhile.
    ///
    /// The publisher may use the record again between any two loads. A record is described under a
    /// new number before it is live, so an equal id before and after the other loads proves that no
    /// word changed in between.
    pub(super) fn load(&self, slot: usize) -> Option<Version> {
        let record = self.record(slot);
        let id = record.id();
        let (offset, len) = record.bytes();
        let file = self.file_of(slot);
        let spec = &self.files()[file.index()];
        let version = Version {
            nodeid: id.0,
            file,
            generation: Generation(record.generation()),
            len,
            owner: spec.owner,
            mode: spec.mode,
            mtime: UNIX_EPOCH + Duration::from_nanos(record.mtime()),
            offset,
        };
        (id.1 == State::Live && record.id() == id).then_some(version)
    }

    /// The record of a file's version at generation `at`. In another process than the publisher's,
    /// the result holds only if `current` is `at` before and after the call.
    ///
    /// Each record's generation is read once, and the same value is compared with `at` and with the
    /// generations of other records. With two loads, an old record that is used again for a staged
    /// version would pass the first comparison with the old generation and win the second with the
    /// new one. Invariant: while `current` is `at`, the record of `at` neither changes nor ends, and
    /// every record that is used again gets a generation above `at`.
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

    /// The file's current version, without holding it; `None` before the first publication.
    pub(super) fn current(&self, file: FileId) -> Option<Version> {
        loop {
            let at = self.generation();
            let slot = self.slot_at(file, at);
            let found = slot.and_then(|slot| self.load(slot));
            // A flip replaced a record that was found and cannot be loaded; the next turn sees the
            // flip. After a publisher's death no record changes, so the loop ends.
            if self.generation() == at && found.is_some() == slot.is_some() {
                return found;
            }
        }
    }

    /// The live version with that number.
    pub(super) fn version(&self, nodeid: u64) -> Option<Version> {
        let version = self.load(self.slot_of(nodeid))?;
        (version.nodeid == nodeid).then_some(version)
    }

    /// The index of the record that has, or had, that number.
    pub(super) fn slot_of(&self, nodeid: u64) -> usize {
        usize::try_from(nodeid % self.record_count() as u64).expect("less than a length")
    }

    /// How often the record had been used when the version got its number; 0 is never. The upper
    /// half of a word about a version has the tag, so that a word about an earlier version of the
    /// same record counts for nothing.
    pub(super) fn tag(&self, nodeid: u64) -> u64 {
        nodeid / self.record_count() as u64
    }

    /// How many lookups hold the version.
    pub(super) fn holder_count(&self, nodeid: u64) -> u64 {
        let word = self.holders(self.slot_of(nodeid)).load(SeqCst);
        if word >> 32 == self.tag(nodeid) {
            word & u64::from(u32::MAX)
        } else {
            0
        }
    }

    /// The summary of the current generation. The publisher writes the words of the next generation
    /// beside these, so they belong together while `current` stays.
    pub(super) fn current_summary(&self) -> Summary {
        loop {
            let at = self.generation();
            let words = self.summary(at);
            let (used, mtime) = (words.used.load(SeqCst), words.mtime.load(SeqCst));
            if self.generation() == at {
                return Summary {
                    used,
                    mtime: UNIX_EPOCH + Duration::from_nanos(mtime),
                };
            }
        }
    }
}
