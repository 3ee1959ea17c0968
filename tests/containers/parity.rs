//! Everything that `docker run IMAGE COMMAND` gives an application, `docker run IMAGE baofs run --
//! COMMAND` gives too, but for what is listed here and in README.

use crate::Case;
use crate::docker::{Container, Docker, IMAGE};
use crate::forms::{AS_APP, FUSE, TMPFS, on_tmpfs, start, start_program};
use crate::rig::server::CALM;
use crate::rig::wait_until_or;
use std::collections::BTreeSet;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    ("parity: root, FUSE", root),
    (
        "parity: root with the rights of Docker's default",
        more_rights,
    ),
    ("parity: --user, FUSE", user),
    ("parity: uid 1000, a tmpfs", tmpfs),
    ("parity: a terminal", terminal),
    ("parity: system calls, --user, FUSE", calls),
    ("parity: system calls, root, FUSE", calls_of_root),
    ("parity: system calls of a command", calls_of_command),
    ("parity: every system call", every_call),
    ("parity: the container's filter alone", inherited_filter),
    ("what a set-user-id program is refused", set_user_id),
    ("a container that admits no filter", no_filter_admitted),
    ("PID 1 keeps the rights that it needs", rights_of_pid_1),
    (
        "an end with less rights leaves nothing",
        end_with_less_rights,
    ),
];

/// A line that may differ: its beginning, and how it goes on under baofs.
type Differs = (&'static str, &'static str);

/// What differs always. The container's first process is baofs; the application leads a process
/// group of its session.
const DIFFERS: &[Differs] = &[
    ("is PID 1: ", "no"),
    ("leads its session: ", "no"),
    ("NoNewPrivs:\t", "1"),
];
/// What differs with FUSE.
const MOUNT: Differs = ("mount: / /app/secrets ", "ro,nosuid,nodev,noexec");
/// What differs where baofs was given `SYS_ADMIN`: the container's filter admits more, and there is
/// another.
const FILTERS: Differs = ("Seccomp_filters:\t", "2");
/// What differs where the application runs as root: it keeps the other three, and loses
/// `SYS_ADMIN`.
const ROOT: &[Differs] = &[
    MOUNT,
    FILTERS,
    ("CapEff:\t", "00000000000000e0"),
    ("CapPrm:\t", "00000000000000e0"),
];
/// What differs with `--user`.
const USER: &[Differs] = &[
    MOUNT,
    FILTERS,
    ("environment: USER=", "app"),
    ("environment: LOGNAME=", "app"),
];

/// What else an application may be given.
const MORE: &str = "--ulimit nofile=300:400 --ulimit core=65536 --oom-score-adj 77 --env KEPT=yes --workdir /tmp --hostname here";

/// FUSE with the rights of Docker's default, which README's form drops.
const MORE_RIGHTS: &str = "--device /dev/fuse --cap-add SYS_ADMIN --ulimit memlock=8388608 --security-opt apparmor=unconfined";

/// The applications: a shell that looks at itself, and, since shells change masks and dispositions,
/// a program that does not.
const OBSERVERS: [&[&str]; 2] = [
    &["sh", "-c", include_str!("parity.sh")],
    &[
        "sed",
        "-En",
        "s/^(Sig(Blk|Ign|Cgt)|ShdPnd)/app: &/p",
        "/proc/self/status",
    ],
];

/// What differs besides from a container that was not given `SYS_ADMIN`: the bounding set, which
/// baofs cannot lower without `SETPCAP`.
const BOUNDING: Differs = ("CapBnd:\t", "00000000002000e0");

/// A program that makes system calls and looks at its rights.
const CALLS: &[&str] = &["python3", "-c", include_str!("calls.py")];

/// Compares `docker run PLAIN ... APPLICATION` with `docker run OPTIONS ... baofs WORDS
/// APPLICATION`.
fn assert_same(
    docker: &Docker,
    name: &str,
    plain: &str,
    options: &str,
    words: &[&str],
    differs: &[Differs],
) {
    assert_observed_same(docker, name, &OBSERVERS, [plain, options], words, differs);
}

