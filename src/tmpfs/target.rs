//! The directory that files are written to. Invariants: nothing is made in it before it was proved and locked; what was
//! changed on the way to a refusal is put back.

use super::proof::{Disproof, MemoryBacked, Standing, prove, standing};
use super::remove;
use super::writer::{WriteError, Writer};
use crate::config::plan;
use crate::names::Owner;
use crate::observe::Event;
use crate::sys::mount::{self, FsContext, SuperOption};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat, major, minor};
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid, getgroups};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Size of a mount of ours where the plan has none: 4 MiB.
const DEFAULT_SIZE: u64 = 4 << 20;
/// The source that a mount of ours shows.
const SOURCE: &str = "baofs";

/// Why a directory is refused.
#[derive(Debug)]
pub enum Refusal {
    /// It cannot be opened.
    Open(PathBuf, io::Error),
    /// A mount that should work did not.
    Mount(PathBuf, io::Error),
    /// It is no memory filesystem; why baofs could not mount one itself.
    NotMemory(PathBuf, Option<String>, io::Error),
    /// It has no limit.
    Unlimited(PathBuf, &'static str),
    /// Its pages may reach a swap.
    Swappable(PathBuf, String),
    /// Another agent that lives serves there.
    Held(PathBuf),
    /// We may not make files in it.
    NotWritable(PathBuf, String),
    /// Files cannot be given to their owner.
    Chown(PathBuf, Owner, io::Error),
    /// What a dead agent left cannot be removed.
    Leftovers(PathBuf, io::Error),
    /// A name that is to be served is taken.
    Taken(PathBuf),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(path, error) => {
                write!(f, "opening {}: {error}; hint: it must be a directory that uid {} may read", path.display(), geteuid())
            }
            Self::Mount(path, error) => write!(f, "mounting a tmpfs at {}: {error}", path.display()),
            Self::NotMemory(path, kind, error) => {
                let (path, kind) = (path.display(), kind.as_deref().unwrap_or("a filesystem that /proc/self/mountinfo does not show"));
                write!(
                    f,
                    "{path} is on {kind}, not in memory, and baofs may not mount a tmpfs there ({error}): secrets are not written to a disk; "
                )?;
                write!(f, "hint: give the container a tmpfs there (--tmpfs {path}:size=4m,mode=1777), or start as root with CAP_SYS_ADMIN")
            }
            Self::Unlimited(path, why) => {
                write!(f, "{} has no limit of size: {why}; hint: mount a tmpfs with size=4m", path.display())
            }
            Self::Swappable(path, why) => {
                write!(f, "files in {} could be written to a swap: {why}; hint: ", path.display())?;
                f.write_str("mount the tmpfs with noswap (Linux 6.4), set memory.swap.max to 0 (cgroup v2), or accept it with --allow-swap")
            }
            Self::Held(path) => {
                write!(f, "another agent serves {}; hint: a directory of its own for each, or stop the other first", path.display())
            }
            Self::NotWritable(path, whose) => {
                write!(f, "uid {} may not write to {}, which is {whose}; ", geteuid(), path.display())?;
                f.write_str("hint: mount the tmpfs with uid= of that user, or mode=1777, or start as its owner")
            }
            Self::Chown(path, owner, error) => {
                write!(
                    f,
                    "files for uid {}, gid {} cannot be made in {} by uid {}: {error}; ",
                    owner.uid,
                    owner.gid,
                    path.display(),
                    geteuid()
                )?;
                f.write_str("hint: add CAP_CHOWN, or run as that user")
            }
            Self::Leftovers(path, error) => {
                write!(f, "what a dead agent left in {} cannot be removed: {error}; hint: remove its `..` names by hand", path.display())
            }
            Self::Taken(path) => write!(f, "{} exists and is not ours; hint: remove it or serve another name", path.display()),
        }
    }
}

impl std::error::Error for Refusal {}

/// Whose mount it is.
#[derive(Debug)]
enum Place {
    /// Ours: files are written through this private mount, which has no path.
    Own(OwnedFd),
    /// One that was there; why we could not make one.
    Given(io::Error),
}

/// A directory that is proved to be memory, and held for this agent as long as it or a child of it lives.
#[derive(Debug)]
pub struct Target {
    /// Where applications find it.
    path: PathBuf,
    /// Whose mount it is.
    place: Place,
    /// The directory as `path` shows it. A lock on it says that an agent lives; fork shares it, exec closes it.
    public: File,
    /// Mode of the directories in it.
    dir_mode: u32,
    /// Whether a file belongs to somebody else.
    needs_chown: bool,
}

