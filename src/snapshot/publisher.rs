//! Writes versions: the only side that changes writer area and heap. Invariant: the records are the
//! only account of the heap in the arena, so a crash cannot leave a second account wrong.

use super::index::Index;
use super::layout::{Arena, State, Visibility};
use super::reader::Reader;
use crate::names::{FileId, Generation};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;
use zeroize::Zeroizing;

/// New bytes of one file.
pub struct Change<'a> {
    /// The file.
    pub file: FileId,
    /// The whole content.
    pub bytes: &'a [u8],
}

/// Why a change was not published; the served versions stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The old and the new versions do not fit beside each other.
    #[error(
        "cannot publish {needed} bytes: the versions that are served now leave {available}, and old and new ones stand beside each \
         other for a moment; hint: raise `filesystem.size`, and `--ulimit memlock=8388608` if that is what limits it"
    )]
    TooLarge {
        /// Bytes of the change.
        needed: u64,
        /// Bytes of the heap beside the served versions.
        available: u64,
    },
}

/// The writer of versions. Two publishers must not use an arena at the same time.
#[derive(Debug)]
pub struct Publisher {
    arena: Arc<Arena>,
    /// The arena's records by use.
    pub(super) index: Index,
}

impl Publisher {
    /// Takes over the arena of a predecessor. Frees versions that were staged and not flipped, or
    /// marked and not wiped.
    pub fn new(arena: Arc<Arena>) -> Self {
        let mut publisher = Self {
            index: Index::of(&arena),
            arena,
        };
        let current = publisher.arena.generation();
        for slot in publisher.index.old.clone() {
            let record = publisher.arena.record(slot);
            if record.is(State::Evicted) || record.generation() > current {
                publisher.evict(slot);
            }
        }
        publisher
    }

    /// Publishes all changes (at most one of each file) or none; a single store flips all. Served
    /// bytes make no new version: a restarted `fetch` publishes the same files as the predecessor,
    /// and needs no room for a second copy.
    ///
    /// # Errors
    /// `TooLarge` when the changes do not fit even after every old version was evicted.
    pub fn publish(
        &mut self,
        changes: &[Change<'_>],
        mtime: SystemTime,
    ) -> Result<Generation, PublishError> {
        self.collect();
        let generation = self.arena.generation() + 1;
        let mtime = mtime.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mtime = u64::try_from(mtime.as_nanos()).unwrap_or(u64::MAX);
        let changes: Vec<_> = changes
            .iter()
            .filter(|change| !self.is_served(change))
            .collect();
        let needed = changes.iter().map(|change| change.bytes.len() as u64).sum();
        let heap_len = self.arena.heap_len() as u64;
        let available = heap_len.saturating_sub(self.index.served_bytes);
        // A refusal here evicts no open version in vain.
        if needed > available {
            return Err(PublishError::TooLarge { needed, available });
        }
        let mut staged = Vec::with_capacity(changes.len());
        for change in changes {
            let Some(slot) = self.stage(change, generation, mtime) else {
                for slot in staged {
                    self.evict(slot);
                }
                let available = self.index.gaps.total();
                return Err(PublishError::TooLarge { needed, available });
            };
            staged.push(slot);
        }
        self.summarise(generation, &staged, mtime);
        self.arena.writer_area().current.store(generation, SeqCst);
        for slot in staged {
            self.index.serve(&self.arena, slot);
        }
        Ok(Generation(generation))
    }

    /// Writes the summary of the next generation over the previous summary.
    fn summarise(&self, generation: u64, staged: &[usize], mtime: u64) {
        let current = self.arena.summary(generation - 1).each_ref();
        let [mut used, mut newest] = current.map(|word| word.load(SeqCst));
        let len = |slot| self.arena.record(slot).bytes().1;
        for slot in staged {
            let file = self.arena.file_of(*slot);
            if self.arena.file(file).visibility == Visibility::Listed {
                let before = self.index.served(file).map_or(0, len);
                used = (used + len(*slot)).saturating_sub(before);
                newest = newest.max(mtime);
            }
        }
        let next = self.arena.summary(generation);
        next[0].store(used, SeqCst);
        next[1].store(newest, SeqCst);
    }

    /// Frees and wipes every version that is neither served, nor last announced, nor held by a
    /// lookup; returns whether any old version is left of a listed file. To be called after
    /// announcements and at intervals, so that old values do not outlive the last descriptor.
    pub fn collect(&mut self) -> bool {
        let mut is_any_left = false;
        for slot in self.index.old.clone() {
            let (nodeid, _) = self.arena.record(slot).id();
            if self.is_last_announced(slot) || self.arena.holder_count(nodeid) > 0 {
                let file = self.arena.file_of(slot);
                is_any_left |= self.arena.file(file).visibility == Visibility::Listed;
            } else {
                self.evict(slot);
            }
        }
        is_any_left
    }

    /// A reader of the same arena.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.arena))
    }

