//! The machine that keeps a token and every lease alive: `step(input, now) -> outputs`, without a
//! clock and without I/O. Invariant: all state changes happen in `step`.

use super::attempts::{Context, Renewal, RequestKind, TokenState};
use super::protocol::{Effect, ScheduleInput, Subject, SubjectStatus, TokenId};
use super::queries::{Queries, REFRESH};
use super::renewal::Timing;
use super::session::SessionSchedule;
use super::source::{Cause, Failure, Lease, TokenGrant};
use crate::clock::{Jitter, Moment};
use crate::config::plan::Query;
use crate::names::QueryId;
use serde::{Deserialize, Serialize};

/// The schedule of all requests.
#[derive(Debug, Serialize, Deserialize)]
pub struct Scheduler {
    timing: Timing,
    #[serde(skip)]
    jitter: Jitter,
    schedule: Schedule,
}

#[derive(Debug, Serialize, Deserialize)]
struct Schedule {
    session: SessionSchedule,
    queries: Queries,
    /// The time of the last refresh, and of the next one.
    refreshed: Option<Moment>,
    refresh: Option<Moment>,
}

impl Scheduler {
    /// A machine that logs in at `now` and then reads all `queries`.
    pub fn new(queries: &[Query], timing: Timing, jitter: Jitter, now: Moment) -> Self {
        let schedule = Schedule {
            session: SessionSchedule::new(now),
            queries: Queries::new(queries, &timing, now),
            refreshed: None,
            refresh: None,
        };
        Self {
            timing,
            jitter,
            schedule,
        }
    }

    /// Continues from the checkpoint of a crashed predecessor, taken before its last requests were
    /// sent. Requests whose responses were lost are sent again; a lease that they may have minted
    /// is revoked with its token.
    pub fn resume(mut self, timing: Timing, now: Moment) -> Self {
        self.timing = timing;
        let minted = self.schedule.queries.drop_in_flight();
        self.schedule.session.resume(minted, now, &mut self.jitter);
        self
    }

    /// The token that requests are made with.
    pub fn present(&self) -> Option<TokenId> {
        self.schedule.session.current()
    }

    /// The number of logins whose responses were lost in crashes: each may have left a token that
    /// lives to its end.
    pub fn orphaned_logins(&self) -> u32 {
        self.schedule.session.orphaned_logins
    }

    /// Takes `input` at `now`; the outputs are to be obeyed in order.
    pub fn step(&mut self, input: ScheduleInput, now: Moment) -> Vec<Effect> {
        let mut out = Vec::new();
        let mut cx = Context {
            now,
            timing: self.timing,
            jitter: &mut self.jitter,
            out: &mut out,
        };
        self.schedule.take(input, &mut cx);
        self.schedule.send_due(&mut cx);
        out
    }

    /// The time of the next `Tick`; `None`: only a response changes something.
    pub fn wake(&self) -> Option<Moment> {
        let Schedule {
            session, queries, ..
        } = &self.schedule;
        let requests = queries.wake(session.current().is_some(), session.holds_mints());
        let moments = [requests, session.wake(queries), self.schedule.refresh];
        moments.into_iter().flatten().min()
    }

    /// The status of `subject` at `now`; of an unknown query nothing is known.
    pub fn view(&self, subject: Subject, now: Moment) -> SubjectStatus<'_> {
        let session = self.schedule.session.view();
        match subject {
            Subject::Session => session,
            Subject::Query(query) => match self.schedule.queries.get(query) {
                Some(state) => state.view(session, now),
                None => SubjectStatus::default(),
            },
        }
    }

    /// Whether the next login waits for other credentials, whose files are then to be watched.
    pub fn awaits_credentials(&self) -> bool {
        self.schedule.session.awaits_credentials()
    }
}

impl Schedule {
    fn take(&mut self, input: ScheduleInput, cx: &mut Context<'_>) {
        match input {
            ScheduleInput::Tick => {}
            ScheduleInput::LoggedIn(Ok(grant)) => {
                self.session.logged_in(grant, cx);
                self.queries.replace_leases(cx.now);
            }
            ScheduleInput::LoggedIn(Err(failure)) => self.session.login_failed(&failure, cx),
            ScheduleInput::TokenRenewed(token, result) => self.token_renewed(token, result, cx),
            ScheduleInput::LookedUp(token, result) => self.looked_up(token, &result, cx),
            ScheduleInput::Read(query, token, result) => self.read(query, token, result, cx),
            ScheduleInput::Renewed(query, token, result) => self.renewed(query, token, result, cx),
            ScheduleInput::Unusable(query) => {
                if let Some(state) = self.queries.get_mut(query) {
                    state.unusable(cx);
                }
            }
            ScheduleInput::CredentialsChanged => self.session.credentials_changed(cx.now),
            // A refresh soon after another one waits; further ones meanwhile are the same.
            ScheduleInput::Refresh => {
                self.refresh = Some(match self.refreshed {
                    Some(last) => last.plus(REFRESH).max(cx.now),
                    None => cx.now,
                });
            }
        }
    }

