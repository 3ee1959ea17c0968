//! The session with the kernel, which outlives a `serve`: the successor answers under the same
//! mount. Invariant: every request that a dead process had taken is sent again or answered, so no
//! reader waits for ever.
//!
//! fuser begins a session with the kernel's INIT request and cannot skip the request. So supervise
//! reads INIT before the first fork, and each `serve` shakes hands with a socket that repeats INIT;
//! then the device takes the socket's place.

use super::adapter::Adapter;
use crate::names::Recovery;
use crate::sys::file;
use fuser::{Config, Session, SessionACL};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The smallest buffer that the kernel accepts in a read of a request (`FUSE_MIN_READ_BUFFER`).
const READ_BUFFER: usize = 8192;
/// `FUSE_NOTIFY_RESEND` (Linux 6.9): the kernel sends all taken, unanswered requests again.
const RESEND: i32 = 7;
/// The number of requests to answer, from the last noted request on: the adapter does not note
/// every kind of request.
const TAKEN: usize = 64;
/// The distance between the numbers of two requests.
const STEP: usize = 2;

/// Takes the kernel's first request from a newly mounted device, without waiting.
///
/// # Errors
/// As `read(2)`.
pub fn take_init(device: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut request = vec![0; READ_BUFFER];
    let len = loop {
        match read(device, &mut request) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            result => break result?,
        }
    };
    request.truncate(len);
    Ok(request)
}

/// Opens a session on `device` for `adapter`: the first session, or a successor's.
///
/// # Errors
/// When fuser or the kernel refuses; no reason for a refusal is known.
pub fn open(adapter: Adapter, device: &OwnedFd, init: &[u8]) -> io::Result<Session<Adapter>> {
    let (kernel, ours) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    write(&kernel, init)?;
    let config = Config::default();
    let session = Session::from_fd(adapter, ours, SessionACL::All, config)?;
    let mut reply = [0; 256];
    let len = read(&kernel, &mut reply)?;
    // ENOENT: the kernel has the answer to INIT from an earlier session.
    accept_missing(write(device, &reply[..len]))?;
    file::replace(session.as_fd(), device.as_fd())?;
    Ok(session)
}

/// Recovers the requests that a predecessor had taken: by RESEND if `allowed` and known to the
/// kernel, else with `EINTR` answers from request `last` on, the last noted request (0 for none).
/// Returns the used way.
///
/// # Errors
/// When the kernel refuses RESEND with another error than `EINVAL`, or refuses an answer.
pub fn recover(device: BorrowedFd<'_>, last: u64, allowed: Recovery) -> io::Result<Recovery> {
    if allowed == Recovery::Resend {
        match write(device, &message(RESEND, 0)) {
            Ok(_) => return Ok(Recovery::Resend),
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    if last != 0 {
        for request in (last..).step_by(STEP).take(TAKEN) {
            let answer = message(-libc::EINTR, request);
            accept_missing(write(device, &answer))?;
        }
    }
    Ok(Recovery::Interrupt)
}

/// A `struct fuse_out_header` without a body.
fn message(error: i32, unique: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&16_u32.to_ne_bytes());
    bytes[4..8].copy_from_slice(&error.to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

/// Accepts `ENOENT`, the kernel's error for the answer to a request that nobody waits for.
fn accept_missing(result: nix::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
