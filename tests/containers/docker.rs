//! A Docker daemon, and what the cases need of it. The machine's own is used where one runs; else
//! Debian's `dockerd` is started in namespaces of its own. Invariant: whatever happens, what was
//! started, mounted or routed here ends with this process; with a daemon of the machine, nothing is
//! reached by a path or a pid, which it may see differently.

use crate::rig::process::{Captured, Kept, children, outcome, run, signal};
use crate::rig::server::{Lives, Real, Tenant};
use crate::rig::{agent, config, program, wait_until, wait_until_or};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// The example application's image, made of the Dockerfile.
pub(crate) const IMAGE: &str = "baofs-example:test";
/// The image of the binary alone.
pub(crate) const SCRATCH: &str = "baofs:test";
/// Where README has the binary that is handed in.
const BINARY: &str = "target/x86_64-unknown-linux-musl/release/baofs";
/// What the Dockerfile builds upon; where they are missing they are made of one local tar.
const BASES: [&str; 2] = ["debian:bookworm-slim", "rust:1.95-bookworm"];

/// `dockerd` where it can hurt nobody: what it keeps below /run and /etc is its own, too.
const DAEMON: &str = r#"mkdir -p /etc/docker && mount -t tmpfs run /run && mount -t tmpfs etc /etc/docker &&
exec dockerd -H "unix://$1/docker.sock" --data-root "$1/data" --exec-root /run/docker --pidfile /run/docker.pid \
    --cgroup-parent "/$(basename "$1")" 2>"$1/log""#;

/// A daemon with the image of the example, and an OpenBao with PostgreSQL that containers reach.
pub(crate) struct Docker {
    /// OpenBao and PostgreSQL; for containers they are at `gateway`.
    pub(crate) real: Arc<Real>,
    /// This machine as containers see it.
    pub(crate) gateway: Ipv4Addr,
    client: Client,
    /// Ours, if the machine has none.
    daemon: Option<Daemon>,
}

/// How a daemon is asked: the address of its socket, if it is ours.
struct Client(Option<String>);

/// A daemon of our own.
struct Daemon {
    /// `unshare(1)`, whose end is the end of all in there.
    room: Kept,
    /// Socket, images, log.
    dir: TempDir,
}

impl Docker {
    /// Finds or starts a daemon, then makes the image and starts the servers. The process must have
    /// one thread only.
    pub(crate) fn start() -> Self {
        let daemon = (!Client(None).answers()).then(Daemon::start);
        let client = Client(daemon.as_ref().map(Daemon::host));
        let network = "{{with index .IPAM.Config 0}}{{or .Gateway .Subnet}}{{end}}";
        let gateway = gateway(&run(client
            .docker()
            .args(["network", "inspect", "bridge", "--format", network])));
        // A scope that ends joins its threads, and fails with them.
        let real = std::thread::scope(|scope| {
            scope.spawn(|| build(&client));
            Arc::new(Real::start(Ipv4Addr::UNSPECIFIED))
        });
        Self {
            real,
            gateway,
            client,
            daemon,
        }
    }

    /// `docker` (or with `program` another client, such as `docker-compose`) for this daemon.
    pub(crate) fn client(&self, program: &str) -> Command {
        self.client.command(program)
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
        let name = Self::name();
        let run = [&["run", "--sig-proxy=false", "--name", &name], args].concat();
        self.follow(name.clone(), &["docker"], &run)
    }

