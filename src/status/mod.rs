//! What `fetch` says of itself and its secrets (`..baofs/status.json`), and what others conclude from it. Invariant: no
//! value of a secret, and no name of a lease, is in it.

mod report;

pub use report::{Condition, FORMAT, FileReport, OVERDUE, Report, Roles, Served, Session, Trouble, seconds};

/// The directory of the agent's own state in the mount: found by name; on FUSE not listed.
pub const DIRECTORY: &str = "..baofs";
/// The report in it.
pub const FILE: &str = "status.json";
