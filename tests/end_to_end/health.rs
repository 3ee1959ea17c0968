//! A health check inside the application's container, as the application's user, with no right at
//! all: the agent works, or one of its processes is stopped and cannot say so itself.

use crate::rig::agent::{Agent, MOUNT, USER};
use crate::rig::process::{outcome, signal};
use crate::rig::server::{Scene, Tenant};
use crate::rig::{World, wait_until_or};
use nix::sys::signal::Signal;

in_each_world!(a_stopped_fetch_is_said);

/// An application that notices nothing.
const SLEEPS: &str = "echo started; sleep 1000";

fn started(world: World, name: &str) -> (Tenant, Agent) {
    let (tenant, setup) = Scene::of(world).usual(name);
    (tenant, setup.script(SLEEPS).started())
}

/// `baofs health`, which has to find the mount by itself: code and output.
pub(super) fn health(agent: &Agent) -> (i32, String) {
    let said = outcome(&mut agent.enter(USER, &["/entry/baofs", "health"]));
    (
        said.status.code().expect("no signal ended it"),
        String::from_utf8_lossy(&said.stdout).into_owned(),
    )
}

fn assert_becomes(agent: &Agent, code: i32, part: &str) {
    let becomes =
        || Some(health(agent)).filter(|(found, out)| *found == code && out.contains(part));
    wait_until_or(
        &format!("the check says `{part}`"),
        || format!("{:?}\n{}", health(agent), agent.log()),
        becomes,
    );
}

#[test]
fn a_stopped_serve_is_said() {
    let (_tenant, agent) = started(World::Fuse, "health-serve");
    let serve = agent.role("serve");
    signal(serve, Signal::SIGSTOP);
    assert_becomes(&agent, 1, "no answer within 2s");
    signal(serve, Signal::SIGCONT);
    agent.stop();
}

fn a_stopped_fetch_is_said(world: World) {
    let (_tenant, agent) = started(world, "health-fetch");
    assert_becomes(&agent, 0, "healthy\n");
    let fetch = agent.role("fetch");
    signal(fetch, Signal::SIGSTOP);
    assert_becomes(&agent, 0, "has not reported for");
    // The watchdog ends that before the report counts as overdue.
    assert_becomes(&agent, 0, "healthy\n");
    assert_ne!(agent.role("fetch"), fetch, "another one reports");
    agent.stop();
}

/// A machine that turns a swap on after the start.
#[test]
fn a_swap_that_is_turned_on_later_is_said() {
    const SWAP: &str = "Filename\tType\tSize\tUsed\tPriority\n/dev/vdb partition\t8388604\t0\t-2\n";
    let (_tenant, setup) = Scene::of(World::Tmpfs).usual("health-swap");
    let given = format!("mount -t tmpfs -o size=1m,mode=1777 given {MOUNT}");
    let proc = "head -n 1 /proc/swaps >/tmp/swaps; chmod 666 /tmp/swaps; mount --bind /tmp/swaps /proc/swaps";
    let rights = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ];
    let agent = setup
        .script(SLEEPS)
        .prepare(&given)
        .prepare(proc)
        .rights(&rights)
        .started();
    assert_becomes(&agent, 0, "healthy\n");
    let swaps = agent.path("/tmp/swaps");
    let header = std::fs::read(&swaps).expect("the room has one");
    for _ in 0..2 {
        std::fs::write(&swaps, SWAP).expect("it is ours");
        assert_becomes(
            &agent,
            0,
            "degraded: agent: files could be written to a swap: the machine has a swap",
        );
        // A successor is told, too.
        super::deaths::replace(&agent, "fetch", Signal::SIGKILL);
        assert_becomes(
            &agent,
            0,
            "degraded: agent: files could be written to a swap: the machine has a swap",
        );
        std::fs::write(&swaps, &header).expect("it is ours");
        assert_becomes(&agent, 0, "healthy\n");
    }
    let end = agent.stop();
    let warnings = end
        .stderr
        .matches("secrets may reach a swap that was turned on since the start")
        .count();
    assert_eq!(
        (
            warnings,
            end.stderr
                .matches("secrets cannot reach a swap any more")
                .count()
        ),
        (2, 2),
        "{}",
        end.stderr
    );
}
