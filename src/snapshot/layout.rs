//! The arena: the mapping that supervise makes and every role inherits. `serve` writes the *reader
//! area*; `fetch` writes the *writer area* and the *heap*. Invariants: all tables are rows of
//! 64-bit words at fixed places, so a role's successor finds the words unchanged; each part has a
//! single writing role.
//!
//! A record has room for a version of a file. Each file has a record in each *plane*. A plane comes
//! into use when a file has no free record left, so pages of unused planes stay untouched and take
//! no memory.

use crate::config::plan;
use crate::memory::mapping::{Backing, Mapping};
use crate::memory::{MemoryError, lockable};
use crate::names::{FileId, FileName, Owner, Role};
use nix::unistd::{SysconfVar, sysconf};
use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use thiserror::Error;

/// Bytes of an arena without a configured size, unless `RLIMIT_MEMLOCK` is lower.
const DEFAULT_SIZE: usize = 4 << 20;
/// Bounds of the number of planes. Between the bounds, all records take an eighth of the arena.
const PLANES: (usize, usize) = (4, 64);
/// How many files are named of which the kernel keeps pages.
pub const LAST_KEPT: usize = 64;

/// A file as the arena knows it; the index of a spec is the `FileId`.
#[derive(Clone, Debug)]
pub struct FileSpec {
    /// Name in the directory.
    pub name: FileName,
    /// User and group.
    pub owner: Owner,
    /// Permission bits.
    pub mode: u32,
    /// Which readers find the file.
    pub visibility: Visibility,
}

impl FileSpec {
    /// A file of the plan.
    pub fn listed(file: &plan::File) -> Self {
        Self {
            name: file.name.clone(),
            owner: file.owner,
            mode: file.mode,
            visibility: Visibility::Listed,
        }
    }
}

/// Which readers find a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// The directory lists the file, and each new version is announced.
    Listed,
    /// The directory of the agent's state has the file, found by name and not listed; versions are
    /// never announced.
    State,
    /// No directory has the file: only `fetch` reads it.
    Private,
}

/// Why an arena cannot be made.
#[derive(Debug, Error)]
pub enum ArenaError {
    /// The tables leave no room for the bytes of the files.
    #[error(
        "{size} bytes are too few for {files} files: at least {least} are needed; \
         hint: raise `filesystem.size`, or start the container with `--ulimit memlock=8388608`"
    )]
    TooSmall {
        /// The size in bytes.
        size: usize,
        /// The number of listed files.
        files: usize,
        /// The least size in bytes.
        least: usize,
    },
    /// The memory cannot be locked.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Rows of `N` words, `at` bytes after the start of the mapping.
#[derive(Clone, Copy, Debug)]
struct Table<const N: usize> {
    at: usize,
    rows: usize,
}

impl<const N: usize> Table<N> {
    /// Bytes of a row.
    const ROW: usize = N * size_of::<AtomicU64>();
}

/// Where the parts are. Each area begins at a page; the heap is the rest of the mapping.
#[derive(Debug)]
struct Layout {
    /// The number of files, at least 1.
    files: usize,
    reader_area: Table<{ 5 + LAST_KEPT }>,
    serving: Table<5>,
    reader_files: Table<3>,
    holders: Table<1>,
    kept: Table<1>,
    writer_area: Table<3>,
    summaries: Table<2>,
    writer_files: Table<2>,
    records: Table<5>,
    /// Where the heap begins.
    heap: usize,
    /// Bytes of the heap.
    heap_len: usize,
}

impl Layout {
    /// The layout of `size` bytes for `files` files, or the least size for so many.
    fn new(size: usize, files: usize, page: usize) -> Result<Self, usize> {
        let size = size / page * page;
        let files = files.max(1);
        let planes = size / 8 / Table::<5>::ROW / files;
        let records = planes.clamp(PLANES.0, PLANES.1) * files;
        let mut end = 0;
        let mut layout = Self {
            files,
            reader_area: place(&mut end, 1, 1),
            serving: place(&mut end, 1, 1),
            reader_files: place(&mut end, files, 1),
            holders: place(&mut end, records, 1),
            kept: place(&mut end, records, 1),
            writer_area: place(&mut end, 1, page),
            summaries: place(&mut end, 2, 1),
            writer_files: place(&mut end, files, 1),
            records: place(&mut end, records, 1),
            heap: end.next_multiple_of(page),
            heap_len: 0,
        };
        layout.heap_len = size.saturating_sub(layout.heap);
        if layout.heap_len == 0 {
            return Err(layout.heap + page);
        }
        Ok(layout)
    }
}

