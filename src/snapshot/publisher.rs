//! Writes versions: the only side that changes book and heap. It allocates over what no record
//! describes, so there is no other account of the heap that a crash could leave wrong.

use super::{Reader, State, current, holders, is, slot_at};
use crate::memory::arena::{Arena, Place, Record};
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

/// The one writer of versions.
#[derive(Debug)]
pub struct Publisher {
    arena: Arc<Arena>,
}

impl Publisher {
    /// Takes over the arena as a predecessor left it: what it had not yet flipped, or was about to
    /// wipe, is freed.
    #[must_use]
    pub fn new(arena: Arc<Arena>) -> Self {
        let current = arena.head().current.load(SeqCst);
        for record in arena.records() {
            if is(record, State::Evicted)
                || (is(record, State::Live) && record.generation.load(SeqCst) > current)
            {
                free(&arena, record);
            }
        }
        Self { arena }
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
        let generation = self.arena.head().current.load(SeqCst) + 1;
        let changes: Vec<_> = changes
            .iter()
            .filter(|change| !self.is_served(change))
            .collect();
        let (needed, available) = (
            changes.iter().map(|change| change.bytes.len() as u64).sum(),
            self.beside_served(),
        );
        // No old version that somebody has open is evicted in vain.
        if needed > available {
            return Err(PublishError::TooLarge { needed, available });
        }
        for change in changes {
            if let Err(error) = self.stage(change, generation, mtime) {
                self.drop_staged(generation);
                return Err(PublishError::TooLarge {
                    needed,
                    available: error.available,
                });
            }
        }
        self.arena.head().current.store(generation, SeqCst);
        Ok(Generation(generation))
    }

    /// Frees and wipes every version that is neither served, nor last announced, nor held by a
    /// lookup. To be called after announcements and now and then, so that old values do not
    /// stay longer than somebody has them open. Whether any is left of a listed file.
    pub fn collect(&mut self) -> bool {
        for slot in self.old() {
            let record = &self.arena.records()[slot];
            if !self.is_last_announced(record)
                && holders(&self.arena, record.nodeid.load(SeqCst)) == 0
            {
                free(&self.arena, record);
            }
        }
        self.old().into_iter().any(|slot| {
            self.arena
                .place(FileId(self.arena.records()[slot].file.load(SeqCst)))
                == Place::Listed
        })
    }

    /// A reader of the same arena.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.arena))
    }

    /// Whether the file's version now has these bytes.
    fn is_served(&self, change: &Change<'_>) -> bool {
        let Some(served) = current(&self.arena, change.file)
            .filter(|served| served.len == change.bytes.len() as u64)
        else {
            return false;
        };
        let mut bytes = Zeroizing::new(vec![0; change.bytes.len()]);
        self.arena.read(served.offset, &mut bytes).is_some() && *bytes == change.bytes
    }

    /// Writes one version that nobody sees before the flip.
    fn stage(&self, change: &Change<'_>, generation: u64, mtime: SystemTime) -> Result<(), Full> {
        let (slots, place) = (self.arena.slots(change.file), self.arena.place(change.file));
        let slot = self.make_room(
            || {
                slots
                    .clone()
                    .find(|&slot| is(&self.arena.records()[slot], State::Free))
            },
            Some(change.file),
        )?;
        let offset = self.make_room(
            || find_gap(&self.arena, change.bytes.len() as u64, place),
            None,
        )?;
        self.describe(slot, change, generation, offset, mtime);
        self.arena
            .write(offset, change.bytes)
            .expect("a gap is inside the heap");
        self.arena.records()[slot]
            .state
            .store(State::Live as u32, SeqCst);
        Ok(())
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
    fn make_room<T>(&self, find: impl Fn() -> Option<T>, file: Option<FileId>) -> Result<T, Full> {
        loop {
            if let Some(found) = find() {
                return Ok(found);
            }
            let candidates = self
                .old()
                .into_iter()
                .filter(|slot| file.is_none_or(|file| self.arena.slots(file).contains(slot)));
            let age = |slot: &usize| {
                let record = &self.arena.records()[*slot];
                (
                    self.is_last_announced(record),
                    record.generation.load(SeqCst),
                )
            };
            let Some(oldest) = candidates.min_by_key(age) else {
                return Err(Full {
                    available: self.available(),
                });
            };
            free(&self.arena, &self.arena.records()[oldest]);
        }
    }

    /// Live records that no path leads to any more.
    fn old(&self) -> Vec<usize> {
        let current = self.arena.head().current.load(SeqCst);
        let mut old = Vec::new();
        for file in 0..self.arena.files().len() {
            let file = FileId(u32::try_from(file).expect("a FileId"));
            let served = slot_at(&self.arena, file, current);
            old.extend(self.arena.slots(file).filter(|&slot| {
                let record = &self.arena.records()[slot];
                is(record, State::Live)
                    && record.generation.load(SeqCst) <= current
                    && Some(slot) != served
            }));
        }
        old
    }

    /// Whether the kernel may still know the file's name by this version: its successor is not
    /// announced.
    fn is_last_announced(&self, record: &Record) -> bool {
        let file = record.file.load(SeqCst) as usize;
        self.arena.book()[file].announced.load(SeqCst) == record.generation.load(SeqCst)
    }

    /// Bytes of the heap beside the versions now served, were every old one evicted.
    fn beside_served(&self) -> u64 {
        let current = self.arena.head().current.load(SeqCst);
        let files = (0..self.arena.files().len())
            .map(|file| FileId(u32::try_from(file).expect("a FileId")));
        let served = files.filter_map(|file| slot_at(&self.arena, file, current));
        let used: u64 = served
            .map(|slot| self.arena.records()[slot].len.load(SeqCst))
            .sum();
        (self.arena.heap_len() as u64).saturating_sub(used)
    }

    /// Bytes of the heap beside the versions now live.
    fn available(&self) -> u64 {
        let current = self.arena.head().current.load(SeqCst);
        let live =
            self.arena.records().iter().filter(|record| {
                is(record, State::Live) && record.generation.load(SeqCst) <= current
            });
        (self.arena.heap_len() as u64)
            .saturating_sub(live.map(|record| record.len.load(SeqCst)).sum())
    }

    fn drop_staged(&self, generation: u64) {
        for record in self.arena.records() {
            if is(record, State::Live) && record.generation.load(SeqCst) == generation {
                free(&self.arena, record);
            }
        }
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

/// A gap of `len` bytes between the ranges of all records that are not free: the first, or for the
/// agent's own state the last, so that it never stands amidst the room of a large file.
fn find_gap(arena: &Arena, len: u64, place: Place) -> Option<u64> {
    let used = arena
        .records()
        .iter()
        .filter(|record| !is(record, State::Free));
    let mut used: Vec<(u64, u64)> = used
        .map(|record| (record.offset.load(SeqCst), record.len.load(SeqCst)))
        .collect();
    used.push((arena.heap_len() as u64, 0));
    used.sort_unstable();
    let mut end = 0;
    let mut gaps = used.into_iter().filter_map(|(offset, used_len)| {
        let begin = end;
        end = begin.max(offset + used_len);
        (offset.saturating_sub(begin) >= len).then_some((begin, offset))
    });
    match place {
        Place::Listed => gaps.next().map(|(begin, _)| begin),
        Place::State | Place::Journal => gaps.last().map(|(_, end)| end - len),
    }
}
