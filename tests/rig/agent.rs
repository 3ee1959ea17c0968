//! `baofs` in namespaces and under a root of its own, as in a container. Invariant: whatever
//! happens to the test, the kernel ends every process in there, and the mounts with them.

use super::process::{Captured, Kept, children, family, signal, status};
use super::server::Tenant;
use super::{World, wait_until_or};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Where files are served.
pub(crate) const MOUNT: &str = "/app/secrets";
/// The application's user and group in most tests.
pub(crate) const USER: u32 = 1000;

/// Runs the agent and says on standard output what it left behind. If it was killed, that is when
/// nobody is left.
const UNDER_SHELL: &str = r#""$@"; code=$?
[ $code != 137 ] || while set -- /proc/[0-9]*; [ $# -gt 1 ]; do sleep 0.05; done
grep -o " /app/secrets .*" /proc/self/mounts | while read -r it; do echo "left mounted: $it"; done
for it in /app/secrets/..* /app/secrets/*; do
  case $it in */.|*/..) ;; *) if [ -e "$it" ] || [ -L "$it" ]; then echo "left behind: $it"; fi ;; esac
done
for it in /proc/[0-9]*; do
  case $(readlink "$it/exe") in */baofs*) echo "left running: $it" ;; esac
done
exit $code"#;

/// Installs a filter that answers ENOSYS to a call, by its number, and becomes the command.
const WITHOUT: &str = r#"
import ctypes, os, struct, sys
LOAD, IS, ANSWER, ENOSYS, ALLOW = 0x20, 0x15, 6, 0x00050000 | 38, 0x7fff0000
lines = [(LOAD, 0, 0, 0), (IS, 0, 1, int(sys.argv[1])), (ANSWER, 0, 0, ENOSYS), (ANSWER, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *it) for it in lines))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[2], sys.argv[2:])"#;

/// The process number of the agent in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is PID 1, as a container's entry point.
    Init,
    /// A shell is.
    UnderShell,
}

/// What runs in the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// `baofs run OPTIONS -- APP`.
    Run,
    /// `baofs mount OPTIONS`.
    Mount,
    /// `bao agent` with the same configuration: no application.
    Incumbent,
}

/// Where its standard error goes.
#[derive(Debug)]
pub(crate) enum Stderr {
    /// Into `Agent::log`.
    Captured,
    /// Into a descriptor that the test holds the other end of.
    Given(std::os::fd::OwnedFd),
}

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Setup {
    program: Program,
    binary: PathBuf,
    world: World,
    place: Place,
    dir: TempDir,
    options: Vec<String>,
    variables: Vec<(String, String)>,
    prepare: String,
    rights: Vec<String>,
    without: Option<i64>,
    app: Vec<String>,
    stderr: Stderr,
}

/// A running `baofs run`.
#[derive(Debug)]
pub(crate) struct Agent {
    program: Program,
    /// `unshare(1)`, whose end is the end of the namespace.
    room: Kept,
    place: Place,
    /// Holds /etc/bao.
    dir: TempDir,
    stdout: Captured,
    stderr: Option<Captured>,
}

/// How an agent ended and what it said.
#[derive(Debug)]
pub(crate) struct End {
    /// The exit code, 128+n for a signal.
    pub(crate) code: i32,
    /// Standard output, all of it the application's.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// The binary under test: the release build where `./test` has made one.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("BAOFS_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_baofs")), PathBuf::from)
}

impl Program {
    /// The name of its process.
    fn name(self) -> &'static str {
        match self {
            Self::Run | Self::Mount => "baofs",
            Self::Incumbent => "bao",
        }
    }
}

impl Setup {
    /// `config` for `tenant` in `world`; the application waits for a signal unless it is given.
    pub(crate) fn new(world: World, tenant: &Tenant, config: &str) -> Self {
        let setup = Self {
            program: Program::Run,
            binary: binary(),
            world,
            place: Place::Init,
            dir: tempfile::tempdir().expect("a directory for the room"),
            options: Vec::new(),
            variables: Vec::new(),
            prepare: String::new(),
            rights: Vec::new(),
            without: None,
            app: [
                "sh",
                "-c",
                "trap 'exit 0' TERM; echo started; while :; do sleep 60 & wait; done",
            ]
            .map(str::to_owned)
            .to_vec(),
            stderr: Stderr::Captured,
        };
        for name in ["root", "bao"] {
            std::fs::create_dir(setup.dir.path().join(name))
                .expect("a directory of the room is made");
        }
        setup
            .file("agent-config.hcl", config)
            .file("role_id", &tenant.role_id)
            .file("secret_id", &tenant.secret_id)
    }

