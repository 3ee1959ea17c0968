//! The login and the token. Invariants: at most one request of the session is in flight; a living
//! token is dropped only after a successor came, and no token of a served lease is revoked.

use super::attempts::{Attempt, Context, Renewal, RequestKind, TokenState};
use super::protocol::{Effect, Request, Subject, SubjectStatus, TokenId};
use super::queries::Queries;
use super::query::REFRESH;
use super::refusals::Refusals;
use super::renewal::{Dates, Grant, Timing};
use super::source::{Cause, Failure, TokenGrant};
use crate::clock::Moment;
use crate::exit::Exit;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The schedule of the login, of the tokens and of refreshes on request; opaque, for the
/// checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SessionSchedule {
    pub(super) renewal: Renewal,
    /// Earlier refusals, which delay the next login.
    refusals: Refusals,
    token: Option<CurrentToken>,
    retired: Vec<RetiredToken>,
    /// The number of the last login.
    logins: u32,
    /// Consecutive tokens that were found dead before they were a grace old.
    deaths: u32,
    /// A token was once allowed to use `lookup-self` or `renew-self`.
    sees_itself: bool,
    /// A lookup is in flight.
    looking_up: bool,
    /// Set after a crash while a mint was in flight. The lease id is unknown, so the lease can only
    /// be revoked together with the token: the token is replaced, and mints under the token wait
    /// until a login failed.
    in_doubt: bool,
    /// Logins with responses lost in a crash: each may have left a token that nobody can revoke.
    pub(super) orphaned_logins: u32,
    /// The time of the last refresh, and of the next one.
    refreshed: Option<Moment>,
    refresh: Option<Moment>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct CurrentToken {
    id: TokenId,
    since: Moment,
    /// The life granted by the login.
    first: Duration,
}

/// A token that has a successor.
#[derive(Debug, Serialize, Deserialize)]
struct RetiredToken {
    id: TokenId,
    /// The earliest moment of the revocation.
    revoke: Moment,
    end: Option<Moment>,
}

impl SessionSchedule {
    /// The first login is due at `now`.
    pub(super) fn new(now: Moment) -> Self {
        Self {
            renewal: Renewal::due(now),
            ..Self::default()
        }
    }

    /// Continues after a crash. `minted`: a request that may have minted a lease was in flight.
    pub(super) fn resume(&mut self, minted: bool, cx: &mut Context) {
        self.looking_up = false;
        if self.renewal.drop_in_flight() == Some(RequestKind::Replace) {
            self.orphaned_logins += 1;
            self.refusals.orphaned(cx.now, &mut cx.jitter);
        }
        self.in_doubt |= minted;
        if self.in_doubt && self.token.is_some() {
            self.renewal.replace = Renewal::due(cx.now).replace;
        }
    }

    /// The token that requests are made with.
    pub(super) fn current(&self) -> Option<TokenId> {
        Some(self.token?.id)
    }

    /// Whether mints wait for another token, which a login may bring soon.
    pub(super) fn holds_mints(&self) -> bool {
        self.in_doubt && self.renewal.replace.failures == 0 && self.refusals.is_open()
    }

    /// Whether the next login waits for other credentials.
    pub(super) fn awaits_credentials(&self) -> bool {
        !self.refusals.is_open() && self.renewal.in_flight.is_none()
    }

    pub(super) fn credentials_changed(&mut self, now: Moment) {
        if self.awaits_credentials() {
            self.refusals = Refusals::default();
            self.renewal.replace.at = Some(now);
            self.renewal.reported = None;
        }
    }

    /// A login gave a token; the token before it is retired.
    pub(super) fn logged_in(&mut self, grant: TokenGrant, cx: &mut Context) {
        let sent = self.renewal.answered(cx.now);
        if let Some(old) = self.token.take() {
            let end = self.renewal.end;
            self.retired.push(RetiredToken {
                id: old.id,
                revoke: revocation(&cx.timing, end, cx.now),
                end,
            });
        }
        self.in_doubt = false;
        self.refusals.worked();
        self.token = Some(CurrentToken {
            id: TokenId(self.logins),
            since: sent,
            first: grant.ttl.unwrap_or_default(),
        });
        self.granted(grant, sent, cx);
    }

    /// A refused login is repeated after a wait of `Refusals`, or with other credentials.
    pub(super) fn login_failed(&mut self, failure: &Failure, cx: &mut Context) {
        self.renewal.answered(cx.now);
        if failure.cause.exit() != Exit::Login {
            self.renewal
                .postpone(Subject::Session, RequestKind::Replace, failure, cx);
            return;
        }
        let wait = self.refusals.refused(failure, cx.now, &mut cx.jitter);
        self.renewal
            .failed_until(RequestKind::Replace, failure, cx.now);
        match wait {
            Some(wait) => self.renewal.report(Subject::Session, failure, wait, cx),
            None => cx.out.push(Effect::Refused(failure.clone())),
        }
    }

    /// A request sent at `sent` renewed the current token.
    pub(super) fn token_renewed(&mut self, grant: TokenGrant, sent: Moment, cx: &mut Context) {
        self.sees_itself = true;
        self.granted(grant, sent, cx);
    }

    /// The current token was granted or renewed: sets the dates of the token.
    fn granted(&mut self, grant: TokenGrant, sent: Moment, cx: &mut Context) {
        let (Some(ttl), Some(token)) = (grant.ttl, self.token) else {
            return self.renewal.granted(Dates::default());
        };
        let grant = Grant {
            ttl,
            renewable: grant.renewable,
            first: token.first,
        };
        let dates = grant.dates(cx.timing.grace, sent, &mut cx.jitter);
        self.renewal.granted(dates);
    }

