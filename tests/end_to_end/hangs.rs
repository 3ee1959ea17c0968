//! A process of the agent that is stopped, or hangs in the middle of an operation: nobody waits for
//! it without a bound.

use super::deaths::{assert_nothing_left, report, started};
use super::health::health;
use super::hooks::{rotate, setup, wait_for_log, with_command};
use crate::rig::agent::{Agent, MOUNT, Setup};
use crate::rig::process::{signal, status, stop_with_a_request_in_hand};
use crate::rig::server::Tenant;
use crate::rig::{World, config, wait_until, wait_until_or};
use baofs::clock::{Clock, RealClock};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

in_each_world!(
    a_stopped_fetch_is_replaced,
    a_frozen_container_kills_nobody,
    an_idle_agent_takes_no_processor_time
);

/// Reads a secret as soon as somebody opens the gate.
const READS: &str =
    "echo waits; until [ -e /tmp/gate ]; do sleep 0.02; done; exec cat /app/secrets/note";
const STOP_TIMEOUT: &str = "  stop_timeout = \"300ms\"";

/// What a test runs on, and who asks `serve` for something when `open_gate` is called.
type Asker = (
    &'static str,
    fn() -> (Tenant, Setup),
    fn(&Tenant, &Agent),
    fn(&Tenant, &Agent),
);

fn open_gate(_: &Tenant, agent: &Agent) {
    std::fs::write(agent.path("/tmp/gate"), "").expect("the room has a /tmp");
}

/// Each of them asks, and the answer never comes: the kernel does not let them be killed.
const ASKERS: [Asker; 3] = [
    (
        "a hook",
        || with_command(World::Fuse, "hangs-hook", READS, ""),
        |tenant, agent| {
            rotate(tenant, "v1");
            wait_for_log(agent, "waits");
        },
        open_gate,
    ),
    (
        "the application",
        || {
            let (tenant, setup) =
                setup(World::Fuse, "hangs-app", "signal = \"USR1\"", STOP_TIMEOUT);
            (tenant, setup.script(&READS.replace("waits", "started")))
        },
        |_, _| {},
        open_gate,
    ),
    (
        "the announcing thread",
        || {
            setup(
                World::Fuse,
                "hangs-fetch",
                "signal = \"CONT\"",
                STOP_TIMEOUT,
            )
        },
        |_, _| {},
        |tenant, _| rotate(tenant, "v1"),
    ),
];

#[test]
fn who_waits_for_a_hung_serve_delays_no_end() {
    for (who, setup, begin, ask) in ASKERS {
        let (tenant, setup) = setup();
        let agent = setup.started();
        begin(&tenant, &agent);
        stop_with_a_request_in_hand(agent.role("serve"), || ask(&tenant, &agent));
        let begin = RealClock.now();
        let end = agent.stop();
        let took = RealClock.now().since(begin);
        assert!(
            took < Duration::from_secs(9),
            "the stop took {took:?}, because {who} waits\n{}",
            end.stderr
        );
        tenant.assert_nothing_lives();
    }
}

/// How a test makes `serve` hang; `read` makes somebody read.
type Hang = fn(Pid, &dyn Fn());

/// Stopped while it has nothing to do, and in the middle of an operation.
const HANGS: [Hang; 2] = [
    |serve, read| {
        signal(serve, Signal::SIGSTOP);
        read();
    },
    |serve, read| stop_with_a_request_in_hand(serve, read),
];

#[test]
fn who_waits_for_a_hung_serve_gets_the_bytes_from_its_successor() {
    for hang in HANGS {
        let (tenant, setup) = setup(World::Fuse, "hangs-serve", "signal = \"CONT\"", "");
        let agent = started(setup);
        let (serve, path) = (agent.role("serve"), agent.path(MOUNT).join("note"));
        std::thread::scope(|threads| {
            hang(serve, &|| {
                threads.spawn(|| {
                    assert_eq!(
                        std::fs::read_to_string(&path).expect("it waits and reads"),
                        "v0"
                    );
                });
            });
        });
        assert_replaced(&agent, "serve", serve);
        rotate(&tenant, "v1");
        assert_eq!(agent.read_after("note", "v0"), "v1");
        let deaths = || {
            Some(report(&agent).roles)
                .filter(|roles| (roles.serve_deaths, roles.fetch_deaths) == (1, 0))
        };
        wait_until_or("the death is reported", || agent.log(), deaths);
        assert_nothing_left(&tenant, &agent.stop());
    }
}

