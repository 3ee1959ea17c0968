//! The reasons to refuse FUSE, told apart by call, errno and rights, each with a remedy. Invariant:
//! `Refusal::of` is a pure table.

use crate::exit::{Exit, Refused};
use crate::sys::mount::MountCall;
use nix::errno::Errno;
use std::path::PathBuf;

/// The refused call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `open(/dev/fuse)`.
    Device,
    /// A call of the mount API.
    Mount(MountCall),
}

/// Whether this process may mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// The process holds `SYS_ADMIN`.
    Effective,
    /// The container has `SYS_ADMIN`, but this process is not root and does not hold it.
    BoundingOnly,
    /// The container has no `SYS_ADMIN`.
    None,
}

/// The reason for a missing FUSE mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `/dev/fuse` does not exist.
    #[error(
        "cannot open /dev/fuse: it is not there; hint: start the container with \
         `--device /dev/fuse --cap-add SYS_ADMIN`"
    )]
    NoDevice,
    /// The container's device rules deny `/dev/fuse`.
    #[error(
        "cannot open /dev/fuse: the container's device rules deny it; hint: give it with \
         `--device /dev/fuse`, or add `--device-cgroup-rule 'c 10:229 rw'`"
    )]
    DeviceDenied,
    /// The permission bits of `/dev/fuse` deny this user.
    #[error(
        "cannot open /dev/fuse: its permission bits deny this user; hint: start as root and give \
         `--user`, or make the node 0666"
    )]
    DeviceMode,
    /// The kernel was built without FUSE, or the module is not loaded.
    #[error(
        "this kernel has no FUSE; hint: load the module on the host (`modprobe fuse`), or use \
         `--fallback tmpfs`"
    )]
    NoFuse,
    /// The container lacks `SYS_ADMIN`.
    #[error(
        "cannot mount: SYS_ADMIN is missing; hint: start the container as root with \
         `--cap-add SYS_ADMIN --device /dev/fuse` and give `--user`"
    )]
    NoSysAdmin,
    /// Only the container has `SYS_ADMIN`, not this user.
    #[error(
        "cannot mount: the container may have SYS_ADMIN, but this process is not root and does not \
         hold it; hint: start as root and give `--user`, or take `user:` away"
    )]
    NotRoot,
    /// The call is denied although `SYS_ADMIN` is held: by seccomp, or because the device belongs
    /// to another user namespace.
    #[error(
        "cannot mount: {0} is denied although SYS_ADMIN is held; hint: the seccomp profile \
         (`--security-opt seccomp=...`) must allow the mount calls, and /dev/fuse must belong to \
         this user namespace"
    )]
    Filtered(MountCall),
    /// A security module denies mounting.
    #[error(
        "cannot mount: {0} is denied by a security module (AppArmor, SELinux); hint: \
         `--security-opt apparmor=unconfined`, or `--security-opt label=disable`"
    )]
    Confined(MountCall),
    /// The kernel does not know the call.
    #[error(
        "cannot mount: this kernel lacks {0}; hint: Linux 5.12 or later, or use `--fallback tmpfs`"
    )]
    OldKernel(MountCall),
    /// The mount point cannot be used.
    #[error(
        "cannot mount at {}: {cause}; hint: make the directory in the image, or choose another \
         path with `--mount`",
        path.display()
    )]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// The error.
        cause: String,
    },
    /// A living agent serves the mount point, by FUSE or in a tmpfs. No fallback may be used
    /// there.
    #[error(
        "another agent serves {}; hint: give each a directory of its own, or stop the other first",
        .0.display()
    )]
    Held(PathBuf),
    /// Another failure, in the kernel's words.
    #[error("cannot mount: {0}")]
    Other(String),
}

impl Refusal {
    /// The refusal for a process with these rights, from the errno of the call.
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
            (Step::Mount(call), errno, _) => Self::Other(format!("{call}: {errno}")),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        // Where another agent serves, the tmpfs is refused, too.
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
}
