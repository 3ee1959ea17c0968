//! A stand-in for OpenBao: `AppRole`, KV versions 1 and 2, database credentials with leases, renew,
//! revoke, seal; and a bad day on demand. Held to the real server by `tests/end_to_end/contract.rs`. Included
//! by path, used inside the process that tests; it ends with its handle.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test uses another part of it"
)]
#![allow(
    unreachable_pub,
    reason = "a module included by path has no crate of its own to be public in"
)]

mod answer;
mod server;
mod state;

pub use server::Fault;
pub use state::{DatabaseRole, Request, Role, State};

use rcgen::{CertificateParams, Issuer, KeyPair};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// A running stand-in, listening at a port of its own.
pub struct Standin {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// The authority of its certificate (PEM), with TLS.
    authority: Option<String>,
    /// Dropped to stop it.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Standin {
    /// Starts one without TLS and without any role or secret: mounts `secret/` (KV 2), `kv/` (KV
    /// 1), `database/`.
    #[must_use]
    pub fn start() -> Self {
        Self::listen(Ipv4Addr::LOCALHOST, None, None)
    }

    /// The same, listening on every address: containers reach it.
    #[must_use]
    pub fn start_for_containers() -> Self {
        Self::listen(Ipv4Addr::UNSPECIFIED, None, None)
    }

    /// Starts one with a certificate for these names.
    #[must_use]
    pub fn start_tls(names: &[&str]) -> Self {
        let key = KeyPair::generate().expect("a key");
        let authority = {
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            (
                params.self_signed(&key).expect("an authority"),
                Issuer::new(params, key),
            )
        };
        let own = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .expect("names");
        let certificate = params.signed_by(&own, &authority.1).expect("a certificate");
        Self::listen(
            Ipv4Addr::LOCALHOST,
            Some(server::tls(&certificate, &own)),
            Some(authority.0.pem()),
        )
    }

    /// Another one, at the same port of another address: with it, two nodes of one name.
    #[must_use]
    pub fn twin(&self, on: Ipv4Addr) -> Self {
        Self::listen_at((on, self.address.port()).into(), None, None)
    }

    fn listen(
        on: Ipv4Addr,
        tls: Option<tokio_rustls::TlsAcceptor>,
        authority: Option<String>,
    ) -> Self {
        Self::listen_at((on, 0).into(), tls, authority)
    }

    fn listen_at(
        on: SocketAddr,
        tls: Option<tokio_rustls::TlsAcceptor>,
        authority: Option<String>,
    ) -> Self {
        let listener = TcpListener::bind(on).expect("a free port");
        listener
            .set_nonblocking(true)
            .expect("a non-blocking listener");
        let bound = listener.local_addr().expect("a bound address");
        let address = if on.ip().is_unspecified() {
            (Ipv4Addr::LOCALHOST, bound.port()).into()
        } else {
            bound
        };
        let state = Arc::new(Mutex::new(State::new()));
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || server::run(listener, tls, shared, stopped));
        Self {
            address,
            state,
            authority,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or `https`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// The authority (PEM) that a client must trust, with TLS.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.authority.as_deref().expect("started with TLS")
    }

    /// Its state, to look at and to change; requests wait meanwhile. Twice in one statement waits
    /// for itself.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests there were to paths that begin with `prefix`, without `/v1/`.
    #[must_use]
    pub fn count(&self, prefix: &str) -> usize {
        self.state()
            .requests
            .iter()
            .filter(|request| request.path.starts_with(prefix))
            .count()
    }

    /// How many tokens and how many leases live.
    #[must_use]
    pub fn live(&self) -> (usize, usize) {
        self.state().live()
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
