//! The product, end to end: the binary in a room of its own, over FUSE and over tmpfs, against the real OpenBao.

#[path = "../rig/mod.rs"]
mod rig;

/// Makes one test of each body in each world: `fuse::BODY` and `tmpfs::BODY`.
macro_rules! in_each_world {
    ($($body:ident),+ $(,)?) => {
        mod fuse {
            $(#[test] fn $body() { super::$body(crate::rig::World::Fuse); })+
        }
        mod tmpfs {
            $(#[test] fn $body() { super::$body(crate::rig::World::Tmpfs); })+
        }
    };
}

mod hardening;
mod refusals;
mod rig_works;
mod rotation;
mod seed;
mod supervision;
mod watching;
