//! Processes: fork without exec for the roles, fork and exec for the application.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, Uid, dup2_stdin, dup2_stdout, geteuid, pipe2, setfsuid};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;

/// Forks a child that closes `close`, runs `body` and ends with the result; a panic aborts.
///
/// The caller must have a single thread: locks of other threads would stay taken in the child.
///
/// # Errors
/// `EAGAIN` at the limit of processes, `ENOMEM`.
pub fn fork(close: &[BorrowedFd<'_>], body: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: the process has one thread (required of the caller; `supervise` starts no thread), so
    // the child may allocate and take locks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            for fd in close {
                // SAFETY: a frame of the parent owns the descriptor. The child never returns to the
                // frame, so no code closes or uses the number again.
                unsafe { libc::close(fd.as_raw_fd()) };
            }
            // A panic must not unwind into the parent's frames.
            match catch_unwind(AssertUnwindSafe(body)) {
                Ok(code) => end(code),
                Err(_) => std::process::abort(),
            }
        }
    }
}

/// The next child that ended, stopped or continued since the last call; an ended child is reaped.
/// `None`: no child did, or no child is left. Does not wait.
///
/// nix's `waitpid` cannot be used: nix has no real-time signals, so a child that was ended by a
/// real-time signal would be reaped, and the result would be `EINVAL` without a process id.
pub fn next_child() -> Option<(Pid, ExitStatus)> {
    let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    let mut status = 0;
    // SAFETY: `status` is a live local that the kernel may write.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
    if pid <= 0 {
        return None;
    }
    let status = ExitStatus::from_raw(status);
    Some((Pid::from_raw(pid), status))
}

/// Ends the process at once, without the parent's destructors and exit handlers.
fn end(code: u8) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Replaces the process by `program`, found along `PATH` of the present environment. Returns only
/// on failure, with the error of `execve(2)`: `ENOENT` for a missing program, `EACCES` for a
/// program without the right to execute.
pub fn exec(program: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    match nix::unistd::execvpe(program, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Runs `body` with the rights over files of user `uid` instead of the process's rights
/// (`setfsuid(2)`, which suspends capabilities over files). Without `SETUID`, or for the process's
/// own uid, `body` runs with the process's rights. The process must have one thread.
pub fn as_user<T>(uid: Uid, body: impl FnOnce() -> T) -> T {
    let dumpable = prctl::get_dumpable();
    setfsuid(uid);
    let result = body();
    setfsuid(geteuid());
    // A change of ids resets the process's dumpable flag to the host's setting.
    let _ = prctl::set_dumpable(dumpable.unwrap_or(false));
    result
}

/// The disposition of a signal without a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The kernel's default.
    Default,
    /// The signal is ignored.
    Ignored,
}

/// Sets the disposition of `signal` and returns the old disposition (a handler, which no program
/// inherits, counts as the default).
///
/// # Errors
/// `EINVAL` for KILL and STOP.
pub fn set_disposition(signal: Signal, disposition: Disposition) -> io::Result<Disposition> {
    let handler = match disposition {
        Disposition::Default => SigHandler::SigDfl,
        Disposition::Ignored => SigHandler::SigIgn,
    };
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither action runs code of ours.
    let before = unsafe { sigaction(signal, &action) }?;
    Ok(if matches!(before.handler(), SigHandler::SigIgn) {
        Disposition::Ignored
    } else {
        Disposition::Default
    })
}

/// The descriptors above 2 that this program was started with: all descriptors without the
/// close-on-exec flag, which this program sets on every descriptor.
///
/// # Errors
/// When `/proc/self/fd` cannot be read.
pub fn inherited() -> io::Result<Vec<libc::c_int>> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Ok(fd) = name.to_string_lossy().parse() else {
            continue;
        };
        // SAFETY: the arguments are numbers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if fd > 2 && flags != -1 && flags & libc::FD_CLOEXEC == 0 {
            inherited.push(fd);
        }
    }
    Ok(inherited)
}

/// Replaces standard input and output by `/dev/null`, in a forked process that uses neither.
/// Without `/dev/null`, both become the ends of a pipe that never blocks. Descriptors 0 and 1 stay
/// open: no later file gets these numbers.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn leave_streams() -> io::Result<()> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    if let Ok(null) = open("/dev/null", flags, Mode::empty()) {
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
    } else {
        let (input, output) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        dup2_stdin(input)?;
        dup2_stdout(output)?;
    }
    Ok(())
}

/// Closes the descriptors that `inherited` found, in a forked process.
pub fn close_inherited(inherited: &[libc::c_int]) {
    for fd in inherited {
        // SAFETY: this program did not open the descriptor, so no code owns the number.
        unsafe { libc::close(*fd) };
    }
}
