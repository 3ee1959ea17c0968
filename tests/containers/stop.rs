//! Signals, the stop, and children, under a real daemon's `docker stop`.

use crate::Case;
use crate::docker::{Container, Docker, End, IMAGE, Site};
use crate::forms::{AS_APP, FUSE, assert_nothing_left, start, start_program};
use crate::rig::server::{CALM, Server, Tenant};
use crate::rig::standin::{Fault, Standin};
use crate::rig::{config, wait_until_or};
use serde_json::json;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    (
        "a server that does not answer delays no stop",
        silent_server,
    ),
    ("signals that are passed on", passed_on),
    ("signals that stop", that_stop),
    ("an image's STOPSIGNAL", stop_signal),
    (
        "a second TERM does not wait for the application",
        second_term,
    ),
    ("TERM before the first secrets", term_while_waiting),
    ("an application that ignores TERM", deaf),
    ("an application that forks and dies", forks_and_dies),
    ("a thousand orphans", orphans),
    ("an interactive shell", shell),
    ("a log that nobody reads", full_log),
    (
        "an application that replaces the pid file",
        replaced_pid_file,
    ),
    ("a serve that stands still", stopped_serve),
];

/// Says what reaches it; TERM, INT and QUIT end it.
const TELLS: &str = "for it in HUP USR1 USR2 WINCH CONT TSTP; do trap \"echo got $it\" $it; done
trap 'echo got TERM; exit 3' TERM; trap 'echo got INT; exit 4' INT; trap 'echo got QUIT; exit 5' QUIT
echo started; while :; do sleep 60 & wait; done";
/// Does not hear TERM.
const DEAF: &str = "trap '' TERM; echo started; while :; do sleep 60; done";

/// The FUSE form with a shell script as application.
fn script<'a>(site: &Site<'a>, options: &str, script: &str) -> Container<'a> {
    start(
        site,
        &format!("{FUSE} {options}"),
        &[AS_APP, &["sh", "-c", script]],
    )
}

/// The same, once it has said that it is started.
fn started<'a>(site: &Site<'a>, options: &str, text: &str) -> Container<'a> {
    let container = script(site, options, text);
    container.wait_for_line("started");
    container
}

fn assert_ended(site: &Site<'_>, end: &End, code: i32) {
    assert_eq!(end.code, code, "{}", end.stderr);
    assert_nothing_left(site);
}

fn passed_on(docker: &Docker) {
    let site = docker.site("passed-on", CALM, "");
    let container = started(&site, "", TELLS);
    for name in ["HUP", "USR1", "USR2", "WINCH", "TSTP", "CONT"] {
        container.signal(name);
        container.wait_for_line(&format!("got {name}"));
    }
    assert_ended(&site, &container.stop(&[]), 3);
}

fn that_stop(docker: &Docker) {
    let site = docker.site("that-stop", CALM, "");
    for (name, code) in [("TERM", 3), ("INT", 4), ("QUIT", 5)] {
        let container = started(&site, "", TELLS);
        container.signal(name);
        let end = container.end();
        assert!(
            end.stdout.lines().any(|line| line == format!("got {name}")),
            "{}",
            end.stdout
        );
        assert_ended(&site, &end, code);
    }
}

fn stop_signal(docker: &Docker) {
    let site = docker.site("stop-signal", CALM, "");
    assert_ended(
        &site,
        &started(&site, "--stop-signal QUIT", TELLS).stop(&[]),
        5,
    );
}

fn second_term(docker: &Docker) {
    let site = docker.site("second-term", CALM, "app {\n  stop_timeout = \"1h\"\n}\n");
    let container = started(
        &site,
        "",
        "trap 'echo heard' TERM; echo started; while :; do sleep 60 & wait; done",
    );
    container.signal("TERM");
    container.wait_for_line("heard");
    container.signal("TERM");
    assert_ended(&site, &container.end(), 137);
}

fn term_while_waiting(docker: &Docker) {
    let missing = config::field("missing", "secret/data/early/none", "text");
    let site = docker.site("early", CALM, &(missing + "app {\n  wait = \"1h\"\n}\n"));
    let container = script(&site, "", "echo started");
    wait_until_or(
        "it has logged in",
        || container.log(),
        || (site.tenant.leases() == 1).then_some(()),
    );
    let end = container.stop(&["--time", "9"]);
    assert!(!end.stdout.contains("started"));
    assert_ended(&site, &end, 143);
}

fn deaf(docker: &Docker) {
    let site = docker.site("deaf", CALM, "app {\n  stop_timeout = \"1s\"\n}\n");
    // An hour for Docker: the kill can only be ours.
    assert_ended(
        &site,
        &started(&site, "", DEAF).stop(&["--time", "3600"]),
        137,
    );
}

fn forks_and_dies(docker: &Docker) {
    let site = docker.site("forks", CALM, "");
    assert_ended(
        &site,
        &script(&site, "", "setsid sleep 1000 & sleep 1000 & exit 7").end(),
        7,
    );
}

