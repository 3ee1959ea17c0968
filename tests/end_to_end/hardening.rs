//! What the agent's processes may do, and what somebody who looks into them finds.

use crate::rig::agent::{Agent, MOUNT, Setup, USER};
use crate::rig::bao;
use crate::rig::memory::{Finds, Needles};
use crate::rig::process::{children, outcome, signal, status};
use crate::rig::server::{CALM, Tenant};
use crate::rig::{World, config, wait_until_or};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

in_each_world!(
    fetch_and_serve_have_no_right,
    the_roles_leave_no_core_and_let_nobody_look,
    no_value_reaches_the_log,
    memory_shows_no_value_to_root,
);

fn start(world: World, name: &str) -> (Tenant, Agent) {
    let tenant = Tenant::real(&format!("{name}-{world:?}").to_lowercase(), CALM);
    tenant.put(
        "note",
        json!({ "text": "a note that nobody else writes: 7c1f0e4b" }),
    );
    let agent = Setup::new(world, &tenant, &config::usual(&tenant)).started();
    (tenant, agent)
}

/// The agent's processes besides the supervisor, which must be able to mount and to start the
/// application.
fn roles(agent: &Agent, world: World) -> Vec<Pid> {
    match world {
        World::Fuse => vec![agent.role("fetch"), agent.role("serve")],
        World::Tmpfs => vec![agent.role("fetch")],
    }
}

fn fetch_and_serve_have_no_right(world: World) {
    let (_tenant, agent) = start(world, "rights");
    for pid in roles(&agent, world) {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(
                status(pid, set).as_deref(),
                Some("0000000000000000"),
                "{set} of {:?}",
                status(pid, "Name")
            );
        }
        assert_eq!(status(pid, "NoNewPrivs").as_deref(), Some("1"));
    }
    assert_eq!(agent.stop().code, 0);
}

