//! The two forms as README gives them, the Compose file, and what wrong ones are told.

use crate::Case;
use crate::docker::{Container, Docker, End, IMAGE, SCRATCH, Site};
use crate::rig::process::run;
use crate::rig::server::{CALM, Lives};
use crate::rig::wait_until_or;
use baofs::exit::Exit;
use serde_json::json;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    ("README has the options of these tests", in_readme),
    ("FUSE as README gives it", fuse),
    ("the walls that stand in a container", walls),
    ("the compose file", compose),
    ("a tmpfs as uid 1000 without any right", tmpfs),
    ("a tmpfs that root fills for another user", tmpfs_of_root),
    (
        "wrong forms are refused with the remedy, before a login",
        wrong_forms,
    ),
    ("a container that was killed starts again", killed),
    ("nothing stays mounted in the container", nothing_mounted),
    ("the image of one file", scratch),
];

/// What README adds to `docker run` for FUSE.
pub(crate) const FUSE: &str = "--read-only --device /dev/fuse --cap-drop ALL --cap-add SYS_ADMIN --cap-add SETUID --cap-add SETGID \
    --cap-add KILL --ulimit memlock=8388608 --security-opt apparmor=unconfined";
/// What README adds for a tmpfs.
pub(crate) const TMPFS: &str = "--user 1000 --cap-drop ALL --read-only --tmpfs /app/secrets:size=4m,mode=0700,uid=1000 --memory 256m --memory-swap 256m";
/// What a tmpfs needs that root fills for another user.
const TMPFS_OF_ROOT: &str = "--read-only --cap-drop ALL --cap-add SETUID --cap-add SETGID --cap-add KILL --cap-add CHOWN --tmpfs /app/secrets:size=4m,mode=0755";
/// The entry point with the application's user.
pub(crate) const AS_APP: &[&str] = &["run", "--user", "app", "--"];
/// The application of the image.
const WEB: &[&str] = &["python3", "/app/app.py"];
/// Leases that are replaced within a test.
const SHORT: Lives = Lives {
    token: 3600,
    lease: 4,
    lease_max: 6,
};

/// Runs `docker run OPTIONS` with the site's configuration, then `baofs WORDS`.
pub(crate) fn start<'a>(site: &Site<'a>, options: &str, words: &[&[&str]]) -> Container<'a> {
    start_program(site, options, "baofs", &words.concat())
}

/// Runs `docker run OPTIONS` with the site's configuration and another entry point.
pub(crate) fn start_program<'a>(
    site: &Site<'a>,
    options: &str,
    program: &str,
    words: &[&str],
) -> Container<'a> {
    let (options, volume): (Vec<_>, _) = (options.split_whitespace().collect(), site.volume());
    site.docker.run(
        &[
            &options,
            &["--volume", &volume, "--entrypoint", program, IMAGE][..],
            words,
        ]
        .concat(),
    )
}

/// Asserts that nothing lives at the server and that the daemon has no mount of the agent.
pub(crate) fn assert_nothing_left(site: &Site<'_>) {
    site.tenant.assert_nothing_lives();
    assert!(
        !site.docker.mounts().contains(" - fuse "),
        "{}",
        site.docker.mounts()
    );
}

/// The user whom the web application in there is at the database, once it says another than `old`.
fn database_user(container: &Container<'_>, old: &str) -> String {
    let ask = || {
        container
            .get()
            .filter(|(status, text)| *status == 200 && text != old)
            .map(|(_, text)| text)
    };
    wait_until_or(
        "the web application answers",
        || format!("{:?} {}", container.get(), container.log()),
        ask,
    )
}

/// The web application as `uid` reads its credential, sees the next one, and ends in order.
fn assert_served(docker: &Docker, name: &str, options: &str, words: &[&str]) {
    let site = docker.site(name, SHORT, "");
    let database = format!(
        "--env DB_HOST={} --env DB_PORT={}",
        docker.gateway, docker.real.postgres.port
    );
    let container = start(&site, &format!("{options} {database}"), &[words, WEB]);
    container.wait_for_line("serving");
    assert_follows(&site, &container);
    let end = container.stop(&[]);
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_nothing_left(&site);
}

