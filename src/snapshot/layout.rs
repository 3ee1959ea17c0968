//! The arena: one mapping that supervise makes and every role inherits. `fetch` writes the *writer
//! area* and the *heap*, `serve` writes the *reader area*. Invariants: all tables are rows of
//! 64-bit words at fixed places, so a role's successor finds the words as the role left them; each
//! part has one writing role.
//!
//! Each file has one record in each of several *planes* (a record describes one version). A plane
//! is used only when all lower planes have no free record of a file, so that pages of the others
//! stay untouched and take no memory.

use crate::memory::mapping::{Backing, Mapping};
use crate::memory::{MemoryError, lockable};
use crate::names::{FileId, FileName, Owner, Role};
use nix::unistd::{SysconfVar, sysconf};
use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use thiserror::Error;

/// Bytes of an arena whose size is not configured, where `RLIMIT_MEMLOCK` allows so many.
const DEFAULT_SIZE: usize = 4 << 20;
/// Bounds of the number of planes. Between them, all records take an eighth of the arena.
const PLANES: (usize, usize) = (4, 64);
/// How many of the files whose pages the kernel keeps are named.
pub const LAST_KEPT: usize = 64;

/// What the arena must know of a file; the index of a spec is the `FileId`.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        /// The configured size in bytes.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table<const N: usize> {
    at: usize,
    rows: usize,
}

impl<const N: usize> Table<N> {
    /// Bytes of a row.
    const ROW: usize = N * size_of::<AtomicU64>();
}

/// Where the parts are. Writer area, heap and reader area consist of whole pages.
#[derive(Debug)]
struct Layout {
    files: usize,
    writer_area: Table<3>,
    summaries: Table<2>,
    writer_files: Table<2>,
    records: Table<5>,
    heap: Range<usize>,
    reader: ReaderLayout,
    size: usize,
}

/// Where the parts of the reader area are.
#[derive(Debug)]
struct ReaderLayout {
    area: Table<{ 5 + LAST_KEPT }>,
    serving: Table<5>,
    files: Table<3>,
    holders: Table<1>,
    kept: Table<1>,
}

impl Layout {
    /// The layout of `size` bytes for `files` files, or the least size for so many.
    fn new(size: usize, files: usize, page: usize) -> Result<Self, usize> {
        let size = size / page * page;
        let planes = size / 8 / Table::<5>::ROW / files.max(1);
        let count = planes.clamp(PLANES.0, PLANES.1) * files.max(1);
        let mut end = 0;
        let writer_area = place(&mut end, 1);
        let summaries = place(&mut end, 2);
        let writer_files = place(&mut end, files);
        let records = place(&mut end, count);
        let start = end.next_multiple_of(page);
        let (_, reader_len) = ReaderLayout::new(0, files, count);
        let reader_len = reader_len.next_multiple_of(page);
        if size < start + page + reader_len {
            return Err(start + page + reader_len);
        }
        let heap = start..size - reader_len;
        Ok(Self {
            files,
            writer_area,
            summaries,
            writer_files,
            records,
            reader: ReaderLayout::new(heap.end, files, count).0,
            heap,
            size,
        })
    }
}

impl ReaderLayout {
    /// The tables from `at` on, and their end.
    fn new(at: usize, files: usize, records: usize) -> (Self, usize) {
        let mut end = at;
        let layout = Self {
            area: place(&mut end, 1),
            serving: place(&mut end, 1),
            files: place(&mut end, files),
            holders: place(&mut end, records),
            kept: place(&mut end, records),
        };
        (layout, end)
    }
}

/// Places a table at `end`, and moves `end` behind the table.
fn place<const N: usize>(end: &mut usize, rows: usize) -> Table<N> {
    let table = Table { at: *end, rows };
    *end += rows * Table::<N>::ROW;
    table
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
#[derive(Clone, Copy, Debug)]
pub struct WriterArea<'a> {
    /// The generation that is served; one store of it is the flip.
    pub current: &'a AtomicU64,
    /// Thread id of the announcing thread, the only thread that may create, rename and truncate.
    pub announcer: &'a AtomicU64,
    /// The number of planes in use; only grows.
    planes: &'a AtomicU64,
}

/// Words of `fetch` for one file.
#[derive(Clone, Copy, Debug)]
pub struct WriterFile<'a> {
    /// The generation of the last version whose announcement is complete.
    pub announced: &'a AtomicU64,
    /// Number of the announcement under way, or of the last announcement.
    pub attempt: &'a AtomicU64,
}

