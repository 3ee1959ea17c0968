//! What the schedule is told, what it asks for, and what can be read of it.

use super::source::{Failure, Lease, TokenGrant};
use crate::clock::Moment;
use crate::names::{LeaseId, QueryId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The number of a login; its token is known by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId(pub u32);

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed (or it begins).
    Tick,
    /// A login ended.
    LoggedIn(Result<TokenGrant, Failure>),
    /// The token's renewal ended.
    TokenRenewed(TokenId, Result<TokenGrant, Failure>),
    /// The lookup that followed a 403 ended.
    LookedUp(TokenId, Result<TokenGrant, Failure>),
    /// A read ended; with the lease of what was read.
    Read(QueryId, TokenId, Result<Option<Lease>, Failure>),
    /// A lease's renewal ended.
    Renewed(QueryId, TokenId, Result<Lease, Failure>),
    /// What was read cannot be rendered.
    Unusable(QueryId),
    /// The credential files hold something else than the last login showed.
    CredentialsChanged,
    /// Somebody wants it new: what has no lease is read, and what waits after a failure is tried.
    Refresh,
}

/// What is to be done, or said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send it; its answer is an input.
    Ask(Request),
    /// The token is dead: drop it.
    Forget(TokenId),
    /// A request failed for another reason than the last time, and is tried again.
    Failed(Subject, Failure, Duration),
    /// The login was refused and is not sent again before the credential files change.
    Refused(Failure),
    /// The query's lease ended, and no successor is there yet.
    Ended(QueryId),
}

/// A request to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Log in; the token gets this number.
    Login(TokenId),
    /// Renew the token.
    RenewToken(TokenId),
    /// Ask whether the token lives.
    LookUp(TokenId),
    /// Revoke the token: nothing that is served needs it any more. Nobody waits for the answer.
    Revoke(TokenId),
    /// Read under the token.
    Read(QueryId, TokenId),
    /// Renew the query's lease under the token, for this long.
    Renew(QueryId, TokenId, LeaseId, Duration),
}

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The login, or the token's renewal.
    Session,
    /// A read or a lease's renewal.
    Query(QueryId),
}

/// What is known of a subject, for those who want to read it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SubjectStatus<'a> {
    /// Why its last request failed, while that is tried again.
    pub trouble: Option<&'a Failure>,
    /// Whether there is no successor although it has ended: of the session a token, of a query its
    /// lease.
    pub ended: bool,
    /// Whether it has no lease, and two refreshes in a row gave nothing that could be used.
    pub missed: bool,
    /// When its token or lease ends, if it does.
    pub ends: Option<Moment>,
    /// When its next request is due; `None` while one is out.
    pub next: Option<Moment>,
}
