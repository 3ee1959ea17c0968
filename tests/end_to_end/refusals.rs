//! Every refusal at start: its message and its exit code, held in `tests/golden/refusals/`.
//! `UPDATE_GOLDEN=1` writes them anew.

use crate::rig::agent::{End, MOUNT, Setup, USER};
use crate::rig::server::{CALM, Tenant};
use crate::rig::{World, config};
use baofs::exit::Exit;
use serde_json::json;
use std::path::Path;

/// A container's own disk, as far as a test may have one: an overlay, which is no memory
/// filesystem.
const DISK: &str =
    "mkdir /run/upper /run/work; mount -t overlay -o lowerdir=/usr/share,upperdir=/run/upper,workdir=/run/work disk /app/secrets
chmod 1777 /app/secrets";
/// What an unprivileged container starts with.
const UNPRIVILEGED: [&str; 5] = [
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
];
/// The same with the right that only root can use.
const BOUNDING: [&str; 4] = [
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "--inh-caps=-all",
];

/// A tenant with two secrets, and its usual configuration.
fn tenant(name: &str) -> (Tenant, String) {
    let tenant = Tenant::real(&format!("refused-{name}"), CALM);
    tenant.put("note", json!({ "text": "a note", "nothing": "" }));
    let text = config::usual(&tenant);
    (tenant, text)
}

/// Replaces what differs from run to run: addresses, times, process ids, accessors of requests.
fn normalised(tenant: &Tenant, text: &str) -> String {
    let text = text
        .replace(&tenant.url(), "http://SERVER")
        .replace(&tenant.url().replace("http://", ""), "SERVER");
    let mut seen = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line
            .split(' ')
            .filter(|word| !is_time(word))
            .map(|word| without_value(word).to_owned())
            .collect();
        let line = words.join(" ").trim().to_owned();
        // A retry may come twice on a slow machine, and what merely informs is not part of a
        // refusal.
        if !line.starts_with("INFO") && !seen.contains(&line) {
            seen.push(line);
        }
    }
    seen.join("\n")
}

/// `2026-11-23T09:20:43.394Z`.
fn is_time(word: &str) -> bool {
    word.len() > 20 && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T')
}

/// A field whose value depends on the moment, without it.
fn without_value(word: &str) -> &str {
    ["after=", "pid=", "ttl="]
        .into_iter()
        .find(|field| word.starts_with(field))
        .unwrap_or(word)
}

/// Holds the end against the golden file, and that nothing is left at the server.
fn assert_refused(name: &str, tenant: &Tenant, exit: Exit, end: &End) {
    assert_eq!(end.code, i32::from(exit.code()), "{}", end.stderr);
    tenant.assert_nothing_lives();
    assert!(
        !end.stderr.contains(&tenant.secret_id),
        "the secret_id is in the log"
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/refusals")
        .join(format!("{name}.txt"));
    let now = format!(
        "exit code {}\n{}\n",
        end.code,
        normalised(tenant, &end.stderr)
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().expect("it has one")).expect("the directory is made");
        std::fs::write(&file, &now).expect("the golden file is written");
    }
    let golden =
        std::fs::read_to_string(&file).expect("the golden file is there; UPDATE_GOLDEN=1 makes it");
    assert_eq!(
        now,
        golden,
        "{}; UPDATE_GOLDEN=1 takes the new words",
        file.display()
    );
}

/// With what is wrong at the server or in the configuration, FUSE itself being fine.
fn assert_content_refused(name: &str, exit: Exit, change: impl FnOnce(&Tenant, &str) -> String) {
    let (tenant, text) = tenant(name);
    let setup =
        Setup::new(World::Fuse, &tenant, &change(&tenant, &text)).options(&["--wait", "1s"]);
    assert_refused(name, &tenant, exit, &setup.outcome());
}

#[test]
fn an_unreachable_server() {
    // Port 1 needs a right to listen on, and nobody does.
    assert_content_refused("unreachable", Exit::Unavailable, |tenant, text| {
        text.replace(&tenant.url(), "http://127.0.0.1:1")
    });
}

#[test]
fn a_denied_path() {
    assert_content_refused("denied", Exit::NoSecret, |_, text| {
        text.to_owned() + &config::field("other", "secret/data/somebody/else", "text")
    });
}

#[test]
fn a_path_that_does_not_exist() {
    assert_content_refused("missing-path", Exit::NoSecret, |tenant, text| {
        text.to_owned() + &config::field("other", &tenant.kv("none"), "text")
    });
}

