//! A private locked buffer for bytes on their way out: the kernel cannot send from the arena itself
//! (`writev` from `memfd_secret` is EFAULT). Invariant: it holds a secret only while it is lent.

use super::mapping::map_locked;
use super::{MemoryError, lockable};
use nix::sys::mman::{MapFlags, munmap};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The buffer's size as `mmap` wants it.
const LENGTH: NonZeroUsize = NonZeroUsize::new(Bounce::SIZE).expect("above zero");

/// One buffer of locked memory, made after the fork (locks are not inherited).
pub struct Bounce {
    /// A mapping of `SIZE` bytes that only this value knows.
    at: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone and may be used from any thread.
unsafe impl Send for Bounce {}

impl Bounce {
    /// Its size in bytes: the mount's `max_read`.
    pub const SIZE: usize = 65536;

    /// Maps and locks the buffer.
    ///
    /// # Errors
    /// `NotLocked` when `RLIMIT_MEMLOCK` is below `SIZE`.
    pub fn new() -> Result<Self, MemoryError> {
        let limit = lockable();
        match map_locked(LENGTH, MapFlags::MAP_PRIVATE) {
            Ok(at) => Ok(Self { at }),
            Err(cause) => Err(MemoryError::NotLocked {
                purpose: "replies",
                wanted: Self::SIZE,
                limit,
                cause,
            }),
        }
    }

    /// Lends the first `len` bytes (at most `SIZE`); they are wiped when the loan ends.
    pub fn lend(&mut self, len: usize) -> Lent<'_> {
        Lent {
            len: len.min(Self::SIZE),
            bounce: self,
        }
    }
}

impl fmt::Debug for Bounce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bounce(..)")
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, nothing borrows from it any more, and it is used no more. It
        // is unlocked with it.
        let _ = unsafe { munmap(self.at.cast(), Self::SIZE) };
    }
}

/// Bytes of a `Bounce` in use.
pub struct Lent<'a> {
    bounce: &'a mut Bounce,
    len: usize,
}

impl Deref for Lent<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has at least `len` bytes, initialised to zero by the kernel, and is
        // borrowed for as long.
        unsafe { std::slice::from_raw_parts(self.bounce.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the exclusive borrow of the bounce makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.bounce.at.as_ptr(), self.len) }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // SAFETY: the loan's bytes are ours and no reference to them is left.
        unsafe { super::wipe(self.bounce.at.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_is_wiped() {
        let mut bounce = Bounce::new().expect("64 KiB can be locked");
        bounce.lend(7).copy_from_slice(b"hunter2");
        assert!(bounce.lend(usize::MAX).iter().all(|byte| *byte == 0));
        assert_eq!(bounce.lend(usize::MAX).len(), Bounce::SIZE);
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
