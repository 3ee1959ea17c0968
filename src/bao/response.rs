//! Responses of the server: JSON, and the meaning of each status. Invariant: texts for people come
//! from the server's `errors` alone, cleaned and cut; no other text of a body leaves this module.

use crate::lease::source::{Cause, Engine, Failure, Lease, Reply, TokenGrant};
use crate::names::{LeaseId, SecretPath};
use crate::shown::{Shown, ShownCause};
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderMap, Uri};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use zeroize::Zeroizing;

/// The longest quotation of the server's errors, in characters: shorter than a cause, so that the
/// status fits behind the quotation.
const WORDS: usize = 280;

/// The largest parsed response in memory, in bytes: JSON of many small values grows to a multiple
/// of the text.
const PARSED: usize = 4 << 20;

/// The largest number of warnings in a reply.
const WARNINGS: usize = 16;

/// Explains a rejected login.
const REJECTED: &str = ": the secret_id is used up, expired, of another role, \
                        or not known to this node yet; \
                        hint: a new one in its file is tried at once";
/// Explains a login denied for any credentials.
const LOCKED_OUT: &str = ": the role is locked out for 15 min after five refused logins, \
                          or there is no such login method; \
                          hint: `bao auth tune -user-lockout-disable=true approle/`";

/// An operation at the server, for messages and for the meaning of a status.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum BaoOperation<'a> {
    /// A login at the mount.
    #[error("logging in at auth/{0}")]
    Login(&'a str),
    /// The look-up of a path's mount.
    #[error("finding the mount of {0}")]
    FindMount(&'a SecretPath),
    /// The read of a path.
    #[error("reading {0}")]
    Read(&'a SecretPath),
    /// The renewal of a lease.
    #[error("renewing a lease")]
    RenewLease,
    /// The renewal of the token.
    #[error("renewing the token")]
    RenewToken,
    /// The look-up of the token.
    #[error("looking up the token")]
    LookUpToken,
    /// The revocation of the token.
    #[error("revoking the token")]
    RevokeToken,
}

impl BaoOperation<'_> {
    /// A failure of this operation. `why` has no value, but may quote the server (errors, names of
    /// a certificate, the host of a redirect): the quotation is cut and cleaned here.
    pub(super) fn failure(self, cause: Cause, why: &str) -> Failure {
        Failure {
            cause,
            message: format!("{self}: {}", ShownCause::from(why)),
            retry_after: None,
        }
    }

    /// The cause behind a status; `None` is success. `words` are the server's errors.
    fn cause(self, status: u16, words: &str) -> Option<Cause> {
        let lease_gone = || {
            ["lease not found", "invalid lease"]
                .iter()
                .any(|known| words.contains(known))
        };
        match (self, status) {
            (_, 200..=299) => None,
            (Self::RenewLease, 400..) if lease_gone() => Some(Cause::NotFound),
            (_, 300..=399) => Some(Cause::Unreachable),
            (_, 408 | 412 | 472 | 473 | 500..=599) => Some(Cause::Unavailable),
            (_, 429) => Some(Cause::RateLimited),
            // `Response::cause` sets `elsewhere`.
            (Self::Login(_), 401 | 403) => Some(Cause::LockedOut { elsewhere: false }),
            (Self::Login(_), 400..=499) => Some(Cause::Rejected),
            (_, 401 | 403) => Some(Cause::Denied),
            (_, 400..=499) => Some(Cause::NotFound),
            _ => Some(Cause::Malformed),
        }
    }
}

/// The sender of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// The server's address that was connected to.
    pub(super) address: SocketAddr,
    /// Whether the server's name has another address that was not to be avoided.
    pub(super) elsewhere: bool,
}

