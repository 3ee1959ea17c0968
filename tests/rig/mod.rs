//! What the end-to-end tests and the bench stand on: a real OpenBao with PostgreSQL, the stand-in,
//! and `baofs` in namespaces of its own. Invariants: nothing started here outlives the test
//! process, whatever ends it; the only deadline is in `wait_until`.

pub(crate) mod agent;
pub(crate) mod bao;
pub(crate) mod config;
pub(crate) mod dns;
pub(crate) mod http;
pub(crate) mod line;
pub(crate) mod memory;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod scene;
pub(crate) mod server;
#[path = "../standin/mod.rs"]
pub(crate) mod standin;
#[cfg(target_arch = "x86_64")]
pub(crate) mod taken;

use baofs::clock::{Clock, RealClock};
use std::path::PathBuf;
use std::time::Duration;

/// How long anything that must happen may take on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// How often a test of chance tries: `usual` times, `long` times in `./test --long`.
pub(crate) fn tries(usual: u32, long: u32) -> u32 {
    if std::env::var_os("BAOFS_LONG").is_some() {
        long
    } else {
        usual
    }
}

/// How files are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum World {
    /// Through FUSE.
    Fuse,
    /// FUSE is refused for want of its device; `--fallback tmpfs` mounts one.
    Tmpfs,
}

/// Asks `probe` until it answers, and fails with `what` when it never does.
pub(crate) fn wait_until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_until_or(what, String::new, probe)
}

/// The same with `more` to say of the failure.
pub(crate) fn wait_until_or<T>(
    what: &str,
    more: impl Fn() -> String,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let clock = RealClock;
    let start = clock.now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(
            clock.now().since(start) < DEADLINE,
            "waited {} s in vain until {what}\n{}",
            DEADLINE.as_secs(),
            more()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The path of a program: from PATH, else the first of `elsewhere` (shell patterns) that exists;
/// fails with how to install it.
pub(crate) fn program(name: &str, elsewhere: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    on_path.or_else(|| elsewhere.iter().find_map(|pattern| first_match(pattern))).unwrap_or_else(|| {
        panic!("`{name}` is needed by the tests and is not installed: run `./test --prepare` once (as root)");
    })
}

/// The first path that matches a pattern in which a whole component may be `*`; `~cache` is the
/// user's cache directory.
fn first_match(pattern: &str) -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = match part {
            "~cache" => vec![cache.clone()],
            "*" => found
                .iter()
                .flat_map(std::fs::read_dir)
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect(),
            name => found
                .into_iter()
                .map(|dir| dir.join(name))
                .filter(|path| path.exists())
                .collect(),
        };
    }
    found.into_iter().next()
}