    /// A container that runs already; what it has said before is lost.
    pub(crate) fn attach(&self, id: &str) -> Container<'_> {
        self.follow(
            id.to_owned(),
            &["docker"],
            &["attach", "--no-stdin", "--sig-proxy=false", id],
        )
    }

    /// A new name for a container.
    pub(crate) fn name() -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        format!(
            "baofs-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Follows container `name` by the client `program ARGS`, which ends with its code; what is
    /// written to `input` is typed.
    pub(crate) fn follow(&self, name: String, program: &[&str], args: &[&str]) -> Container<'_> {
        let mut cli = Kept::start(&[], |command| {
            command.args(program).args(args).stdin(Stdio::piped());
            command.envs(
                self.client("docker")
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            );
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        let child = cli.child();
        let input = child.stdin.take().expect("it was asked for");
        let stdout = Captured::of(child.stdout.take().expect("it was asked for"));
        let stderr = Captured::of(child.stderr.take().expect("it was asked for"));
        Container {
            docker: self,
            name,
            cli,
            input,
            stdout,
            stderr,
        }
    }

    /// A tenant of the real server, and its /etc/bao; `more` is added to its configuration.
    pub(crate) fn site(&self, name: &str, lives: Lives, more: &str) -> Site<'_> {
        self.site_of(self.real.tenant(name, name, lives), more)
    }

    /// The /etc/bao of a tenant with `db_user`, `db_password` and `note`.
    pub(crate) fn site_of(&self, tenant: Tenant, more: &str) -> Site<'_> {
        tenant.put("note", serde_json::json!({ "text": "old" }));
        let login = config::login(&tenant.url().replace("127.0.0.1", &self.gateway.to_string()));
        let user = config::field("db_user", &tenant.creds(), "username");
        let password = config::field("db_password", &tenant.creds(), "password");
        let note = config::field("note", &tenant.kv("note"), "text");
        let site = Site {
            docker: self,
            tenant,
        };
        site.fill(&(login + &user + &password + &note + more));
        site
    }

    /// What the daemon itself has mounted, where that can be seen.
    pub(crate) fn mounts(&self) -> String {
        let pid = self.daemon.as_ref().and_then(Daemon::pid);
        pid.map(|pid| {
            fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the daemon runs")
        })
        .unwrap_or_default()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if self.daemon.is_none() {
            let _ = self.try_ask(&["image", "rm", "--force", IMAGE, SCRATCH]);
        }
    }
}

/// The address of the bridge, which a daemon that has just made it tells by its network alone: the
/// first one in it.
fn gateway(told: &str) -> Ipv4Addr {
    let (address, first) = told
        .split_once('/')
        .map_or((told, 0), |(network, _)| (network, 1));
    let address: Ipv4Addr = address.parse().expect("the default bridge has an address");
    Ipv4Addr::from_bits(address.to_bits() + first)
}

impl Client {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.0.as_ref().map(|host| ("DOCKER_HOST", host)));
        command
    }

    fn docker(&self) -> Command {
        self.command("docker")
    }

    fn answers(&self) -> bool {
        outcome(
            self.docker()
                .args(["version", "--format", "{{.Server.Version}}"]),
        )
        .status
        .success()
    }
}

impl Daemon {
    fn start() -> Self {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("a network of its own needs root: run the tests with sudo");
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let dir = tempfile::Builder::new()
            .prefix("baofs-docker-")
            .tempdir()
            .expect("a directory for the daemon");
        let room = Kept::start(&[], |command| {
            command.args([
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "private",
            ]);
            command.args(["sh", "-c", DAEMON, "sh"]).arg(dir.path());
        });
        let daemon = Self { room, dir };
        let log = || fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
        let client = Client(Some(daemon.host()));
        wait_until_or("dockerd answers", log, || client.answers().then_some(()));
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
        let name = self
            .dir
            .path()
            .file_name()
            .expect("it was made with one")
            .to_owned();
        // One tree on cgroup v2, one for each controller on v1.
        let trees = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        trees
            .chain(["/sys/fs/cgroup".into()])
            .for_each(|tree| remove_cgroup(&tree.join(&name)));
    }
}

