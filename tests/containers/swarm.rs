//! README's Swarm section: `stack.yml` as it is, three replicas of the example application, from
//! their deployment to their end. Invariant: what is waited for is what an operator would look at;
//! a case leaves neither a stack nor a swarm that it made.

use crate::Case;
use crate::docker::{Docker, IMAGE};
use crate::rig::process::{Captured, Kept, run};
use crate::rig::server::{Lives, Real, Tenant};
use crate::rig::{config, wait_until_or};
use baofs::exit::Exit;
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tempfile::TempDir;

/// All cases.
pub(crate) const CASES: &[Case] = &[("swarm: three replicas", three_replicas)];

/// The name of the stack.
const NAME: &str = "example";
/// How many tasks `stack.yml` asks for.
const REPLICAS: usize = 3;
/// Docker's secrets and configs, by the names of `stack.yml`.
const GIVEN: [(&str, &str); 3] = [
    ("secret", "secret_id"),
    ("config", "role_id"),
    ("config", "agent_config"),
];
/// Leases end within an outage that a test can wait for, and are replaced while it looks on; the
/// token of an agent that was killed ends before the test does.
const SHORT: Lives = Lives {
    token: 20,
    lease: 8,
    lease_max: 12,
};

/// What only this machine needs (a kernel without IPVS), and a client beside the tasks.
const OVERRIDE: &str = r#"version: "3.9"
services:
  web:
    deploy: {endpoint_mode: dnsrr}
  client:
    image: ${IMAGE}
    entrypoint: [sleep, infinity]
    init: true
    healthcheck: {disable: true}
    deploy: {endpoint_mode: dnsrr}
"#;

fn three_replicas(docker: &Docker) {
    let stack = Stack::deploy(docker);
    let tasks = stack.healthy_tasks();
    a_rotation_reaches_every_task(&stack, &tasks);
    an_outage_restarts_nothing(&stack, &tasks);
    assert_eq!(stack.healthy_tasks(), tasks, "a container was restarted");
    a_death_restarts_nothing(&stack, &tasks[0]);
    assert_eq!(stack.healthy_tasks(), tasks, "a container was restarted");
    trouble_is_restarted(&stack, &tasks);
    updates_fail_no_request(&stack);
    stack.remove();
}

/// A new version of a KV v2 secret, and a new database user for each task.
fn a_rotation_reaches_every_task(stack: &Stack<'_>, tasks: &[String]) {
    let users: Vec<_> = tasks
        .iter()
        .map(|task| stack.file(task, "db_user"))
        .collect();
    stack.tenant.put("note", json!({ "text": "new" }));
    for (task, old) in tasks.iter().zip(&users) {
        stack.wait_until("the new note is there", || {
            (stack.file(task, "note") == "new").then_some(())
        });
        stack.wait_until("there is a new user, and the application is it", || {
            let user = stack.file(task, "db_user");
            (user != *old && stack.answer(task) == Some(user)).then_some(())
        });
    }
}

/// Until every lease has ended and, at the database, every user's time is over.
fn an_outage_restarts_nothing(stack: &Stack<'_>, tasks: &[String]) {
    stack.real.bao.signal(Signal::SIGSTOP);
    for task in tasks {
        let ended = || {
            stack
                .health(task)
                .filter(|text| text.contains("db_user: past its life"))
        };
        let text = stack.wait_until("the task is degraded, which is healthy", ended);
        assert!(
            text.starts_with("degraded") && text.contains("(for "),
            "{text}"
        );
    }
    for task in tasks {
        let seen = stack.docker.ask(&[
            "inspect",
            "--format",
            "{{.State.Health.Status}} {{.State.Health.FailingStreak}}",
            task,
        ]);
        assert_eq!(seen, "healthy 0", "Docker's own view");
    }
    stack.real.bao.signal(Signal::SIGCONT);
    for task in tasks {
        stack.wait_until("the task is healthy again", || {
            stack
                .health(task)
                .filter(|text| text.starts_with("healthy"))
        });
        stack.wait_until("the application works again", || stack.answer(task));
    }
}

/// What the task's `fetch` is, by its own report, and a signal to it.
const SIGNAL_FETCH: &str = r#"kill -$0 $(python3 -c "import json; print(json.load(open('/app/secrets/..baofs/status.json'))['roles']['fetch'])")"#;

/// One death of a role restarts nothing.
fn a_death_restarts_nothing(stack: &Stack<'_>, task: &str) {
    stack
        .exec(task, &["sh", "-c", SIGNAL_FETCH, "KILL"])
        .expect("it is a process of the task's user");
    let counted = || {
        stack
            .exec(task, &["baofs", "status", "--json"])
            .filter(|text| text.contains("\"fetch_deaths\":1"))
    };
    stack.wait_until("another fetch reports", counted);
    stack.wait_until("the task is healthy", || {
        stack
            .health(task)
            .filter(|text| text.starts_with("healthy"))
    });
}