/// Places a table at the next multiple of `align` from `end` on, and moves `end` behind the table.
fn place<const N: usize>(end: &mut usize, rows: usize, align: usize) -> Table<N> {
    let at = end.next_multiple_of(align);
    *end = at + rows * Table::<N>::ROW;
    Table { at, rows }
}

/// The state of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No version; the bytes are free and zero.
    Free = 0,
    /// A version.
    Live = 1,
    /// The bytes are being written or wiped. Readers may still have the version open.
    Evicted = 2,
}

/// The head of the writer area.
pub struct WriterArea<'a> {
    /// The served generation; the store of the next generation is the flip.
    pub current: &'a AtomicU64,
    /// Thread id of the announcing thread, the only thread that may create, rename and truncate.
    pub announcer: &'a AtomicU64,
    /// The number of records in the planes in use; only grows.
    used: &'a AtomicU64,
}

/// Words of `fetch` for a file.
pub struct WriterFile<'a> {
    /// The generation of the last version whose announcement is complete.
    pub announced: &'a AtomicU64,
    /// Number of the announcement under way, or of the last announcement.
    pub attempt: &'a AtomicU64,
}

/// Room for a version of a file. Only the publisher changes records.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Node id times 4, plus the state, in a single word: an equal value before and after other
    /// loads proves that no other version was described in between.
    id: &'a AtomicU64,
    generation: &'a AtomicU64,
    offset: &'a AtomicU64,
    len: &'a AtomicU64,
    /// Modification time, in nanoseconds since 1970.
    pub(super) mtime: &'a AtomicU64,
}

impl Record<'_> {
    /// The node id and the state. The node id is a serial number, never used again: the record's
    /// index plus a multiple of the number of records; 0 before the first use.
    pub fn id(self) -> (u64, State) {
        let id = self.id.load(SeqCst);
        let state = match id % 4 {
            0 => State::Free,
            1 => State::Live,
            _ => State::Evicted,
        };
        (id / 4, state)
    }

    /// Whether the record has the state.
    pub fn is(self, state: State) -> bool {
        self.id().1 == state
    }

    /// Moves the record to another state.
    pub fn mark(self, state: State) {
        self.id.store(self.id().0 * 4 + state as u64, SeqCst);
    }

    /// The generation of the version's publication.
    pub fn generation(self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Offset in the heap, and length, of the version's bytes.
    pub fn bytes(self) -> (u64, u64) {
        (self.offset.load(SeqCst), self.len.load(SeqCst))
    }

    /// Describes another version in a free record. The record ends as `Evicted`, so that the
    /// successor of a publisher that dies now wipes partly written bytes.
    ///
    /// The new number is stored before any other word, so no reader takes words of two versions for
    /// a version. Until the words are complete, the record is free: a successor must not wipe bytes
    /// at the old offset, where another version may be.
    pub(super) fn describe(self, nodeid: u64, generation: u64, bytes: (u64, u64), mtime: u64) {
        self.id.store(nodeid * 4 + State::Free as u64, SeqCst);
        self.generation.store(generation, SeqCst);
        self.offset.store(bytes.0, SeqCst);
        self.len.store(bytes.1, SeqCst);
        self.mtime.store(mtime, SeqCst);
        self.mark(State::Evicted);
    }
}

/// The head of the reader area.
pub struct ReaderArea<'a> {
    /// The kernel's number of the last request taken, 0 before the first.
    pub last_request: &'a AtomicU64,
    /// Files opened since the start.
    pub opens: &'a AtomicU64,
    /// Reads that failed because the version was evicted.
    pub evicted: &'a AtomicU64,
    /// Counts up when `serve` begins an operation and when the operation ends: odd during an
    /// operation.
    pub work: &'a AtomicU64,
    /// The number of inodes whose pages the kernel came to keep (`sendfile`, `splice`, `mmap`).
    pub(super) kept: &'a AtomicU64,
    /// The files of the last such inodes, each at the number modulo the length.
    pub(super) last_kept: &'a [AtomicU64; LAST_KEPT],
}

