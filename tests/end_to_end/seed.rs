//! The agent configuration that people have today, unchanged.

use crate::rig::agent::{Agent, MOUNT, Setup, USER};
use crate::rig::server::{CALM, Real, Tenant};
use crate::rig::{World, http};
use serde_json::json;
use std::os::unix::fs::MetadataExt;

/// The database role that it names.
const ROLE: &str = "my-app-role";

fn setup(world: World, name: &str) -> (Tenant, Setup) {
    let tenant = Real::shared().tenant(name, ROLE, CALM);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/agent-config.hcl");
    let text = std::fs::read_to_string(path).expect("the example of README is there");
    let setup = Setup::new(world, &tenant, &text).variable("BAO_ADDR", &tenant.url());
    (tenant, setup)
}

/// The password works for one of the roles that OpenBao has made.
fn assert_password(tenant: &Tenant, agent: &Agent) {
    let password = agent.read("db_password");
    let works = |user: &String| tenant.admits(user, &password);
    assert!(
        tenant.users().iter().any(works),
        "the password belongs to no user of the database"
    );
}

fn assert_owner(agent: &Agent, name: &str, uid: u32) {
    let meta = std::fs::metadata(agent.path(MOUNT).join(name)).expect("it is served");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (uid, 0o400), "{name}");
}

#[test]
fn it_starts_as_root_with_fuse() {
    let (tenant, setup) = setup(World::Fuse, "seed-root");
    let agent = setup.started();
    assert_password(&tenant, &agent);
    for name in ["db_password", "bao-token"] {
        assert_owner(&agent, name, 0);
    }
    let link = std::fs::read_link(agent.path("/tmp/bao-token")).expect("the sink is linked");
    assert_eq!(link.to_str(), Some("/app/secrets/bao-token"));
    let (address, token) = (tenant.url().replace("http://", ""), agent.read("bao-token"));
    let lookup = || {
        http::request(&address, "GET", "auth/token/lookup-self", &token, None)
            .expect("OpenBao answers")
            .status
    };
    assert_eq!(lookup(), 200);
    let pid =
        std::fs::read_to_string(agent.path("/run/bao-agent.pid")).expect("the pid file is there");
    assert_eq!(pid.trim(), "1");

    let end = agent.stop();
    assert_eq!(
        (end.code, lookup(), tenant.tokens()),
        (0, 403, 0),
        "{}",
        end.stderr
    );
    assert!(!end.stderr.contains(&token), "the token is in the log");
}

#[test]
fn it_starts_as_uid_1000_with_a_read_only_root_and_a_tmpfs() {
    let (tenant, setup) = setup(World::Tmpfs, "seed-user");
    let given = format!(
        "mount -t tmpfs -o size=1m,mode=1777,nosuid,nodev,noexec given {MOUNT}; mount -o remount,bind,ro /"
    );
    let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
    let rights = [
        uid.as_str(),
        &gid,
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
    ];
    let mut setup = setup.prepare(&given).rights(&rights);
    // Where the machine has a swap, a tmpfs that baofs did not mount itself may reach it.
    if std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1) {
        setup = setup.options(&["--allow-swap"]);
    }
    let agent = setup.started();
    assert_password(&tenant, &agent);
    for name in ["db_password", "bao-token"] {
        assert_owner(&agent, name, USER);
    }
    let environment = std::fs::metadata(format!("/proc/{}/environ", agent.pid())).expect("it runs");
    assert_eq!(
        environment.uid(),
        0,
        "a dumpable process owns its own /proc files"
    );

    let end = agent.stop();
    assert_eq!((end.code, tenant.tokens()), (0, 0), "{}", end.stderr);
    for what in ["/tmp/bao-token", "/var/run/bao-agent.pid"] {
        let warned = end
            .stderr
            .lines()
            .filter(|line| line.contains(what))
            .count();
        assert_eq!(
            warned, 1,
            "one warning for {what}, which cannot be made on a read-only root:\n{}",
            end.stderr
        );
    }
}

#[test]
fn a_credential_file_is_removed_after_the_login_or_one_warning_says_why_not() {
    let tenant = Tenant::real("seed-removed", CALM);
    tenant.put("note", json!({ "text": "x" }));
    let text =
        crate::rig::config::usual(&tenant).replace("after_reading = false", "after_reading = true");
    let agent = Setup::new(World::Fuse, &tenant, &text).started();
    assert!(!agent.etc("secret_id").exists());
    assert!(agent.etc("role_id").exists());
    assert_eq!(agent.stop().code, 0);

    let fixed = Setup::new(World::Fuse, &tenant, &text)
        .prepare("mount --bind /etc/bao /etc/bao; mount -o remount,bind,ro /etc/bao");
    let agent = fixed.started();
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_eq!(
        end.stderr
            .lines()
            .filter(|line| line.contains("/etc/bao/secret_id"))
            .count(),
        1,
        "{}",
        end.stderr
    );
}
