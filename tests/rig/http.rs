//! A client of a dozen lines for the tests' own requests. HTTP/1.0, so that the answer ends with
//! the connection.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Status and body of one answer; a body that is no JSON is `null`.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Value,
}

/// One request to `address` (`host:port`).
///
/// # Errors
/// When nobody answers there.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    token: &str,
    body: Option<&Value>,
) -> std::io::Result<Answer> {
    let body = body.map(ToString::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "{method} /v1/{path} HTTP/1.0\r\nHost: {address}\r\nX-Vault-Token: {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other("the answer has no status"))?;
    Ok(Answer {
        status,
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    })
}
