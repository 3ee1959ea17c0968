//! supervise: to be written.
