//! The reasons to refuse a directory as a place for secrets. Invariant: each message names a remedy.

use crate::exit::{Exit, Refused};
use crate::names::{FileName, Owner, SwapExposure};
use nix::unistd::geteuid;
use std::path::PathBuf;
use std::{fmt, io};

/// A refused directory. The exit code is `Exit::Tmpfs`.
#[derive(Debug)]
pub struct TargetRefusal {
    /// The directory.
    pub path: PathBuf,
    /// The reason.
    pub cause: RefusalCause,
}

/// The reason to refuse a directory.
#[derive(Debug)]
pub enum RefusalCause {
    /// The directory cannot be opened.
    Open(io::Error),
    /// The kernel permits mounts, but this mount failed.
    Mount(io::Error),
    /// The directory is on a filesystem that is not in memory.
    NotMemory {
        /// The type of the filesystem, if `/proc/self/mountinfo` has the mount.
        kind: Option<String>,
        /// The error of the attempt to mount a tmpfs.
        denied: String,
    },
    /// The filesystem has no size limit, for this reason.
    Unlimited(&'static str),
    /// The pages of the filesystem may be written to a swap.
    Swappable(SwapExposure),
    /// Another agent is alive and serves the directory.
    Held,
    /// The agent may not create files in the directory, which has this owner and mode.
    NotWritable(String),
    /// Files cannot be given to this owner.
    Chown(Owner, io::Error),
    /// Files of a dead agent cannot be removed.
    Leftovers(io::Error),
    /// The name of a served file exists already.
    Taken(FileName),
}

impl fmt::Display for TargetRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, uid) = (self.path.display(), geteuid());
        match &self.cause {
            RefusalCause::Open(error) => write!(
                f,
                "cannot open {path}: {error}; hint: the path must be a directory that uid {uid} may read"
            ),
            RefusalCause::Mount(error) => write!(f, "cannot mount a tmpfs at {path}: {error}"),
            RefusalCause::NotMemory { kind, denied } => {
                let kind = kind
                    .as_deref()
                    .unwrap_or("a filesystem that /proc/self/mountinfo does not show");
                write!(
                    f,
                    "{path} is on {kind}, not in memory, and baofs writes no secret to a disk; mounting a tmpfs there failed: {denied}; "
                )?;
                write!(
                    f,
                    "hint: give the container a tmpfs (--tmpfs {path}:size=4m,mode=1777), or start as root with CAP_SYS_ADMIN"
                )
            }
            RefusalCause::Unlimited(why) => write!(
                f,
                "{path} has no size limit: {why}; hint: mount a tmpfs with size=4m"
            ),
            RefusalCause::Swappable(why) => {
                write!(
                    f,
                    "files in {path} could be written to a swap: {why}; hint: mount the tmpfs with noswap (Linux 6.4), "
                )?;
                f.write_str(
                    "set memory.swap.max to 0 (cgroup v2), or accept the swap with --allow-swap",
                )
            }
            RefusalCause::Held => write!(
                f,
                "another agent serves {path}; hint: give each a directory of its own, or stop the other first"
            ),
            RefusalCause::NotWritable(whose) => {
                write!(
                    f,
                    "uid {uid} may not create files in {path}, {whose}; hint: mount the tmpfs with mode=1777, or with uid={uid}"
                )
            }
            RefusalCause::Chown(owner, error) => {
                write!(
                    f,
                    "uid {uid} cannot create files for uid {}, gid {} in {path}: {error}; ",
                    owner.uid, owner.gid
                )?;
                f.write_str("hint: add CAP_CHOWN, or run as that user")
            }
            RefusalCause::Leftovers(error) => {
                write!(
                    f,
                    "cannot remove the files of a dead agent in {path}: {error}; hint: remove the names that begin with `..` by hand"
                )
            }
            RefusalCause::Taken(name) => write!(
                f,
                "{path}/{name} exists and does not belong to baofs; hint: remove the file, or configure another name"
            ),
        }
    }
}

impl std::error::Error for TargetRefusal {}

impl From<TargetRefusal> for Refused {
    fn from(refusal: TargetRefusal) -> Self {
        Self::new(Exit::Tmpfs, refusal)
    }
}
