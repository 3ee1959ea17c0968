//! What baofs says of itself: one closed `Event` enum, written as one log line each. Invariants: no
//! field can hold a secret, and no line ever blocks: what a full pipe does not take is dropped and
//! counted.

mod event;
mod log;

pub use event::{Event, Incident};
pub use log::{Level, Log, LogFormat, init, report_dropped, start_role};
