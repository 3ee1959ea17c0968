//! The publisher's index of the arena, which spares a publication the walk over all files: the
//! record that each file is served from, the old versions, the free ranges of the heap. Invariant:
//! the records in the arena are the truth; an index that is rebuilt from the records equals the
//! present one.

use super::layout::{Arena, State};
use crate::names::FileId;
use std::collections::{BTreeMap, BTreeSet};

/// What the publisher knows of all records while no publication is under way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// The record that each file is served from.
    served: Vec<Option<usize>>,
    /// Bytes of all served versions.
    served_bytes: u64,
    /// Live records of superseded versions.
    pub(super) old: BTreeSet<(FileId, usize)>,
    /// Free ranges of the heap.
    pub(super) gaps: Gaps,
}

impl Index {
    /// Reads all records. No record may be live above the current generation.
    pub(super) fn of(arena: &Arena) -> Self {
        let current = arena.generation();
        let mut index = Self {
            served: vec![None; arena.files().len()],
            served_bytes: 0,
            old: BTreeSet::new(),
            gaps: Gaps::default(),
        };
        let mut used = Vec::new();
        for file in (0_u32..).map(FileId).take(arena.files().len()) {
            let served = arena.slot_at(file, current);
            index.served[file.index()] = served;
            for slot in arena.slots(file) {
                let record = arena.record(slot);
                if record.is(State::Free) {
                    continue;
                }
                used.push(record.bytes());
                if Some(slot) == served {
                    index.served_bytes += record.bytes().1;
                } else if record.is(State::Live) {
                    index.old.insert((file, slot));
                }
            }
        }
        index.gaps = Gaps::between(used, arena.heap_len() as u64);
        index
    }

    /// The record that the file is served from.
    pub(super) fn served(&self, file: FileId) -> Option<usize> {
        self.served[file.index()]
    }

    /// Bytes of all served versions.
    pub(super) fn served_bytes(&self) -> u64 {
        self.served_bytes
    }

    /// From now on the file is served from `slot`; the version before is an old one.
    pub(super) fn serve(&mut self, arena: &Arena, file: FileId, slot: usize) {
        if let Some(before) = self.served(file) {
            self.served_bytes -= arena.record(before).bytes().1;
            self.old.insert((file, before));
        }
        self.served[file.index()] = Some(slot);
        self.served_bytes += arena.record(slot).bytes().1;
    }
}

/// Free ranges of the heap: none is empty, no two touch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gaps {
    /// Offset to length.
    by_offset: BTreeMap<u64, u64>,
    /// The same ranges: length and offset.
    by_len: BTreeSet<(u64, u64)>,
}

/// The choice among the gaps that are large enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// The smallest gap.
    Best,
    /// The end of the last gap.
    Last,
}

impl Gaps {
    /// The gaps between `used` ranges (offset and length) of a heap.
    fn between(mut used: Vec<(u64, u64)>, heap_len: u64) -> Self {
        used.sort_unstable();
        used.push((heap_len, 0));
        let mut gaps = Self::default();
        let mut end = 0;
        for (offset, len) in used {
            if len == 0 && offset < heap_len {
                continue;
            }
            gaps.insert(end, offset.saturating_sub(end));
            end = end.max(offset.saturating_add(len));
        }
        gaps
    }

    /// Takes `len` bytes out of a gap; returns the offset of the bytes.
    pub(super) fn take(&mut self, len: u64, placement: Placement) -> Option<u64> {
        if len == 0 {
            return Some(0);
        }
        let (begin, gap) = match placement {
            Placement::Best => {
                let (gap, begin) = *self.by_len.range((len, 0)..).next()?;
                (begin, gap)
            }
            Placement::Last => {
                let mut from_end = self.by_offset.iter().rev();
                let (begin, gap) = from_end.find(|(_, gap)| **gap >= len)?;
                (*begin, *gap)
            }
        };
        self.remove(begin, gap);
        let rest = gap - len;
        match placement {
            Placement::Best => {
                self.insert(begin + len, rest);
                Some(begin)
            }
            Placement::Last => {
                self.insert(begin, rest);
                Some(begin + rest)
            }
        }
    }

    /// Gives a range back.
    pub(super) fn release(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (mut begin, mut end) = (offset, offset + len);
        if let Some((&before, &gap)) = self.by_offset.range(..offset).next_back()
            && before + gap == offset
        {
            self.remove(before, gap);
            begin = before;
        }
        if let Some(&gap) = self.by_offset.get(&end) {
            self.remove(end, gap);
            end += gap;
        }
        self.insert(begin, end - begin);
    }

    fn insert(&mut self, offset: u64, len: u64) {
        if len > 0 {
            self.by_offset.insert(offset, len);
            self.by_len.insert((len, offset));
        }
    }

    fn remove(&mut self, offset: u64, len: u64) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
    }
}