#[test]
fn a_missing_field() {
    assert_content_refused("missing-field", Exit::Data, |tenant, text| {
        text.to_owned() + &config::field("other", &tenant.kv("note"), "none")
    });
}

#[test]
fn an_empty_secret() {
    assert_content_refused("empty", Exit::Data, |tenant, text| {
        text.to_owned() + &config::field("other", &tenant.kv("note"), "nothing")
    });
}

#[test]
fn an_unknown_key() {
    assert_content_refused("unknown-key", Exit::Config, |_, text| {
        text.replace("role_id_file_path", "role_id_file_pth")
    });
}

#[test]
fn a_wrong_secret_id() {
    let (tenant, text) = tenant("wrong-secret-id");
    let wrong = "00000000-1111-2222-3333-444444444444";
    let end = Setup::new(World::Fuse, &tenant, &text)
        .file("secret_id", wrong)
        .options(&["--wait", "1s"])
        .outcome();
    assert!(!end.stderr.contains(wrong), "the secret_id is in the log");
    assert_refused("wrong-secret-id", &tenant, Exit::Login, &end);
}

#[test]
fn a_missing_secret_id() {
    let (tenant, text) = tenant("missing-secret-id");
    let end = Setup::new(World::Fuse, &tenant, &text)
        .prepare("rm /etc/bao/secret_id")
        .options(&["--wait", "1s"])
        .outcome();
    assert_refused("missing-secret-id", &tenant, Exit::Login, &end);
}

#[test]
fn a_missing_configuration_and_an_unknown_option() {
    for (name, option, exit) in [
        ("no-config", "--config=/etc/bao/none.hcl", Exit::Config),
        ("unknown-option", "--fallbck=tmpfs", Exit::Usage),
    ] {
        let (tenant, text) = tenant(name);
        let end = Setup::new(World::Fuse, &tenant, &text)
            .options(&[option])
            .outcome();
        assert_refused(name, &tenant, exit, &end);
    }
}

/// With FUSE refused in one way and no fallback allowed.
fn assert_fuse_refused(name: &str, world: World, change: impl FnOnce(Setup) -> Setup) {
    let (tenant, text) = tenant(name);
    let setup = Setup::new(world, &tenant, &text).variable("BAOFS_FALLBACK", "none");
    assert_refused(name, &tenant, Exit::Fuse, &change(setup).outcome());
}

#[test]
fn fuse_without_its_device() {
    assert_fuse_refused("fuse-no-device", World::Tmpfs, |setup| setup);
}

#[test]
fn fuse_without_sys_admin() {
    assert_fuse_refused("fuse-no-sys-admin", World::Fuse, |setup| {
        setup.rights(&["--inh-caps=-all", "--bounding-set=-sys_admin"])
    });
}

#[test]
fn fuse_as_a_user_whose_right_is_only_in_the_bounding_set() {
    assert_fuse_refused("fuse-bounding-set", World::Fuse, |setup| {
        setup.rights(&BOUNDING)
    });
}

/// With a target that a user was given for the fallback.
fn assert_target_refused(name: &str, prepare: &str) {
    let (tenant, text) = tenant(name);
    let end = Setup::new(World::Tmpfs, &tenant, &text)
        .prepare(prepare)
        .rights(&UNPRIVILEGED)
        .outcome();
    assert_refused(name, &tenant, Exit::Tmpfs, &end);
}

#[test]
fn a_directory_on_disk_as_target() {
    assert_target_refused("target-disk", DISK);
}

#[test]
fn a_memory_filesystem_without_limit_as_target() {
    assert_target_refused(
        "target-unlimited",
        &format!("mount -t ramfs given {MOUNT}; chown {USER} {MOUNT}"),
    );
}

#[test]
fn files_of_another_user_without_the_right_to_give_them_away() {
    let (tenant, text) = tenant("target-owner");
    let prepare = format!("mount -t tmpfs -o size=1m,mode=1777 given {MOUNT}");
    let other = format!("{}", USER + 1);
    let setup = Setup::new(World::Tmpfs, &tenant, &text)
        .prepare(&prepare)
        .rights(&UNPRIVILEGED)
        .options(&["--user", &other]);
    let end = setup.outcome();
    assert_ne!(end.code, 0, "{}", end.stderr);
    tenant.assert_nothing_lives();
}
