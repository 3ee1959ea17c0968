//! Mounts the filesystem: one superblock, a private read-write mount for announcements and a public
//! read-only one for everybody. Invariant: only the process that mounted unmounts; forked children
//! let go of descriptors and no more.

use super::refusal::{Refusal, Rights, Step};
use super::session::Init;
use crate::memory::bounce::Bounce;
use crate::sys::mount::{self, FsContext, PendingRequests, SuperOption};
use crate::sys::mounts::{self, Ground, SOURCE};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getegid, geteuid, getpid};
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// How many dead mounts may lie on each other at the path.
const STALE: usize = 64;
/// How long the server of a mount that lies there may take to answer. A `serve` that died is born
/// again within this time.
const PATIENCE: Duration = Duration::from_secs(8);

/// The filesystem, mounted. It holds no `Drop` of its own, so that its parts can be handed out.
#[derive(Debug)]
pub struct FuseMount {
    /// `/dev/fuse`, from which `serve` answers.
    pub device: OwnedFd,
    /// The kernel's first request on it.
    pub init: Init,
    /// The private read-write mount, through which `fetch` announces.
    pub private: OwnedFd,
    /// The mount that applications see.
    pub public: Public,
    /// What it lies on.
    pub ground: Ground,
}

/// The public mount, by its root; unmounted on drop by the process that made it.
#[derive(Debug)]
pub struct Public {
    root: OwnedFd,
    maker: Pid,
}

impl FuseMount {
    /// Mounts at `path`, with `dir_mode` as the directory's permission bits. Dead mounts there are
    /// cleared first; the directory is made (0755) where it is missing. Nothing answers before
    /// `serve` runs.
    ///
    /// An agent that lives is never hidden: neither one that is there, nor one that comes at the
    /// same moment. Two agents in two mount namespaces may mount over one directory that both
    /// share, since neither hides the other's mount; where mounts propagate from one to the
    /// other, the second agent sees the first one's and is refused.
    ///
    /// # Errors
    /// The cause, with the remedy; `Held` when another agent serves the path.
    pub fn create(path: &Path, dir_mode: u32) -> Result<Self, Refusal> {
        make_way(path)?;
        make_directory(path)?;
        let ground = Ground::survey(path);
        let device = open_device()?;
        let root = configure(&device, dir_mode)
            .and_then(|context| context.mount(true))
            .map_err(|error| refused(&error))?;
        let private =
            mount::attach_with_twin(root.as_fd(), path).map_err(|error| refused(&error))?;
        let public = Public {
            root,
            maker: getpid(),
        };
        if mounts::hides_agent(public.as_fd()).map_err(|error| unusable(path, &error))? {
            return Err(Refusal::Held(path.to_owned()));
        }
        let init = Init::take(device.as_fd()).map_err(|error| {
            Refusal::Other(format!("the kernel does not begin a session: {error}"))
        })?;
        Ok(Self {
            device,
            init,
            private,
            public,
            ground,
        })
    }
}

impl Public {
    /// Takes it away, whoever calls; files that are open stay readable while `serve` runs.
    pub fn unmount(&self) {
        // Already gone when somebody else unmounted it: nothing is left to do then.
        let _ = mount::unmount_root(self.root.as_fd(), PendingRequests::Kept);
    }

    /// The same, and the session with the kernel is aborted: every request under way ends with an
    /// error, and so does each later one of an open file. It works although `serve` hangs, or
    /// is killed and not dead yet.
    pub fn abort(&self) {
        let _ = mount::unmount_root(self.root.as_fd(), PendingRequests::Aborted);
    }
}

impl AsFd for Public {
    /// Its root, which keeps the filesystem alive in whoever holds it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Drop for Public {
    fn drop(&mut self) {
        if getpid() == self.maker {
            self.unmount();
        }
    }
}

/// Removes mounts whose agent or server is dead, and refuses the path of an agent that lives.
fn make_way(path: &Path) -> Result<(), Refusal> {
    for _ in 0..STALE {
        // O_PATH asks nothing of a server. What cannot be opened even so is missing, or
        // `make_directory` says why.
        let Ok(top) = open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        ) else {
            return Ok(());
        };
        match standing(&top).map_err(|error| unusable(path, &error))? {
            Standing::Free => return Ok(()),
            Standing::Agent => return Err(Refusal::Held(path.to_owned())),
            // By its root, not by the path: another agent that starts now may have removed it and
            // mounted there.
            Standing::Dead => match mount::unmount_root(top.as_fd(), PendingRequests::Kept) {
                Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
                    return Err(unusable(
                        path,
                        &format!("a dead mount lies there and cannot be removed: {error}"),
                    ));
                }
                Ok(()) | Err(_) => {}
            },
        }
    }
    Err(unusable(path, &"too many dead mounts lie there"))
}

