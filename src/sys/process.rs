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
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Forks a child that closes `close`, runs `body` and ends with the result; a panic aborts.
///
/// The caller must have a single thread: locks of other threads would stay taken in the child.
///
/// # Errors
/// `EAGAIN` at the limit of processes, `ENOMEM`.
pub fn fork(close: &[BorrowedFd<'_>], body: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: the process has one thread (the caller's duty, kept by `supervise`, which starts
    // none), so the child may allocate and take locks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            for fd in close {
                // SAFETY: the owner of this descriptor is a frame of the parent, which the child
                // never returns to, so nobody closes or uses the number again.
                unsafe { libc::close(fd.as_raw_fd()) };
            }
            // A panic must not unwind into the parent's frames.
            catch_unwind(AssertUnwindSafe(body)).map_or_else(|_| std::process::abort(), end)
        }
    }
}

/// Ends the process at once: no destructor and no exit handler runs, since they belong to the
/// parent.
fn end(code: u8) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Replaces the process by `program`, found along `PATH` of the present environment; returns only
/// on failure.
///
/// # Errors
/// `ENOENT` when there is no such program, `EACCES` when it cannot be executed, and as `execve(2)`.
pub fn exec(program: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    match nix::unistd::execvpe(program, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Runs `body` with the rights over files that user `uid` has, instead of one's own (`setfsuid(2)`;
/// its capabilities over files are gone meanwhile). Without `SETUID`, or for one's own id, nothing
/// changes. The process must have one thread.
pub fn as_user<T>(uid: Uid, body: impl FnOnce() -> T) -> T {
    let dumpable = prctl::get_dumpable();
    setfsuid(uid);
    let result = body();
    setfsuid(geteuid());
    // A change of ids makes the process as dumpable as the host has it.
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

/// Sets the disposition of `signal` and returns the one before (a handler, which no program
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
    // SAFETY: neither of the two actions runs code of ours.
    let before = unsafe { sigaction(signal, &action) }?;
    Ok(if matches!(before.handler(), SigHandler::SigIgn) {
        Disposition::Ignored
    } else {
        Disposition::Default
    })
}

/// The descriptors above 2 that this program was started with: those without the close-on-exec
/// flag, which everything that is opened here carries.
///
/// # Errors
/// When `/proc/self/fd` cannot be read.
pub fn inherited() -> io::Result<Vec<libc::c_int>> {
    let names = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut all: Vec<libc::c_int> = names.filter(|fd| *fd > 2).collect();
    all.retain(|fd| {
        // SAFETY: the arguments are numbers; the listing's own descriptor is closed by now, which
        // is EBADF.
        let flags = unsafe { libc::fcntl(*fd, libc::F_GETFD) };
        flags != -1 && flags & libc::FD_CLOEXEC == 0
    });
    Ok(all)
}

/// Replaces standard input and output, in a forked process that uses neither: by `/dev/null`, or,
/// where that is missing, by a pipe to itself that never blocks. The numbers stay taken, so that no
/// file is opened under them.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn leave_streams() -> io::Result<()> {
    if let Ok(null) = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
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
        // SAFETY: this program did not open it, so nothing in it owns the number.
        unsafe { libc::close(*fd) };
    }
}
