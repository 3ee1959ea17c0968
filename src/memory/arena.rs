//! The one locked mapping that supervise makes and every role inherits: the *writer area* and the
//! *heap*, which `fetch` writes, and the *reader area*, which `serve` writes. Invariants: the tables
//! are plain structs of atomics at fixed places, so that a role's successor finds them as the role
//! left them; the heap is reached only through bounds-checked copies.

use super::MemoryError;
use crate::clock::Moment;
use crate::names::{FileId, FileName, Owner, Recovery, RestartHistory, Role};
use nix::sys::mman::{
    MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, mmap_anonymous, mprotect, munmap,
};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// "baofs" and the version of the layout below.
const MAGIC: u64 = u64::from_be_bytes(*b"baofs\0\0\x01");
/// Size when none is asked for and the limit allows it.
const DEFAULT_SIZE: usize = 4 << 20;
/// Versions of one file that can exist at once: as many as an eighth of the arena can describe,
/// within these bounds.
const VERSIONS: (usize, usize) = (4, 64);

/// How many of the files whose pages the kernel keeps are named one by one.
pub const LAST_KEPT: usize = 64;

/// What the arena must know of a served file; its index is the `FileId`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Its name.
    pub name: FileName,
    /// Its owner.
    pub owner: Owner,
    /// Its permission bits.
    pub mode: u32,
    /// Where it is found.
    pub visibility: Visibility,
}

/// Who finds a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// In the directory, announced with each change.
    Listed,
    /// In the directory of the agent's own state, which is found by name and not listed; never
    /// announced.
    State,
    /// Nowhere: `fetch` alone reads it.
    Private,
}

/// A `serve` at work.
#[derive(Clone, Copy, Debug)]
pub struct Serving {
    /// What became of its predecessors.
    pub past: RestartHistory,
    /// Its process.
    pub pid: i32,
    /// When it began to answer.
    pub born: Moment,
    /// How it gets back what a predecessor had taken.
    pub recovery: Recovery,
}

/// How the memory is kept from swap and dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// `memfd_secret`: not even root reads it; where the kernel has none, as `Locked`.
    Secret,
    /// Shared anonymous memory, locked by supervise for as long as it lives, left out of dumps.
    Locked,
}

/// Structs of atomics that are valid for any bytes.
///
/// # Safety
/// Only for `repr(C)` structs (or arrays) of atomic integers.
unsafe trait Words {}

/// The head of the writer area.
#[repr(C)]
#[derive(Debug)]
pub struct WriterArea {
    magic: AtomicU64,
    /// The generation that is served; one store of it is the flip.
    pub current: AtomicU64,
    /// Thread id of the announcing thread, the only one that may create, rename and truncate.
    pub announcer: AtomicU64,
    /// Of the current generation and of its neighbour: the index is the generation modulo 2.
    summaries: [SummaryWords; 2],
}

/// What is true of all listed files of one generation together; written before that generation is
/// the current one.
#[repr(C)]
#[derive(Debug)]
pub struct SummaryWords {
    /// Bytes of their versions.
    pub used: AtomicU64,
    /// The newest modification time, seconds since 1970.
    pub mtime: AtomicU64,
    /// And nanoseconds.
    pub mtime_nanos: AtomicU64,
}

/// What `fetch` keeps for each file.
#[repr(C)]
#[derive(Debug)]
pub struct WriterFile {
    /// The generation of the last version whose announcement is complete.
    pub announced: AtomicU64,
    /// Number of the announcement under way, or of the last one.
    pub attempt: AtomicU64,
}

/// One version of one file.
#[repr(C)]
#[derive(Debug)]
pub struct Record {
    /// Serial number, never used again: the record's index plus a multiple of the number of
    /// records.
    pub nodeid: AtomicU64,
    /// The generation that it came with.
    pub generation: AtomicU64,
    /// Where its bytes begin in the heap.
    pub offset: AtomicU64,
    /// How many they are.
    pub len: AtomicU64,
    /// Modification time, seconds since 1970.
    pub mtime: AtomicI64,
    /// And nanoseconds.
    pub mtime_nanos: AtomicU32,
    /// Owner.
    pub uid: AtomicU32,
    /// Group.
    pub gid: AtomicU32,
    /// Permission bits.
    pub mode: AtomicU32,
    /// `State` as a number.
    pub state: AtomicU32,
    /// Index of the file.
    pub file: AtomicU32,
}

