//! Why FUSE is refused here, told apart by call, errno and rights, each with the remedy that works
//! for it. Invariant: `Refusal::of` is a pure table.

use crate::exit::{Exit, Refused};
use crate::sys::mount::MountCall;
use nix::errno::Errno;
use std::fmt;
use std::path::PathBuf;

/// The bit of `CAP_SYS_ADMIN` in `/proc/PID/status`.
const SYS_ADMIN: u32 = 21;

/// Which call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `open(/dev/fuse)`.
    Device,
    /// One of the mount API.
    Mount(MountCall),
}

/// Whether this process may mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// It holds `SYS_ADMIN`.
    Effective,
    /// The container was given it, but this process, not being root, does not hold it.
    BoundingOnly,
    /// The container was not given it.
    None,
}

impl Rights {
    /// Reads them from the text of `/proc/self/status`.
    pub fn parse(status: &str) -> Self {
        let has = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key));
            value
                .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
                .is_some_and(|set| set >> SYS_ADMIN & 1 == 1)
        };
        match (has("CapEff:"), has("CapBnd:")) {
            (true, _) => Self::Effective,
            (false, true) => Self::BoundingOnly,
            (false, false) => Self::None,
        }
    }
}

/// Why there is no FUSE mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `/dev/fuse` is not there.
    NoDevice,
    /// The container's device rules deny it.
    DeviceDenied,
    /// Its permission bits deny it.
    DeviceMode,
    /// The kernel was built without FUSE, or its module is not loaded.
    NoFuse,
    /// The container lacks `SYS_ADMIN`.
    NoSysAdmin,
    /// Only the container has `SYS_ADMIN`, not this user.
    NotRoot,
    /// `SYS_ADMIN` is held and the call is denied all the same: seccomp, or a device of another
    /// user namespace.
    Filtered(MountCall),
    /// A security module denies mounting.
    Confined(MountCall),
    /// The kernel does not know the call.
    OldKernel(MountCall),
    /// The mount point cannot be used.
    MountPoint {
        /// It.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Another agent that lives serves the mount point, by FUSE or in a tmpfs. No fallback may be
    /// taken there.
    Held(PathBuf),
    /// Something else, in the kernel's words.
    Other(String),
}

