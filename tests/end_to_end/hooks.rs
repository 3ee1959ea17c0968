//! How the application is told of a rotation: by a signal, a command, a restart.

use crate::rig::agent::{Agent, Setup, USER};
use crate::rig::process::status;
use crate::rig::server::{CALM, Scene, Tenant};
use crate::rig::{World, config, wait_until_or};
use nix::sys::signal::Signal;
use serde_json::json;

in_each_world!(
    a_signal_tells_the_application,
    a_command_runs_as_the_application_does,
    a_command_that_fails_changes_nothing,
    a_command_runs_once_at_a_time,
    a_command_runs_without_an_application_too,
    a_restart_lets_the_application_begin_again,
    a_stop_during_a_restart_is_a_stop,
);

/// An application that counts what it is told.
const COUNTS: &str = "n=0; trap 'n=$((n+1)); echo told $n' USR1; trap 'exit 0' TERM
echo started; while :; do sleep 60 & wait $!; kill $! 2>&-; done";

/// One secret, and an application with this `on_change` and these other settings.
pub(super) fn setup(world: World, name: &str, on_change: &str, more: &str) -> (Tenant, Setup) {
    let tenant = Scene::of(world).tenant(name, CALM);
    rotate(&tenant, "v0");
    let app = format!("app {{\n  on_change = {{ {on_change} }}\n{more}\n}}\n");
    let text =
        config::login(&tenant.url()) + &config::field("note", &tenant.kv("note"), "text") + &app;
    let setup = Setup::new(world, &tenant, &text);
    (tenant, setup)
}

/// The same with a shell line as the command.
pub(super) fn with_command(world: World, name: &str, line: &str, more: &str) -> (Tenant, Setup) {
    let quoted = line.replace('\\', "\\\\").replace('"', "\\\"");
    setup(
        world,
        name,
        &format!("command = [\"sh\", \"-c\", \"{quoted}\"]{more}"),
        "",
    )
}

pub(super) fn rotate(tenant: &Tenant, value: &str) {
    tenant.put("note", json!({ "text": value }));
}

/// Rotates through `values`, each seen before the next.
fn rotate_through(tenant: &Tenant, agent: &Agent, values: &[&str]) {
    for value in values {
        rotate(tenant, value);
        wait_until_or(
            "the new value is served",
            || agent.log(),
            || (agent.try_read("note")? == *value).then_some(()),
        );
    }
}

/// Waits for `part` in the log.
pub(super) fn wait_for_log(agent: &Agent, part: &str) {
    wait_until_or(
        &format!("the log says `{part}`"),
        || agent.log(),
        || agent.log().contains(part).then_some(()),
    );
}

