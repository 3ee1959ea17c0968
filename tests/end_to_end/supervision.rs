//! What a container's entry point owes: exit codes, signals, children, an end in order, whatever
//! ends first.

use crate::rig::agent::{End, MOUNT, Place, Setup, Stderr, USER};
use crate::rig::process::status;
use crate::rig::scene::assert_left_nothing;
use crate::rig::server::Scene;
use crate::rig::{World, config, wait_until};
use baofs::exit::Exit;
use baofs::supervise::state::{SIGNALS, SignalClass};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use serde_json::json;
use std::os::fd::OwnedFd;

in_each_scene!(
    an_end_leaves_nothing,
    a_full_log_pipe_blocks_nothing,
    mount_serves_until_it_is_told_to_stop
);
in_each_world!(
    exit_codes_pass_through,
    what_is_inherited_is_the_same_without_baofs
);

/// An application that says what reaches it, and when it is told to stop.
const TELLS: &str = "trap 'echo told to stop; exit 3' TERM; trap 'echo got INT; exit 4' INT; trap 'echo got QUIT; exit 5' QUIT
for it in HUP USR1 USR2 WINCH CONT TSTP; do trap \"echo got $it\" $it; done
echo started; while :; do sleep 60 & wait; kill $! 2>&-; done";

const FUSE: Scene = Scene::FUSE;

fn code(exit: Exit) -> i32 {
    i32::from(exit.code())
}

fn exit_codes_pass_through(world: World) {
    for place in [Place::Init, Place::UnderShell] {
        for (script, expected) in [
            ("exit 0", 0),
            ("exit 7", 7),
            ("kill -TERM $$", 143),
            ("kill -KILL $$", 137),
            ("kill -34 $$", 162),
        ] {
            let (tenant, setup) = Scene::of(world).usual(&format!("code-{expected}-{place:?}"));
            let end = setup.place(place).script(script).outcome();
            assert_eq!(end.code, expected, "`{script}` {place:?}: {}", end.stderr);
            assert_left_nothing(&tenant, &end);
        }
    }
}

#[test]
fn signals_reach_the_application() {
    for (number, line, expected) in [
        (Signal::SIGTERM, "told to stop", 3),
        (Signal::SIGINT, "got INT", 4),
        (Signal::SIGQUIT, "got QUIT", 5),
    ] {
        let (tenant, setup) = FUSE.usual("signals");
        let agent = setup.script(TELLS).started();
        for (signals, _) in SIGNALS
            .iter()
            .filter(|(_, class)| *class != SignalClass::Stop)
        {
            for signal in *signals {
                agent.signal(*signal);
                agent.wait_for_line(&format!(
                    "got {}",
                    signal.as_str().trim_start_matches("SIG")
                ));
            }
        }
        agent.signal(number);
        let end = agent.end();
        assert!(end.stdout.lines().any(|it| it == line), "{}", end.stdout);
        assert_eq!(end.code, expected, "{}", end.stderr);
        assert_left_nothing(&tenant, &end);
    }
}

#[test]
fn hup_reaches_whom_the_configuration_says() {
    let (tenant, setup) = FUSE.usual("on-hup");
    let text = config::usual(&tenant) + "app {\n  on_hup = \"refresh\"\n}\n";
    let agent = setup
        .file("agent-config.hcl", &text)
        .script(TELLS)
        .started();
    agent.signal(Signal::SIGHUP);
    wait_until("it is taken", || {
        (status(agent.pid(), "ShdPnd")? == "0".repeat(16)).then_some(())
    });
    agent.signal(Signal::SIGUSR1);
    agent.wait_for_line("got USR1");
    let end = agent.stop();
    assert!(!end.stdout.contains("got HUP"), "{}", end.stdout);
}

