//! What the agent's processes may do, and what somebody who looks into them finds.

use crate::rig::agent::{Agent, Setup, USER};
use crate::rig::process::{children, outcome, signal, status};
use crate::rig::server::{CALM, Tenant};
use crate::rig::{World, config, wait_until_or};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;

in_each_world!(
    fetch_and_serve_have_no_right,
    the_roles_leave_no_core_and_let_nobody_look,
    no_value_reaches_the_log,
    memory_shows_no_value_to_root,
);

fn start(world: World, name: &str) -> (Tenant, Agent) {
    let tenant = Tenant::real(&format!("{name}-{world:?}").to_lowercase(), CALM);
    tenant.put(
        "note",
        json!({ "text": "a note that nobody else writes: 7c1f0e4b" }),
    );
    let agent = Setup::new(world, &tenant, &config::usual(&tenant)).started();
    (tenant, agent)
}

/// The agent's processes besides the supervisor, which must be able to mount and to start the
/// application.
fn roles(agent: &Agent, world: World) -> Vec<Pid> {
    match world {
        World::Fuse => vec![agent.role("fetch"), agent.role("serve")],
        World::Tmpfs => vec![agent.role("fetch")],
    }
}

fn fetch_and_serve_have_no_right(world: World) {
    let (_tenant, agent) = start(world, "rights");
    for pid in roles(&agent, world) {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(
                status(pid, set).as_deref(),
                Some("0000000000000000"),
                "{set} of {:?}",
                status(pid, "Name")
            );
        }
        assert_eq!(status(pid, "NoNewPrivs").as_deref(), Some("1"));
    }
    assert_eq!(agent.stop().code, 0);
}

fn the_roles_leave_no_core_and_let_nobody_look(world: World) {
    let (_tenant, agent) = start(world, "core");
    for pid in roles(&agent, world) {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .expect("every process has this limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        // The same user without rights may look into its own processes, unless they are not
        // dumpable.
        let inside = status(pid, "NSpid")
            .and_then(|ids| ids.split_whitespace().last().map(str::to_owned))
            .expect("it runs");
        let look = "cat /proc/self/environ >/dev/null && cat /proc/$0/environ";
        let look = outcome(
            agent
                .enter(
                    0,
                    &[
                        "setpriv",
                        "--bounding-set=-all",
                        "--inh-caps=-all",
                        "sh",
                        "-c",
                        look,
                        &inside,
                    ],
                )
                .env_clear(),
        );
        assert!(!look.status.success());
        let words = String::from_utf8_lossy(&look.stderr).into_owned();
        assert!(
            words.contains(&format!("/proc/{inside}/environ: Permission denied")),
            "{words}"
        );
    }
    assert_eq!(agent.stop().code, 0);
}

/// Every value that must not be found anywhere.
fn values(tenant: &Tenant, agent: &Agent) -> Vec<String> {
    vec![
        agent.read("password"),
        agent.read("note"),
        tenant.secret_id.clone(),
    ]
}

fn no_value_reaches_the_log(world: World) {
    let tenant = Tenant::real(&format!("log-{world:?}").to_lowercase(), CALM);
    tenant.put(
        "note",
        json!({ "text": "a note that nobody else writes: 91b3aa02" }),
    );
    let text = config::usual(&tenant) + "log {\n  level = \"trace\"\n}\n";
    let agent = Setup::new(world, &tenant, &text).started();
    let values = values(&tenant, &agent);
    let end = agent.stop();
    assert!(
        end.stderr.contains("published"),
        "the log is not empty: {}",
        end.stderr
    );
    for value in values {
        assert!(
            !end.stderr.contains(&value),
            "a value is in the log:\n{}",
            end.stderr
        );
    }
}

/// How often each value stands in what root can read of a process, and whether locked memory could
/// be read.
fn scan(pid: Pid, values: &[String]) -> (usize, usize) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root opens it");
    let (mut copies, mut locked_read) = (0, 0);
    for line in maps.lines().filter(|line| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|rights| rights.starts_with('r'))
    }) {
        let (low, high) = line
            .split_whitespace()
            .next()
            .and_then(|range| range.split_once('-'))
            .expect("a line has a range");
        let address =
            |hex: &str| usize::from_str_radix(hex, 16).expect("an address is hexadecimal");
        let mut bytes = vec![0; address(high) - address(low)];
        if memory
            .read_exact_at(&mut bytes, address(low) as u64)
            .is_ok()
        {
            locked_read += usize::from(line.contains("secretmem"));
            let count = |value: &String| {
                bytes
                    .windows(value.len())
                    .filter(|window| *window == value.as_bytes())
                    .count()
            };
            copies += values.iter().map(count).sum::<usize>();
        }
    }
    (copies, locked_read)
}