    /// Whether the file's current version has the bytes of the change.
    fn is_served(&self, change: &Change<'_>) -> bool {
        let Some(slot) = self.index.served(change.file) else {
            return false;
        };
        let (offset, len) = self.arena.record(slot).bytes();
        if len != change.bytes.len() as u64 {
            return false;
        }
        let mut bytes = Zeroizing::new(vec![0; change.bytes.len()]);
        let read = self.arena.mapping().read(offset, &mut bytes);
        read.is_some() && *bytes == change.bytes
    }

    /// Writes a version, invisible to readers before the flip, and returns the record; `None` when
    /// there is no room.
    fn stage(&mut self, change: &Change<'_>, generation: u64, mtime: u64) -> Option<usize> {
        let file = change.file;
        let find = |publisher: &mut Self| publisher.free_slot(file);
        let slot = self.make_room(Some(file), find)?;
        let visibility = self.arena.file(file).visibility;
        let len = change.bytes.len() as u64;
        let take = |publisher: &mut Self| publisher.index.gaps.take(len, visibility);
        let offset = self.make_room(None, take)?;
        let record = self.arena.record(slot);
        let last = record.id().0.max(slot as u64);
        let nodeid = last + self.arena.record_count() as u64;
        record.describe(nodeid, generation, (offset, len), mtime);
        let written = self.arena.mapping().write(offset, change.bytes);
        written.expect("a gap is inside the heap");
        record.mark(State::Live);
        Some(slot)
    }

    /// A free record of the file, from another plane if the planes in use have none.
    fn free_slot(&self, file: FileId) -> Option<usize> {
        loop {
            let mut slots = self.arena.slots(file);
            let is_free = |slot: &usize| self.arena.record(*slot).is(State::Free);
            let free = slots.find(is_free);
            if free.is_some() {
                return free;
            }
            self.arena.add_plane()?;
        }
    }

    /// Repeats `find` until success, and evicts an old version (of `file`, if given) after each
    /// failure: freshness wins. `None` when no old version is left.
    fn make_room<T>(
        &mut self,
        file: Option<FileId>,
        find: impl Fn(&mut Self) -> Option<T>,
    ) -> Option<T> {
        loop {
            let found = find(self);
            if found.is_some() {
                return found;
            }
            self.evict(self.oldest(file)?);
        }
    }

    /// The old version (of `file`, if given) to be evicted first.
    fn oldest(&self, file: Option<FileId>) -> Option<usize> {
        let all = self.index.old.iter().copied();
        let candidates =
            all.filter(|slot| file.is_none() || file == Some(self.arena.file_of(*slot)));
        candidates.min_by_key(|slot| {
            let generation = self.arena.record(*slot).generation();
            (self.is_last_announced(*slot), generation, *slot)
        })
    }

    /// Whether the kernel may still know the file's name by this version, because the successor of
    /// the version is not announced.
    fn is_last_announced(&self, slot: usize) -> bool {
        let file = self.arena.file_of(slot);
        let announced = self.arena.writer_file(file).announced;
        announced.load(SeqCst) == self.arena.record(slot).generation()
    }

    /// Frees a version. The order is mark, wipe, free: a reader that copies meanwhile sees the mark
    /// and discards the copy.
    fn evict(&mut self, slot: usize) {
        let record = self.arena.record(slot);
        let (offset, len) = record.bytes();
        record.mark(State::Evicted);
        let wiped = self.arena.mapping().wipe(offset, len);
        record.mark(State::Free);
        self.index.old.remove(&slot);
        // A record with a range outside of the heap has no bytes.
        if wiped.is_some() {
            self.index.gaps.release(offset, len);
        }
    }
}