/// Room for one version of one file. Only the publisher changes records.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Node id times 4, plus the state. One word, so that an equal value before and after other
    /// loads proves that no other version was described in between.
    id: &'a AtomicU64,
    generation: &'a AtomicU64,
    offset: &'a AtomicU64,
    len: &'a AtomicU64,
    mtime: &'a AtomicU64,
}

impl Record<'_> {
    /// The node id and the state. The node id is a serial number that is never used again: the
    /// record's index plus a multiple of the number of records; 0 before the first use.
    pub fn id(self) -> (u64, State) {
        let id = self.id.load(SeqCst);
        let state = match id % 4 {
            0 => State::Free,
            1 => State::Live,
            _ => State::Evicted,
        };
        (id / 4, state)
    }

    /// Whether the record is in that state.
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

    /// Modification time, in nanoseconds since 1970.
    pub(super) fn mtime(self) -> u64 {
        self.mtime.load(SeqCst)
    }

    /// Describes another version in a free record. The record ends as `Evicted`, so that the
    /// successor of a publisher that dies now wipes bytes that are written in part.
    ///
    /// The new number is stored before any other word, so no reader mistakes the words for those of
    /// the version before. Until the words are complete, the record is free: a successor must not
    /// wipe bytes at the old offset, where another version may be.
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
#[derive(Clone, Copy, Debug)]
pub struct ReaderArea<'a> {
    /// The kernel's number of the last request that was taken, 0 before the first.
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
    /// The files of the last of these inodes, each at its number modulo the length.
    pub(super) last_kept: &'a [AtomicU64; LAST_KEPT],
}

/// Words of `serve` for one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReaderFile<'a> {
    /// The attempt that the last create belongs to.
    pub(super) attempt: &'a AtomicU64,
    /// Node id of the version that this create gave the hidden name to.
    pub(super) created: &'a AtomicU64,
    /// Node id of the version that the last announcing rename gave the file's name to.
    pub(super) renamed: &'a AtomicU64,
}