    /// A request under the current token got 403: the token is looked up, once for all requests.
    pub(super) fn look_up(&mut self, token: TokenId, cx: &mut Context) {
        if !self.looking_up {
            self.looking_up = true;
            cx.ask(Request::LookUp(token));
        }
    }

    /// The lookup ended: the state of the token.
    pub(super) fn looked_up(
        &mut self,
        token: TokenId,
        result: &Result<TokenGrant, Failure>,
        cx: &Context,
    ) -> TokenState {
        self.looking_up = false;
        let Some(current) = self.token.filter(|current| current.id == token) else {
            return TokenState::Replaced;
        };
        if cx.now.since(current.since) > cx.timing.grace {
            self.deaths = 0;
        }
        match result {
            Ok(_) => {
                self.sees_itself = true;
                TokenState::Alive
            }
            Err(failure) if failure.cause != Cause::Denied => TokenState::Unknown,
            // Without the `default` policy no token can be looked up: a denied lookup soon after
            // a death is no proof of another death.
            Err(_) if self.deaths > 0 && !self.sees_itself => TokenState::Alive,
            Err(_) => TokenState::Dead,
        }
    }

    /// The current token is dead: logs in at once, or after a backoff if tokens keep dying young.
    pub(super) fn token_dead(&mut self, token: TokenId, cx: &mut Context) {
        let wait = match self.deaths.checked_sub(1) {
            None => Duration::ZERO,
            Some(earlier) => cx.timing.slow.delay(earlier, &mut cx.jitter),
        };
        self.deaths = self.deaths.saturating_add(1);
        self.token = None;
        self.renewal.granted(Dates {
            replace: Some(cx.now.plus(wait)),
            ..Dates::default()
        });
        cx.out.push(Effect::Forget(token));
    }

    /// A lease of `token` was replaced: a retired token lives for another grace.
    pub(super) fn extend_grace(&mut self, token: Option<TokenId>, cx: &Context) {
        for old in &mut self.retired {
            if Some(old.id) == token {
                old.revoke = revocation(&cx.timing, old.end, cx.now);
            }
        }
    }

    /// A person asks for fresh secrets. A refresh soon after another one waits; further ones
    /// meanwhile are the same.
    pub(super) fn ask_refresh(&mut self, now: Moment) {
        let earliest = self.refreshed.map(|last| last.plus(REFRESH));
        self.refresh = earliest.max(Some(now));
    }

    /// Whether a refresh is due. A login that waits is then tried now, if refusals allow.
    pub(super) fn begin_refresh(&mut self, now: Moment) -> bool {
        if !matches!(self.refresh, Some(at) if at <= now) {
            return false;
        }
        self.refresh = None;
        self.refreshed = Some(now);
        self.refusals.refresh_now(now);
        self.renewal.retry_now(now);
        true
    }

    /// Drops and returns the tokens whose end has come.
    pub(super) fn end_tokens(&mut self, cx: &mut Context) -> Vec<TokenId> {
        let is_over = |end: Option<Moment>| matches!(end, Some(end) if end <= cx.now);
        let ended = self.retired.extract_if(.., |old| is_over(old.end));
        let mut ended: Vec<_> = ended.map(|old| old.id).collect();
        if is_over(self.renewal.end) {
            self.renewal.end = None;
            self.renewal.renew = Attempt::default();
            ended.extend(self.current());
            self.token = None;
        }
        cx.out.extend(ended.iter().copied().map(Effect::Forget));
        ended
    }

    /// Revokes retired tokens whose grace is over and whose leases are no longer served.
    pub(super) fn revoke_retired(&mut self, queries: &Queries, cx: &mut Context) {
        self.retired.retain(|old| {
            let keep = old.revoke > cx.now || queries.depend_on(old.id);
            if !keep {
                cx.ask(Request::Revoke(old.id));
            }
            keep
        });
    }

    /// Sends the due request of the session.
    pub(super) fn send_due(&mut self, cx: &mut Context) {
        let kind = match self.next() {
            Some((at, kind)) if at <= cx.now => kind,
            Some(_) | None => return,
        };
        self.renewal.in_flight = Some((cx.now, kind));
        if let (RequestKind::Renew, Some(token)) = (kind, self.token) {
            cx.ask(Request::RenewToken(token.id));
        } else {
            self.logins += 1;
            cx.ask(Request::Login(TokenId(self.logins)));
        }
    }

    /// The earliest moment at which the session has work.
    pub(super) fn wake(&self, queries: &Queries) -> Option<Moment> {
        let retired = self.retired.iter().map(|old| {
            if queries.depend_on(old.id) {
                old.end
            } else {
                Some(old.revoke)
            }
        });
        let next = self.next().map(|(at, _)| at);
        let moments = [next, self.renewal.end, self.refresh];
        retired.chain(moments).flatten().min()
    }

    pub(super) fn view(&self) -> SubjectStatus<'_> {
        SubjectStatus {
            trouble: self.renewal.trouble().or(self.refusals.why()),
            ended: self.token.is_none(),
            missed: false,
            ends: self.renewal.end,
            next: self.next().map(|(at, _)| at),
        }
    }

    /// The next request. A login waits for the refusals before it.
    fn next(&self) -> Option<(Moment, RequestKind)> {
        let replace = self.renewal.replace.at;
        let admitted = replace.and_then(|at| self.refusals.admit(at));
        self.renewal.next_with(admitted)
    }
}

/// The time to revoke a token that was replaced at `now`: after the grace, and before the
/// token's own end.
fn revocation(timing: &Timing, end: Option<Moment>, now: Moment) -> Moment {
    let grace = match end {
        Some(end) => {
            let longest = end.since(now).mul_f64(0.9);
            timing.grace.min(longest)
        }
        None => timing.grace,
    };
    now.plus(grace)
}
