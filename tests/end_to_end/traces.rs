//! What the agent leaves outside the mount, against those who may write there: the application, and
//! whoever was there before.

use crate::rig::agent::{Place, Setup, USER};
use crate::rig::scene::assert_left_nothing;
use crate::rig::server::{Scene, Tenant};
use crate::rig::{World, config};
use baofs::exit::Exit;

in_each_world!(
    a_planted_sink_is_refused,
    a_sink_of_an_earlier_run_is_taken_over,
    an_application_that_replaces_the_pid_file_delays_no_stop
);

const SINK: &str = "/tmp/bao-token";
/// The application's own directory, with the pid file in it.
const OWN: &str = "mkdir /run/own && chown 1000:1000 /run/own";
const PID_FILE: &str = "/run/own/agent.pid";

/// One secret, a pid file and a sink.
fn setup(world: World, name: &str) -> (Tenant, Setup) {
    let sink =
        format!("auto_auth {{\n  sink \"file\" {{\n    config = {{ path = \"{SINK}\" }}\n  }}\n");
    let text = |tenant: &Tenant| {
        config::login(&tenant.url()).replace("auto_auth {\n", &sink)
            + &config::field("note", &tenant.kv("note"), "text")
            + &format!("pid_file = \"{PID_FILE}\"\n")
    };
    let (tenant, setup) = Scene::of(world).setup(name, text);
    let setup = setup.prepare(OWN).options(&["--user", &format!("{USER}")]);
    (tenant, setup)
}

fn an_application_that_replaces_the_pid_file_delays_no_stop(world: World) {
    for (n, replacement) in [
        "mkfifo",
        "ln -s /dev/zero",
        "ln -s /proc/1/mem",
        "mkdir",
        "true",
    ]
    .into_iter()
    .enumerate()
    {
        let (tenant, setup) = setup(world, &format!("pid-file-{n}"));
        let script =
            format!("rm {PID_FILE} && {replacement} {PID_FILE} && echo started && exec sleep 1000");
        let end = setup
            .place(Place::UnderShell)
            .script(&script)
            .started()
            .stop();
        assert_eq!(end.code, 143, "{replacement}: {}", end.stderr);
        assert_left_nothing(&tenant, &end);
    }
}

fn a_planted_sink_is_refused(world: World) {
    let table = [
        ("echo evil >/tmp/bao-token", "a file of uid 0 lies there"),
        (
            "echo evil >/tmp/bao-token; chown 4242 /tmp/bao-token",
            "a file of uid 4242 lies there",
        ),
        (
            "ln -s /tmp/evil /tmp/bao-token",
            "a symbolic link of uid 0 lies there",
        ),
        (
            "ln -s /app/secrets/bao-token /tmp/bao-token; chown -h 4242 /tmp/bao-token",
            "a symbolic link of uid 4242 lies there",
        ),
        ("mkfifo /tmp/bao-token", "a FIFO of uid 0 lies there"),
    ];
    for (n, (plant, words)) in table.into_iter().enumerate() {
        let (tenant, setup) = setup(world, &format!("planted-{n}"));
        let end = setup.prepare(plant).place(Place::UnderShell).outcome();
        assert_eq!(
            end.code,
            i32::from(Exit::Config.code()),
            "{plant}: {}",
            end.stderr
        );
        for part in [words, SINK, "hint: remove it"] {
            assert!(end.stderr.contains(part), "{part}: {}", end.stderr);
        }
        assert!(!end.stderr.contains("logged in"), "{}", end.stderr);
        assert_left_nothing(&tenant, &end);
    }
}

fn a_sink_of_an_earlier_run_is_taken_over(world: World) {
    let (tenant, setup) = setup(world, "sink-again");
    let warned = "may replace the link to a sink path=/tmp/bao-token";
    // Whoever waits for the agent sees what it leaves.
    let after = format!("echo \"code $?\"; ls {SINK} {PID_FILE} 2>&1");
    let prepare =
        format!("ln -s /app/secrets/bao-token {SINK}\nset -- sh -c '\"$@\"; {after}' sh \"$@\"");
    let script = format!("readlink {SINK} && cat {SINK} >/dev/null && [ -s {PID_FILE} ] && exit 7");
    let end = setup.prepare(&prepare).script(&script).outcome();
    assert!(
        end.stdout.starts_with("/app/secrets/bao-token\ncode 7\n"),
        "{}\n{}",
        end.stdout,
        end.stderr
    );
    assert_eq!(
        end.stdout.matches("cannot access").count(),
        2,
        "the link and the pid file are gone: {}",
        end.stdout
    );
    assert!(
        !end.stderr.contains(warned),
        "/tmp has a sticky bit: {}",
        end.stderr
    );
    tenant.assert_nothing_lives();
    for (change, who) in [
        ("chmod 0777 /tmp", "everybody"),
        ("chmod 0755 /tmp; chown 4242 /tmp", "uid 4242"),
    ] {
        let end = self::setup(world, "sink-open")
            .1
            .prepare(change)
            .script("exit 7")
            .outcome();
        assert_eq!(
            (
                end.code,
                end.stderr.matches(&format!("{warned} why=\"{who}")).count()
            ),
            (7, 1),
            "{change}: {}",
            end.stderr
        );
    }
}
