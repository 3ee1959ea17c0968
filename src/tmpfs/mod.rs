//! The files in a memory filesystem, for hosts that refuse FUSE. Invariants: nothing is written
//! before the target is proved to be limited memory that reaches no swap; the files of one change
//! appear in one rename; an open file keeps the version of its bytes.
//!
//! The directory holds, besides entries of others:
//! ```text
//! NAME     -> ..data/NAME             for applications; never changes
//! ..data   -> ..7                     replaced by rename: the flip
//! ..7/NAME -> ../..files/5.0          one directory a generation
//! ..files/5.0                         content: generation and number of the file; never written again
//! ..baofs/status.json                 the agent's state: replaced by rename, removed if secrets need the room
//! ```
//! An unchanged file keeps its inode: a new generation links to the old content. (A hard link to a
//! file of another user would need `CAP_FOWNER` wherever `fs.protected_hardlinks` is on, which is
//! the usual setting.)
//!
//! After a flip the old files stay for a second, for readers that have already resolved `..data`.
//! Then each old file is unlinked, and overwritten once no process has the file open. A killed
//! agent leaves files in a given directory; the next agent removes the files at start.

mod proof;
mod refusal;
mod remove;
mod target;
mod writer;

pub use proof::MemoryBacked;
pub use refusal::{RefusalCause, TargetRefusal};
pub use target::{Target, needs_chown};
pub use writer::{WriteError, Writer};

use crate::names::Generation;

/// The directory of contents.
const FILES: &str = "..files";
/// The link to the current generation.
const DATA: &str = "..data";
/// The name of a new `..data` before the rename.
const DATA_NEXT: &str = "..data_tmp";
/// The beginning of the target of a public link.
const DATA_PREFIX: &str = "..data/";

/// The name of the directory of a generation.
fn dir_name(generation: Generation) -> String {
    format!("..{}", generation.0)
}

/// The generation of a directory with this name.
fn generation_of(name: &str) -> Option<Generation> {
    let generation = Generation(name.strip_prefix("..")?.parse().ok()?);
    if dir_name(generation) == name {
        Some(generation)
    } else {
        None
    }
}
