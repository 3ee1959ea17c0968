//! A shared mapping of locked pages, inherited by forked processes. The mapping begins with 64-bit
//! words; bytes follow, which are copied in and out. Invariants: every access is bounds-checked; no
//! reference to a byte exists; words are reached through atomics only.

use super::{MemoryError, lockable};
use nix::errno::Errno;
use nix::sys::mman::{
    MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, mmap_anonymous, mprotect, munmap,
};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// How pages are kept from swap and dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// `memfd_secret(2)`: unreadable even for root. A kernel without the call gives `Locked`.
    Secret,
    /// Shared anonymous memory, locked by the creating process until its end, left out of dumps.
    Locked,
}

/// Locked pages, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    at: NonNull<u8>,
    /// Where the words end and the bytes begin.
    bytes: usize,
    len: usize,
}

// SAFETY: the mapping lives as long as the value. Words are atomics; bytes are copied as `read`,
// `write` and `wipe` describe.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps and locks memory for words, which take `words` bytes, and for `bytes` bytes; all are
    /// zero. To be called before any fork.
    ///
    /// # Errors
    /// `NotLocked` when the kernel refuses the memory or the lock.
    pub fn new(words: usize, bytes: usize, backing: Backing) -> Result<Self, MemoryError> {
        let len = words.saturating_add(bytes);
        let at =
            map(len, backing).map_err(|cause| MemoryError::not_locked("secrets", len, cause))?;
        Ok(Self {
            at,
            bytes: words,
            len,
        })
    }

    /// Makes `part` (whole pages) read-only in this process.
    ///
    /// # Errors
    /// None is known.
    ///
    /// # Panics
    /// When `part` is not a part of the mapping.
    pub fn make_read_only(&self, part: Range<usize>) -> io::Result<()> {
        let at = self.address(&part);
        // SAFETY: the range is a part of the mapping, and losing write access invalidates nothing.
        Ok(unsafe { mprotect(at.cast(), part.len(), ProtFlags::PROT_READ) }?)
    }

    /// Runs `fork` while children do not inherit the mapping: a foreign program must not find the
    /// mapping between fork and exec. Such a child must not use the mapping.
    ///
    /// # Errors
    /// Errors of `fork`. None is known of `madvise(2)`.
    pub fn not_inherited<T>(&self, fork: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.advise(MmapAdvise::MADV_DONTFORK)?;
        let forked = fork();
        self.advise(MmapAdvise::MADV_DOFORK)?;
        forked
    }

    fn advise(&self, advice: MmapAdvise) -> io::Result<()> {
        // SAFETY: the range is the mapping, and advice about children changes no content.
        Ok(unsafe { madvise(self.at.cast(), self.len, advice) }?)
    }

    /// The words in `part`, which is given in bytes.
    ///
    /// # Panics
    /// When `part` is not a part of the words, or is not aligned.
    pub fn words(&self, part: Range<usize>) -> &[AtomicU64] {
        let first = self.address(&part).cast::<AtomicU64>();
        assert!(
            part.end <= self.bytes && first.is_aligned(),
            "no words: {part:?}"
        );
        let count = part.len() / size_of::<AtomicU64>();
        // SAFETY: the words are inside the mapping, aligned, and before the bytes (checked
        // above); any content is a valid `AtomicU64`; the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), count) }
    }

    /// Copies bytes from `offset` of the bytes on; `None` when the range leaves them. Another
    /// process may overwrite the bytes meanwhile, so the caller must be able to detect that and
    /// discard the copy.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        let len = into.len();
        let from = self.bytes_at(offset, len)?;
        // SAFETY: the source is inside the mapping; `into` is borrowed exclusively. The caller
        // discards torn bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), len) };
        // A later check of a word must not be moved before the copy.
        fence(Ordering::SeqCst);
        Some(())
    }

    /// Copies `bytes` to `offset` of the bytes; `None` when the range leaves them. Only one process
    /// may write.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Option<()> {
        let len = bytes.len();
        let to = self.bytes_at(offset, len)?;
        fence(Ordering::SeqCst);
        // SAFETY: the range is inside the mapping, and no reference to mapped bytes exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), len) };
        Some(())
    }

    /// Overwrites `len` bytes from `offset` of the bytes on with zeros; `None` when the range
    /// leaves them. Only the process that writes may wipe.
    pub fn wipe(&self, offset: u64, len: u64) -> Option<()> {
        let len = usize::try_from(len).ok()?;
        let at = self.bytes_at(offset, len)?;
        fence(Ordering::SeqCst);
        // SAFETY: the range is inside the mapping, and no reference to mapped bytes exists.
        unsafe { super::wipe(at.as_ptr(), len) };
        Some(())
    }

    /// The address of `len` bytes from `offset` of the bytes on.
    fn bytes_at(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        let start = self.bytes.checked_add(offset)?;
        let end = start.checked_add(len)?;
        let is_inside = end <= self.len;
        is_inside.then(|| self.address(&(start..end)))
    }

    fn address(&self, part: &Range<usize>) -> NonNull<u8> {
        let is_inside = part.start <= part.end && part.end <= self.len;
        assert!(is_inside, "{part:?} of {} bytes", self.len);
        // SAFETY: `part.start` is at most the length of the mapping.
        unsafe { self.at.add(part.start) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and every borrow of it has ended.
        let _ = unsafe { munmap(self.at.cast(), self.len) };
    }
}

