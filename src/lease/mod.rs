//! Leases: a lease table and a pure schedule. Invariant: the schedule decides *when*, never *how*,
//! and sees grants and failures, never a value.

mod attempts;
mod protocol;
mod queries;
mod query;
mod refusals;
mod renewal;
mod scheduler;
mod session;
pub mod source;
#[cfg(test)]
mod tests;

pub use protocol::{Effect, ReadValue, Request, ScheduleInput, Subject, SubjectStatus, TokenId};
pub use query::QuerySchedule;
pub use renewal::{Dates, Grant, Timing};
pub use scheduler::Scheduler;
pub use session::SessionSchedule;
