//! What `fetch` says of itself and its secrets (`..baofs/status.json`), and what others conclude from it. Invariant: no
//! value of a secret, and no name of a lease, is in it.

mod report;

pub use report::{Condition, FORMAT, FileReport, OVERDUE, Report, Roles, Served, Session, Trouble, seconds};

pub use crate::names::STATE_DIRECTORY as DIRECTORY;
/// The report in it.
pub const FILE: &str = "status.json";
