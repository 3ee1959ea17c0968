//! Mounts the filesystem: one superblock, a private read-write mount for announcements and a public
//! read-only mount for applications. Invariant: only the process that mounted unmounts on drop;
//! forked children only close descriptors.

use super::refusal::{Refusal, Rights, Step};
use super::session;
use crate::memory::bounce::Bounce;
use crate::sys::caps::{self, Capability};
use crate::sys::mount::{self, FsContext, MountError};
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

/// The number of dead mounts, one on top of the other, that are removed from the path.
const STALE: usize = 64;
/// The time that the server of an existing mount has to answer. The successor of a dead `serve`
/// starts within this time.
const PATIENCE: Duration = Duration::from_secs(8);

/// The mounted filesystem. The struct has no `Drop`, so that the parts can be moved out.
#[derive(Debug)]
pub struct FuseMount {
    /// `/dev/fuse`, from which `serve` answers.
    pub device: OwnedFd,
    /// The kernel's first request on the device.
    pub init: Vec<u8>,
    /// The private read-write mount, through which `fetch` announces.
    pub private: OwnedFd,
    /// The mount for applications.
    pub public: Public,
    /// The directory under the public mount.
    pub ground: Ground,
}

/// The public mount, held by its root directory; unmounted on drop by the process that mounted.
#[derive(Debug)]
pub struct Public {
    root: OwnedFd,
    maker: Pid,
}

impl FuseMount {
    /// Mounts at `path`, with `dir_mode` as the directory's permission bits. Removes dead mounts
    /// there first, and makes a missing directory (0755). Requests wait until `serve` runs.
    ///
    /// A living agent is never hidden, even if both agents start at the same moment. Two agents in
    /// two mount namespaces may mount over one shared directory, because neither hides the other's
    /// mount; where mounts propagate between the namespaces, the second agent sees the first
    /// agent's mount and is refused.
    ///
    /// # Errors
    /// The cause, with the remedy; `Held` when another agent serves the path.
    pub fn create(path: &Path, dir_mode: u32) -> Result<Self, Refusal> {
        make_way(path)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|error| unusable(path, &error))?;
        let ground = Ground::survey(path);
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let device = open("/dev/fuse", flags, Mode::empty())
            .map_err(|errno| Refusal::of(Step::Device, errno, rights()))?;
        let root = configure(&device, dir_mode)?.mount()?;
        let private = mount::attach_with_twin(root.as_fd(), path)?;
        let public = Public {
            root,
            maker: getpid(),
        };
        let hides_agent = mounts::hides_agent(public.as_fd());
        if hides_agent.map_err(|error| unusable(path, &error))? {
            return Err(Refusal::Held(path.to_owned()));
        }
        let init = session::take_init(device.as_fd()).map_err(|error| {
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
    /// Unmounts and aborts the session with the kernel: every pending and later request ends with
    /// an error. Works although `serve` hangs, or was killed and is not dead yet.
    pub fn abort(&self) {
        let _ = mount::abort_root(self.root.as_fd());
    }
}

impl AsFd for Public {
    /// The root directory; an open descriptor keeps the filesystem alive.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Drop for Public {
    fn drop(&mut self) {
        if getpid() == self.maker {
            // Open files stay readable while `serve` runs. Fails only for a mount that another
            // process removed.
            let _ = mount::unmount_root(self.root.as_fd());
        }
    }
}

/// Removes mounts of dead agents and dead servers; refuses the path of a living agent.
fn make_way(path: &Path) -> Result<(), Refusal> {
    for _ in 0..STALE {
        // O_PATH sends no request to a server. On an error the directory is missing, or making the
        // directory fails with the reason.
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
            // By the root, not by the path: another agent that starts now may have removed the
            // dead mount (EINVAL) and mounted there.
            Standing::Dead => match mount::unmount_root(top.as_fd()) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(errno) => {
                    let cause = format!("a dead mount lies there and cannot be removed: {errno}");
                    return Err(unusable(path, &cause));
                }
            },
        }
    }
    Err(unusable(path, &"too many dead mounts lie there"))
}

