//! The messages of the schedule: inputs, effects with their requests, and the status of a subject.

use super::source::{Failure, Lease, TokenGrant};
use crate::clock::Moment;
use crate::names::{LeaseId, QueryId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The number of a login, which identifies the token of the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenId(pub u32);

/// An event that the schedule reacts to.
#[derive(Clone, Debug)]
pub enum ScheduleInput {
    /// Time passed; also the first input.
    Tick,
    /// A login ended.
    LoggedIn(Result<TokenGrant, Failure>),
    /// The token's renewal ended.
    TokenRenewed(TokenId, Result<TokenGrant, Failure>),
    /// The lookup that followed a 403 ended.
    LookedUp(TokenId, Result<TokenGrant, Failure>),
    /// A read ended.
    Read(QueryId, TokenId, Result<ReadValue, Failure>),
    /// A lease's renewal ended.
    Renewed(QueryId, TokenId, Result<Lease, Failure>),
    /// The credential files hold other credentials than the last login used.
    CredentialsChanged,
    /// A person asks for fresh secrets: reads values without a lease, repeats failed requests.
    Refresh,
}

/// The value that a read returned, as far as the schedule depends on it.
#[derive(Clone, Debug)]
pub struct ReadValue {
    /// The lease, if the engine grants leases.
    pub lease: Option<Lease>,
    /// Whether the files of the query can be rendered.
    pub usable: bool,
}

/// An action for the caller, or a fact to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the request; the response comes back as an input.
    Ask(Request),
    /// The token is dead: drop the token.
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
    /// Log in; the number becomes the id of the token.
    Login(TokenId),
    /// Renew the token.
    RenewToken(TokenId),
    /// Ask whether the token lives.
    LookUp(TokenId),
    /// Revoke the token: no served lease needs the token any more. The response is not awaited.
    Revoke(TokenId),
    /// Read under the token.
    Read(QueryId, TokenId),
    /// Renew the query's lease under the token, for the given time.
    Renew(QueryId, TokenId, LeaseId, Duration),
}

/// The part that a failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The login, or the token's renewal.
    Session,
    /// A read or a lease's renewal.
    Query(QueryId),
}

/// The status of a subject, for reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct SubjectStatus<'a> {
    /// The last failure, while the failed request is repeated.
    pub trouble: Option<&'a Failure>,
    /// The token (of the session) or the lease (of a query) ended, and no successor came yet.
    pub ended: bool,
    /// A query without a lease got no usable value in two consecutive refreshes.
    pub missed: bool,
    /// The end of the token or lease, if there is an end.
    pub ends: Option<Moment>,
    /// The time of the next request; `None` while a request is in flight.
    pub next: Option<Moment>,
}
