//! Asking the application itself: a connection, or one HTTP request. Invariant: it takes no longer
//! than `PATIENCE`, follows no redirect and reads no body.

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

/// How long the application may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    authority: Authority,
    port: u16,
    /// What to GET; nothing: a connection is enough.
    path: Option<PathAndQuery>,
}

impl Probe {
    /// Whether `HOST:PORT` accepts a connection.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn tcp(text: &str) -> Result<Self, String> {
        let authority = text.parse().ok().filter(is_plain);
        let known =
            authority.and_then(|authority: Authority| Some((authority.port_u16()?, authority)));
        let (port, authority) = known.ok_or("--tcp wants HOST:PORT")?;
        Ok(Self {
            authority,
            port,
            path: None,
        })
    }

    /// Whether a GET of `http://HOST[:PORT]/PATH` is answered with a success or a redirect.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn http(text: &str) -> Result<Self, String> {
        let uri = text.parse::<Uri>().unwrap_or_default().into_parts();
        if uri.scheme == Some(Scheme::HTTPS) {
            return Err(
                "--http speaks no TLS; `--tcp HOST:PORT` asks whether a connection is accepted"
                    .into(),
            );
        }
        let authority = uri
            .authority
            .filter(|authority| uri.scheme == Some(Scheme::HTTP) && is_plain(authority));
        let authority = authority.ok_or("--http wants http://HOST[:PORT]/PATH")?;
        let path = uri.path_and_query.or(Some(PathAndQuery::from_static("/")));
        Ok(Self {
            port: authority.port_u16().unwrap_or(80),
            authority,
            path,
        })
    }

    /// Asks.
    ///
    /// # Errors
    /// Why the application counts as not well.
    pub fn run(&self) -> Result<(), String> {
        let failed = |cause| Err(format!("probe of {}: {cause}", self.authority));
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return failed(error.to_string()),
        };
        let answer = runtime.block_on(async { timeout(PATIENCE, self.ask()).await });
        // A thread that resolves the name is not waited for.
        runtime.shutdown_background();
        answer
            .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
            .or_else(failed)
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

/// Whether it is a host and nothing secret.
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
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(cut)?;
    // It moves the bytes, and ends with the runtime; what goes wrong there the request tells, too.
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
