//! Outside a container, a supervisor that is killed leaves nothing: no process, no mount, no file,
//! no lease, no token.

use crate::rig::agent::{Agent, End, MOUNT, Place, Setup, USER};
use crate::rig::process::{signal, status};
use crate::rig::server::{Scene, Tenant};
use crate::rig::{World, config, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

in_each_scene!(
    a_killed_supervisor_leaves_nothing,
    so_it_is_before_the_first_secrets
);
in_each_world!(
    another_users_application_is_killed_too,
    a_command_is_killed_too,
    hung_roles_are_killed_in_the_end,
    only_who_is_no_init_has_a_guard
);

/// An application that wants to live on, with somebody else in its group.
const STAYS: &str = "trap '' TERM HUP; sleep 1000 & echo started; while :; do sleep 1000; done";

fn setup(scene: Scene, name: &str) -> (Tenant, Setup) {
    let (tenant, setup) = scene.usual(name);
    (tenant, setup.place(Place::UnderShell).script(STAYS))
}

/// The end of the room, which comes when nobody is left in it.
fn killed(agent: Agent) -> End {
    agent.signal(Signal::SIGKILL);
    let end = agent.end();
    assert_eq!(end.code, 137, "{}", end.stderr);
    assert!(
        !end.stdout.contains("left "),
        "{}\n{}",
        end.stdout,
        end.stderr
    );
    end
}

fn a_killed_supervisor_leaves_nothing(scene: Scene) {
    let (tenant, setup) = setup(scene, "parent");
    let agent = setup.started();
    assert_eq!((agent.read("note").as_str(), tenant.tokens()), ("old", 1));
    let end = killed(agent);
    assert!(
        end.stderr.contains("supervise was killed"),
        "{}",
        end.stderr
    );
    tenant.assert_nothing_lives();
}

fn so_it_is_before_the_first_secrets(scene: Scene) {
    let (tenant, setup) = setup(scene, "parent-early");
    let agent = setup.start();
    wait_until("it is logged in", || {
        agent.log().contains("logged in").then_some(())
    });
    killed(agent);
    tenant.assert_nothing_lives();
}

fn another_users_application_is_killed_too(world: World) {
    let (tenant, setup) = setup(Scene::of(world), "parent-user");
    killed(setup.options(&["--user", &format!("{USER}")]).started());
    tenant.assert_nothing_lives();
}

fn a_command_is_killed_too(world: World) {
    let (tenant, setup) = setup(Scene::of(world), "parent-command");
    let hook = "app {\n  on_change {\n    command = [\"sh\", \"-c\", \"trap '' TERM; sleep 1000; true\"]\n    timeout = \"1h\"\n  }\n}\n";
    let agent = setup
        .file("agent-config.hcl", &(config::usual(&tenant) + hook))
        .started();
    let sleeping = || {
        agent
            .processes()
            .iter()
            .filter(|(_, name)| name == "sleep")
            .count()
    };
    assert_eq!(sleeping(), 2);
    tenant.put("note", json!({ "text": "new" }));
    wait_until("the command runs", || (sleeping() == 3).then_some(()));
    killed(agent);
    tenant.assert_nothing_lives();
}

fn hung_roles_are_killed_in_the_end(world: World) {
    let (_tenant, setup) = setup(Scene::of(world), "parent-hung");
    let agent = setup.started();
    for role in if world == World::Fuse {
        &["fetch", "serve"][..]
    } else {
        &["fetch"]
    } {
        let pid = agent.role(role);
        signal(pid, Signal::SIGSTOP);
        wait_until("it is stopped", || {
            status(pid, "State")?.starts_with('T').then_some(())
        });
    }
    killed(agent);
}

fn only_who_is_no_init_has_a_guard(world: World) {
    for (place, guards) in [(Place::Init, 0), (Place::UnderShell, 1)] {
        let (_tenant, setup) = setup(Scene::of(world), "parent-guard");
        let agent = setup.place(place).started();
        let all = agent.processes();
        let guard: Vec<_> = all
            .iter()
            .filter(|(_, name)| name == "baofs-guard")
            .collect();
        assert_eq!(guard.len(), guards, "{all:?}");
        for (pid, _) in guard {
            // SYS_ADMIN and KILL.
            assert_eq!(status(*pid, "CapPrm").as_deref(), Some("0000000000200020"));
            assert_eq!(status(*pid, "NoNewPrivs").as_deref(), Some("1"));
        }
        agent.signal(Signal::SIGTERM);
        agent.signal(Signal::SIGTERM);
        let end = agent.end();
        assert_eq!(end.code, 137, "{}", end.stderr);
        assert!(
            !end.stdout.contains("left ") && !end.stderr.contains("supervise was killed"),
            "{}\n{}",
            end.stdout,
            end.stderr
        );
    }
}

/// Without any right: the directory stays, and what was in it goes.
#[test]
fn a_given_directory_is_emptied() {
    for hangs in [false, true] {
        let (_tenant, setup) = setup(Scene::of(World::Tmpfs), "parent-given");
        let setup = setup.prepare(&format!(
            "mount -t tmpfs -o size=1m,mode=1777,noswap given {MOUNT}"
        ));
        let rights = [
            "--reuid=1000",
            "--regid=1000",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ];
        let agent = setup.rights(&rights).started();
        assert_eq!(agent.read("note"), "old");
        if hangs {
            signal(agent.role("fetch"), Signal::SIGSTOP);
        }
        agent.signal(Signal::SIGKILL);
        let end = agent.end();
        let left: Vec<_> = end
            .stdout
            .lines()
            .filter(|line| line.starts_with("left "))
            .collect();
        assert_eq!(end.code, 137, "{}", end.stderr);
        assert!(
            left.len() == 1 && left[0].starts_with("left mounted"),
            "{left:?}\n{}",
            end.stderr
        );
    }
}