impl Refusal {
    /// The refusal that this errno of this call means for a process with these rights.
    pub fn of(step: Step, errno: Errno, rights: Rights) -> Self {
        match (step, errno, rights) {
            (Step::Device, Errno::ENOENT, _) => Self::NoDevice,
            (Step::Device, Errno::ENXIO | Errno::ENODEV, _)
            | (Step::Mount(MountCall::Fsopen), Errno::ENODEV, _) => Self::NoFuse,
            (Step::Device, Errno::EPERM, _) => Self::DeviceDenied,
            (Step::Device, Errno::EACCES, Rights::Effective) => Self::DeviceMode,
            (Step::Device, Errno::EACCES, Rights::BoundingOnly)
            | (Step::Mount(_), Errno::EPERM, Rights::BoundingOnly) => Self::NotRoot,
            (Step::Device, Errno::EACCES, Rights::None)
            | (Step::Mount(_), Errno::EPERM, Rights::None) => Self::NoSysAdmin,
            (Step::Mount(call), Errno::EPERM, Rights::Effective) => Self::Filtered(call),
            (Step::Mount(call), Errno::EACCES, _) => Self::Confined(call),
            (Step::Mount(call), Errno::ENOSYS, _) => Self::OldKernel(call),
            (Step::Device, errno, _) => Self::Other(format!("open(/dev/fuse): {errno}")),
            (Step::Mount(call), errno, _) => Self::Other(format!("{}: {errno}", call.as_str())),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str(
                "cannot open /dev/fuse: it is not there; hint: start the container with `--device /dev/fuse --cap-add SYS_ADMIN`",
            ),
            Self::DeviceDenied => f.write_str(
                "cannot open /dev/fuse: the container's device rules deny it; hint: give it with `--device /dev/fuse`, \
                 or add `--device-cgroup-rule 'c 10:229 rw'`",
            ),
            Self::DeviceMode => f.write_str(
                "cannot open /dev/fuse: its permission bits deny this user; hint: start as root and give `--user`, or make the node 0666",
            ),
            Self::NoFuse => {
                f.write_str("this kernel has no FUSE; hint: load the module on the host (`modprobe fuse`), or use `--fallback tmpfs`")
            }
            Self::NoSysAdmin => f.write_str(
                "cannot mount: SYS_ADMIN is missing; hint: start the container as root with `--cap-add SYS_ADMIN --device /dev/fuse` \
                 and give `--user`",
            ),
            Self::NotRoot => f.write_str(
                "cannot mount: the container may have SYS_ADMIN, but this process is not root and does not hold it; \
                 hint: start as root and give `--user`, or take `user:` away",
            ),
            Self::Filtered(call) => write!(
                f,
                "cannot mount: {} is denied although SYS_ADMIN is held; hint: the seccomp profile (`--security-opt seccomp=...`) \
                 must allow the mount calls, and /dev/fuse must belong to this user namespace",
                call.as_str()
            ),
            Self::Confined(call) => write!(
                f,
                "cannot mount: {} is denied by a security module (AppArmor, SELinux); hint: `--security-opt apparmor=unconfined`, \
                 or `--security-opt label=disable`",
                call.as_str()
            ),
            Self::OldKernel(call) => {
                write!(f, "cannot mount: this kernel lacks {}; hint: Linux 5.12 or later, or use `--fallback tmpfs`", call.as_str())
            }
            Self::MountPoint { path, cause } => write!(
                f,
                "cannot mount at {}: {cause}; hint: make the directory in the image, or choose another path with `--mount`",
                path.display()
            ),
            Self::Held(path) => {
                write!(f, "another agent serves {}; hint: give each a directory of its own, or stop the other first", path.display())
            }
            Self::Other(cause) => write!(f, "cannot mount: {cause}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        // No backend may be used where another agent serves.
        let exit = if matches!(refusal, Refusal::Held(_)) {
            Exit::Tmpfs
        } else {
            Exit::Fuse
        };
        Self::new(exit, refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        use MountCall::{Fsconfig, Fsmount, Fsopen, MountSetattr, MoveMount};
        use Rights::{BoundingOnly, Effective, None};
        let mount = Step::Mount;
        let rows = [
            (
                Step::Device,
                Errno::ENOENT,
                Effective,
                Refusal::NoDevice,
                "--device /dev/fuse",
            ),
            (
                Step::Device,
                Errno::EPERM,
                Effective,
                Refusal::DeviceDenied,
                "--device-cgroup-rule",
            ),
            (
                Step::Device,
                Errno::EACCES,
                Effective,
                Refusal::DeviceMode,
                "0666",
            ),
            (
                Step::Device,
                Errno::EACCES,
                BoundingOnly,
                Refusal::NotRoot,
                "take `user:` away",
            ),
            (
                Step::Device,
                Errno::EACCES,
                None,
                Refusal::NoSysAdmin,
                "--cap-add SYS_ADMIN",
            ),
            (
                Step::Device,
                Errno::ENXIO,
                Effective,
                Refusal::NoFuse,
                "modprobe",
            ),
            (
                mount(Fsopen),
                Errno::ENODEV,
                Effective,
                Refusal::NoFuse,
                "modprobe",
            ),
            (
                mount(Fsopen),
                Errno::EPERM,
                BoundingOnly,
                Refusal::NotRoot,
                "start as root",
            ),
            (
                mount(Fsopen),
                Errno::EPERM,
                None,
                Refusal::NoSysAdmin,
                "--cap-add SYS_ADMIN",
            ),
            (
                mount(Fsopen),
                Errno::EPERM,
                Effective,
                Refusal::Filtered(Fsopen),
                "seccomp",
            ),
            (
                mount(Fsopen),
                Errno::ENOSYS,
                Effective,
                Refusal::OldKernel(Fsopen),
                "5.12",
            ),
            (
                mount(MountSetattr),
                Errno::ENOSYS,
                Effective,
                Refusal::OldKernel(MountSetattr),
                "mount_setattr",
            ),
            (
                mount(MoveMount),
                Errno::EACCES,
                Effective,
                Refusal::Confined(MoveMount),
                "apparmor=unconfined",
            ),
            (
                mount(Fsmount),
                Errno::EACCES,
                Effective,
                Refusal::Confined(Fsmount),
                "apparmor=unconfined",
            ),
            (
                mount(Fsconfig),
                Errno::EINVAL,
                Effective,
                Refusal::Other("fsconfig: EINVAL: Invalid argument".into()),
                "fsconfig",
            ),
        ];
        for (step, errno, rights, refusal, word) in rows {
            let found = Refusal::of(step, errno, rights);
            assert_eq!(found, refusal, "{step:?} {errno} {rights:?}");
            assert!(found.to_string().contains(word), "{found}");
        }
    }

    #[test]
    fn rights_are_read_from_status() {
        let status = |eff: &str, bnd: &str| {
            format!("Name:\tbaofs\nCapPrm:\tffff\nCapEff:\t{eff}\nCapBnd:\t{bnd}\n")
        };
        for (eff, bnd, rights) in [
            ("000001ffffffffff", "000001ffffffffff", Rights::Effective),
            ("0000000000000000", "00000000a82425fb", Rights::BoundingOnly),
            ("00000000a80425fb", "00000000a80425fb", Rights::None),
            ("", "nonsense", Rights::None),
        ] {
            assert_eq!(Rights::parse(&status(eff, bnd)), rights);
        }
    }
}
