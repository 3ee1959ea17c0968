//! Processes: fork without exec for the roles, fork and exec for the application.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a child ends with when its body panicked, as Rust's own runtime has it; it is no code of `exit`.
const PANICKED: u8 = 101;

/// Forks a child that closes `close`, runs `body` and ends with its result, whatever happens in it.
///
/// The caller must have one thread only: another one's locks would stay taken in the child.
///
/// # Errors
/// `EAGAIN` at the limit of processes, `ENOMEM`.
pub fn fork(close: &[BorrowedFd<'_>], body: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: the process has one thread (the caller's duty, kept by `supervise`, which starts none), so the child may
    // allocate and take locks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            for fd in close {
                // SAFETY: the owner of this descriptor is a frame of the parent, which the child never returns to, so
                // nobody closes or uses the number again.
                unsafe { libc::close(fd.as_raw_fd()) };
            }
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
            end(code)
        }
    }
}

/// Ends the process at once: no destructor and no exit handler runs, since they belong to the parent.
fn end(code: u8) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Replaces the process by `program`, found along `PATH` of the present environment; returns only on failure.
///
/// # Errors
/// `ENOENT` when there is no such program, `EACCES` when it cannot be executed, and as `execve(2)`.
#[must_use]
pub fn exec(program: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    match nix::unistd::execvpe(program, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Gives `signal` its default disposition back.
///
/// # Errors
/// `EINVAL` for KILL and STOP.
pub fn default_disposition(signal: Signal) -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}