fn orphans(docker: &Docker) {
    let site = docker.site("orphans", CALM, "");
    let container = started(
        &site,
        "",
        "for it in $(seq 1000); do (sleep 0.5 &); done; echo started; exec sleep 1000",
    );
    let left = "grep -h ^State: /proc/[0-9]*/status | grep -c Z; grep -l '^sleep.0.5' /proc/[0-9]*/cmdline | wc -l";
    let reaped = || {
        container
            .try_exec("app", &["sh", "-c", left])
            .filter(|text| text == "0\n0")
    };
    wait_until_or(
        "all are reaped",
        || format!("{:?}", container.try_exec("app", &["sh", "-c", left])),
        reaped,
    );
    assert_ended(&site, &container.stop(&[]), 143);
}

fn shell(docker: &Docker) {
    let (site, name) = (docker.site("shell", CALM, ""), Docker::name());
    let run = format!(
        "docker run -it --name {name} {FUSE} --volume {} --entrypoint baofs {IMAGE}",
        site.volume()
    );
    let words = format!("{run} run --user app -- bash --norc");
    let mut container = docker.follow(name, &["script", "-qefc"], &[&words, "/dev/null"]);
    // What it prints is not what is typed, which the terminal shows as well.
    container.type_in("sh -c 'printf f%s irst; exec sleep 1000'\n", "first");
    container.type_in("\x03", "^C");
    container.type_in("echo code=$?\n", "code=130");
    container.type_in("sh -c 'printf s%s econd; exec sleep 1000'\n", "second");
    container.type_in("\x1a", "Stopped");
    container.type_in("kill -9 %1; disown -a; echo thi''rd; exit 4\n", "third");
    assert_ended(&site, &container.end(), 4);
}

fn full_log(docker: &Docker) {
    let site = docker.site("full-log", CALM, "");
    let fill = "mkfifo /tmp/log; exec 3<>/tmp/log
        for size in 4096 1; do dd if=/dev/zero of=/tmp/log bs=$size oflag=nonblock 2>&-; done
        exec baofs run --user app -- sh -c 'trap \"exit 6\" TERM; echo started; while :; do sleep 60 & wait; done' 2>&3 3>&-";
    let container = start_program(&site, &format!("{FUSE} --tmpfs /tmp"), "sh", &["-c", fill]);
    container.wait_for_line("started");
    site.tenant.put("note", json!({ "text": "new" }));
    assert_eq!(container.read_after("app", "note", "old"), "new");
    assert_ended(&site, &container.stop(&[]), 6);
}

/// PID 1 opens nothing that the application puts where the pid file was.
fn replaced_pid_file(docker: &Docker) {
    let site = docker.site("pid-file", CALM, "pid_file = \"/tmp/own/agent.pid\"\n");
    for replacement in [
        "mkfifo /tmp/own/agent.pid",
        "ln -s /dev/zero /tmp/own/agent.pid",
    ] {
        let app =
            format!("rm /tmp/own/agent.pid && {replacement} && echo started && exec sleep 1000");
        let entry = format!("mkdir -m 0777 /tmp/own && exec baofs run --user app -- sh -c '{app}'");
        let container = start_program(
            &site,
            &format!("{FUSE} --tmpfs /tmp"),
            "sh",
            &["-c", &entry],
        );
        container.wait_for_line("started");
        assert_ended(&site, &container.stop(&["--time", "9"]), 143);
    }
}

/// Whoever reads gets the bytes from a successor, and a stop takes no longer.
fn stopped_serve(docker: &Docker) {
    let site = docker.site("still", CALM, "");
    let container = started(&site, "", TELLS);
    let stop = "kill -STOP $(grep -l baofs-serve /proc/[0-9]*/comm | cut -d/ -f3)";
    container
        .try_exec("root", &["sh", "-c", stop])
        .expect("there is a serve");
    assert_eq!(container.read_after("app", "note", ""), "old");
    container
        .try_exec("root", &["sh", "-c", stop])
        .expect("there is another one");
    assert_ended(&site, &container.stop(&["--time", "9"]), 3);
}

/// Application and revocation take what they may, and Docker, which kills after 9 s, has no reason
/// to: the code is the application's.
fn silent_server(docker: &Docker) {
    let site = docker.site_of(
        Tenant::of(Standin::start_for_containers(), "silent", CALM),
        "",
    );
    let container = started(
        &site,
        "",
        "trap 'sleep 5.5; exit 3' TERM; echo started; while :; do sleep 60 & wait; done",
    );
    let Server::Standin(standin) = &site.tenant.server else {
        unreachable!("it was made so")
    };
    standin.state().set_fault("", Fault::Silence);
    let end = container.stop(&["--time", "9"]);
    assert_eq!(end.code, 3, "{}", end.stderr);
}
