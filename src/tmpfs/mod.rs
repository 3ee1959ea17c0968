//! tmpfs: to be written.