#[test]
fn a_second_term_kills_and_still_revokes() {
    let (tenant, setup) = FUSE.usual("twice");
    let agent = setup
        .script("trap 'echo told to stop' TERM; echo started; while :; do sleep 60 & wait; done")
        .started();
    agent.signal(Signal::SIGTERM);
    agent.wait_for_line("told to stop");
    let end = agent.stop();
    assert_eq!(end.code, 137, "{}", end.stderr);
    assert_left_nothing(&tenant, &end);
}

#[test]
fn a_term_during_the_wait_revokes() {
    let (tenant, setup) = FUSE.usual("wait");
    let text = config::usual(&tenant) + &config::field("other", &tenant.kv("none"), "text");
    let agent = setup
        .file("agent-config.hcl", &text)
        .place(Place::UnderShell)
        .start();
    wait_until("the secret is missed", || {
        agent.log().contains("trying again").then_some(())
    });
    let end = agent.stop();
    assert_eq!(end.code, 143, "{}", end.stderr);
    assert_left_nothing(&tenant, &end);
}

#[test]
fn a_stopped_application_ends_in_order() {
    let (tenant, setup) = FUSE.usual("stopped");
    let agent =
        setup.script("trap 'echo told to stop; exit 3' TERM; echo started $$; echo started; while :; do sleep 0.05; done").started();
    agent.signal(Signal::SIGTSTP);
    let stopped = |name: &str| {
        agent.processes().iter().any(|(pid, it)| {
            it == name && status(*pid, "State").is_some_and(|s| s.starts_with('T'))
        })
    };
    wait_until("the application is stopped", || stopped("sh").then_some(()));
    assert!(!stopped("baofs"), "the agent itself is not");
    let end = agent.stop();
    assert!(end.stdout.contains("told to stop"), "{}", end.stdout);
    assert_eq!(end.code, 3, "{}", end.stderr);
    assert_left_nothing(&tenant, &end);
}

#[test]
fn a_deaf_application_is_killed() {
    let (tenant, setup) = FUSE.usual("deaf");
    let text = config::usual(&tenant) + "app {\n  stop_timeout = \"300ms\"\n}\n";
    let agent = setup
        .file("agent-config.hcl", &text)
        .script("trap '' TERM; echo started; while :; do sleep 60; done")
        .started();
    let end = agent.stop();
    assert_eq!(end.code, 137, "{}", end.stderr);
    assert_left_nothing(&tenant, &end);
}

#[test]
fn orphans_are_reaped() {
    let (_tenant, setup) = FUSE.usual("orphans");
    let agent = setup
        .script("sh -c 'sleep 0.2 & echo orphan $!'; echo started; exec sleep 60")
        .started();
    let orphan = agent
        .printed()
        .lines()
        .find_map(|line| line.strip_prefix("orphan ").map(str::to_owned))
        .expect("it was printed");
    let is_orphan = |pid| {
        status(pid, "NSpid").is_some_and(|ids| ids.split_whitespace().last() == Some(&orphan))
    };
    wait_until("the orphan is reaped", || {
        (!agent.processes().iter().any(|(pid, _)| is_orphan(*pid))).then_some(())
    });
    assert_eq!(agent.stop().code, 143);
}

fn an_end_leaves_nothing(scene: Scene) {
    let (tenant, setup) = scene.usual("end");
    let agent = setup.place(Place::UnderShell).started();
    let user = agent.read("user");
    assert!(tenant.knows(&user));
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_left_nothing(&tenant, &end);
    assert!(!tenant.knows(&user));
}

#[test]
fn an_application_that_cannot_start_has_its_own_codes() {
    for (name, program, exit) in [
        ("app-missing", "/no/such/program", Exit::NotFound),
        ("app-file", "/etc/passwd", Exit::CannotExecute),
    ] {
        let (tenant, setup) = FUSE.usual(name);
        let end = setup.place(Place::UnderShell).app(&[program]).outcome();
        assert_eq!(end.code, code(exit), "{}", end.stderr);
        assert_left_nothing(&tenant, &end);
    }
}

