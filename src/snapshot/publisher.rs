//! Writes versions: the only side that changes writer area and heap. Free space is what no record
//! describes, so the arena holds no other account of the heap that a crash could leave wrong.

use super::index::{Index, Placement};
use super::{Reader, State, holders, is, load, summary};
use crate::memory::arena::{Arena, Record, Visibility};
use crate::names::{FileId, Generation};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// New bytes of one file.
pub struct Change<'a> {
    /// Which.
    pub file: FileId,
    /// All of them.
    pub bytes: &'a [u8],
}

impl fmt::Debug for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Change({:?}, ..)", self.file)
    }
}

/// Why a change was not published; what was served before still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// The old and the new versions do not fit beside each other.
    TooLarge {
        /// Bytes of the change.
        needed: u64,
        /// Bytes that the versions now served leave.
        available: u64,
    },
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::TooLarge { needed, available } = self;
        write!(
            f,
            "cannot publish {needed} bytes: the versions that are served now leave {available}, and old and new ones stand beside each \
             other for a moment; hint: raise `filesystem.size`, and `--ulimit memlock=8388608` if that is what limits it"
        )
    }
}

impl std::error::Error for PublishError {}

/// The one writer of versions: no two of them may use an arena at once.
#[derive(Debug)]
pub struct Publisher {
    arena: Arc<Arena>,
    /// What the arena's records say.
    index: Index,
}

impl Publisher {
    /// Takes over the arena as a predecessor left it: what it had not yet flipped, or was about to
    /// wipe, is freed.
    pub fn new(arena: Arc<Arena>) -> Self {
        let current = arena.writer_area().current.load(SeqCst);
        for record in arena.records() {
            if is(record, State::Evicted)
                || (is(record, State::Live) && record.generation.load(SeqCst) > current)
            {
                free(&arena, record);
            }
        }
        let index = Index::of(&arena);
        Self { arena, index }
    }

    /// Publishes all changes (at most one of each file) or none; one store flips them. Bytes that
    /// are served already make no new version: a `fetch` that begins anew publishes what its
    /// predecessor did, and needs no room for it.
    ///
    /// # Errors
    /// `TooLarge` when they do not fit even after every old version was evicted.
    pub fn publish(
        &mut self,
        changes: &[Change<'_>],
        mtime: SystemTime,
    ) -> Result<Generation, PublishError> {
        self.collect();
        let generation = self.arena.writer_area().current.load(SeqCst) + 1;
        let changes: Vec<_> = changes
            .iter()
            .filter(|change| !self.is_served(change))
            .collect();
        let (needed, available) = (
            changes.iter().map(|change| change.bytes.len() as u64).sum(),
            (self.arena.heap_len() as u64).saturating_sub(self.index.served_bytes()),
        );
        // No old version that somebody has open is evicted in vain.
        if needed > available {
            return Err(PublishError::TooLarge { needed, available });
        }
        let mut staged = Vec::with_capacity(changes.len());
        for change in changes {
            match self.stage(change, generation, mtime) {
                Ok(slot) => staged.push((change.file, slot)),
                Err(Full { available }) => {
                    for (_, slot) in staged {
                        self.free(slot);
                    }
                    return Err(PublishError::TooLarge { needed, available });
                }
            }
        }
        self.flip(generation, &staged, mtime);
        Ok(Generation(generation))
    }

    /// Makes what was staged the versions that are served.
    fn flip(&mut self, generation: u64, staged: &[(FileId, usize)], mtime: SystemTime) {
        self.summarise(generation, staged, mtime);
        self.arena.writer_area().current.store(generation, SeqCst);
        for (file, slot) in staged {
            self.index.serve(&self.arena, *file, *slot);
        }
    }

    /// Writes the summary of the next generation in the place of that before the last one.
    fn summarise(&self, generation: u64, staged: &[(FileId, usize)], mtime: SystemTime) {
        let mut next = summary(&self.arena);
        let len = |slot: usize| self.arena.records()[slot].len.load(SeqCst);
        for (file, slot) in staged {
            if self.arena.visibility(*file) == Visibility::Listed {
                let before = self.index.served(*file).map_or(0, len);
                next.used = (next.used + len(*slot)).saturating_sub(before);
                next.mtime = next.mtime.max(mtime);
            }
        }
        let since = next.mtime.duration_since(UNIX_EPOCH).unwrap_or_default();
        let words = self.arena.summary(generation);
        words.used.store(next.used, SeqCst);
        words.mtime.store(since.as_secs(), SeqCst);
        let nanos = u64::from(since.subsec_nanos());
        words.mtime_nanos.store(nanos, SeqCst);
    }

    /// Frees and wipes every version that is neither served, nor last announced, nor held by a
    /// lookup. To be called after announcements and now and then, so that old values do not
    /// stay longer than somebody has them open. Whether any is left of a listed file.
    pub fn collect(&mut self) -> bool {
        let mut is_any_left = false;
        for (file, slot) in self.index.old.clone() {
            let record = &self.arena.records()[slot];
            if self.is_last_announced(file, slot)
                || holders(&self.arena, record.nodeid.load(SeqCst)) > 0
            {
                is_any_left |= self.arena.visibility(file) == Visibility::Listed;
            } else {
                self.evict(file, slot);
            }
        }
        is_any_left
    }

    /// A reader of the same arena.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.arena))
    }

    /// Whether the index is what the arena's records say.
    #[cfg(test)]
    pub(super) fn is_indexed(&self) -> bool {
        self.index == Index::of(&self.arena)
    }

