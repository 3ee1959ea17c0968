//! A Docker daemon, and what the cases need of it. The machine's own is used where one runs; else Debian's `dockerd` is
//! started in namespaces of its own. Invariant: whatever happens, what was started, mounted or routed here ends with this
//! process; with a daemon of the machine, nothing is reached by a path or a pid, which it may see differently.

use crate::rig::process::{Captured, Kept, children, outcome, run, signal};
use crate::rig::server::{Lives, Real, Tenant};
use crate::rig::{agent, cached, config, wait_until, wait_until_or};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// The example application's image, made of the Dockerfile.
pub(crate) const IMAGE: &str = "baofs-example:test";
/// What the Dockerfile builds upon; where they are missing they are made of one local tar.
const BASES: [&str; 2] = ["debian:bookworm-slim", "rust:1.95-bookworm"];

/// `dockerd` where it can hurt nobody: what it keeps below /run and /etc is its own, too.
const DAEMON: &str = r#"mkdir -p /etc/docker && mount -t tmpfs run /run && mount -t tmpfs etc /etc/docker &&
exec dockerd -H "unix://$1/docker.sock" --data-root "$1/data" --exec-root /run/docker --pidfile /run/docker.pid --bip 172.17.0.1/16 \
    --cgroup-parent "/$(basename "$1")" 2>"$1/log""#;

/// A daemon with the image of the example, and an OpenBao with PostgreSQL that containers reach.
pub(crate) struct Docker {
    /// OpenBao and PostgreSQL; for containers they are at `gateway`.
    pub(crate) real: Arc<Real>,
    /// This machine as containers see it.
    pub(crate) gateway: Ipv4Addr,
    /// Ours, if the machine has none.
    daemon: Option<Daemon>,
}

/// A daemon of our own.
struct Daemon {
    /// `unshare(1)`, whose end is the end of all in there.
    room: Kept,
    /// Socket, images, log.
    dir: TempDir,
}

impl Docker {
    /// Finds or starts a daemon, then makes the image and starts the servers. The process must have one thread only.
    pub(crate) fn start() -> Self {
        let runs = outcome(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).status.success();
        let daemon = (!runs).then(Daemon::start);
        let asks = cli(daemon.as_ref());
        let gateway = ["network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"];
        let gateway = run(asks().args(gateway)).parse().expect("the default bridge has an address");
        let image = std::thread::scope(|scope| {
            let image = scope.spawn(|| build(&asks));
            let real = Arc::new(Real::start(Ipv4Addr::UNSPECIFIED));
            image.join().map(|()| real)
        });
        let real = image.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        drop(asks);
        Self { real, gateway, daemon }
    }

    /// `docker` (or with `program` another client, such as `docker-compose`) for this daemon.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.daemon.as_ref().map(|daemon| ("DOCKER_HOST", daemon.host())));
        command
    }

    /// `docker ARGS` to its end, whatever that is.
    pub(crate) fn try_ask(&self, args: &[&str]) -> Output {
        outcome(self.client("docker").args(args))
    }

    /// `docker ARGS`, which must succeed: its standard output.
    pub(crate) fn ask(&self, args: &[&str]) -> String {
        run(self.client("docker").args(args))
    }

    /// `docker run ARGS` attached: options, image, words.
    pub(crate) fn run(&self, args: &[&str]) -> Container<'_> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("baofs-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut cli = Kept::start(&[], |command| {
            command.args(["docker", "run", "--sig-proxy=false", "--name", &name]).args(args);
            command.envs(self.client("docker").get_envs().filter_map(|(key, value)| Some((key, value?))));
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        let child = cli.child();
        let stdout = Captured::of(child.stdout.take().expect("it was asked for"));
        let stderr = Captured::of(child.stderr.take().expect("it was asked for"));
        Container { docker: self, name, cli, stdout, stderr }
    }

    /// A tenant of the server with `db_user`, `db_password` and `note`, and its /etc/bao; `more` is added to its configuration.
    pub(crate) fn site(&self, name: &str, lives: Lives, more: &str) -> Site<'_> {
        let tenant = self.real.tenant(name, name, lives);
        tenant.put("note", serde_json::json!({ "text": "old" }));
        let login = config::login(&tenant.url().replace("127.0.0.1", &self.gateway.to_string()));
        let user = config::field("db_user", &tenant.creds(), "username");
        let password = config::field("db_password", &tenant.creds(), "password");
        let note = config::field("note", &tenant.kv("note"), "text");
        let site = Site { docker: self, tenant };
        site.fill(&(login + &user + &password + &note + more));
        site
    }

    /// What the daemon itself has mounted, where that can be seen.
    pub(crate) fn mounts(&self) -> String {
        let pid = self.daemon.as_ref().and_then(Daemon::pid);
        pid.map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the daemon runs")).unwrap_or_default()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if self.daemon.is_none() {
            let _ = self.try_ask(&["image", "rm", "--force", IMAGE]);
        }
    }
}

