//! Where lines go: a descriptor of one's own on standard error that never blocks. Docker's log pipe
//! blocks whoever writes when nobody reads; `O_NONBLOCK` on fd 2 itself would be shared with the
//! application (one file description). Invariant: a line is written whole or counted as dropped,
//! and what follows a part of one begins on a line of its own.

use super::Event;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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

/// A terminal that says that it can be written to takes so many bytes (`n_tty` wakes writers for as
/// many).
const TERMINAL: usize = 256;
/// Lines dropped since the last line that said so.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The process' writer; a role replaces the descriptor after its fork.
static SINK: OnceLock<Sink> = OnceLock::new();

/// The descriptor that lines go to.
struct Sink {
    target: Mutex<LogOutput>,
}

/// Where lines go, and how without blocking.
struct LogOutput {
    /// An own description of standard error; none: standard error itself.
    own: Option<OwnedFd>,
    way: Way,
    /// Whether the last byte written was not the end of a line.
    torn: bool,
}

/// How to write without blocking.
#[derive(Clone, Copy)]
enum Way {
    /// The description has `O_NONBLOCK`.
    NonBlocking,
    /// A socket cannot be opened anew, but each call may ask not to wait.
    Socket,
    /// Asked with `poll` before each piece of at most so many bytes: a terminal or pipe that may
    /// not be opened anew (it belongs to another user). Another writer may take the room in
    /// between; then this one waits, until somebody reads.
    Polled(usize),
}

impl LogOutput {
    fn open() -> Self {
        let stderr = io::stderr();
        let kind = fstat(&stderr).map_or(SFlag::empty(), |stat| {
            SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
        });
        let flags = OFlag::O_WRONLY
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC
            | OFlag::O_APPEND
            | OFlag::O_NOCTTY;
        let (own, way) = match open("/proc/self/fd/2", flags, Mode::empty()) {
            Ok(own) => (Some(own), Way::NonBlocking),
            Err(_) if kind == SFlag::S_IFSOCK => (None, Way::Socket),
            Err(_) if kind == SFlag::S_IFCHR => (None, Way::Polled(TERMINAL)),
            Err(_) => (None, Way::Polled(libc::PIPE_BUF)),
        };
        Self {
            own,
            way,
            torn: false,
        }
    }

    /// Writes a line, or as much of it as there is room for now; whether it is whole. A part of an
    /// earlier line is ended first.
    fn write(&mut self, line: &[u8]) -> bool {
        let end: &[u8] = if self.torn { b"\n" } else { b"" };
        let bytes = [end, line].concat();
        let mut written = 0;
        while written < bytes.len() {
            match self.write_some(&bytes[written..]) {
                Ok(0) => break,
                Ok(some) => written += some,
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        if let Some(last) = bytes[..written].last() {
            self.torn = *last != b'\n';
        }
        written == bytes.len()
    }

    /// One call that does not wait.
    fn write_some(&self, bytes: &[u8]) -> nix::Result<usize> {
        let stderr = io::stderr();
        let target = self
            .own
            .as_ref()
            .map_or_else(|| stderr.as_fd(), AsFd::as_fd);
        match self.way {
            Way::NonBlocking => nix::unistd::write(target, bytes),
            Way::Socket => send(
                target.as_raw_fd(),
                bytes,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ),
            Way::Polled(most) => match poll(
                &mut [PollFd::new(target, PollFlags::POLLOUT)],
                PollTimeout::ZERO,
            )? {
                0 => Err(Errno::EAGAIN),
                _ => nix::unistd::write(target, &bytes[..bytes.len().min(most)]),
            },
        }
    }
}

/// Hands each line to the sink.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(sink) = SINK.get() else {
            return Ok(line.len());
        };
        let mut target = sink
            .target
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if !target.write(line) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
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

/// Starts the log of this process; later calls change nothing. Only lines of baofs itself are
/// written: what libraries say is not known to be free of values.
pub fn init(log: Log) {
    if SINK
        .set(Sink {
            target: Mutex::new(LogOutput::open()),
        })
        .is_err()
    {
        return;
    }
    let filter = Targets::new().with_target("baofs", level(log.level));
    let registry = tracing_subscriber::registry().with(filter);
    let format = tracing_subscriber::fmt::layer()
        .with_writer(Lines)
        .with_target(false)
        .with_ansi(false);
    let _ = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(registry.with(format)),
        LogFormat::Json => tracing::subscriber::set_global_default(
            registry.with(format.json().flatten_event(true)),
        ),
    };
}

