//! The log: two closed enums, `Event` and `Incident`, each written as one line. Invariants: no field
//! can hold a secret, and writing a line never blocks. A line without room in a full pipe is
//! dropped and counted.

mod event;
mod log;

pub use event::{Event, Incident};
pub use log::{Log, LogFormat, init, report_dropped, start_role};
pub use tracing::Level;