/// The mapping, and what was known before the roles were forked.
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
    /// `TooSmall` when the tables of these files alone would fill `size` bytes, `Memory` when the
    /// memory cannot be locked.
    pub fn create(
        files: Vec<FileSpec>,
        size: Option<usize>,
        backing: Backing,
    ) -> Result<Self, ArenaError> {
        let limit = lockable();
        let allowed = usize::try_from(limit).unwrap_or(usize::MAX);
        let wanted = size.unwrap_or(DEFAULT_SIZE.min(allowed));
        let layout = match (Layout::new(wanted, files.len(), page_size()), size) {
            (Ok(layout), _) => layout,
            (Err(least), Some(size)) => {
                let is_listed = |file: &&FileSpec| file.visibility == Visibility::Listed;
                let files = files.iter().filter(is_listed).count();
                return Err(ArenaError::TooSmall { size, files, least });
            }
            (Err(least), None) => Err(MemoryError::NotLocked {
                purpose: "secrets",
                wanted: least,
                limit,
                cause: io::ErrorKind::OutOfMemory.into(),
            })?,
        };
        Ok(Self {
            mapping: Mapping::new(layout.size, layout.heap.clone(), backing)?,
            layout,
            files,
        })
    }

    /// Makes the parts that `role` does not write read-only in this process, as a guard against
    /// bugs. Each role calls this function right after its fork.
    ///
    /// # Errors
    /// None is known.
    pub fn protect_for(&self, role: Role) -> io::Result<()> {
        let Layout { heap, size, .. } = &self.layout;
        self.mapping.make_read_only(match role {
            Role::Fetch => heap.end..*size,
            Role::Serve => 0..heap.end,
            Role::Supervise => 0..*size,
        })
    }

    /// Runs `fork` while children do not inherit the mapping: a foreign program must not find the
    /// arena between fork and exec. Such a child must not use the arena.
    ///
    /// # Errors
    /// Those of `fork`, and of `madvise(2)` (`MADV_DONTFORK`), of which none is known.
    pub fn not_inherited<T>(&self, fork: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.mapping.not_inherited(fork)
    }

    /// All files.
    pub fn files(&self) -> &[FileSpec] {
        &self.files
    }

    /// The files of one visibility.
    pub fn files_in(&self, visibility: Visibility) -> impl Iterator<Item = FileId> {
        let ids = (0_u32..).map(FileId).take(self.files.len());
        ids.filter(move |file| self.visibility(*file) == visibility)
    }

    /// Which readers find the file.
    pub fn visibility(&self, file: FileId) -> Visibility {
        self.files[file.index()].visibility
    }

    /// Bytes of the heap.
    pub fn heap_len(&self) -> usize {
        self.layout.heap.len()
    }

    /// The mapping, whose bytes are the heap. Only `fetch` writes and wipes, and never the bytes of
    /// a live record. A reader loads the record again after a copy, and discards the copy if the
    /// record changed.
    pub fn heap(&self) -> &Mapping {
        &self.mapping
    }

    /// The head of the writer area.
    pub fn writer_area(&self) -> WriterArea<'_> {
        let [current, announcer, planes] = self.row(self.layout.writer_area, 0);
        WriterArea {
            current,
            announcer,
            planes,
        }
    }

    /// The sums of all listed files at `generation`, which is the current or the next generation:
    /// the bytes of the versions, and the newest modification time in nanoseconds since 1970.
    pub(super) fn summary(&self, generation: u64) -> &[AtomicU64; 2] {
        let odd = usize::from(!generation.is_multiple_of(2));
        self.row(self.layout.summaries, odd)
    }

    /// The words of `fetch` for one file.
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
        0..self.planes() * self.layout.files
    }

    /// The indices of the file's records, as far as their planes are in use.
    pub(super) fn slots(&self, file: FileId) -> impl Iterator<Item = usize> + use<> {
        let all = self.all_slots();
        all.skip(file.index()).step_by(self.layout.files.max(1))
    }

    /// Puts one more plane into use; `None` when all are. Only for the publisher.
    pub(super) fn add_plane(&self) -> Option<()> {
        let planes = self.planes();
        let is_left = (planes + 1) * self.layout.files <= self.record_count();
        is_left.then(|| self.writer_area().planes.store(planes as u64 + 1, SeqCst))
    }

    fn planes(&self) -> usize {
        let planes = self.writer_area().planes.load(SeqCst);
        usize::try_from(planes).unwrap_or(usize::MAX)
    }

    /// The file that the record with that index belongs to.
    pub(super) fn file_of(&self, slot: usize) -> FileId {
        let file = slot % self.layout.files.max(1);
        FileId(u32::try_from(file).unwrap_or(u32::MAX))
    }

    /// The head of the reader area.
    pub fn reader_area(&self) -> ReaderArea<'_> {
        let [last_request, opens, evicted, work, kept, last_kept @ ..] =
            self.row(self.layout.reader.area, 0);
        ReaderArea {
            last_request,
            opens,
            evicted,
            work,
            kept,
            last_kept,
        }
    }

    /// The words of the present `serve`, in the order of their use in `serving`.
    pub(super) fn serving(&self) -> &[AtomicU64; 5] {
        self.row(self.layout.reader.serving, 0)
    }

    /// The words of `serve` for one file.
    pub(super) fn reader_file(&self, file: FileId) -> ReaderFile<'_> {
        let [attempt, created, renamed] = self.row(self.layout.reader.files, file.index());
        ReaderFile {
            attempt,
            created,
            renamed,
        }
    }

    /// The lookups that hold the version of a record: the version's tag in the upper half, the
    /// count in the lower half.
    pub fn holders(&self, slot: usize) -> &AtomicU64 {
        &self.row(self.layout.reader.holders, slot)[0]
    }

    /// The pages of a record's version that the kernel may keep; `pages` describes the word.
    pub(super) fn kept(&self, slot: usize) -> &AtomicU64 {
        &self.row(self.layout.reader.kept, slot)[0]
    }

    fn row<const N: usize>(&self, table: Table<N>, row: usize) -> &[AtomicU64; N] {
        let end = table.at + table.rows * Table::<N>::ROW;
        &self.mapping.words(table.at..end).as_chunks().0[row]
    }
}

fn page_size() -> usize {
    match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(page)) => usize::try_from(page).unwrap_or(65536),
        Ok(None) | Err(_) => 65536,
    }
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
                    layout.heap.start % 4096,
                    layout.heap.end % 4096,
                    layout.size
                ),
                (0, 0, size),
                "{layout:?}"
            );
            assert!(
                layout.heap.len() * 2 >= size / 2 || size == 65536,
                "{layout:?}"
            );
            assert_eq!(layout.records.rows % files.max(1), 0);
            assert!(layout.reader.kept.at + layout.records.rows * 8 <= size);
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
