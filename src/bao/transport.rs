//! One request, one connection, one response. Invariants: a redirect is returned as a response and
//! never followed; time and size are bounded; a connection is closed after the response, so that no
//! plaintext stays in the buffers.

use super::response::{BaoOperation, Peer, Response};
use super::tls::{self, SetupError};
use crate::config::plan::{Address, Scheme, Tls};
use crate::lease::source::{Cause, Failure};
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use http::response::Parts;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// A listener may require this header, so that a browser cannot be tricked into a request.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
/// The buffer of a connection, in bytes; bounds the head of a response.
const BUFFER: usize = 64 << 10;

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For one address of the server to accept the connection (default 3 s).
    pub connect: Duration,
    /// For the whole exchange (default 10 s).
    pub total: Duration,
    /// The largest body of a secret, in bytes (default 1 MiB, OpenBao's own bound of a stored
    /// secret).
    pub secret: usize,
    /// The largest body of any other response, in bytes (default 64 KiB).
    pub other: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            total: Duration::from_secs(10),
            secret: 1 << 20,
            other: 64 << 10,
        }
    }
}

/// The reason why there is no response. Nothing of a partial response is kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    /// The name has no address.
    #[error("{0} cannot be resolved: {1}")]
    Resolve(String, io::Error),
    /// No connection; the address is the last one tried.
    #[error("no connection to {address}: {why}", address = .0, why = .1.kind())]
    Connect(SocketAddr, io::Error),
    /// The handshake failed, with an explanation.
    #[error("{0}")]
    Tls(String),
    /// The time limit was exceeded.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The connection ended before the end of the response.
    #[error("the connection ended before the answer was whole")]
    Cut,
    /// The body exceeds this limit, in bytes.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The response is not HTTP.
    #[error("the answer is not HTTP; hint: is the address `https://`?")]
    NotHttp,
}

impl TransportError {
    /// The failure of `operation`.
    pub(super) fn failure(&self, operation: BaoOperation<'_>) -> Failure {
        let cause = if matches!(self, Self::TooLarge(_) | Self::NotHttp) {
            Cause::Malformed
        } else {
            Cause::Unreachable
        };
        operation.failure(cause, &self.to_string())
    }
}

impl From<hyper::Error> for TransportError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() {
            Self::NotHttp
        } else {
            Self::Cut
        }
    }
}