/// The same with these applications.
fn assert_observed_same(
    docker: &Docker,
    name: &str,
    observers: &[&[&str]],
    [plain, options]: [&str; 2],
    words: &[&str],
    differs: &[Differs],
) {
    let site = docker.site(name, CALM, "");
    let lines = |options: &str, entry: &[&str], observer: &[&str]| -> Vec<String> {
        let words = [entry, observer].concat();
        let end = start_program(&site, &format!("{MORE} {options}"), words[0], &words[1..]).end();
        assert_eq!(end.code, 0, "{}{}", end.stdout, end.stderr);
        // On a terminal the log of baofs is between the lines.
        end.stdout
            .lines()
            .filter_map(|line| line.strip_prefix("app: "))
            .map(|line| line.trim_end().to_owned())
            .collect()
    };
    let printed = |options: &str, entry: &[&str]| -> BTreeSet<String> {
        observers
            .iter()
            .flat_map(|observer| lines(options, entry, observer))
            .collect()
    };
    let (without, with) = (
        printed(plain, &[]),
        printed(options, &[&["baofs"], words].concat()),
    );
    let differs = || DIFFERS.iter().chain(differs);
    let mut unknown: Vec<_> = without.symmetric_difference(&with).cloned().collect();
    unknown.retain(|line| !differs().any(|(start, _)| line.starts_with(start)));
    let as_expected = |(start, rest): &&Differs| {
        with.iter()
            .any(|line| line.starts_with(&format!("{start}{rest}")))
    };
    unknown.extend(
        differs()
            .filter(|it| !as_expected(it))
            .map(|(start, rest)| format!("no line `{start}{rest}`")),
    );
    assert!(
        unknown.is_empty(),
        "without baofs:\n{without:#?}\nwith:\n{with:#?}\ndiffer:\n{unknown:#?}"
    );
}

fn root(docker: &Docker) {
    assert_same(docker, "parity-root", FUSE, FUSE, &["run", "--"], ROOT);
}

/// `SETPCAP` is among them: the right to mount leaves the bounding set, too.
fn more_rights(docker: &Docker) {
    let options = MORE_RIGHTS;
    let left = ["CapEff:\t", "CapPrm:\t", "CapBnd:\t"].map(|set| (set, "00000000a80425fb"));
    assert_same(
        docker,
        "parity-more",
        options,
        options,
        &["run", "--"],
        &[&[MOUNT, FILTERS], &left[..]].concat(),
    );
}

fn user(docker: &Docker) {
    assert_same(
        docker,
        "parity-user",
        &format!("--user app {FUSE}"),
        FUSE,
        AS_APP,
        USER,
    );
}

fn tmpfs(docker: &Docker) {
    let options = format!("--group-add 5 {TMPFS}");
    assert_same(
        docker,
        "parity-tmpfs",
        &options,
        &options,
        &on_tmpfs(&[]),
        &[],
    );
}

fn terminal(docker: &Docker) {
    let options = format!("--tty {FUSE}");
    assert_same(
        docker,
        "parity-tty",
        &options,
        &options,
        &["run", "--"],
        ROOT,
    );
}

/// FUSE as README gives it, less what the agent alone needs.
fn without_sys_admin() -> String {
    FUSE.replace("--device /dev/fuse", "")
        .replace("--cap-add SYS_ADMIN", "")
}

fn calls(docker: &Docker) {
    let plain = "--user app --read-only --ulimit memlock=8388608";
    let differs = [USER, &[BOUNDING]].concat();
    let observers = [OBSERVERS[0], OBSERVERS[1], CALLS];
    assert_observed_same(
        docker,
        "calls-user",
        &observers,
        [plain, FUSE],
        AS_APP,
        &differs,
    );
}

fn calls_of_root(docker: &Docker) {
    let differs = [ROOT, &[BOUNDING]].concat();
    let observers = [OBSERVERS[0], OBSERVERS[1], CALLS];
    assert_observed_same(
        docker,
        "calls-root",
        &observers,
        [&without_sys_admin(), FUSE],
        &["run", "--"],
        &differs,
    );
}

/// What a marked line of a log or output says, in order.
fn marked(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("app: "))
        .collect()
}

