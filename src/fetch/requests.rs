//! The requests in flight and the living tokens. Invariants: every token is revoked, or known to be
//! dead; a prepared request is not sent before a checkpoint that mentions
//! the request was saved.

use super::checkpoint::Saved;
use super::queries::QueryTable;
use crate::lease::source::{Failure, Ownership, Reply, Source, TokenGrant};
use crate::lease::{Request, ScheduleInput, TokenId};
use crate::names::QueryId;
use crate::observe::{Event, Incident};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};

const SOUND: &str = "a request neither panics nor is cancelled before the end";

/// The response to a request.
pub(super) enum Outcome {
    Read(QueryId, TokenId, Result<Reply, Failure>),
    /// The response to another request of the schedule.
    Input(ScheduleInput),
    /// The schedule does not wait for a revocation.
    Revoked(Result<Ownership, Failure>),
}

/// A request of the schedule. Nothing is sent before the exchange is polled, and only
/// `Requests::send` has it polled.
pub(super) enum Prepared<T> {
    Login(Exchange<Done<T>>),
    Revocation(Exchange<Done<T>>),
    Other(Exchange<Outcome>),
}

type Exchange<D> = Pin<Box<dyn Future<Output = D>>>;

/// The result of a login or a revocation.
pub(super) enum Done<T> {
    LoggedIn(TokenId, Result<(T, TokenGrant), Failure>),
    Revoked(TokenId, Result<Ownership, Failure>),
}

/// The tokens in the checkpoint.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct RequestsState {
    tokens: Vec<(TokenId, String)>,
    doomed: Vec<(TokenId, String)>,
    current: Option<TokenId>,
}

type Tokens<T> = BTreeMap<TokenId, Rc<T>>;

