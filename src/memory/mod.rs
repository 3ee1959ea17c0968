//! Memory for secrets: the arena of locked pages that all processes share, a locked bounce buffer,
//! a heap that is wiped when it is freed, and processes that leave no core. Invariants: locked
//! bytes have no `Clone`, no `Display` and no `Debug` of their content, and every wipe is one that
//! the compiler cannot leave out.
#![allow(unsafe_code, reason = "this is one of the two gates")]

pub mod alloc;
pub mod arena;
pub mod locked;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fmt;
use std::io;

/// Why memory for secrets cannot be had.
#[derive(Debug)]
pub enum MemoryError {
    /// The kernel locks fewer bytes than are wanted.
    NotLocked {
        /// What they are wanted for.
        what: &'static str,
        /// Bytes wanted.
        wanted: usize,
        /// `RLIMIT_MEMLOCK` in bytes, after raising it to its hard limit.
        limit: u64,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The arena's tables leave no room for the bytes of the files.
    TooSmall {
        /// Bytes that it was given.
        size: usize,
        /// How many files it must hold.
        files: usize,
        /// The least size for so many.
        least: usize,
    },
    /// A call that hardens the process failed.
    NotHardened(io::Error),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLocked {
                what,
                wanted,
                limit,
                cause,
            } => write!(
                f,
                "cannot lock {wanted} bytes of memory for {what} (RLIMIT_MEMLOCK is {limit}): {cause}; \
                 hint: start the container with `--ulimit memlock=8388608`, or make `filesystem.size` smaller"
            ),
            Self::TooSmall { size, files, least } => write!(
                f,
                "{size} bytes are too few for {files} files: at least {least} are needed; \
                 hint: raise `filesystem.size`, or start the container with `--ulimit memlock=8388608`"
            ),
            Self::NotHardened(cause) => write!(f, "cannot harden the process: {cause}"),
        }
    }
}

impl std::error::Error for MemoryError {}

/// Makes this process not dumpable: no core, no ptrace and no `/proc/PID/mem` for others of the
/// same user. Every process of the agent calls it, after whatever needs its own `/proc` files (id
/// maps of a user namespace).
///
/// # Errors
/// None is known; a sandbox may refuse the call.
pub fn harden() -> Result<(), MemoryError> {
    nix::sys::prctl::set_dumpable(false).map_err(|errno| MemoryError::NotHardened(errno.into()))
}

/// Lowers `RLIMIT_CORE` to 0 for good. Only for roles: the application would inherit it from
/// supervise.
///
/// # Errors
/// None is known: lowering needs no right.
pub fn forbid_cores() -> Result<(), MemoryError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| MemoryError::NotHardened(errno.into()))
}

/// Raises the soft `RLIMIT_MEMLOCK` to the hard one and returns it.
fn lockable() -> u64 {
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
/// The bytes must be writable and nobody in this process may hold a reference to them.
unsafe fn wipe(at: *mut u8, len: usize) {
    // SAFETY: the caller promises that the bytes are writable and not borrowed.
    unsafe { std::ptr::write_bytes(at, 0, len) };
    // The compiler must assume that somebody reads through this pointer, so the zeros above cannot
    // be left out.
    zeroize::optimization_barrier(&at);
}