/// Words of `serve` for a file.
pub(super) struct ReaderFile<'a> {
    /// The attempt that the last create belongs to.
    pub(super) attempt: &'a AtomicU64,
    /// Node id of the version that got the hidden name by the create.
    pub(super) created: &'a AtomicU64,
    /// Node id of the version that got the file's name by the last announcing rename.
    pub(super) renamed: &'a AtomicU64,
}

/// The mapping, with the layout and the files, which are fixed before any role is forked.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    layout: Layout,
    files: Vec<FileSpec>,
}

impl Arena {
    /// Maps and locks `size` bytes (default: the smaller of 4 MiB and the hard limit of
    /// `RLIMIT_MEMLOCK`) for these files. To be called by supervise, before any fork.
    ///
    /// # Errors
    /// `TooSmall` when the tables of the files leave no room in `size` bytes, `Memory` when the
    /// memory cannot be locked.
    pub fn create(
        files: Vec<FileSpec>,
        size: Option<usize>,
        backing: Backing,
    ) -> Result<Self, ArenaError> {
        let limit = usize::try_from(lockable()).unwrap_or(usize::MAX);
        let size = size.unwrap_or(DEFAULT_SIZE.min(limit));
        let layout = Layout::new(size, files.len(), page_size()).map_err(|least| {
            let is_listed = |file: &&FileSpec| file.visibility == Visibility::Listed;
            let files = files.iter().filter(is_listed).count();
            ArenaError::TooSmall { size, files, least }
        })?;
        Ok(Self {
            mapping: Mapping::new(layout.heap, layout.heap_len, backing)?,
            layout,
            files,
        })
    }

    /// Makes the parts of other roles read-only in this process, as a guard against bugs. Each role
    /// calls this function right after the fork.
    ///
    /// # Errors
    /// None is known.
    pub fn protect_for(&self, role: Role) -> io::Result<()> {
        let writer_area = self.layout.writer_area.at;
        let end = self.layout.heap + self.layout.heap_len;
        self.mapping.make_read_only(match role {
            Role::Fetch => 0..writer_area,
            Role::Serve => writer_area..end,
        })
    }

    /// All files.
    pub fn files(&self) -> &[FileSpec] {
        &self.files
    }

    /// The files of a visibility.
    pub fn files_in(&self, visibility: Visibility) -> impl Iterator<Item = FileId> {
        let ids = (0_u32..).map(FileId).take(self.files.len());
        ids.filter(move |file| self.file(*file).visibility == visibility)
    }

    /// The file.
    pub fn file(&self, file: FileId) -> &FileSpec {
        &self.files[file.index()]
    }

    /// Bytes of the heap.
    pub fn heap_len(&self) -> usize {
        self.layout.heap_len
    }

