//! Tables in chunks: the cost to save a changed item does not depend on the size of the table. Invariant: every change of an item marks the chunk of the item as changed.

use std::collections::BTreeSet;
use std::mem;
use std::ops::{Deref, Range};

/// The division of a table into chunks. The number of chunks is fixed; the last chunk also holds the
/// items that are added later.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkShape {
    /// Items in a chunk.
    size: usize,
    /// Chunks in the table, at least one.
    pub(super) count: usize,
}

impl ChunkShape {
    /// The division of `items` items into chunks of `size`.
    pub(super) fn new(items: usize, size: usize) -> Self {
        Self {
            size,
            count: items.div_ceil(size).max(1),
        }
    }

    /// The chunk of the item at `index`.
    pub(super) fn chunk_of(self, index: usize) -> usize {
        (index / self.size).min(self.count - 1)
    }
}

/// A table in chunks.
#[derive(Debug)]
pub(super) struct Chunks<T> {
    items: Vec<T>,
    shape: ChunkShape,
    /// The chunks that differ from the checkpoint.
    changed: BTreeSet<usize>,
}

impl<T: Clone + PartialEq> Chunks<T> {
    /// A table of which every chunk counts as changed.
    pub(super) fn new(items: Vec<T>, shape: ChunkShape) -> Self {
        let changed = (0..shape.count).collect();
        Self {
            items,
            shape,
            changed,
        }
    }

    /// Adds an item to the last chunk.
    pub(super) fn push(&mut self, item: T) {
        self.mark(self.items.len());
        self.items.push(item);
    }

    /// Applies `change` to the item at `index`; returns whether the item differs now.
    pub(super) fn update(&mut self, index: usize, change: impl FnOnce(&mut T)) -> bool {
        let item = &mut self.items[index];
        let old = item.clone();
        change(item);
        let is_new = *item != old;
        if is_new {
            self.mark(index);
        }
        is_new
    }

    /// The indices of a chunk.
    pub(super) fn range(&self, chunk: usize) -> Range<usize> {
        let len = self.items.len();
        let begin = (chunk * self.shape.size).min(len);
        if chunk + 1 == self.shape.count {
            begin..len
        } else {
            begin..(begin + self.shape.size).min(len)
        }
    }

    /// Marks the chunk of the item at `index` as changed.
    pub(super) fn mark(&mut self, index: usize) {
        self.changed.insert(self.shape.chunk_of(index));
    }

    /// The changed chunks since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<usize> {
        mem::take(&mut self.changed)
    }
}

impl<T> Deref for Chunks<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_item_marks_its_chunk_alone() {
        let mut table = Chunks::new((0..10).collect(), ChunkShape::new(10, 4));
        assert_eq!(table.take_changed(), BTreeSet::from([0, 1, 2]));
        let ranges = [0, 1, 2].map(|chunk| table.range(chunk));
        assert_eq!(ranges, [0..4, 4..8, 8..10]);
        assert!(table.update(5, |item| *item = 50) && !table.update(0, |item| *item = 0));
        assert_eq!((table[5], table.take_changed()), (50, BTreeSet::from([1])));
        for item in 10..20 {
            table.push(item);
        }
        table.update(19, |item| *item = 190);
        assert_eq!(table.take_changed(), BTreeSet::from([2]));
        assert_eq!([1, 2].map(|chunk| table.range(chunk)), [4..8, 8..20]);
        assert_eq!(table.take_changed(), BTreeSet::new());
    }

    #[test]
    fn an_empty_table_has_one_chunk_that_grows() {
        let mut table = Chunks::new(Vec::new(), ChunkShape::new(0, 4));
        assert_eq!((table.range(0), table.take_changed().len()), (0..0, 1));
        table.push(1);
        assert_eq!((table.range(0), table.take_changed().len()), (0..1, 1));
    }
}