/// Makes commands for this daemon.
fn cli(daemon: Option<&Daemon>) -> impl Fn() -> Command + Sync + use<> {
    let host = daemon.map(Daemon::host);
    move || {
        let mut command = Command::new("docker");
        command.envs(host.as_ref().map(|host| ("DOCKER_HOST", host)));
        command
    }
}

impl Daemon {
    fn start() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own needs root: run the tests with sudo");
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let dir = tempfile::Builder::new().prefix("baofs-docker-").tempdir().expect("a directory for the daemon");
        let room = Kept::start(&[], |command| {
            command.args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
            command.args(["sh", "-c", DAEMON, "sh"]).arg(dir.path());
        });
        let daemon = Self { room, dir };
        let log = || fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
        let asks = cli(Some(&daemon));
        wait_until_or("dockerd answers", log, || outcome(asks().arg("version")).status.success().then_some(()));
        daemon
    }

    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.dir.path().display())
    }

    /// `dockerd` itself.
    fn pid(&self) -> Option<nix::unistd::Pid> {
        children(self.room.pid()).first().copied()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            signal(pid, Signal::SIGTERM);
            if !std::thread::panicking() {
                wait_until("dockerd ends", || self.room.ended());
            }
        }
        let name = self.dir.path().file_name().expect("it was made with one").to_owned();
        let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        controllers.for_each(|controller| remove_cgroup(&controller.path().join(&name)));
    }
}

/// Removes an empty control group with all below it; one that is not there, or not empty, stays as it is.
fn remove_cgroup(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

/// Builds the image from a context that holds the binary under test, without a network.
fn build(asks: &(impl Fn() -> Command + Sync)) {
    for base in BASES {
        if !outcome(asks().args(["image", "inspect", base])).status.success() {
            run(asks().arg("import").arg(cached("debian-bookworm.tar")).arg(base));
        }
    }
    let (context, source) = (tempfile::tempdir().expect("a directory for the context"), Path::new(env!("CARGO_MANIFEST_DIR")));
    for file in ["Dockerfile", ".dockerignore", "examples/container/agent-config.hcl", "examples/container/app.py"] {
        let target = context.path().join(file);
        fs::create_dir_all(target.parent().expect("it is below the context")).expect("the context is ours");
        fs::copy(source.join(file), target).expect("the clone is whole");
    }
    fs::copy(agent::binary(), context.path().join("baofs")).expect("the binary is built");
    let build = ["build", "--quiet", "--network", "none", "--build-arg", "BINARY=baofs", "--tag", IMAGE];
    run(asks().args(build).arg(context.path()).env("DOCKER_BUILDKIT", "0"));
}

/// A tenant and its /etc/bao as a volume; the volume ends with this value.
pub(crate) struct Site<'a> {
    docker: &'a Docker,
    /// At the server.
    pub(crate) tenant: Tenant,
}