/// The filesystem under a directory: decides whether FUSE may be mounted over the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// A filesystem without an agent.
    Free,
    /// The mount of a living agent, or a tmpfs that a living agent writes to.
    Agent,
    /// A mount with a dead server, or the tmpfs of a dead agent.
    Dead,
}

fn standing(top: &OwnedFd) -> io::Result<Standing> {
    let mountinfo = mounts::mountinfo()?;
    let Some(mount) = mounts::mount_of(top.as_fd(), &mountinfo)? else {
        return Ok(Standing::Free);
    };
    let is_fuse = mount.kind.starts_with("fuse");
    Ok(match (mount.kind, mount.is_of_agent()) {
        // An agent locks the directory of its tmpfs, whether or not the agent mounted the tmpfs.
        ("tmpfs", _) if is_locked(top) => Standing::Agent,
        ("tmpfs", true) => Standing::Dead,
        _ if is_fuse && is_dead(top)? => Standing::Dead,
        (_, true) => Standing::Agent,
        (_, false) => Standing::Free,
    })
}

/// Whether an agent holds the directory. Agents lock only directories that they can open.
fn is_locked(directory: &OwnedFd) -> bool {
    let Ok(directory) = open_readable(directory) else {
        return false;
    };
    matches!(directory.try_lock(), Err(TryLockError::WouldBlock))
}

/// Whether the server of a FUSE mount is dead: then every request fails ("Transport endpoint is
/// not connected"). A server that does not answer in time counts as alive. The request is made by
/// a thread, because a request to a server that hangs cannot be cancelled.
fn is_dead(root: &OwnedFd) -> io::Result<bool> {
    let root = root.try_clone()?;
    let (result, answer) = channel();
    let request = thread::Builder::new()
        .name("request".to_owned())
        .spawn(move || {
            // Not stat(2): the kernel answers from cached attributes after the server's death, too.
            let error = open_readable(&root).err();
            // The receiver is gone if the answer comes too late.
            let _ = result.send(error);
        })?;
    let Ok(error) = answer.recv_timeout(PATIENCE) else {
        return Ok(false);
    };
    // The caller must have one thread before the first fork.
    let _ = request.join();
    // ECONNABORTED: the server died during the request.
    Ok(matches!(error, Some(Errno::ENOTCONN | Errno::ECONNABORTED)))
}

/// Opens the directory of an `O_PATH` descriptor for reading.
fn open_readable(directory: &OwnedFd) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(directory, ".", flags, Mode::empty())?.into())
}

/// A superblock bound to the device. `max_read` keeps each reply within the bounce buffer.
fn configure(device: &OwnedFd, dir_mode: u32) -> Result<FsContext, MountError> {
    let context = FsContext::open(c"fuse")?;
    context.set(c"source", SOURCE)?;
    context.set(c"fd", device.as_raw_fd())?;
    let root_mode = libc::S_IFDIR | dir_mode;
    context.set(c"rootmode", format_args!("{root_mode:o}"))?;
    context.set(c"user_id", geteuid())?;
    context.set(c"group_id", getegid())?;
    context.set(c"max_read", Bounce::SIZE)?;
    context.set_flag(c"allow_other")?;
    context.set_flag(c"default_permissions")?;
    Ok(context)
}

impl From<MountError> for Refusal {
    fn from(error: MountError) -> Self {
        let step = Step::Mount(error.call);
        let refusal = Self::of(step, error.errno, rights());
        // For a failure that the table does not know, the error says more: the object of the call.
        if matches!(refusal, Self::Other(_)) {
            Self::Other(error.to_string())
        } else {
            refusal
        }
    }
}

fn rights() -> Rights {
    match caps::has(Capability::SysAdmin) {
        Ok(true) => Rights::Effective,
        _ if caps::is_bounding(Capability::SysAdmin) => Rights::BoundingOnly,
        _ => Rights::None,
    }
}

fn unusable(path: &Path, cause: &dyn ToString) -> Refusal {
    Refusal::MountPoint {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}