    fn token_renewed(
        &mut self,
        token: TokenId,
        result: Result<TokenGrant, Failure>,
        cx: &mut Context<'_>,
    ) {
        let sent = self.session.renewal.answered(cx.now);
        if self.session.current() != Some(token) {
            return;
        }
        match result {
            Ok(grant) => self.session.token_renewed(grant, sent, cx),
            Err(failure) => self.failed(Subject::Session, RequestKind::Renew, token, failure, cx),
        }
    }

    fn read(
        &mut self,
        query: QueryId,
        token: TokenId,
        result: Result<Option<Lease>, Failure>,
        cx: &mut Context<'_>,
    ) {
        let current = self.session.current();
        let Some(state) = self.queries.get_mut(query) else {
            return;
        };
        let sent = state.renewal.answered(cx.now);
        match result {
            Ok(lease) => {
                let replaced = state.read(lease.as_ref(), token, current, sent, cx);
                self.session.extend_grace(replaced, cx);
            }
            Err(failure) => {
                let subject = Subject::Query(query);
                self.failed(subject, RequestKind::Replace, token, failure, cx);
            }
        }
    }

    fn renewed(
        &mut self,
        query: QueryId,
        token: TokenId,
        result: Result<Lease, Failure>,
        cx: &mut Context<'_>,
    ) {
        let current = self.session.current();
        let Some(state) = self.queries.get_mut(query) else {
            return;
        };
        let sent = state.renewal.answered(cx.now);
        match result {
            // The lease ended while the renewal was in flight.
            _ if !state.is_leased() => {}
            Ok(lease) => state.granted(&lease, current, sent, cx),
            Err(failure) if failure.cause == Cause::NotFound => state.expire(cx.now),
            Err(failure) => {
                self.failed(
                    Subject::Query(query),
                    RequestKind::Renew,
                    token,
                    failure,
                    cx,
                );
            }
        }
    }

    /// A request under `token` failed. A 403 leads to a lookup of the token, or to a new request if
    /// the token was replaced meanwhile.
    fn failed(
        &mut self,
        subject: Subject,
        kind: RequestKind,
        token: TokenId,
        failure: Failure,
        cx: &mut Context<'_>,
    ) {
        let is_current = self.session.current() == Some(token);
        let Some(renewal) = self.renewal(subject) else {
            return;
        };
        if failure.cause != Cause::Denied {
            renewal.postpone(subject, kind, &failure, cx);
        } else if is_current {
            renewal.await_lookup(kind, failure);
            self.session.look_up(token, cx);
        } else {
            renewal.replace.at = Some(cx.now);
        }
    }

    fn renewal(&mut self, subject: Subject) -> Option<&mut Renewal> {
        match subject {
            Subject::Session => Some(&mut self.session.renewal),
            Subject::Query(query) => self.queries.get_mut(query).map(|state| &mut state.renewal),
        }
    }

    fn looked_up(
        &mut self,
        token: TokenId,
        result: &Result<TokenGrant, Failure>,
        cx: &mut Context<'_>,
    ) {
        let found = self.session.looked_up(token, result, cx);
        if found == TokenState::Dead {
            self.session.token_dead(token, cx);
            self.queries.end_leases(token, cx.now);
        }
        let session = &mut self.session.renewal;
        session.resolve_denied(Subject::Session, found, cx);
        for (query, state) in self.queries.iter_mut() {
            let subject = Subject::Query(query);
            state.renewal.resolve_denied(subject, found, cx);
        }
    }

    /// Handles the moments that have come: ends first, then the requests that follow from them.
    fn send_due(&mut self, cx: &mut Context<'_>) {
        if self.refresh.is_some_and(|at| at <= cx.now) {
            self.refreshed = Some(cx.now);
            self.refresh = None;
            self.session.refresh_now(cx.now);
            self.queries.refresh_now(cx.now);
        }
        for token in self.session.end_tokens(cx) {
            self.queries.end_leases(token, cx.now);
        }
        self.queries.end_expired(cx);
        self.session.revoke_retired(&self.queries, cx);
        self.session.send_due(cx);
        if let Some(token) = self.session.current() {
            let hold_mints = self.session.holds_mints();
            self.queries.send_due(token, hold_mints, cx);
        }
    }
}
