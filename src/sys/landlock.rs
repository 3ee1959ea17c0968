//! Landlock (`landlock(7)`): a process gives up files, TCP ports, signals and abstract sockets
//! except for a list, for ever. Invariant: a ruleset denies everything that the kernel can deny;
//! only `allow` and `allow_connect` permit something.
//!
//! The ABI of a kernel says what Landlock can deny: 1 (Linux 5.13) files; 2 (5.19) links and
//! renames across directories; 3 (6.2) truncation; 4 (6.7) TCP ports; 5 (6.10) commands to devices;
//! 6 (6.12) signals and abstract sockets. Files that were open before stay usable, and no ABI
//! denies `chmod`, `chown`, `stat` and UDP.

use nix::errno::Errno;
use nix::sys::prctl;
use std::io;
use std::ops::BitOr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Rights to files (`LANDLOCK_ACCESS_FS_*`), beneath a directory or of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRights(u64);

impl FileRights {
    /// Write to a file.
    pub const WRITE: Self = Self(1 << 1);
    /// Read a file.
    pub const READ: Self = Self(1 << 2);
    /// List a directory.
    pub const LIST: Self = Self(1 << 3);
    /// Remove or rename a directory.
    pub const REMOVE_DIR: Self = Self(1 << 4);
    /// Remove or rename a file that is not a directory.
    pub const REMOVE: Self = Self(1 << 5);
    /// Make a directory.
    pub const MAKE_DIR: Self = Self(1 << 7);
    /// Make a regular file, or rename a regular file to this name.
    pub const MAKE: Self = Self(1 << 8);
    /// Make a symbolic link.
    pub const MAKE_LINK: Self = Self(1 << 12);
    /// Truncate a file (known since ABI 3, free before).
    pub const TRUNCATE: Self = Self(1 << 14);
    /// The rights for a rule on a file.
    const OF_FILES: Self = Self(Self::WRITE.0 | Self::READ.0 | Self::TRUNCATE.0);

    /// All rights that ABI `abi` knows.
    fn known(abi: u32) -> Self {
        let count = match abi {
            0 => 0,
            1 => 13,
            2 => 14,
            3 | 4 => 15,
            _ => 16,
        };
        Self((1 << count) - 1)
    }
}

