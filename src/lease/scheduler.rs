//! The machine that keeps a token and every lease alive: `step(input, now) -> outputs`, without a
//! clock and without I/O. Invariant: all state changes happen in `step`.

use super::attempts::{Context, RequestKind, TokenState};
use super::protocol::{Effect, ReadValue, ScheduleInput, Subject, SubjectStatus, TokenId};
use super::queries::Queries;
use super::query::QuerySchedule;
use super::renewal::Timing;
use super::session::SessionSchedule;
use super::source::{Cause, Failure, Lease, TokenGrant};
use crate::clock::{Jitter, Moment};
use crate::config::plan::Query;
use crate::names::QueryId;
use std::collections::BTreeSet;

/// The schedule of all requests.
#[derive(Debug)]
pub struct Scheduler {
    timing: Timing,
    jitter: Jitter,
    schedule: Schedule,
}

#[derive(Debug)]
struct Schedule {
    session: SessionSchedule,
    queries: Queries,
}

impl Scheduler {
    /// A machine that logs in at `now` and then reads all `queries`.
    pub fn new(queries: &[Query], timing: Timing, jitter: Jitter, now: Moment) -> Self {
        let mut machine = Self {
            timing,
            jitter,
            schedule: Schedule {
                session: SessionSchedule::new(now),
                queries: Queries::default(),
            },
        };
        for query in queries {
            machine.add(query, now);
        }
        machine
    }

    /// Adds a query with the next id. The read is due at `now`, and sent by the next step.
    pub fn add(&mut self, query: &Query, now: Moment) -> QueryId {
        let refresh = query.refresh.unwrap_or(self.timing.refresh);
        let schedule = QuerySchedule::new(refresh, now);
        self.schedule.queries.add(schedule)
    }

    /// Continues from the checkpoint of a crashed predecessor, taken before its last requests were
    /// sent: its `session`, and all its queries in the order of their ids. Requests whose responses
    /// were lost are sent again; a lease that they may have minted is revoked with its token.
    pub fn resume(
        session: SessionSchedule,
        queries: Vec<QuerySchedule>,
        timing: Timing,
        now: Moment,
    ) -> Self {
        let (mut session, mut jitter) = (session, Jitter::new());
        let mut queries = Queries::resume(queries);
        session.resume(queries.drop_in_flight(), now, &mut jitter);
        Self {
            timing,
            jitter,
            schedule: Schedule { session, queries },
        }
    }

    /// The part of the schedule besides the queries, for the checkpoint.
    pub fn session(&self) -> &SessionSchedule {
        &self.schedule.session
    }

    /// The schedule of one query, for the checkpoint.
    ///
    /// # Panics
    /// On an id that this machine did not give.
    pub fn query(&self, query: QueryId) -> &QuerySchedule {
        self.schedule.queries.get(query)
    }

    /// The queries whose schedules changed since the last call: new ones at first, and after
    /// `resume` the ones that differ from the checkpoint.
    pub fn take_changed(&mut self) -> BTreeSet<QueryId> {
        self.schedule.queries.take_changed()
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
        let Schedule { session, queries } = &self.schedule;
        let requests = queries.wake(session.current().is_some(), session.holds_mints());
        requests.into_iter().chain(session.wake(queries)).min()
    }

    #[cfg(test)]
    pub(super) fn queries(&self) -> &Queries {
        &self.schedule.queries
    }

    /// The status of `subject` at `now`.
    pub fn view(&self, subject: Subject, now: Moment) -> SubjectStatus<'_> {
        let session = self.schedule.session.view();
        match subject {
            Subject::Session => session,
            Subject::Query(query) => self.schedule.queries.get(query).view(session, now),
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
            ScheduleInput::CredentialsChanged => self.session.credentials_changed(cx.now),
            ScheduleInput::Refresh => self.session.ask_refresh(cx.now),
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
        result: Result<ReadValue, Failure>,
        cx: &mut Context<'_>,
    ) {
        match result {
            Ok(value) => {
                let current = self.session.current();
                let replaced = self.queries.change(query, |state| {
                    let replaced = state.read(value.lease.as_ref(), token, current, cx);
                    if !value.usable {
                        state.unusable(cx);
                    }
                    replaced
                });
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
        match result {
            Err(failure)
                if failure.cause != Cause::NotFound && self.queries.get(query).is_leased() =>
            {
                let subject = Subject::Query(query);
                self.failed(subject, RequestKind::Renew, token, failure, cx);
            }
            // The lease is gone, or it ended while the renewal was in flight.
            Ok(_) | Err(_) => {
                let (lease, current) = (result.ok(), self.session.current());
                self.queries
                    .change(query, |state| state.renewed(lease.as_ref(), current, cx));
            }
        }
    }

    /// A request under `token` failed.
    fn failed(
        &mut self,
        subject: Subject,
        kind: RequestKind,
        token: TokenId,
        failure: Failure,
        cx: &mut Context<'_>,
    ) {
        let is_current = self.session.current() == Some(token);
        let look_up = match subject {
            Subject::Session => {
                let renewal = &mut self.session.renewal;
                renewal.failed(subject, kind, failure, is_current, cx)
            }
            Subject::Query(query) => self.queries.change(query, |state| {
                state.renewal.failed(subject, kind, failure, is_current, cx)
            }),
        };
        if look_up {
            self.session.look_up(token, cx);
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
        self.queries.resolve_denied(found, cx);
    }

    /// Handles the moments that have come: ends first, then the requests that follow from them.
    fn send_due(&mut self, cx: &mut Context<'_>) {
        if self.session.begin_refresh(cx.now) {
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
