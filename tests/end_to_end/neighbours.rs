//! Two agents at one directory: the one that lives is never hidden, whatever a dead one left does
//! not matter. And what is said of a directory that is unusual.

use crate::rig::agent::{Agent, MOUNT, Place};
use crate::rig::process::{family, outcome, signal, status};
use crate::rig::server::Scene;
use crate::rig::{World, wait_until};
use baofs::exit::Exit;
use nix::sys::signal::Signal;
use serde_json::json;
use std::process::Output;

in_each_world!(
    a_second_agent_is_refused,
    of_two_that_start_at_the_same_moment_one_serves,
    what_a_killed_agent_left_is_no_agent,
    an_unusual_directory_is_said,
);

/// A shell in the room, as root with every right that the agent was started with.
fn shell(agent: &Agent, script: &str) -> Output {
    outcome(
        agent
            .enter_as_root()
            .env_remove("BAOFS_FALLBACK")
            .args(["sh", "-c", script]),
    )
}

/// How many mounts lie at the directory.
fn mounts(agent: &Agent) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/mounts", agent.pid())).unwrap_or_default();
    text.lines()
        .filter(|line| line.split(' ').nth(1) == Some(MOUNT))
        .count()
}

/// Another agent in the same room is refused, with or without the fallback.
fn assert_refused(agent: &Agent) {
    for fallback in ["none", "tmpfs"] {
        let second = shell(
            agent,
            &format!(
                "exec /entry/baofs run --fallback {fallback} --config /etc/bao/agent-config.hcl -- echo ran"
            ),
        );
        let said = String::from_utf8_lossy(&second.stderr);
        assert_eq!(
            second.status.code(),
            Some(i32::from(Exit::Tmpfs.code())),
            "{said}"
        );
        assert!(
            said.contains(
                "another agent serves /app/secrets; hint: give each a directory of its own"
            ),
            "{said}"
        );
        assert!(
            second.stdout.is_empty() && !said.contains("falling back"),
            "{said}"
        );
    }
}

fn a_second_agent_is_refused(world: World) {
    let (tenant, setup) = Scene::of(world).usual("neighbour");
    let agent = setup.place(Place::UnderShell).started();
    assert_refused(&agent);
    // One that stands still lives, and is not waited for.
    let all: Vec<_> = family(agent.pid())
        .into_iter()
        .filter(|pid| status(*pid, "Name").is_some_and(|name| name.starts_with("baofs")))
        .collect();
    for pid in all.iter().rev() {
        signal(*pid, Signal::SIGSTOP);
        wait_until("it is stopped", || {
            status(*pid, "State")?.starts_with('T').then_some(())
        });
    }
    assert_refused(&agent);
    for pid in &all {
        signal(*pid, Signal::SIGCONT);
    }

    assert_eq!(mounts(&agent), 1);
    assert_eq!((agent.read("note").as_str(), tenant.logins()), ("old", 1));
    tenant.put("note", json!({ "text": "second" }));
    agent.read_after("note", "old");
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(!end.stdout.contains("left "), "{}", end.stdout);
    tenant.assert_nothing_lives();
}

/// Starts two agents; who serves ends when the other has ended. Prints both codes, and how many
/// mounts are left.
const RACE: &str = r#"for turn in 1 2 3 4 5; do
  rm -f /tmp/ended
  for agent in 1 2; do
    { BAOFS_FALLBACK=@ /entry/baofs run --config /etc/bao/agent-config.hcl -- sh -c '
        turns=0; until [ -e /tmp/ended ] || [ $turns = 400 ]; do turns=$((turns + 1)); sleep 0.05; done' 2>>/tmp/said
      echo $?; touch /tmp/ended; } &
  done
  wait
  grep -c " /app/secrets " /proc/self/mounts
done
cat /tmp/said >&2"#;

fn of_two_that_start_at_the_same_moment_one_serves(world: World) {
    let (tenant, setup) = Scene::of(world).usual("neighbour-race");
    let agent = setup.options(&["--mount", "/app/elsewhere"]).started();
    let race = shell(
        &agent,
        &RACE.replace(
            '@',
            if world == World::Fuse {
                "none"
            } else {
                "tmpfs"
            },
        ),
    );
    let said = String::from_utf8_lossy(&race.stderr);
    let codes = String::from_utf8_lossy(&race.stdout)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(codes, ["73 0 0"; 5].join(" "), "{said}");
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

fn what_a_killed_agent_left_is_no_agent(world: World) {
    let (_tenant, setup) = Scene::of(world).usual("neighbour-dead");
    let mut setup = setup
        .options(&["--mount", "/app/elsewhere"])
        .place(Place::UnderShell);
    setup = setup.script("echo started; exec sleep 1000");
    let agent = setup.started();
    // Another one in the room, and its guard, are killed at once.
    let script = r#"/entry/baofs run --config /etc/bao/agent-config.hcl -- sh -c 'touch /tmp/serving; exec sleep 1000' 2>/tmp/said & agent=$!
      until [ -e /tmp/serving ]; do sleep 0.05; kill -0 $agent || exit 9; done
      kill -STOP $agent; kill -KILL $(cat /proc/$agent/task/$agent/children) $agent; wait
      grep -c " /app/secrets " /proc/self/mounts; cat /tmp/said >&2"#;
    let script = script.replacen(
        "--config",
        if world == World::Fuse {
            "--config"
        } else {
            "--fallback tmpfs --config"
        },
        1,
    );
    let killed = shell(&agent, &script);
    assert_eq!(
        String::from_utf8_lossy(&killed.stdout),
        "1\n",
        "a mount is left: {}",
        String::from_utf8_lossy(&killed.stderr)
    );
    let fallback = if world == World::Fuse {
        "none"
    } else {
        "tmpfs"
    };
    let script = format!(
        "/entry/baofs run --fallback {fallback} --config /etc/bao/agent-config.hcl -- sh -c 'cat /app/secrets/note; grep -c \" /app/secrets \" /proc/self/mounts'"
    );
    let next = shell(&agent, &script);
    assert_eq!(
        String::from_utf8_lossy(&next.stdout),
        "old1\n",
        "{}",
        String::from_utf8_lossy(&next.stderr)
    );
    agent.signal(Signal::SIGTERM);
    agent.end();
}

fn an_unusual_directory_is_said(world: World) {
    let hidden = "the mount hides files in the directory";
    let behind = "the path of the mount contains a link";
    let shared = "the mount appears in other mount namespaces, too";
    let rows = [
        ("", None),
        (
            "touch /app/secrets/one /app/secrets/.two; mkdir /app/secrets/three",
            Some((hidden, "entries=3")),
        ),
        (
            "mv /app /run/app; ln -s run/app /app",
            Some((behind, "resolved=/run/app/secrets")),
        ),
        ("mount --make-shared /", Some((shared, "path=/app/secrets"))),
    ];
    for (prepare, expected) in rows {
        let (_tenant, setup) = Scene::of(world).usual("unusual");
        let agent = setup.prepare(prepare).started();
        assert_eq!(agent.read("note"), "old");
        let end = agent.stop();
        assert_eq!(end.code, 0, "{prepare}: {}", end.stderr);
        for words in [hidden, behind, shared] {
            let lines: Vec<_> = end
                .stderr
                .lines()
                .filter(|line| line.contains(words))
                .collect();
            match expected {
                Some((expected, detail)) if expected == words => assert!(
                    lines.len() == 1 && lines[0].contains(detail),
                    "{}",
                    end.stderr
                ),
                _ => assert!(lines.is_empty(), "{prepare}: {lines:?}"),
            }
        }
    }
}
