//! The requests in flight and the tokens that live. Invariants: a token that came is revoked, or
//! known to be dead; a request is only prepared until a checkpoint that mentions it was saved.

use super::checkpoint::Saved;
use crate::lease::source::{Failure, Lease, Ownership, Reply, Source, TokenGrant};
use super::queries::QueryTable;
use crate::lease::{Request, ScheduleInput, TokenId};
use crate::names::QueryId;
use crate::observe::{Event, Incident};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};

/// The answer to a request.
pub(super) enum Outcome {
    /// A reply, or why there is none.
    Read(QueryId, TokenId, Result<Reply, Failure>),
    /// Any other that the machine waits for.
    ScheduleInput(ScheduleInput),
    /// A revocation, which nobody waits for.
    Revoked(Result<Ownership, Failure>),
}

/// A request that the schedule asked for. Nothing is sent before its exchange is polled, and only
/// `Requests::send` has it polled.
pub(super) struct Prepared<T> {
    request: Request,
    exchange: Exchange<T>,
}

type Exchange<T> = Pin<Box<dyn Future<Output = Done<T>>>>;

/// The result of a request's task.
enum Done<T> {
    LoggedIn(TokenId, Result<(T, TokenGrant), Failure>),
    TokenRenewed(TokenId, Result<TokenGrant, Failure>),
    LookedUp(TokenId, Result<TokenGrant, Failure>),
    Read(QueryId, TokenId, Result<Reply, Failure>),
    Renewed(QueryId, TokenId, Result<Lease, Failure>),
    Revoked(TokenId, Result<Ownership, Failure>),
}

/// The tokens in the checkpoint.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct RequestsState {
    tokens: Vec<(TokenId, String)>,
    doomed: Vec<(TokenId, String)>,
    current: Option<TokenId>,
}

/// All requests; must live in a `LocalSet`.
pub(super) struct Requests<S: Source> {
    source: Rc<S>,
    /// Every token that lives.
    tokens: BTreeMap<TokenId, Rc<S::Token>>,
    /// Those whose revocation is prepared or in flight.
    doomed: BTreeMap<TokenId, Rc<S::Token>>,
    /// The one that requests are made with.
    current: Option<TokenId>,
    /// The requests that no checkpoint mentions yet.
    prepared: Vec<Prepared<S::Token>>,
    /// Logins and revocations: these are waited for at the end.
    session: JoinSet<Done<S::Token>>,
    /// All other requests.
    others: JoinSet<Done<S::Token>>,
}