/// A command that is run after a rotation is refused what the application is.
fn calls_of_command(docker: &Docker) {
    let more = "app {\n  on_change = { command = [\"python3\", \"/tmp/calls.py\"] }\n}\n";
    let site = docker.site("calls-command", CALM, more);
    let plain = start_program(
        &site,
        "--user app --ulimit memlock=8388608",
        CALLS[0],
        &CALLS[1..],
    )
    .end();
    let script = "printf %s \"$1\" >/tmp/calls.py; exec baofs run --user app -- sh -c 'echo started; exec sleep 1000'";
    let container = start_program(
        &site,
        &format!("{FUSE} --tmpfs /tmp"),
        "sh",
        &["-c", script, "sh", CALLS[2]],
    );
    container.wait_for_line("started");
    site.tenant
        .put("note", serde_json::json!({ "text": "new" }));
    let done = || {
        container
            .log()
            .contains("app: all calls are made")
            .then_some(())
    };
    wait_until_or("the command has made its calls", || container.log(), done);
    let log = container.log();
    let (without, with) = (marked(&plain.stdout), marked(&log));
    let differs = |line: &str| {
        [DIFFERS, &[FILTERS, BOUNDING]]
            .concat()
            .iter()
            .any(|(start, rest)| line.starts_with(&format!("{start}{rest}")))
    };
    let unknown: Vec<_> = with
        .iter()
        .filter(|line| !without.contains(line) && !differs(line))
        .collect();
    assert!(
        unknown.is_empty() && with.len() == without.len(),
        "only the command: {unknown:#?}\n{without:#?}\n{with:#?}"
    );
    assert_eq!(container.stop(&[]).code, 143);
}

