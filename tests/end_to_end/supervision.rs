//! What a container's entry point owes: exit codes, signals, children, an end in order, whatever ends first.

use crate::rig::agent::{Agent, End, MOUNT, Place, Setup, Stderr, USER};
use crate::rig::process::{signal, status};
use crate::rig::server::{CALM, Scene, Tenant, Which};
use crate::rig::{World, config, wait_until};
use baofs::exit::Exit;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use serde_json::json;
use std::os::fd::OwnedFd;

in_each_scene!(an_end_leaves_nothing, a_full_log_pipe_blocks_nothing, mount_serves_until_it_is_told_to_stop);
in_each_world!(exit_codes_pass_through, a_dead_fetch_stops_the_application);

/// An application that says what reaches it, and when it is told to stop.
const TELLS: &str = "trap 'echo told to stop; exit 3' TERM; trap 'echo got INT; exit 4' INT; trap 'echo got HUP' HUP
echo started; while :; do sleep 60 & wait; kill $! 2>&-; done";

/// Where the server does not matter.
const FUSE: Scene = Scene { world: World::Fuse, which: Which::Standin };

fn setup(scene: Scene, name: &str) -> (Tenant, Setup) {
    let tenant = scene.tenant(name, CALM);
    tenant.put("note", json!({ "text": "old" }));
    let setup = Setup::new(scene.world, &tenant, &config::usual(&tenant));
    (tenant, setup)
}

fn started(setup: Setup) -> Agent {
    let agent = setup.start();
    agent.wait_for_line("started");
    agent
}

fn assert_nothing_left(tenant: &Tenant, end: &End) {
    let left: Vec<_> = end.stdout.lines().filter(|line| line.starts_with("left ")).collect();
    assert!(left.is_empty(), "{left:?}\n{}", end.stderr);
    tenant.assert_nothing_lives();
}

fn code(exit: Exit) -> i32 {
    i32::from(exit.code())
}

fn exit_codes_pass_through(world: World) {
    for place in [Place::Init, Place::UnderShell] {
        for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
            let (tenant, setup) = setup(Scene { world, ..FUSE }, &format!("code-{expected}-{place:?}"));
            let end = setup.place(place).script(script).outcome();
            assert_eq!(end.code, expected, "`{script}` {place:?}: {}", end.stderr);
            assert_nothing_left(&tenant, &end);
        }
    }
}

#[test]
fn signals_reach_the_application() {
    for (number, line, expected) in [(Signal::SIGTERM, "told to stop", 3), (Signal::SIGINT, "got INT", 4)] {
        let (tenant, setup) = setup(FUSE, "signals");
        let agent = started(setup.script(TELLS));
        agent.signal(Signal::SIGHUP);
        agent.wait_for_line("got HUP");
        agent.signal(number);
        let end = agent.end();
        assert!(end.stdout.lines().any(|it| it == line), "{}", end.stdout);
        assert_eq!(end.code, expected, "{}", end.stderr);
        assert_nothing_left(&tenant, &end);
    }
}

#[test]
fn a_deaf_application_is_killed() {
    let (tenant, setup) = setup(FUSE, "deaf");
    let text = config::usual(&tenant) + "app {\n  stop_timeout = \"300ms\"\n}\n";
    let agent = started(setup.file("agent-config.hcl", &text).script("trap '' TERM; echo started; while :; do sleep 60; done"));
    let end = agent.stop();
    assert_eq!(end.code, 137, "{}", end.stderr);
    assert_nothing_left(&tenant, &end);
}

#[test]
fn orphans_are_reaped() {
    let (_tenant, setup) = setup(FUSE, "orphans");
    let agent = started(setup.script("sh -c 'sleep 0.2 & echo orphan $!'; echo started; exec sleep 60"));
    let orphan = agent.printed().lines().find_map(|line| line.strip_prefix("orphan ").map(str::to_owned)).expect("it was printed");
    let is_orphan = |pid| status(pid, "NSpid").is_some_and(|ids| ids.split_whitespace().last() == Some(&orphan));
    wait_until("the orphan is reaped", || (!agent.processes().iter().any(|(pid, _)| is_orphan(*pid))).then_some(()));
    assert_eq!(agent.stop().code, 143);
}

fn an_end_leaves_nothing(scene: Scene) {
    let (tenant, setup) = setup(scene, "end");
    let agent = started(setup.place(Place::UnderShell));
    let user = agent.read("user");
    assert!(tenant.knows(&user));
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_nothing_left(&tenant, &end);
    assert!(!tenant.knows(&user));
}

fn a_dead_fetch_stops_the_application(world: World) {
    let (_tenant, setup) = setup(Scene { world, ..FUSE }, "fetch-dies");
    assert_role_death_stops(setup, "fetch");
}

#[test]
fn a_dead_serve_stops_the_application() {
    let (_tenant, setup) = setup(FUSE, "serve-dies");
    assert_role_death_stops(setup, "serve");
}

/// The token of a dead fetch lives to its ttl: only what is here can be asserted.
fn assert_role_death_stops(setup: Setup, role: &str) {
    let agent = started(setup.place(Place::UnderShell).script(TELLS));
    signal(agent.role(role), Signal::SIGKILL);
    let end = agent.end();
    assert_eq!(end.code, code(Exit::Software), "{}", end.stderr);
    assert!(end.stdout.contains("told to stop"), "the application was not asked to stop: {}", end.stdout);
    assert!(!end.stdout.contains("left "), "{}", end.stdout);
}

