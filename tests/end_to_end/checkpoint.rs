//! An arena that has room for the secrets, but not for what a successor of `fetch` needs: that is
//! said, no credential is lost, and a successor begins anew.

use super::deaths::{replace, report, started};
use super::health::health;
use crate::rig::agent::{Agent, Setup, USER};
use crate::rig::process::outcome;
use crate::rig::server::{CALM, Tenant};
use crate::rig::{World, config, wait_until_or};
use baofs::status::Checkpoint;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fmt::Write;

/// Begins the one warning.
const WARNING: &str = "recovery is off: if fetch dies";

fn warnings(agent: &Agent) -> usize {
    agent.log().matches(WARNING).count()
}

fn status(agent: &Agent) -> String {
    String::from_utf8(outcome(&mut agent.enter(USER, &["/entry/baofs", "status"])).stdout)
        .expect("UTF-8")
}

fn wait_for(agent: &Agent, checkpoint: Checkpoint) {
    let is = || (report(agent).roles.checkpoint == checkpoint).then_some(());
    wait_until_or(
        &format!("the checkpoint is {checkpoint:?}"),
        || format!("{}\n{}", status(agent), agent.log()),
        is,
    );
}

/// The usual login, whose credential is removed once it is not needed any more, and an arena of
/// this size.
fn login(tenant: &Tenant, size: &str) -> String {
    let login =
        config::login(&tenant.url()).replace("after_reading = false", "after_reading = true");
    login + &format!("filesystem {{\n  size = \"{size}\"\n}}\n")
}

#[test]
fn a_checkpoint_that_never_fits_leaves_the_credential_and_is_said_once() {
    let tenant = Tenant::standin("never-fits", CALM);
    let mut text = login(&tenant, "128KiB") + "app {\n  on_hup = \"refresh\"\n}\n";
    for n in 0..150 {
        tenant.put(&format!("k{n}"), json!({ "text": n.to_string() }));
        let _ = writeln!(
            text,
            "{}",
            config::field(&format!("file-{n}"), &tenant.kv(&format!("k{n}")), "text")
                .replace("100ms", "1h")
        );
    }
    let agent = started(Setup::new(World::Fuse, &tenant, &text));
    wait_for(&agent, Checkpoint::Credentials);
    assert!(agent.etc("secret_id").exists(), "{}", agent.log());
    assert_eq!(
        (tenant.logins(), warnings(&agent)),
        (1, 1),
        "{}",
        agent.log()
    );
    assert!(
        status(&agent).contains("recovery is off: a successor of fetch logs in"),
        "{}",
        status(&agent)
    );
    let (code, said) = health(&agent);
    assert!(
        code == 0 && said.starts_with("degraded: agent: recovery is off"),
        "{code}: {said}"
    );

    replace(&agent, "fetch", Signal::SIGKILL);
    wait_until_or(
        "it logs in again",
        || agent.log(),
        || (tenant.logins() == 2).then_some(()),
    );
    wait_for(&agent, Checkpoint::Credentials);
    assert_eq!(agent.read("file-149"), "149");
    assert!(agent.etc("secret_id").exists());
    tenant.put("k149", json!({ "text": "new" }));
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.read_after("file-149", "149"), "new");
    let end = agent.stop();
    assert_eq!(
        (end.code, end.stderr.matches(WARNING).count()),
        (0, 2),
        "one warning of each fetch: {}",
        end.stderr
    );
}

#[test]
fn a_checkpoint_that_outgrows_the_arena_keeps_the_credentials() {
    let tenant = Tenant::standin("outgrows", CALM);
    let mut text = login(&tenant, "64KiB");
    for n in 0..40 {
        tenant.put(&format!("k{n}"), json!({ "text": "small" }));
        let path = tenant.kv(&format!("k{n}"));
        let _ = writeln!(
            text,
            "{}",
            config::field(&format!("file-{n}"), &path, "text")
        );
    }
    let agent = started(Setup::new(World::Fuse, &tenant, &text));
    wait_for(&agent, Checkpoint::Whole);
    wait_until_or(
        "the credential is removed",
        || agent.log(),
        || (!agent.etc("secret_id").exists()).then_some(()),
    );
    assert_eq!(
        (warnings(&agent), status(&agent).contains("recovery is off")),
        (0, false)
    );

    // Larger files take the room of the checkpoint, until it has no room even without a last one.
    let mut large = 0;
    loop {
        tenant.put(&format!("k{large}"), json!({ "text": "l".repeat(2_500) }));
        agent.read_after(&format!("file-{large}"), "small");
        large += 1;
        let first = report(&agent);
        if first.roles.checkpoint == Checkpoint::Whole {
            continue;
        }
        let later = || Some(report(&agent)).filter(|later| later.written > first.written + 1);
        let later = wait_until_or("a later report", || agent.log(), later);
        if later.roles.checkpoint == Checkpoint::Credentials {
            break;
        }
    }
    replace(&agent, "fetch", Signal::SIGKILL);
    wait_until_or(
        "it logs in again without the file",
        || agent.log(),
        || (tenant.logins() == 2).then_some(()),
    );
    for n in 0..large {
        tenant.put(&format!("k{n}"), json!({ "text": "again" }));
    }
    wait_until_or(
        "it serves on",
        || agent.log(),
        || {
            let is_served = |n| agent.try_read(&format!("file-{n}")).as_deref() == Some("again");
            (0..large).all(is_served).then_some(())
        },
    );
    wait_for(&agent, Checkpoint::Whole);
    assert!(
        (1..=2).contains(&warnings(&agent)),
        "one warning of a fetch at most: {}",
        agent.log()
    );
    assert_eq!(agent.stop().code, 0);
}

/// A template over two secrets, of which one becomes too large to be kept.
#[test]
fn a_reply_that_the_arena_cannot_keep_is_an_error_with_the_remedy() {
    let tenant = Tenant::standin("too-large", CALM);
    for key in ["a", "b"] {
        tenant.put(key, json!({ "text": "small" }));
    }
    let [a, b] = ["a", "b"].map(|key| {
        format!(
            r#"{{{{ with secret \"{}\" }}}}{{{{ .Data.data.text }}}}{{{{ end }}}}"#,
            tenant.kv(key)
        )
    });
    let both = format!(
        "template {{\n  destination = \"/app/secrets/both\"\n  contents = \"{a} {b}\"\n}}\n"
    );
    let text = login(&tenant, "64KiB")
        + &both
        + "template_config {\n  static_secret_render_interval = \"100ms\"\n}\n";
    let agent = started(Setup::new(World::Fuse, &tenant, &text));
    tenant.put("a", json!({ "text": "l".repeat(60_000) }));
    wait_until_or(
        "the error is in the log",
        || agent.log(),
        || {
            let log = agent.log();
            let line = log
                .lines()
                .find(|line| line.contains("the answer takes 6"))?;
            line.contains("a larger `filesystem.size` gives more")
                .then_some(())
        },
    );
    assert_eq!(agent.read("both"), "small small");
    // The kept replies are still there for a successor, too.
    replace(&agent, "fetch", Signal::SIGKILL);
    tenant.put("b", json!({ "text": "large" }));
    tenant.put("a", json!({ "text": "again" }));
    wait_until_or(
        "it serves on",
        || agent.log(),
        || (agent.try_read("both")? == "again large").then_some(()),
    );
    assert_eq!(agent.stop().code, 0);
}
