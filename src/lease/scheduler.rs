//! The schedule that keeps a token and every lease alive: `step(input, now) -> effects`, without a
//! clock and without I/O. Invariant: all state changes happen in `step`.

use super::attempts::{Context, Renewal, RequestKind, TokenState};
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
    session: SessionSchedule,
    pub(super) queries: Queries,
    cx: Context,
}

impl Scheduler {
    /// A schedule that logs in at `now` and has no queries yet.
    pub fn new(timing: Timing, jitter: Jitter, now: Moment) -> Self {
        Self {
            session: SessionSchedule::new(now),
            queries: Queries::default(),
            cx: Context {
                now,
                timing,
                jitter,
                out: Vec::new(),
            },
        }
    }

    /// Adds a query with the next id. The read is due at `now`, and sent by the next step.
    pub fn add(&mut self, query: &Query, now: Moment) -> QueryId {
        let refresh = query.refresh.unwrap_or(self.cx.timing.refresh);
        self.queries.add(QuerySchedule::new(refresh, now))
    }

    /// Continues from the checkpoint of a crashed predecessor, taken before the last requests were
    /// sent: the `session`, and all queries in the order of the ids. Requests with lost responses
    /// are sent again; a lease that a lost response minted is revoked together with the token.
    pub fn resume(
        session: SessionSchedule,
        queries: Vec<QuerySchedule>,
        timing: Timing,
        now: Moment,
    ) -> Self {
        let mut scheduler = Self {
            queries: Queries::resume(queries),
            session,
            ..Self::new(timing, Jitter::new(), now)
        };
        let minted = scheduler.queries.drop_in_flight();
        scheduler.session.resume(minted, &mut scheduler.cx);
        scheduler
    }

    /// The part of the schedule besides the queries, for the checkpoint.
    pub fn session(&self) -> &SessionSchedule {
        &self.session
    }

    /// The schedule of one query, for the checkpoint.
    ///
    /// # Panics
    /// On an id that `add` did not give.
    pub fn query(&self, query: QueryId) -> &QuerySchedule {
        self.queries.get(query)
    }

    /// The queries whose schedules changed since the last call: all new queries, and after `resume`
    /// the queries that differ from the checkpoint.
    pub fn take_changed(&mut self) -> BTreeSet<QueryId> {
        std::mem::take(&mut self.queries.changed)
    }

    /// The number of logins with responses lost in crashes: each may have left a token, which is
    /// never revoked.
    pub fn orphaned_logins(&self) -> u32 {
        self.session.orphaned_logins
    }

    /// Takes `input` at `now`. The caller carries out the effects in order.
    pub fn step(&mut self, input: ScheduleInput, now: Moment) -> Vec<Effect> {
        self.cx.now = now;
        self.take(input);
        self.send_due();
        std::mem::take(&mut self.cx.out)
    }

    /// The time of the next `Tick`; `None`: only a response changes something.
    pub fn wake(&self) -> Option<Moment> {
        let session = &self.session;
        let has_token = session.current().is_some();
        let hold_mints = session.holds_mints();
        let requests = self.queries.wake(has_token, hold_mints);
        let moments = [requests, session.wake(&self.queries)];
        moments.into_iter().flatten().min()
    }

    /// The status of `subject` at `now`.
    pub fn view(&self, subject: Subject, now: Moment) -> SubjectStatus<'_> {
        let session = self.session.view();
        match subject {
            Subject::Session => session,
            Subject::Query(query) => {
                let schedule = self.queries.get(query);
                schedule.view(session, now)
            }
        }
    }

    /// Whether the next login waits for other credentials, whose files are then to be watched.
    pub fn awaits_credentials(&self) -> bool {
        self.session.awaits_credentials()
    }

    fn take(&mut self, input: ScheduleInput) {
        let cx = &mut self.cx;
        match input {
            ScheduleInput::Tick => {}
            ScheduleInput::LoggedIn(Ok(grant)) => {
                self.session.logged_in(grant, cx);
                self.queries.replace_leases(cx.now);
            }
            ScheduleInput::LoggedIn(Err(failure)) => self.session.login_failed(&failure, cx),
            ScheduleInput::TokenRenewed(token, result) => self.token_renewed(token, result),
            ScheduleInput::LookedUp(token, result) => self.looked_up(token, &result),
            ScheduleInput::Read(query, token, result) => self.read(query, token, result),
            ScheduleInput::Renewed(query, token, result) => self.renewed(query, token, result),
            ScheduleInput::CredentialsChanged => self.session.credentials_changed(cx.now),
            ScheduleInput::Refresh => self.session.ask_refresh(cx.now),
        }
    }

    fn token_renewed(&mut self, token: TokenId, result: Result<TokenGrant, Failure>) {
        let sent = self.session.renewal.answered(self.cx.now);
        if self.session.current() != Some(token) {
            return;
        }
        match result {
            Ok(grant) => self.session.token_renewed(grant, sent, &mut self.cx),
            Err(failure) => self.failed(Subject::Session, RequestKind::Renew, token, failure),
        }
    }

    fn read(&mut self, query: QueryId, token: TokenId, result: Result<ReadValue, Failure>) {
        let ReadValue { lease, usable } = match result {
            Ok(value) => value,
            Err(failure) => {
                return self.failed(Subject::Query(query), RequestKind::Replace, token, failure);
            }
        };
        let cx = &mut self.cx;
        let current = self.session.current();
        let replaced = self.queries.change(query, |state| {
            let replaced = state.read(lease, token, current, cx);
            if !usable {
                state.unusable(cx);
            }
            replaced
        });
        self.session.extend_grace(replaced, cx);
    }

    fn renewed(&mut self, query: QueryId, token: TokenId, result: Result<Lease, Failure>) {
        let lease = match result {
            Ok(lease) => Some(lease),
            // Without a lease nothing is left to be renewed: the lease ended while the renewal was
            // in flight.
            Err(failure)
                if failure.cause != Cause::NotFound && self.queries.get(query).is_leased() =>
            {
                return self.failed(Subject::Query(query), RequestKind::Renew, token, failure);
            }
            Err(_) => None,
        };
        let cx = &mut self.cx;
        let current = self.session.current();
        self.queries
            .change(query, |state| state.renewed(lease.as_ref(), current, cx));
    }

    /// A request under `token` failed.
    fn failed(&mut self, subject: Subject, kind: RequestKind, token: TokenId, failure: Failure) {
        let cx = &mut self.cx;
        let is_current = self.session.current() == Some(token);
        let failed = |renewal: &mut Renewal| renewal.failed(subject, kind, failure, is_current, cx);
        let look_up = match subject {
            Subject::Session => failed(&mut self.session.renewal),
            Subject::Query(query) => self
                .queries
                .change(query, |state| failed(&mut state.renewal)),
        };
        if look_up {
            self.session.look_up(token, &mut self.cx);
        }
    }

    fn looked_up(&mut self, token: TokenId, result: &Result<TokenGrant, Failure>) {
        let cx = &mut self.cx;
        let found = self.session.looked_up(token, result, cx);
        if found == TokenState::Dead {
            self.session.token_dead(token, cx);
            self.queries.end_leases(token, cx.now);
        }
        let session = &mut self.session.renewal;
        session.resolve_denied(Subject::Session, found, cx);
        self.queries.resolve_denied(found, cx);
    }

    /// Handles the moments that have come: ends first, then the requests caused by the ends.
    fn send_due(&mut self) {
        let cx = &mut self.cx;
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