/// A whole response.
pub(super) struct Response<'a> {
    /// The operation that was asked for.
    pub(super) operation: BaoOperation<'a>,
    /// The sender.
    pub(super) from: Peer,
    /// The status code.
    pub(super) status: u16,
    /// The headers.
    pub(super) headers: HeaderMap,
    /// The body.
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Response<'_> {
    /// The cause of a failure; `None` for success.
    pub(super) fn cause(&self) -> Option<Cause> {
        if self.wants_tls() {
            return Some(Cause::Unreachable);
        }
        let mut cause = self.operation.cause(self.status, &self.words());
        if let Some(Cause::LockedOut { elsewhere }) = &mut cause {
            *elsewhere = self.from.elsewhere;
        }
        cause
    }

    /// Whether a TLS server refuses a plain request (Go's `net/http`): says nothing about the
    /// login.
    fn wants_tls(&self) -> bool {
        self.status == 400
            && self
                .body
                .starts_with(b"Client sent an HTTP request to an HTTPS server")
    }

    /// The failure that the response stands for.
    pub(super) fn failure(&self, cause: Cause) -> Failure {
        Failure {
            retry_after: self.retry_after(),
            ..self.operation.failure(cause, &self.why())
        }
    }

    /// `Retry-After`, if given as a number of seconds.
    fn retry_after(&self) -> Option<Duration> {
        let header = self.headers.get(RETRY_AFTER)?;
        let text = header.to_str().ok()?.trim();
        let seconds = text.parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// Scheme and authority of a redirect, without path and query, which may hold secrets.
    fn location(&self) -> Option<String> {
        let location = self.headers.get(LOCATION)?.to_str().ok()?;
        let uri: Uri = location.parse().ok()?;
        match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(at)) => Some(format!(
                "{scheme}://{}",
                at.as_str().rsplit('@').next().unwrap_or_default()
            )),
            _ => Some("another path of the same address".to_owned()),
        }
    }

    /// A part of the response which must be there: `why` explains the absence.
    pub(super) fn require<T>(&self, part: Option<T>, why: &str) -> Result<T, Failure> {
        let absent = || self.operation.failure(Cause::Malformed, why);
        part.ok_or_else(absent)
    }

    /// Parses the JSON.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let size = self.body.len();
        let parsed = parsed_size(&self.body);
        if parsed > PARSED {
            let why = format!(
                "the answer of {size} bytes has too many values: \
                 in memory it takes {parsed} bytes, more than {PARSED}"
            );
            return Err(self.operation.failure(Cause::Malformed, &why));
        }
        // A message of serde_json may quote a value: only the position is reported.
        serde_json::from_slice(&self.body).map_err(|error| {
            let why = format!(
                "the answer is not what this request gives (line {}, column {})",
                error.line(),
                error.column()
            );
            self.operation.failure(Cause::Malformed, &why)
        })
    }

    /// Parses the `data` of the JSON.
    pub(super) fn data<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.envelope().map(|(data, _)| data)
    }

    /// Parses the token of a login or a renewal.
    pub(super) fn auth(&self) -> Result<TokenInfo, Failure> {
        let envelope: Envelope<IgnoredAny, TokenInfo> = self.parse()?;
        self.require(envelope.auth, "the answer has no token")
    }

    /// Parses the lease of a lease's renewal.
    pub(super) fn lease(&self) -> Result<Lease, Failure> {
        let envelope: Envelope<IgnoredAny> = self.parse()?;
        let lease = envelope.reply(Map::new(), Engine::Other).lease();
        self.require(lease, "the answer has no lease")
    }

    /// The secret in the response.
    pub(super) fn reply(&self, versioned: bool) -> Result<Reply, Failure> {
        if !versioned {
            let (fields, envelope) = self.envelope()?;
            return Ok(envelope.reply(fields, Engine::Other));
        }
        let (VersionedData { data, metadata }, envelope) = self.envelope()?;
        let fields = data.ok_or_else(|| {
            self.operation
                .failure(Cause::NotFound, "this version holds nothing")
        })?;
        let version = self.require(version_of(&metadata), "the answer has no version")?;
        Ok(envelope.reply(fields, Engine::Kv2 { version, metadata }))
    }

    /// The `data` of the response, and the envelope without `data`.
    fn envelope<T: DeserializeOwned>(&self) -> Result<(T, Envelope<T>), Failure> {
        let mut envelope: Envelope<T> = self.parse()?;
        let data = self.require(envelope.data.take(), "the answer has no data")?;
        Ok((data, envelope))
    }

    /// The failure of a deleted or destroyed version: KV version 2 answers 404 with the metadata of
    /// the version.
    pub(super) fn gone(&self) -> Option<Failure> {
        if self.status != 404 {
            return None;
        }
        let VersionedData { metadata, .. } = self.data().ok()?;
        let version = version_of(&metadata)?;
        let destroyed = metadata.get("destroyed");
        let deleted = metadata.get("deletion_time");
        let how = match (destroyed, deleted) {
            (Some(Value::Bool(true)), _) => "was destroyed".to_owned(),
            (_, Some(Value::String(time))) => format!("was deleted at {time}"),
            _ => "was deleted".to_owned(),
        };
        let why = format!("version {version} {how}");
        Some(self.operation.failure(Cause::NotFound, &why))
    }

    /// The server's errors in one line, cut and cleaned; empty without errors.
    fn words(&self) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<String>,
        }
        if self.status < 300 || parsed_size(&self.body) > PARSED {
            return String::new();
        }
        let Ok(Errors { errors }) = serde_json::from_slice(&self.body) else {
            return String::new();
        };
        let words = errors.join("; ");
        let words: Vec<_> = words.split_whitespace().collect();
        let words = words.join(" ");
        Shown::<WORDS>::from(words.strip_prefix("1 error occurred: * ").unwrap_or(&words))
            .to_string()
    }

    fn why(&self) -> String {
        let status = self.status;
        let words = self.words();
        match (self.operation, status) {
            (_, 300..=399) => {
                let location = self.location();
                let to = location
                    .as_deref()
                    .unwrap_or("an address that cannot be read");
                format!(
                    "the server redirects to {to} ({status}), which is not followed; \
                     hint: set `address` to the active server itself"
                )
            }
            (_, 400) if self.wants_tls() => {
                "the server speaks TLS; hint: write its address with `https://`".to_owned()
            }
            (_, 503) if words.contains("sealed") => format!("the server is sealed ({status})"),
            (_, 404) if words.is_empty() => "nothing is there (404)".to_owned(),
            _ if words.is_empty() => format!("the server answered {status}"),
            (BaoOperation::Login(_), 400) => format!("{words} (400){REJECTED}"),
            (BaoOperation::Login(_), 403) => format!("{words} (403){LOCKED_OUT}"),
            _ => format!("{words} ({status})"),
        }
    }
}

