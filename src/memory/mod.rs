//! Memory for secrets: locked pages that all processes of the agent share, a locked buffer for
//! replies, an allocator that wipes freed blocks, and processes without core dumps. Invariants:
//! locked bytes have no `Clone`, no `Display` and no `Debug` of their content; the compiler cannot
//! leave a wipe out.
#![allow(unsafe_code, reason = "this is one of the two gates")]

pub mod alloc;
pub mod bounce;
pub mod mapping;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use thiserror::Error;

/// Why memory for secrets cannot be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The kernel refuses to map or to lock the memory.
    #[error(
        "cannot lock {wanted} bytes of memory for {purpose} (RLIMIT_MEMLOCK is {limit}): {cause}; \
         hint: start the container with `--ulimit memlock=8388608`, or make `filesystem.size` smaller"
    )]
    NotLocked {
        /// The use of the memory.
        purpose: &'static str,
        /// Bytes wanted.
        wanted: usize,
        /// `RLIMIT_MEMLOCK` in bytes, after raising the soft limit to the hard one.
        limit: u64,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A call that hardens the process failed.
    #[error("cannot harden the process: {0}")]
    NotHardened(io::Error),
}

impl MemoryError {
    fn not_locked(purpose: &'static str, wanted: usize, cause: io::Error) -> Self {
        Self::NotLocked {
            purpose,
            wanted,
            limit: lockable(),
            cause,
        }
    }
}

/// Makes this process not dumpable: no core, and no ptrace or `/proc/PID/mem` for other processes
/// of the same user. Every process of the agent calls this function, after the last use of
/// `/proc/self` files that are closed to others then (id maps of a user namespace).
///
/// # Errors
/// None is known; a sandbox may refuse the call.
pub fn harden() -> Result<(), MemoryError> {
    nix::sys::prctl::set_dumpable(false).map_err(|errno| MemoryError::NotHardened(errno.into()))
}

/// Lowers `RLIMIT_CORE` to 0 for good. Only for roles: the application would inherit the limit from
/// supervise.
///
/// # Errors
/// None is known: lowering a limit needs no right.
pub fn forbid_cores() -> Result<(), MemoryError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| MemoryError::NotHardened(errno.into()))
}

/// Raises the soft `RLIMIT_MEMLOCK` to the hard one; returns the limit in bytes, or 0 when the
/// limit is unknown.
pub fn lockable() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else {
        return 0;
    };
    if soft < hard && setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).is_err() {
        return soft;
    }
    hard
}

/// Overwrites `len` bytes at `at` with zeros that the compiler must write.
///
/// # Safety
/// The bytes must be writable, and no reference to them may exist in this process.
unsafe fn wipe(at: *mut u8, len: usize) {
    // SAFETY: the caller promises that the bytes are writable and not borrowed.
    unsafe { std::ptr::write_bytes(at, 0, len) };
    // The compiler must assume that the barrier reads through the pointer, so the zeros stay.
    zeroize::optimization_barrier(&at);
}