fn map(len: usize, backing: Backing) -> io::Result<NonNull<u8>> {
    let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
    let secret = match backing {
        Backing::Secret => secret_fd(),
        Backing::Locked => Err(Errno::ENOSYS),
    };
    match secret {
        Ok(fd) => map_secret(&fd, length),
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => {
            map_locked(length, MapFlags::MAP_SHARED)
        }
        Err(errno) => Err(errno.into()),
    }
}

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// `memfd_secret(2)`.
fn secret_fd() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes a number.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = Errno::result(fd)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel has just made this descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The caller closes the descriptor right after: `pidfd_getfd(2)` would give the bytes of an open
/// descriptor away.
fn map_secret(fd: &OwnedFd, length: NonZeroUsize) -> io::Result<NonNull<u8>> {
    let len = i64::try_from(length.get()).map_err(io::Error::other)?;
    nix::unistd::ftruncate(fd, len)?;
    let flags = MapFlags::MAP_SHARED;
    let fd = fd.as_fd();
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let at = unsafe { mmap(None, length, READ_WRITE, flags, fd, 0) }?;
    Ok(at.cast())
}

/// Maps anonymous memory that is locked and left out of dumps.
pub(super) fn map_locked(length: NonZeroUsize, sharing: MapFlags) -> io::Result<NonNull<u8>> {
    lockable();
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let at = unsafe { mmap_anonymous(None, length, READ_WRITE, sharing) }?;
    // SAFETY: the range is the new mapping, whose content does not change.
    let kept = unsafe { madvise(at, length.get(), MmapAdvise::MADV_DONTDUMP) }
        // SAFETY: as above.
        .and_then(|()| unsafe { mlock(at, length.get()) });
    if let Err(errno) = kept {
        // SAFETY: the mapping is new, and nothing refers to it.
        let _ = unsafe { munmap(at, length.get()) };
        return Err(errno.into());
    }
    Ok(at.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_hold_bytes_and_forget_them() {
        for backing in [Backing::Secret, Backing::Locked] {
            let mapping = Mapping::new(4096, 252 << 10, backing).expect("256 KiB can be locked");
            assert!(
                mapping
                    .words(0..4096)
                    .iter()
                    .all(|word| word.load(Ordering::SeqCst) == 0)
            );
            assert!(backing == Backing::Secret || !is_secret(&mapping));
            mapping.write(100, b"hunter2").expect("inside");
            let mut bytes = [1; 9];
            mapping.read(99, &mut bytes).expect("inside");
            assert_eq!(&bytes, b"\0hunter2\0");
            mapping.wipe(100, 7).expect("inside");
            mapping.read(99, &mut bytes).expect("inside");
            assert_eq!(bytes, [0; 9]);
            let end = 252 << 10;
            assert!(mapping.write(end - 1, b"ab").is_none());
            assert!(mapping.read(u64::MAX, &mut bytes).is_none());
            assert!(mapping.wipe(1, end).is_none());
        }
    }

    /// Whether the mapping is of `memfd_secret(2)`, as the kernel names it.
    fn is_secret(mapping: &Mapping) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        let start = format!("{:x}-", mapping.at.addr());
        let line = maps.lines().find(|line| line.starts_with(&start));
        line.expect("the mapping is listed").contains("secretmem")
    }

    #[test]
    fn words_are_aligned_inside_and_apart_from_bytes() {
        let mapping = Mapping::new(8192, 4096, Backing::Locked).expect("3 pages");
        assert_eq!(mapping.words(0..4096).len(), 512);
        mapping.words(8184..8192)[0].store(u64::MAX, Ordering::SeqCst);
        let mut bytes = [1; 4096];
        mapping.read(0, &mut bytes).expect("inside");
        assert_eq!(bytes, [0; 4096]);
        for (from, to) in [(4, 12), (8184, 8200), (8192, 8200), (12288, 12296), (16, 8)] {
            let words = || mapping.words(from..to).len();
            let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(words));
            assert!(refused.is_err(), "{from}..{to}");
        }
    }
}
