//! Why a directory is no place for files with secrets. Invariant: each cause has a remedy in its
//! words.

use crate::exit::{Exit, Refused};
use crate::names::{FileName, NoSwapProof, Owner};
use nix::unistd::geteuid;
use std::path::PathBuf;
use std::{fmt, io};

/// A directory that is refused. The exit code is `Exit::Tmpfs`.
#[derive(Debug)]
pub struct Refusal {
    /// The directory.
    pub path: PathBuf,
    /// Why.
    pub cause: Cause,
}

/// Why a directory is refused.
#[derive(Debug)]
pub enum Cause {
    /// It cannot be opened.
    Open(io::Error),
    /// A mount that should work did not.
    Mount(io::Error),
    /// It is not in memory.
    NotMemory {
        /// The kernel's name of its filesystem, if `/proc/self/mountinfo` shows it.
        kind: Option<String>,
        /// Why baofs could not mount a tmpfs itself.
        denied: String,
    },
    /// Nothing limits its size: why.
    Unlimited(&'static str),
    /// Its pages may be written to a swap.
    Swappable(NoSwapProof),
    /// Another agent that lives writes there.
    Held,
    /// We may not make files in it: whose it is.
    NotWritable(String),
    /// Files cannot be given to this owner.
    Chown(Owner, io::Error),
    /// What a dead agent left cannot be removed.
    Leftovers(io::Error),
    /// A name that is to be served exists.
    Taken(FileName),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, uid) = (self.path.display(), geteuid());
        match &self.cause {
            Cause::Open(error) => write!(
                f,
                "opening {path}: {error}; hint: it must be a directory that uid {uid} may read"
            ),
            Cause::Mount(error) => write!(f, "mounting a tmpfs at {path}: {error}"),
            Cause::NotMemory { kind, denied } => {
                let kind = kind
                    .as_deref()
                    .unwrap_or("a filesystem that /proc/self/mountinfo does not show");
                write!(
                    f,
                    "{path} is on {kind}, not in memory, and secrets are not written to a disk; a tmpfs cannot be mounted: {denied}; "
                )?;
                write!(
                    f,
                    "hint: give the container a tmpfs (--tmpfs {path}:size=4m,mode=1777), or start as root with CAP_SYS_ADMIN"
                )
            }
            Cause::Unlimited(why) => write!(
                f,
                "{path} has no limit of size: {why}; hint: mount a tmpfs with size=4m"
            ),
            Cause::Swappable(why) => {
                write!(
                    f,
                    "files in {path} could be written to a swap: {why}; hint: mount the tmpfs with noswap (Linux 6.4), "
                )?;
                f.write_str("set memory.swap.max to 0 (cgroup v2), or accept it with --allow-swap")
            }
            Cause::Held => write!(
                f,
                "another agent serves {path}; hint: give each a directory of its own, or stop the other first"
            ),
            Cause::NotWritable(whose) => {
                write!(
                    f,
                    "uid {uid} may not make files in {path}, {whose}; hint: mount the tmpfs with mode=1777, or with uid={uid}"
                )
            }
            Cause::Chown(owner, error) => {
                write!(
                    f,
                    "files for uid {}, gid {} cannot be made in {path} by uid {uid}: {error}; ",
                    owner.uid, owner.gid
                )?;
                f.write_str("hint: add CAP_CHOWN, or run as that user")
            }
            Cause::Leftovers(error) => {
                write!(
                    f,
                    "what a dead agent left in {path} cannot be removed: {error}; hint: remove its `..` names by hand"
                )
            }
            Cause::Taken(name) => write!(
                f,
                "{path}/{name} exists and is not ours; hint: remove it, or serve another name"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::new(Exit::Tmpfs, refusal)
    }
}
