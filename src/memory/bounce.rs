//! A private locked buffer for replies: the kernel cannot send from the arena (`writev` from
//! `memfd_secret` is EFAULT). Invariant: the buffer holds a secret only while it is lent.

use super::MemoryError;
use super::mapping::map_locked;
use nix::sys::mman::{MapFlags, munmap};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// The size as `mmap` takes it.
const LENGTH: NonZeroUsize = NonZeroUsize::new(Bounce::SIZE).expect("above zero");

/// A buffer of locked memory, made after the fork (locks are not inherited).
#[derive(Debug)]
pub struct Bounce {
    /// A mapping of `SIZE` bytes, owned by this value.
    at: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone and may be used from any thread.
unsafe impl Send for Bounce {}

impl Bounce {
    /// Bytes of the buffer: the mount's `max_read`.
    pub const SIZE: usize = 65536;

    /// Maps and locks the buffer.
    ///
    /// # Errors
    /// `NotLocked` when `RLIMIT_MEMLOCK` is below `SIZE`.
    pub fn new() -> Result<Self, MemoryError> {
        let at = map_locked(LENGTH, MapFlags::MAP_PRIVATE)
            .map_err(|cause| MemoryError::not_locked("replies", Self::SIZE, cause))?;
        Ok(Self { at })
    }

    /// Lends the first `len` bytes (at most `SIZE`) to `body`, then wipes the bytes.
    pub fn lend<T>(&mut self, len: usize, body: impl FnOnce(&mut [u8]) -> T) -> T {
        let len = len.min(Self::SIZE);
        // SAFETY: the mapping has at least `len` bytes, initialised to zero by the kernel, and the
        // exclusive borrow of `self` excludes other references.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), len) };
        let result = body(bytes);
        // SAFETY: the mapping belongs to `self`, and `body` has returned the reference.
        unsafe { super::wipe(self.at.as_ptr(), len) };
        result
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and every borrow of it has ended. Unmapping unlocks.
        let _ = unsafe { munmap(self.at.cast(), Self::SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_is_wiped() {
        let mut bounce = Bounce::new().expect("64 KiB can be locked");
        bounce.lend(7, |bytes| bytes.copy_from_slice(b"hunter2"));
        let is_zero = |bytes: &mut [u8]| bytes.iter().all(|byte| *byte == 0);
        assert!(bounce.lend(usize::MAX, is_zero));
        assert_eq!(bounce.lend(usize::MAX, |bytes| bytes.len()), Bounce::SIZE);
    }

    #[test]
    fn its_pages_are_locked_and_not_dumped() {
        let bounce = Bounce::new().expect("64 KiB can be locked");
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
        let ours = maps
            .split_inclusive("VmFlags:")
            .zip(maps.split("VmFlags:").skip(1))
            .find_map(|(map, flags)| {
                let range = map
                    .lines()
                    .find_map(|line| line.split_once(' ')?.0.split_once('-'))?;
                let bound = |hex| usize::from_str_radix(hex, 16).ok();
                (bound(range.0)?..bound(range.1)?)
                    .contains(&(bounce.at.as_ptr() as usize))
                    .then(|| flags.lines().next())?
            });
        let flags = ours.expect("the mapping is listed");
        assert!(flags.contains(" lo") && flags.contains(" dd"), "{flags}");
    }
}
