//! The mount API of Linux 5.2 and later (`fsopen(2)`, `fsmount(2)`, `open_tree(2)`,
//! `mount_setattr(2)`, 5.12): one superblock, a private read-write mount without a path, and a
//! public read-only mount.

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// The attributes of the public mount.
const PUBLIC: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC;

/// The calls of the mount API: the meaning of an errno depends on the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountCall {
    /// `fsopen(2)`.
    #[error("fsopen")]
    Fsopen,
    /// `fsconfig(2)`.
    #[error("fsconfig")]
    Fsconfig,
    /// `fsmount(2)`.
    #[error("fsmount")]
    Fsmount,
    /// `open_tree(2)`.
    #[error("open_tree")]
    OpenTree,
    /// `mount_setattr(2)`.
    #[error("mount_setattr")]
    MountSetattr,
    /// `move_mount(2)`.
    #[error("move_mount")]
    MoveMount,
}

/// A failed call of the mount API.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}({about}): {}", io::Error::from(*errno))]
pub struct MountError {
    /// The call.
    pub call: MountCall,
    /// The object of the call: a filesystem, an option or a path.
    pub about: String,
    /// The error of the kernel.
    pub errno: Errno,
}

/// Turns the -1 of a syscall into an error.
fn check(result: libc::c_long, call: MountCall, about: &dyn Display) -> Result<i32, MountError> {
    match Errno::result(result) {
        Ok(result) => Ok(i32::try_from(result).expect("a descriptor or 0")),
        Err(errno) => Err(MountError {
            call,
            about: about.to_string(),
            errno,
        }),
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: a successful call made the new descriptor `fd`, and no other code has seen the
    // number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A superblock before and during its configuration.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// `fsopen(2)` of filesystem `kind` (`fuse`, `tmpfs`).
    ///
    /// # Errors
    /// `EPERM` without `SYS_ADMIN`; `ENODEV` when the kernel has no such filesystem.
    pub fn open(kind: &CStr) -> Result<Self, MountError> {
        // SAFETY: `kind` is a valid C string for the time of the call; the call touches no other
        // memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) };
        let about = kind.to_string_lossy();
        let fd = check(fd, MountCall::Fsopen, &about)?;
        Ok(Self(owned(fd)))
    }

    /// Sets an option without a value, such as `noswap`.
    ///
    /// # Errors
    /// `EINVAL` for an option that this kernel does not know.
    pub fn set_flag(&self, key: &CStr) -> Result<(), MountError> {
        self.configure(libc::FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Sets an option with a value, such as `size` to 4194304.
    ///
    /// # Errors
    /// `EINVAL` for an option or a value that this kernel does not know.
    ///
    /// # Panics
    /// When the value has a zero byte.
    pub fn set(&self, key: &CStr, value: impl Display) -> Result<(), MountError> {
        let value = CString::new(value.to_string()).expect("a value without a zero byte");
        self.configure(libc::FSCONFIG_SET_STRING, Some(key), Some(&value))
    }

    /// `fsconfig(2)`.
    fn configure(
        &self,
        command: libc::c_uint,
        key: Option<&CStr>,
        value: Option<&CStr>,
    ) -> Result<(), MountError> {
        let start = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
        let key_at = start(key);
        let value_at = start(value);
        // SAFETY: key and value are valid C strings for the time of the call, or null where the
        // command takes none.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                key_at,
                value_at,
                0,
            )
        };
        let about = key.unwrap_or(c"create").to_string_lossy();
        check(result, MountCall::Fsconfig, &about).map(drop)
    }

    /// Makes the superblock and a detached mount of the superblock: read-only, nosuid, nodev,
    /// noexec.
    ///
    /// # Errors
    /// When the filesystem refuses the options.
    pub fn mount(self) -> Result<OwnedFd, MountError> {
        self.configure(libc::FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: all arguments are numbers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                libc::FSMOUNT_CLOEXEC,
                PUBLIC,
            )
        };
        check(fd, MountCall::Fsmount, &"new superblock").map(owned)
    }
}

/// A detached, writable, private clone of the mount with the root `of` (`open_tree(2)`,
/// `mount_setattr(2)`).
///
/// # Errors
/// `EPERM` without `SYS_ADMIN`; `EINVAL` for a mount that is not attached (before Linux 6.15).
pub fn writable_clone(of: BorrowedFd<'_>) -> Result<OwnedFd, MountError> {
    let path = c"".as_ptr();
    let empty_path = libc::AT_EMPTY_PATH;
    let flags = libc::OPEN_TREE_CLONE | (libc::O_CLOEXEC | empty_path).cast_unsigned();
    // SAFETY: the path is an empty static C string.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, of.as_raw_fd(), path, flags) };
    let clone = owned(check(fd, MountCall::OpenTree, &"clone")?);
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: libc::MOUNT_ATTR_RDONLY,
        // A clone of a shared mount would receive and send mounts as the shared mount does.
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: `attributes` is the struct that the call reads, of the size that is passed; the path
    // is an empty static C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            clone.as_raw_fd(),
            path,
            empty_path,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    check(result, MountCall::MountSetattr, &"read-write").map(|_| clone)
}

/// `move_mount(2)`: attaches a detached mount at `path`.
///
/// # Errors
/// `EACCES` where AppArmor or SELinux denies the call, `ENOENT` without the directory, `EINVAL`
/// for a path with a zero byte.
pub fn attach(mount: BorrowedFd<'_>, path: &Path) -> Result<(), MountError> {
    let call = MountCall::MoveMount;
    let about = path.display();
    let target = path.as_os_str().as_bytes();
    let target = CString::new(target).map_err(|_| MountError {
        call,
        about: about.to_string(),
        errno: Errno::EINVAL,
    })?;
    // SAFETY: both paths are valid C strings for the time of the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(result, call, &about).map(drop)
}

/// Attaches the detached read-only mount `public` at `path` and returns a private read-write
/// clone, which has no path.
///
/// The clone is made after the attachment, which works since Linux 5.12. (Since 6.15 a detached
/// mount can be cloned, too. No other process sees a writable mount in either order.)
///
/// # Errors
/// As `attach` and `writable_clone`; then nothing stays mounted.
pub fn attach_with_twin(public: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, MountError> {
    attach(public, path)?;
    let private = writable_clone(public);
    if private.is_err() {
        // Not by the path: another mount may lie on top of `public` by now.
        let _ = unmount_root(public);
    }
    private
}

/// Detaches exactly the mount with the root directory `root` (`umount2(2)`, `MNT_DETACH`); open
/// files stay usable, and pending requests are still answered.
///
/// # Errors
/// `EINVAL` when the mount is already gone.
pub fn unmount_root(root: BorrowedFd<'_>) -> nix::Result<()> {
    detach(root, MntFlags::MNT_DETACH)
}

/// Detaches the mount as `unmount_root` does, and ends pending requests with an error (`MNT_FORCE`;
/// FUSE aborts the connection). Where the kernel refuses to abort (`EPERM` for an administrator of
/// a user namespace only), the mount is removed without an abort.
///
/// # Errors
/// As `unmount_root`.
pub fn abort_root(root: BorrowedFd<'_>) -> nix::Result<()> {
    match detach(root, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => unmount_root(root),
        result => result,
    }
}

fn detach(root: BorrowedFd<'_>, flags: MntFlags) -> nix::Result<()> {
    umount2(
        format!("/proc/self/fd/{}", root.as_raw_fd()).as_str(),
        flags,
    )
}
