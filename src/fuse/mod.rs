//! The filesystem: `mount` makes it, `tree` is it (without FUSE), `adapter` lets the kernel ask it,
//! `announce` makes its changes heard. Invariants: a version of a file is an inode of its own; no
//! operation waits for anything but memory; only the announcing thread changes a name.

pub mod adapter;
pub mod announce;
pub mod mount;
pub mod refusal;
pub mod session;
pub mod tree;
