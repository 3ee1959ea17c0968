//! Versions of files in the arena: one `Publisher` (in `fetch`), many `Reader`s (in `serve`), and the `Bulletin` of what is
//! still to be announced. Invariants: a version's bytes never change while its number is valid; the files of one change
//! flip together, by one store of `current`; generations only grow; a number (`nodeid`) is never used again.
//!
//! A file's current version is its live record with the greatest generation that is not above `current`, so a file that did
//! not change keeps its record. Freeing is safe by the order of two words (both sides sequentially consistent): the
//! publisher first moves `current` and then looks at `refs`; the reader first raises `refs` and then looks at `current`.

mod bulletin;
mod publisher;
mod reader;
#[cfg(test)]
mod tests;

pub use bulletin::Bulletin;
pub use publisher::{Change, PublishError, Publisher};
pub use reader::{Gone, Reader};

use crate::memory::arena::{Arena, Record};
use crate::names::{FileId, Generation, Owner};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// Nothing; its bytes are free and zero.
    Free = 0,
    /// A version.
    Live = 1,
    /// A version whose bytes are being wiped, although somebody may still have it open, or are being written.
    Evicted = 2,
}

/// One immutable version of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number, never used again.
    pub nodeid: u64,
    /// Which file.
    pub file: FileId,
    /// When it came.
    pub generation: Generation,
    /// Bytes.
    pub len: u64,
    /// Who owns it.
    pub owner: Owner,
    /// Permission bits.
    pub mode: u32,
    /// When it was published.
    pub mtime: SystemTime,
    /// Where its bytes begin in the heap.
    offset: u64,
}

fn is(record: &Record, state: State) -> bool {
    record.state.load(SeqCst) == state as u32
}

/// Reads a live record; `None` when it is none, or changed meanwhile.
fn load(record: &Record) -> Option<Version> {
    let nodeid = record.nodeid.load(SeqCst);
    let since = Duration::new(u64::try_from(record.mtime.load(SeqCst)).unwrap_or(0), record.mtime_nanos.load(SeqCst) % 1_000_000_000);
    let version = Version {
        nodeid,
        file: FileId(record.file.load(SeqCst)),
        generation: Generation(record.generation.load(SeqCst)),
        len: record.len.load(SeqCst),
        owner: Owner { uid: record.uid.load(SeqCst), gid: record.gid.load(SeqCst) },
        mode: record.mode.load(SeqCst),
        mtime: UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH),
        offset: record.offset.load(SeqCst),
    };
    // A record that is used anew gets its number before its other fields and becomes live after them.
    (is(record, State::Live) && record.nodeid.load(SeqCst) == nodeid).then_some(version)
}

/// The record of a file's version at generation `at`.
fn slot_at(arena: &Arena, file: FileId, at: u64) -> Option<usize> {
    let records = arena.records();
    let generation = |slot: usize| records[slot].generation.load(SeqCst);
    arena.slots(file).filter(|&slot| is(&records[slot], State::Live) && generation(slot) <= at).max_by_key(|&slot| generation(slot))
}

/// A file's version now, without holding it.
fn current(arena: &Arena, file: FileId) -> Option<Version> {
    loop {
        let at = arena.head().current.load(SeqCst);
        let found = slot_at(arena, file, at).map(|slot| load(&arena.records()[slot]));
        // A current record does not change; what did change meanwhile was replaced by a flip.
        if arena.head().current.load(SeqCst) == at {
            return found.flatten();
        }
    }
}

/// The live version of that number.
fn version(arena: &Arena, nodeid: u64) -> Option<Version> {
    load(&arena.records()[slot_of(arena, nodeid)]).filter(|version| version.nodeid == nodeid)
}

fn slot_of(arena: &Arena, nodeid: u64) -> usize {
    usize::try_from(nodeid % arena.records().len() as u64).expect("less than a length")
}

/// How often a record had been used when it got this number; 0 is never. With the count of lookups in the other half it
/// makes the word in `refs`, so that a word left by an earlier version counts for nothing.
fn tag(arena: &Arena, nodeid: u64) -> u64 {
    nodeid / arena.records().len() as u64
}

/// How many lookups hold this version.
fn holders(arena: &Arena, nodeid: u64) -> u64 {
    let word = arena.refs()[slot_of(arena, nodeid)].load(SeqCst);
    if word >> 32 == tag(arena, nodeid) { word & u64::from(u32::MAX) } else { 0 }
}
