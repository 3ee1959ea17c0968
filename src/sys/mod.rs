//! Thin safe wrappers over libc. With `memory`, the only place for `unsafe`: one operation a block,
//! each with its obligation and who met it. Invariant: no policy, no state; a failed call is an
//! `io::Error` that names the call.
#![allow(unsafe_code, reason = "this is one of the two gates")]

pub mod caps;
pub mod file;
pub mod landlock;
pub mod mount;
pub mod mounts;
pub mod process;
pub mod seccomp;
pub mod watch;