/// `on-failure` looks at the code: the application ends with 0 on TERM, an agent in trouble must
/// not.
fn trouble_is_restarted(stack: &Stack<'_>, tasks: &[String]) {
    let end = || {
        stack.docker.ask(&[
            "inspect",
            "--format",
            "{{.State.Status}} {{.State.ExitCode}}",
            &tasks[0],
        ])
    };
    stack.wait_until("the task ends with a code of baofs' own", || {
        let _ = stack.exec(&tasks[0], &["sh", "-c", SIGNAL_FETCH, "SEGV"]);
        (end() == format!("exited {}", Exit::CrashLoop.code())).then_some(())
    });
    let now = stack.healthy_tasks();
    assert!(
        tasks[1..].iter().all(|task| now.contains(task)),
        "nothing happened to the others"
    );
}

/// Two updates under load, both start-first: the same again, and the tmpfs of README's named-volume
/// form.
///
/// No request may fail of a client that does what a load balancer does: it sends to tasks that are
/// in the service's DNS name at that moment. Swarm enters a task when it is healthy, and takes it
/// out 2 s before it is told to stop; what is under way then, the application finishes.
fn updates_fail_no_request(stack: &Stack<'_>) {
    let (tasks, load) = (stack.healthy_tasks(), Load::start(stack));
    stack.docker.ask(&[
        "service",
        "update",
        "--quiet",
        "--force",
        &format!("{NAME}_web"),
    ]);
    let updated = stack.replaced(&tasks);
    stack.add(Some(&stack.write("named.yml", &named_volume())));
    let on_volumes = stack.replaced(&updated);
    let seen = load.end();
    // Three before, three between, three after; addresses are not used again so soon.
    assert!(seen.contains(" by 9 tasks, 0 failed"), "{seen}");
    for task in &on_volumes {
        let mounts = stack
            .exec(task, &["grep", "/app/secrets", "/proc/self/mountinfo"])
            .unwrap_or_default();
        assert!(
            mounts.contains("noswap") && mounts.contains("mode=700"),
            "{mounts}"
        );
        assert!(stack.answer(task).is_some(), "the application works");
    }
}

/// The file that README's Swarm section shows.
fn named_volume() -> String {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme
        .split_once("\n## Swarm\n")
        .expect("README has the section");
    let (_, rest) = rest.split_once("```yaml\n").expect("it shows a file");
    rest.split_once("```").expect("the file ends").0.to_owned()
}

/// The deployed stack, with a server of its own: it is stopped for a while.
struct Stack<'a> {
    docker: &'a Docker,
    real: Arc<Real>,
    tenant: Tenant,
    /// Files that commands are given.
    dir: TempDir,
    /// Whether the swarm was made here.
    swarm_is_ours: bool,
}