impl Target {
    /// Mounts a tmpfs at the path if that is allowed, else takes what is there; proves it, locks it, removes what a dead
    /// agent left. Called once, before any fork, with the rights that the agent was started with.
    ///
    /// # Errors
    /// As `Refusal` says; then nothing was made, and nothing of ours is mounted.
    pub fn prepare(filesystem: &plan::Filesystem, files: &[plan::File]) -> Result<Self, Refusal> {
        let path = &filesystem.path;
        make_way(path)?;
        let place = match mount_own(filesystem) {
            Ok(private) => Place::Own(private),
            Err(error) if is_denied(&error) => Place::Given(error),
            Err(error) => return Err(Refusal::Mount(path.clone(), error)),
        };
        let public = open(path)?;
        let target = Self { path: path.clone(), place, public, dir_mode: filesystem.dir_mode, needs_chown: needs_chown(files) };
        match target.check(filesystem.swap, files) {
            Ok(memory) => {
                if let Some(cause) = memory.swap_risk() {
                    Event::SwapAllowed { cause: &cause }.emit();
                }
                Ok(target)
            }
            Err(refusal) => {
                target.unmount();
                Err(refusal)
            }
        }
    }

    /// Whether `fetch` has to keep `CAP_CHOWN`.
    #[must_use]
    pub fn needs_chown(&self) -> bool {
        self.needs_chown
    }

    /// The writer, for the role that writes; once.
    ///
    /// # Errors
    /// When the directory of contents cannot be made.
    pub fn writer(&self, files: &[plan::File]) -> Result<Writer, WriteError> {
        let failed = |error: nix::Error| WriteError::Io { doing: format!("opening {}", self.path.display()), error: error.into() };
        Writer::new(self.root().map_err(failed)?, self.dir_mode, files)
    }

    /// Removes everything that this agent made: its files, and its mount. For the end, when no writer lives any more,
    /// whether it ended well or not.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn clear(self) -> io::Result<()> {
        let removed = self.root().and_then(|root| remove::everything(root.as_fd()));
        self.unmount();
        Ok(removed?)
    }

    /// The directory, writable.
    fn root(&self) -> nix::Result<OwnedFd> {
        match &self.place {
            Place::Own(private) => remove::open_dir(private.as_fd(), "."),
            Place::Given(_) => remove::open_dir(self.public.as_fd(), "."),
        }
    }

    fn unmount(&self) {
        if let Place::Own(_) = self.place {
            // It can fail only if somebody else has taken it away.
            let _ = mount::unmount(&self.path);
        }
    }

    /// All that must hold before the first byte. The order matters: nothing is made before the proof.
    fn check(&self, swap: plan::Swap, files: &[plan::File]) -> Result<MemoryBacked, Refusal> {
        let path = || self.path.clone();
        let device = device(&self.public).map_err(|error| Refusal::Open(path(), error))?;
        let memory = prove(&device, swap, &|file| std::fs::read_to_string(file).ok()).map_err(|disproof| self.refusal(disproof))?;
        lock(&self.public, &self.path)?;
        if let Some(whose) = self.unwritable() {
            return Err(Refusal::NotWritable(path(), whose));
        }
        let root = self.root().map_err(|error| Refusal::Open(path(), error.into()))?;
        remove::everything(root.as_fd()).map_err(|error| Refusal::Leftovers(path(), error.into()))?;
        let taken = files.iter().find(|file| remove::exists(root.as_fd(), file.name.as_str()));
        taken.map_or(Ok(()), |file| Err(Refusal::Taken(self.path.join(file.name.as_str()))))?;
        self.try_owners(&root, files)?;
        Ok(memory)
    }

    fn refusal(&self, disproof: Disproof) -> Refusal {
        let path = self.path.clone();
        let denied = match &self.place {
            Place::Given(error) => io::Error::new(error.kind(), error.to_string()),
            Place::Own(_) => io::Error::other("it did, and the mount is not there"),
        };
        match disproof {
            Disproof::NotMemory(kind) => Refusal::NotMemory(path, kind, denied),
            Disproof::Unlimited(why) => Refusal::Unlimited(path, why),
            Disproof::Swappable(why) => Refusal::Swappable(path, why.to_string()),
        }
    }

    /// Whose a given directory is, if we cannot make names in it. Root counts as any user: `fetch` has no `DAC_OVERRIDE`.
    fn unwritable(&self) -> Option<String> {
        let stat = fstat(&self.public).ok()?;
        let group = stat.st_gid == getegid().as_raw() || getgroups().is_ok_and(|groups| groups.iter().any(|g| g.as_raw() == stat.st_gid));
        let need = match (stat.st_uid == geteuid().as_raw(), group) {
            (true, _) => 0o700,
            (false, true) => 0o070,
            (false, false) => 0o007,
        };
        let writable = matches!(self.place, Place::Own(_)) || stat.st_mode & need == need;
        (!writable).then(|| format!("of uid {}, gid {}, mode {:04o}", stat.st_uid, stat.st_gid, stat.st_mode & 0o7777))
    }

    /// Asks the kernel itself, with a file that has no name: capabilities, user namespaces and quotas all have a say.
    fn try_owners(&self, root: &OwnedFd, files: &[plan::File]) -> Result<(), Refusal> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        for file in files {
            let probe = nix::fcntl::openat(root, ".", flags, Mode::empty());
            let probe = probe.map_err(|error| Refusal::NotWritable(self.path.clone(), format!("refusing new files ({error})")))?;
            let Owner { uid, gid } = file.owner;
            let given = fchown(&probe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            given.map_err(|error| Refusal::Chown(self.path.clone(), file.owner, error.into()))?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, Refusal> {
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
    File::options().read(true).custom_flags(flags).open(path).map_err(|error| Refusal::Open(path.to_owned(), error))
}

/// `major:minor` of the directory's filesystem, as the kernel's list of mounts has it.
fn device(dir: &File) -> io::Result<String> {
    let device = fstat(dir)?.st_dev;
    Ok(format!("{}:{}", major(device), minor(device)))
}

/// Takes the lock that says that an agent lives. A lock on the directory itself needs no file that could be left behind,
/// and works through a read-only mount.
fn lock(dir: &File, path: &Path) -> Result<(), Refusal> {
    dir.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Refusal::Held(path.to_owned()),
        TryLockError::Error(error) => Refusal::Open(path.to_owned(), error),
    })
}

