//! What nix lacks about files.

use nix::errno::Errno;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Of `stx_attributes`.
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;

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

/// Gives descriptor `number` the open file of `file` instead of its own (`dup3(2)`); close-on-exec.
///
/// # Errors
/// `EBUSY` in a race with `open(2)`, which a process with one thread has not.
pub fn replace(number: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open for the time of the call; the owner of `number` goes on owning it.
    let result = unsafe { libc::dup3(file.as_raw_fd(), number.as_raw_fd(), libc::O_CLOEXEC) };
    Errno::result(result)?;
    Ok(())
}

/// Whether `path` is where something is mounted, be it a single file (`statx(2)`, `STATX_ATTR_MOUNT_ROOT`, Linux 5.8): then
/// nobody can rename or remove it, or put something else in its place. A link is not followed.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path is a C string and `found` has room for the struct that the call writes; both live through the call.
    let result = unsafe { libc::syscall(libc::SYS_statx, libc::AT_FDCWD, path.as_ptr(), flags, 0, found.as_mut_ptr()) };
    // SAFETY: the struct is made of integers, for which zeros are valid where the kernel wrote nothing.
    let found = unsafe { found.assume_init() };
    result == 0 && found.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0
}