#[test]
fn an_application_that_cannot_start_has_its_own_codes() {
    for (name, program, exit) in [("app-missing", "/no/such/program", Exit::NotFound), ("app-file", "/etc/passwd", Exit::CannotExecute)] {
        let (tenant, setup) = setup(FUSE, name);
        let end = setup.place(Place::UnderShell).app(&[program]).outcome();
        assert_eq!(end.code, code(exit), "{}", end.stderr);
        assert_nothing_left(&tenant, &end);
    }
}

#[test]
fn the_application_gets_a_clean_environment_and_its_own_user() {
    let (_tenant, setup) = setup(FUSE, "environment");
    let secrets = ["BAO_TOKEN", "VAULT_TOKEN", "BAO_CLIENT_KEY", "VAULT_NAMESPACE", "BAO_ADDR_X"];
    let setup = secrets.iter().take(2).fold(setup, |setup, name| setup.variable(name, "a-credential"));
    let script =
        "env; id -u; id -g; id -G; echo \"home $HOME\"; cat /app/secrets/note; grep -E '^(CapEff|CapPrm|CapAmb)' /proc/self/status";
    let end = setup.variable("KEPT", "yes").options(&["--user", &format!("{USER}")]).script(script).outcome();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(end.stdout.contains("KEPT=yes"));
    for name in secrets {
        assert!(!end.stdout.contains(name), "{name} is in the application's environment");
    }
    assert!(!end.stdout.contains("a-credential"));
    assert!(end.stdout.contains(&format!("\n{USER}\n")), "{}", end.stdout);
    assert!(end.stdout.contains("old"), "{}", end.stdout);
    for line in end.stdout.lines().filter(|line| line.starts_with("Cap")) {
        assert!(line.ends_with("0000000000000000"), "the application has a right: {line}");
    }
}

#[test]
fn the_terminal_is_the_applications() {
    let (tenant, setup) = setup(FUSE, "terminal");
    // What is typed once the application is up: the terminal sends INT to its foreground group, and that is the application's alone.
    let setup = setup.prepare(
        r#"mkdir /dev/pts; mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts; ln -s pts/ptmx /dev/ptmx
        cat >/tmp/app <<'END'
trap 'echo got INT; exit 5' INT
[ "$(ps -o tpgid= -p $$)" = "$(ps -o pgid= -p $$)" ] && echo in the foreground
while :; do sleep 0.05; done
END
        touch /tmp/typed
        (until grep -q foreground /tmp/typed; do sleep 0.02; done; printf '\003') |
            script -qefc '/entry/baofs run -- sh /tmp/app' /tmp/typed >&2 && code=0 || code=$?
        echo "typed: $code"; grep -o 'got INT' /tmp/typed"#,
    );
    let end = setup.script("exit 0").outcome();
    assert!(end.stdout.starts_with("typed: 5\ngot INT\n"), "{}\n{}", end.stdout, end.stderr);
    assert_nothing_left(&tenant, &end);
}

#[test]
fn a_dead_mount_in_the_way_is_cleared() {
    let (_tenant, setup) = setup(FUSE, "dead-mount");
    // The whole agent dies at once, as a kill by the kernel for want of memory leaves it.
    let setup = setup.prepare(
        "/entry/baofs mount >&2 & until [ -e /app/secrets/note ]; do sleep 0.02; done; kill -9 $!
        while stat /app/secrets >/dev/null 2>&1; do sleep 0.02; done; stat /app/secrets 2>&1 | grep -o 'Transport endpoint.*'",
    );
    let agent = started(setup.place(Place::UnderShell));
    assert_eq!(agent.read("note"), "old");
    let end = agent.stop();
    assert!(end.stdout.starts_with("Transport endpoint is not connected"), "the first agent left no dead mount: {}", end.stdout);
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(!end.stdout.contains("left "), "{}", end.stdout);
}

/// A pipe that is full and that nobody reads: its reading end, its writing end.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("the pipe is ours");
    for size in [4096, 1] {
        while nix::unistd::write(&writer, &vec![b'.'; size]).is_ok() {}
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("the pipe is ours");
    (reader, writer)
}

fn a_full_log_pipe_blocks_nothing(scene: Scene) {
    let (tenant, setup) = setup(scene, "full");
    let (_reader, writer) = full_pipe();
    let agent = started(setup.stderr(Stderr::Given(writer)));
    tenant.put("note", json!({ "text": "new" }));
    assert_eq!(agent.read_after("note", "old"), "new");
    let end = agent.stop();
    assert_eq!(end.code, 0);
    assert_nothing_left(&tenant, &end);
}

fn mount_serves_until_it_is_told_to_stop(scene: Scene) {
    let (tenant, setup) = setup(scene, "mount");
    let agent = setup.mount_only().place(Place::UnderShell).start();
    assert_eq!(agent.read("note"), "old");
    assert!(agent.path(MOUNT).is_dir());
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_nothing_left(&tenant, &end);
}