    /// `baofs mount` instead: no application.
    pub(crate) fn mount_only(self) -> Self {
        Self {
            program: Program::Mount,
            ..self
        }
    }

    /// `bao agent` instead, from this file.
    pub(crate) fn incumbent(binary: &Path, tenant: &Tenant, config: &str) -> Self {
        Self {
            program: Program::Incumbent,
            binary: binary.to_owned(),
            ..Self::new(World::Tmpfs, tenant, config)
        }
    }

    /// Writes a file of /etc/bao, readable by all.
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join("bao").join(name), text)
            .expect("a file of /etc/bao is written");
        self
    }

    /// Options of `baofs run`, before those of the world.
    pub(crate) fn options(mut self, options: &[&str]) -> Self {
        self.options
            .extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// A variable of its environment, which is otherwise that of an empty container.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Shell that runs in the room, as root, before the agent.
    pub(crate) fn prepare(mut self, shell: &str) -> Self {
        self.prepare.push_str(shell);
        self.prepare.push('\n');
        self
    }

    /// Options of `setpriv(1)` under which the agent starts.
    pub(crate) fn rights(mut self, options: &[&str]) -> Self {
        self.rights
            .extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// A kernel that does not have this system call. Needs Python, as other tests do.
    pub(crate) fn without(mut self, call: i64) -> Self {
        self.without = Some(call);
        self
    }

    /// The application.
    pub(crate) fn app(mut self, command: &[&str]) -> Self {
        self.app = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The application as a shell script.
    pub(crate) fn script(self, script: &str) -> Self {
        self.app(&["sh", "-c", script])
    }

    /// Whether the agent is PID 1.
    pub(crate) fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// Where standard error goes.
    pub(crate) fn stderr(mut self, stderr: Stderr) -> Self {
        self.stderr = stderr;
        self
    }

    /// The arguments after the room's script: rights, binary, options, application.
    fn command(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        if self.place == Place::UnderShell {
            words.extend(["sh", "-c", UNDER_SHELL, "sh"].map(str::to_owned));
        }
        if !self.rights.is_empty() {
            words.push("setpriv".to_owned());
            words.extend(self.rights.iter().cloned());
        }
        if let Some(call) = self.without {
            words.extend(["/usr/bin/python3", "-c", WITHOUT, &call.to_string()].map(str::to_owned));
        }
        match self.program {
            Program::Run => {
                words.extend(["/entry/baofs", "run"].map(str::to_owned));
                words.extend(self.options.iter().cloned());
                words.push("--".to_owned());
                words.extend(self.app.iter().cloned());
            }
            Program::Mount => {
                words.extend(["/entry/baofs", "mount"].map(str::to_owned));
                words.extend(self.options.iter().cloned());
            }
            Program::Incumbent => words.extend(
                ["/entry/bao", "agent", "-config=/etc/bao/agent-config.hcl"].map(str::to_owned),
            ),
        }
        words
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Agent {
        let given = std::mem::replace(&mut self.stderr, Stderr::Captured);
        let captured = matches!(given, Stderr::Captured);
        let mut room = Kept::start(&[], |command| {
            // Who runs the tests in the background of a shell ignores these, and so would everybody
            // in there.
            command.args(["env", "--default-signal=INT,QUIT"]);
            command.args([
                "unshare",
                "--mount",
                "--pid",
                "--ipc",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
            ]);
            command.args(["sh", "-c", include_str!("room.sh"), "room"]);
            command.args([
                self.dir.path().join("root"),
                self.dir.path().join("bao"),
                self.binary.clone(),
            ]);
            command
                .arg(if self.world == World::Fuse {
                    "fuse"
                } else {
                    "no-fuse"
                })
                .arg(&self.prepare)
                .args(self.command());
            command
                .env_clear()
                .env(
                    "PATH",
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                )
                .env("HOME", "/root");
            if self.world == World::Tmpfs {
                command.env("BAOFS_FALLBACK", "tmpfs");
            }
            command
                .envs(self.variables.iter().cloned())
                .stdout(Stdio::piped());
            match given {
                Stderr::Captured => command.stderr(Stdio::piped()),
                Stderr::Given(descriptor) => command.stderr(descriptor),
            };
        });
        let child = room.child();
        let stdout = Captured::of(child.stdout.take().expect("it was asked for"));
        let stderr = captured.then(|| Captured::of(child.stderr.take().expect("it was asked for")));
        Agent {
            program: self.program,
            room,
            place: self.place,
            dir: self.dir,
            stdout,
            stderr,
        }
    }

    /// Starts it and waits until its application says that it runs, by the line `started`.
    pub(crate) fn started(self) -> Agent {
        let agent = self.start();
        agent.wait_for_line("started");
        agent
    }

    /// Starts it and waits for its end.
    pub(crate) fn outcome(self) -> End {
        self.start().end()
    }
}

impl Agent {
    /// The pid of the agent itself, as this process sees it; waits until it runs.
    pub(crate) fn pid(&self) -> Pid {
        wait_until_or(
            "the agent runs in its room",
            || self.log(),
            || {
                let found = self.entry()?;
                (status(found, "Name")? == self.program.name()).then_some(found)
            },
        )
    }

    /// The pid that the agent has, or will have once its room is made.
    pub(crate) fn entry(&self) -> Option<Pid> {
        let first = *children(self.room.pid()).first()?;
        match self.place {
            Place::Init => Some(first),
            Place::UnderShell => children(first).first().copied(),
        }
    }

    /// Every process of the room from the agent down: pid, name.
    pub(crate) fn processes(&self) -> Vec<(Pid, String)> {
        family(self.pid())
            .into_iter()
            .filter_map(|pid| Some((pid, status(pid, "Name")?)))
            .collect()
    }

    /// A role of the agent by the end of its name.
    pub(crate) fn role(&self, role: &str) -> Pid {
        let is_role = |name: &str| {
            name == role
                || name.ends_with(&format!("-{role}"))
                || name.ends_with(&format!(":{role}"))
        };
        wait_until_or(
            &format!("{role} runs"),
            || format!("{:?}", self.processes()),
            || {
                self.processes()
                    .into_iter()
                    .find(|(_, name)| is_role(name))
                    .map(|(pid, _)| pid)
            },
        )
    }

    /// A path of the room as this process reaches it.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let relative = path
            .as_ref()
            .strip_prefix("/")
            .expect("an absolute path")
            .to_owned();
        PathBuf::from(format!("/proc/{}/root", self.pid())).join(relative)
    }

    /// A served file, read as root; `None` while it cannot be read.
    pub(crate) fn try_read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(MOUNT).join(name)).ok()
    }

    /// A served file, once it is there.
    pub(crate) fn read(&self, name: &str) -> String {
        wait_until_or(
            &format!("{name} can be read"),
            || self.log(),
            || self.try_read(name),
        )
    }

    /// Waits until file `name` holds something else than `old` and returns it.
    pub(crate) fn read_after(&self, name: &str, old: &str) -> String {
        wait_until_or(
            &format!("{name} changes"),
            || self.log(),
            || self.try_read(name).filter(|new| new != old),
        )
    }

    /// Waits until the application has printed `line`.
    pub(crate) fn wait_for_line(&self, line: &str) {
        wait_until_or(
            &format!("the application prints `{line}`"),
            || self.printed() + &self.log(),
            || {
                self.stdout
                    .text()
                    .lines()
                    .any(|it| it == line)
                    .then_some(())
            },
        );
    }

    /// What the application has printed.
    pub(crate) fn printed(&self) -> String {
        self.stdout.text()
    }

    /// What the agent and the application have written to standard error.
    pub(crate) fn log(&self) -> String {
        self.stderr.as_ref().map(Captured::text).unwrap_or_default()
    }

    /// `setpriv(1)` in the room, as root with every right that the agent was started with; options
    /// and a command are to follow. The process ends with this one.
    pub(crate) fn enter_as_root(&self) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.pid().to_string(), "--mount", "--pid"]);
        enter.args(["--wd=/", "setpriv", "--pdeathsig", "KILL"]);
        enter
    }

    /// A command in the room as user `uid` with its group and no right at all.
    pub(crate) fn enter(&self, uid: u32, command: &[&str]) -> Command {
        let mut enter = self.enter_as_root();
        enter
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .arg("--clear-groups")
            .args(["--inh-caps=-all", "--"])
            .args(command);
        enter
    }

    /// Sends the agent a signal.
    pub(crate) fn signal(&self, number: Signal) {
        signal(self.pid(), number);
    }

    /// A file of /etc/bao, from outside.
    pub(crate) fn etc(&self, name: &str) -> PathBuf {
        self.dir.path().join("bao").join(name)
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> End {
        let Self { room, stderr, .. } = &mut self;
        let status = wait_until_or(
            "baofs ends",
            || stderr.as_ref().map(Captured::text).unwrap_or_default(),
            || room.ended(),
        );
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().expect("it ended by one or the other"));
        End {
            code,
            stdout: self.stdout.whole(),
            stderr: self
                .stderr
                .as_mut()
                .map(Captured::whole)
                .unwrap_or_default(),
        }
    }

    /// Asks it to stop, as Docker does, and waits for its end.
    pub(crate) fn stop(self) -> End {
        self.signal(Signal::SIGTERM);
        self.end()
    }
}