/// The web application runs as its user, works with its credential, and with the next one.
fn assert_follows(site: &Site<'_>, container: &Container<'_>) {
    let first = database_user(container, "");
    assert!(site.tenant.knows(&first));
    let users =
        "for it in /proc/[0-9]*; do grep -qx python3 $it/comm && grep ^Uid: $it/status; done; true";
    assert_eq!(
        container.try_exec("app", &["sh", "-c", users]).as_deref(),
        Some("Uid:\t1000\t1000\t1000\t1000")
    );
    assert_eq!(
        container
            .try_exec("app", &["stat", "-Lc", "%u:%a", "/app/secrets/note"])
            .as_deref(),
        Some("1000:400")
    );
    database_user(container, &first);
    site.tenant.put("note", json!({ "text": "new" }));
    assert_eq!(container.read_after("app", "note", "old"), "new");
}

fn fuse(docker: &Docker) {
    assert_served(docker, "fuse", FUSE, AS_APP);
}

/// Of the kernel that this runs on none is missing; Docker's profile lets both pass.
fn walls(docker: &Docker) {
    let site = docker.site("walls", CALM, "");
    for (options, words, of) in [
        (FUSE, AS_APP, "serve"),
        (TMPFS_OF_ROOT, &on_tmpfs(&["--user", "app"])[..], "fetch"),
    ] {
        let container = start(
            &site,
            options,
            &[words, &["sh", "-c", "echo started; exec sleep 1000"]],
        );
        container.wait_for_line("started");
        let status = container
            .try_exec("root", &["baofs", "status"])
            .expect("root may ask");
        let line = status
            .lines()
            .find(|line| line.starts_with("walls "))
            .expect("it is told");
        let words = line.split(of).nth(1).expect("the role has walls");
        assert!(
            words.contains(", seccomp, landlock "),
            "{line}\n{}",
            container.log()
        );
        container.stop(&[]);
    }
}

