//! baofs.

pub mod bao;
pub mod cli;
pub mod clock;
pub mod config;
pub mod exit;
pub mod fetch;
pub mod fuse;
pub mod lease;
pub mod link;
pub mod memory;
pub mod names;
pub mod observe;
pub mod render;
pub mod serve;
pub mod snapshot;
pub mod supervise;
pub mod sys;
pub mod template;
pub mod tmpfs;
