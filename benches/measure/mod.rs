//! What the benches measure with. Invariant: figures are printed, never judged by a test.

use crate::rig::agent::Agent;
use baofs::clock::{Clock, Moment, RealClock};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::fs::File;
use std::time::Duration;

/// As `wait_until`, asking more often: what is measured is a few dozen milliseconds.
pub(crate) fn wait_tightly(agent: &Agent, mut is_there: impl FnMut() -> bool) {
    let clock = RealClock;
    let start: Moment = clock.now();
    while !is_there() {
        assert!(
            clock.now().since(start) < Duration::from_secs(30),
            "no file in 30 s: {}",
            agent.log()
        );
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Whether a process is the agent's own and not the application.
pub(crate) fn is_agent(pid: Pid) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with("/entry"))
}

/// The proportional share of a process in memory (PSS), in bytes.
pub(crate) fn proportional(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_whitespace().next());
    kilobytes
        .and_then(|word| word.parse::<u64>().ok())
        .expect("a process has a share")
        * 1024
}

/// Opens, reads and closes the file `name` in `directory`.
pub(crate) fn one_open(directory: &File, name: &str, clock: RealClock) -> Duration {
    let mut bytes = [0; 256];
    let start = clock.now();
    let file = openat(
        directory,
        name,
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .expect("a served file opens");
    let read = nix::unistd::read(&file, &mut bytes).expect("and is read");
    drop(file);
    let took = clock.now().since(start);
    assert!(read > 0, "an empty read");
    took
}

/// The time in the middle.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// In milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// In microseconds.
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
