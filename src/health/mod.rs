//! `baofs health`: locates the report from outside the agent, probes the application, and judges
//! both. Invariant: every step has a time limit, so a health check ends even when the agent hangs.

mod locate;
mod probe;
mod verdict;

pub use locate::{mount, parse, read};
pub use probe::Probe;
pub use verdict::{Strictness, Verdict, judge};
