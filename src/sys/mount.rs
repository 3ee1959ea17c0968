//! The mount API of Linux 5.2 and later (`fsopen(2)`, `fsmount(2)`, `open_tree(2)`,
//! `mount_setattr(2)`, 5.12): one superblock, a private read-write mount that has no path, and a
//! public read-only one.

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const MOUNT_ATTR_RDONLY: u64 = 1;
/// nosuid, nodev, noexec.
const MOUNT_ATTR_HARMLESS: u64 = 2 | 4 | 8;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// The calls of this module, so that their refusals can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountCall {
    /// `fsopen(2)`.
    Fsopen,
    /// `fsconfig(2)`.
    Fsconfig,
    /// `fsmount(2)`.
    Fsmount,
    /// `open_tree(2)`.
    OpenTree,
    /// `mount_setattr(2)`.
    MountSetattr,
    /// `move_mount(2)`.
    MoveMount,
    /// `umount2(2)`.
    Umount,
}

impl MountCall {
    /// The name of the call in the manual.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fsopen => "fsopen",
            Self::Fsconfig => "fsconfig",
            Self::Fsmount => "fsmount",
            Self::OpenTree => "open_tree",
            Self::MountSetattr => "mount_setattr",
            Self::MoveMount => "move_mount",
            Self::Umount => "umount2",
        }
    }
}

/// Turns the -1 of a syscall into an error that names the call and the object of the call.
fn check(result: libc::c_long, call: MountCall, about: &str) -> io::Result<i32> {
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(MountError {
            call,
            about: about.to_owned(),
            error,
        }
        .into());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// A failed call of this module, inside the `io::Error`, which keeps the kind.
#[derive(Debug)]
struct MountError {
    call: MountCall,
    about: String,
    error: io::Error,
}

impl std::fmt::Display for MountError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({}): {}", self.call.as_str(), self.about, self.error)
    }
}

impl std::error::Error for MountError {}

impl From<MountError> for io::Error {
    fn from(error: MountError) -> Self {
        Self::new(error.error.kind(), error)
    }
}

/// The failed call of this module with the errno, if the error comes from this module.
pub fn failed(error: &io::Error) -> Option<(MountCall, i32)> {
    let inner = error.get_ref()?.downcast_ref::<MountError>()?;
    Some((inner.call, inner.error.raw_os_error()?))
}

/// The errno of an error, whether of a call of this module or another.
pub fn errno(error: &io::Error) -> Option<i32> {
    failed(error).map_or_else(|| error.raw_os_error(), |(_, errno)| Some(errno))
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: `fd` was returned by a successful call that makes a new descriptor, and nobody else
    // has seen it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a mount option holds a zero byte",
        )
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path holds a zero byte"))
}

/// One `key` or `key=value` of a new superblock.
#[derive(Clone, Debug)]
pub enum SuperOption {
    /// A word: `allow_other`, `noswap`.
    Flag(&'static str),
    /// A word and its value: `size`, `4194304`.
    Value(&'static str, String),
}

/// A superblock that is being configured.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// `fsopen(2)` of filesystem `kind` (`fuse`, `tmpfs`).
    ///
    /// # Errors
    /// `PermissionDenied` without `SYS_ADMIN`; `ENODEV` when the kernel has no such filesystem.
    pub fn open(kind: &CStr) -> io::Result<Self> {
        // SAFETY: `kind` is a valid C string for the time of the call; the call touches no other
        // memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
        Ok(Self(owned(check(
            fd,
            MountCall::Fsopen,
            &kind.to_string_lossy(),
        )?)))
    }

    /// `fsconfig(2)` with one option.
    ///
    /// # Errors
    /// `EINVAL` for an option or a value that this kernel does not know.
    pub fn set(&self, option: &SuperOption) -> io::Result<()> {
        let (command, key, value) = match option {
            SuperOption::Flag(key) => (FSCONFIG_SET_FLAG, c_string(key)?, None),
            SuperOption::Value(key, value) => {
                (FSCONFIG_SET_STRING, c_string(key)?, Some(c_string(value)?))
            }
        };
        let value = value.as_ref().map_or(std::ptr::null(), |v| v.as_ptr());
        // SAFETY: key and value are valid C strings, or null where the command takes none, for the
        // time of the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                key.as_ptr(),
                value,
                0,
            )
        };
        check(result, MountCall::Fsconfig, &key.to_string_lossy()).map(|_| ())
    }

    /// Makes the superblock and a detached mount of it: nosuid, nodev, noexec, read-only if
    /// `read_only`.
    ///
    /// # Errors
    /// When the filesystem refuses the options.
    pub fn mount(self, read_only: bool) -> io::Result<OwnedFd> {
        let null = std::ptr::null::<libc::c_char>();
        // SAFETY: the command takes neither key nor value; both are null.
        let made = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                FSCONFIG_CMD_CREATE,
                null,
                null,
                0,
            )
        };
        check(made, MountCall::Fsconfig, "create")?;
        let attributes = MOUNT_ATTR_HARMLESS | if read_only { MOUNT_ATTR_RDONLY } else { 0 };
        // SAFETY: all arguments are numbers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                FSMOUNT_CLOEXEC,
                attributes,
            )
        };
        Ok(owned(check(fd, MountCall::Fsmount, "new superblock")?))
    }
}

