//! Starting children that cannot outlive the test process. Invariant: a child is started by one
//! thread that lives as long as the process, because the kernel sends the death signal when the
//! *thread* that forked ends (`prctl(2)`).

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

type Order = (Command, Sender<io::Result<Child>>);

/// A child that is killed when it is dropped, and by the kernel when this process dies.
#[derive(Debug)]
pub(crate) struct Kept(Child);

impl Kept {
    /// Starts `program` with `args` after `setpriv` has set its death signal; `who` are options of
    /// `setpriv(1)`.
    pub(crate) fn start(who: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .args(who)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        prepare(&mut command);
        let (answer, started) = channel();
        keeper()
            .send((command, answer))
            .expect("the keeper lives as long as the process");
        Self(
            started
                .recv()
                .expect("the keeper answers")
                .expect("setpriv (util-linux) starts"),
        )
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).expect("a pid is small"))
    }

    /// Its end, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("the child is ours")
    }

    /// The child as the standard library has it.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The thread that starts every child.
fn keeper() -> Sender<Order> {
    static KEEPER: OnceLock<Sender<Order>> = OnceLock::new();
    let start = || {
        let (orders, queue) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                // Who ordered it may be gone: its test failed.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    };
    KEEPER.get_or_init(start).clone()
}

/// What a child writes, taken from its pipe as it comes.
#[derive(Debug)]
pub(crate) struct Captured {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    /// Reads `pipe` to its end in a thread of its own.
    pub(crate) fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let target = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut part) {
                target
                    .lock()
                    .expect("no reader panics")
                    .extend_from_slice(&part[..n]);
            }
        });
        Self {
            text,
            reader: Some(reader),
        }
    }

    /// All of it so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("no reader panics")).into_owned()
    }

    /// All of it, once every writer has closed its end.
    pub(crate) fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no reader panics");
        }
        self.text()
    }
}

/// The direct children of `pid`.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let list =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

/// `pid` and all that descend from it.
pub(crate) fn family(pid: Pid) -> Vec<Pid> {
    let mut all = vec![pid];
    all.extend(children(pid).into_iter().flat_map(family));
    all
}

/// One field of `/proc/PID/status`.
pub(crate) fn status(pid: Pid, field: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| {
        line.strip_prefix(field)?
            .strip_prefix(':')
            .map(|value| value.trim().to_owned())
    })
}

/// Sends `signal`; one that comes too late is none.
pub(crate) fn signal(pid: Pid, signal: Signal) {
    let _ = kill(pid, signal);
}

/// Runs `command` to its end and returns what it printed; fails with its words when it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = outcome(command);
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// Runs `command` to its end.
pub(crate) fn outcome(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"))
}

/// Stops `serve` right after it has taken a request from the kernel, which it then answers to
/// nobody: as a fault in the middle of an operation does. `ask` makes somebody ask. Whoever asked
/// cannot be killed any more, because the kernel waits for the answer. It knows the registers of
/// x86-64.
pub(crate) fn stop_with_a_request_in_hand(serve: Pid, ask: impl FnOnce()) {
    let loops = std::fs::read_dir(format!("/proc/{serve}/task"))
        .expect("it runs")
        .flatten();
    let mut loops = loops
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw);
    let is_loop = |thread: &Pid| {
        std::fs::read_to_string(format!("/proc/{serve}/task/{thread}/comm"))
            .is_ok_and(|name| name.starts_with("fuser"))
    };
    let thread = loops
        .find(is_loop)
        .expect("the thread that fuser reads with");
    let wait = || waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it is traced");
    ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("the tests run as root");
    ptrace::interrupt(thread).expect("it is traced");
    wait();
    // In the `read(2)` that it was interrupted in, or will be next.
    ptrace::syscall(thread, None).expect("it is stopped");
    ask();
    loop {
        wait();
        let registers = ptrace::getregs(thread).expect("it is stopped");
        // At the end of a call that gave a request; the least one has 40 bytes.
        if registers.orig_rax == 0 && registers.rax.cast_signed() >= 40 {
            break;
        }
        ptrace::syscall(thread, None).expect("it is stopped");
    }
    signal(serve, Signal::SIGSTOP);
    // Before the thread goes on, so that it goes on into the stop.
    super::wait_until("serve is stopped", || {
        status(serve, "State")?.starts_with('T').then_some(())
    });
    ptrace::detach(thread, None).expect("it is traced");
}
