//! The directory that files are written to. Invariants: nothing is made in it before it was proved
//! and locked; what was changed on the way to a refusal is put back.

use super::proof::{DirectoryKind, MemoryBacked, prove, standing};
use super::refusal::{RefusalCause, TargetRefusal};
use super::remove;
use crate::config::plan::{self, Filesystem};
use crate::names::{Owner, SwapExposure};
use crate::observe::Event;
use crate::sys::mount::{self, FsContext, SuperOption};
use crate::sys::mounts::{self, Ground, SOURCE};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, major, minor};
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid, getgroups};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Size of a mount of ours where the plan has none: 4 MiB.
const DEFAULT_SIZE: u64 = 4 << 20;

/// A directory that is proved to be memory, and held for this agent as long as it or a child of it
/// lives.
#[derive(Debug)]
pub struct Target {
    /// Whose mount it is.
    place: Origin,
    /// The directory as `path` shows it. A lock on it says that an agent lives; fork shares it,
    /// exec closes it.
    public: File,
    /// That it is memory.
    memory: MemoryBacked,
    /// What our own mount lies on.
    ground: Option<Ground>,
}

/// Whose mount a directory is.
#[derive(Debug)]
enum Origin {
    /// Ours: files are written through this private mount, which has no path.
    Own(OwnedFd),
    /// One that was there; why we could not make one.
    Given(io::Error),
}

impl Target {
    /// Mounts a tmpfs at the path if that is allowed, else takes what is there; proves it, locks
    /// it, removes what a dead agent left. Called once, before any fork, with the rights that
    /// the agent was started with.
    ///
    /// # Errors
    /// The first reason against it; then nothing was made, and nothing of ours is mounted.
    pub fn prepare(filesystem: &Filesystem, files: &[plan::File]) -> Result<Self, TargetRefusal> {
        let path = &filesystem.path;
        Self::try_prepare(filesystem, files).map_err(|cause| TargetRefusal {
            path: path.clone(),
            cause,
        })
    }

    fn try_prepare(filesystem: &Filesystem, files: &[plan::File]) -> Result<Self, RefusalCause> {
        let path = &filesystem.path;
        make_way(path)?;
        let ground = Ground::survey(path);
        let (place, opened) = match mount_own(filesystem) {
            // An agent that came at the same moment is not hidden.
            Ok((_, public))
                if mounts::hides_agent(public.as_fd()).map_err(RefusalCause::Mount)? =>
            {
                mount::unmount_root(public.as_fd(), mount::PendingRequests::Kept)
                    .map_err(RefusalCause::Mount)?;
                return Err(RefusalCause::Held);
            }
            Ok((private, public)) => (Origin::Own(private), Ok(public)),
            Err(error) if is_denied(&error) => (Origin::Given(error), open(path)),
            Err(error) => return Err(RefusalCause::Mount(error)),
        };
        let checked =
            opened.and_then(|public| Ok((check(&place, &public, filesystem.swap, files)?, public)));
        let (memory, public) = checked.inspect_err(|_| place.unmount(path))?;
        if let Some(cause) = memory.swap_risk() {
            Event::SwapAllowed { cause: &cause }.emit();
        }
        let ground = matches!(place, Origin::Own(_)).then_some(ground);
        Ok(Self {
            place,
            public,
            memory,
            ground,
        })
    }

    /// What our own mount lies on; `None` when the directory was given.
    pub fn ground(&self) -> Option<&Ground> {
        self.ground.as_ref()
    }

    /// The directory, opened anew, for a `Writer`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn root(&self) -> io::Result<OwnedFd> {
        Ok(self.place.root(&self.public)?)
    }

    /// Why files could reach a swap now, although that was excluded at the start and is not
    /// allowed. Reads a few files of `/proc`; cheap where the machine has no swap.
    pub fn swap_risk(&self) -> Option<SwapExposure> {
        self.memory
            .look_again(&|file| std::fs::read_to_string(file).ok())
    }

    /// Removes everything that this agent made: its files, and its mount. For the end, when no
    /// writer lives any more, whether it ended well or not.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn clear(&self) -> io::Result<()> {
        let removed = self
            .place
            .root(&self.public)
            .and_then(|root| remove::everything(root.as_fd()));
        if let Origin::Own(_) = self.place {
            // By its root, not by its path: the directories above may be closed to a supervisor
            // that gave up its rights.
            let _ = mount::unmount_root(self.public.as_fd(), mount::PendingRequests::Kept);
        }
        Ok(removed?)
    }
}

impl Origin {
    /// The directory, writable.
    fn root(&self, public: &File) -> nix::Result<OwnedFd> {
        match self {
            Self::Own(private) => remove::open_dir(private.as_fd(), "."),
            Self::Given(_) => remove::open_dir(public.as_fd(), "."),
        }
    }

    fn unmount(&self, path: &Path) {
        if let Self::Own(_) = self {
            // It can fail only if somebody else has taken it away.
            let _ = mount::unmount(path);
        }
    }
}

/// Whether a file belongs to another user, or to a group that we are not in: then the writer has to
/// keep `CAP_CHOWN`.
pub fn needs_chown(files: &[plan::File]) -> bool {
    files
        .iter()
        .any(|file| file.owner.uid != geteuid().as_raw() || !in_group(file.owner.gid))
}

