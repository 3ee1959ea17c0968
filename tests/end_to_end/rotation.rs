//! Rotations of real leases and of KV v2, seen by a reader that never stops.

use crate::rig::agent::{Agent, MOUNT, Setup};
use crate::rig::server::{CALM, Lives, Scene, Tenant};
use crate::rig::{config, wait_until};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const ROTATIONS: usize = 20;

in_each_scene!(
    a_credential_works_before_and_after_its_rotation,
    twenty_leases_of_which_none_is_ever_mixed,
    twenty_versions_of_which_none_is_ever_torn_stale_or_missing,
    files_of_one_path_come_from_one_read,
);

/// A user and a password of one lease: the user is the same before and after the password was read.
fn credential(mount: &Path) -> (String, String) {
    let read = |name: &str| {
        std::fs::read_to_string(mount.join(name)).expect("a served file can always be read")
    };
    loop {
        let (user, password, again) = (read("user"), read("password"), read("user"));
        if user == again {
            return (user, password);
        }
    }
}

fn start(scene: Scene, tenant: &Tenant) -> (Agent, PathBuf) {
    tenant.put("note", json!({ "text": "first" }));
    let agent = Setup::new(scene.world, tenant, &config::usual(tenant)).started();
    let mount = agent.path(MOUNT);
    (agent, mount)
}

/// Waits for another user than `old`.
fn next_credential(mount: &Path, old: &str) -> (String, String) {
    wait_until("the credential is rotated", || {
        Some(credential(mount)).filter(|(user, _)| user != old)
    })
}

fn a_credential_works_before_and_after_its_rotation(scene: Scene) {
    let tenant = scene.tenant(
        "rotated",
        Lives {
            token: 3600,
            lease: 4,
            lease_max: 6,
        },
    );
    let (agent, mount) = start(scene, &tenant);
    let (user, password) = credential(&mount);
    assert!(tenant.admits(&user, &password));
    let (next, next_password) = next_credential(&mount, &user);
    assert!(tenant.admits(&next, &next_password));
    assert!(
        tenant.knows(&user),
        "the old one was replaced before it ended"
    );

    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    tenant.assert_nothing_lives();
    assert!(!tenant.knows(&next), "the role is gone from PostgreSQL");
    for value in [&password, &next_password] {
        assert!(!end.stderr.contains(value), "a password is in the log");
    }
}

fn twenty_leases_of_which_none_is_ever_mixed(scene: Scene) {
    let tenant = scene.tenant(
        "leases",
        Lives {
            token: 3600,
            lease: 2,
            lease_max: 2,
        },
    );
    let (agent, mount) = start(scene, &tenant);
    let (mut user, mut password) = credential(&mount);
    for _ in 0..ROTATIONS {
        assert!(
            tenant.admits(&user, &password),
            "the password is of another lease, or the lease has ended"
        );
        (user, password) = next_credential(&mount, &user);
    }
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

/// A value that shows its number and whether it is whole.
fn version(number: usize) -> String {
    format!("{number:04}{}{number:04}", "x".repeat(5000))
}

/// The number of a whole value.
fn number(value: &str) -> usize {
    let number = value
        .get(..4)
        .and_then(|head| head.parse().ok())
        .expect("a value begins with its number");
    assert_eq!(value, version(number), "torn");
    number
}

fn twenty_versions_of_which_none_is_ever_torn_stale_or_missing(scene: Scene) {
    let tenant = scene.tenant("versions", CALM);
    tenant.put("note", json!({ "text": version(0) }));
    let agent = Setup::new(scene.world, &tenant, &config::usual(&tenant)).started();
    let file = agent.path(MOUNT).join("note");
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                let now = number(
                    &std::fs::read_to_string(&file).expect("a served file can always be read"),
                );
                assert!(now >= seen, "{now} was read after {seen}");
                seen = now;
            }
            seen
        });
        for rotation in 1..=ROTATIONS {
            tenant.put("note", json!({ "text": version(rotation) }));
            wait_until(&format!("version {rotation} is served"), || {
                (agent.read("note") == version(rotation) || reader.is_finished()).then_some(())
            });
        }
        done.store(true, Ordering::Relaxed);
        reader.join().expect("every read was whole and new")
    });
    assert!(seen > 0, "the reader saw rotations");
    assert_eq!(agent.stop().code, 0);
}

fn files_of_one_path_come_from_one_read(scene: Scene) {
    let tenant = scene.tenant("one", CALM);
    let (agent, mount) = start(scene, &tenant);
    let (user, password) = credential(&mount);
    assert!(tenant.admits(&user, &password));
    assert_eq!(
        (
            tenant.reads(&tenant.creds()),
            tenant.leases(),
            tenant.tokens()
        ),
        (1, 1, 1)
    );
    assert_eq!(agent.stop().code, 0);
}