fn the_roles_leave_no_core_and_let_nobody_look(world: World) {
    let (_tenant, agent) = start(world, "core");
    for pid in roles(&agent, world) {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .expect("every process has this limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        // The same user without rights may look into its own processes, unless they are not
        // dumpable.
        let inside = status(pid, "NSpid")
            .and_then(|ids| ids.split_whitespace().last().map(str::to_owned))
            .expect("it runs");
        let look = "cat /proc/self/environ >/dev/null && cat /proc/$0/environ";
        let look = outcome(
            agent
                .enter(
                    0,
                    &[
                        "setpriv",
                        "--bounding-set=-all",
                        "--inh-caps=-all",
                        "sh",
                        "-c",
                        look,
                        &inside,
                    ],
                )
                .env_clear(),
        );
        assert!(!look.status.success());
        let words = String::from_utf8_lossy(&look.stderr).into_owned();
        assert!(
            words.contains(&format!("/proc/{inside}/environ: Permission denied")),
            "{words}"
        );
    }
    assert_eq!(agent.stop().code, 0);
}

/// Every value that must not be found anywhere.
fn values(tenant: &Tenant, agent: &Agent) -> Vec<String> {
    vec![
        agent.read("password"),
        agent.read("note"),
        tenant.secret_id.clone(),
    ]
}

fn no_value_reaches_the_log(world: World) {
    let tenant = Tenant::real(&format!("log-{world:?}").to_lowercase(), CALM);
    tenant.put(
        "note",
        json!({ "text": "a note that nobody else writes: 91b3aa02" }),
    );
    let text = config::usual(&tenant) + "log {\n  level = \"trace\"\n}\n";
    let agent = Setup::new(world, &tenant, &text).started();
    let values = values(&tenant, &agent);
    let end = agent.stop();
    assert!(
        end.stderr.contains("published"),
        "the log is not empty: {}",
        end.stderr
    );
    for value in values {
        assert!(
            !end.stderr.contains(&value),
            "a value is in the log:\n{}",
            end.stderr
        );
    }
}

/// The files of the scan, in words that `bao agent` has too: the token, a database password, a note,
/// and a template over two secrets, whose responses fetch keeps.
fn scanned_config(tenant: &Tenant) -> String {
    let mut text = config::login(&tenant.url()).replace(
        "auto_auth {\n",
        "auto_auth {\n  sink \"file\" {\n    config = {\n      path = \"/app/secrets/token\"\n    }\n  }\n",
    );
    text += "template_config {\n  static_secret_render_interval = \"1s\"\n}\n";
    text += &config::template(MOUNT, "password", &tenant.creds(), ".Data.password");
    text += &config::template(MOUNT, "note", &tenant.kv("note"), ".Data.data.text");
    let part = |key: &str| {
        let path = tenant.kv(key);
        format!(r#"{{{{ with secret \"{path}\" }}}}{{{{ .Data.data.text }}}}{{{{ end }}}}"#)
    };
    text + &format!(
        "template {{\n  destination = \"{MOUNT}/pair\"\n  contents = \"{}|{}\"\n}}\n",
        part("left"),
        part("right")
    )
}

/// A value whose JSON form differs from its plain form.
fn quoted(word: &str) -> String {
    format!("the value \"{word}\" that nothing else contains")
}

/// Starts the agent of `setup`, rotates two of its secrets, and gives every value with its name.
fn rotated(
    tenant: &Tenant,
    setup: impl FnOnce(&str) -> Agent,
) -> (Agent, Vec<(&'static str, String)>) {
    let put = |key: &str, word: &str| tenant.put(key, json!({ "text": quoted(word) }));
    put("note", "note-old");
    put("left", "left-old");
    put("right", "right");
    let agent = setup(&scanned_config(tenant));
    let pair = format!("{}|{}", quoted("left-old"), quoted("right"));
    assert_eq!(agent.read("pair"), pair);
    assert_eq!(agent.read("note"), quoted("note-old"));
    put("note", "note-new");
    put("left", "left-new");
    agent.read_after("note", &quoted("note-old"));
    agent.read_after("pair", &pair);
    let values = vec![
        ("token", agent.read("token").trim().to_owned()),
        ("role_id", tenant.role_id.clone()),
        ("secret_id", tenant.secret_id.clone()),
        ("password", agent.read("password")),
        ("note", quoted("note-new")),
        ("superseded note", quoted("note-old")),
        ("left", quoted("left-new")),
        ("superseded left", quoted("left-old")),
        ("right", quoted("right")),
    ];
    (agent, values)
}

fn needles(values: &[(&'static str, String)]) -> Needles {
    let values: Vec<(&str, &str)> = values
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    Needles::of(&values)
}

/// README names what fetch may hold in ordinary memory: the token and the credentials of the login.
/// All other values, all superseded values and all other forms are found nowhere.
fn memory_shows_no_value_to_root(world: World) {
    const CREDENTIALS: &[&str] = &["token", "role_id", "secret_id"];
    let tenant = Tenant::real(&format!("scan-{world:?}").to_lowercase(), CALM);
    let (agent, values) = rotated(&tenant, |text| Setup::new(world, &tenant, text).started());
    let needles = needles(&values);
    let mut processes = roles(&agent, world);
    processes.push(agent.pid());
    for pid in processes {
        let name = status(pid, "Name").expect("it runs");
        let mut finds = needles.rest_in(pid);
        println!("baofs, {world:?}, {name}: {finds:?}");
        if pid == agent.role("fetch") {
            finds
                .counts
                .retain(|name, _| !CREDENTIALS.contains(&name.as_str()));
        }
        assert_eq!(finds, Finds::default(), "in {name}");
    }
    assert_eq!(agent.stop().code, 0);
}

/// The same scan of `bao agent` with the same configuration: it finds values there, so it would
/// find them in baofs.
#[test]
fn the_scan_finds_values_in_bao_agent() {
    let tenant = Tenant::real("scan-incumbent", CALM);
    let incumbent = |text: &str| Setup::incumbent(&bao::binary(), &tenant, text).start();
    let (agent, values) = rotated(&tenant, incumbent);
    let finds = needles(&values).find_in(agent.pid());
    println!(
        "bao agent: {} finds: {finds:?}",
        finds.counts.values().sum::<usize>()
    );
    for name in ["token", "password", "note", "left", "right"] {
        assert!(finds.counts.contains_key(name), "{name}: {finds:?}");
    }
}

/// Stops when a file is there, so that the next life begins when the test wants it.
const STOPS_SLOWLY: &str = "trap 'echo told to stop; until [ -e /tmp/go ]; do /bin/sleep 0.05; done; exit 0' TERM; echo started; while :; do /bin/sleep 60 & wait; done";

/// A child of supervise that is the application's user already and waits in `execve(2)`: the first
/// directory of its `PATH` is the mount, and `serve` stands still.
fn at_exec(agent: &Agent) -> Pid {
    let is_it = |pid: &Pid| {
        let uid =
            status(*pid, "Uid").and_then(|uids| Some(uids.split_whitespace().next()?.to_owned()));
        status(*pid, "Name").as_deref() == Some("baofs") && uid == Some(USER.to_string())
    };
    let all = || format!("{:?}\n{}", agent.processes(), agent.log());
    wait_until_or("the child waits", all, || {
        children(agent.pid()).into_iter().find(is_it)
    })
}

fn holds_locked_memory(pid: Pid) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root reads it");
    assert!(
        maps.contains("[stack]"),
        "it waits in another place: {maps}"
    );
    maps.lines()
        .any(|line| line.contains("/secretmem") || line.contains("/dev/zero"))
}

#[test]
fn between_fork_and_exec_the_application_has_nothing_of_the_agents() {
    let tenant = Tenant::real("at-exec", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let text = config::usual(&tenant)
        + "app {\n  on_change = { restart = true }\n  stop_timeout = \"1h\"\n}\n";
    let setup = Setup::new(World::Fuse, &tenant, &text).options(&["--user", &USER.to_string()]);
    let agent = setup
        .variable("PATH", "/app/secrets:/usr/sbin:/usr/bin:/sbin:/bin")
        .script(STOPS_SLOWLY)
        .started();
    tenant.put("note", json!({ "text": "new" }));
    agent.wait_for_line("told to stop");
    let serve = agent.role("serve");
    signal(serve, Signal::SIGSTOP);
    std::fs::write(agent.path("/tmp/go"), "").expect("root writes there");
    let child = at_exec(&agent);
    assert!(holds_locked_memory(agent.pid()) && !holds_locked_memory(child));
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(
            status(child, set).as_deref(),
            Some("0000000000000000"),
            "{set}"
        );
    }
    let inside = status(child, "NSpid")
        .and_then(|ids| ids.split_whitespace().last().map(str::to_owned))
        .expect("it waits");
    let look = outcome(
        agent
            .enter(USER, &["cat", &format!("/proc/{inside}/environ")])
            .env_clear(),
    );
    assert!(
        String::from_utf8_lossy(&look.stderr).contains("Permission denied"),
        "{look:?}"
    );
    let core = |pid: Pid| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .map(str::to_owned)
    };
    assert_eq!(
        core(child),
        core(agent.pid()),
        "the application inherits it"
    );
    assert!(
        status(child, "Name").as_deref() == Some("baofs"),
        "it waited all the time"
    );
    signal(serve, Signal::SIGCONT);
    let again = || {
        (agent
            .printed()
            .lines()
            .filter(|line| *line == "started")
            .count()
            == 2)
            .then_some(())
    };
    wait_until_or("the application runs again", || agent.log(), again);
    assert_eq!(agent.stop().code, 0);
}