/// All that must hold before the first byte. The order matters: nothing is touched before the proof
/// and the lock.
fn check(
    place: &Origin,
    public: &File,
    swap: plan::Swap,
    files: &[plan::File],
) -> Result<MemoryBacked, RefusalCause> {
    let denied = match place {
        Origin::Own(_) => "it is hidden by another mount".to_owned(),
        Origin::Given(error) => error.to_string(),
    };
    let memory = prove(&device(public)?, swap, &denied, &|file| {
        std::fs::read_to_string(file).ok()
    })?;
    if let Origin::Given(_) = place {
        lock(public)?;
        check_writable(public)?;
    }
    let root = place
        .root(public)
        .map_err(|error| RefusalCause::Open(error.into()))?;
    remove::everything(root.as_fd()).map_err(|error| RefusalCause::Leftovers(error.into()))?;
    for file in files {
        if remove::exists(root.as_fd(), file.name.as_str()) {
            return Err(RefusalCause::Taken(file.name.clone()));
        }
        try_owner(&root, file.owner)?;
    }
    Ok(memory)
}

/// Root counts as any user here: `fetch` has no `DAC_OVERRIDE`.
fn check_writable(dir: &File) -> Result<(), RefusalCause> {
    let stat = fstat(dir).map_err(|error| RefusalCause::Open(error.into()))?;
    let need = match (stat.st_uid == geteuid().as_raw(), in_group(stat.st_gid)) {
        (true, _) => 0o700,
        (false, true) => 0o070,
        (false, false) => 0o007,
    };
    let whose = || {
        format!(
            "which is of uid {}, gid {}, mode {:04o}",
            stat.st_uid,
            stat.st_gid,
            stat.st_mode & 0o7777
        )
    };
    if stat.st_mode & need == need {
        Ok(())
    } else {
        Err(RefusalCause::NotWritable(whose()))
    }
}

/// Asks the kernel itself, with a file that has no name: capabilities, user namespaces and quotas
/// all have a say.
fn try_owner(root: &OwnedFd, owner: Owner) -> Result<(), RefusalCause> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let probe = openat(root, ".", flags, Mode::empty())
        .map_err(|error| RefusalCause::NotWritable(format!("which refuses them ({error})")))?;
    let given = fchown(
        &probe,
        Some(Uid::from_raw(owner.uid)),
        Some(Gid::from_raw(owner.gid)),
    );
    given.map_err(|error| RefusalCause::Chown(owner, error.into()))
}

fn in_group(gid: u32) -> bool {
    gid == getegid().as_raw()
        || getgroups().is_ok_and(|groups| groups.contains(&Gid::from_raw(gid)))
}

fn open(path: &Path) -> Result<File, RefusalCause> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .map_err(RefusalCause::Open)
}

/// `major:minor` of the directory's filesystem, as the kernel's list of mounts has it.
fn device(dir: &File) -> Result<String, RefusalCause> {
    let device = fstat(dir)
        .map_err(|error| RefusalCause::Open(error.into()))?
        .st_dev;
    Ok(format!("{}:{}", major(device), minor(device)))
}

/// Takes the lock that says that an agent lives. A lock on the directory itself needs no file that
/// could be left behind, and works through a read-only mount.
fn lock(dir: &File) -> Result<(), RefusalCause> {
    dir.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => RefusalCause::Held,
        TryLockError::Error(error) => RefusalCause::Open(error),
    })
}

/// Refuses a directory where an agent lives, and takes away the mount of one that died.
fn make_way(path: &Path) -> Result<(), RefusalCause> {
    let public = open(path)?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(RefusalCause::Open)?;
    match standing(&device(&public)?, path, &mountinfo, SOURCE) {
        DirectoryKind::Other => Ok(()),
        DirectoryKind::Tmpfs => lock(&public),
        DirectoryKind::OfAgent => lock(&public).and_then(|()| remove_stale(&public, path)),
    }
}

/// Empties and takes away the mount of a dead agent. Without the right to do so it stays, and is
/// refused as read-only.
fn remove_stale(public: &File, path: &Path) -> Result<(), RefusalCause> {
    let writable = mount::clone(public.as_fd())
        .and_then(|clone| mount::set_read_only(clone.as_fd(), false).map(|()| clone));
    if let Ok(clone) = writable {
        remove::everything(clone.as_fd()).map_err(|error| RefusalCause::Leftovers(error.into()))?;
        mount::unmount(path).map_err(RefusalCause::Mount)?;
    }
    Ok(())
}

/// A new tmpfs: its private mount, and the root of the public one; without `noswap` where the
/// kernel does not take it (before 6.4, or in a user namespace). The directory is locked before it
/// is attached, so that an agent that starts at the same moment never finds it without its lock, as
/// a dead agent's.
fn mount_own(filesystem: &Filesystem) -> io::Result<(OwnedFd, File)> {
    let detached = |noswap: bool| {
        let context = FsContext::open(c"tmpfs")?;
        context.set(&SuperOption::Value("source", SOURCE.to_owned()))?;
        // 0 would be no limit.
        context.set(&SuperOption::Value(
            "size",
            filesystem.size.unwrap_or(DEFAULT_SIZE).max(1).to_string(),
        ))?;
        context.set(&SuperOption::Value(
            "mode",
            format!("{:o}", filesystem.dir_mode),
        ))?;
        if noswap {
            context.set(&SuperOption::Flag("noswap"))?;
        }
        context.mount(true)
    };
    let public = match detached(true) {
        Err(error) if mount::errno(&error) == Some(libc::EINVAL) => detached(false)?,
        result => result?,
    };
    let root = File::from(remove::open_dir(public.as_fd(), ".")?);
    root.try_lock()?;
    Ok((
        mount::attach_with_twin(public.as_fd(), &filesystem.path)?,
        root,
    ))
}

/// Whether an error of the mount API says that we may not mount here at all: no capability, a
/// security module, a seccomp filter or a kernel without these calls.
fn is_denied(error: &io::Error) -> bool {
    matches!(
        mount::errno(error),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS)
    )
}
