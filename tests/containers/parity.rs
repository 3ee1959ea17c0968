//! Everything that `docker run IMAGE COMMAND` gives an application, `docker run IMAGE baofs run -- COMMAND` gives too, but for
//! what is listed here and in README.

use crate::Case;
use crate::docker::{Docker, IMAGE};
use crate::forms::{FUSE, TMPFS};
use crate::rig::server::CALM;
use std::collections::BTreeSet;

/// The cases.
pub(crate) const CASES: &[Case] =
    &[("parity: root, FUSE", root), ("parity: --user, FUSE", user), ("parity: uid 1000, a tmpfs", tmpfs), ("parity: a terminal", terminal)];

/// What may differ: the beginning of the line, and why.
const DIFFERS: &[(&str, &str)] = &[
    ("is PID 1: ", "baofs is"),
    ("leads its session: ", "baofs does; the application leads a process group of its own"),
    ("NoNewPrivs:", "`no_new_privs`"),
    ("mount: / /app/secrets ", "the mount"),
];
/// What may differ besides where the application runs with the rights of the container.
const RIGHTS: &[(&str, &str)] = &[("CapEff:", "what only baofs needed is gone"), ("CapPrm:", "the same"), ("CapBnd:", "the same")];
/// What may differ besides with `--user`.
const USER: &[(&str, &str)] = &[("environment: USER=", "the user's"), ("environment: LOGNAME=", "the user's")];

/// What else an application may be given.
const MORE: &[&str] = &[
    "--ulimit",
    "nofile=300:400",
    "--ulimit",
    "core=65536",
    "--oom-score-adj",
    "77",
    "--env",
    "KEPT=yes",
    "--workdir",
    "/tmp",
    "--hostname",
    "here",
    "--group-add",
    "5",
];

/// Compares `docker run PLAIN` with `docker run OPTIONS ... baofs run WORDS --`.
fn assert_same(docker: &Docker, name: &str, plain: &[&str], options: &[&str], words: &[&str], differs: &[&[(&str, &str)]]) {
    let site = docker.site(name, CALM, "");
    let (volume, script) = (site.volume(), include_str!("parity.sh"));
    let printed = |options: &[&str], program: &str, words: &[&str]| -> BTreeSet<String> {
        let end =
            docker.run(&[MORE, options, &["--volume", &volume, "--entrypoint", program, IMAGE], words, &["-c", script]].concat()).end();
        assert_eq!(end.code, 0, "{}{}", end.stdout, end.stderr);
        end.stdout.lines().map(|line| line.trim_end().to_owned()).collect()
    };
    let without = printed(plain, "sh", &[]);
    let with = printed(options, "baofs", &[&["run"], words, &["--", "sh"]].concat());
    let known = |line: &str| differs.iter().copied().flatten().any(|(start, _)| line.starts_with(start));
    let difference: Vec<_> = without.symmetric_difference(&with).filter(|line| !known(line)).collect();
    assert!(difference.is_empty(), "without baofs:\n{without:#?}\nwith:\n{with:#?}\ndiffer:\n{difference:#?}");
}

fn root(docker: &Docker) {
    assert_same(docker, "parity-root", FUSE, FUSE, &[], &[DIFFERS, RIGHTS]);
}

fn user(docker: &Docker) {
    let plain = [&["--user", "app"], FUSE].concat();
    assert_same(docker, "parity-user", &plain, FUSE, &["--user", "app"], &[DIFFERS, USER]);
}

fn tmpfs(docker: &Docker) {
    assert_same(docker, "parity-tmpfs", TMPFS, TMPFS, &["--fallback", "tmpfs"], &[DIFFERS]);
}

fn terminal(docker: &Docker) {
    let options = [&["--tty"], FUSE].concat();
    assert_same(docker, "parity-tty", &options, &options, &[], &[DIFFERS, RIGHTS]);
}
