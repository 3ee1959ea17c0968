//! Thin safe wrappers over libc. Only `sys` and `memory` have `unsafe`: one operation a block, with
//! a note on the obligation and the reason why the obligation is met. Invariant: no policy, no
//! state; a failed call returns the error of the kernel.
#![allow(unsafe_code, reason = "this is one of the two gates")]

pub mod caps;
pub mod file;
pub mod landlock;
pub mod mount;
pub mod mounts;
pub mod process;
pub mod seccomp;
pub mod watch;