impl<'a> Stack<'a> {
    /// By README's commands.
    fn deploy(docker: &'a Docker) -> Self {
        let real = Arc::new(Real::start(Ipv4Addr::UNSPECIFIED));
        let tenant = real.tenant("swarm", "swarm", SHORT);
        tenant.put("note", json!({ "text": "old" }));
        let swarm_is_ours =
            docker.ask(&["info", "--format", "{{.Swarm.LocalNodeState}}"]) == "inactive";
        if swarm_is_ours {
            docker.ask(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
        }
        let dir = tempfile::tempdir().expect("a directory for files");
        let stack = Self {
            docker,
            real,
            tenant,
            dir,
            swarm_is_ours,
        };
        let url = stack
            .tenant
            .url()
            .replace("127.0.0.1", &docker.gateway.to_string());
        let user = config::field("db_user", &stack.tenant.creds(), "username");
        let password = config::field("db_password", &stack.tenant.creds(), "password");
        let note = config::field("note", &stack.tenant.kv("note"), "text");
        let app = "app {\n  crash_loop_timeout = \"3s\"\n}\n";
        let texts = [
            &stack.tenant.secret_id,
            &stack.tenant.role_id,
            &(config::login(&url) + &user + &password + &note + app),
        ];
        for ((kind, name), text) in GIVEN.iter().zip(texts) {
            let file = stack.write(name, text);
            docker.ask(&[kind, "create", name, &file.to_string_lossy()]);
        }
        stack.write("override.yml", OVERRIDE);
        stack.add(None);
        stack
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("the directory is ours");
        path
    }

    /// `docker stack deploy` of the shipped file, the tests' and one more.
    fn add(&self, more: Option<&Path>) {
        let host = self.docker.gateway.to_string();
        let mut command = self.docker.client("docker");
        command.args(["stack", "deploy", "--resolve-image", "never"]);
        command
            .arg("--compose-file")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/stack.yml"));
        command
            .arg("--compose-file")
            .arg(self.dir.path().join("override.yml"));
        if let Some(more) = more {
            command.arg("--compose-file").arg(more);
        }
        command
            .env("IMAGE", IMAGE)
            .env("BAO_ADDR", self.tenant.url().replace("127.0.0.1", &host))
            .env("DB_HOST", &host);
        run(command
            .env("DB_PORT", self.real.postgres.port.to_string())
            .arg(NAME));
    }

    /// The containers of the tasks that are to run, once all of them are healthy and no others are
    /// left.
    fn healthy_tasks(&self) -> Vec<String> {
        self.wait_until("all tasks are healthy", || {
            let healthy = self.containers(&["--filter", "health=healthy"]);
            (healthy.len() == REPLICAS && self.containers(&[]) == healthy).then_some(healthy)
        })
    }

    /// The tasks after an update that has replaced these.
    fn replaced(&self, old: &[String]) -> Vec<String> {
        self.wait_until("every task is a new one", || {
            (!self.containers(&[]).iter().any(|task| old.contains(task))).then_some(())
        });
        self.healthy_tasks()
    }

    /// The containers of the service, by these filters.
    fn containers(&self, filters: &[&str]) -> Vec<String> {
        let service = format!("label=com.docker.swarm.service.name={NAME}_web");
        let list = self.docker.ask(
            &[
                &["ps", "--quiet", "--no-trunc", "--filter", &service],
                filters,
            ]
            .concat(),
        );
        let mut ids: Vec<_> = list.lines().map(str::to_owned).collect();
        ids.sort();
        ids
    }

    /// Runs a command in a task as its user; `None` when it fails.
    fn exec(&self, task: &str, command: &[&str]) -> Option<String> {
        let output = self.docker.try_ask(&[&["exec", task], command].concat());
        output.status.success().then(|| {
            String::from_utf8_lossy(&output.stdout)
                .trim_end()
                .to_owned()
        })
    }

    /// What `baofs health` prints when it ends with 0.
    fn health(&self, task: &str) -> Option<String> {
        self.exec(task, &["baofs", "health"])
    }

    /// One served file.
    fn file(&self, task: &str, name: &str) -> String {
        self.exec(task, &["cat", &format!("/app/secrets/{name}")])
            .unwrap_or_default()
    }

    /// What the application answers: the database user that it is. `None` when it cannot be one.
    fn answer(&self, task: &str) -> Option<String> {
        let get =
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080').read().decode())";
        self.exec(task, &["python3", "-c", get])
    }

    /// Waits, and has the words of Swarm and of the tasks when it was in vain.
    fn wait_until<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        let say = |args: &[&str]| {
            let output = self.docker.try_ask(args);
            format!(
                "{}{}\n",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        };
        let logs = || {
            self.containers(&["--all"])
                .iter()
                .map(|task| say(&["logs", "--tail", "20", task]))
                .collect::<String>()
        };
        wait_until_or(
            what,
            || say(&["stack", "ps", "--no-trunc", NAME]) + &logs(),
            probe,
        )
    }

    /// `docker stack rm` and README's removal of volumes; nothing is left, here or at the server.
    fn remove(self) {
        self.docker.ask(&["stack", "rm", NAME]);
        let ours = [
            "--quiet",
            "--filter",
            &format!("label=com.docker.stack.namespace={NAME}"),
        ];
        for what in [&["ps", "--all"][..], &["network", "ls"]] {
            self.wait_until("no container and no network is left", || {
                self.listed(what, &ours).is_empty().then_some(())
            });
        }
        self.tenant.assert_nothing_lives();
        // The daemon's own mounts: of volumes, and of what it gives to tasks as secrets and
        // configs.
        let mounts = self.docker.mounts();
        assert!(
            !mounts.contains("noswap") && !mounts.contains("/mounts/secrets"),
            "{mounts}"
        );
        let volumes = self.listed(&["volume", "ls"], &ours);
        assert_eq!(volumes.len(), REPLICAS, "a volume's name stays");
        self.docker.ask(
            &[
                &["volume", "rm"],
                volumes
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .as_slice(),
            ]
            .concat(),
        );
    }

    fn listed(&self, command: &[&str], options: &[&str]) -> Vec<String> {
        self.docker
            .ask(&[command, options].concat())
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        let _ = self.docker.try_ask(&["stack", "rm", NAME]);
        for (kind, name) in GIVEN {
            let _ = self.docker.try_ask(&[kind, "rm", name]);
        }
        if self.swarm_is_ours {
            let _ = self.docker.try_ask(&["swarm", "leave", "--force"]);
        }
    }
}

/// `load.py` in the client's container.
struct Load {
    cli: Kept,
    seen: Captured,
}

impl Load {
    fn start(stack: &Stack<'_>) -> Self {
        let client = format!("label=com.docker.swarm.service.name={NAME}_client");
        let client = stack.docker.ask(&[
            "ps",
            "--quiet",
            "--filter",
            &client,
            "--filter",
            "status=running",
        ]);
        let mut cli = Kept::start(&[], |command| {
            command.args([
                "docker",
                "exec",
                "--interactive",
                &client,
                "python3",
                "-c",
                include_str!("load.py"),
            ]);
            command.envs(
                stack
                    .docker
                    .client("docker")
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            );
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        });
        let seen = Captured::of(cli.child().stdout.take().expect("it was asked for"));
        Self { cli, seen }
    }

    /// Ends it: what it saw.
    fn end(mut self) -> String {
        drop(self.cli.child().stdin.take());
        self.seen.whole()
    }
}
