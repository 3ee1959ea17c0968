//! A name server that knows one address: it answers over UDP that the answer is too long, and gives
//! it over TCP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The port of DNS, which a resolver's configuration cannot change.
const PORT: u16 = 53;
/// `QR`, `RD`, `RA`; and `TC`.
const ANSWER: [u8; 2] = [0x81, 0x80];
const TRUNCATED: [u8; 2] = [0x83, 0x80];

/// How many questions came over TCP. The server's threads live as long as the process.
#[derive(Debug)]
pub(crate) struct Dns(Arc<AtomicUsize>);

impl Dns {
    /// Starts one at `address` (of 127.0.0.0/8: tests share a network). Every name is 127.0.0.1.
    pub(crate) fn start(address: Ipv4Addr) -> Self {
        let (udp, tcp) = (
            UdpSocket::bind((address, PORT)).expect("the port is free"),
            TcpListener::bind((address, PORT)).expect("so it is"),
        );
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((len, from)) = udp.recv_from(&mut question) {
                let _ = udp.send_to(&answer(&question[..len], TRUNCATED, 0), from);
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let count = Arc::clone(&count);
                thread::spawn(move || converse(stream, &count));
            }
        });
        Self(asked)
    }

    /// How many questions came over TCP.
    pub(crate) fn asked(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn converse(mut stream: TcpStream, asked: &AtomicUsize) -> io::Result<()> {
    loop {
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut question = vec![0; u16::from_be_bytes(len).into()];
        stream.read_exact(&mut question)?;
        asked.fetch_add(1, Ordering::SeqCst);
        // An address of version 4 is asked for with type 1.
        let end = name_end(&question);
        let reply = answer(
            &question,
            ANSWER,
            u16::from(question[end..end + 2] == [0, 1]),
        );
        let len = u16::try_from(reply.len())
            .expect("it is short")
            .to_be_bytes();
        stream.write_all(&[&len[..], &reply].concat())?;
    }
}

/// Where the name of the question ends.
fn name_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += 1 + usize::from(message[at]);
    }
    at + 1
}

/// The question repeated, with `count` (0 or 1) addresses.
fn answer(question: &[u8], flags: [u8; 2], count: u16) -> Vec<u8> {
    let end = name_end(question) + 4;
    let mut message = [
        &question[..2],
        &flags,
        &[0, 1],
        &count.to_be_bytes(),
        &[0; 4],
        &question[12..end],
    ]
    .concat();
    if count > 0 {
        // The name again, type A, class IN, 60 s, 4 bytes.
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    message
}
