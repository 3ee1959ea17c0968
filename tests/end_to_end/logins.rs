//! Logins that the server refuses: how many are sent, and what brings the next. The server locks a
//! role for all replicas after five.

use crate::rig::agent::{Agent, Setup};
use crate::rig::process::{signal, status};
use crate::rig::server::{CALM, Scene, Server, Tenant, Which};
use crate::rig::standin::{Role, Standin};
use crate::rig::{World, config, wait_until_or};
use baofs::clock::{Clock, Moment, RealClock};
use baofs::exit::Exit;
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

in_each_scene!(a_wrong_secret_id_costs_two_logins_and_a_good_one_is_taken_at_once);

const WRONG: &str = "00000000-1111-2222-3333-444444444444";

/// Waits until the agent has said that it waits for other credentials.
fn wait_for_refusal(agent: &Agent, times: usize) {
    let said = || {
        agent
            .log()
            .matches("waiting for another role_id or secret_id")
            .count()
    };
    wait_until_or(
        "the login is final",
        || agent.log(),
        || (said() == times).then_some(()),
    );
    // What was said is in the journal when `fetch` waits again.
    let sleeps =
        || status(agent.role("fetch"), "State").is_some_and(|state| state.starts_with('S'));
    wait_until_or("fetch waits", || agent.log(), || sleeps().then_some(()));
}

/// Replaces a file of /etc/bao at once, as a secret store does.
fn replace(agent: &Agent, name: &str, text: &str) {
    std::fs::write(agent.etc("new"), text).expect("a file is written");
    std::fs::rename(agent.etc("new"), agent.etc(name)).expect("a file is replaced");
}

fn a_wrong_secret_id_costs_two_logins_and_a_good_one_is_taken_at_once(scene: Scene) {
    let (tenant, setup) = scene.usual("refused-login");
    let agent = setup
        .file("secret_id", WRONG)
        .options(&["--wait", "60s"])
        .start();
    wait_for_refusal(&agent, 1);
    assert_eq!(tenant.refused_logins(), 2, "{}", agent.log());
    // Neither deaths of `fetch` nor a HUP bring fresh tries.
    for _ in 0..8 {
        let fetch = agent.role("fetch");
        signal(fetch, Signal::SIGKILL);
        agent.signal(Signal::SIGHUP);
        wait_until_or(
            "another fetch works",
            || agent.log(),
            || (agent.role("fetch") != fetch).then_some(()),
        );
    }
    let idle = cpu(&agent);
    std::thread::sleep(Duration::from_secs(3));
    let busy = cpu(&agent) - idle;
    assert!(busy <= 3, "{busy} ticks in 3 s while it waits for a file");
    assert_eq!(tenant.refused_logins(), 2, "{}", agent.log());
    // Another wrong one is tried twice, too: four failures, and the fifth would lock the role.
    replace(&agent, "secret_id", "00000000-1111-2222-3333-555555555555");
    wait_for_refusal(&agent, 2);
    assert_eq!(tenant.refused_logins(), 4, "{}", agent.log());
    let begin = RealClock.now();
    replace(&agent, "secret_id", &tenant.secret_id);
    agent.wait_for_line("started");
    assert!(
        RealClock.now().since(begin) < Duration::from_secs(10),
        "at once"
    );
    assert_eq!(agent.read("note"), "old");
    assert!(
        !agent.log().contains("(403)"),
        "the role was locked: {}",
        agent.log()
    );
    assert!(
        !agent.log().contains(WRONG) && !agent.log().contains(&tenant.secret_id),
        "a secret_id is in the log"
    );
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

/// The processor time that `fetch` has had, in ticks of 10 ms.
fn cpu(agent: &Agent) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.role("fetch")))
        .expect("fetch lives");
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .expect("a stat")
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // The state is a letter; user and system time are fields 14 and 15 of `proc(5)`.
    fields[10] + fields[11]
}

#[test]
fn two_starts_with_a_wrong_secret_id_leave_the_role_to_others_and_the_third_locks_it() {
    let scene = Scene {
        world: World::Tmpfs,
        which: Which::Real,
    };
    let (tenant, _) = scene.usual("refused-starts");
    let start = |secret_id: &str| {
        let setup =
            Setup::new(World::Tmpfs, &tenant, &config::usual(&tenant)).file("secret_id", secret_id);
        setup.options(&["--wait", "4s"]).app(&["true"]).outcome()
    };
    for starts in 1..=2 {
        assert_eq!(start(WRONG).code, i32::from(Exit::Login.code()));
        assert_eq!(tenant.refused_logins(), 2 * starts);
    }
    let good = start(&tenant.secret_id);
    assert_eq!(good.code, 0, "{}", good.stderr);
    // A login that worked ends the count: five more lock the role, for good credentials, too.
    for _ in 0..3 {
        assert_eq!(start(WRONG).code, i32::from(Exit::Login.code()));
    }
    let locked = start(&tenant.secret_id);
    assert_eq!(
        locked.code,
        i32::from(Exit::Login.code()),
        "{}",
        locked.stderr
    );
    assert!(
        locked.stderr.contains("the role is locked out for 15 min"),
        "{}",
        locked.stderr
    );
}

#[test]
fn another_address_of_the_server_is_asked_after_a_refusal() {
    // A node that does not know the secret_id yet, or has locked the role, and one that knows it,
    // under one name.
    for refused in [0, 5] {
        let stale = Standin::start();
        let tenant = Tenant::of(stale.twin([127, 0, 0, 2].into()), "two-nodes", CALM);
        let Server::Standin(other) = &tenant.server else {
            panic!("it is a stand-in")
        };
        tenant.put("note", json!({ "text": "a note" }));
        stale.state().add_role(Role {
            role_id: tenant.role_id.clone(),
            secret_id: WRONG.to_owned(),
            refused,
            ..Role::default()
        });
        let (address, port) = (tenant.url().replace("http://", ""), stale.address().port());
        let text = config::usual(&tenant).replace(&address, &format!("bao.test:{port}"));
        let hosts = "printf '127.0.0.1 bao.test\\n127.0.0.2 bao.test\\n' >> /etc/hosts";
        let agent = Setup::new(World::Tmpfs, &tenant, &text)
            .prepare(hosts)
            .start();
        wait_until_or(
            "the other node is asked",
            || agent.log(),
            || (tenant.logins() > 0).then_some(()),
        );
        // What follows is no matter: these two know nothing of each other's tokens.
        agent.signal(Signal::SIGTERM);
        agent.end();
        let wait = first_login(other).since(first_login(&stale));
        let at_once = wait < Duration::from_secs(1);
        assert_eq!(at_once, refused > 0, "{wait:?}");
    }
}

/// When the first login came. (A second login at the same node comes two seconds after it, or a
/// quarter of an hour.)
fn first_login(standin: &Standin) -> Moment {
    let state = standin.state();
    state
        .requests
        .iter()
        .find(|request| request.path == "auth/approle/login")
        .expect("a login")
        .at
}
