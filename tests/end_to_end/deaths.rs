//! Any process of the agent may die, and nobody notices: not the application, not a reader, not the server.

use crate::rig::agent::{Agent, End, MOUNT, Place, Setup};
use crate::rig::process::{family, signal, status};
use crate::rig::server::{CALM, Scene, Tenant, Which};
use crate::rig::{World, config, wait_until, wait_until_or};
use baofs::exit::Exit;
use baofs::status::{DIRECTORY, FILE, Report};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

in_each_scene!(a_dead_fetch_costs_no_request);
in_each_world!(a_role_that_dies_again_and_again_ends_the_container);

/// Where the server does not matter.
const FUSE: Scene = Scene { world: World::Fuse, which: Which::Standin };

/// Reads nothing again by itself: what is asked after the start is asked because of a death, or of HUP.
fn setup(scene: Scene, name: &str) -> (Tenant, Setup) {
    let tenant = scene.tenant(name, CALM);
    tenant.put("note", json!({ "text": "old" }));
    let setup = Setup::new(scene.world, &tenant, &(config::usual(&tenant).replace("100ms", "1h") + "app {\n  on_hup = \"refresh\"\n}\n"));
    (tenant, setup)
}

fn started(setup: Setup) -> Agent {
    let agent = setup.place(Place::UnderShell).start();
    agent.wait_for_line("started");
    agent
}

fn report(agent: &Agent) -> Report {
    let text = agent.read(&format!("{DIRECTORY}/{FILE}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Kills a role and waits for its successor.
fn replace(agent: &Agent, role: &str, number: Signal) {
    let old = agent.role(role);
    let another = || {
        // More than once: Rust's own handler takes the first SEGV for a stack that overflowed, and waits for the fault to come again.
        signal(old, number);
        (agent.role(role) != old).then_some(())
    };
    wait_until_or(&format!("another {role} runs"), || agent.log(), another);
}

fn assert_nothing_left(tenant: &Tenant, end: &End) {
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(!end.stdout.contains("left "), "{}\n{}", end.stdout, end.stderr);
    tenant.assert_nothing_lives();
}

fn a_dead_fetch_costs_no_request(scene: Scene) {
    let (tenant, setup) = setup(scene, "fetch-dies");
    let agent = started(setup);
    let (user, creds, note) = (agent.read("user"), tenant.creds(), tenant.kv("note"));
    let asked = || (tenant.reads(&creds), tenant.reads(&note), tenant.tokens(), tenant.leases());
    wait_until("all is quiet", || (asked() == (1, 1, 1, 1)).then_some(()));
    for _ in 0..5 {
        replace(&agent, "fetch", Signal::SIGKILL);
    }
    assert_eq!(agent.read("user"), user);
    tenant.put("note", json!({ "text": "new" }));
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.read_after("note", "old"), "new");
    assert_eq!(asked(), (1, 2, 1, 1), "{}", agent.log());
    wait_until("the deaths are reported", || (report(&agent).roles.fetch_deaths >= 5).then_some(()));
    assert_nothing_left(&tenant, &agent.stop());
}

#[test]
fn a_dead_serve_is_not_an_event_for_readers() {
    let (tenant, setup) = setup(FUSE, "serve-dies");
    let agent = started(setup);
    let path = agent.path(MOUNT).join("note");
    let mut open = File::open(&path).expect("the note can be opened");
    let inode = open.metadata().expect("it has attributes").ino();
    for number in [Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGKILL] {
        replace(&agent, "serve", number);
        assert_eq!(agent.read("note"), "old");
    }
    tenant.put("note", json!({ "text": "new" }));
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.read_after("note", "old"), "new");
    let mut text = String::new();
    open.read_to_string(&mut text).expect("what was open still is");
    assert_eq!((text.as_str(), open.metadata().expect("it has attributes").ino()), ("old", inode));
    let report = wait_until("it is reported", || Some(report(&agent)).filter(|report| report.roles.serve_deaths == 3));
    assert!(report.roles.recovery.is_some());
    drop(open);
    assert_nothing_left(&tenant, &agent.stop());
}

/// A stranger's SEGV looks like its own.
fn a_role_that_dies_again_and_again_ends_the_container(world: World) {
    let (tenant, setup) = setup(Scene { world, ..FUSE }, "loop");
    let text = config::usual(&tenant) + "app {\n  crash_loop_timeout = \"1s\"\n}\n";
    let agent = started(setup.file("agent-config.hcl", &text));
    let entry = agent.pid();
    wait_until("the agent gives up", || {
        let fetch = family(entry).into_iter().find(|pid| status(*pid, "Name").is_some_and(|name| name == "baofs-fetch"));
        let _ = fetch.map(|pid| kill(pid, Signal::SIGSEGV));
        kill(entry, None).is_err().then_some(())
    });
    let end = agent.end();
    assert_eq!(end.code, i32::from(Exit::CrashLoop.code()), "{}", end.stderr);
    assert!(!end.stdout.contains("left "), "{}", end.stdout);
}
