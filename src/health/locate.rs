//! Finds and reads the report from outside the agent. Invariants: a read ends after `PATIENCE` even
//! if the mount hangs, because only a child process touches the mount; below the mount no link is
//! followed, and the report is a regular file that belongs to the owner of its directory.
//!
//! The reader may be root, and other users may be able to write to the directory: Docker gives a
//! tmpfs the mode 1777. There an application can create names, but can neither remove nor rename the
//! files of another user. The agent makes `..baofs` before the application starts and keeps the
//! directory until the end, so a `..baofs` of another user means that no agent serves. An application
//! with the agent's own uid can replace the report. The effect is a wrong report, but never the
//! content of another file or an escape sequence, because the report is parsed and formatted again.

use crate::clock::{Clock, RealClock};
use crate::config::defaults;
use crate::status::{DIRECTORY, FILE, FORMAT, HEARTBEAT, Heartbeat, Report};
use crate::sys::mounts::{SOURCE, mounts, unescape};
use crate::sys::process::fork;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::wait::waitpid;
use nix::unistd::pipe2;
use serde::Deserialize;
use serde_json::Deserializer;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The time limit for an answer of the mount.
const PATIENCE: Duration = Duration::from_secs(2);
/// The size limit of a report in bytes.
const LIMIT: u64 = 16 << 20;

/// The mount to check: `given`, else the only mount of baofs, else the default path (a tmpfs that the
/// agent did not mount itself has another source).
///
/// # Errors
/// Fails if baofs has several mounts.
pub fn mount(given: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(mount) = given {
        return Ok(mount);
    }
    let list = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    only(&String::from_utf8_lossy(&list))
}

/// The one mount point of baofs in a list of mounts, or the default.
fn only(mountinfo: &str) -> Result<PathBuf, String> {
    // The bind of a single file has another root.
    let ours = mounts(mountinfo).filter(|mount| {
        mount.source == SOURCE && matches!(mount.kind, "fuse" | "tmpfs") && mount.root == "/"
    });
    let mut points: Vec<_> = ours.map(|mount| unescape(mount.point)).collect();
    points.sort();
    points.dedup();
    match points.as_slice() {
        [] => Ok(defaults::MOUNT.into()),
        [only] => Ok(only.clone()),
        many => Err(format!(
            "baofs has {} mounts: {many:?}; hint: select one with --mount or BAOFS_MOUNT",
            many.len()
        )),
    }
}

/// The bytes of the report in `mount`, and of the heartbeat after the report, if there is one. The
/// process must have one thread only: it forks.
///
/// # Errors
/// Fails if there is no report, if the report is not a regular file of its directory's owner, or if
/// the read does not end in time.
pub fn read(mount: &Path) -> Result<Vec<u8>, String> {
    let path = mount.join(DIRECTORY).join(FILE);
    let shown = path.display();
    copy(mount).map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            format!("cannot find {shown}: no agent serves there; hint: set the mount with --mount or BAOFS_MOUNT")
        } else {
            format!("cannot read {shown}: {error}")
        }
    })
}

/// Parses a report, with a heartbeat or without.
///
/// # Errors
/// Fails for bytes that are not a report, or for a report of another version of baofs. The message
/// repeats no part of the bytes.
pub fn parse(bytes: &[u8]) -> Result<Report, String> {
    #[derive(Deserialize)]
    struct FormatOnly {
        format: u32,
    }
    let none = |error: serde_json::Error| {
        format!(
            "the status file is not a report of baofs (line {}, column {})",
            error.line(),
            error.column()
        )
    };
    let mut values = Deserializer::from_slice(bytes);
    match FormatOnly::deserialize(&mut values).map_err(none)?.format {
        FORMAT => {}
        other => {
            return Err(format!(
                "the agent's report has format {other}, but this baofs reads format {FORMAT}; hint: use the binary of the agent"
            ));
        }
    }
    let mut values = Deserializer::from_slice(bytes);
    let mut report = Report::deserialize(&mut values).map_err(none)?;
    if let Ok(heartbeat) = Heartbeat::deserialize(&mut values) {
        report.prolong(heartbeat);
    }
    Ok(report)
}

/// The first byte that the child sends: the content follows.
const CONTENT: u8 = 0;
/// The first byte for a missing file; nothing follows.
const ABSENT: u8 = 1;
/// The first byte for a file that was not read; the cause in words follows.
const REFUSED: u8 = 2;

/// Reads the report of `mount` in a child process, which may hang there.
fn copy(mount: &Path) -> io::Result<Vec<u8>> {
    let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
    let to = File::from(to);
    // A reader of our output must not wait for a child that hangs, so the child closes the output.
    let input = io::stdin();
    let output = io::stdout();
    let errors = io::stderr();
    let close = [from.as_fd(), input.as_fd(), output.as_fd(), errors.as_fd()];
    let child = fork(&close, || {
        let result = send(mount, &to);
        u8::from(result.is_err())
    })?;
    drop(to);
    let sent = receive(&mut File::from(from)).inspect_err(|_| {
        // The child is not waited for, because no signal reaches a process inside a request that
        // `serve` has taken. Init reaps the child.
        let _ = kill(child, Signal::SIGKILL);
    })?;
    // The result came through the pipe, and where SIGCHLD is ignored there is no exit status.
    let _ = waitpid(child, None);
    match sent.split_first() {
        Some((&CONTENT, bytes)) => Ok(bytes.to_vec()),
        Some((&ABSENT, _)) => Err(ErrorKind::NotFound.into()),
        Some((_, words)) => Err(io::Error::other(
            String::from_utf8_lossy(words).into_owned(),
        )),
        None => Err(io::Error::other("the reading process was killed")),
    }
}

