//! A process of the agent that is stopped, or hangs in the middle of an operation: nobody waits for it without a bound.

use super::hooks::{rotate, setup, wait_for_log, with_command};
use crate::rig::World;
use crate::rig::agent::{Agent, Setup};
use crate::rig::process::stop_with_a_request_in_hand;
use crate::rig::server::Tenant;
use baofs::clock::{Clock, RealClock};
use std::time::Duration;

/// Reads a secret as soon as somebody opens the gate.
const READS: &str = "echo waits; until [ -e /tmp/gate ]; do sleep 0.02; done; exec cat /app/secrets/note";
const STOP_TIMEOUT: &str = "  stop_timeout = \"300ms\"";

/// What a test runs on, and who asks `serve` for something when `open_gate` is called.
type Asker = (&'static str, fn() -> (Tenant, Setup), fn(&Tenant, &Agent), fn(&Tenant, &Agent));

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
            let (tenant, setup) = setup(World::Fuse, "hangs-app", "signal = \"USR1\"", STOP_TIMEOUT);
            (tenant, setup.script(&READS.replace("waits", "started")))
        },
        |_, _| {},
        open_gate,
    ),
    ("the announcing thread", || setup(World::Fuse, "hangs-fetch", "signal = \"CONT\"", STOP_TIMEOUT), |_, _| {}, |tenant, _| rotate(tenant, "v1")),
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
        assert!(took < Duration::from_secs(9), "the stop took {took:?}, because {who} waits\n{}", end.stderr);
        tenant.assert_nothing_lives();
    }
}
