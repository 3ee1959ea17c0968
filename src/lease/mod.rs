//! Leases: requests deduplicated, a lease table, a pure schedule. Invariant: it decides *when*, never *how*.

pub mod source;
