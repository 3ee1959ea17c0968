//! The product, end to end: the binary in a room of its own, over FUSE and over tmpfs, against the real OpenBao.

#[path = "../rig/mod.rs"]
mod rig;

mod rig_works;