impl<S: Source + 'static> Requests<S> {
    pub(super) fn new(source: S) -> Self {
        Self {
            source: Rc::new(source),
            tokens: BTreeMap::new(),
            doomed: BTreeMap::new(),
            current: None,
            prepared: Vec::new(),
            session: JoinSet::new(),
            others: JoinSet::new(),
        }
    }

    /// The tokens for the checkpoint.
    pub(super) fn state(&self) -> RequestsState {
        let text = |(id, token): (&TokenId, &Rc<S::Token>)| {
            Some((
                *id,
                String::from_utf8(self.source.expose(token).to_vec()).ok()?,
            ))
        };
        RequestsState {
            tokens: self.tokens.iter().filter_map(text).collect(),
            doomed: self.doomed.iter().filter_map(text).collect(),
            current: self.current,
        }
    }

    /// Resumes from a predecessor's checkpoint. A revocation whose response the predecessor did
    /// not receive is prepared again.
    pub(super) fn resume(&mut self, note: RequestsState) {
        let token = |(id, text): (TokenId, String)| {
            Some((id, Rc::new(self.source.token(text.as_bytes())?)))
        };
        self.tokens = note.tokens.into_iter().filter_map(token).collect();
        self.current = note.current;
        let doomed: Vec<_> = note.doomed.into_iter().filter_map(token).collect();
        for (id, token) in doomed {
            self.tokens.insert(id, token);
            self.prepare_revocation(id);
        }
    }

    /// The server as requests see it.
    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// Prepares `request`: `send` sends it once the checkpoint mentions it.
    pub(super) fn prepare(&mut self, request: Request, queries: &QueryTable) {
        let exchange = self.exchange(&request, queries);
        self.prepared.push(Prepared { request, exchange });
    }

    /// Takes the prepared requests, for a checkpoint that mentions them.
    pub(super) fn take_prepared(&mut self) -> Vec<Prepared<S::Token>> {
        std::mem::take(&mut self.prepared)
    }

    /// Sends the requests that a checkpoint mentions.
    pub(super) fn send(&mut self, saved: Saved<S::Token>) {
        for Prepared { request, exchange } in saved.into_requests() {
            match request {
                Request::Login(_) | Request::Revoke(_) => self.session.spawn_local(exchange),
                Request::RenewToken(_)
                | Request::LookUp(_)
                | Request::Read(..)
                | Request::Renew(..) => self.others.spawn_local(exchange),
            };
        }
    }

    fn exchange(&mut self, request: &Request, queries: &QueryTable) -> Exchange<S::Token> {
        let source = Rc::clone(&self.source);
        match request.clone() {
            Request::Login(id) => Box::pin(async move { Done::LoggedIn(id, source.login().await) }),
            Request::Revoke(id) => self.revocation(id),
            Request::RenewToken(id) => {
                let token = self.token(id);
                Box::pin(async move { Done::TokenRenewed(id, source.renew_token(&token).await) })
            }
            Request::LookUp(id) => {
                let token = self.token(id);
                Box::pin(async move { Done::LookedUp(id, source.look_up_token(&token).await) })
            }
            Request::Read(query, id) => {
                let (token, what) = (self.token(id), queries[query].clone());
                Box::pin(async move { Done::Read(query, id, source.read(&token, &what).await) })
            }
            Request::Renew(query, id, lease, increment) => {
                let token = self.token(id);
                Box::pin(async move {
                    Done::Renewed(query, id, source.renew(&token, &lease, increment).await)
                })
            }
        }
    }

    fn prepare_revocation(&mut self, id: TokenId) {
        let (request, exchange) = (Request::Revoke(id), self.revocation(id));
        self.prepared.push(Prepared { request, exchange });
    }

    fn revocation(&mut self, id: TokenId) -> Exchange<S::Token> {
        let (source, token) = (Rc::clone(&self.source), self.token(id));
        self.forget(id);
        self.doomed.insert(id, Rc::clone(&token));
        Box::pin(async move { Done::Revoked(id, source.revoke_token(&token).await) })
    }

    /// Drops a token that is dead.
    pub(super) fn forget(&mut self, id: TokenId) {
        self.current = self.current.filter(|current| *current != id);
        self.tokens.remove(&id);
    }

    /// The next answer; pends while no request is out. A wait that is given up loses nothing.
    pub(super) async fn next(&mut self) -> Outcome {
        let done = tokio::select! {
            Some(done) = self.session.join_next(), if !self.session.is_empty() => done,
            Some(done) = self.others.join_next(), if !self.others.is_empty() => done,
            else => std::future::pending().await,
        };
        self.take(done)
    }

    /// The bytes of the current token, for a sink.
    pub(super) fn exposed(&self) -> Option<&[u8]> {
        let token = self.tokens.get(&self.current?)?;
        Some(self.source.expose(token))
    }

    /// Drops all other requests and revokes every token, also the token of a login in flight,
    /// within `bound`. No successor follows, so no checkpoint comes first.
    pub(super) async fn leave(mut self, bound: Duration) {
        self.others.abort_all();
        let is_revocation = |it: &Prepared<_>| matches!(it.request, Request::Revoke(_));
        self.prepared.retain(is_revocation);
        let all = async {
            loop {
                for id in self.tokens.keys().copied().collect::<Vec<_>>() {
                    self.prepare_revocation(id);
                }
                for revocation in self.take_prepared() {
                    self.session.spawn_local(revocation.exchange);
                }
                let Some(done) = self.session.join_next().await else {
                    return;
                };
                if let Outcome::Revoked(result) = self.take(done) {
                    say_revoked(&result);
                }
            }
        };
        if tokio::time::timeout(bound, all).await.is_err() {
            Incident::NotRevoked.emit(&"no answer in time");
        }
    }

    fn take(&mut self, done: Result<Done<S::Token>, JoinError>) -> Outcome {
        match done.expect("a request neither panics nor is cancelled before the end") {
            Done::LoggedIn(id, Ok((token, grant))) => {
                self.tokens.insert(id, Rc::new(token));
                self.current = Some(id);
                Outcome::ScheduleInput(ScheduleInput::LoggedIn(Ok(grant)))
            }
            Done::LoggedIn(_, Err(failure)) => {
                Outcome::ScheduleInput(ScheduleInput::LoggedIn(Err(failure)))
            }
            Done::TokenRenewed(id, result) => {
                Outcome::ScheduleInput(ScheduleInput::TokenRenewed(id, result))
            }
            Done::LookedUp(id, result) => {
                Outcome::ScheduleInput(ScheduleInput::LookedUp(id, result))
            }
            Done::Renewed(query, id, result) => {
                Outcome::ScheduleInput(ScheduleInput::Renewed(query, id, result))
            }
            Done::Read(query, id, result) => Outcome::Read(query, id, result),
            Done::Revoked(id, result) => {
                self.doomed.remove(&id);
                Outcome::Revoked(result)
            }
        }
    }

    fn token(&self, id: TokenId) -> Rc<S::Token> {
        Rc::clone(
            self.tokens
                .get(&id)
                .expect("the machine names tokens that came and were not dropped"),
        )
    }
}

/// Says how a revocation ended.
pub(super) fn say_revoked(result: &Result<Ownership, Failure>) {
    match result {
        Ok(Ownership::Ours) => Event::Revoked.emit(),
        Ok(Ownership::Foreign) => {}
        Err(failure) => Incident::NotRevoked.emit(&failure.message),
    }
}
