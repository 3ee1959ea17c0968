//! Finds versions and holds them for the kernel: the side that changes the reader area. A reader
//! never waits: a lookup is repeated only when a flip came in between.

use super::{Summary, Version, current, slot_of, summary, tag, version};
use crate::memory::arena::Arena;
use crate::names::FileId;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// The version was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What `serve` sees.
#[derive(Clone, Debug)]
pub struct Reader {
    arena: Arc<Arena>,
}

impl Reader {
    /// Reads this arena.
    pub fn new(arena: Arc<Arena>) -> Self {
        Self { arena }
    }

    /// The arena, for its list of files and its counters.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What is true of all listed files now.
    pub fn summary(&self) -> Summary {
        summary(&self.arena)
    }

    /// The file's version now, not held.
    pub fn current(&self, file: FileId) -> Option<Version> {
        current(&self.arena, file)
    }

    /// The file's version now, held until as many `forget`s.
    pub fn hold_current(&self, file: FileId) -> Option<Version> {
        loop {
            let at = self.arena.writer_area().current.load(SeqCst);
            let found = current(&self.arena, file)?;
            let held = self.raise(found.nodeid);
            if held && self.arena.writer_area().current.load(SeqCst) == at {
                return Some(found);
            }
            if held {
                self.forget(found.nodeid, 1);
            }
        }
    }

    /// That version, held; `None` when it was freed, or its record is used by a younger one.
    pub fn hold(&self, nodeid: u64) -> Option<Version> {
        if !self.raise(nodeid) {
            return None;
        }
        // Read after the count was raised: a version that nobody held may have been freed until
        // then.
        let found = version(&self.arena, nodeid);
        if found.is_none() {
            self.forget(nodeid, 1);
        }
        found
    }

    /// The file that a number is of, whatever became of the version.
    pub fn file_of(&self, nodeid: u64) -> FileId {
        let file = slot_of(&self.arena, nodeid) / self.arena.slots(FileId(0)).len().max(1);
        FileId(u32::try_from(file).unwrap_or(u32::MAX))
    }

    /// That version, if it was not evicted.
    pub fn version(&self, nodeid: u64) -> Option<Version> {
        version(&self.arena, nodeid)
    }

    /// `count` lookups let the version go. One that was evicted is let go of already.
    pub fn forget(&self, nodeid: u64, count: u64) {
        let lower = |word: u64| {
            let held = word & u64::from(u32::MAX);
            (word >> 32 == tag(&self.arena, nodeid)).then(|| word - count.min(held))
        };
        let _ = self.arena.refs()[slot_of(&self.arena, nodeid)].fetch_update(SeqCst, SeqCst, lower);
    }

    /// Copies bytes from `offset` on; returns how many there were.
    ///
    /// # Errors
    /// `Gone` when the version was evicted, before or during the copy: what is in `into` then is to
    /// be wiped.
    pub fn read(&self, nodeid: u64, offset: u64, into: &mut [u8]) -> Result<usize, Gone> {
        let found = version(&self.arena, nodeid).ok_or(Gone)?;
        let left = usize::try_from(found.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(into.len());
        self.arena
            .read(found.offset + offset.min(found.len), &mut into[..len])
            .ok_or(Gone)?;
        if version(&self.arena, nodeid) == Some(found) {
            Ok(len)
        } else {
            Err(Gone)
        }
    }

    /// Whether this thread is the announcing one.
    pub fn is_announcer(&self, tid: u32) -> bool {
        tid != 0 && self.arena.writer_area().announcer.load(SeqCst) == u64::from(tid)
    }

    /// The announcement's create: the file's version now gets the hidden name. Held.
    pub fn make(&self, file: FileId) -> Option<Version> {
        let found = self.hold_current(file)?;
        let words = &self.arena.reader_files()[file.index()];
        words.created.store(found.nodeid, SeqCst);
        words.attempt.store(
            self.arena.writer_files()[file.index()].attempt.load(SeqCst),
            SeqCst,
        );
        Some(found)
    }

    /// The number that has the hidden name in the announcement under way.
    pub fn made(&self, file: FileId) -> Option<u64> {
        let words = &self.arena.reader_files()[file.index()];
        let attempt = self.arena.writer_files()[file.index()].attempt.load(SeqCst);
        (attempt != 0 && words.attempt.load(SeqCst) == attempt).then(|| words.created.load(SeqCst))
    }

    /// The announcement's rename; the same again when it is sent again.
    ///
    /// # Errors
    /// `Gone` when nothing has the hidden name.
    pub fn rename(&self, file: FileId) -> Result<(), Gone> {
        let made = self.made(file).ok_or(Gone)?;
        self.arena.reader_files()[file.index()]
            .renamed
            .store(made, SeqCst);
        Ok(())
    }

    /// The number that the file's name belongs to since the last announcing rename; 0 before the
    /// first.
    pub fn renamed(&self, file: FileId) -> u64 {
        self.arena.reader_files()[file.index()].renamed.load(SeqCst)
    }

    /// Raises the version's count; false when its record is used by a younger one.
    fn raise(&self, nodeid: u64) -> bool {
        let tag = tag(&self.arena, nodeid);
        let raise = |word: u64| match (word >> 32).cmp(&tag) {
            std::cmp::Ordering::Less => Some((tag << 32) + 1),
            std::cmp::Ordering::Equal => {
                Some(word + u64::from(word & u64::from(u32::MAX) != u64::from(u32::MAX)))
            }
            std::cmp::Ordering::Greater => None,
        };
        self.arena.refs()[slot_of(&self.arena, nodeid)]
            .fetch_update(SeqCst, SeqCst, raise)
            .is_ok()
    }
}
