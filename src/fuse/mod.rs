//! The FUSE filesystem: `mount` makes the mounts, `tree` is the filesystem without FUSE, `adapter`
//! passes the kernel's requests to the tree, `announce` sends inotify events for changes.
//! Invariants: each version of a file has inodes of its own; an operation waits for memory only;
//! only the announcing thread changes a name.

pub mod adapter;
pub mod announce;
pub mod mount;
pub mod refusal;
pub mod session;
pub mod tree;