/// What a directory is on, for the question whether it may be mounted over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// A filesystem without an agent.
    Free,
    /// The mount of an agent that lives, or a tmpfs that one writes to.
    Agent,
    /// A mount whose server is dead, or the tmpfs of a dead agent.
    Dead,
}

fn standing(top: &OwnedFd) -> io::Result<Standing> {
    let mountinfo = mounts::mountinfo()?;
    let Some(mount) = mounts::mount_of(top.as_fd(), &mountinfo)? else {
        return Ok(Standing::Free);
    };
    Ok(match (mount.kind, mount.is_of_agent()) {
        // An agent that writes to a tmpfs locks its directory, whoever mounted that.
        ("tmpfs", _) if is_locked(top) => Standing::Agent,
        ("tmpfs", true) => Standing::Dead,
        (kind, _) if kind.starts_with("fuse") && is_dead(top)? => Standing::Dead,
        (_, true) => Standing::Agent,
        (_, false) => Standing::Free,
    })
}

/// Whether an agent holds the directory. One that cannot be opened is not held: agents lock what
/// they can open.
fn is_locked(directory: &OwnedFd) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = openat(directory, ".", flags, Mode::empty()).map(File::from);
    opened.is_ok_and(|directory| matches!(directory.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Whether the server of a FUSE mount is gone, which every request is told ("Transport endpoint is
/// not connected"). One that stands still lives. It is asked in a thread of its own, which ends
/// with the answer: no call on a file of a server that stands still can be given up.
fn is_dead(root: &OwnedFd) -> io::Result<bool> {
    let (root, (say, answer)) = (root.try_clone()?, channel());
    let asks = thread::Builder::new()
        .name("ask".to_owned())
        .spawn(move || {
            // Not stat(2): the kernel answers it from attributes that it remembers, after the
            // server's death too.
            let opened = openat(
                &root,
                ".",
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            );
            // Nobody hears what comes too late.
            let _ = say.send(opened.err());
        })?;
    let Ok(errno) = answer.recv_timeout(PATIENCE) else {
        return Ok(false);
    };
    // The caller has one thread again before it forks.
    let _ = asks.join();
    // The second one where the server went while it was asked.
    Ok(matches!(errno, Some(Errno::ENOTCONN | Errno::ECONNABORTED)))
}

fn make_directory(path: &Path) -> Result<(), Refusal> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| unusable(path, &error))
}

fn open_device() -> Result<OwnedFd, Refusal> {
    open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Refusal::of(Step::Device, errno, rights()))
}

/// A superblock bound to the device. `max_read` keeps each reply within the bounce buffer.
fn configure(device: &OwnedFd, dir_mode: u32) -> io::Result<FsContext> {
    let context = FsContext::open(c"fuse")?;
    for option in [
        SuperOption::Value("source", SOURCE.to_owned()),
        SuperOption::Value("fd", device.as_raw_fd().to_string()),
        SuperOption::Value("rootmode", format!("{:o}", libc::S_IFDIR | dir_mode)),
        SuperOption::Value("user_id", geteuid().to_string()),
        SuperOption::Value("group_id", getegid().to_string()),
        SuperOption::Value("max_read", Bounce::SIZE.to_string()),
        SuperOption::Flag("allow_other"),
        SuperOption::Flag("default_permissions"),
    ] {
        context.set(&option)?;
    }
    Ok(context)
}

fn refused(error: &io::Error) -> Refusal {
    let in_its_words = Refusal::Other(error.to_string());
    let Some((call, errno)) = mount::failed(error) else {
        return in_its_words;
    };
    let refusal = Refusal::of(Step::Mount(call), Errno::from_raw(errno), rights());
    // The failed call knows more than the table: what it was about.
    if matches!(refusal, Refusal::Other(_)) {
        in_its_words
    } else {
        refusal
    }
}

fn rights() -> Rights {
    Rights::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn unusable(path: &Path, cause: &dyn ToString) -> Refusal {
    Refusal::MountPoint {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}
