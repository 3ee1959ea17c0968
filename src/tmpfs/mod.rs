//! Where FUSE is refused: files in a memory filesystem. Invariants: nothing is written before the
//! target was proved to be memory that is limited and reaches no swap; the files of one change
//! appear in one rename; a reader that opened a file keeps its version.
//!
//! The directory holds, besides what belongs to others:
//! ```text
//! NAME     -> ..data/NAME             for applications; never changes
//! ..data   -> ..7                     replaced by rename: the flip
//! ..7/NAME -> ../..files/5.0          one directory a generation
//! ..files/5.0                         content: generation and number of the file; never written again
//! ..baofs/status.json                 the agent's own state: replaced by rename, dropped where secrets need its room
//! ```
//! An unchanged file keeps its inode: a new generation links it by name. (A hard link would need
//! `CAP_FOWNER` for a file of another user wherever `fs.protected_hardlinks` is on, which is nearly
//! everywhere.)
//!
//! What a reader may still be on its way to stays for a moment after the flip; then it is unlinked,
//! and overwritten once nobody has it open. A killed agent leaves its files in a directory that it
//! was given; the next one removes them at start.

mod proof;
mod refusal;
mod remove;
mod target;
mod writer;

pub use proof::MemoryBacked;
pub use refusal::{RefusalCause, TargetRefusal};
pub use target::{Target, needs_chown};
pub use writer::{WriteError, Writer};

/// The directory of contents.
const FILES: &str = "..files";
/// The link that is the current generation.
const DATA: &str = "..data";
/// The same before its rename.
const DATA_NEXT: &str = "..data_tmp";
/// What a public link begins with.
const DATA_PREFIX: &str = "..data/";