/// The head of the reader area.
#[repr(C)]
#[derive(Debug)]
pub struct ReaderArea {
    /// The kernel's number of the last request that was taken, 0 before the first.
    pub last_request: AtomicU64,
    /// How many `serve` have died, and how many of the last ones in a row by themselves.
    deaths: AtomicU64,
    crashes: AtomicU64,
    /// When the present one began to answer, in milliseconds of `CLOCK_MONOTONIC`.
    born: AtomicU64,
    /// The process id of the present one.
    pid: AtomicU64,
    /// How it gets back what its predecessor had taken, as a number.
    recovery: AtomicU64,
    /// Files opened since the start.
    pub opens: AtomicU64,
    /// Reads that failed because their version was evicted.
    pub evicted: AtomicU64,
    /// Counts up when `serve` begins an operation and when it ends one: odd while it is in one,
    /// and changing while it works.
    pub work: AtomicU64,
    /// Inodes of which the kernel came to keep pages (`sendfile`, `splice`, `mmap`).
    pub kept: AtomicU64,
    /// The files of the last ones: the index is their number in `kept`, modulo the length.
    pub last_kept: [AtomicU64; LAST_KEPT],
}

/// What `serve` keeps for each file.
#[repr(C)]
#[derive(Debug)]
pub struct ReaderFile {
    /// The attempt that the last create belongs to.
    pub attempt: AtomicU64,
    /// The version that it gave the hidden name to.
    pub created: AtomicU64,
    /// The version that the last announcing rename gave the file's own name to.
    pub renamed: AtomicU64,
}

// SAFETY: each is a `repr(C)` struct of atomic integers, or one.
unsafe impl Words for WriterArea {}
// SAFETY: as above.
unsafe impl Words for WriterFile {}
// SAFETY: as above.
unsafe impl Words for Record {}
// SAFETY: as above.
unsafe impl Words for ReaderArea {}
// SAFETY: as above.
unsafe impl Words for ReaderFile {}
// SAFETY: as above.
unsafe impl Words for AtomicU64 {}

/// Where the parts are, in bytes from the start; multiples of the page size where a part begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    files: usize,
    records: usize,
    heap: usize,
    heap_len: usize,
    reader_area: usize,
    size: usize,
}

impl Layout {
    /// The layout of `size` bytes for `files` files, or the least size for so many.
    fn new(size: usize, files: usize, page: usize) -> Result<Self, usize> {
        let per_file =
            (size / 8 / size_of::<Record>() / files.max(1)).clamp(VERSIONS.0, VERSIONS.1);
        let records = per_file * files.max(1);
        let heap = Self::records_at(files)
            .saturating_add(records * size_of::<Record>())
            .next_multiple_of(page);
        let desk_len =
            (Self::refs_at(files) + 2 * records * size_of::<AtomicU64>()).next_multiple_of(page);
        let size = size / page * page;
        match size.checked_sub(heap + desk_len) {
            Some(heap_len) if heap_len >= page => Ok(Self {
                files,
                records,
                heap,
                heap_len,
                reader_area: heap + heap_len,
                size,
            }),
            Some(_) | None => Err(heap + desk_len + page),
        }
    }

    /// From the start of the writer area.
    fn records_at(files: usize) -> usize {
        (size_of::<WriterArea>() + files * size_of::<WriterFile>()).next_multiple_of(64)
    }

    /// From the start of the reader area.
    fn refs_at(files: usize) -> usize {
        size_of::<ReaderArea>() + files * size_of::<ReaderFile>()
    }
}

/// The mapping, and what was known before the roles were forked.
pub struct Arena {
    at: NonNull<u8>,
    layout: Layout,
    kind: Backing,
    files: Vec<FileSpec>,
}

