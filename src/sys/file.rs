//! Calls about files that nix lacks, and reads of files that others may replace.

use nix::errno::Errno;
use std::ffi::CString;
use std::fs::{File, FileType};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Of `stx_attributes`.
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;

/// The reasons for which a file is not read, as the predicate of a sentence about the file.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The error of the system.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Not a regular file: a directory, a FIFO, a device, a socket.
    #[error("is {0}, not a regular file")]
    NotRegular(&'static str),
    /// The file exceeds this limit, in bytes.
    #[error("is larger than {0} bytes")]
    TooLarge(usize),
}

/// Reads a regular file of at most `limit` bytes, following links, without waiting: a FIFO without
/// a writer and a terminal open at once (`O_NONBLOCK`, `O_NOCTTY`) and are refused, as is an
/// endless device.
///
/// # Errors
/// See `ReadError`.
pub fn read_regular(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let kind = kind(metadata.file_type());
        return Err(ReadError::NotRegular(kind));
    }
    let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if size > limit {
        return Err(ReadError::TooLarge(limit));
    }
    // The size is a hint only: files of /proc have size 0, and a file may grow.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        Err(ReadError::TooLarge(limit))
    } else {
        Ok(bytes)
    }
}

fn kind(file: FileType) -> &'static str {
    match () {
        () if file.is_dir() => "a directory",
        () if file.is_fifo() => "a FIFO",
        () if file.is_char_device() || file.is_block_device() => "a device",
        () => "something else",
    }
}

/// Whether only the caller has `file` open or mapped now: then the kernel grants a write lease
/// (`fcntl(2)`, `F_SETLEASE`). The lease stays until the descriptor is closed.
///
/// The file must belong to the caller's uid (or `CAP_LEASE` is needed), and `file` must be the
/// caller's only descriptor of the file.
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

/// Replaces the open file of descriptor `number` by the open file of `file` (`dup3(2)`);
/// close-on-exec.
///
/// # Errors
/// `EBUSY` in a race with `open(2)` of another thread.
pub fn replace(number: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open for the time of the call; the owner of `number` stays the
    // owner.
    let result = unsafe { libc::dup3(file.as_raw_fd(), number.as_raw_fd(), libc::O_CLOEXEC) };
    Errno::result(result)?;
    Ok(())
}

/// Whether `path` is a mount point, of a directory or a single file (`statx(2)`,
/// `STATX_ATTR_MOUNT_ROOT`, Linux 5.8): a mount point cannot be renamed, removed or replaced. A
/// link is not followed.
pub fn is_mounted(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path is a C string and `found` has room for the struct that the call writes; both
    // live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            0,
            found.as_mut_ptr(),
        )
    };
    // SAFETY: the struct is made of integers, for which zeros are valid where the kernel wrote
    // nothing.
    let found = unsafe { found.assume_init() };
    result == 0 && found.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_a_small_regular_file_is_read_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("full"), vec![b'x'; 64]).expect("write");
        fs::write(at("large"), vec![b'x'; 65]).expect("write");
        fs::write(at("empty"), "").expect("write");
        mkfifo(&at("fifo"), Mode::S_IRWXU).expect("a FIFO");
        for (name, to) in [
            ("link", "full"),
            ("zero", "/dev/zero"),
            ("looped", "looped"),
        ] {
            symlink(to, at(name)).expect("a link");
        }
        // Files of /proc have size 0, and some bytes.
        symlink("/proc/self/limits", at("proc")).expect("a link");
        for (name, want) in [
            ("full", "64"),
            ("link", "64"),
            ("empty", "0"),
            ("large", "is larger than 64 bytes"),
            ("proc", "is larger than 64 bytes"),
            ("fifo", "is a FIFO, not a regular file"),
            ("zero", "is a device, not a regular file"),
            (".", "is a directory, not a regular file"),
            (
                "none",
                "cannot be read: No such file or directory (os error 2)",
            ),
            (
                "looped",
                "cannot be read: Too many levels of symbolic links (os error 40)",
            ),
        ] {
            let read = read_regular(&at(name), 64)
                .map_or_else(|error| error.to_string(), |bytes| bytes.len().to_string());
            assert_eq!(read, want, "{name}");
        }
    }
}
