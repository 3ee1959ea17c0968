//! The interface between the schedule and a server, implemented by `bao` and scripted by tests.
//! Invariant: no wire format is known here.

use crate::exit::Exit;
use crate::names::LeaseId;
use crate::shown::ShownCause;
use crate::template::Read;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::time::Duration;

/// The result of one read. The allocator wipes the heap of a dropped reply. Serialised for the
/// checkpoint alone.
#[derive(Default, Serialize, Deserialize)]
pub struct Reply {
    /// The secret: of KV v2 the inner `data`, else the whole `data`. Numbers keep their digits
    /// (`arbitrary_precision`).
    pub fields: Map<String, Value>,
    /// The engine that answered.
    pub engine: Engine,
    /// The id of the lease, if the engine grants leases.
    pub lease_id: Option<LeaseId>,
    /// `lease_duration`: the life of the lease. Some engines send a duration without a lease.
    pub ttl: Duration,
    /// Whether the server offers to renew the lease.
    pub renewable: bool,
    /// The token made by the read, if any, with all fields as sent.
    pub auth: Option<Map<String, Value>>,
    /// The warnings of the server: the first ones, cut.
    pub warnings: Vec<ShownCause>,
}

impl Reply {
    /// The lease of the value.
    pub fn lease(&self) -> Option<Lease> {
        Some(Lease {
            id: self.lease_id.clone()?,
            ttl: self.ttl,
            renewable: self.renewable,
        })
    }

    /// The approximate size in memory, in bytes, rounded up.
    pub fn weight(&self) -> usize {
        let mut weight = weight_of_map(&self.fields);
        if let Engine::Kv2 { metadata, .. } = &self.engine {
            weight += weight_of_map(metadata);
        }
        if let Some(auth) = &self.auth {
            weight += weight_of_map(auth);
        }
        for warning in &self.warnings {
            weight += 64 + warning.len();
        }
        weight
    }
}

/// Each value takes 32 bytes in the container. The parser bounded the depth.
fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 32,
        Value::Number(number) => 64 + number.as_str().len(),
        Value::String(text) => 64 + text.len(),
        Value::Array(values) => {
            let inner: usize = values.iter().map(weight).sum();
            64 + inner
        }
        Value::Object(fields) => weight_of_map(fields),
    }
}

/// A node of the map has room for eleven entries of 56 bytes and is at least half full, unless the
/// map has a single node.
fn weight_of_map(fields: &Map<String, Value>) -> usize {
    let mut sum = 700;
    for (key, value) in fields {
        sum += 136 + key.len() + weight(value);
    }
    sum
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("engine", &self.engine)
            .field("lease_id", &self.lease_id)
            .field("ttl", &self.ttl)
            .field("renewable", &self.renewable)
            .field("has_auth", &self.auth.is_some())
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

/// Which engine a path belongs to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Engine {
    /// KV v2, with the version of the value; a template sees `metadata` as `.Data.metadata`.
    Kv2 {
        /// `metadata.version`.
        version: u64,
        /// The whole `metadata` object.
        metadata: Map<String, Value>,
    },
    /// Any other: database, KV v1, PKI ...
    #[default]
    Other,
}

/// A lease as the server granted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lease id.
    pub id: LeaseId,
    /// The life, counted from the grant.
    pub ttl: Duration,
    /// Whether the server offers a renewal.
    pub renewable: bool,
}

/// The life that the server granted to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenGrant {
    /// The life, counted from the grant; `None` for a token without an end (a root token, a
    /// service token without ttl).
    pub ttl: Option<Duration>,
    /// Whether the token can be renewed.
    pub renewable: bool,
}

/// The owner of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// A login of the agent made the token: the agent revokes the replaced token.
    Ours,
    /// The token was given to the agent, and others may use it: the agent never revokes the token.
    Foreign,
}

/// A failed request. The message names the request and the cause in lower case, never a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The class of the failure, for the schedule.
    pub cause: Cause,
    /// For people: the request and the response.
    pub message: String,
    /// The server's `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// Classes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// No connection, no response in time, an incomplete response, TLS refused, a redirect.
    Unreachable,
    /// The server cannot serve now: sealed, standby, 5xx.
    Unavailable,
    /// 429.
    RateLimited,
    /// 403.
    Denied,
    /// 404, a deleted version, or another 4xx about the path.
    NotFound,
    /// The credential files cannot be used: nothing was sent.
    Login,
    /// The login was refused for its credentials (400 or another 4xx at the login's path).
    Rejected,
    /// The login was refused for any credentials (401 or 403 at the login's path): the role is
    /// locked out.
    LockedOut {
        /// Whether the server has another address, which refused no login since the last successful
        /// login.
        elsewhere: bool,
    },
    /// The response does not have the form of the endpoint.
    Malformed,
}

impl Cause {
    /// The exit code if a first secret is missing for the cause.
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

/// A server. Every call is one bounded exchange, which ends within the client's timeouts and is
/// never repeated inside.
#[expect(
    async_fn_in_trait,
    reason = "the only executor is fetch's single thread: no Send is asked for"
)]
pub trait Source {
    /// The token of a login. Dropping the value does not revoke the token.
    type Token;
    /// The exported credentials.
    type Kept: Serialize + DeserializeOwned;

    /// Logs in with the credentials now in the files.
    ///
    /// # Errors
    /// `Cause::Login` when no credentials can be read, `Rejected` or `LockedOut` when refused, else
    /// as any request.
    async fn login(&self) -> Result<(Self::Token, TokenGrant), Failure>;

    /// Whether the credential files hold other credentials than the last login used. New
    /// credentials count when two consecutive calls see the same.
    fn credentials_changed(&self) -> bool;

    /// The token's bytes, for a sink, and for a successor.
    fn expose<'a>(&self, token: &'a Self::Token) -> &'a [u8];

    /// Makes a token of the exposed bytes.
    fn token(&self, bytes: &[u8]) -> Option<Self::Token>;

    /// The part of the checkpoint besides the tokens: credentials and mounts, so that a successor
    /// need not ask for them.
    fn export_credentials(&self) -> Self::Kept;

    /// Takes the credentials from the checkpoint of a predecessor.
    fn import_credentials(&self, kept: Self::Kept);

    /// The exported credentials are checkpointed: the credential file may be removed now.
    fn commit_credentials(&self);

    /// Sends `read` under `token`.
    ///
    /// # Errors
    /// As classified by `Cause`.
    async fn read(&self, token: &Self::Token, read: &Read) -> Result<Reply, Failure>;

    /// Renews a lease (`sys/leases/renew`) for `increment`, as far as the server grants that.
    ///
    /// # Errors
    /// As classified by `Cause`; a lease that is gone is `NotFound`.
    async fn renew(
        &self,
        token: &Self::Token,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<Lease, Failure>;

    /// Renews the token (`auth/token/renew-self`).
    ///
    /// # Errors
    /// As classified by `Cause`.
    async fn renew_token(&self, token: &Self::Token) -> Result<TokenGrant, Failure>;

    /// Looks up the token after a 403 (`auth/token/lookup-self`).
    ///
    /// # Errors
    /// `Denied` when the token is dead or its policy denies the lookup.
    async fn look_up_token(&self, token: &Self::Token) -> Result<TokenGrant, Failure>;

    /// Revokes the token together with the leases of the token (`auth/token/revoke-self`), unless
    /// the token is foreign. Returns the ownership.
    ///
    /// # Errors
    /// As classified by `Cause`.
    async fn revoke_token(&self, token: &Self::Token) -> Result<Ownership, Failure>;
}
