//! The agent's own state, `..baofs/status.json`: there before the application, true in good and in
//! bad hours, harmless; and the refresh on HUP.

use crate::rig::agent::{Agent, MOUNT, Place, Setup, USER};
use crate::rig::process::outcome;
use crate::rig::server::{CALM, Scene, Server, Tenant};
use crate::rig::{World, config, wait_until_or};
use baofs::status::{Condition, DIRECTORY, FILE, FileReport, Report};
use nix::sys::signal::Signal;
use serde_json::json;

in_each_scene!(
    it_is_fresh_before_the_application_and_holds_no_value,
    everybody_may_read_it_and_nobody_write,
    it_follows_a_rotation_and_an_outage,
    hup_makes_a_new_version_appear_at_once,
);

/// Prints the report, one line, as the first thing that the application does.
const PRINTS: &str = "cat /app/secrets/..baofs/status.json; echo; echo started; trap 'exit 0' TERM; while :; do sleep 60 & wait; done";

fn setup(scene: Scene, name: &str) -> (Tenant, Setup) {
    let tenant = scene.tenant(name, CALM);
    tenant.put(
        "note",
        json!({ "text": "a note that nobody else writes: 5d0c77e1" }),
    );
    let setup = Setup::new(scene.world, &tenant, &config::usual(&tenant));
    (tenant, setup)
}

fn text(agent: &Agent) -> String {
    agent.read(&format!("{DIRECTORY}/{FILE}"))
}

fn parse(text: &str) -> Report {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Waits until the report says so of the note.
fn note(agent: &Agent, what: &str, is: impl Fn(&FileReport) -> bool) -> Report {
    let report = || parse(&text(agent));
    wait_until_or(
        &format!("the note is {what}"),
        || text(agent),
        || Some(report()).filter(|report| is(&report.files[2])),
    )
}

fn it_is_fresh_before_the_application_and_holds_no_value(scene: Scene) {
    let (tenant, setup) = setup(scene, "fresh");
    let agent = setup.script(PRINTS).started();
    let printed = agent.printed();
    let report = parse(printed.lines().next().expect("the report"));
    let names: Vec<_> = report
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.condition, file.changes))
        .collect();
    assert_eq!(
        names,
        [
            ("user", Condition::Fresh, 1),
            ("password", Condition::Fresh, 1),
            ("note", Condition::Fresh, 1)
        ]
    );
    assert_eq!(
        [0, 1, 2].map(|n| report.files[n].lease_ends.is_some()),
        [true, true, false]
    );
    assert_eq!(
        (report.files[2].version, report.roles.supervise),
        (Some(1), 1)
    );
    let (how, refused) = match scene.world {
        World::Fuse => ("fuse", false),
        World::Tmpfs => ("tmpfs", true),
    };
    assert_eq!(
        (
            report.served.how.as_str(),
            report.served.fallback.is_some(),
            report.roles.serve.is_none()
        ),
        (how, refused, refused)
    );

    let mut values = vec![
        agent.read("user"),
        agent.read("password"),
        agent.read("note"),
        tenant.role_id.clone(),
        tenant.secret_id.clone(),
    ];
    if let Server::Real(real) = &tenant.server {
        values.extend(real.bao.leases(&tenant.name));
    }
    for value in values {
        assert!(
            !printed.contains(&value),
            "`{value}` is in the report: {printed}"
        );
    }
    assert_eq!(agent.stop().code, 0);
}

fn everybody_may_read_it_and_nobody_write(scene: Scene) {
    let (_tenant, setup) = setup(scene, "open");
    let agent = setup.place(Place::UnderShell).started();
    let (directory, file) = (
        format!("{MOUNT}/{DIRECTORY}"),
        format!("{MOUNT}/{DIRECTORY}/{FILE}"),
    );
    let ls = |path: &str| {
        String::from_utf8(outcome(&mut agent.enter(USER, &["ls", "-a", path])).stdout)
            .expect("names")
    };
    assert_eq!(
        ls(MOUNT).lines().any(|name| name == DIRECTORY),
        scene.world == World::Tmpfs
    );
    assert_eq!(ls(&directory), format!(".\n..\n{FILE}\n"));
    for uid in [0, USER, USER + 1] {
        let read = outcome(&mut agent.enter(uid, &["cat", &file]));
        assert!(
            read.status.success(),
            "uid {uid}: {}",
            String::from_utf8_lossy(&read.stderr)
        );
        parse(&String::from_utf8(read.stdout).expect("text"));
        for change in [
            "echo x >",
            "rm",
            "chmod 0666",
            "mv -T /etc/hostname",
            "truncate -s 0",
        ] {
            let refused =
                outcome(&mut agent.enter(uid, &["sh", "-c", &format!("{change} {file}")]));
            assert!(
                !refused.status.success(),
                "`{change}` was allowed for uid {uid}"
            );
        }
        let refused = outcome(&mut agent.enter(uid, &["touch", &format!("{directory}/new")]));
        assert!(!refused.status.success(), "uid {uid} makes files");
    }
    let end = agent.stop();
    let left: Vec<_> = end
        .stdout
        .lines()
        .filter(|line| line.starts_with("left "))
        .collect();
    assert!(left.is_empty() && end.code == 0, "{left:?}\n{}", end.stderr);
}

