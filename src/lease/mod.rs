//! Leases: a lease table and a pure schedule. Invariant: it decides *when*, never *how*; it sees
//! grants and failures, never a value.

mod attempts;
mod protocol;
mod queries;
mod refusals;
mod renewal;
mod scheduler;
mod session;
pub mod source;
#[cfg(test)]
mod tests;

pub use protocol::{Input, Output, Request, Subject, TokenId, View};
pub use renewal::{Dates, Grant, Pace};
pub use scheduler::Machine;
