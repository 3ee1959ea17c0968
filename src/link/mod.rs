//! The messages between supervise and a role, over a SEQPACKET pair. Invariants: every message has
//! the same small size; a dead peer is an event (end of file); a role asks by index into the Plan,
//! never by command, path or pid.

use crate::exit::Exit;
use crate::names::{HookId, SwapExposure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Size of every message in bytes: a tag and two bytes of argument.
const SIZE: usize = 3;

/// What a role tells supervise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromRole {
    /// `serve`: the session is up. `fetch`: every first secret is published.
    Ready,
    /// `fetch`: files that have this hook changed, and their change was announced.
    Changed(HookId),
    /// The role ends, and this is why; the container's exit code unless the application has one.
    Failed(Exit),
    /// `fetch`: the answer to `Ping`.
    Alive,
}

/// What supervise tells a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToRole {
    /// Revoke, clean up, end.
    Stop,
    /// `fetch`: read again now what has no lease.
    Refresh,
    /// The wait for the first secrets is over: say what is missing, revoke, end with `Failed`.
    GiveUp,
    /// `fetch`: answer with `Alive`, so that supervise knows that the loop turns.
    Ping,
    /// `fetch`: why files on a tmpfs could now reach a swap, for the report; `None` when they
    /// cannot any more.
    Swap(Option<SwapExposure>),
}

/// A message of fixed size.
pub trait Message: Sized {
    /// Its bytes.
    fn encode(&self) -> [u8; SIZE];
    /// The message that these bytes are, if they are one.
    fn decode(bytes: [u8; SIZE]) -> Option<Self>;
}

impl Message for FromRole {
    fn encode(&self) -> [u8; SIZE] {
        match self {
            Self::Ready => [1, 0, 0],
            Self::Changed(hook) => {
                let [low, high] = hook.0.to_le_bytes();
                [2, low, high]
            }
            Self::Failed(exit) => [3, exit.code(), 0],
            Self::Alive => [4, 0, 0],
        }
    }

    fn decode(bytes: [u8; SIZE]) -> Option<Self> {
        match bytes {
            [1, 0, 0] => Some(Self::Ready),
            [2, low, high] => Some(Self::Changed(HookId(u16::from_le_bytes([low, high])))),
            [3, code, 0] => Some(Self::Failed(Exit::from_code(code))),
            [4, 0, 0] => Some(Self::Alive),
            _ => None,
        }
    }
}

impl Message for ToRole {
    fn encode(&self) -> [u8; SIZE] {
        match self {
            Self::Stop => [1, 0, 0],
            Self::GiveUp => [2, 0, 0],
            Self::Refresh => [3, 0, 0],
            Self::Ping => [4, 0, 0],
            Self::Swap(why) => [5, why.map_or(0, |why| why as u8), 0],
        }
    }

    fn decode(bytes: [u8; SIZE]) -> Option<Self> {
        match bytes {
            [1, 0, 0] => Some(Self::Stop),
            [2, 0, 0] => Some(Self::GiveUp),
            [3, 0, 0] => Some(Self::Refresh),
            [4, 0, 0] => Some(Self::Ping),
            [5, 0, 0] => Some(Self::Swap(None)),
            [5, why, 0] => SwapExposure::from_number(why).map(|why| Self::Swap(Some(why))),
            _ => None,
        }
    }
}

/// One received item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<M> {
    /// A message.
    Message(M),
    /// Nothing there now.
    Empty,
    /// The peer is gone, or sent what is no message.
    Closed,
}

/// One end of a link; non-blocking, close-on-exec.
#[derive(Debug)]
pub struct End(OwnedFd);

/// Makes a link.
///
/// # Errors
/// When the system has no more descriptors.
pub fn pair() -> io::Result<(End, End)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((End(a), End(b)))
}

impl End {
    /// A second handle of the same end.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when the peer does not read, `BrokenPipe` when it is gone.
    pub fn send<M: Message>(&self, message: &M) -> io::Result<()> {
        send(
            self.0.as_raw_fd(),
            &message.encode(),
            MsgFlags::MSG_NOSIGNAL,
        )?;
        Ok(())
    }

    /// Takes one message, if there is one.
    pub fn receive<M: Message>(&self) -> Received<M> {
        let mut bytes = [0; SIZE];
        match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(SIZE) => M::decode(bytes).map_or(Received::Closed, Received::Message),
            Err(Errno::EAGAIN | Errno::EINTR) => Received::Empty,
            Ok(_) | Err(_) => Received::Closed,
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_and_the_end_is_seen() {
        let (a, b) = pair().expect("socketpair");
        assert_eq!(b.receive::<FromRole>(), Received::Empty);
        for message in [
            FromRole::Ready,
            FromRole::Changed(HookId(0x102)),
            FromRole::Failed(Exit::Login),
            FromRole::Alive,
        ] {
            a.send(&message).expect("send");
            assert_eq!(b.receive::<FromRole>(), Received::Message(message));
        }
        let swaps = [
            None,
            Some(SwapExposure::Unknown),
            Some(SwapExposure::Reachable),
            Some(SwapExposure::CgroupV1),
        ]
        .map(ToRole::Swap);
        for message in [ToRole::Stop, ToRole::GiveUp, ToRole::Refresh, ToRole::Ping]
            .into_iter()
            .chain(swaps)
        {
            b.send(&message).expect("send");
            assert_eq!(a.receive::<ToRole>(), Received::Message(message));
        }
        drop(a);
        assert_eq!(b.receive::<FromRole>(), Received::Closed);
        assert_eq!(
            b.send(&ToRole::Stop).expect_err("the peer is gone").kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
