//! The session with the kernel, which outlives the process that holds it: whoever comes next
//! answers under the same mount. Invariant: of what a dead process had taken, every request is
//! asked again or answered; nobody waits for ever.
//!
//! fuser begins a session with the kernel's INIT request and cannot skip it. So supervise reads
//! that request before any fork, and each `serve` shakes hands with a socket that repeats it; then
//! the device takes the socket's place.

use super::adapter::Adapter;
use crate::names::Recovery;
use crate::sys::file;
use fuser::{Config, Session, SessionACL};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The least buffer that the kernel hands a request to (`FUSE_MIN_READ_BUFFER`).
const READ_BUFFER: usize = 8192;
/// `FUSE_NOTIFY_RESEND` (Linux 6.9): what was taken and not answered is asked again.
const RESEND: i32 = 7;
/// How many requests from the last one on that the adapter saw are answered: it does not see every
/// kind.
const TAKEN: usize = 64;
/// The distance between the numbers of two requests.
const STEP: usize = 2;

/// The kernel's first request, as it came.
#[derive(Clone, Debug)]
pub struct Init(Vec<u8>);

impl Init {
    /// Takes it from a device that was just mounted; the kernel has it ready.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn take(device: BorrowedFd<'_>) -> io::Result<Self> {
        let mut request = vec![0; READ_BUFFER];
        let len = loop {
            match read(device, &mut request) {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                result => break result?,
            }
        };
        request.truncate(len);
        Ok(Self(request))
    }
}

/// A session on `device` for `adapter`, whether or not there was one before.
///
/// # Errors
/// When fuser or the kernel refuses, which they have no reason to.
pub fn open(adapter: Adapter, device: &OwnedFd, init: &Init) -> io::Result<Session<Adapter>> {
    let (kernel, ours) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    write(&kernel, &init.0)?;
    let session = Session::from_fd(adapter, ours, SessionACL::All, Config::default())?;
    let mut reply = [0; 256];
    let len = read(&kernel, &mut reply)?;
    // A later session's answer is to a request that the kernel knows no more.
    unless(write(device, &reply[..len]), Errno::ENOENT)?;
    file::replace(session.as_fd(), device.as_fd())?;
    Ok(session)
}

/// Brings back what a predecessor had taken; `last` is the last request that it is known to have
/// taken, 0 if there was none.
///
/// # Errors
/// When the kernel refuses for another reason than that it does not know the way.
pub fn recover(device: BorrowedFd<'_>, last: u64, allowed: Recovery) -> io::Result<Recovery> {
    if allowed == Recovery::Resend {
        match write(device, &message(RESEND, 0)) {
            Ok(_) => return Ok(Recovery::Resend),
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    for request in (last..).step_by(STEP).take(TAKEN).filter(|_| last != 0) {
        unless(
            write(device, &message(-libc::EINTR, request)),
            Errno::ENOENT,
        )?;
    }
    Ok(Recovery::Interrupt)
}

/// `struct fuse_out_header` alone.
fn message(error: i32, unique: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&16_u32.to_ne_bytes());
    bytes[4..8].copy_from_slice(&error.to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

fn unless(result: nix::Result<usize>, harmless: Errno) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(errno) if errno == harmless => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
