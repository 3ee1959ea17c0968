//! The target directory of the files. Invariants: nothing is created in the directory before the
//! directory is proved to be memory and locked; a refusal undoes every earlier change.

use super::proof::{DirectoryKind, MemoryBacked, prove};
use super::refusal::{RefusalCause, TargetRefusal};
use super::remove;
use crate::config::plan::{self, Filesystem};
use crate::names::{Owner, SwapExposure};
use crate::observe::Incident;
use crate::sys::mount::{self, FsContext, MountError};
use crate::sys::mounts::{self, Ground, SOURCE};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid, getgroups};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The size of our own mount if the plan has none: 4 MiB.
const DEFAULT_SIZE: u64 = 4 << 20;

/// A directory that is proved to be memory, held by this agent for the life of the value and of
/// forked children.
#[derive(Debug)]
pub struct Target {
    /// The private mount without a path, through which files are written; `None` for a directory on
    /// an existing tmpfs. Our own mount is read-only at the path.
    private: Option<OwnedFd>,
    /// The directory under our own mount.
    pub ground: Option<Ground>,
    /// The directory at `path`, with a lock that shows other agents a living agent. A fork shares
    /// the lock, an exec closes the descriptor.
    public: File,
    memory: MemoryBacked,
}

impl Target {
    /// Mounts a tmpfs at the path, or, if mounting is denied, uses the directory there. Proves that
    /// the directory is memory, locks the directory and removes the files of a dead agent. Must be
    /// called once, before the first fork, with all rights of the start.
    ///
    /// # Errors
    /// The first reason against the directory; then nothing of ours is left there.
    pub fn prepare(filesystem: &Filesystem, files: &[plan::File]) -> Result<Self, TargetRefusal> {
        Self::try_prepare(filesystem, files).map_err(|cause| TargetRefusal {
            path: filesystem.path.clone(),
            cause,
        })
    }

    fn try_prepare(filesystem: &Filesystem, files: &[plan::File]) -> Result<Self, RefusalCause> {
        let path = &filesystem.path;
        make_way(path)?;
        let ground = Ground::survey(path);
        let (private, public, denied) = match mount_own(filesystem) {
            Ok((private, public)) => {
                let denied = "another mount hides it".to_owned();
                (Some(private), public, denied)
            }
            Err(RefusalCause::Mount(error)) if is_denied(&error) => {
                let denied = format!(
                    "{error}; hint: give the container a tmpfs \
                     (`--tmpfs {}:size=4m,mode=1777`), or start as root with CAP_SYS_ADMIN",
                    path.display()
                );
                (None, open(path)?, denied)
            }
            Err(cause) => return Err(cause),
        };
        let checked = check(private.as_ref(), &public, &denied, filesystem.swap, files);
        if checked.is_err() && private.is_some() {
            unmount(&public);
        }
        let memory = checked?;
        if let Some(cause) = &memory.swap {
            Incident::SwapAllowed.emit(cause);
        }
        Ok(Self {
            ground: private.is_some().then_some(ground),
            private,
            public,
            memory,
        })
    }

    /// The directory, opened anew, for a `Writer`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn root(&self) -> io::Result<OwnedFd> {
        Ok(remove::open_dir(self.as_fd(), ".")?)
    }

    /// The reason why files could reach a swap now, although no swap was reachable at the start and
    /// none is allowed. Reads a few files of `/proc`; only one if the machine has no swap.
    pub fn swap_risk(&self) -> Option<SwapExposure> {
        self.memory.look_again(&read)
    }

    /// Removes all files of this agent, and our own mount. Must be called when no writer is alive.
    ///
    /// # Errors
    /// The files that cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        let removed = remove::everything(self.as_fd());
        if self.private.is_some() {
            unmount(&self.public);
        }
        removed
    }
}

impl AsFd for Target {
    /// The directory, writable.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.private {
            Some(private) => private.as_fd(),
            None => self.public.as_fd(),
        }
    }
}

/// Unmounts our own mount by the root, not by the path: a supervisor that gave up its rights may
/// not be allowed to walk the path.
fn unmount(public: &File) {
    // Fails only for a mount that another process removed.
    let _ = mount::unmount_root(public.as_fd());
}

/// The text of a file of the system; `None` for a file that cannot be read.
fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Whether the writer needs `CAP_CHOWN`: for a file of another user, or of a group that this
/// process is not in.
pub fn needs_chown(files: &[plan::File]) -> bool {
    files
        .iter()
        .any(|file| file.owner.uid != geteuid().as_raw() || !in_group(file.owner.gid))
}