fn a_signal_tells_the_application(world: World) {
    let (tenant, setup) = setup(world, "hook-signal", r#"signal = "USR1""#, "");
    let agent = setup.script(COUNTS).started();
    rotate(&tenant, "v1");
    agent.wait_for_line("told 1");
    assert_eq!(agent.read("note"), "v1");
    rotate(&tenant, "v2");
    agent.wait_for_line("told 2");
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

#[test]
fn what_comes_within_the_debounce_is_told_as_one() {
    let (tenant, setup) = setup(
        World::Fuse,
        "hook-debounce",
        r#"signal = "USR1", debounce = "3s", splay = "10ms""#,
        "",
    );
    let agent = setup.script(COUNTS).started();
    let values = ["v1", "v2", "v3", "v4", "v5", "v6"];
    rotate_through(&tenant, &agent, &values);
    agent.wait_for_line("told 1");
    let end = agent.stop();
    assert!(
        end.stdout.matches("told").count() < values.len(),
        "{}",
        end.stdout
    );
    assert!(
        end.stderr.matches("published").count() >= values.len(),
        "{}",
        end.stderr
    );
}

fn a_command_runs_as_the_application_does(world: World) {
    let line = "echo \"hook of $(id -u):$(id -g) with $(id -G), HOME=$HOME KEPT=$KEPT sees $(cat /app/secrets/note)\"
env | grep -c ^BAO_TOKEN; read it || echo no input; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; echo on stderr >&2";
    let (tenant, setup) = with_command(world, "hook-command", line, "");
    let user = format!("{USER}:{USER}");
    let agent = setup
        .variable("BAO_TOKEN", "a-credential")
        .variable("KEPT", "yes")
        .options(&["--user", &user])
        .started();
    rotate(&tenant, "v1");
    wait_for_log(&agent, "on stderr");
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(
        end.stderr
            .contains(&format!("hook of {USER}:{USER} with {USER}, HOME=")),
        "{}",
        end.stderr
    );
    assert!(
        end.stderr
            .contains("KEPT=yes sees v1\n0\nno input\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n"),
        "{}",
        end.stderr
    );
    assert_eq!(
        end.stdout, "started\n",
        "the application's output is its own"
    );
}

fn a_command_that_fails_changes_nothing(world: World) {
    let table = [
        (
            r#"command = ["sh", "-c", "exit 3"]"#,
            r#"program="sh" why="exit code 3""#,
        ),
        (
            r#"command = ["sh", "-c", "kill -9 $$"]"#,
            r#"program="sh" why="signal 9""#,
        ),
        (
            r#"command = ["/no/such/program", "word"]"#,
            r#"program="/no/such/program" why="not found (exit code 127)""#,
        ),
        (
            r#"command = ["/etc/passwd"]"#,
            r#"program="/etc/passwd" why="it cannot be executed (exit code 126)""#,
        ),
        (
            r#"command = ["sh", "-c", "echo pid $$; sleep 600 & wait"], timeout = "200ms""#,
            r#"program="sh" why="killed after its timeout""#,
        ),
    ];
    for (n, (on_change, words)) in table.into_iter().enumerate() {
        let (tenant, setup) = setup(world, &format!("hook-fails-{n}"), on_change, "");
        let agent = setup.started();
        rotate(&tenant, "v1");
        wait_for_log(&agent, words);
        assert_eq!(agent.read("note"), "v1");
        assert!(
            !agent
                .processes()
                .iter()
                .any(|(pid, _)| command_line(*pid).contains("sleep 600")),
            "its group is killed"
        );
        let end = agent.stop();
        assert_eq!(
            (
                end.code,
                end.stderr
                    .matches("command after a rotation failed")
                    .count()
            ),
            (0, 1),
            "{}",
            end.stderr
        );
        tenant.assert_nothing_lives();
    }
}

fn command_line(pid: nix::unistd::Pid) -> String {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

fn a_command_runs_once_at_a_time(world: World) {
    let line =
        "mkdir /tmp/running || echo overlap; echo run; until [ -e /tmp/gate ]; do sleep 0.02; done
echo \"saw $(cat /app/secrets/note)\"; rmdir /tmp/running";
    let (tenant, setup) = with_command(world, "hook-once", line, "");
    let agent = setup.started();
    rotate(&tenant, "v1");
    wait_for_log(&agent, "run\n");
    rotate_through(&tenant, &agent, &["v2", "v3", "v4", "v5"]);
    std::fs::write(agent.path("/tmp/gate"), "").expect("the room has a /tmp");
    wait_for_log(&agent, "saw v5\n");
    rotate(&tenant, "v6");
    wait_for_log(&agent, "saw v6\n");
    let end = agent.stop();
    assert!(!end.stderr.contains("overlap"), "{}", end.stderr);
    assert!(
        end.stderr.lines().filter(|line| *line == "run").count() < 6,
        "nothing was merged: {}",
        end.stderr
    );
}

fn a_command_runs_without_an_application_too(world: World) {
    let (tenant, setup) = with_command(
        world,
        "hook-mount",
        "echo \"saw $(cat /app/secrets/note)\"; exec sleep 600",
        "",
    );
    let agent = setup.mount_only().start();
    assert_eq!(agent.read("note"), "v0");
    rotate(&tenant, "v1");
    wait_for_log(&agent, "saw v1\n");
    // Its command runs still: that delays nothing.
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

/// An application that leaves behind what is deaf to TERM.
const LEAVES: &str = "(trap '' TERM; echo left $(sh -c 'echo $PPID'); while :; do sleep 60; done) &
trap 'echo told to stop; exit 3' TERM; echo \"begun with $(cat /app/secrets/note)\"
echo started; while :; do sleep 60 & wait $!; done";

fn a_restart_lets_the_application_begin_again(world: World) {
    let (tenant, setup) = setup(world, "hook-restart", "restart = true", "");
    let agent = setup.script(LEAVES).started();
    let left = wait_until_or("it leaves something", || agent.log(), || left(&agent));
    rotate(&tenant, "v1");
    agent.wait_for_line("begun with v1");
    assert!(
        !agent
            .processes()
            .iter()
            .any(|(pid, _)| inside(*pid).as_deref() == Some(&left)),
        "{left} is still there"
    );
    let end = agent.stop();
    let told: Vec<_> = end
        .stdout
        .lines()
        .filter(|line| line.starts_with("told") || line.starts_with("begun"))
        .collect();
    assert_eq!(
        told,
        [
            "begun with v0",
            "told to stop",
            "begun with v1",
            "told to stop"
        ]
    );
    assert_eq!(end.code, 3, "{}", end.stderr);
    tenant.assert_nothing_lives();
}

/// The process that the application leaves, as the room counts.
fn left(agent: &Agent) -> Option<String> {
    agent
        .printed()
        .lines()
        .find_map(|line| line.strip_prefix("left ").map(str::to_owned))
}

/// The number of a process in its room.
fn inside(pid: nix::unistd::Pid) -> Option<String> {
    status(pid, "NSpid")?
        .split_whitespace()
        .last()
        .map(str::to_owned)
}

fn a_stop_during_a_restart_is_a_stop(world: World) {
    let (tenant, setup) = setup(
        world,
        "hook-restart-stop",
        "restart = true",
        "  stop_timeout = \"50s\"",
    );
    let agent = setup
        .script("trap 'echo told to stop' TERM; echo started; while :; do sleep 60 & wait $!; done")
        .started();
    rotate(&tenant, "v1");
    agent.wait_for_line("told to stop");
    agent.signal(Signal::SIGTERM);
    // The first TERM is taken before the second: one pending signal hides another.
    wait_until_or(
        "it is taken",
        || agent.log(),
        || {
            (status(agent.pid(), "SigPnd")? + &status(agent.pid(), "ShdPnd")? == "0".repeat(32))
                .then_some(())
        },
    );
    agent.signal(Signal::SIGTERM);
    let end = agent.end();
    assert_eq!(
        (end.code, end.stdout.matches("started").count()),
        (137, 1),
        "{}",
        end.stderr
    );
    tenant.assert_nothing_lives();
}
