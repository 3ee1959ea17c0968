//! The log: lines to a nonblocking descriptor of standard error. Docker's log pipe blocks a writer
//! while nobody reads, and `O_NONBLOCK` on fd 2 would also hold for the application, which shares
//! the file description. Invariant: a line is written whole or counted as dropped, and a newline
//! comes before the line after a partly written line.

use super::Event;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use tracing::Level;
use tracing::subscriber::set_global_default;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

/// The settings of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important written level.
    pub level: Level,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// The room of a writable terminal (`n_tty` wakes writers at 256 bytes).
const TERMINAL: usize = 256;
/// Lines dropped since the last report.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The output of the process. A role opens a new description after the fork.
static OUTPUT: LazyLock<Mutex<LogOutput>> = LazyLock::new(|| Mutex::new(LogOutput::open()));

/// The descriptor of the log, and how to write without blocking.
struct LogOutput {
    /// A file description of standard error for the log alone; `None` for fd 2.
    own: Option<OwnedFd>,
    mode: WriteMode,
    /// Whether the last written byte was not a newline.
    torn: bool,
}

/// How to write without blocking.
#[derive(Clone, Copy)]
enum WriteMode {
    /// The description has `O_NONBLOCK`.
    NonBlocking,
    /// A socket cannot be reopened, but each call may have `MSG_DONTWAIT`.
    Socket,
    /// `poll`, then write at most this many bytes: a terminal or pipe of another user, which must
    /// not be reopened. If another writer takes the room after the poll, the write blocks until
    /// the log is read.
    Polled(usize),
}

impl LogOutput {
    fn open() -> Self {
        let flags = OFlag::O_WRONLY
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC
            | OFlag::O_APPEND
            | OFlag::O_NOCTTY;
        let own = open("/proc/self/fd/2", flags, Mode::empty()).ok();
        let mode = if own.is_some() {
            WriteMode::NonBlocking
        } else {
            let file = fstat(io::stderr()).map(|stat| stat.st_mode);
            match SFlag::from_bits_truncate(file.unwrap_or_default()) & SFlag::S_IFMT {
                SFlag::S_IFSOCK => WriteMode::Socket,
                SFlag::S_IFCHR => WriteMode::Polled(TERMINAL),
                _ => WriteMode::Polled(libc::PIPE_BUF),
            }
        };
        Self {
            own,
            mode,
            torn: false,
        }
    }

    /// Writes as much of a line as there is room for, after a newline if the last line is torn.
    /// Returns whether the line is whole.
    fn write(&mut self, line: &[u8]) -> bool {
        let end: &[u8] = if self.torn { b"\n" } else { b"" };
        let bytes = [end, line].concat();
        let mut written = 0;
        while written < bytes.len() {
            match self.write_some(&bytes[written..]) {
                Ok(some @ 1..) => written += some,
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        if let Some(last) = bytes[..written].last() {
            self.torn = *last != b'\n';
        }
        written == bytes.len()
    }

    /// Writes a part without blocking.
    fn write_some(&self, bytes: &[u8]) -> nix::Result<usize> {
        let stderr = io::stderr();
        let target = match &self.own {
            Some(own) => own.as_fd(),
            None => stderr.as_fd(),
        };
        match self.mode {
            WriteMode::NonBlocking => nix::unistd::write(target, bytes),
            WriteMode::Socket => send(
                target.as_raw_fd(),
                bytes,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ),
            WriteMode::Polled(most) => {
                let mut room = [PollFd::new(target, PollFlags::POLLOUT)];
                if poll(&mut room, PollTimeout::ZERO)? == 0 {
                    return Err(Errno::EAGAIN);
                }
                let most = most.min(bytes.len());
                nix::unistd::write(target, &bytes[..most])
            }
        }
    }
}

fn output() -> MutexGuard<'static, LogOutput> {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes each line to the output, or counts the line as dropped.
struct LineWriter;

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !output().write(line) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the log of the process; later calls have no effect. Lines of libraries are not written,
/// because a library may log secret values.
pub fn init(log: Log) {
    LazyLock::force(&OUTPUT);
    let filter = Targets::new().with_target("baofs", log.level);
    let registry = tracing_subscriber::registry().with(filter);
    let format = tracing_subscriber::fmt::layer()
        .with_writer(|| LineWriter)
        .with_target(false)
        .with_ansi(false);
    let _ = match log.format {
        LogFormat::Text => set_global_default(registry.with(format)),
        LogFormat::Json => {
            let format = format.json().flatten_event(true);
            set_global_default(registry.with(format))
        }
    };
}

/// Opens a description of standard error for a forked role.
pub fn start_role() {
    *output() = LogOutput::open();
    DROPPED.store(0, Ordering::Relaxed);
}

/// Reports the number of lines dropped since the last report. Each role calls the function once per
/// turn of the loop.
pub fn report_dropped() {
    let lines = DROPPED.load(Ordering::Relaxed);
    if lines > 0 {
        Event::LinesDropped { lines }.emit();
        // If the report was dropped, too, only the report is subtracted.
        let dropped = DROPPED.load(Ordering::Relaxed) > lines;
        DROPPED.fetch_sub(if dropped { 1 } else { lines }, Ordering::Relaxed);
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

    /// A nonblocking reading end, and an output on the other end.
    fn ends(mode: WriteMode, kind: &str) -> (File, LogOutput) {
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
        if matches!(mode, WriteMode::NonBlocking) {
            set_nonblocking(&writer);
        }
        (
            reader.into(),
            LogOutput {
                own: Some(writer),
                mode,
                torn: false,
            },
        )
    }

    /// Twice writes lines of this length until there is no room. Returns the bytes that a late reader
    /// finds, and the number of whole lines.
    fn written_to_nobody(mode: WriteMode, kind: &str, len: usize) -> (String, usize) {
        let (mut reader, mut target) = ends(mode, kind);
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
        for (mode, kind, len) in [
            (WriteMode::Socket, "stream", 3_000),
            (WriteMode::Socket, "stream", 500),
            (WriteMode::NonBlocking, "pipe", 6_000),
            (WriteMode::NonBlocking, "pipe", 1_000),
            (WriteMode::Polled(libc::PIPE_BUF), "pipe", 6_000),
            (WriteMode::NonBlocking, "terminal", 1_000),
            (WriteMode::Polled(TERMINAL), "terminal", 1_000),
        ] {
            let (found, whole) = written_to_nobody(mode, kind, len);
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
