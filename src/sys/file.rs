//! What nix lacks about files.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Whether nobody but the caller has this file open or mapped, now: a write lease (`fcntl(2)`, `F_SETLEASE`) is granted.
/// The lease stays until the descriptor is closed.
///
/// The file must belong to the caller's uid (or `CAP_LEASE` is needed), and `file` must be the caller's only descriptor of it.
///
/// # Errors
/// `EACCES` for a file of another uid; `EINVAL` where the filesystem has no leases.
pub fn lease_alone(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: the arguments are numbers; the descriptor is open for the time of the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    match (result, io::Error::last_os_error()) {
        (0.., _) => Ok(true),
        (_, error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        (_, error) => Err(error),
    }
}
