//! Leases: a lease table and a pure schedule. Invariant: it decides *when*, never *how*; it sees
//! grants and failures, never a value.

mod machine;
mod refusals;
mod schedule;
pub mod source;
#[cfg(test)]
mod tests;

pub use machine::{Input, Machine, Output, Request, Subject, TokenId, View};
pub use schedule::{Dates, Grant, Pace};
