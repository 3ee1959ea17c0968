//! The reasons to refuse a directory as a place for secrets. Invariant: each message names a
//! remedy.

use crate::exit::{Exit, Refused};
use crate::names::{FileName, Owner, SwapExposure};
use crate::sys::mount::MountError;
use nix::unistd::geteuid;
use std::fs::TryLockError;
use std::io;
use std::path::PathBuf;

/// A refused directory. The exit code is `Exit::Tmpfs`.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {cause}", path.display())]
pub struct TargetRefusal {
    /// The directory.
    pub path: PathBuf,
    /// The reason.
    pub cause: RefusalCause,
}

/// The reason to refuse a directory.
#[derive(Debug, thiserror::Error)]
pub enum RefusalCause {
    /// The directory cannot be opened or examined.
    #[error("{0}; hint: the path must be a directory that uid {uid} may read", uid = geteuid())]
    Open(#[from] io::Error),
    /// The kernel permits mounts, but this mount failed.
    #[error("a tmpfs cannot be mounted there: {0}")]
    Mount(#[from] MountError),
    /// The directory is on a filesystem that is not in memory.
    #[error(
        "the directory is on {}, not in memory, and baofs writes no secret to a disk; mounting a \
         tmpfs there failed: {denied}",
        kind.as_deref().unwrap_or("a filesystem that /proc/self/mountinfo does not show")
    )]
    NotMemory {
        /// The type of the filesystem, if `/proc/self/mountinfo` has the mount.
        kind: Option<String>,
        /// The error of the attempt to mount a tmpfs, and the remedy.
        denied: String,
    },
    /// The filesystem has no size limit, for this reason.
    #[error("the directory has no size limit: {0}; hint: mount a tmpfs with size=4m")]
    Unlimited(&'static str),
    /// The pages of the filesystem may be written to a swap.
    #[error(
        "files could be written to a swap: {0}; hint: mount the tmpfs with noswap (Linux 6.4), set \
         memory.swap.max to 0 (cgroup v2), or accept the swap with --allow-swap"
    )]
    Swappable(SwapExposure),
    /// Another agent is alive and serves the directory.
    #[error(
        "another agent serves the directory; hint: give each a directory of its own, or stop the \
         other first"
    )]
    Held,
    /// The agent may not create files in the directory, which has this owner and mode.
    #[error(
        "uid {uid} may not create files in the directory, {0}; hint: mount the tmpfs with \
         mode=1777, or with uid={uid}",
        uid = geteuid()
    )]
    NotWritable(String),
    /// Files cannot be given to an owner.
    #[error(
        "uid {} cannot create files for uid {}, gid {} in the directory: {error}; hint: add \
         CAP_CHOWN, or run as that user",
        geteuid(),
        owner.uid,
        owner.gid
    )]
    Chown {
        /// The owner of a served file.
        owner: Owner,
        /// The error of the kernel.
        error: io::Error,
    },
    /// Files of a dead agent cannot be removed.
    #[error(
        "the files of a dead agent cannot be removed: {0}; hint: remove the names that begin with \
         `..` by hand"
    )]
    Leftovers(io::Error),
    /// The name of a served file exists already.
    #[error(
        "`{0}` exists there and does not belong to baofs; hint: remove the file, or configure \
         another name"
    )]
    Taken(FileName),
}

impl From<TryLockError> for RefusalCause {
    fn from(error: TryLockError) -> Self {
        match error {
            TryLockError::WouldBlock => Self::Held,
            TryLockError::Error(error) => Self::Open(error),
        }
    }
}

impl From<TargetRefusal> for Refused {
    fn from(refusal: TargetRefusal) -> Self {
        Self::new(Exit::Tmpfs, refusal)
    }
}
