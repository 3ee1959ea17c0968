//! The messages between supervise and a role, over a SEQPACKET pair. Invariants: every message has
//! the same small size; the death of a peer is an event (end of file); a role names a hook by index
//! into the Plan, never by command, path or pid.

use crate::exit::Exit;
use crate::names::{HookId, SwapExposure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The size of every message in bytes: a tag, and two bytes of argument.
const SIZE: usize = 3;

/// A message from a role to supervise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromRole {
    /// `serve`: the session is up. `fetch`: the first version of every secret is published.
    Ready,
    /// `fetch`: files with this hook changed, and the change was announced.
    Changed(HookId),
    /// The role ends. The container ends with this code if the application has no exit code.
    Failed(Exit),
    /// `fetch`: the answer to `Ping`.
    Alive,
}

/// A message from supervise to a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToRole {
    /// Revoke, clean up and end.
    Stop,
    /// `fetch`: read all secrets without a lease again now.
    Refresh,
    /// The wait for the first secrets is over: report the missing secrets, revoke, end with
    /// `Failed`.
    GiveUp,
    /// `fetch`: answer with `Alive`, which shows supervise that the loop runs.
    Ping,
    /// `fetch`: the reason why files on a tmpfs could now reach a swap, for the report; `None`
    /// when no swap is reachable any more.
    Swap(Option<SwapExposure>),
}

/// A message of fixed size.
pub trait Message: Sized {
    /// The bytes of the message.
    fn encode(&self) -> [u8; SIZE];
    /// The message with these bytes; `None` for other bytes.
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
            [2, low, high] => {
                let hook = u16::from_le_bytes([low, high]);
                Some(Self::Changed(HookId(hook)))
            }
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
            Self::Swap(None) => [5, 0, 0],
            Self::Swap(Some(why)) => [5, *why as u8, 0],
        }
    }

    fn decode(bytes: [u8; SIZE]) -> Option<Self> {
        match bytes {
            [1, 0, 0] => Some(Self::Stop),
            [2, 0, 0] => Some(Self::GiveUp),
            [3, 0, 0] => Some(Self::Refresh),
            [4, 0, 0] => Some(Self::Ping),
            [5, 0, 0] => Some(Self::Swap(None)),
            [5, why, 0] => {
                let why = SwapExposure::from_number(why)?;
                Some(Self::Swap(Some(why)))
            }
            _ => None,
        }
    }
}

/// The result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<M> {
    /// A message.
    Message(M),
    /// No message is waiting.
    Empty,
    /// The peer is gone, or sent bytes that are no message.
    Closed,
}

/// An end of a link; non-blocking, close-on-exec.
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
    /// A second handle of this end.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when the peer does not read, `BrokenPipe` when the peer is gone.
    pub fn send<M: Message>(&self, message: &M) -> io::Result<()> {
        let bytes = message.encode();
        send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Receives a message, if a message is waiting.
    pub fn receive<M: Message>(&self) -> Received<M> {
        let mut bytes = [0; SIZE];
        let received = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
        match (received, M::decode(bytes)) {
            (Ok(SIZE), Some(message)) => Received::Message(message),
            (Err(Errno::EAGAIN | Errno::EINTR), _) => Received::Empty,
            (Ok(_) | Err(_), _) => Received::Closed,
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
