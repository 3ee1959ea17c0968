//! What others may write, a server and whoever may write one secret, reaches log, report and
//! terminal cut and cleaned, and harms no other file.

use super::deaths::report;
use super::health::health;
use crate::rig::agent::{Agent, Setup, Stderr, USER};
use crate::rig::process::outcome;
use crate::rig::server::{CALM, Scene, Tenant, Which};
use crate::rig::{World, config, wait_until, wait_until_or};
use baofs::exit::Exit;
use baofs::status::{Condition, Report};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, send, setsockopt, socketpair, sockopt,
};
use serde_json::{Map, Value, json};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

in_each_scene!(names_of_fields_fill_neither_log_nor_report);
in_each_world!(a_log_socket_that_nobody_reads_blocks_nothing);

/// Longer than any line of the log, in bytes.
const LINE: usize = 1024;

/// A secret of `count` fields, without the configured one: names of `length` characters, with
/// escape sequences.
fn fields(count: usize, length: usize) -> Value {
    let name = |n: usize| format!("{n:06}\u{1b}[2J\u{202e}{}", "n".repeat(length - 11));
    // The first one may be meant by `text`.
    let names = std::iter::once("t\u{1b}xt".to_owned()).chain((1..count).map(name));
    Value::Object(names.map(|name| (name, json!("v"))).collect::<Map<_, _>>())
}

fn assert_harmless(what: &str, text: &str) {
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{what}: {text:?}");
    for line in text.lines() {
        assert!(
            line.len() < LINE,
            "{what}: {} bytes: {}...",
            line.len(),
            line.chars().take(300).collect::<String>()
        );
    }
}

/// Waits for a report in which the note, made of version `version`, is in trouble and the others
/// are not.
fn in_trouble(agent: &Agent, cause: &str) -> Report {
    let is = |report: &Report| {
        let [user, password, note] = &report.files[..] else {
            return false;
        };
        let told = note
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.cause.contains(cause));
        told && [user, password]
            .iter()
            .all(|file| file.condition == Condition::Fresh)
    };
    wait_until_or(
        "the note is in trouble alone",
        || agent.log(),
        || Some(report(agent)).filter(is),
    )
}

fn names_of_fields_fill_neither_log_nor_report(scene: Scene) {
    let tenant = scene.tenant("fields", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let agent = Setup::new(scene.world, &tenant, &config::usual(&tenant)).started();
    // Few and long names; many; and more than a server's answer may have, whatever that limit is.
    // The real server takes no secret with thousands of fields.
    let many: &[(usize, usize)] = if scene.which == Which::Real {
        &[(400, 200)]
    } else {
        &[(4_000, 200), (20_000, 200)]
    };
    for (count, length) in [(20, 40_000)].into_iter().chain(many.iter().copied()) {
        tenant.put("note", fields(count, length));
        let cause = if count == 20_000 {
            "note"
        } else {
            "the secret has no field `text`"
        };
        let report = in_trouble(&agent, cause);
        let note = report.files[2].trouble.as_ref().expect("it is in trouble");
        assert!(
            !note.cause.contains("mean") && !note.cause.contains("000001"),
            "{}",
            note.cause
        );
        let (code, said) = health(&agent);
        assert_eq!((code, said.lines().count()), (0, 1), "{said}");
        assert!(said.starts_with("degraded: note: "), "{said}");
        let table = outcome(&mut agent.enter(USER, &["/entry/baofs", "status"]));
        let table = String::from_utf8(table.stdout).expect("UTF-8");
        assert!(
            table.contains("\nuser      fresh")
                && table
                    .lines()
                    .last()
                    .is_some_and(|line| line.starts_with("note")),
            "{table}"
        );
        assert_harmless("health", &said);
        assert_harmless("status", &table);
        tenant.put(
            "note",
            json!({ "text": format!("after {count} x {length}") }),
        );
        agent.read_after("note", "old");
        wait_until_or(
            "all is well",
            || agent.log(),
            || (health(&agent) == (0, "healthy\n".to_owned())).then_some(()),
        );
    }
    let end = agent.stop();
    assert_harmless("the log", &end.stderr);
    assert!(
        end.stderr.contains("hint: did you mean `t\u{fffd}xt`?"),
        "{}",
        end.stderr
    );
    assert_eq!(end.code, 0, "{}", end.stderr);
}

#[test]
fn a_first_secret_with_many_names_is_refused_in_one_line() {
    let tenant = Tenant::standin("fields-first", CALM);
    tenant.put("note", fields(4_000, 200));
    let end = Setup::new(World::Fuse, &tenant, &config::usual(&tenant))
        .options(&["--wait", "2s"])
        .outcome();
    assert_eq!(end.code, i32::from(Exit::Data.code()), "{}", end.stderr);
    assert!(
        end.stderr.contains("a secret is missing")
            && end.stderr.contains("did you mean `t\u{fffd}xt`"),
        "{}",
        end.stderr
    );
    assert_harmless("the log", &end.stderr);
}

/// systemd, and whoever starts a program with a socket as standard error, may read late.
fn a_log_socket_that_nobody_reads_blocks_nothing(world: World) {
    let tenant = Scene::of(world).tenant("socket", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let (reader, writer) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("a pair");
    setsockopt(&writer, sockopt::SndBuf, &1).expect("the least buffer");
    while send(writer.as_raw_fd(), b"\n", MsgFlags::MSG_DONTWAIT).is_ok() {}
    let text = config::usual(&tenant) + "log {\n  level = \"warn\"\n}\n";
    let agent = Setup::new(world, &tenant, &text)
        .stderr(Stderr::Given(writer))
        .started();
    // One line of the log for each bad version.
    let bad_and_good = |bad: Value, good: &str| {
        let in_trouble = || report(&agent).files[2].trouble.is_some();
        tenant.put("note", bad);
        wait_until("it is in trouble", || in_trouble().then_some(()));
        tenant.put("note", json!({ "text": good }));
        wait_until("it is well", || {
            (!in_trouble() && agent.read("note") == good).then_some(())
        });
    };
    for n in 0..3 {
        bad_and_good(fields(20, 200), &n.to_string());
    }
    let mut reader = UnixStream::from(reader);
    reader.set_nonblocking(true).expect("it is ours");
    let (mut text, mut part) = (Vec::new(), [0; 4096]);
    // Each process tells of its own; fetch has dropped one for each bad version.
    let lost = |line: &str| {
        line.split_once("dropped because nobody read them lines=")
            .and_then(|(_, n)| n.trim().parse::<u64>().ok())
    };
    let all = || {
        while let Ok(n @ 1..) = reader.read(&mut part) {
            text.extend_from_slice(&part[..n]);
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines()
            .any(|line| lost(line).is_some_and(|lost| lost >= 3))
            .then_some(text)
    };
    let text = wait_until("the dropped lines are told", all);
    assert!(
        text.lines()
            .filter(|line| !line.is_empty())
            .all(|line| line.starts_with("20") && line.matches("Z ").count() == 1),
        "{text}"
    );
    // The socket is empty, so that it counts as writable: a long line must not wait for the rest of
    // its room.
    bad_and_good(fields(20, 40_000), "after a long line");
    assert_eq!(agent.stop().code, 0);
}