// SAFETY: the mapping lives as long as the value; everything in it is reached through atomics, or
// through the copies of `read`, `write` and `wipe`, whose callers check versions (see there).
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("layout", &self.layout)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Arena {
    /// Maps and locks `size` bytes (default: the smaller of 4 MiB and `RLIMIT_MEMLOCK`, raised to
    /// its hard limit) for these files. To be called by supervise, before any fork.
    ///
    /// # Errors
    /// `NotLocked` with the flag that helps; `TooSmall` when the tables alone would fill it.
    pub fn create(
        files: Vec<FileSpec>,
        size: Option<usize>,
        kind: Backing,
    ) -> Result<Self, MemoryError> {
        let limit = super::lockable();
        let wanted =
            size.unwrap_or_else(|| DEFAULT_SIZE.min(usize::try_from(limit).unwrap_or(usize::MAX)));
        let not_locked = |wanted, cause| MemoryError::NotLocked {
            what: "secrets",
            wanted,
            limit,
            cause,
        };
        let layout = Layout::new(wanted, files.len(), page_size()).map_err(|least| match size {
            Some(size) => MemoryError::TooSmall {
                size,
                files: files
                    .iter()
                    .filter(|file| file.visibility == Visibility::Listed)
                    .count(),
                least,
            },
            None => not_locked(least, io::ErrorKind::OutOfMemory.into()),
        })?;
        let (at, kind) = map(layout.size, kind).map_err(|cause| not_locked(layout.size, cause))?;
        let arena = Self {
            at,
            layout,
            kind,
            files,
        };
        arena.writer_area().magic.store(MAGIC, Ordering::SeqCst);
        Ok(arena)
    }

    /// Notes the present `serve`: the calling process, which answers from now on, after so many
    /// that died.
    ///
    /// `fetch` may read meanwhile: the process id is 0 until the other words belong to it.
    pub fn serve_was_born(&self, past: RestartHistory, recovery: Recovery, now: Moment) {
        let reader_area = self.reader_area();
        reader_area.pid.store(0, Ordering::SeqCst);
        reader_area.deaths.store(past.deaths, Ordering::SeqCst);
        reader_area
            .crashes
            .store(u64::from(past.crashes), Ordering::SeqCst);
        reader_area.born.store(
            u64::try_from(now.since_origin().as_millis()).unwrap_or(u64::MAX),
            Ordering::SeqCst,
        );
        reader_area
            .recovery
            .store(recovery as u64 + 1, Ordering::SeqCst);
        reader_area
            .pid
            .store(u64::from(std::process::id()), Ordering::SeqCst);
        // A predecessor may have died in the middle of an operation, which comes back or is given
        // up.
        reader_area.work.fetch_add(
            reader_area.work.load(Ordering::Relaxed) & 1,
            Ordering::Relaxed,
        );
    }

    /// The last `serve` that began to answer; `None` before the first one, and at the moment in
    /// which one begins.
    pub fn last_serve(&self) -> Option<Serving> {
        let reader_area = self.reader_area();
        let words = [
            &reader_area.pid,
            &reader_area.deaths,
            &reader_area.crashes,
            &reader_area.born,
            &reader_area.recovery,
        ]
        .map(|word| word.load(Ordering::SeqCst));
        let [pid, deaths, crashes, born, recovery] = words;
        if pid == 0 || reader_area.pid.load(Ordering::SeqCst) != pid {
            return None;
        }
        let recovery = [Recovery::Resend, Recovery::Interrupt]
            .into_iter()
            .find(|known| *known as u64 + 1 == recovery)?;
        let past = RestartHistory {
            deaths,
            crashes: u32::try_from(crashes).ok()?,
        };
        Some(Serving {
            past,
            pid: i32::try_from(pid).ok()?,
            born: Moment::at(Duration::from_millis(born)),
            recovery,
        })
    }

    /// Makes the parts that `role` does not write read-only in this process: a guard against its
    /// bugs. To be called by each role right after its fork.
    ///
    /// # Errors
    /// None is known.
    pub fn protect_for(&self, role: Role) -> io::Result<()> {
        let (writer_area, heap) = (
            (0, self.layout.heap),
            (self.layout.heap, self.layout.heap_len),
        );
        let reader_area = (
            self.layout.reader_area,
            self.layout.size - self.layout.reader_area,
        );
        let foreign = match role {
            Role::Fetch => vec![reader_area],
            Role::Serve => vec![writer_area, heap],
            Role::Supervise => vec![writer_area, heap, reader_area],
        };
        for (at, len) in foreign {
            // SAFETY: the range is a page-aligned part of our mapping, and this process writes it
            // no more.
            unsafe { mprotect(self.address(at).cast(), len, ProtFlags::PROT_READ) }?;
        }
        Ok(())
    }

    /// Runs `fork` while a child does not inherit the mapping: for a program of others, which is
    /// not to find it between fork and exec. Such a child must not use the arena.
    ///
    /// # Errors
    /// Those of `fork`, and of `madvise(2)` (`MADV_DONTFORK`), of which none is known.
    pub fn not_inherited<T>(&self, fork: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.advise(MmapAdvise::MADV_DONTFORK)?;
        let forked = fork();
        self.advise(MmapAdvise::MADV_DOFORK)?;
        forked
    }

    fn advise(&self, advice: MmapAdvise) -> io::Result<()> {
        // SAFETY: the range is our mapping, and the advice is about children: its content and its
        // place stay.
        Ok(unsafe { madvise(self.at.cast(), self.layout.size, advice) }?)
    }

    /// Whether the mapping is one of this layout.
    pub fn is_intact(&self) -> bool {
        self.writer_area().magic.load(Ordering::SeqCst) == MAGIC
    }

    /// How it is kept from swap and dumps.
    pub fn kind(&self) -> Backing {
        self.kind
    }

    /// The served files.
    pub fn files(&self) -> &[FileSpec] {
        &self.files
    }

    /// Those of one place.
    pub fn files_in(&self, visibility: Visibility) -> impl Iterator<Item = FileId> {
        (0_u32..)
            .map(FileId)
            .zip(&self.files)
            .filter(move |(_, spec)| spec.visibility == visibility)
            .map(|(file, _)| file)
    }

    /// Where a file is found.
    pub fn visibility(&self, file: FileId) -> Visibility {
        self.files[file.index()].visibility
    }

    /// Bytes of the heap.
    pub fn heap_len(&self) -> usize {
        self.layout.heap_len
    }

    /// The head of the writer area.
    pub fn writer_area(&self) -> &WriterArea {
        &self.table(0, 1)[0]
    }

    /// The summary of a generation, which is to be the current or the next one.
    pub fn summary(&self, generation: u64) -> &SummaryWords {
        &self.writer_area().summaries[usize::from(!generation.is_multiple_of(2))]
    }

    /// What `fetch` keeps for each file.
    pub fn writer_files(&self) -> &[WriterFile] {
        self.table(size_of::<WriterArea>(), self.layout.files)
    }

    /// All records; those of one file stand together.
    pub fn records(&self) -> &[Record] {
        self.table(Layout::records_at(self.layout.files), self.layout.records)
    }

    /// The indices of one file's records.
    pub fn slots(&self, file: FileId) -> std::ops::Range<usize> {
        let each = self.layout.records / self.layout.files.max(1);
        file.index() * each..(file.index() + 1) * each
    }

    /// The head of the reader area.
    pub fn reader_area(&self) -> &ReaderArea {
        &self.table(self.layout.reader_area, 1)[0]
    }

    /// What `serve` keeps for each file.
    pub fn reader_files(&self) -> &[ReaderFile] {
        self.table(
            self.layout.reader_area + size_of::<ReaderArea>(),
            self.layout.files,
        )
    }

    /// One word for each record; `snapshot` says what is in it.
    pub fn refs(&self) -> &[AtomicU64] {
        self.table(
            self.layout.reader_area + Layout::refs_at(self.layout.files),
            self.layout.records,
        )
    }

    /// One more for each record: what pages of it the kernel may keep; `snapshot` says what is in
    /// it.
    pub fn kept(&self) -> &[AtomicU64] {
        let at = Layout::refs_at(self.layout.files) + self.layout.records * size_of::<AtomicU64>();
        self.table(self.layout.reader_area + at, self.layout.records)
    }

    /// Copies bytes of the heap out; `None` when the range leaves it. Another process may overwrite
    /// them meanwhile: whoever reads checks the record afterwards and discards the copy if it
    /// changed.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        let from = self.heap(offset, into.len())?;
        // SAFETY: the range is inside the mapping and `into` is our own; torn bytes are discarded
        // by the caller.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        // The check of the record that follows must not be moved before the copy.
        fence(Ordering::SeqCst);
        Some(())
    }

    /// Copies bytes into the heap; `None` when the range leaves it. Only `fetch`, and only into
    /// space of no live record.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Option<()> {
        let to = self.heap(offset, bytes.len())?;
        fence(Ordering::SeqCst);
        // SAFETY: the range is inside the mapping and no reference to it exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        Some(())
    }

    /// Overwrites bytes of the heap with zeros; `None` when the range leaves it. Only `fetch`,
    /// after the record was marked.
    pub fn wipe(&self, offset: u64, len: u64) -> Option<()> {
        let len = usize::try_from(len).ok()?;
        let at = self.heap(offset, len)?;
        fence(Ordering::SeqCst);
        // SAFETY: the range is inside the mapping and no reference to it exists.
        unsafe { super::wipe(at.as_ptr(), len) };
        Some(())
    }

    /// The place of `len` bytes of the heap.
    fn heap(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        (offset.checked_add(len)? <= self.layout.heap_len)
            .then(|| self.address(self.layout.heap + offset))
    }

    /// An address inside the mapping.
    fn address(&self, at: usize) -> NonNull<u8> {
        assert!(
            at < self.layout.size.max(1) || at == self.layout.size,
            "places come from the layout"
        );
        // SAFETY: `at` is at most the size of the mapping.
        unsafe { self.at.add(at) }
    }

    /// A table inside the mapping.
    fn table<T: Words>(&self, at: usize, count: usize) -> &[T] {
        assert!(
            at + count * size_of::<T>() <= self.layout.size && at.is_multiple_of(align_of::<T>()),
            "tables come from the layout"
        );
        let first = self.address(at).cast::<T>();
        // SAFETY: the table is inside the mapping and aligned (checked above), it lives as long as
        // `self`, any bytes are valid for `Words`, and writes go through atomics.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), count) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and no borrow of it is left.
        let _ = unsafe { munmap(self.at.cast(), self.layout.size) };
    }
}