/// The number of a version of KV version 2.
fn version_of(metadata: &Map<String, Value>) -> Option<u64> {
    metadata.get("version")?.as_u64()
}

/// An upper bound of the memory of parsed JSON, in bytes: a comma stands for a value (32 bytes), a
/// key and a number or text (two allocations), and a share of a map's node; a brace stands for the
/// node of a map with one entry. `serde_json` bounds the depth (128).
fn parsed_size(text: &[u8]) -> usize {
    let mut size = text.len();
    let mut quoted = false;
    let mut escaped = false;
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' if !quoted => size += 200,
            b'{' if !quoted => size += 800,
            _ => {}
        }
    }
    size
}

/// The envelope of every response. `A` is the form of a token.
#[derive(Deserialize)]
struct Envelope<D, A = Map<String, Value>> {
    lease_id: Option<String>,
    lease_duration: Option<u64>,
    renewable: Option<bool>,
    data: Option<D>,
    auth: Option<A>,
    warnings: Option<Vec<ShownCause>>,
}

impl<D> Envelope<D> {
    /// The reply with `fields`, and with all else from the envelope.
    fn reply(self, fields: Map<String, Value>, engine: Engine) -> Reply {
        let mut warnings = self.warnings.unwrap_or_default();
        warnings.truncate(WARNINGS);
        Reply {
            fields,
            engine,
            lease_id: LeaseId::new(&self.lease_id.unwrap_or_default()),
            ttl: Duration::from_secs(self.lease_duration.unwrap_or_default()),
            renewable: self.renewable.unwrap_or_default(),
            auth: self.auth,
            warnings,
        }
    }
}

/// A token: the `auth` of a login or a renewal, or the `data` of a lookup. `policies` may be null or
/// absent.
#[derive(Deserialize)]
pub(super) struct TokenInfo {
    /// The text of the token; empty in a lookup.
    #[serde(default)]
    pub(super) client_token: String,
    /// In seconds; 0 means a token without an end.
    #[serde(alias = "lease_duration")]
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl TokenInfo {
    pub(super) fn grant(&self) -> TokenGrant {
        let ttl = match self.ttl {
            0 => None,
            ttl => Some(Duration::from_secs(ttl)),
        };
        TokenGrant {
            ttl,
            renewable: self.renewable,
        }
    }
}

/// A mount in the response of `sys/internal/ui/mounts`.
#[derive(Deserialize)]
pub(super) struct MountInfo {
    /// The path of the mount.
    pub(super) path: String,
    options: Option<BTreeMap<String, String>>,
    r#type: String,
}

impl MountInfo {
    /// Whether the mount is KV version 2.
    pub(super) fn versioned(&self) -> bool {
        let Some(options) = &self.options else {
            return false;
        };
        matches!(self.r#type.as_str(), "kv" | "generic")
            && options.get("version").is_some_and(|version| version == "2")
    }
}

/// The content of `data` in a response of KV version 2.
#[derive(Deserialize)]
struct VersionedData {
    data: Option<Map<String, Value>>,
    metadata: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer<'a>(operation: BaoOperation<'a>, status: u16, body: &str) -> Response<'a> {
        let from = Peer {
            address: ([127, 0, 0, 1], 8200).into(),
            elsewhere: false,
        };
        Response {
            operation,
            from,
            status,
            headers: HeaderMap::new(),
            body: Zeroizing::new(body.as_bytes().to_vec()),
        }
    }

