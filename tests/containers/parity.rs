//! Everything that `docker run IMAGE COMMAND` gives an application, `docker run IMAGE baofs run -- COMMAND` gives too, but for
//! what is listed here and in README.

use crate::Case;
use crate::docker::Docker;
use crate::forms::{AS_APP, FUSE, TMPFS, on_tmpfs, start_program};
use crate::rig::server::CALM;
use std::collections::BTreeSet;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    ("parity: root, FUSE", root),
    ("parity: root with the rights of Docker's default", more_rights),
    ("parity: --user, FUSE", user),
    ("parity: uid 1000, a tmpfs", tmpfs),
    ("parity: a terminal", terminal),
];

/// A line that may differ: its beginning, and how it goes on under baofs.
type Differs = (&'static str, &'static str);

/// What differs always. The container's first process is baofs; the application leads a process group of its session.
const DIFFERS: &[Differs] = &[("is PID 1: ", "no"), ("leads its session: ", "no"), ("NoNewPrivs:\t", "1")];
/// What differs with FUSE.
const MOUNT: Differs = ("mount: / /app/secrets ", "ro,nosuid,nodev,noexec");
/// What differs where the application runs as root: it keeps the other three, and loses `SYS_ADMIN`.
const ROOT: &[Differs] = &[MOUNT, ("CapEff:\t", "00000000000000e0"), ("CapPrm:\t", "00000000000000e0")];
/// What differs with `--user`.
const USER: &[Differs] = &[MOUNT, ("environment: USER=", "app"), ("environment: LOGNAME=", "app")];

/// What else an application may be given.
const MORE: &str = "--ulimit nofile=300:400 --ulimit core=65536 --oom-score-adj 77 --env KEPT=yes --workdir /tmp --hostname here";

/// The applications: a shell that looks at itself, and, since shells change masks and dispositions, a program that does not.
const OBSERVERS: [&[&str]; 2] =
    [&["sh", "-c", include_str!("parity.sh")], &["sed", "-En", "s/^(Sig(Blk|Ign|Cgt)|ShdPnd)/app: &/p", "/proc/self/status"]];

/// Compares `docker run PLAIN ... APPLICATION` with `docker run OPTIONS ... baofs WORDS APPLICATION`.
fn assert_same(docker: &Docker, name: &str, plain: &str, options: &str, words: &[&str], differs: &[Differs]) {
    let site = docker.site(name, CALM, "");
    let lines = |options: &str, entry: &[&str], observer: &[&str]| -> Vec<String> {
        let words = [entry, observer].concat();
        let end = start_program(&site, &format!("{MORE} {options}"), words[0], &words[1..]).end();
        assert_eq!(end.code, 0, "{}{}", end.stdout, end.stderr);
        // On a terminal the log of baofs is between the lines.
        end.stdout.lines().filter_map(|line| line.strip_prefix("app: ")).map(|line| line.trim_end().to_owned()).collect()
    };
    let printed = |options: &str, entry: &[&str]| -> BTreeSet<String> {
        OBSERVERS.into_iter().flat_map(|observer| lines(options, entry, observer)).collect()
    };
    let (without, with) = (printed(plain, &[]), printed(options, &[&["baofs"], words].concat()));
    let differs = || DIFFERS.iter().chain(differs);
    let mut unknown: Vec<_> = without.symmetric_difference(&with).cloned().collect();
    unknown.retain(|line| !differs().any(|(start, _)| line.starts_with(start)));
    let as_expected = |(start, rest): &&Differs| with.iter().any(|line| line.starts_with(&format!("{start}{rest}")));
    unknown.extend(differs().filter(|it| !as_expected(it)).map(|(start, rest)| format!("no line `{start}{rest}`")));
    assert!(unknown.is_empty(), "without baofs:\n{without:#?}\nwith:\n{with:#?}\ndiffer:\n{unknown:#?}");
}

fn root(docker: &Docker) {
    assert_same(docker, "parity-root", FUSE, FUSE, &["run", "--"], ROOT);
}

/// `SETPCAP` is among them: the right to mount leaves the bounding set, too.
fn more_rights(docker: &Docker) {
    let options = "--device /dev/fuse --cap-add SYS_ADMIN --ulimit memlock=8388608 --security-opt apparmor=unconfined";
    let left = ["CapEff:\t", "CapPrm:\t", "CapBnd:\t"].map(|set| (set, "00000000a80425fb"));
    assert_same(docker, "parity-more", options, options, &["run", "--"], &[&[MOUNT], &left[..]].concat());
}

fn user(docker: &Docker) {
    assert_same(docker, "parity-user", &format!("--user app {FUSE}"), FUSE, AS_APP, USER);
}

fn tmpfs(docker: &Docker) {
    let options = format!("--group-add 5 {TMPFS}");
    assert_same(docker, "parity-tmpfs", &options, &options, &on_tmpfs(&[]), &[]);
}

fn terminal(docker: &Docker) {
    let options = format!("--tty {FUSE}");
    assert_same(docker, "parity-tty", &options, &options, &["run", "--"], ROOT);
}
