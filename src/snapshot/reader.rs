//! Finds and holds versions for the kernel: the side that changes the reader area. Invariant: a
//! reader never waits, and repeats a lookup only after a flip.

use super::layout::Arena;
use super::version::{LOWER_HALF, Version};
use crate::names::FileId;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// The sums of all listed files of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the versions.
    pub used: u64,
    /// The newest time of a publication.
    pub mtime: SystemTime,
}

/// The arena as `serve` uses it.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) arena: Arc<Arena>,
}

impl Reader {
    /// A reader of `arena`.
    pub fn new(arena: Arc<Arena>) -> Self {
        Self { arena }
    }

    /// The arena, for the list of files and the counters.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The sums of all listed files now. The words of the next generation have another place, so
    /// the loaded words belong together if `current` has not changed.
    pub fn summary(&self) -> Summary {
        loop {
            let at = self.arena.generation();
            let words = self.arena.summary(at).each_ref();
            let [used, mtime] = words.map(|word| word.load(SeqCst));
            if self.arena.generation() == at {
                let mtime = UNIX_EPOCH + Duration::from_nanos(mtime);
                return Summary { used, mtime };
            }
        }
    }

    /// The file's current version, not held; `None` before the first publication.
    pub fn current(&self, file: FileId) -> Option<Version> {
        loop {
            let at = self.arena.generation();
            let slot = self.arena.slot_at(file, at);
            let found = slot.and_then(|slot| self.arena.load(slot));
            // A found record that cannot be loaded was replaced by a flip, which the next turn
            // sees. After a publisher's death no record changes, so the loop ends.
            if self.arena.generation() == at && found.is_some() == slot.is_some() {
                return found;
            }
        }
    }

    /// The version with the number, unless evicted.
    pub fn version(&self, nodeid: u64) -> Option<Version> {
        let version = self.arena.load(self.arena.slot_of(nodeid))?;
        (version.nodeid == nodeid).then_some(version)
    }

    /// The file's current version, held until the same number of `forget`s.
    pub fn hold_current(&self, file: FileId) -> Option<Version> {
        loop {
            let at = self.arena.generation();
            let found = self.current(file)?;
            if !self.raise(found.nodeid) {
                continue;
            }
            if self.arena.generation() == at {
                return Some(found);
            }
            self.forget(found.nodeid, 1);
        }
    }

    /// The version with the number, held; `None` when freed.
    pub fn hold(&self, nodeid: u64) -> Option<Version> {
        if !self.raise(nodeid) {
            return None;
        }
        // A version without holders may have been freed before the count was raised.
        let found = self.version(nodeid);
        if found.is_none() {
            self.forget(nodeid, 1);
        }
        found
    }

    /// The file of the version with the number, also after the version was freed.
    pub fn file_of(&self, nodeid: u64) -> FileId {
        self.arena.file_of(self.arena.slot_of(nodeid))
    }

    /// Ends `count` holds of the version. Holds of an evicted version have ended already.
    pub fn forget(&self, nodeid: u64, count: u64) {
        let tag = self.arena.tag(nodeid);
        let lower = |word: u64| {
            let held = word & LOWER_HALF;
            (word >> 32 == tag).then(|| word - count.min(held))
        };
        let holders = self.arena.holders(self.arena.slot_of(nodeid));
        let _ = holders.fetch_update(SeqCst, SeqCst, lower);
    }

    /// Copies bytes of the version from `offset` on; returns how many were copied.
    ///
    /// # Errors
    /// `Gone` when the version was evicted, before or during the copy: the caller must wipe `into`.
    pub fn read(&self, nodeid: u64, offset: u64, into: &mut [u8]) -> Result<usize, Gone> {
        let found = self.version(nodeid).ok_or(Gone)?;
        let left = found.len.saturating_sub(offset);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let len = left.min(into.len());
        let from = found.offset + offset.min(found.len);
        self.arena
            .mapping()
            .read(from, &mut into[..len])
            .ok_or(Gone)?;
        if self.version(nodeid) == Some(found) {
            Ok(len)
        } else {
            Err(Gone)
        }
    }

    /// Whether the thread with the id `tid` is the announcing thread.
    pub fn is_announcer(&self, tid: u32) -> bool {
        if tid == 0 {
            return false;
        }
        self.arena.writer_area().announcer.load(SeqCst) == u64::from(tid)
    }

    /// The announcement's create: gives the hidden name to the file's current version, and holds
    /// the version.
    pub fn make(&self, file: FileId) -> Option<Version> {
        let found = self.hold_current(file)?;
        let attempt = self.arena.writer_file(file).attempt.load(SeqCst);
        let words = self.arena.reader_file(file);
        words.created.store(found.nodeid, SeqCst);
        words.attempt.store(attempt, SeqCst);
        Some(found)
    }

    /// The number of the version with the hidden name, in the announcement under way.
    pub fn made(&self, file: FileId) -> Option<u64> {
        let words = self.arena.reader_file(file);
        let attempt = self.arena.writer_file(file).attempt.load(SeqCst);
        let is_under_way = attempt != 0 && words.attempt.load(SeqCst) == attempt;
        is_under_way.then(|| words.created.load(SeqCst))
    }

    /// The announcement's rename; a repeated request has the same effect.
    ///
    /// # Errors
    /// `Gone` when no version has the hidden name.
    pub fn rename(&self, file: FileId) -> Result<(), Gone> {
        let made = self.made(file).ok_or(Gone)?;
        self.arena.reader_file(file).renamed.store(made, SeqCst);
        Ok(())
    }

    /// The number of the version with the file's name, since the last announcing rename; 0 before
    /// the first.
    pub fn renamed(&self, file: FileId) -> u64 {
        self.arena.reader_file(file).renamed.load(SeqCst)
    }

    /// Raises the count of holders; false when a younger version uses the record.
    fn raise(&self, nodeid: u64) -> bool {
        let tag = self.arena.tag(nodeid);
        let raise = |word: u64| {
            let count = if word >> 32 == tag {
                word & LOWER_HALF
            } else {
                0
            };
            let is_younger = word >> 32 > tag;
            (!is_younger).then(|| tag << 32 | LOWER_HALF.min(count + 1))
        };
        let holders = self.arena.holders(self.arena.slot_of(nodeid));
        holders.fetch_update(SeqCst, SeqCst, raise).is_ok()
    }
}