    #[test]
    fn what_a_status_means() {
        let path = SecretPath::new("secret/app").expect("a path");
        let (login, read, renew) = (
            BaoOperation::Login("approle"),
            BaoOperation::Read(&path),
            BaoOperation::RenewLease,
        );
        for (operation, status, words, want) in [
            (login, 200, "", None),
            (
                login,
                400,
                "invalid role or secret ID",
                Some(Cause::Rejected),
            ),
            (
                login,
                403,
                "permission denied",
                Some(Cause::LockedOut { elsewhere: false }),
            ),
            (login, 404, "", Some(Cause::Rejected)),
            (login, 429, "", Some(Cause::RateLimited)),
            (login, 503, "Vault is sealed", Some(Cause::Unavailable)),
            (read, 204, "", None),
            (read, 307, "", Some(Cause::Unreachable)),
            (read, 400, "unknown role: app", Some(Cause::NotFound)),
            (read, 403, "permission denied", Some(Cause::Denied)),
            (read, 404, "", Some(Cause::NotFound)),
            (read, 405, "unsupported operation", Some(Cause::NotFound)),
            (read, 412, "", Some(Cause::Unavailable)),
            (read, 429, "", Some(Cause::RateLimited)),
            (read, 472, "", Some(Cause::Unavailable)),
            (read, 473, "", Some(Cause::Unavailable)),
            (
                read,
                500,
                "invalid lease of another kind",
                Some(Cause::Unavailable),
            ),
            (read, 502, "", Some(Cause::Unavailable)),
            (read, 503, "", Some(Cause::Unavailable)),
            (read, 600, "", Some(Cause::Malformed)),
            (renew, 400, "lease not found", Some(Cause::NotFound)),
            (renew, 500, "failed: invalid lease", Some(Cause::NotFound)),
            (
                renew,
                500,
                "failed to renew entry",
                Some(Cause::Unavailable),
            ),
            (renew, 403, "permission denied", Some(Cause::Denied)),
            (
                BaoOperation::RevokeToken,
                403,
                "permission denied",
                Some(Cause::Denied),
            ),
        ] {
            assert_eq!(operation.cause(status, words), want, "{operation} {status}");
        }
    }

