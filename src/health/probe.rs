//! Probes the application with a connection or one HTTP request. Invariant: a probe ends within
//! `PATIENCE`, follows no redirect and reads no body.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The time limit for an answer of the application.
const PATIENCE: Duration = Duration::from_secs(2);

/// A probe of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    authority: Authority,
    port: u16,
    /// The path of a GET request; `None` for a connection only.
    path: Option<PathAndQuery>,
}

impl Probe {
    /// A probe that connects to `HOST:PORT`.
    ///
    /// # Errors
    /// The expected form of the text.
    pub fn tcp(text: &str) -> Result<Self, String> {
        if let Ok(authority) = text.parse::<Authority>()
            && is_plain(&authority)
            && let Some(port) = authority.port_u16()
        {
            return Ok(Self {
                authority,
                port,
                path: None,
            });
        }
        Err("invalid value of --tcp: expected HOST:PORT".into())
    }

    /// A probe that expects a success or a redirect for a GET of `http://HOST[:PORT]/PATH`.
    ///
    /// # Errors
    /// The expected form of the text.
    pub fn http(text: &str) -> Result<Self, String> {
        let uri = text.parse::<Uri>().unwrap_or_default().into_parts();
        if uri.scheme == Some(Scheme::HTTPS) {
            return Err(
                "--http does not support TLS; `--tcp HOST:PORT` checks that a connection is accepted"
                    .into(),
            );
        }
        let authority = uri
            .authority
            .filter(|authority| uri.scheme == Some(Scheme::HTTP) && is_plain(authority));
        let authority =
            authority.ok_or("invalid value of --http: expected http://HOST[:PORT]/PATH")?;
        let path = uri.path_and_query.or(Some(PathAndQuery::from_static("/")));
        Ok(Self {
            port: authority.port_u16().unwrap_or(80),
            authority,
            path,
        })
    }

    /// Runs the probe.
    ///
    /// # Errors
    /// The reason why the application counts as unhealthy.
    pub fn run(&self) -> Result<(), String> {
        self.answer()
            .map_err(|cause| format!("probe of {}: {cause}", self.authority))
    }

    fn answer(&self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let answer = runtime.block_on(async { timeout(PATIENCE, self.ask()).await });
        // The runtime does not wait for a thread that still resolves the name.
        runtime.shutdown_background();
        answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }

    async fn ask(&self) -> Result<(), String> {
        let host = self.authority.host().trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.port))
            .await
            .map_err(|error| format!("no connection: {error}"))?;
        let Some(path) = &self.path else {
            return Ok(());
        };
        let status = get(stream, &self.authority, path).await?;
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(format!("answered {status}"))
        }
    }
}

/// Whether `authority` has a host and no user or password.
fn is_plain(authority: &Authority) -> bool {
    !authority.host().is_empty() && !authority.as_str().contains('@')
}

/// The status of the answer to a GET.
async fn get(
    stream: TcpStream,
    host: &Authority,
    path: &PathAndQuery,
) -> Result<StatusCode, String> {
    let cut = |error: hyper::Error| format!("no HTTP answer: {error}");
    let request = Request::get(path.as_str())
        .header(HOST, host.as_str())
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(cut)?;
    // The connection task ends with the runtime; the request returns the errors of the connection.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await.map_err(cut)?.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_probes() {
        let probe = |authority: &str, port, path: Option<&'static str>| {
            Ok(Probe {
                authority: authority.parse().expect("an authority"),
                port,
                path: path.map(PathAndQuery::from_static),
            })
        };
        assert_eq!(Probe::tcp("localhost:80"), probe("localhost:80", 80, None));
        assert_eq!(Probe::tcp("[::1]:5432"), probe("[::1]:5432", 5432, None));
        assert_eq!(
            Probe::http("http://[::1]:8080/a?b=c#d"),
            probe("[::1]:8080", 8080, Some("/a?b=c"))
        );
        assert_eq!(
            Probe::http("http://app")
                .map(|probe| (probe.port, probe.path.map(|path| path.to_string()))),
            Ok((80, Some("/".into())))
        );
        for text in [
            "",
            "localhost",
            ":80",
            "localhost:x",
            "localhost:70000",
            "user:geheim@localhost:80",
            "http://localhost:80",
        ] {
            let error = Probe::tcp(text).expect_err(text);
            assert!(
                error.contains("HOST:PORT") && !error.contains("geheim"),
                "{text}: {error}"
            );
        }
        for text in [
            "",
            "localhost:80",
            "/health",
            "ftp://localhost/",
            "http://",
            "http://user:geheim@localhost/",
            "http:///x",
        ] {
            let error = Probe::http(text).expect_err(text);
            assert!(
                error.contains("http://HOST") && !error.contains("geheim"),
                "{text}: {error}"
            );
        }
        assert!(
            Probe::http("https://localhost/")
                .expect_err("TLS")
                .contains("--tcp")
        );
    }
}