/// Gives a forked role a descriptor of its own.
pub fn start_role() {
    if let Some(sink) = SINK.get() {
        *sink
            .target
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = LogOutput::open();
    }
    DROPPED.store(0, Ordering::Relaxed);
}

/// Says how many lines were dropped since the last time, if any; called from each loop when it
/// turns.
pub fn report_dropped() {
    let lines = DROPPED.load(Ordering::Relaxed);
    if lines > 0 {
        Event::LinesDropped { lines }.emit();
        // The line that says so may be dropped itself: it is not counted, and all others are still
        // to be told.
        let told = if DROPPED.load(Ordering::Relaxed) > lines {
            1
        } else {
            lines
        };
        DROPPED.fetch_sub(told, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::pty::openpty;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
    use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
    use std::fs::File;
    use std::io::Read;

    fn set_nonblocking(fd: &OwnedFd) {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("it is ours");
    }

    /// A reading end that does not wait, and a target that writes to the other one.
    fn ends(way: Way, kind: &str) -> (File, LogOutput) {
        let (reader, writer) = match kind {
            "stream" => {
                let (reader, writer) = socketpair(
                    AddressFamily::Unix,
                    SockType::Stream,
                    None,
                    SockFlag::empty(),
                )
                .expect("a pair");
                setsockopt(&writer, sockopt::SndBuf, &1).expect("the least buffer");
                (reader, writer)
            }
            "terminal" => {
                let pair = openpty(None, None).expect("a terminal");
                let mut raw = tcgetattr(&pair.slave).expect("its settings");
                cfmakeraw(&mut raw);
                tcsetattr(&pair.slave, SetArg::TCSANOW, &raw).expect("set");
                (pair.master, pair.slave)
            }
            _ => nix::unistd::pipe().expect("a pipe"),
        };
        set_nonblocking(&reader);
        if matches!(way, Way::NonBlocking) {
            set_nonblocking(&writer);
        }
        (
            reader.into(),
            LogOutput {
                own: Some(writer),
                way,
                torn: false,
            },
        )
    }

    /// Lines of this length are written until one finds no room, twice; what a late reader finds of
    /// them.
    fn written_to_nobody(way: Way, kind: &str, len: usize) -> (String, usize) {
        let (mut reader, mut target) = ends(way, kind);
        let mut line = vec![b'x'; len];
        (line[0], line[len - 1]) = (b'>', b'\n');
        let (mut found, mut whole, mut part) = (Vec::new(), 0, vec![0; 1 << 20]);
        for _ in 0..2 {
            while target.write(&line) {
                whole += 1;
            }
            assert!(!target.write(&line), "there is no room");
            while let Ok(n @ 1..) = reader.read(&mut part) {
                found.extend_from_slice(&part[..n]);
            }
        }
        assert!(target.write(b">last\n"), "there is room again");
        while let Ok(n @ 1..) = reader.read(&mut part) {
            found.extend_from_slice(&part[..n]);
        }
        (String::from_utf8(found).expect("text"), whole)
    }

    #[test]
    fn no_line_waits_and_none_begins_within_another() {
        for (way, kind, len) in [
            (Way::Socket, "stream", 3_000),
            (Way::Socket, "stream", 500),
            (Way::NonBlocking, "pipe", 6_000),
            (Way::NonBlocking, "pipe", 1_000),
            (Way::Polled(libc::PIPE_BUF), "pipe", 6_000),
            (Way::NonBlocking, "terminal", 1_000),
            (Way::Polled(TERMINAL), "terminal", 1_000),
        ] {
            let (found, whole) = written_to_nobody(way, kind, len);
            let lines: Vec<_> = found.lines().filter(|line| !line.is_empty()).collect();
            assert!(
                lines
                    .iter()
                    .all(|line| line.starts_with('>') && !line[1..].contains('>')),
                "{kind} {len}"
            );
            assert_eq!(
                lines.iter().filter(|line| line.len() == len - 1).count(),
                whole,
                "{kind} {len}"
            );
            assert_eq!(lines.last(), Some(&">last"), "{kind} {len}");
            assert!(whole > 0, "{kind} {len}");
        }
    }
}
