//! Versions of files in the arena: one `Publisher` (in `fetch`), many `Reader`s (in `serve`), and
//! the `Announcements` of what is still to be announced. Invariants: a version's bytes never change
//! while its number is valid; the files of one change flip together, by one store of `current`;
//! generations only grow; a number (`nodeid`) is never used again.
//!
//! A file's current version is its live record with the greatest generation that is not above
//! `current`, so a file that did not change keeps its record. Freeing is safe by the order of two
//! words (both sides sequentially consistent): the publisher first moves `current` and then looks
//! at `refs`; the reader first raises `refs` and then looks at `current`.

mod announcements;
mod index;
mod pages;
mod publisher;
mod reader;
#[cfg(test)]
mod tests;

pub use announcements::Announcements;
pub use pages::Stage;
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
    /// A version whose bytes are being wiped, although somebody may still have it open, or are
    /// being written.
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

/// Reads a live record; `None` when the record is not live, or changed meanwhile.
///
/// The publisher may use the record anew between any two loads, so two checks frame them. It stores
/// the new number before any other field, and the state `Live` after all of them: a record that is
/// live after its number was read, and has the same number at the end, had no field stored in
/// between.
fn load(record: &Record) -> Option<Version> {
    let nodeid = record.nodeid.load(SeqCst);
    if !is(record, State::Live) {
        return None;
    }
    let version = Version {
        nodeid,
        file: FileId(record.file.load(SeqCst)),
        generation: Generation(record.generation.load(SeqCst)),
        len: record.len.load(SeqCst),
        owner: Owner {
            uid: record.uid.load(SeqCst),
            gid: record.gid.load(SeqCst),
        },
        mode: record.mode.load(SeqCst),
        mtime: time(
            u64::try_from(record.mtime.load(SeqCst)).unwrap_or(0),
            u64::from(record.mtime_nanos.load(SeqCst)),
        ),
        offset: record.offset.load(SeqCst),
    };
    // Eviction changes the state alone, so the state is read again, too.
    (is(record, State::Live) && record.nodeid.load(SeqCst) == nodeid).then_some(version)
}

/// The record of a file's version at generation `at`. In another process than the publisher's, the
/// result holds only if `current` is `at` before and after the call.
///
/// Each record's generation is read once, and the same value is compared with `at` and with the
/// other records'. Two loads of it would let an old record, used anew for a version that is staged,
/// pass the first comparison with its old generation and win the second one with its new one.
/// Invariant: as long as `current` is `at`, the record of `at` neither changes nor ends,
/// and every record that is used anew gets a generation above `at`.
fn slot_at(arena: &Arena, file: FileId, at: u64) -> Option<usize> {
    let records = arena.records();
    let live = arena
        .slots(file)
        .filter(|&slot| is(&records[slot], State::Live));
    let generations = live
        .map(|slot| (records[slot].generation.load(SeqCst), slot))
        .filter(|(generation, _)| *generation <= at);
    generations.max().map(|(_, slot)| slot)
}

/// A file's version now, without holding it; `None` when it has none.
fn current(arena: &Arena, file: FileId) -> Option<Version> {
    loop {
        let at = arena.writer_area().current.load(SeqCst);
        let slot = slot_at(arena, file, at);
        let found = slot.and_then(|slot| load(&arena.records()[slot]));
        // A record that was found and cannot be loaded was replaced by a flip, which the next turn
        // sees. Should the publisher be dead, no record changes, and the first turn is the
        // last one.
        if arena.writer_area().current.load(SeqCst) == at && found.is_some() == slot.is_some() {
            return found;
        }
    }
}

/// What is true of all listed files of one generation together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of their versions.
    pub used: u64,
    /// The newest time of a publication.
    pub mtime: SystemTime,
}

/// The summary of the current generation. That of the next one is written beside it, so its words
/// belong together as long as `current` stays.
fn summary(arena: &Arena) -> Summary {
    loop {
        let at = arena.writer_area().current.load(SeqCst);
        let words = arena.summary(at);
        let [used, secs, nanos] =
            [&words.used, &words.mtime, &words.mtime_nanos].map(|word| word.load(SeqCst));
        if arena.writer_area().current.load(SeqCst) == at {
            return Summary {
                used,
                mtime: time(secs, nanos),
            };
        }
    }
}

fn time(secs: u64, nanos: u64) -> SystemTime {
    let nanos = u32::try_from(nanos % 1_000_000_000).unwrap_or_default();
    UNIX_EPOCH
        .checked_add(Duration::new(secs, nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// The live version of that number.
fn version(arena: &Arena, nodeid: u64) -> Option<Version> {
    load(&arena.records()[slot_of(arena, nodeid)]).filter(|version| version.nodeid == nodeid)
}

fn slot_of(arena: &Arena, nodeid: u64) -> usize {
    usize::try_from(nodeid % arena.records().len() as u64).expect("less than a length")
}

/// How often a record had been used when it got this number; 0 is never. With the count of lookups
/// in the other half it makes the word in `refs`, so that a word left by an earlier version counts
/// for nothing.
fn tag(arena: &Arena, nodeid: u64) -> u64 {
    nodeid / arena.records().len() as u64
}

/// How many lookups hold this version.
fn holders(arena: &Arena, nodeid: u64) -> u64 {
    let word = arena.refs()[slot_of(arena, nodeid)].load(SeqCst);
    if word >> 32 == tag(arena, nodeid) {
        word & u64::from(u32::MAX)
    } else {
        0
    }
}