fn assert_replaced(agent: &Agent, role: &str, old: Pid) {
    wait_until_or(
        "another one runs",
        || agent.log(),
        || (agent.role(role) != old).then_some(()),
    );
    assert!(
        agent.log().contains(&format!(
            "a process of the agent does not answer: it is killed role=\"{role}\""
        )),
        "{}",
        agent.log()
    );
}

fn a_stopped_fetch_is_replaced(world: World) {
    let (tenant, setup) = setup(world, "hangs-fetch", "signal = \"CONT\"", "");
    let agent = started(setup);
    let fetch = agent.role("fetch");
    signal(fetch, Signal::SIGSTOP);
    rotate(&tenant, "v1");
    assert_eq!(agent.read_after("note", "v0"), "v1");
    assert_replaced(&agent, "fetch", fetch);
    assert_nothing_left(&tenant, &agent.stop());
}

/// All of the agent is stopped for longer than the watchdog has patience, and the roles go on last.
fn a_frozen_container_kills_nobody(world: World) {
    let (tenant, setup) = setup(world, "frozen", "signal = \"CONT\"", "");
    let agent = started(setup);
    let mut all: Vec<Pid> = agent
        .processes()
        .into_iter()
        .filter(|(_, name)| name.starts_with("baofs"))
        .map(|(pid, _)| pid)
        .collect();
    all.reverse();
    let roles = report(&agent).roles;
    // As a freezer does: nobody sees the others stop.
    all.iter()
        .rev()
        .for_each(|pid| signal(*pid, Signal::SIGSTOP));
    wait_until("all stand still", || {
        all.iter()
            .all(|pid| status(*pid, "State").is_some_and(|state| state.starts_with('T')))
            .then_some(())
    });
    pause(Duration::from_secs(13));
    all.iter()
        .rev()
        .for_each(|pid| signal(*pid, Signal::SIGCONT));
    wait_until_or(
        "all is well",
        || agent.log(),
        || (health(&agent) == (0, "healthy\n".to_owned())).then_some(()),
    );
    pause(Duration::from_secs(5));
    assert_eq!(report(&agent).roles, roles, "nobody died: {}", agent.log());
    rotate(&tenant, "v1");
    assert_eq!(agent.read_after("note", "v0"), "v1");
    assert_nothing_left(&tenant, &agent.stop());
}

fn pause(time: Duration) {
    let begin = RealClock.now();
    wait_until("time has passed", || {
        (RealClock.now().since(begin) >= time).then_some(())
    });
}

/// All looks and reports of ten seconds together cost less than a tick of the usual clock (10 ms),
/// in a debug build, too.
fn an_idle_agent_takes_no_processor_time(world: World) {
    let (tenant, setup) = setup(world, "idle", "signal = \"CONT\"", "");
    let text = config::login(&tenant.url())
        + &config::field("note", &tenant.kv("note"), "text").replace("100ms", "1h");
    let agent = started(setup.file("agent-config.hcl", &text));
    let all: Vec<Pid> = agent
        .processes()
        .into_iter()
        .filter(|(_, name)| name.starts_with("baofs"))
        .map(|(pid, _)| pid)
        .collect();
    let spent = || {
        Duration::from_nanos(
            all.iter()
                .flat_map(|pid| tasks(*pid))
                .map(|task| on_processor(&task))
                .sum(),
        )
    };
    pause(Duration::from_secs(3));
    let before = spent();
    pause(Duration::from_secs(10));
    let took = spent().saturating_sub(before);
    println!("{world:?}: {took:?} in 10 s of {} processes", all.len());
    assert!(took < Duration::from_millis(10), "{took:?}");
    assert_nothing_left(&tenant, &agent.stop());
}

/// The directories of a process' threads.
fn tasks(pid: Pid) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks.flatten().map(|task| task.path()).collect()
}

/// How long a thread was on a processor, in nanoseconds (`proc_pid_schedstat(5)`).
fn on_processor(task: &Path) -> u64 {
    let text = std::fs::read_to_string(task.join("schedstat")).expect("it runs");
    text.split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a number")
}
