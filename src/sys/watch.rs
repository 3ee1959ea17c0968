//! Waiting for a descriptor inside tokio.

use std::io;
use std::os::fd::BorrowedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches `fd`, which must be non-blocking, for being readable.
///
/// # Errors
/// When epoll refuses `fd`: no runtime descriptor left, or a regular file.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: the borrow keeps the descriptor open for as long as the result lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
