//! The product: its configuration, its client and its reports, and end to end the binary in a room of
//! its own, over FUSE and over tmpfs, against the real OpenBao and the stand-in.
#![allow(clippy::too_many_lines, reason = "a table has as many lines as rows")]

#[path = "../rig/mod.rs"]
#[allow(dead_code, reason = "the container tests use the rest of it")]
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

/// Makes one test of each body in each scene, as `tmpfs_standin::BODY`: each world with each
/// server.
macro_rules! in_each_scene {
    ($($body:ident),+ $(,)?) => {
        in_each_scene!(@ fuse_real Fuse Real $($body)+);
        in_each_scene!(@ fuse_standin Fuse Standin $($body)+);
        in_each_scene!(@ tmpfs_real Tmpfs Real $($body)+);
        in_each_scene!(@ tmpfs_standin Tmpfs Standin $($body)+);
    };
    (@ $scene:ident $world:ident $which:ident $($body:ident)+) => {
        mod $scene {
            use crate::rig::{World, server::{Scene, Which}};
            $(#[test] fn $body() { super::$body(Scene { world: World::$world, which: Which::$which }); })+
        }
    };
}

mod checkpoint;
mod client;
mod configuration;
mod contract;
mod deaths;
mod hangs;
mod hardening;
mod health;
mod hooks;
mod hostile;
mod logins;
mod minting;
mod neighbours;
mod parent;
mod refusals;
mod reports;
mod rig_works;
mod rotation;
mod seed;
mod state;
mod supervision;
mod texts;
mod traces;
#[cfg(target_arch = "x86_64")]
mod walls;
mod watching;