#[test]
fn the_application_gets_a_clean_environment_and_its_own_user() {
    let (_tenant, setup) = FUSE.usual("environment");
    let secrets = [
        "BAO_TOKEN",
        "VAULT_TOKEN",
        "BAO_CLIENT_KEY",
        "VAULT_NAMESPACE",
        "BAO_ADDR_X",
    ];
    let setup = secrets
        .iter()
        .take(2)
        .fold(setup, |setup, name| setup.variable(name, "a-credential"));
    let script = "env; id -u; id -g; id -G; echo \"home $HOME\"; cat /app/secrets/note; grep -E '^(CapEff|CapPrm|CapAmb)' /proc/self/status";
    let end = setup
        .variable("KEPT", "yes")
        .options(&["--user", &format!("{USER}")])
        .script(script)
        .outcome();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(end.stdout.contains("KEPT=yes"));
    for name in secrets {
        assert!(
            !end.stdout.contains(name),
            "{name} is in the application's environment"
        );
    }
    assert!(!end.stdout.contains("a-credential"));
    assert!(
        end.stdout.contains(&format!("\n{USER}\n")),
        "{}",
        end.stdout
    );
    assert!(end.stdout.contains("old"), "{}", end.stdout);
    for line in end.stdout.lines().filter(|line| line.starts_with("Cap")) {
        assert!(
            line.ends_with("0000000000000000"),
            "the application has a right: {line}"
        );
    }
}

#[test]
fn the_terminal_is_the_applications() {
    let (tenant, setup) = FUSE.usual("terminal");
    // What is typed once the application is up: the terminal sends INT to its foreground group, and
    // that is the application's alone.
    let setup = setup.prepare(
        r#"mkdir /dev/pts; mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts; ln -s pts/ptmx /dev/ptmx
        cat >/tmp/app <<'END'
trap 'echo got INT; exit 5' INT
[ "$(ps -o tpgid= -p $$)" = "$(ps -o pgid= -p $$)" ] && echo in the foreground
while :; do sleep 0.05; done
END
        touch /tmp/typed
        (until grep -q foreground /tmp/typed; do sleep 0.02; done; printf '\003') |
            script -qefc '/entry/baofs run -- sh /tmp/app' /tmp/typed >&2 && code=0 || code=$?
        echo "typed: $code"; grep -o 'got INT' /tmp/typed"#,
    );
    let end = setup.script("exit 0").outcome();
    assert!(
        end.stdout.starts_with("typed: 5\ngot INT\n"),
        "{}\n{}",
        end.stdout,
        end.stderr
    );
    assert_left_nothing(&tenant, &end);
}

/// Types at an interactive shell: Ctrl-C ends its child and not the shell, Ctrl-Z stops it, `fg`
/// lets it go on.
const TYPES: &str = r#"mkdir /dev/pts; mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts; ln -s pts/ptmx /dev/ptmx
    cp "$(command -v sleep)" /tmp/doze; touch /tmp/typed
    seen() { until grep -q "$1" /tmp/typed; do sleep 0.02; done; }
    dozes() { until ps -C doze -o stat= | grep -q "$1"; do sleep 0.02; done; }
    type() {
        seen 'ready>'; echo '/tmp/doze 600'; dozes '^S'; printf ''
        echo 'echo code $?'; seen '^code 130'
        echo '/tmp/doze 601'; dozes '^S'; printf ''; dozes '^T'
        echo fg; dozes '^S'; printf ''
        echo 'echo again $?'; seen '^again 130'
        echo 'exit 9'
    }
    type | PS1='ready> ' script -qefc '/entry/baofs run -- bash --norc -i' /tmp/typed >&2 && code=0 || code=$?
    echo "typed: $code""#;

#[test]
fn an_interactive_shell_has_job_control() {
    let (_tenant, setup) = FUSE.usual("shell");
    let end = setup.prepare(TYPES).script("exit 0").outcome();
    assert!(
        end.stdout.starts_with("typed: 9\n"),
        "{}\n{}",
        end.stdout,
        end.stderr
    );
    assert!(!end.stderr.contains("no job control"), "{}", end.stderr);
}