/// What an application tries on a tmpfs of mode 1777 that belongs to root, when it may write until
/// nothing fits any more.
const PLANTS: &str = "cd /app/secrets; echo started
cat /dev/zero > full 2>/dev/null
while :; do
  rm -rf ..baofs; mv -T ..baofs away; ln -sfn /etc/shadow ..baofs/status.json
  mkdir ..baofs && ln -s /etc/shadow ..baofs/status.json && echo planted
  [ ! -e /tmp/enough ] || rm -f full
done 2>/dev/null";

#[test]
fn an_application_plants_no_report_on_a_tmpfs_that_all_may_write_to() {
    let (tenant, setup) = setup(Scene::of(World::Tmpfs), "plants");
    let given =
        format!("mount -t tmpfs -o size=1m,mode=1777,nosuid,nodev,noexec,noswap given {MOUNT}");
    let rights = ["--inh-caps=-all", "--bounding-set=-sys_admin"];
    let setup = setup
        .prepare(&given)
        .rights(&rights)
        .options(&["--user", &format!("{USER}")]);
    let agent = setup.place(Place::UnderShell).script(PLANTS).started();
    let status = || outcome(&mut agent.enter(0, &["/entry/baofs", "status"]));
    // Neither a rotation nor a report finds room.
    tenant.put("note", json!({ "text": "n".repeat(5_000) }));
    wait_until_or(
        "the tmpfs is full",
        || agent.log(),
        || agent.log().contains("the tmpfs is full").then_some(()),
    );
    wait_until_or(
        "the report is gone, or old",
        || agent.log(),
        || {
            let said = status();
            let text = [said.stdout, said.stderr].concat();
            let text = String::from_utf8(text).expect("UTF-8");
            assert!(!text.contains("root:"), "{text}");
            (text.contains("no agent serves there") || text.contains("has not reported"))
                .then_some(())
        },
    );
    assert!(!agent.printed().contains("planted"), "{}", agent.printed());
    std::fs::write(agent.path("/tmp/enough"), "").expect("written");
    note(&agent, "rotated", |note| note.changes == 2);
    wait_until_or(
        "all is well",
        || agent.log(),
        || status().status.success().then_some(()),
    );
}

/// From now on the server gives this tenant nothing.
fn refuse(tenant: &Tenant, refused: bool) {
    match &tenant.server {
        Server::Real(real) => {
            let policy = |rule: &str| {
                format!(
                    "path \"secret/data/{}/*\" {{ capabilities = [\"{rule}\"] }}",
                    tenant.name
                )
            };
            let policy = policy(if refused { "deny" } else { "read" });
            real.bao.api(
                "POST",
                &format!("sys/policies/acl/{}", tenant.name),
                json!({ "policy": policy }),
            );
        }
        Server::Standin(standin) => standin.state().sealed = refused,
    }
}

fn it_follows_a_rotation_and_an_outage(scene: Scene) {
    let (tenant, setup) = setup(scene, "outage");
    let agent = setup.started();
    tenant.put("note", json!({ "text": "second" }));
    let report = note(&agent, "rotated", |note| {
        (note.changes, note.version) == (2, Some(2))
    });
    assert_eq!(agent.read("note"), "second");
    assert_eq!([0, 1].map(|n| report.files[n].changes), [1, 1]);

    refuse(&tenant, true);
    note(&agent, "in trouble", |note| {
        note.trouble
            .as_ref()
            .is_some_and(|trouble| trouble.cause.contains("note"))
    });
    // Two of its refreshes are soon missed, while the leases of the others live.
    let report = note(&agent, "past its life", |note| {
        note.condition == Condition::Ended
    });
    assert_eq!(
        [0, 1].map(|n| report.files[n].condition),
        [Condition::Fresh; 2]
    );
    assert_eq!(agent.read("note"), "second", "it serves on");

    refuse(&tenant, false);
    note(&agent, "fresh again", |note| {
        note.condition == Condition::Fresh && note.trouble.is_none()
    });
    assert_eq!(agent.stop().code, 0);
}

fn hup_makes_a_new_version_appear_at_once(scene: Scene) {
    let (tenant, setup) = setup(scene, "hup");
    let slow = config::usual(&tenant).replace("100ms", "1h");
    let script = "trap 'exit 0' TERM; trap : HUP; echo started; while :; do sleep 60 & wait; done";
    let agent = setup
        .file("agent-config.hcl", &slow)
        .script(script)
        .started();
    let (user, old) = (agent.read("user"), agent.read("note"));
    tenant.put("note", json!({ "text": "new" }));
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.read_after("note", &old), "new");
    assert_eq!(
        (agent.read("user"), tenant.leases()),
        (user, 1),
        "a live lease is not minted again"
    );
    assert_eq!(agent.stop().code, 0);
}
