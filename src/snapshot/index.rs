//! The publisher's index of the arena, which spares a publication the walk over all files: the
//! served record of each file, the old versions, the free ranges of the heap. Invariant: the
//! records in the arena are the truth; an index rebuilt from the records equals the present index.

use super::layout::{Arena, State, Visibility};
use crate::names::FileId;
use std::collections::{BTreeMap, BTreeSet};

/// The records by use; complete while no publication is under way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// The served record of each file.
    served: Vec<Option<usize>>,
    /// Bytes of all served versions.
    pub(super) served_bytes: u64,
    /// Records of superseded versions.
    pub(super) old: BTreeSet<usize>,
    /// Free ranges of the heap.
    pub(super) gaps: Gaps,
}

impl Index {
    /// Reads all records. Records that a dead publisher staged, or did not wipe, count as old.
    pub(super) fn of(arena: &Arena) -> Self {
        let mut index = Self {
            served: vec![None; arena.files().len()],
            served_bytes: 0,
            old: BTreeSet::new(),
            gaps: Gaps::all(arena.heap_len() as u64),
        };
        for slot in arena.all_slots() {
            let record = arena.record(slot);
            if !record.is(State::Free) {
                let (offset, len) = record.bytes();
                index.gaps.cut(offset, len);
                index.old.insert(slot);
            }
        }
        let files = (0_u32..).map(FileId).take(arena.files().len());
        for file in files {
            if let Some(slot) = arena.slot_at(file, arena.generation()) {
                index.old.remove(&slot);
                index.serve(arena, slot);
            }
        }
        index
    }

    /// The served record of the file.
    pub(super) fn served(&self, file: FileId) -> Option<usize> {
        self.served[file.index()]
    }

    /// Makes the record the served record of the file; the version before becomes an old version.
    pub(super) fn serve(&mut self, arena: &Arena, slot: usize) {
        let len = |slot| arena.record(slot).bytes().1;
        self.served_bytes += len(slot);
        let file = arena.file_of(slot);
        if let Some(before) = self.served[file.index()].replace(slot) {
            self.served_bytes -= len(before);
            self.old.insert(before);
        }
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

impl Gaps {
    /// A heap without versions.
    fn all(len: u64) -> Self {
        let mut gaps = Self::default();
        gaps.insert(0, len);
        gaps
    }

    /// Bytes in all gaps.
    pub(super) fn total(&self) -> u64 {
        self.by_offset.values().sum()
    }

    /// Takes `len` bytes for a file out of a gap; returns the offset of the bytes. A listed file
    /// gets a part of the smallest large enough gap. Files of the agent get the end of the last
    /// large enough gap, to stay out of the room for large secrets.
    pub(super) fn take(&mut self, len: u64, visibility: Visibility) -> Option<u64> {
        if len == 0 {
            return Some(0);
        }
        let offset = match visibility {
            Visibility::Listed => {
                let mut large_enough = self.by_len.range((len, 0)..);
                large_enough.next()?.1
            }
            Visibility::State | Visibility::Private => {
                let mut from_end = self.by_offset.iter().rev();
                let (offset, gap) = from_end.find(|(_, gap)| **gap >= len)?;
                offset + gap - len
            }
        };
        self.cut(offset, len);
        Some(offset)
    }

    /// Cuts a used range out of the surrounding gap.
    fn cut(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let around = self.by_offset.range(..=offset).next_back();
        if let Some((&start, &gap)) = around {
            self.remove(start, gap);
            self.insert(start, gap.min(offset - start));
            let end = offset.saturating_add(len);
            let rest = (start + gap).saturating_sub(end);
            self.insert(end, rest);
        }
    }

    /// Gives a range back.
    pub(super) fn release(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let mut start = offset;
        let mut end = offset + len;
        if let Some((&before, &gap)) = self.by_offset.range(..offset).next_back()
            && before + gap == offset
        {
            self.remove(before, gap);
            start = before;
        }
        if let Some(&gap) = self.by_offset.get(&end) {
            self.remove(end, gap);
            end += gap;
        }
        self.insert(start, end - start);
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