/// Refuses a directory where an agent lives, and takes away the mount of one that died.
fn make_way(path: &Path) -> Result<(), Refusal> {
    let failed = |error| Refusal::Open(path.to_owned(), error);
    let public = open(path)?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    match standing(&device(&public).map_err(failed)?, path, &mountinfo, SOURCE) {
        Standing::Other => Ok(()),
        Standing::Tmpfs => lock(&public, path),
        Standing::OfAgent => lock(&public, path).and_then(|()| remove_stale(&public, path)),
    }
}

/// Empties and takes away the mount of a dead agent. Without the right to do so it stays, and is refused as read-only.
fn remove_stale(public: &File, path: &Path) -> Result<(), Refusal> {
    let writable = mount::clone(public.as_fd()).and_then(|clone| mount::set_read_only(clone.as_fd(), false).map(|()| clone));
    if let Ok(clone) = writable {
        remove::everything(clone.as_fd()).map_err(|error| Refusal::Leftovers(path.to_owned(), error.into()))?;
        mount::unmount(path).map_err(|error| Refusal::Mount(path.to_owned(), error))?;
    }
    Ok(())
}

/// A private and a public mount of a new tmpfs; without `noswap` where the kernel does not take it (before 6.4, or in a
/// user namespace).
fn mount_own(filesystem: &plan::Filesystem) -> io::Result<OwnedFd> {
    let context = |noswap: bool| {
        let context = FsContext::open(c"tmpfs")?;
        context.set(&SuperOption::Value("source", SOURCE.to_owned()))?;
        context.set(&SuperOption::Value("size", filesystem.size.unwrap_or(DEFAULT_SIZE).max(1).to_string()))?;
        context.set(&SuperOption::Value("mode", format!("{:o}", filesystem.dir_mode)))?;
        if noswap {
            context.set(&SuperOption::Flag("noswap"))?;
        }
        Ok(context)
    };
    match mount::pair(|| context(true), &filesystem.path) {
        Err(error) if mount::errno(&error) == Some(libc::EINVAL) => mount::pair(|| context(false), &filesystem.path),
        result => result,
    }
}

/// Whether an error of the mount API says that we may not mount here at all: no capability, a security module, a seccomp
/// filter or a kernel without these calls.
fn is_denied(error: &io::Error) -> bool {
    matches!(mount::errno(error), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

/// Whether a file belongs to another user, or to a group that we are not in.
fn needs_chown(files: &[plan::File]) -> bool {
    let (uid, gid, groups) = (geteuid().as_raw(), getegid().as_raw(), getgroups().unwrap_or_default());
    let in_group = |group: u32| group == gid || groups.iter().any(|g| g.as_raw() == group);
    files.iter().any(|file| file.owner.uid != uid || !in_group(file.owner.gid))
}
