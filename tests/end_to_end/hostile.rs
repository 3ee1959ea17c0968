//! A server whose answers are made to fill memory: what they may take is bounded, they are errors
//! of their own queries, and the token is revoked all the same.

use crate::rig::agent::{Agent, End, Setup};
use crate::rig::process::status;
use crate::rig::server::{CALM, Server, Tenant};
use crate::rig::standin::Fault;
use crate::rig::{World, config, wait_until_or};
use baofs::exit::Exit;
use serde_json::json;

/// Secrets with hostile answers.
const COUNT: usize = 24;
/// What `fetch` may have taken at most, in KiB: 8 MiB of answers that are kept, four that are out
/// (1 MiB each as text, 4 MiB parsed), the journal of all that (twice its text while it grows), and
/// itself.
const MOST: u64 = 64 << 10;

/// One answer of KV version 2 around these fields.
fn answer(fields: &str) -> String {
    format!(r#"{{"data":{{"data":{{{fields}}},"metadata":{{"version":9}}}}}}"#)
}

/// What a hostile server can send, and what is said of it.
fn answers() -> Vec<(&'static str, String, &'static str)> {
    let list = |text: &str, size: usize| {
        format!(
            r#""text":[{}{text}]"#,
            format!("{text},").repeat(size / (text.len() + 1))
        )
    };
    let keys = |size: usize| {
        (0..size / 11)
            .map(|n| format!(r#""{n:06}":1"#))
            .collect::<Vec<_>>()
            .join(",")
    };
    let mib = 1 << 20;
    vec![
        (
            "numbers-4m",
            answer(&list("1", 4 * mib - 200)),
            "larger than 1048576 bytes",
        ),
        ("numbers", answer(&list("1", mib - 200)), "too many values"),
        (
            "maps",
            answer(&list(r#"{"":{}}"#, mib - 200)),
            "too many values",
        ),
        ("keys", answer(&keys(mib - 200)), "too many values"),
        (
            "deep",
            answer(&format!(r#""text":{}"#, "[".repeat(mib - 200))),
            "too many values",
        ),
        (
            "deep-cut",
            answer(&format!(
                r#""text":{}1{}"#,
                "[".repeat(500),
                "]".repeat(500)
            )),
            "not what this request gives",
        ),
        (
            "text",
            answer(&format!(r#""text":"{}""#, "x".repeat(mib - 200))),
            "8388608 bytes for answers are taken",
        ),
        (
            "few-keys",
            answer(&format!(
                r#""text":"{}",{}"#,
                "x".repeat(300_000),
                keys(150_000)
            )),
            "8388608 bytes for answers are taken",
        ),
    ]
}

fn setup(name: &str) -> (Tenant, Setup) {
    let tenant = Tenant::standin(&format!("hostile-{name}"), CALM);
    tenant.put("note", json!({ "text": "old" }));
    let mut text = config::usual(&tenant);
    for n in 0..COUNT {
        let key = format!("bad{n}");
        tenant.put(&key, json!({ "text": "good" }));
        text += &config::field(&key, &tenant.kv(&key), "text");
    }
    let setup = Setup::new(World::Tmpfs, &tenant, &text);
    (tenant, setup)
}

fn hurt(tenant: &Tenant, answer: &str) {
    let Server::Standin(standin) = &tenant.server else {
        panic!("it is a stand-in")
    };
    standin
        .state()
        .set_fault(&tenant.kv("bad"), Fault::Text(answer.to_owned()));
}

/// The most memory that `fetch` ever had, in KiB.
fn peak(agent: &Agent) -> u64 {
    let words = status(agent.role("fetch"), "VmHWM").expect("fetch lives");
    words
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number of KiB")
}

fn assert_calm_end(tenant: &Tenant, end: &End, code: i32, name: &str) {
    assert_eq!(end.code, code, "{name}: {}", end.stderr);
    assert!(
        !end.stderr.contains("could not be revoked") && !end.stderr.contains("died"),
        "{name}: {}",
        end.stderr
    );
    tenant.assert_nothing_lives();
}

#[test]
fn at_a_start_memory_is_bounded() {
    for (name, answer, words) in answers() {
        let (tenant, setup) = setup(name);
        hurt(&tenant, &answer);
        // What is kept is written down for a successor at each answer, which takes an unoptimised
        // binary half a second.
        let least = if words.contains("answers are taken") {
            4
        } else {
            COUNT
        };
        let agent = setup.options(&["--wait", "2m"]).start();
        let said = || {
            agent
                .log()
                .lines()
                .filter(|line| line.contains(words) && line.contains(&tenant.kv("bad")))
                .count()
        };
        wait_until_or(
            &format!("`{words}` is said of {name}"),
            || agent.log(),
            || (said() >= least).then_some(()),
        );
        let peak = peak(&agent);
        println!("{name}: {peak} KiB");
        assert!(peak < MOST, "{name}: {peak} KiB");
        assert_calm_end(&tenant, &agent.stop(), 143, name);
    }
}

#[test]
fn at_a_start_they_are_named_and_the_others_are_not() {
    let (tenant, setup) = setup("named");
    hurt(&tenant, &answers()[0].1);
    let end = setup.options(&["--wait", "10s"]).outcome();
    let missing: Vec<_> = end
        .stderr
        .lines()
        .filter(|line| line.contains("a secret is missing"))
        .collect();
    let named = missing
        .iter()
        .filter(|line| line.contains("file=bad") && line.contains("larger than 1048576 bytes"))
        .count();
    assert_eq!((named, missing.len()), (COUNT, COUNT), "{}", end.stderr);
    assert_calm_end(&tenant, &end, i32::from(Exit::Unavailable.code()), "named");
}

#[test]
fn later_they_leave_all_other_secrets_alone() {
    for (name, answer, words) in answers()
        .into_iter()
        .filter(|(_, _, words)| !words.contains("answers are taken"))
    {
        let (tenant, setup) = setup(&format!("later-{name}"));
        let agent = setup.started();
        hurt(&tenant, &answer);
        wait_until_or(
            "a bad answer is said",
            || agent.log(),
            || agent.log().contains(words).then_some(()),
        );
        tenant.put("note", json!({ "text": "new" }));
        assert_eq!(agent.read_after("note", "old"), "new");
        assert_eq!(agent.read("bad7"), "good");
        let peak = peak(&agent);
        println!("{name}: {peak} KiB");
        assert!(peak < MOST, "{name}: {peak} KiB");
        assert_calm_end(&tenant, &agent.stop(), 0, name);
    }
}