    /// The mapping; the heap is its bytes. Only `fetch` writes and wipes, and never the bytes of
    /// a live record. A reader loads the record again after a copy, and discards the copy if the
    /// record changed.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The head of the writer area.
    pub fn writer_area(&self) -> WriterArea<'_> {
        let [current, announcer, used] = self.row(self.layout.writer_area, 0);
        WriterArea {
            current,
            announcer,
            used,
        }
    }

    /// The sums of all listed files at `generation`, which is the current or the next generation:
    /// the bytes of the versions, and the newest modification time in nanoseconds since 1970.
    pub(super) fn summary(&self, generation: u64) -> &[AtomicU64; 2] {
        let odd = usize::from(!generation.is_multiple_of(2));
        self.row(self.layout.summaries, odd)
    }

    /// The words of `fetch` for a file.
    pub fn writer_file(&self, file: FileId) -> WriterFile<'_> {
        let [announced, attempt] = self.row(self.layout.writer_files, file.index());
        WriterFile { announced, attempt }
    }

    /// The record with that index.
    pub fn record(&self, slot: usize) -> Record<'_> {
        let [id, generation, offset, len, mtime] = self.row(self.layout.records, slot);
        Record {
            id,
            generation,
            offset,
            len,
            mtime,
        }
    }

    /// How many records the arena has room for.
    pub fn record_count(&self) -> usize {
        self.layout.records.rows
    }

    /// The indices of all records whose plane is in use.
    pub fn all_slots(&self) -> Range<usize> {
        let used = self.writer_area().used.load(SeqCst);
        let used = usize::try_from(used).unwrap_or(0);
        0..used.min(self.record_count())
    }

    /// The indices of the file's records whose plane is in use.
    pub(super) fn slots(&self, file: FileId) -> impl Iterator<Item = usize> + use<> {
        let all = self.all_slots();
        all.skip(file.index()).step_by(self.layout.files)
    }

    /// Puts another plane into use; `None` when all are in use. Only for the publisher.
    pub(super) fn add_plane(&self) -> Option<()> {
        let used = self.all_slots().end + self.layout.files;
        let is_room = used <= self.record_count();
        is_room.then(|| self.writer_area().used.store(used as u64, SeqCst))
    }

    /// The file of the record with that index.
    pub(super) fn file_of(&self, slot: usize) -> FileId {
        let file = slot % self.layout.files;
        FileId(u32::try_from(file).unwrap_or(u32::MAX))
    }

    /// The head of the reader area.
    pub fn reader_area(&self) -> ReaderArea<'_> {
        let [last_request, opens, evicted, work, kept, last_kept @ ..] =
            self.row(self.layout.reader_area, 0);
        ReaderArea {
            last_request,
            opens,
            evicted,
            work,
            kept,
            last_kept,
        }
    }

    /// The words of the present `serve`; the order is known to `serving`.
    pub(super) fn serving(&self) -> &[AtomicU64; 5] {
        self.row(self.layout.serving, 0)
    }

    /// The words of `serve` for a file.
    pub(super) fn reader_file(&self, file: FileId) -> ReaderFile<'_> {
        let [attempt, created, renamed] = self.row(self.layout.reader_files, file.index());
        ReaderFile {
            attempt,
            created,
            renamed,
        }
    }

    /// The lookups that hold the version of a record: the version's tag in the upper half, the
    /// count in the lower half.
    pub fn holders(&self, slot: usize) -> &AtomicU64 {
        &self.row(self.layout.holders, slot)[0]
    }

    /// The pages of a record's version that the kernel may keep; `pages` describes the word.
    pub(super) fn kept(&self, slot: usize) -> &AtomicU64 {
        &self.row(self.layout.kept, slot)[0]
    }

    fn row<const N: usize>(&self, table: Table<N>, row: usize) -> &[AtomicU64; N] {
        let end = table.at + table.rows * Table::<N>::ROW;
        let words = self.mapping.words(table.at..end);
        &words.as_chunks().0[row]
    }
}

fn page_size() -> usize {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    usize::try_from(page.unwrap_or(65536)).unwrap_or(65536)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(count: usize) -> Vec<FileSpec> {
        let owner = Owner {
            uid: 1000,
            gid: 1000,
        };
        (0..count)
            .map(|i| FileSpec {
                name: FileName::new(&format!("f{i}")).expect("name"),
                owner,
                mode: 0o400,
                visibility: Visibility::Listed,
            })
            .collect()
    }

    #[test]
    fn layouts() {
        for (size, files) in [
            (65536, 10),
            (4 << 20, 10),
            (4 << 20, 300),
            (65536, 1),
            (1 << 20, 0),
        ] {
            let layout = Layout::new(size, files, 4096).expect("fits");
            assert_eq!(
                (
                    layout.heap % 4096,
                    layout.writer_area.at % 4096,
                    layout.heap + layout.heap_len
                ),
                (0, 0, size),
                "{layout:?}"
            );
            assert!(
                layout.heap_len * 2 >= size / 2 || size == 65536,
                "{layout:?}"
            );
            assert_eq!(layout.records.rows % files.max(1), 0);
            assert!(layout.kept.at + layout.kept.rows * 8 <= layout.writer_area.at);
            assert!(layout.records.at + layout.records.rows * 40 <= layout.heap);
        }
        let least = Layout::new(4096, 10, 4096).expect_err("too small");
        assert!(Layout::new(least, 10, 4096).is_ok());
        assert!(Layout::new(least - 1, 10, 4096).is_err());
    }

    #[test]
    fn too_small_names_both_figures() {
        let error = Arena::create(specs(3), Some(4096), Backing::Locked)
            .expect_err("too small")
            .to_string();
        assert!(
            error.contains("4096 bytes") && error.contains("3 files") && error.contains("hint:"),
            "{error}"
        );
    }
}