fn memory_shows_no_value_to_root(world: World) {
    let (tenant, agent) = start(world, "scan");
    let (values, fetch) = (values(&tenant, &agent), agent.role("fetch"));
    let mut rest = roles(&agent, world);
    rest.retain(|pid| *pid != fetch);
    rest.push(agent.pid());
    for pid in rest {
        assert_eq!(
            scan(pid, &values),
            (0, 0),
            "(copies, locked mappings read) in {:?}",
            status(pid, "Name")
        );
    }
    // `fetch` keeps the secret_id for its next login; what it served is wiped from its heap.
    assert_eq!(
        scan(fetch, &values[..2]),
        (0, 0),
        "(copies, locked mappings read) in fetch"
    );
    assert_eq!(agent.stop().code, 0);
}

/// Stops when a file is there, so that the next life begins when the test wants it.
const STOPS_SLOWLY: &str = "trap 'echo told to stop; until [ -e /tmp/go ]; do /bin/sleep 0.05; done; exit 0' TERM; echo started; while :; do /bin/sleep 60 & wait; done";

/// A child of supervise that is the application's user already and waits in `execve(2)`: the first
/// directory of its `PATH` is the mount, and `serve` stands still.
fn at_exec(agent: &Agent) -> Pid {
    let is_it = |pid: &Pid| {
        let uid =
            status(*pid, "Uid").and_then(|uids| Some(uids.split_whitespace().next()?.to_owned()));
        status(*pid, "Name").as_deref() == Some("baofs") && uid == Some(USER.to_string())
    };
    let all = || format!("{:?}\n{}", agent.processes(), agent.log());
    wait_until_or("the child waits", all, || {
        children(agent.pid()).into_iter().find(is_it)
    })
}

fn holds_locked_memory(pid: Pid) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root reads it");
    assert!(
        maps.contains("[stack]"),
        "it waits in another place: {maps}"
    );
    maps.lines()
        .any(|line| line.contains("/secretmem") || line.contains("/dev/zero"))
}

#[test]
fn between_fork_and_exec_the_application_has_nothing_of_the_agents() {
    let tenant = Tenant::real("at-exec", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let text = config::usual(&tenant)
        + "app {\n  on_change = { restart = true }\n  stop_timeout = \"1h\"\n}\n";
    let setup = Setup::new(World::Fuse, &tenant, &text).options(&["--user", &USER.to_string()]);
    let agent = setup
        .variable("PATH", "/app/secrets:/usr/sbin:/usr/bin:/sbin:/bin")
        .script(STOPS_SLOWLY)
        .started();
    tenant.put("note", json!({ "text": "new" }));
    agent.wait_for_line("told to stop");
    let serve = agent.role("serve");
    signal(serve, Signal::SIGSTOP);
    std::fs::write(agent.path("/tmp/go"), "").expect("root writes there");
    let child = at_exec(&agent);
    assert!(holds_locked_memory(agent.pid()) && !holds_locked_memory(child));
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(
            status(child, set).as_deref(),
            Some("0000000000000000"),
            "{set}"
        );
    }
    let inside = status(child, "NSpid")
        .and_then(|ids| ids.split_whitespace().last().map(str::to_owned))
        .expect("it waits");
    let look = outcome(
        agent
            .enter(USER, &["cat", &format!("/proc/{inside}/environ")])
            .env_clear(),
    );
    assert!(
        String::from_utf8_lossy(&look.stderr).contains("Permission denied"),
        "{look:?}"
    );
    let core = |pid: Pid| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .map(str::to_owned)
    };
    assert_eq!(
        core(child),
        core(agent.pid()),
        "the application inherits it"
    );
    assert!(
        status(child, "Name").as_deref() == Some("baofs"),
        "it waited all the time"
    );
    signal(serve, Signal::SIGCONT);
    let again = || {
        (agent
            .printed()
            .lines()
            .filter(|line| *line == "started")
            .count()
            == 2)
            .then_some(())
    };
    wait_until_or("the application runs again", || agent.log(), again);
    assert_eq!(agent.stop().code, 0);
}