    #[test]
    fn words_are_the_servers_errors_alone() {
        let long = format!(r#"{{"errors":["{}"]}}"#, "x".repeat(5000));
        for (body, want) in [
            (
                r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#,
                "permission denied (403)",
            ),
            (
                r#"{"errors":["a\u001b[31m","b\u0000"]}"#,
                "a\u{fffd}[31m; b\u{fffd} (403)",
            ),
            (r#"{"errors":[]}"#, "the server answered 403"),
            (
                r#"{"errors":null,"data":{"password":"hunter2"}}"#,
                "the server answered 403",
            ),
            (
                r#"{"errors":{"password":"hunter2"}}"#,
                "the server answered 403",
            ),
            ("<html>hunter2</html>", "the server answered 403"),
            (&long, &format!("{}… (403)", "x".repeat(279))),
        ] {
            let failure = answer(BaoOperation::RenewToken, 403, body).failure(Cause::Denied);
            assert_eq!(failure.message, format!("renewing the token: {want}"));
        }
    }

    #[test]
    fn an_answer_of_many_small_values_is_refused_before_it_is_parsed() {
        type Field = fn(usize) -> String;
        let fields = |one: Field, count| {
            format!(
                r#"{{"data":{{{}}}}}"#,
                (0..count).map(one).collect::<Vec<_>>().join(",")
            )
        };
        // (how a field is written, how many are taken, how many are not)
        let table: [(Field, usize, usize); 3] = [
            (|n| format!(r#""{n}":1"#), 19_000, 21_000),
            (|n| format!(r#""{n}":{{"":1}}"#), 4_000, 5_000),
            (|n| format!(r#""{n}":[[[[]]]]"#), 4_000, 5_000),
        ];
        for (n, (one, taken, refused)) in table.into_iter().enumerate() {
            for (count, cause) in [(taken, None), (refused, Some(Cause::Malformed))] {
                let reply = answer(BaoOperation::RenewToken, 200, &fields(one, count)).reply(false);
                let len = reply.as_ref().ok().map(|reply| reply.fields.len());
                assert_eq!(
                    (len, reply.as_ref().err().map(|failure| failure.cause)),
                    (cause.is_none().then_some(count), cause),
                    "row {n}"
                );
                let why = reply
                    .err()
                    .map(|failure| failure.message)
                    .unwrap_or_default();
                assert!(
                    cause.is_none() || (why.contains("too many values") && why.contains("4194304")),
                    "{why}"
                );
            }
        }
        // Text is what it is, whatever is in it.
        let text = r#"{"a":",[{\\\",[{"}"#;
        assert_eq!(parsed_size(text.as_bytes()), text.len() + 800);
        let deep = format!(
            r#"{{"data":{{"a":{}{}}}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        assert_eq!(
            answer(BaoOperation::RenewToken, 200, &deep)
                .reply(false)
                .expect_err("too deep")
                .cause,
            Cause::Malformed
        );
        let errors = format!(r#"{{"errors":[{}""]}}"#, "\"\",".repeat(30_000));
        assert_eq!(
            answer(BaoOperation::RenewToken, 403, &errors)
                .failure(Cause::Denied)
                .message,
            "renewing the token: the server answered 403"
        );
    }

    #[test]
    fn a_reply_keeps_the_envelope() {
        let operation = BaoOperation::RenewToken;
        let long = "x".repeat(400);
        let body = serde_json::json!({
            "lease_id": "", "lease_duration": 2_764_800, "renewable": false,
            "data": { "a": "b" },
            "auth": { "client_token": "s.hunter2", "lease_duration": 60 },
            "warnings": vec![&long; 20],
        });
        let reply = answer(operation, 200, &body.to_string()).reply(false);
        let reply = reply.expect("a reply");
        // KV v1 sends a duration, but no lease.
        assert_eq!(reply.lease(), None);
        assert_eq!(reply.ttl, Duration::from_hours(768));
        let auth = reply.auth.as_ref().expect("a token");
        assert_eq!(auth["client_token"], "s.hunter2");
        assert_eq!(reply.warnings.len(), WARNINGS);
        assert_eq!(reply.warnings[0].chars().count(), 300);
        let shown = format!("{reply:?}");
        assert!(
            shown.contains("has_auth: true") && !shown.contains("hunter2"),
            "{shown}"
        );

        let body = r#"{"lease_id":"db/1","lease_duration":60,"renewable":true,"warnings":null,
            "auth":null,"data":{"data":{"a":"b"},"metadata":{"version":3}}}"#;
        let reply = answer(operation, 200, body).reply(true).expect("a reply");
        let lease = reply.lease().expect("a lease");
        assert_eq!(
            (lease.id.as_str(), lease.ttl),
            ("db/1", Duration::from_mins(1))
        );
        assert!(lease.renewable && reply.auth.is_none() && reply.warnings.is_empty());
        let body = r#"{"data":{"a":"b"}}"#;
        let reply = answer(operation, 200, body).reply(false).expect("a reply");
        assert_eq!((reply.lease(), reply.ttl), (None, Duration::ZERO));
    }

    #[test]
    fn malformed_json_is_not_quoted() {
        for body in [
            r#"{"data":"hunter2"}"#,
            r#"{"data":{"ttl":"hunter2"}}"#,
            r#"{"data":{"hunter2"#,
            "hunter2",
        ] {
            let failure = answer(BaoOperation::LookUpToken, 200, body)
                .data::<TokenInfo>()
                .err()
                .expect("a failure");
            assert_eq!(failure.cause, Cause::Malformed);
            assert!(!format!("{failure:?}").contains("hunter2"), "{failure}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics_or_passes_a_control_character(status in 200_u16..600, body in ".{0,200}") {
            let path = SecretPath::new("secret/app").expect("a path");
            let response = answer(BaoOperation::Read(&path), status, &body);
            if let Some(cause) = response.cause() {
                let failure = response.gone().unwrap_or_else(|| response.failure(cause));
                proptest::prop_assert!(!failure.message.chars().any(char::is_control));
            }
            let _ = response.reply(true);
            let _ = response.reply(false);
        }
    }
}