/// Checks all conditions for the first byte. The order matters: nothing is changed before the proof
/// and the lock.
fn check(
    private: Option<&OwnedFd>,
    public: &File,
    denied: &str,
    swap: plan::Swap,
    files: &[plan::File],
) -> Result<MemoryBacked, RefusalCause> {
    let mountinfo = mounts::mountinfo()?;
    let mount = mounts::mount_of(public.as_fd(), &mountinfo)?;
    let memory = prove(mount, swap, denied, &read)?;
    let root = if let Some(private) = private {
        // An agent that started at the same moment must not be hidden.
        if mounts::hides_agent(public.as_fd())? {
            return Err(RefusalCause::Held);
        }
        private.as_fd()
    } else {
        public.try_lock()?;
        check_writable(public)?;
        public.as_fd()
    };
    remove::everything(root).map_err(RefusalCause::Leftovers)?;
    for file in files {
        if remove::exists(root, file.name.as_str()) {
            return Err(RefusalCause::Taken(file.name.clone()));
        }
        try_owner(root, file.owner)?;
    }
    Ok(memory)
}

/// Checks the permission bits. Root counts as any other user, because `fetch` has no
/// `DAC_OVERRIDE`.
fn check_writable(dir: &File) -> Result<(), RefusalCause> {
    let stat = dir.metadata()?;
    let uid = stat.uid();
    let gid = stat.gid();
    let mode = stat.mode() & 0o7777;
    let need = if uid == geteuid().as_raw() {
        0o700
    } else if in_group(gid) {
        0o070
    } else {
        0o007
    };
    if mode & need == need {
        Ok(())
    } else {
        let whose = format!("which is of uid {uid}, gid {gid}, mode {mode:04o}");
        Err(RefusalCause::NotWritable(whose))
    }
}

/// Tries to give a file without a name to `owner`: the result depends on capabilities, user
/// namespaces and quotas, which only the kernel knows.
fn try_owner(root: BorrowedFd<'_>, owner: Owner) -> Result<(), RefusalCause> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let probe = openat(root, ".", flags, Mode::empty())
        .map_err(|error| RefusalCause::NotWritable(format!("which refuses them ({error})")))?;
    let given = fchown(
        &probe,
        Some(Uid::from_raw(owner.uid)),
        Some(Gid::from_raw(owner.gid)),
    );
    given.map_err(|error| RefusalCause::Chown {
        owner,
        error: error.into(),
    })
}

fn in_group(gid: u32) -> bool {
    let gid = Gid::from_raw(gid);
    gid == getegid() || getgroups().is_ok_and(|groups| groups.contains(&gid))
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
}

/// Refuses the directory of a living agent, and removes the mount of a dead agent.
///
/// An agent locks the directory, not a file: the lock leaves no file behind, and works through a
/// read-only mount.
fn make_way(path: &Path) -> Result<(), RefusalCause> {
    let public = open(path)?;
    let mountinfo = mounts::mountinfo()?;
    let mount = mounts::mount_of(public.as_fd(), &mountinfo)?;
    match DirectoryKind::of(mount, path) {
        DirectoryKind::Other => {}
        DirectoryKind::Tmpfs => public.try_lock()?,
        DirectoryKind::OfAgent => {
            public.try_lock()?;
            remove_stale(&public)?;
        }
    }
    Ok(())
}

/// Empties and removes the mount of a dead agent. Without the right to mount, the mount stays, and
/// is refused later as read-only.
fn remove_stale(public: &File) -> Result<(), RefusalCause> {
    if let Ok(clone) = mount::writable_clone(public.as_fd()) {
        remove::everything(clone.as_fd()).map_err(RefusalCause::Leftovers)?;
        mount::unmount_root(public.as_fd()).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Mounts a new tmpfs and returns the private mount and the locked root of the public mount. The
/// root is locked before the mount is attached: an agent that starts at the same moment never finds
/// the mount without the lock, which would be the mark of a dead agent.
fn mount_own(filesystem: &Filesystem) -> Result<(OwnedFd, File), RefusalCause> {
    let detached = match superblock(filesystem, true) {
        // The kernel does not know `noswap` (before 6.4) or refuses it in a user namespace.
        Err(error) if error.errno == Errno::EINVAL => superblock(filesystem, false)?,
        result => result?,
    };
    let root = remove::open_dir(detached.as_fd(), ".").map_err(io::Error::from)?;
    let public = File::from(root);
    public.try_lock()?;
    let private = mount::attach_with_twin(detached.as_fd(), &filesystem.path)?;
    Ok((private, public))
}

/// A detached read-only mount of a new tmpfs.
fn superblock(filesystem: &Filesystem, noswap: bool) -> Result<OwnedFd, MountError> {
    let size = filesystem.size.unwrap_or(DEFAULT_SIZE);
    let dir_mode = filesystem.dir_mode;
    let context = FsContext::open(c"tmpfs")?;
    context.set(c"source", SOURCE)?;
    // Size 0 would mean no limit.
    context.set(c"size", size.max(1))?;
    context.set(c"mode", format_args!("{dir_mode:o}"))?;
    if noswap {
        context.set_flag(c"noswap")?;
    }
    context.mount()
}

/// Whether this process may not mount at all: without the capability, because of a security module
/// or a seccomp filter, or on a kernel without the mount API.
fn is_denied(error: &MountError) -> bool {
    matches!(error.errno, Errno::EPERM | Errno::EACCES | Errno::ENOSYS)
}