/// All that a process inherits and can see of it; what baofs changes is left out and tested below.
const INHERITED: &str = r#"grep -E '^(Uid|Gid|Groups|Umask|Sig(Blk|Ign)|Seccomp|Speculation|Cpus_allowed_list|Mems_allowed_list)' /proc/self/status
ulimit -a; ulimit -Ha; cat /proc/self/oom_score_adj /proc/self/cgroup /proc/self/coredump_filter; pwd; nice
for it in /proc/self/fd/*; do case $(readlink "$it") in pipe:*|/proc/*|'') ;; *) echo "$it is $(readlink "$it")" ;; esac; done
env | sort; ls -l /proc/self/ns | sed 's/.* //'"#;

fn what_is_inherited_is_the_same_without_baofs(world: World) {
    let (_tenant, setup) = Scene::of(world).usual("inherited");
    // Odd values, so that a default does not pass for an inherited one.
    let odd = "cd /usr; umask 027; ulimit -n 300; ulimit -S -c 4; ulimit -S -l 100; trap '' USR2; echo 300 >/proc/self/oom_score_adj
exec 7</etc/group 8>&1";
    let prepare = format!(
        "cat >/tmp/inherited <<'END'\n{INHERITED}\nEND\n{odd}\nunset OLDPWD; sh /tmp/inherited >/tmp/direct; "
    );
    let end =
        setup.prepare(&prepare).script("sh /tmp/inherited >/tmp/through; diff /tmp/direct /tmp/through && grep -c . /tmp/direct").outcome();
    assert_eq!(end.code, 0, "{}\n{}", end.stdout, end.stderr);
}

#[test]
fn who_ignores_the_end_of_children_still_gets_its_code() {
    let (_tenant, setup) = FUSE.usual("ignored");
    // Bit 16 is CHLD.
    let setup = setup
        .prepare(r#"set -- env --ignore-signal=CHLD "$@""#)
        .app(&[
            "grep",
            "-q",
            "^SigIgn:.*[13579bdf]....$",
            "/proc/self/status",
        ]);
    let end = setup.outcome();
    assert_eq!(end.code, 0, "{}", end.stderr);
}

#[test]
fn the_roles_hold_nothing_of_the_applications() {
    let (_tenant, setup) = FUSE.usual("descriptors");
    let agent = setup
        .prepare("exec 7</etc/group")
        .script("readlink /proc/self/fd/7; echo started; exec sleep 60")
        .started();
    assert_eq!(agent.printed().lines().next(), Some("/etc/group"));
    for role in ["fetch", "serve"] {
        let pid = agent.role(role);
        let held = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it runs")
            .flatten();
        let held: Vec<_> = held
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .collect();
        assert!(
            !held.iter().any(|path| path.ends_with("etc/group")),
            "{role}: {held:?}"
        );
        assert_eq!(
            status(pid, "NSpgid"),
            status(pid, "NSpid"),
            "{role} leads a process group of its own"
        );
    }
    assert_eq!(agent.stop().code, 143);
}

#[test]
fn sockets_that_systemd_passes_are_the_applications() {
    let (_tenant, setup) = FUSE.usual("listen");
    let end = setup
        .variable("LISTEN_PID", "1")
        .script("[ $LISTEN_PID = $$ ] && [ $$ != 1 ]")
        .outcome();
    assert_eq!(end.code, 0, "{}", end.stderr);
}

/// The application's capabilities: effective, permitted, inheritable, bounding.
const RIGHTS: &str = "for it in CapEff CapPrm CapInh CapBnd NoNewPrivs; do sed -n \"s/^$it:.//p\" /proc/self/status; done";
const OF_BAOFS: [(&str, u64); 4] = [
    ("SYS_ADMIN", 1 << 21),
    ("SETUID", 1 << 7),
    ("SETGID", 1 << 6),
    ("KILL", 1 << 5),
];

fn rights(setup: Setup) -> (Vec<u64>, End) {
    let end = setup.script(RIGHTS).outcome();
    assert_eq!(end.code, 0, "{}", end.stderr);
    (
        end.stdout
            .lines()
            .map(|line| u64::from_str_radix(line, 16).expect("hexadecimal"))
            .collect(),
        end,
    )
}

#[test]
fn a_root_application_loses_only_sys_admin() {
    for setpriv in [
        &["--inh-caps=-all"][..],
        &["--inh-caps=-all", "--bounding-set=-setpcap"],
    ] {
        let (_tenant, setup) = FUSE.usual("root-rights");
        let (sets, end) = rights(setup.rights(setpriv));
        let [eff, prm, inh, bnd, no_new] = sets[..] else {
            panic!("{sets:?}")
        };
        assert_eq!(
            (eff & OF_BAOFS[0].1, prm, inh, no_new),
            (0, eff, 0, 1),
            "{sets:x?}"
        );
        assert!(
            OF_BAOFS[1..].iter().all(|(_, bit)| eff & bit != 0),
            "{sets:x?}"
        );
        assert_eq!(
            bnd & OF_BAOFS[0].1 == 0,
            setpriv.len() == 1,
            "the bounding set takes SETPCAP: {sets:x?}"
        );
        assert!(!end.stderr.contains("WARN"), "{}", end.stderr);
    }
}

#[test]
fn an_application_with_a_user_of_its_own_loses_all() {
    let (_tenant, setup) = FUSE.usual("user-rights");
    let (sets, _) = rights(setup.options(&["--user", &format!("{USER}")]));
    let [eff, prm, inh, bnd, no_new] = sets[..] else {
        panic!("{sets:?}")
    };
    assert_eq!((eff, prm, inh, no_new), (0, 0, 0, 1), "{sets:x?}");
    assert!(OF_BAOFS.iter().all(|(_, bit)| bnd & bit == 0), "{sets:x?}");
}

#[test]
fn rights_may_be_gained_only_where_that_is_asked_for() {
    let (setpcap, none) = (
        &["--inh-caps=-all"][..],
        &["--inh-caps=-all", "--bounding-set=-setpcap"][..],
    );
    for (no_new_privs, right, gained, warned) in [
        ("true", none, false, false),
        ("false", setpcap, false, false),
        ("false", none, true, true),
    ] {
        let (tenant, setup) = FUSE.usual("gain");
        let text =
            config::usual(&tenant) + &format!("app {{\n  no_new_privs = {no_new_privs}\n}}\n");
        let (sets, end) = rights(setup.file("agent-config.hcl", &text).rights(right));
        assert_eq!(
            sets[0] & OF_BAOFS[0].1 != 0,
            gained,
            "{no_new_privs} {right:?}: {sets:x?}"
        );
        assert_eq!(sets[4], u64::from(no_new_privs == "true"));
        assert_eq!(
            end.stderr.contains("--cap-add SETPCAP"),
            warned,
            "{}",
            end.stderr
        );
        // A set-user-id program as the application's user.
        let (tenant, setup) = FUSE.usual("gain-user");
        let text =
            config::usual(&tenant) + &format!("app {{\n  no_new_privs = {no_new_privs}\n}}\n");
        let prepare = "cp /usr/bin/id /tmp/id; chmod 4755 /tmp/id";
        let setup = setup
            .file("agent-config.hcl", &text)
            .prepare(prepare)
            .options(&["--user", &format!("{USER}")]);
        let end = setup.rights(right).script("/tmp/id -u").outcome();
        assert_eq!(
            end.stdout.trim() == "0",
            no_new_privs == "false",
            "{}",
            end.stdout
        );
    }
}

/// In a container that runs as uid 1000 without any right, on a tmpfs that it was given.
fn as_a_user(name: &str, user: &str) -> End {
    let (tenant, setup) = Scene::of(World::Tmpfs).usual(name);
    let setup = setup
        .prepare(&format!(
            "mount -t tmpfs -o size=1m,mode=1777,noswap given {MOUNT}"
        ))
        .options(&["--user", user]);
    let rights = [
        "--reuid=1000",
        "--regid=1000",
        "--groups=1000,7",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ];
    let end = setup
        .rights(&rights)
        .script("id -u; id -G; echo $HOME; cat /app/secrets/note")
        .outcome();
    tenant.assert_nothing_lives();
    end
}

#[test]
fn the_user_that_baofs_is_already_changes_nothing() {
    let end = as_a_user("same-user", &format!("{USER}:{USER}"));
    assert_eq!(
        (end.code, end.stdout.as_str()),
        (0, "1000\n1000 7\n/root\nold"),
        "{}",
        end.stderr
    );
}

#[test]
fn another_user_takes_root() {
    for other in [
        "0:0".to_owned(),
        format!("{USER}:7"),
        "1001:1001".to_owned(),
    ] {
        let end = as_a_user("other-user", &other);
        assert_eq!(end.code, code(Exit::Config), "{}", end.stderr);
        for part in [
            "baofs runs as uid 1000",
            "--cap-add SETGID",
            "start the container as root",
            "or as that user",
        ] {
            assert!(end.stderr.contains(part), "{part}: {}", end.stderr);
        }
        assert!(!end.stderr.contains("logged in"), "{}", end.stderr);
    }
}

#[test]
fn a_missing_right_is_named_with_its_flag() {
    let (tenant, setup) = FUSE.usual("no-kill");
    let setup = setup
        .options(&["--user", &format!("{USER}")])
        .rights(&["--inh-caps=-all", "--bounding-set=-kill"]);
    let end = setup.outcome();
    assert_eq!(end.code, code(Exit::Config), "{}", end.stderr);
    assert!(
        end.stderr.contains("lacks KILL") && end.stderr.contains("`--cap-add KILL`"),
        "{}",
        end.stderr
    );
    tenant.assert_nothing_lives();
}

#[test]
fn a_dead_mount_in_the_way_is_cleared() {
    let (_tenant, setup) = FUSE.usual("dead-mount");
    // The whole agent dies at once, as a kill by the kernel for want of memory leaves it. (`stat`
    // alone may be answered from the kernel's memory of the directory.)
    let setup = setup.prepare(
        "/entry/baofs mount >&2 & until [ -e /app/secrets/note ]; do sleep 0.02; done; kill -9 -1
        while ls /app/secrets >/dev/null 2>&1; do sleep 0.02; done; ls /app/secrets 2>&1 | grep -o 'Transport endpoint.*'",
    );
    let agent = setup.place(Place::UnderShell).started();
    assert_eq!(agent.read("note"), "old");
    let end = agent.stop();
    assert!(
        end.stdout
            .starts_with("Transport endpoint is not connected"),
        "the first agent left no dead mount: {}",
        end.stdout
    );
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(!end.stdout.contains("left "), "{}", end.stdout);
}

/// A pipe that is full and that nobody reads: its reading end, its writing end.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("the pipe is ours");
    for size in [4096, 1] {
        while nix::unistd::write(&writer, &vec![b'.'; size]).is_ok() {}
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("the pipe is ours");
    (reader, writer)
}

fn a_full_log_pipe_blocks_nothing(scene: Scene) {
    let (tenant, setup) = scene.usual("full");
    let (_reader, writer) = full_pipe();
    let agent = setup.stderr(Stderr::Given(writer)).started();
    tenant.put("note", json!({ "text": "new" }));
    assert_eq!(agent.read_after("note", "old"), "new");
    let end = agent.stop();
    assert_eq!(end.code, 0);
    assert_left_nothing(&tenant, &end);
}

fn mount_serves_until_it_is_told_to_stop(scene: Scene) {
    let (tenant, setup) = scene.usual("mount");
    let agent = setup.mount_only().place(Place::UnderShell).start();
    assert_eq!(agent.read("note"), "old");
    assert!(agent.path(MOUNT).is_dir());
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_left_nothing(&tenant, &end);
}
