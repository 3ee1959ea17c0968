//! The stand-in's HTTP, and its faults.

use super::answer::Answer;
use super::state::State;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// One kind of bad day.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is closed without an answer; nothing is done.
    Close,
    /// The request is taken and never answered; nothing is done.
    Silence,
    /// It is done, but the answer is cut in the middle of its body.
    Cut,
    /// Nothing is done; this status, with `Retry-After` in seconds if any.
    Status(u16, Option<u32>),
    /// Nothing is done; a redirect to this address.
    Redirect(u16, String),
    /// Nothing is done; a body of this many bytes.
    Oversized(usize),
    /// It is done, but the answer is this text.
    Text(String),
}

/// Serves until told to stop.
pub(super) fn run(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<Mutex<State>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let accept = async {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (tls, state) = (tls.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, state).await;
                            }
                        }
                    }
                });
            }
        };
        tokio::select! {
            () = accept => {}
            _ = stopped => {}
        }
    });
}

/// The server's side of TLS.
pub(super) fn tls(certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> TlsAcceptor {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("the versions of ring")
    .with_no_client_auth()
    .with_single_cert(vec![certificate.der().clone()], key)
    .expect("a certificate and its key");
    TlsAcceptor::from(Arc::new(config))
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>) {
    let service = service_fn(|request| respond(request, &state));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    request: http::Request<Incoming>,
    state: &Mutex<State>,
) -> io::Result<http::Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let (answer, fault) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut state, &head, &body)
    };
    match fault {
        Some(Fault::Close) => Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Cut) => Ok(response(answer, true)),
        Some(_) | None => Ok(response(answer, false)),
    }
}

/// Notes the request, and answers it unless a fault forbids.
fn act(state: &mut State, head: &http::request::Parts, body: &[u8]) -> (Answer, Option<Fault>) {
    let text = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let (token, namespace) = (text("x-vault-token"), text("x-vault-namespace"));
    let shown = head.uri.path_and_query().map_or("", |path| path.as_str());
    let Some(shown) = shown.strip_prefix(&format!("{}/v1/", state.prefix)) else {
        return (Answer::error(404, ""), None);
    };
    state.note(head.method.as_str(), shown, namespace, token.clone());
    let fault = state.fault(shown);
    let mut answer = || {
        let path = decode(shown.split('?').next().unwrap_or_default());
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        state.answer(
            head.method.as_str(),
            &path,
            head.uri.query().unwrap_or_default(),
            token.as_deref(),
            &body,
        )
    };
    let answer = match &fault {
        None | Some(Fault::Cut) => answer(),
        Some(Fault::Text(text)) => {
            let done = answer();
            Answer {
                body: text.clone().into_bytes(),
                ..done
            }
        }
        Some(Fault::Close | Fault::Silence) => Answer::empty(),
        Some(Fault::Oversized(size)) => Answer::raw(200, vec![b' '; *size]),
        Some(Fault::Status(status, wait)) => header(
            Answer::error(*status, ""),
            RETRY_AFTER,
            wait.map(|seconds| seconds.to_string()),
        ),
        Some(Fault::Redirect(status, to)) => {
            header(Answer::raw(*status, Vec::new()), LOCATION, Some(to.clone()))
        }
    };
    (answer, fault)
}

fn header(mut answer: Answer, name: http::HeaderName, value: Option<String>) -> Answer {
    if let Some(value) = value {
        answer
            .headers
            .insert(name, HeaderValue::try_from(value).expect("a header"));
    }
    answer
}

fn response(answer: Answer, cut: bool) -> http::Response<Body> {
    let mut response = http::Response::new(Body {
        rest: Some(Bytes::from(answer.body)),
        cut,
    });
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body that is sent whole, or half and then cut.
struct Body {
    rest: Option<Bytes>,
    cut: bool,
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(match (self.rest.take(), self.cut) {
            (Some(whole), false) => Some(Ok(Frame::data(whole))),
            (Some(whole), true) => Some(Ok(Frame::data(whole.slice(..whole.len() / 2)))),
            (None, true) => Some(Err(io::ErrorKind::ConnectionReset.into())),
            (None, false) => None,
        })
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.rest.as_ref().map_or(0, |rest| rest.len() as u64))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.as_ref().is_none_or(Bytes::is_empty) && !self.cut
    }
}

/// Percent-decoding of a path.
fn decode(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = code.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