impl BitOr for FileRights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;
/// `LANDLOCK_RULE_PATH_BENEATH` and `LANDLOCK_RULE_NET_PORT`.
const PATH_BENEATH: u32 = 1;
const NET_PORT: u32 = 2;
/// `LANDLOCK_ACCESS_NET_*`.
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 1 << 1;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`.
const SCOPES: u64 = 0b11;

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneathAttr {
    access: u64,
    parent: i32,
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPortAttr {
    access: u64,
    port: u64,
}

/// The ABI of this kernel, at least 1.
///
/// # Errors
/// `ENOSYS` before Linux 5.13, or where a filter hides the call; `EOPNOTSUPP` where Landlock is not
/// enabled at boot.
pub fn abi() -> io::Result<u32> {
    let null = ptr::null::<u64>();
    // SAFETY: with VERSION the call takes a null pointer and length 0.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0, VERSION) };
    let abi = Errno::result(abi)?;
    u32::try_from(abi).map_err(io::Error::other)
}

/// The rights to keep; none at first.
#[derive(Debug)]
pub struct Ruleset {
    /// The kernel's ruleset.
    rules: OwnedFd,
    /// The ABI of the ruleset.
    abi: u32,
}

impl Ruleset {
    /// A ruleset that denies everything that ABI `abi` can deny.
    ///
    /// # Errors
    /// Same as [`abi`]; `EINVAL` for an ABI that this kernel does not have.
    pub fn new(abi: u32) -> io::Result<Self> {
        // `struct landlock_ruleset_attr` of ABI 6: denied rights to files and ports, and scopes.
        // Older kernels take the beginning of the struct.
        let attr = [FileRights::known(abi).0, BIND_TCP | CONNECT_TCP, SCOPES];
        let attr = match abi {
            0..=3 => &attr[..1],
            4 | 5 => &attr[..2],
            _ => &attr[..],
        };
        let at = attr.as_ptr();
        let len = size_of_val(attr);
        // SAFETY: `attr` has `len` bytes and lives through the call; the call only reads `attr`.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, at, len, 0) };
        let fd = Errno::result(fd)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the call made the descriptor (close-on-exec), and no other code has seen the
        // number.
        let rules = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { rules, abi })
    }

    /// Allows `access` to the file `at`, or to everything beneath the directory `at` (an `O_PATH`
    /// descriptor is enough). The rule holds for the inode, also after a rename. Rights that the
    /// ABI does not know, and rights to directories for a file, are left out.
    ///
    /// # Errors
    /// `EBADFD` for a descriptor of no file.
    pub fn allow(&self, at: BorrowedFd<'_>, access: FileRights) -> io::Result<()> {
        let mut access = access.0 & FileRights::known(self.abi).0;
        let stat = nix::sys::stat::fstat(at)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            access &= FileRights::OF_FILES.0;
        }
        if access == 0 {
            // The kernel refuses a rule without a right.
            return Ok(());
        }
        let parent = at.as_raw_fd();
        self.add_rule(PATH_BENEATH, &PathBeneathAttr { access, parent })
    }

    /// Allows TCP connections to `port` of any address. Does nothing before ABI 4, where all ports
    /// are allowed.
    ///
    /// # Errors
    /// None is known.
    pub fn allow_connect(&self, port: u16) -> io::Result<()> {
        if self.abi < 4 {
            return Ok(());
        }
        let attr = NetPortAttr {
            access: CONNECT_TCP,
            port: port.into(),
        };
        self.add_rule(NET_PORT, &attr)
    }

    /// `landlock_add_rule(2)` with the struct of a rule of this kind.
    fn add_rule<T>(&self, kind: u32, attr: &T) -> io::Result<()> {
        let rules = self.rules.as_raw_fd();
        let attr = ptr::from_ref(attr);
        // SAFETY: both callers pass the struct of `kind`, which lives through the call; the call
        // only reads the struct.
        let done = unsafe { libc::syscall(libc::SYS_landlock_add_rule, rules, kind, attr, 0) };
        Errno::result(done)?;
        Ok(())
    }

    /// Gives up all other rights, for the calling thread and for everything that the thread starts.
    /// Sets `no_new_privs`, which Landlock requires.
    ///
    /// # Errors
    /// `E2BIG` when 16 rulesets hold for the thread already.
    pub fn restrict(self) -> io::Result<()> {
        prctl::set_no_new_privs()?;
        // SAFETY: all arguments are numbers.
        let done =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.rules.as_raw_fd(), 0) };
        Errno::result(done)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::thread;

    #[test]
    fn each_abi_knows_what_its_kernel_does() {
        for (abi, highest) in [
            (1, 1 << 12),
            (2, 1 << 13),
            (3, 1 << 14),
            (4, 1 << 14),
            (5, 1 << 15),
            (6, 1 << 15),
            (99, 1 << 15),
        ] {
            assert_eq!(FileRights::known(abi).0, highest * 2 - 1, "ABI {abi}");
        }
        assert_eq!(FileRights::known(0).0, 0);
    }

    /// Rulesets of all ABIs up to the kernel's ABI hold, and only for the restricted thread.
    #[test]
    fn a_thread_keeps_what_it_names() {
        let Ok(newest) = abi() else { return };
        let dir = tempfile::tempdir().expect("a directory");
        let (kept, other) = (dir.path().join("kept"), dir.path().join("other"));
        for path in [&kept, &other] {
            fs::create_dir(path).expect("a directory is made");
            fs::write(path.join("file"), "text").expect("a file is written");
        }
        for abi in 1..=newest {
            let (kept, other) = (kept.clone(), other.clone());
            let restricted = move || {
                let rules = Ruleset::new(abi).expect("this kernel has the ABI");
                let open = File::open(&kept).expect("the directory is there");
                rules
                    .allow(open.as_fd(), FileRights::READ | FileRights::TRUNCATE)
                    .expect("a rule");
                let file = File::open(other.join("file")).expect("the file is there");
                rules
                    .allow(file.as_fd(), FileRights::LIST | FileRights::REMOVE)
                    .expect("a rule without a right");
                rules.allow_connect(1).expect("a rule");
                rules.restrict().expect("few rulesets hold here");
                let read = |path: &std::path::Path| {
                    fs::read_to_string(path.join("file")).map_err(|error| error.kind())
                };
                (
                    read(&kept),
                    read(&other),
                    fs::write(kept.join("file"), "new").map_err(|error| error.kind()),
                )
            };
            let denied = io::ErrorKind::PermissionDenied;
            let found = thread::spawn(restricted).join().expect("it does not panic");
            assert_eq!(
                found,
                (Ok("text".to_owned()), Err(denied), Err(denied)),
                "ABI {abi}"
            );
        }
        assert!(
            fs::read_to_string(other.join("file")).is_ok(),
            "other threads are free"
        );
    }
}