/// What the filters of the process `name` in a container answer to every call, where it is not
/// "allowed"; `None` where the kernel does not show them (it is built without
/// `CHECKPOINT_RESTORE`).
fn filters(docker: &Docker, container: &Container<'_>, name: &str) -> Option<BTreeSet<String>> {
    let namespace = format!("container:{}", container.inspect("{{.Id}}"));
    let rights = "--cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined";
    let rights: Vec<_> = rights.split_whitespace().collect();
    let run = [
        "--pid",
        &namespace,
        "--entrypoint",
        "python3",
        IMAGE,
        "-c",
        include_str!("filters.py"),
        name,
    ];
    let output = docker.try_ask(&[&["run", "--rm"], rights.as_slice(), &run].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("ptrace(0x420c)") {
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect(),
    )
}

/// All numbers of all architectures, by the programs that the kernel holds.
fn every_call(docker: &Docker) {
    let site = docker.site("every-call", CALM, "");
    let sleeps = &["sh", "-c", "echo started; exec sleep 1000"];
    let plain = start_program(
        &site,
        &format!("--user app {}", without_sys_admin()),
        sleeps[0],
        &sleeps[1..],
    );
    let with = start(&site, FUSE, &[AS_APP, sleeps]);
    let [without, with] = [plain, with].map(|container| {
        container.wait_for_line("started");
        filters(docker, &container, "sleep")
    });
    let (Some(without), Some(with)) = (without, with) else {
        println!("the kernel does not show filters: not compared");
        return;
    };
    // Docker 25 and later admit it to everybody, and so does baofs; earlier ones with SYS_ADMIN
    // alone.
    let handle = |line: &&String| {
        [
            "native 303 ",
            "x32 303 ",
            "i386 341 ",
            "native 264 ",
            "arm 370 ",
        ]
        .iter()
        .any(|it| line.starts_with(it))
    };
    let mut differ: Vec<_> = without
        .symmetric_difference(&with)
        .filter(|line| !handle(line))
        .cloned()
        .collect();
    differ.retain(|line| !["filters: 1", "filters: 2"].contains(&line.as_str()));
    assert!(
        differ.is_empty() && with.contains("filters: 2") && with.len() > 100,
        "{differ:#?}"
    );
}

fn inherited_filter(docker: &Docker) {
    let site = docker.site("inherit", CALM, "app {\n  seccomp = \"inherit\"\n}\n");
    let end = start(&site, FUSE, &[AS_APP, CALLS]).end();
    let lines = marked(&end.stdout);
    assert!(
        lines.contains(&"Seccomp_filters:\t1")
            && lines.contains(&"call native unshare: users: done"),
        "{lines:#?}{}",
        end.stderr
    );
}

/// Asserts the effective and the permitted set of PID 1, also after a death of each role, and that
/// the form goes on working.
fn assert_rights(
    docker: &Docker,
    name: &str,
    options: &str,
    words: &[&str],
    expected: &str,
    bounding: &str,
) {
    let site = docker.site(name, CALM, "");
    let container = start(
        &site,
        options,
        &[words, &["sh", "-c", "echo started; exec sleep 1000"]],
    );
    container.wait_for_line("started");
    let look = ["sed", "-En", "s/^Cap(Eff|Prm|Bnd):.//p", "/proc/1/status"];
    let sets = || container.try_exec("root", &look).expect("PID 1 runs");
    let sets_of_pid_1 = format!("{expected}\n{expected}\n{bounding}");
    assert_eq!(
        sets().replace("00000000", "").trim(),
        sets_of_pid_1,
        "{options}"
    );
    let kill = "for it in /proc/[0-9]*; do case $(cat $it/comm) in baofs-fetch|baofs-serve) kill -9 ${it#/proc/};; esac; done";
    container
        .try_exec("root", &["sh", "-c", kill])
        .expect("the roles run");
    site.tenant
        .put("note", serde_json::json!({ "text": "new" }));
    assert_eq!(container.read_after("app", "note", "old"), "new");
    assert_eq!(
        sets().replace("00000000", "").trim(),
        sets_of_pid_1,
        "{options}"
    );
    assert_eq!(container.stop(&[]).code, 143);
}

fn rights_of_pid_1(docker: &Docker) {
    assert_rights(docker, "rights", FUSE, AS_APP, "002000e0", "002000e0");
    // SETPCAP is given, and needed to lower the application's bounding set.
    assert_rights(
        docker,
        "rights-more",
        MORE_RIGHTS,
        AS_APP,
        "002001e0",
        "a82425fb",
    );
    let tmpfs = "--tmpfs /app/secrets:size=4m,mode=0755";
    assert_rights(
        docker,
        "rights-tmpfs",
        tmpfs,
        &on_tmpfs(&["--user", "app"]),
        "000001e1",
        "a80425fb",
    );
}

/// What is done at the end takes no right that was given up: run files in a directory of another
/// user, the tmpfs and its files.
fn end_with_less_rights(docker: &Docker) {
    let more = "pid_file = \"/home/app/run/agent.pid\"\n";
    let site = docker.site("less-rights", CALM, more);
    let script = "install -d -o app -m 0700 /home/app/run
        \"$@\" sh -c 'cat /home/app/run/agent.pid /app/secrets/note >&2 && exit 5'; echo $?
        ls -A /home/app/run /app/secrets; grep -o ' /app/secrets .* baofs .*' /proc/self/mountinfo";
    let own_tmpfs =
        "--cap-add SYS_ADMIN --security-opt apparmor=unconfined --ulimit memlock=8388608";
    for (options, words) in [
        (MORE_RIGHTS, AS_APP.to_vec()),
        (own_tmpfs, on_tmpfs(&["--user", "app"])),
        ("--tmpfs /app/secrets", on_tmpfs(&["--user", "app"])),
    ] {
        let end = start_program(
            &site,
            options,
            "sh",
            &[&["-c", script, "sh", "baofs"], words.as_slice()].concat(),
        )
        .end();
        assert_eq!(
            end.stdout, "5\n/app/secrets:\n\n/home/app/run:\n",
            "{options}: {}",
            end.stderr
        );
    }
}

/// `no_new_privs = false` in the form without `SETPCAP`: a set-user-id program gets `SYS_ADMIN`
/// back, and no system call with it.
fn set_user_id(docker: &Docker) {
    let site = docker.site("set-user-id", CALM, "app {\n  no_new_privs = false\n}\n");
    let script = "cp /usr/bin/python3 /tmp/python && chmod 4755 /tmp/python && exec baofs run --user app -- /tmp/python -c \"$1\"";
    let options = format!("{FUSE} --tmpfs /tmp:exec,suid");
    let end = start_program(&site, &options, "sh", &["-c", script, "sh", CALLS[2]]).end();
    let lines = marked(&end.stdout);
    for expected in [
        "Uid:\t1000\t0\t0\t0",
        "CapEff:\t00000000002000e0",
        "call native mount: EPERM",
        "call i386 unshare: users: EPERM",
    ] {
        assert!(
            lines.contains(&expected),
            "{expected}: {lines:#?}{}",
            end.stderr
        );
    }
}

/// The container's own profile refuses `seccomp(2)`: the application does not start without its
/// filter, unless that is configured.
fn no_filter_admitted(docker: &Docker) {
    let profile = tempfile::NamedTempFile::new().expect("a file for the profile");
    let refuse = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["seccomp"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(profile.path(), refuse).expect("the file is ours");
    let options = format!("{FUSE} --security-opt seccomp={}", profile.path().display());
    for (setting, code, words) in [
        (
            "default",
            126,
            "hint: to do without, set `seccomp` in `app` to `inherit`",
        ),
        ("inherit", 5, ""),
    ] {
        let site = docker.site(
            &format!("no-filter-{setting}"),
            CALM,
            &format!("app {{\n  seccomp = \"{setting}\"\n}}\n"),
        );
        let end = start(&site, &options, &[AS_APP, &["sh", "-c", "exit 5"]]).end();
        assert!(
            end.code == code && end.stderr.contains(words),
            "{setting}: {} {}",
            end.code,
            end.stderr
        );
        site.tenant.assert_nothing_lives();
    }
}