/// `open_tree(2)`: a detached clone of the mount that `of` is the root of.
///
/// # Errors
/// `EINVAL` for a clone of a mount that is not attached (before Linux 6.15).
pub fn clone(of: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags =
        OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned() | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: the path is an empty static C string.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, of.as_raw_fd(), c"".as_ptr(), flags) };
    Ok(owned(check(fd, MountCall::OpenTree, "clone")?))
}

/// `mount_setattr(2)`: makes the mount read-only, or writable.
///
/// # Errors
/// `EPERM` without `SYS_ADMIN`.
pub fn set_read_only(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let mut attributes = MountAttr::default();
    if read_only {
        attributes.set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_HARMLESS;
    } else {
        attributes.clear = MOUNT_ATTR_RDONLY;
        // A clone of a shared mount is its peer; this one is nobody's.
        attributes.propagation = libc::MS_PRIVATE;
    }
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: `attributes` is the struct that the call reads, of the size that is passed; the path
    // is an empty static C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path,
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    check(
        result,
        MountCall::MountSetattr,
        if read_only { "read-only" } else { "read-write" },
    )
    .map(|_| ())
}

/// `move_mount(2)`: attaches a detached mount at `path`.
///
/// # Errors
/// `EACCES` where AppArmor or SELinux denies it, `ENOENT` without the directory.
pub fn attach(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let target = c_path(path)?;
    let empty = c"".as_ptr();
    // SAFETY: both paths are valid C strings for the time of the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty,
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(result, MountCall::MoveMount, &path.display().to_string()).map(|_| ())
}

/// Attaches the detached read-only mount `public` at `path`, and gives its private read-write twin,
/// which has no path.
///
/// The read-only one is attached first and the private one cloned from it, which works since Linux
/// 5.12. (Since 6.15 the clone could come first; nobody sees a writable mount either way, so there
/// is one order for all kernels.)
///
/// # Errors
/// As the calls above; nothing stays mounted.
pub fn attach_with_twin(public: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    attach(public, path)?;
    let private =
        clone(public).and_then(|private| set_read_only(private.as_fd(), false).map(|()| private));
    if private.is_err() {
        // Not by the path: another mount may lie on top of this one by now.
        let _ = unmount_root(public, PendingRequests::Kept);
    }
    private
}

/// `umount2(path, MNT_DETACH)`: takes the topmost mount at `path` away; open files go on.
///
/// # Errors
/// `EINVAL` when nothing is mounted there.
pub fn unmount(path: &Path) -> io::Result<()> {
    let target = c_path(path)?;
    // SAFETY: the path is a valid C string for the time of the call.
    let result =
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
    check(
        libc::c_long::from(result),
        MountCall::Umount,
        &path.display().to_string(),
    )
    .map(|_| ())
}

/// The fate of pending requests when a filesystem is unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingRequests {
    /// Pending requests are still answered.
    Kept,
    /// Pending requests end with an error (`MNT_FORCE`; FUSE aborts the connection).
    Aborted,
}

/// As `unmount`, for exactly the mount with the root directory `root`. Where the kernel refuses to
/// abort (`EPERM` for an administrator of a user namespace only), the mount is removed without an
/// abort.
///
/// # Errors
/// `EINVAL` when the mount is already gone.
pub fn unmount_root(root: BorrowedFd<'_>, requests: PendingRequests) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", root.as_raw_fd());
    if requests == PendingRequests::Aborted {
        let aborted = umount2(path.as_str(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if aborted != Err(Errno::EPERM) {
            return Ok(aborted?);
        }
    }
    Ok(umount2(path.as_str(), MntFlags::MNT_DETACH)?)
}