/// The connection settings of one server.
pub(super) struct Transport {
    /// The bounds of each request.
    pub(super) limits: Limits,
    address: Address,
    /// `scheme://host:port`, the base of requests. A prefix here would end up behind `/v1`, or
    /// twice.
    pub(super) origin: String,
    host: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Transport {
    pub(super) fn new(address: &Address, tls: &Tls) -> Result<Self, SetupError> {
        let literal = if address.host.contains(':') {
            format!("[{}]", address.host)
        } else {
            address.host.clone()
        };
        let (scheme, tls) = match address.scheme {
            Scheme::Http => ("http", None),
            Scheme::Https => (
                "https",
                Some((
                    TlsConnector::from(tls::config(tls)?),
                    tls::server_name(tls, &address.host)?,
                )),
            ),
        };
        let origin = format!("{scheme}://{literal}:{}", address.port);
        format!("{origin}{}/", address.prefix)
            .parse::<Uri>()
            .map_err(|error| SetupError::Address(error.to_string()))?;
        let host = HeaderValue::try_from(format!("{literal}:{}", address.port))
            .expect("an authority is visible ASCII");
        Ok(Self {
            limits: Limits::default(),
            address: address.clone(),
            origin,
            host,
            tls,
        })
    }

    /// Sends `request`, whose path is relative to `/v1`, and reads the whole response. Addresses in
    /// `avoid` are tried last.
    pub(super) async fn send<'a>(
        &self,
        request: Request<Vec<u8>>,
        operation: BaoOperation<'a>,
        avoid: &[SocketAddr],
    ) -> Result<Response<'a>, Failure> {
        let limit = self.limits.total;
        timeout(limit, self.exchange(request, operation, avoid))
            .await
            .unwrap_or(Err(TransportError::Late(limit)))
            .map_err(|error| error.failure(operation))
    }

    async fn exchange<'a>(
        &self,
        mut request: Request<Vec<u8>>,
        operation: BaoOperation<'a>,
        avoid: &[SocketAddr],
    ) -> Result<Response<'a>, TransportError> {
        let most = if matches!(operation, BaoOperation::Read(_)) {
            self.limits.secret
        } else {
            self.limits.other
        };
        let path = match request.uri().path_and_query() {
            Some(path) => path.as_str(),
            None => "/",
        };
        *request.uri_mut() = format!("{}/v1{path}", self.address.prefix)
            .parse()
            .map_err(|_| TransportError::NotHttp)?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.insert(REQUEST, HeaderValue::from_static("true"));
        let (stream, from) = self.connect(avoid).await?;
        let (head, body) = match &self.tls {
            None => over(stream, request, most).await?,
            Some((connector, name)) => {
                let stream = connector
                    .connect(name.clone(), stream)
                    .await
                    .map_err(handshake)?;
                over(stream, request, most).await?
            }
        };
        Ok(Response {
            operation,
            from,
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    /// Connects to the first of the server's addresses that accepts.
    async fn connect(&self, avoid: &[SocketAddr]) -> Result<(TcpStream, Peer), TransportError> {
        let host = self.address.host.as_str();
        let port = self.address.port;
        let unresolved = |error| TransportError::Resolve(host.to_owned(), error);
        let mut last = unresolved(io::ErrorKind::NotFound.into());
        let found = tokio::net::lookup_host((host, port)).await;
        let mut addresses: Vec<_> = found.map_err(unresolved)?.collect();
        // Otherwise in the resolver's order.
        addresses.sort_by_key(|address| avoid.contains(address));
        for &address in &addresses {
            let connected = timeout(self.limits.connect, TcpStream::connect(address)).await;
            match connected.map_err(io::Error::from).flatten() {
                Ok(stream) => {
                    // A request behind a TLS handshake does not wait 40 ms for the handshake's
                    // delayed ACK.
                    stream
                        .set_nodelay(true)
                        .map_err(|error| TransportError::Connect(address, error))?;
                    let elsewhere = addresses
                        .iter()
                        .any(|other| *other != address && !avoid.contains(other));
                    return Ok((stream, Peer { address, elsewhere }));
                }
                Err(error) => last = TransportError::Connect(address, error),
            }
        }
        Err(last)
    }
}

/// Sends a request over a connection and reads the response.
async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Vec<u8>>,
    most: usize,
) -> Result<(Parts, Zeroizing<Vec<u8>>), TransportError> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await?;
    let answer = async {
        let (head, body) = sender
            .send_request(request.map(|body| Full::new(Bytes::from(body))))
            .await?
            .into_parts();
        Ok((head, collect(body, most).await?))
    };
    tokio::pin!(connection, answer);
    // The connection moves the bytes and may end first; the result is that of the response.
    // Dropping both closes the connection.
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            let answer = answer.await;
            if answer.is_err() { ended?; }
            answer
        }
    }
}

/// Reads the whole body into one buffer that is wiped on drop.
async fn collect(mut body: Incoming, limit: usize) -> Result<Zeroizing<Vec<u8>>, TransportError> {
    let lower = body.size_hint().lower();
    let announced = usize::try_from(lower).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(TransportError::TooLarge(limit));
    }
    let mut whole = Zeroizing::new(Vec::with_capacity(announced));
    while let Some(frame) = body.frame().await {
        let Ok(part) = frame?.into_data() else {
            continue;
        };
        if part.len() > limit - whole.len() {
            return Err(TransportError::TooLarge(limit));
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole)
}

/// Explains a failed handshake.
fn handshake(error: io::Error) -> TransportError {
    TransportError::Tls(match error.downcast() {
        Ok(cause) => tls::explain(&cause),
        Err(error) => format!("the TLS handshake was cut: {}", error.kind()),
    })
}
