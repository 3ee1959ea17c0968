//! A line between an agent and its server, on which answers take their time and can be held back.
//! Invariant: what was asked reaches the server at once.

use baofs::clock::{Clock, Moment, RealClock};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An answer that came so short before the client's end may not have been read.
const JUST_NOW: Duration = Duration::from_millis(20);

/// The line; its threads end with the test process.
pub(crate) struct Line {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    delay: Duration,
    held: AtomicBool,
    hits: AtomicUsize,
}

/// What a connection is about.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Nothing was asked yet.
    Fresh,
    /// The answer to something that must not be lost (a login, a credential) is on its way.
    Asked,
    /// Its answer was passed on then.
    Answered(Moment),
    /// Whatever else.
    Other,
}

impl Line {
    /// A line to the server at `url`, whose answers come later by `delay`.
    pub(crate) fn to(url: &str, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = url.strip_prefix("http://").expect("plain HTTP").to_owned();
        let shared = Arc::new(Shared {
            server,
            delay,
            held: AtomicBool::new(false),
            hits: AtomicUsize::new(0),
        });
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let _ = connect(client, &all);
            }
        });
        Self { address, shared }
    }

    /// Its address as a configuration has it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds every answer back, or lets them go.
    pub(crate) fn hold(&self, held: bool) {
        self.shared.held.store(held, SeqCst);
    }

    /// How many connections ended before anything was asked, or while a login or a credential was
    /// on its way to the client, or just after it came.
    pub(crate) fn hits(&self) -> usize {
        self.shared.hits.load(SeqCst)
    }
}

fn connect(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(&shared.server)?;
    let state = Arc::new(Mutex::new(State::Fresh));
    let (back, to, seen, all) = (
        server.try_clone()?,
        client.try_clone()?,
        Arc::clone(&state),
        Arc::clone(shared),
    );
    std::thread::spawn(move || {
        let _ = answers(&back, &to, &seen, &all);
        let _ = to.shutdown(Shutdown::Both);
    });
    let all = Arc::clone(shared);
    std::thread::spawn(move || {
        let _ = questions(&client, &server, &state);
        let _ = server.shutdown(Shutdown::Both);
        let hit = match *lock(&state) {
            State::Fresh | State::Asked => true,
            State::Answered(then) => RealClock.now().since(then) < JUST_NOW,
            State::Other => false,
        };
        all.hits.fetch_add(usize::from(hit), SeqCst);
    });
    Ok(())
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().expect("nobody panics with it")
}

fn questions(
    mut client: &TcpStream,
    mut server: &TcpStream,
    state: &Mutex<State>,
) -> io::Result<()> {
    let mut bytes = [0; 16384];
    while let len @ 1.. = client.read(&mut bytes)? {
        let text = String::from_utf8_lossy(&bytes[..len]);
        let head = text
            .lines()
            .next()
            .filter(|line| line.ends_with("HTTP/1.1"));
        if let Some(head) = head {
            let precious = head.contains("/login") || head.contains("/v1/database/creds/");
            *lock(state) = if precious { State::Asked } else { State::Other };
        }
        server.write_all(&bytes[..len])?;
    }
    Ok(())
}

fn answers(
    mut server: &TcpStream,
    mut client: &TcpStream,
    state: &Mutex<State>,
    shared: &Shared,
) -> io::Result<()> {
    let mut bytes = [0; 16384];
    while let len @ 1.. = server.read(&mut bytes)? {
        std::thread::sleep(shared.delay);
        while shared.held.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut state = lock(state);
        if *state == State::Asked {
            *state = State::Answered(RealClock.now());
        }
        client.write_all(&bytes[..len])?;
    }
    Ok(())
}