    /// Whether the file's version now has these bytes.
    fn is_served(&self, change: &Change<'_>) -> bool {
        let slot = self.index.served(change.file);
        let Some(served) = slot
            .and_then(|slot| load(&self.arena.records()[slot]))
            .filter(|served| served.len == change.bytes.len() as u64)
        else {
            return false;
        };
        let mut bytes = Zeroizing::new(vec![0; change.bytes.len()]);
        self.arena.read(served.offset, &mut bytes).is_some() && *bytes == change.bytes
    }

    /// Writes one version that nobody sees before the flip; gives its record.
    fn stage(
        &mut self,
        change: &Change<'_>,
        generation: u64,
        mtime: SystemTime,
    ) -> Result<usize, Full> {
        let slots = self.arena.slots(change.file);
        let slot = self.make_room(Some(change.file), |publisher| {
            let records = publisher.arena.records();
            slots.clone().find(|slot| is(&records[*slot], State::Free))
        })?;
        // The agent's own state never stands amidst the room of a large file.
        let placement = match self.arena.visibility(change.file) {
            Visibility::Listed => Placement::Best,
            Visibility::State | Visibility::Private => Placement::Last,
        };
        let len = change.bytes.len() as u64;
        let offset = self.make_room(None, |publisher| publisher.index.gaps.take(len, placement))?;
        self.describe(slot, change, generation, offset, mtime);
        self.arena
            .write(offset, change.bytes)
            .expect("a gap is inside the heap");
        self.arena.records()[slot]
            .state
            .store(State::Live as u32, SeqCst);
        Ok(slot)
    }

    /// Until its bytes are there, a version is one that is to be wiped: a successor shall find what
    /// is half written.
    fn describe(
        &self,
        slot: usize,
        change: &Change<'_>,
        generation: u64,
        offset: u64,
        mtime: SystemTime,
    ) {
        let record = &self.arena.records()[slot];
        let spec = &self.arena.files()[change.file.index()];
        let since = mtime.duration_since(UNIX_EPOCH).unwrap_or_default();
        let uses = self.arena.records().len() as u64;
        let nodeid = record.nodeid.load(SeqCst);
        record.nodeid.store(
            if nodeid == 0 { slot as u64 } else { nodeid } + uses,
            SeqCst,
        );
        record.generation.store(generation, SeqCst);
        record.offset.store(offset, SeqCst);
        record.len.store(change.bytes.len() as u64, SeqCst);
        record
            .mtime
            .store(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), SeqCst);
        record.mtime_nanos.store(since.subsec_nanos(), SeqCst);
        record.uid.store(spec.owner.uid, SeqCst);
        record.gid.store(spec.owner.gid, SeqCst);
        record.mode.store(spec.mode, SeqCst);
        record.file.store(change.file.0, SeqCst);
        record.state.store(State::Evicted as u32, SeqCst);
    }

    /// Asks `find` until it finds, evicting one old version (of `file`, if given) after the other:
    /// freshness wins.
    fn make_room<T>(
        &mut self,
        file: Option<FileId>,
        find: impl Fn(&mut Self) -> Option<T>,
    ) -> Result<T, Full> {
        loop {
            if let Some(found) = find(self) {
                return Ok(found);
            }
            let Some((file, slot)) = self.oldest(file) else {
                return Err(Full {
                    available: self.available(),
                });
            };
            self.evict(file, slot);
        }
    }

    /// The old version (of `file`, if given) that is evicted first.
    fn oldest(&self, file: Option<FileId>) -> Option<(FileId, usize)> {
        let (from, to) = match file {
            Some(file) => (file, file),
            None => (FileId(0), FileId(u32::MAX)),
        };
        let age = |&(file, slot): &(FileId, usize)| {
            (
                self.is_last_announced(file, slot),
                self.arena.records()[slot].generation.load(SeqCst),
                slot,
            )
        };
        let candidates = self.index.old.range((from, 0)..=(to, usize::MAX));
        candidates.copied().min_by_key(age)
    }

    /// Whether the kernel may still know the file's name by this version: its successor is not
    /// announced.
    fn is_last_announced(&self, file: FileId, slot: usize) -> bool {
        self.arena.writer_files()[file.index()]
            .announced
            .load(SeqCst)
            == self.arena.records()[slot].generation.load(SeqCst)
    }

    /// Bytes of the heap beside the versions that are served or old.
    fn available(&self) -> u64 {
        let mut live = self.index.served_bytes();
        for (_, slot) in &self.index.old {
            live += self.arena.records()[*slot].len.load(SeqCst);
        }
        (self.arena.heap_len() as u64).saturating_sub(live)
    }

    /// Frees an old version.
    fn evict(&mut self, file: FileId, slot: usize) {
        self.index.old.remove(&(file, slot));
        self.free(slot);
    }

    fn free(&mut self, slot: usize) {
        let record = &self.arena.records()[slot];
        free(&self.arena, record);
        let (offset, len) = (record.offset.load(SeqCst), record.len.load(SeqCst));
        self.index.gaps.release(offset, len);
    }
}

/// Nothing is left to evict.
struct Full {
    available: u64,
}

/// Marks, wipes, frees: in this order a reader that copies meanwhile sees the mark and discards its
/// copy.
fn free(arena: &Arena, record: &Record) {
    record.state.store(State::Evicted as u32, SeqCst);
    let wiped = arena.wipe(record.offset.load(SeqCst), record.len.load(SeqCst));
    // A record that points outside was never written by us; it holds no bytes.
    debug_assert!(wiped.is_some(), "records stay inside the heap");
    record.state.store(State::Free as u32, SeqCst);
}