/// Removes an empty control group with all below it; one that is not there, or not empty, stays as
/// it is.
fn remove_cgroup(group: &Path) {
    for entry in fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
    {
        remove_cgroup(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

/// Builds the image from a context that holds the binary under test, without a network.
fn build(client: &Client) {
    let missing: Vec<_> = BASES
        .iter()
        .filter(|base| {
            !outcome(client.docker().args(["image", "inspect", base]))
                .status
                .success()
        })
        .collect();
    if let [first, others @ ..] = missing.as_slice() {
        run(client
            .docker()
            .arg("import")
            .arg(program(
                "debian-bookworm.tar",
                &["/~cache/baofs/debian-bookworm.tar"],
            ))
            .arg(first));
        for other in others {
            run(client.docker().args(["tag", first, other]));
        }
    }
    let (context, source) = (
        tempfile::tempdir().expect("a directory for the context"),
        Path::new(env!("CARGO_MANIFEST_DIR")),
    );
    let files = [
        "Dockerfile",
        ".dockerignore",
        "examples/container/agent-config.hcl",
        "examples/container/app.py",
    ];
    for (from, to) in files
        .map(|file| (source.join(file), file))
        .into_iter()
        .chain([(agent::binary(), BINARY)])
    {
        let target = context.path().join(to);
        fs::create_dir_all(target.parent().expect("it is below the context"))
            .expect("the context is ours");
        fs::copy(from, target).expect("the clone is whole and built");
    }
    for what in [
        &["--tag", IMAGE][..],
        &["--tag", SCRATCH, "--target", "baofs"],
    ] {
        let binary = format!("BINARY={BINARY}");
        let build = [
            "build",
            "--quiet",
            "--network",
            "none",
            "--build-arg",
            &binary,
        ];
        run(client
            .docker()
            .args(build)
            .args(what)
            .arg(context.path())
            .env("DOCKER_BUILDKIT", "0"));
    }
}

/// A tenant and its /etc/bao as a volume; the volume ends with this value.
pub(crate) struct Site<'a> {
    /// Where its containers run.
    pub(crate) docker: &'a Docker,
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
        for (name, text) in [
            ("agent-config.hcl", config),
            ("role_id", &self.tenant.role_id),
            ("secret_id", &self.tenant.secret_id),
        ] {
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
        let _ = self
            .docker
            .try_ask(&["volume", "rm", "--force", &self.volume_name()]);
    }
}

/// A container with its streams; it is removed with this value.
pub(crate) struct Container<'a> {
    docker: &'a Docker,
    name: String,
    /// `docker run`, which ends with the container's code.
    cli: Kept,
    /// What is typed.
    input: ChildStdin,
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

    /// Types `text`, and waits until it has printed `words`.
    pub(crate) fn type_in(&mut self, text: &str, words: &str) {
        self.input.write_all(text.as_bytes()).expect("it runs");
        wait_until_or(
            &format!("the container prints `{words}`"),
            || self.printed(),
            || self.printed().contains(words).then_some(()),
        );
    }

    /// Waits until it has printed `line`.
    pub(crate) fn wait_for_line(&self, line: &str) {
        let said = || self.printed() + &self.log();
        wait_until_or(&format!("the container prints `{line}`"), said, || {
            self.printed().lines().any(|it| it == line).then_some(())
        });
    }

    /// What `docker inspect --format` says of it.
    pub(crate) fn inspect(&self, format: &str) -> String {
        self.docker
            .ask(&["inspect", "--format", format, &self.name])
    }

    /// Runs a command in it as `user`; `None` when it fails.
    pub(crate) fn try_exec(&self, user: &str, command: &[&str]) -> Option<String> {
        let output = self
            .docker
            .try_ask(&[&["exec", "--user", user, &self.name], command].concat());
        output.status.success().then(|| {
            String::from_utf8_lossy(&output.stdout)
                .trim_end()
                .to_owned()
        })
    }

    /// A served file as `user` reads it, once it holds something else than `old`.
    pub(crate) fn read_after(&self, user: &str, name: &str, old: &str) -> String {
        let read = || {
            self.try_exec(user, &["cat", &format!("/app/secrets/{name}")])
                .filter(|text| text != old)
        };
        wait_until_or(
            &format!("{name} can be read and is not `{old}`"),
            || self.log(),
            read,
        )
    }

    /// Asks the web application in it: status and text; `None` while nobody listens.
    pub(crate) fn get(&self) -> Option<(u16, String)> {
        let address = self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
        let mut stream = TcpStream::connect((address, 8080)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, text) = answer.split_once("\r\n\r\n")?;
        Some((
            head.split(' ').nth(1)?.parse().ok()?,
            text.trim_end().to_owned(),
        ))
    }

    /// `docker kill --signal NAME`.
    pub(crate) fn signal(&self, name: &str) {
        self.docker.ask(&["kill", "--signal", name, &self.name]);
    }

    /// `docker stop OPTIONS` and the end.
    pub(crate) fn stop(self, options: &[&str]) -> End {
        self.docker
            .ask(&[&["stop"], options, &[&self.name]].concat());
        self.end()
    }

    /// Waits for its end, and starts it once more.
    pub(crate) fn start_again(mut self) -> Self {
        wait_until("the container ends", || self.cli.ended());
        // Dropped without its name, this value removes nothing.
        let name = std::mem::take(&mut self.name);
        self.docker
            .follow(name.clone(), &["docker"], &["start", "--attach", &name])
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> End {
        let Self {
            cli,
            stdout,
            stderr,
            ..
        } = &mut self;
        let status = wait_until_or(
            "the container ends",
            || stdout.text() + &stderr.text(),
            || cli.ended(),
        );
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().expect("it ended by one or the other"));
        End {
            code,
            stdout: self.stdout.whole(),
            stderr: self.stderr.whole(),
        }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = self
                .docker
                .try_ask(&["rm", "--force", "--volumes", &self.name]);
        }
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
