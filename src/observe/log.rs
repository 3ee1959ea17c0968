//! Where lines go: a descriptor of one's own on standard error that never blocks. Docker's log pipe blocks whoever
//! writes when nobody reads; `O_NONBLOCK` on fd 2 itself would be shared with the application (one file description).

use super::Event;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written.
    pub level: Level,
    /// Its form.
    pub format: LogFormat,
}

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Only what stops something.
    Error,
    /// And what somebody should look at.
    Warn,
    /// And each decision.
    Info,
    /// And each step.
    Debug,
    /// And everything.
    Trace,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Lines dropped since the last line that said so.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The process' writer; a role replaces the descriptor after its fork.
static SINK: OnceLock<Sink> = OnceLock::new();

/// The descriptor that lines go to.
struct Sink {
    /// An own file description of standard error, else standard error itself.
    target: Mutex<Target>,
}

/// How to write without blocking.
enum Target {
    /// An own description with `O_NONBLOCK`.
    Own(OwnedFd),
    /// A socket cannot be opened anew: asked with `poll` before each line.
    Polled,
}

impl Target {
    fn open() -> Self {
        open("/proc/self/fd/2", OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_APPEND | OFlag::O_NOCTTY, Mode::empty())
            .map_or(Self::Polled, Self::Own)
    }

    /// One write of one whole line; a line that does not fit at once is dropped.
    fn write(&self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(fd) => Ok(nix::unistd::write(fd, line)?),
            Self::Polled => {
                let stderr = io::stderr();
                let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut ready, PollTimeout::ZERO)? {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    _ => Ok(nix::unistd::write(stderr.as_fd(), line)?),
                }
            }
        }
    }
}

/// Hands each line to the sink.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(sink) = SINK.get() else { return Ok(line.len()) };
        let target = sink.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match target.write(line) {
            Ok(_) => {}
            Err(_) => {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a `Line` for each event, preceded by the count of dropped ones once the log is read again.
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line
    }
}

/// Starts the log of this process; later calls change nothing. Only lines of baofs itself are written: what libraries
/// say is not known to be free of values.
pub fn init(log: Log) {
    if SINK.set(Sink { target: Mutex::new(Target::open()) }).is_err() {
        return;
    }
    let filter = Targets::new().with_target("baofs", level(log.level));
    let registry = tracing_subscriber::registry().with(filter);
    let format = tracing_subscriber::fmt::layer().with_writer(Lines).with_target(false).with_ansi(false);
    let _ = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(registry.with(format)),
        LogFormat::Json => tracing::subscriber::set_global_default(registry.with(format.json().flatten_event(true))),
    };
}

/// Gives a forked role a descriptor of its own.
pub fn start_role() {
    if let Some(sink) = SINK.get() {
        *sink.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Target::open();
    }
    DROPPED.store(0, Ordering::Relaxed);
}

/// Says how many lines were dropped since the last time, if any; called from each loop when it turns.
pub fn report_dropped() {
    let lines = DROPPED.swap(0, Ordering::Relaxed);
    if lines > 0 {
        Event::Dropped { lines }.emit();
    }
}

fn level(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}
