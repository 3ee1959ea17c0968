//! The product in real containers of a Docker daemon: the image, the commands of README, signals,
//! stop, what an application is given. A program of its own, because the daemon is shared by all
//! cases and must be stopped after them, and because `unshare(2)` wants a single thread. `cargo
//! test --test containers WORD` runs the cases with that word in their names.

mod docker;
mod forms;
mod parity;
#[path = "../rig/mod.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod rig;
mod stop;
mod swarm;

use docker::Docker;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A name and what is to be shown.
type Case = (&'static str, fn(&Docker));

/// All cases, the longest first.
const CASES: &[&[Case]] = &[swarm::CASES, stop::CASES, forms::CASES, parity::CASES];

/// They wait more than they work.
const AT_ONCE: usize = 4;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted =
        |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let cases: Vec<Case> = CASES
        .iter()
        .copied()
        .flatten()
        .copied()
        .filter(|(name, _)| wanted(name))
        .collect();
    if cases.is_empty() {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    let failed = run(&cases, &Docker::start());
    for name in &failed {
        println!("FAILED: {name}");
    }
    println!(
        "{} passed, {} failed",
        cases.len() - failed.len(),
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// Runs the cases, some at once, and names those that failed.
fn run(cases: &[Case], docker: &Docker) -> Vec<&'static str> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((name, body)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            match catch_unwind(AssertUnwindSafe(|| body(docker))) {
                Ok(()) => println!("ok: {name}"),
                Err(_) => failed.lock().expect("nobody panics with it").push(*name),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
    failed.into_inner().expect("nobody panics with it")
}