/// The entry point on a tmpfs; on a machine that has a swap it may be out of reach or not, and that
/// is tested elsewhere.
pub(crate) fn on_tmpfs(options: &[&'static str]) -> Vec<&'static str> {
    let swap = std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
    let allow: &[_] = if swap { &["--allow-swap"] } else { &[] };
    [&["run", "--fallback", "tmpfs"], options, allow, &["--"]].concat()
}

fn tmpfs(docker: &Docker) {
    assert_served(docker, "tmpfs", TMPFS, &on_tmpfs(&[]));
}

fn tmpfs_of_root(docker: &Docker) {
    assert_served(
        docker,
        "tmpfs-root",
        TMPFS_OF_ROOT,
        &on_tmpfs(&["--user", "app"]),
    );
}

fn in_readme(_: &Docker) {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"))
        .expect("README.md");
    let text = text
        .replace("\\\n", " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for options in [FUSE, TMPFS, TMPFS_OF_ROOT] {
        assert!(
            text.contains(&format!("docker run {options} ")),
            "README has other words than: {options}"
        );
    }
}

fn compose(docker: &Docker) {
    let site = docker.site("compose", SHORT, "");
    let (dir, volume) = (
        tempfile::tempdir().expect("a directory for the override"),
        site.volume_name(),
    );
    let more = dir.path().join("override.yml");
    std::fs::write(
        &more,
        format!("volumes: {{{volume}: {{external: true}}}}\n"),
    )
    .expect("the directory is ours");
    let compose = |words: &[&str]| {
        let mut command = docker.client("docker-compose");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/compose.yml");
        command
            .args(["--project-name", &volume, "--file", file, "--file"])
            .arg(&more)
            .args(words);
        command.env("IMAGE", IMAGE).env("BAO_DIR", &volume);
        command
            .env("DB_HOST", docker.gateway.to_string())
            .env("DB_PORT", docker.real.postgres.port.to_string());
        run(&mut command)
    };
    compose(&["up", "-d"]);
    let container = docker.attach(&compose(&["ps", "-q", "app"]));
    assert_follows(&site, &container);
    let health = || (container.inspect("{{.State.Health.Status}}") == "healthy").then_some(());
    wait_until_or(
        "it is healthy",
        || container.inspect("{{json .State.Health}}"),
        health,
    );
    compose(&["stop"]);
    let end = container.end();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_nothing_left(&site);
    compose(&["down"]);
}

/// What `baofs WORDS -- true` with these options ends with and says; nobody was asked to log in.
fn assert_refused(site: &Site<'_>, options: &str, words: &[&str], exit: Exit, says: &[&str]) {
    let End { code, stderr, .. } = start(site, options, &[words, &["true"]]).end();
    assert_eq!(code, i32::from(exit.code()), "{options:?}: {stderr}");
    let missing: Vec<_> = says
        .iter()
        .filter(|word| !stderr.contains(**word))
        .collect();
    assert!(
        missing.is_empty(),
        "{options:?}: the words {missing:?} are not in: {stderr}"
    );
    assert!(
        site.docker.real.bao.requests(&site.tenant.name).is_empty(),
        "{options}: a login"
    );
}

fn wrong_forms(docker: &Docker) {
    let site = docker.site("wrong", CALM, "");
    let without = |left: &str| FUSE.replace(&format!("--cap-add {left}"), "");
    assert_refused(
        &site,
        &FUSE.replace("--device /dev/fuse", ""),
        AS_APP,
        Exit::Fuse,
        &["--device /dev/fuse"],
    );
    assert_refused(
        &site,
        &format!("--user 1000 {FUSE}"),
        &["run", "--"],
        Exit::Fuse,
        &["start as root and give `--user`"],
    );
    assert_refused(
        &site,
        &without("SYS_ADMIN"),
        AS_APP,
        Exit::Fuse,
        &["--cap-add SYS_ADMIN"],
    );
    for right in ["KILL", "SETUID", "SETGID"] {
        assert_refused(
            &site,
            &without(right),
            AS_APP,
            Exit::Config,
            &["cannot run as app", right, "--cap-add"],
        );
    }
    assert_refused(
        &site,
        "--user 1000 --cap-drop ALL",
        &["run", "--user", "root", "--"],
        Exit::Config,
        &["cannot run as root"],
    );
    assert_refused(
        &site,
        "--user 1000 --cap-drop ALL",
        &["run", "--fallback", "tmpfs", "--"],
        Exit::Tmpfs,
        &["--tmpfs /app/secrets"],
    );
}

fn killed(docker: &Docker) {
    let site = docker.site("killed", CALM, "");
    let container = start(
        &site,
        FUSE,
        &[
            AS_APP,
            &["sh", "-c", "cat /app/secrets/note; echo; exec sleep 1000"],
        ],
    );
    container.wait_for_line("old");
    container.signal("KILL");
    site.tenant.put("note", json!({ "text": "new" }));
    let container = container.start_again();
    container.wait_for_line("new");
    assert_eq!(container.stop(&[]).code, 143);
}

fn nothing_mounted(docker: &Docker) {
    let site = docker.site("mounted", CALM, "");
    let script = "baofs run --user app -- sh -c 'grep -o \" /app/secrets .*\" /proc/self/mountinfo; exit 5'; echo $?
        grep -o ' /app/secrets .*' /proc/self/mountinfo; ls -A /app/secrets";
    let end = start_program(&site, FUSE, "sh", &["-c", script]).end();
    let lines: Vec<_> = end.stdout.lines().collect();
    let [mounted @ .., code] = lines.as_slice() else {
        panic!("nothing was printed: {}", end.stderr)
    };
    assert!(
        mounted.len() == 1 && mounted[0].contains(" ro,") && *code == "5",
        "{lines:?}: {}",
        end.stderr
    );
    assert_nothing_left(&site);
}

fn scratch(docker: &Docker) {
    let dynamic = std::fs::read(crate::rig::agent::binary())
        .expect("it is built")
        .windows(8)
        .any(|it| it == b"ld-linux");
    let end = docker.run(&[SCRATCH, "--version"]).end();
    // A build for development needs a loader that the image does not have.
    assert!(
        dynamic || end.stdout.starts_with("baofs "),
        "{} {}",
        end.code,
        end.stderr
    );
}