/// The requests and tokens; must live in a `LocalSet`.
pub(super) struct Requests<S: Source> {
    pub(super) source: Rc<S>,
    /// The living tokens.
    tokens: Tokens<S::Token>,
    /// The tokens whose revocation is prepared or in flight.
    doomed: Tokens<S::Token>,
    /// The token for new requests.
    current: Option<TokenId>,
    /// The requests that no checkpoint mentions yet.
    prepared: Vec<Prepared<S::Token>>,
    /// Logins and revocations, which the end of the role waits for.
    session: JoinSet<Done<S::Token>>,
    /// All other requests.
    others: JoinSet<Outcome>,
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
        let texts = |tokens: &Tokens<S::Token>| {
            let mut texts = Vec::new();
            for (id, token) in tokens {
                if let Ok(text) = str::from_utf8(self.source.expose(token)) {
                    texts.push((*id, text.to_owned()));
                }
            }
            texts
        };
        RequestsState {
            tokens: texts(&self.tokens),
            doomed: texts(&self.doomed),
            current: self.current,
        }
    }

    /// Resumes from a predecessor's checkpoint. A revocation whose response the predecessor did
    /// not receive is prepared again.
    pub(super) fn resume(&mut self, state: RequestsState) {
        self.current = state.current;
        for (is_doomed, tokens) in [(false, state.tokens), (true, state.doomed)] {
            for (id, text) in tokens {
                if let Some(token) = self.source.token(text.as_bytes()) {
                    self.tokens.insert(id, Rc::new(token));
                    if is_doomed {
                        self.prepare_revocation(id);
                    }
                }
            }
        }
    }

    /// Prepares `request`: `send` sends it once a checkpoint mentions it.
    pub(super) fn prepare(&mut self, request: Request, queries: &QueryTable) {
        let source = Rc::clone(&self.source);
        self.prepared.push(match request {
            Request::Login(id) => {
                Prepared::Login(Box::pin(
                    async move { Done::LoggedIn(id, source.login().await) },
                ))
            }
            Request::Revoke(id) => return self.prepare_revocation(id),
            Request::RenewToken(id) => {
                let token = self.token(id);
                Prepared::Other(Box::pin(async move {
                    let result = source.renew_token(&token).await;
                    Outcome::Input(ScheduleInput::TokenRenewed(id, result))
                }))
            }
            Request::LookUp(id) => {
                let token = self.token(id);
                Prepared::Other(Box::pin(async move {
                    let result = source.look_up_token(&token).await;
                    Outcome::Input(ScheduleInput::LookedUp(id, result))
                }))
            }
            Request::Read(query, id) => {
                let token = self.token(id);
                let read = queries.read(query).clone();
                Prepared::Other(Box::pin(async move {
                    let result = source.read(&token, &read).await;
                    Outcome::Read(query, id, result)
                }))
            }
            Request::Renew(query, id, lease, increment) => {
                let token = self.token(id);
                Prepared::Other(Box::pin(async move {
                    let result = source.renew(&token, &lease, increment).await;
                    Outcome::Input(ScheduleInput::Renewed(query, id, result))
                }))
            }
        });
    }

    fn prepare_revocation(&mut self, id: TokenId) {
        let source = Rc::clone(&self.source);
        let token = self.token(id);
        self.forget(id);
        self.doomed.insert(id, Rc::clone(&token));
        self.prepared
            .push(Prepared::Revocation(Box::pin(async move {
                let result = source.revoke_token(&token).await;
                Done::Revoked(id, result)
            })));
    }

    /// Takes the prepared requests, for a checkpoint that mentions them.
    pub(super) fn take_prepared(&mut self) -> Vec<Prepared<S::Token>> {
        self.prepared.drain(..).collect()
    }

    /// Sends the requests that a checkpoint mentions.
    pub(super) fn send(&mut self, saved: Saved<S::Token>) {
        for prepared in saved.into_requests() {
            match prepared {
                Prepared::Login(exchange) | Prepared::Revocation(exchange) => {
                    self.session.spawn_local(exchange)
                }
                Prepared::Other(exchange) => self.others.spawn_local(exchange),
            };
        }
    }

    /// Drops a dead token.
    pub(super) fn forget(&mut self, id: TokenId) {
        if self.current == Some(id) {
            self.current = None;
        }
        self.tokens.remove(&id);
    }

    /// The next response; pends while no request is in flight. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Outcome {
        tokio::select! {
            Some(done) = self.session.join_next() => self.take(done),
            Some(outcome) = self.others.join_next() => outcome.expect(SOUND),
            else => std::future::pending().await,
        }
    }

    /// The bytes of the current token, for the files that hold the token.
    pub(super) fn exposed(&self) -> Option<&[u8]> {
        let token = self.tokens.get(&self.current?)?;
        Some(self.source.expose(token))
    }

    /// Drops all requests but logins in flight and revokes every token, also the token of such a
    /// login, within `bound`. No successor follows, so no checkpoint comes first.
    pub(super) async fn leave(mut self, bound: Duration) {
        self.others.abort_all();
        let all = async {
            loop {
                while let Some(&id) = self.tokens.keys().next() {
                    self.prepare_revocation(id);
                }
                for prepared in self.take_prepared() {
                    if let Prepared::Revocation(exchange) = prepared {
                        self.session.spawn_local(exchange);
                    }
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
        match done.expect(SOUND) {
            Done::LoggedIn(id, result) => {
                let grant = result.map(|(token, grant)| {
                    self.tokens.insert(id, Rc::new(token));
                    self.current = Some(id);
                    grant
                });
                Outcome::Input(ScheduleInput::LoggedIn(grant))
            }
            Done::Revoked(id, result) => {
                self.doomed.remove(&id);
                Outcome::Revoked(result)
            }
        }
    }

    fn token(&self, id: TokenId) -> Rc<S::Token> {
        let token = self.tokens.get(&id);
        Rc::clone(token.expect("the schedule names living tokens"))
    }
}

/// Logs the result of a revocation.
pub(super) fn say_revoked(result: &Result<Ownership, Failure>) {
    match result {
        Ok(Ownership::Ours) => Event::Revoked.emit(),
        Ok(Ownership::Foreign) => {}
        Err(failure) => Incident::NotRevoked.emit(&failure.message),
    }
}
