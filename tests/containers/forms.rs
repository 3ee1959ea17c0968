//! The two forms as README gives them, the Compose file, and what wrong ones are told.

use crate::Case;
use crate::docker::{Container, Docker, End, IMAGE, Site};
use crate::rig::server::{CALM, Lives};
use crate::rig::{wait_until, wait_until_or};
use baofs::exit::Exit;
use serde_json::json;

/// The cases.
pub(crate) const CASES: &[Case] =
    &[("FUSE as README gives it", fuse), ("a tmpfs as uid 1000 without any right", tmpfs), ("a tmpfs that root fills for another user", tmpfs_of_root)];

/// What README adds to `docker run` for FUSE.
pub(crate) const FUSE: &[&str] = &[
    "--device", "/dev/fuse", "--cap-drop", "ALL", "--cap-add", "SYS_ADMIN", "--cap-add", "SETUID", "--cap-add", "SETGID", "--cap-add",
    "KILL", "--ulimit", "memlock=8388608", "--security-opt", "apparmor=unconfined",
];
/// What README adds for a tmpfs.
pub(crate) const TMPFS: &[&str] = &[
    "--user", "1000", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/app/secrets:size=4m,mode=0700,uid=1000", "--memory", "256m",
    "--memory-swap", "256m",
];
/// The entry point with the application's user.
pub(crate) const AS_APP: &[&str] = &["run", "--user", "app", "--"];
/// The application of the image.
const WEB: &[&str] = &["python3", "/app/app.py"];
/// Leases that are replaced within a test.
const SHORT: Lives = Lives { token: 3600, lease: 4, lease_max: 6 };

/// Runs `docker run OPTIONS` with the site's configuration, then `baofs WORDS`.
pub(crate) fn start<'a>(docker: &'a Docker, site: &Site<'_>, options: &[&str], words: &[&[&str]]) -> Container<'a> {
    let volume = site.volume();
    docker.run(&[options, &["--volume", &volume, "--entrypoint", "baofs", IMAGE], &words.concat()].concat())
}

/// Asserts that nothing lives at the server and that the daemon has no mount of the agent.
pub(crate) fn assert_nothing_left(docker: &Docker, site: &Site<'_>) {
    site.tenant.assert_nothing_lives();
    assert!(!docker.mounts().contains("fuse.baofs"), "{}", docker.mounts());
}

/// The user whom the web application in there is at the database, once it says another than `old`.
fn database_user(container: &Container<'_>, old: &str) -> String {
    let ask = || container.get().filter(|(status, text)| *status == 200 && text != old).map(|(_, text)| text);
    wait_until_or("the web application answers", || format!("{:?} {}", container.get(), container.log()), ask)
}

/// The web application as `uid` reads its credential, sees the next one, and ends in order.
fn assert_served(docker: &Docker, name: &str, options: &[&str], words: &[&str]) {
    let site = docker.site(name, SHORT, "");
    let (host, port) = (format!("DB_HOST={}", docker.gateway), format!("DB_PORT={}", docker.real.postgres.port));
    let container = start(docker, &site, &[options, &["--env", &host, "--env", &port]].concat(), &[words, WEB]);
    container.wait_for_line("serving");
    let first = database_user(&container, "");
    assert!(site.tenant.knows(&first));
    database_user(&container, &first);
    assert_eq!(container.try_exec("app", &["sh", "-c", "stat -c %u:%a /app/secrets/note"]).as_deref(), Some("1000:400"));
    site.tenant.put("note", json!({ "text": "new" }));
    assert_eq!(container.read_after("app", "note", "old"), "new");
    let who = container.try_exec("app", &["sh", "-c", "stat -c %u /proc/[0-9]*/cmdline | sort | uniq -c; cat /proc/[0-9]*/comm"]);
    assert!(who.is_some_and(|who| who.contains("python3")), "the application does not run");
    let end = container.stop(&[]);
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_nothing_left(docker, &site);
}

fn fuse(docker: &Docker) {
    assert_served(docker, "fuse", FUSE, AS_APP);
}

fn tmpfs(docker: &Docker) {
    assert_served(docker, "tmpfs", TMPFS, &["run", "--fallback", "tmpfs", "--"]);
}

fn tmpfs_of_root(docker: &Docker) {
    let options = ["--cap-drop", "ALL", "--cap-add", "SETUID", "--cap-add", "SETGID", "--cap-add", "KILL", "--cap-add", "CHOWN"];
    let given = ["--tmpfs", "/app/secrets:size=4m,mode=0755"];
    assert_served(docker, "tmpfs-root", &[&options[..], &given].concat(), &["run", "--user", "app", "--fallback", "tmpfs", "--"]);
}
