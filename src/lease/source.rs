//! What the schedule needs from a server. Invariant: nothing here knows a wire format; `bao`
//! implements it, tests script it.

use crate::config::plan::Query;
use crate::exit::Exit;
use crate::names::LeaseId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::time::Duration;

/// What one read gave. Its heap is wiped by the allocator when it is dropped; written down for a
/// successor alone.
#[derive(Serialize, Deserialize)]
pub struct Reply {
    /// The secret: of KV v2 the inner `data`, else the whole `data`. Numbers keep their digits
    /// (`arbitrary_precision`).
    pub fields: Map<String, Value>,
    /// Which engine answered.
    pub engine: Engine,
    /// The lease, where there is one.
    pub lease: Option<Lease>,
}

impl Reply {
    /// About what it takes in memory, in bytes: rather more than less.
    #[must_use]
    pub fn weight(&self) -> usize {
        let metadata = match &self.engine {
            Engine::Kv2 { metadata, .. } => weight_of_map(metadata),
            Engine::Other => 0,
        };
        weight_of_map(&self.fields) + metadata
    }
}

/// A value has 32 bytes of its own, in whatever it is. The depth is bounded where it was parsed.
fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 32,
        Value::Number(number) => 64 + number.as_str().len(),
        Value::String(text) => 64 + text.len(),
        Value::Array(values) => 64 + values.iter().map(weight).sum::<usize>(),
        Value::Object(fields) => weight_of_map(fields),
    }
}

/// A node of the map has room for eleven entries of 56 bytes and is half full at least, unless it
/// is the only one.
fn weight_of_map(fields: &Map<String, Value>) -> usize {
    700 + fields
        .iter()
        .map(|(key, value)| 136 + key.len() + weight(value))
        .sum::<usize>()
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("engine", &self.engine)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// Which engine a path belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Engine {
    /// KV v2 with the version that was read; `metadata` is what a template sees as
    /// `.Data.metadata`.
    Kv2 {
        /// `metadata.version`.
        version: u64,
        /// The whole `metadata` object.
        metadata: Map<String, Value>,
    },
    /// Any other: database, KV v1, PKI ...
    Other,
}

/// A lease as the server granted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it lives from the grant on.
    pub ttl: Duration,
    /// Whether the server offers to renew it.
    pub renewable: bool,
}

/// What the server granted with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenGrant {
    /// How long it lives from the grant on; `None`: it does not end (a root token, a service token
    /// without ttl).
    pub ttl: Option<Duration>,
    /// Whether it can be renewed.
    pub renewable: bool,
}

/// Why a request failed. The message names the request and the cause in lower case, never a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class, on which the schedule decides.
    pub cause: Cause,
    /// For people: what was asked and what came back.
    pub message: String,
    /// The server's own word on when to ask again.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Classes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// No connection, no answer in time, an answer cut short, TLS refused, a redirect.
    Unreachable,
    /// It answered, but cannot serve now: sealed, standby, 5xx.
    Unavailable,
    /// 429.
    RateLimited,
    /// 403.
    Denied,
    /// 404, a deleted version, or another 4xx about the path.
    NotFound,
    /// The login's files cannot be used: nothing was sent.
    Login,
    /// The login was refused for its credentials (400 or another 4xx at the login's own path).
    Rejected,
    /// The login was refused whatever its credentials are (401 or 403 at the login's own path): the
    /// role is locked out.
    LockedOut {
        /// Whether the server has another address, which did not refuse a login since the last one
        /// that worked.
        elsewhere: bool,
    },
    /// The answer is not what this endpoint gives.
    Malformed,
}

impl Cause {
    /// The exit code when this is why a first secret is missing.
    #[must_use]
    pub fn exit(self) -> Exit {
        match self {
            Self::Unreachable | Self::Unavailable | Self::RateLimited | Self::Malformed => {
                Exit::Unavailable
            }
            Self::Denied | Self::NotFound => Exit::NoSecret,
            Self::Login | Self::Rejected | Self::LockedOut { .. } => Exit::Login,
        }
    }
}

/// A server. Every call is one bounded exchange: it ends within the client's timeouts and is never
/// repeated inside.
#[expect(
    async_fn_in_trait,
    reason = "the only executor is fetch's single thread: no Send is asked for"
)]
pub trait Source {
    /// A login's token; dropping it does not revoke it.
    type Token;
    /// What is kept for a successor.
    type Kept: Serialize + DeserializeOwned;

    /// Logs in with what the credential files hold now.
    ///
    /// # Errors
    /// `Cause::Login` when no credentials can be read, `Rejected` or `LockedOut` when refused, else
    /// as any request.
    async fn login(&self) -> Result<(Self::Token, TokenGrant), Failure>;

    /// Whether the credential files hold something else than the last login showed. What is being
    /// written counts only when two calls in a row see the same.
    fn credentials_changed(&self) -> bool;

    /// The token's bytes, for a sink, and for a successor.
    fn expose<'a>(&self, token: &'a Self::Token) -> &'a [u8];

    /// The token that has these bytes.
    fn token(&self, bytes: &[u8]) -> Option<Self::Token>;

    /// What a successor of this process must know beside the tokens, so that it need not ask again:
    /// credentials, mounts.
    fn export_credentials(&self) -> Self::Kept;

    /// Takes what a predecessor kept.
    fn import_credentials(&self, kept: Self::Kept);

    /// What `keep` gave is safe: what was only needed for want of it may be removed.
    fn commit_credentials(&self);

    /// Reads `query` under `token`.
    ///
    /// # Errors
    /// As classified by `Cause`.
    async fn read(&self, token: &Self::Token, query: &Query) -> Result<Reply, Failure>;

    /// Renews a lease (`sys/leases/renew`); `increment` is the wish.
    ///
    /// # Errors
    /// As classified by `Cause`; a lease that is gone is `NotFound`.
    async fn renew(
        &self,
        token: &Self::Token,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<Lease, Failure>;

    /// Renews the token itself (`auth/token/renew-self`).
    ///
    /// # Errors
    /// As classified by `Cause`.
    async fn renew_token(&self, token: &Self::Token) -> Result<TokenGrant, Failure>;

    /// Whether the token still lives (`auth/token/lookup-self`): the one lookup that a 403 leads
    /// to.
    ///
    /// # Errors
    /// `Denied` when it is dead or may not look itself up.
    async fn look_up_token(&self, token: &Self::Token) -> Result<TokenGrant, Failure>;

    /// Revokes the token and with it its leases (`auth/token/revoke-self`).
    ///
    /// # Errors
    /// As classified by `Cause`.
    async fn revoke_token(&self, token: &Self::Token) -> Result<(), Failure>;
}
