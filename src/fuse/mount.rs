//! Mounts the filesystem: one superblock, a private read-write mount for announcements and a public read-only one for
//! everybody. Invariant: only the process that mounted unmounts; forked children let go of descriptors and no more.

use super::refusal::{Refusal, Rights, Step};
use super::session::Init;
use crate::memory::locked::Bounce;
use crate::sys::mount::{self, FsContext, Requests, SuperOption};
use crate::sys::mounts::SOURCE;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getegid, geteuid, getpid};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// How many dead mounts may lie on each other at the path.
const STALE: usize = 64;

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
}

/// The public mount, by its root; unmounted on drop by the process that made it.
#[derive(Debug)]
pub struct Public {
    root: OwnedFd,
    maker: Pid,
}

impl FuseMount {
    /// Mounts at `path`, with `dir_mode` as the directory's permission bits. Dead mounts there are cleared first; the
    /// directory is made (0755) where it is missing. Nothing answers before `serve` runs.
    ///
    /// # Errors
    /// The cause, with the remedy.
    pub fn create(path: &Path, dir_mode: u32) -> Result<Self, Refusal> {
        clear_stale(path)?;
        make_directory(path)?;
        let device = open_device()?;
        let (private, root) = mount::pair(|| configure(&device, dir_mode), path).map_err(|error| refused(&error))?;
        let public = Public { root, maker: getpid() };
        let init = Init::take(device.as_fd()).map_err(|error| Refusal::Other(format!("the kernel does not begin a session: {error}")))?;
        Ok(Self { device, init, private, public })
    }
}

impl Public {
    /// Takes it away, whoever calls; files that are open stay readable while `serve` runs.
    pub fn unmount(&self) {
        // Already gone when somebody else unmounted it: nothing is left to do then.
        let _ = mount::unmount_root(self.root.as_fd(), Requests::Kept);
    }

    /// The same, and the session with the kernel is aborted: every request under way ends with an error, and so does each later one of
    /// an open file. It works although `serve` hangs, or is killed and not dead yet.
    pub fn abort(&self) {
        let _ = mount::unmount_root(self.root.as_fd(), Requests::Aborted);
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

/// Removes mounts whose server is dead ("Transport endpoint is not connected").
fn clear_stale(path: &Path) -> Result<(), Refusal> {
    for _ in 0..STALE {
        // Not stat(2): the kernel answers it from attributes that it remembers, after the server's death too.
        if open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).err() != Some(Errno::ENOTCONN) {
            return Ok(());
        }
        mount::unmount(path).map_err(|error| unusable(path, &format!("a dead mount lies there and cannot be removed: {error}")))?;
    }
    Err(unusable(path, &"too many dead mounts lie there"))
}

fn make_directory(path: &Path) -> Result<(), Refusal> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| unusable(path, &error))
}

fn open_device() -> Result<OwnedFd, Refusal> {
    open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| Refusal::of(Step::Device, errno, rights()))
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
    let Some((call, errno)) = mount::failed(error) else { return in_its_words };
    let refusal = Refusal::of(Step::Mount(call), Errno::from_raw(errno), rights());
    // The failed call knows more than the table: what it was about.
    if matches!(refusal, Refusal::Other(_)) { in_its_words } else { refusal }
}

fn rights() -> Rights {
    Rights::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn unusable(path: &Path, cause: &dyn ToString) -> Refusal {
    Refusal::MountPoint { path: path.to_owned(), cause: cause.to_string() }
}
