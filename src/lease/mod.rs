//! Leases: a lease table and a pure schedule. Invariant: it decides *when*, never *how*; it sees
//! grants and failures, never a value.

mod machine;
mod protocol;
mod refusals;
mod renewal;
pub mod source;
#[cfg(test)]
mod tests;

pub use machine::Machine;
pub use protocol::{Input, Output, Request, Subject, TokenId, View};
pub use renewal::{Dates, Grant, Pace};