fn page_size() -> usize {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten();
    page.and_then(|page| usize::try_from(page).ok())
        .unwrap_or(65536)
}

fn map(size: usize, kind: Backing) -> io::Result<(NonNull<u8>, Backing)> {
    let length = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
    match kind {
        Backing::Locked => map_locked(length),
        Backing::Secret => match secret_fd() {
            Ok(fd) => map_secret(&fd, length),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)
                ) =>
            {
                map_locked(length)
            }
            Err(error) => Err(error),
        },
    }
}

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// `memfd_secret(2)`.
fn secret_fd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes a number.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    match i32::try_from(fd) {
        // SAFETY: a descriptor that the kernel just made for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// The descriptor is closed by the caller right after: while it is open, `pidfd_getfd` gives the
/// bytes away.
fn map_secret(fd: &OwnedFd, length: NonZeroUsize) -> io::Result<(NonNull<u8>, Backing)> {
    nix::unistd::ftruncate(fd, i64::try_from(length.get()).map_err(io::Error::other)?)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let at = unsafe {
        mmap(
            None,
            length,
            READ_WRITE,
            MapFlags::MAP_SHARED,
            fd.as_fd(),
            0,
        )
    }?;
    Ok((at.cast(), Backing::Secret))
}

fn map_locked(length: NonZeroUsize) -> io::Result<(NonNull<u8>, Backing)> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let at = unsafe { mmap_anonymous(None, length, READ_WRITE, MapFlags::MAP_SHARED) }?;
    // SAFETY: the range is the mapping just made; its content does not change.
    let kept = unsafe { madvise(at, length.get(), MmapAdvise::MADV_DONTDUMP) }
        // SAFETY: as above.
        .and_then(|()| unsafe { mlock(at, length.get()) });
    if let Err(errno) = kept {
        // SAFETY: the mapping is our own and nobody has seen it.
        let _ = unsafe { munmap(at, length.get()) };
        return Err(errno.into());
    }
    Ok((at.cast(), Backing::Locked))
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
                (layout.heap % 4096, layout.reader_area % 4096, layout.size),
                (0, 0, size),
                "{layout:?}"
            );
            assert!(
                layout.heap_len * 2 >= size / 2 || size == 65536,
                "{layout:?}"
            );
            assert_eq!(layout.records % files.max(1), 0);
        }
        let least = Layout::new(4096, 10, 4096).expect_err("too small");
        assert!(Layout::new(least, 10, 4096).is_ok());
        assert!(Layout::new(least - 1, 10, 4096).is_err());
    }

    #[test]
    fn both_kinds_hold_bytes_and_forget_them() {
        for kind in [Backing::Secret, Backing::Locked] {
            let arena =
                Arena::create(specs(2), Some(256 << 10), kind).expect("256 KiB can be locked");
            assert!(arena.is_intact());
            assert!(kind == Backing::Secret || arena.kind() == Backing::Locked);
            arena.write(100, b"hunter2").expect("inside");
            let mut bytes = [1; 9];
            arena.read(99, &mut bytes).expect("inside");
            assert_eq!(&bytes, b"\0hunter2\0");
            arena.wipe(100, 7).expect("inside");
            arena.read(99, &mut bytes).expect("inside");
            assert_eq!(bytes, [0; 9]);
            let end = arena.heap_len() as u64;
            assert!(arena.write(end - 1, b"ab").is_none());
            assert!(arena.read(u64::MAX, &mut bytes).is_none());
            assert!(arena.wipe(1, end).is_none());
        }
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