/// The child's task: reads the report and sends the result. The child closes the file, which may
/// hang too, before the pipe, so that the parent can wait for the child after the end of the pipe.
fn send(mount: &Path, mut to: &File) -> io::Result<()> {
    let (tag, bytes) = match open_state(mount, FILE).and_then(content) {
        Ok(mut bytes) => {
            // A young agent has no heartbeat yet.
            if let Ok(heartbeat) = open_state(mount, HEARTBEAT).and_then(content) {
                bytes.extend(heartbeat);
            }
            (CONTENT, bytes)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (ABSENT, Vec::new()),
        Err(error) => (REFUSED, error.to_string().into_bytes()),
    };
    to.write_all(&[&[tag], bytes.as_slice()].concat())
}

/// Opens a file of the agent's state without following a link below `mount`, and without waiting for
/// the other end of a FIFO or for the holder of a lease.
fn open_state(mount: &Path, name: &str) -> io::Result<File> {
    let whole = |flags| flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(
        mount,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let directory = openat(
        &root,
        DIRECTORY,
        whole(OFlag::O_PATH | OFlag::O_DIRECTORY),
        Mode::empty(),
    )?;
    let file = openat(
        &directory,
        name,
        whole(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY),
        Mode::empty(),
    );
    let file = match file {
        Err(Errno::ELOOP) => return Err(io::Error::other("the file is a link")),
        other => other?,
    };
    let found = fstat(&file)?;
    let owner = fstat(&directory)?.st_uid;
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG {
        return Err(io::Error::other("the file is not a regular file"));
    }
    if found.st_uid != owner {
        return Err(io::Error::other(format!(
            "the file belongs to uid {}, but the directory to uid {owner}",
            found.st_uid
        )));
    }
    Ok(file.into())
}

/// Reads a whole file of at most `LIMIT` bytes.
fn content(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        Err(io::Error::other(format!(
            "the file is larger than {LIMIT} bytes"
        )))
    } else {
        Ok(bytes)
    }
}

/// Reads a pipe to its end.
fn receive(from: &mut File) -> io::Result<Vec<u8>> {
    let clock = RealClock;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let late = clock.now().plus(PATIENCE);
    loop {
        let left = late.since(clock.now());
        let limit = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, limit)? == 0 {
            return Err(io::Error::other(format!(
                "no answer within {PATIENCE:?}: the agent hangs or is stopped"
            )));
        }
        match from.read(&mut part)? {
            0 => return Ok(bytes),
            n => bytes.extend_from_slice(&part[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_mount_is_found() {
        const FUSE: &str = "50 27 0:63 / /app/secrets ro,nosuid,nodev,noexec,relatime - fuse baofs rw,user_id=0,group_id=0";
        const AGAIN: &str = "51 50 0:64 / /app/secrets ro - fuse baofs rw";
        const TMPFS: &str =
            "52 27 0:65 / /mnt/a\\040b\\134 ro shared:1 - tmpfs baofs rw,size=4096k";
        const ONE_FILE: &str = "53 27 0:63 /db /etc/db ro - fuse baofs rw";
        const OTHERS: &str = "27 1 254:0 / / rw - ext4 baofs rw\n54 27 0:66 / /app/secrets rw - tmpfs tmpfs rw\n55 27 0:67 / /x rw - fuse sshfs rw";
        let found = |path: &str| Ok(PathBuf::from(path));
        for (lines, expected) in [
            (vec![], found("/app/secrets")),
            (vec![OTHERS, "", "no mount - at all"], found("/app/secrets")),
            (vec![OTHERS, FUSE, ONE_FILE], found("/app/secrets")),
            (vec![FUSE, AGAIN], found("/app/secrets")),
            (vec![TMPFS, OTHERS], found("/mnt/a b\\")),
        ] {
            assert_eq!(only(&lines.join("\n")), expected, "{lines:?}");
        }
        let several = only(&[FUSE, TMPFS].join("\n")).expect_err("two mounts");
        assert!(
            several.contains("--mount") && several.contains("/app/secrets"),
            "{several}"
        );
    }

    #[test]
    fn what_is_no_report_is_not_repeated() {
        for (bytes, part) in [
            (&b""[..], "line 1, column 0"),
            (b"geheim", "not a report of baofs"),
            (b"{\"format\": \"geheim\"}", "not a report of baofs"),
            (b"{\"format\": 2, \"version\": 7}", "not a report of baofs"),
            (b"{\"format\": 3, \"geheim\": 7}", "has format 3"),
        ] {
            let error = parse(bytes).expect_err(part);
            assert!(error.contains(part) && !error.contains("geheim"), "{error}");
        }
    }
}
