//! A health check inside the application's container, as the application's user, with no right at all: the agent works, or
//! one of its processes is stopped and cannot say so itself.

use crate::rig::agent::{Agent, Setup, USER};
use crate::rig::process::{outcome, signal};
use crate::rig::server::{CALM, Scene, Tenant, Which};
use crate::rig::{World, config, wait_until_or};
use nix::sys::signal::Signal;
use serde_json::json;

in_each_world!(a_stopped_fetch_is_said);

fn started(world: World, name: &str) -> (Tenant, Agent) {
    let tenant = Scene { world, which: Which::Standin }.tenant(name, CALM);
    tenant.put("note", json!({ "text": "old" }));
    let agent = Setup::new(world, &tenant, &config::usual(&tenant)).script("echo started; sleep 1000").started();
    (tenant, agent)
}

/// `baofs health`, which has to find the mount by itself: code and output.
pub(super) fn health(agent: &Agent) -> (i32, String) {
    let said = outcome(&mut agent.enter(USER, &["/entry/baofs", "health"]));
    (said.status.code().expect("no signal ended it"), String::from_utf8_lossy(&said.stdout).into_owned())
}

fn assert_becomes(agent: &Agent, code: i32, part: &str) {
    let becomes = || Some(health(agent)).filter(|(found, out)| *found == code && out.contains(part));
    wait_until_or(&format!("the check says `{part}`"), || format!("{:?}\n{}", health(agent), agent.log()), becomes);
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
    assert_becomes(&agent, 1, "overdue");
    signal(fetch, Signal::SIGCONT);
    assert_becomes(&agent, 0, "healthy\n");
    agent.stop();
}