impl Site<'_> {
    /// What mounts its configuration: an argument of `-v`.
    pub(crate) fn volume(&self) -> String {
        format!("{}:/etc/bao:ro", self.volume_name())
    }

    /// The volume by itself.
    pub(crate) fn volume_name(&self) -> String {
        format!("baofs-test-{}", self.tenant.name)
    }

    fn fill(&self, config: &str) {
        let dir = tempfile::tempdir().expect("a directory for the configuration");
        for (name, text) in [("agent-config.hcl", config), ("role_id", &self.tenant.role_id), ("secret_id", &self.tenant.secret_id)] {
            fs::write(dir.path().join(name), text).expect("the directory is ours");
        }
        // Through a container that never starts: the daemon may see other files than this process.
        let volume = format!("{}:/etc/bao", self.volume_name());
        let id = self.docker.ask(&["create", "--volume", &volume, IMAGE]);
        let source = format!("{}/.", dir.path().display());
        self.docker.ask(&["cp", &source, &format!("{id}:/etc/bao")]);
        self.docker.ask(&["rm", &id]);
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        let _ = self.docker.try_ask(&["volume", "rm", "--force", &self.volume_name()]);
    }
}

/// A container with its streams; it is removed with this value.
pub(crate) struct Container<'a> {
    docker: &'a Docker,
    name: String,
    /// `docker run`, which ends with the container's code.
    cli: Kept,
    stdout: Captured,
    stderr: Captured,
}

impl Container<'_> {
    /// What it has written to standard output.
    pub(crate) fn printed(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard error.
    pub(crate) fn log(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has printed `line`.
    pub(crate) fn wait_for_line(&self, line: &str) {
        let said = || self.printed() + &self.log();
        wait_until_or(&format!("the container prints `{line}`"), said, || self.printed().lines().any(|it| it == line).then_some(()));
    }

    /// Waits until its standard error has `words`.
    pub(crate) fn wait_for_log(&self, words: &str) {
        wait_until_or(&format!("the log has `{words}`"), || self.printed() + &self.log(), || self.log().contains(words).then_some(()));
    }

    /// What `docker inspect --format` says of it.
    pub(crate) fn inspect(&self, format: &str) -> String {
        self.docker.ask(&["inspect", "--format", format, &self.name])
    }

    /// Runs a command in it as `user`; `None` when it fails.
    pub(crate) fn try_exec(&self, user: &str, command: &[&str]) -> Option<String> {
        let output = self.docker.try_ask(&[&["exec", "--user", user, &self.name], command].concat());
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// A served file as `user` reads it, once it holds something else than `old`.
    pub(crate) fn read_after(&self, user: &str, name: &str, old: &str) -> String {
        let read = || self.try_exec(user, &["cat", &format!("/app/secrets/{name}")]).filter(|text| text != old);
        wait_until_or(&format!("{name} can be read and is not `{old}`"), || self.log(), read)
    }

    /// Asks the web application in it: status and text; `None` while nobody listens.
    pub(crate) fn get(&self) -> Option<(u16, String)> {
        let address = self.inspect("{{.NetworkSettings.IPAddress}}");
        let mut stream = TcpStream::connect((address, 8080)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, text) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, text.trim_end().to_owned()))
    }

    /// `docker kill --signal NAME`.
    pub(crate) fn signal(&self, name: &str) {
        self.docker.ask(&["kill", "--signal", name, &self.name]);
    }

    /// `docker stop OPTIONS` and the end.
    pub(crate) fn stop(self, options: &[&str]) -> End {
        self.docker.ask(&[&["stop"], options, &[&self.name]].concat());
        self.end()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> End {
        let Self { cli, stderr, .. } = &mut self;
        let status = wait_until_or("the container ends", || stderr.text(), || cli.ended());
        let code = status.code().unwrap_or_else(|| 128 + status.signal().expect("it ended by one or the other"));
        End { code, stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.docker.try_ask(&["rm", "--force", "--volumes", &self.name]);
    }
}

/// How a container ended and what it said.
#[derive(Debug)]
pub(crate) struct End {
    /// The exit code, 128+n for a signal; 125 when Docker refused.
    pub(crate) code: i32,
    /// Standard output, all of it the application's.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}
