//! The table of queries with their leases. Invariants: a query has at most one request in flight; a
//! live lease is not minted again because its renewal failed. An unknown query id is ignored.

use super::attempts::{Attempt, Context, Renewal, RequestKind};
use super::protocol::{Effect, Request, SubjectStatus, TokenId};
use super::renewal::{Grant, Timing, poll};
use super::source::Lease;
use crate::clock::Moment;
use crate::config::plan::Query;
use crate::names::{LeaseId, QueryId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The number of reads and lease renewals in flight at a time, which bounds the memory of their
/// responses. Requests of the session are not counted.
const AT_ONCE: usize = 4;
/// The shortest time between two refreshes.
pub(super) const REFRESH: Duration = Duration::from_secs(1);

/// All queries, by their ids.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Queries(Vec<QuerySchedule>);

/// One query.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct QuerySchedule {
    /// The interval of reads while there is no lease.
    refresh: Duration,
    pub(super) renewal: Renewal,
    /// The lease of the served value.
    lease: Option<HeldLease>,
    /// The number of values that could not be rendered.
    unusable: u32,
    /// The last read gave no lease: another read mints nothing.
    plain: bool,
    /// The last lease ended, and no other was granted since.
    ended: bool,
    /// The sending times of the last two reads that gave a usable value, the latest first.
    good: [Option<Moment>; 2],
    /// A refresh came while a read was in flight, which may return the value from before.
    read_again: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeldLease {
    id: LeaseId,
    /// The token that minted the lease: the lease dies with this token.
    token: TokenId,
    /// The life that the read granted.
    first: Duration,
}

impl Queries {
    /// All `queries` are due at `now`.
    pub(super) fn new(queries: &[Query], timing: &Timing, now: Moment) -> Self {
        let state = |query: &Query| QuerySchedule {
            refresh: query.refresh.unwrap_or(timing.refresh),
            renewal: Renewal::due(now),
            ..QuerySchedule::default()
        };
        Self(queries.iter().map(state).collect())
    }

    pub(super) fn get(&self, query: QueryId) -> Option<&QuerySchedule> {
        self.0.get(query.index())
    }

    pub(super) fn get_mut(&mut self, query: QueryId) -> Option<&mut QuerySchedule> {
        self.0.get_mut(query.index())
    }

    fn iter(&self) -> impl Iterator<Item = (QueryId, &QuerySchedule)> {
        (0_u32..).map(QueryId).zip(&self.0)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (QueryId, &mut QuerySchedule)> {
        (0_u32..).map(QueryId).zip(&mut self.0)
    }

    /// Drops all requests in flight after a crash. Returns whether one of them may have minted a
    /// lease.
    pub(super) fn drop_in_flight(&mut self) -> bool {
        let mut minted = false;
        for state in &mut self.0 {
            let dropped = state.renewal.drop_in_flight();
            minted |= dropped == Some(RequestKind::Replace) && !state.plain;
        }
        minted
    }

    /// Another token is current: leases of the earlier tokens are replaced now.
    pub(super) fn replace_leases(&mut self, now: Moment) {
        for state in &mut self.0 {
            if state.lease.is_some() {
                state.renewal.replace.at = Some(now);
            }
        }
    }

    /// `token` ended, and its leases with it.
    pub(super) fn end_leases(&mut self, token: TokenId, now: Moment) {
        for state in &mut self.0 {
            if state.is_leased_under(token) {
                state.expire(now);
            }
        }
    }

    /// Reports the leases whose end has come.
    pub(super) fn end_expired(&mut self, cx: &mut Context<'_>) {
        for (query, state) in self.iter_mut() {
            if state.renewal.end.is_some_and(|end| end <= cx.now) {
                state.expire(cx.now);
                state.renewal.end = None;
                state.ended = true;
                cx.out.push(Effect::Ended(query));
            }
        }
    }

    /// Whether a served lease dies with `token`.
    pub(super) fn depend_on(&self, token: TokenId) -> bool {
        self.0.iter().any(|state| state.is_leased_under(token))
    }

    /// Reads queries without a lease now, and repeats failed requests now.
    pub(super) fn refresh_now(&mut self, now: Moment) {
        for state in &mut self.0 {
            if state.lease.is_none() {
                state.read_again = state.renewal.in_flight.is_some();
                state.renewal.replace.at = Some(now);
            } else {
                state.read_again = false;
            }
            state.renewal.retry_now(now);
        }
    }

    /// Sends the due requests under `token`: renewals first, then by age, so that no query waits
    /// for others that keep failing. With `hold_mints`, nothing is minted.
    pub(super) fn send_due(&mut self, token: TokenId, hold_mints: bool, cx: &mut Context<'_>) {
        let mut due = Vec::new();
        for (query, state) in self.iter() {
            match state.next(hold_mints) {
                Some((at, kind)) if at <= cx.now => due.push((kind, at, query)),
                Some(_) | None => {}
            }
        }
        due.sort_unstable();
        due.truncate(self.free());
        for (_, _, query) in due {
            let state = self.get_mut(query);
            if let Some(request) = state.and_then(|state| state.begin(query, token, cx.now)) {
                cx.ask(request);
            }
        }
    }

    /// The earliest moment at which `send_due` (if `has_token`) or `end_expired` has work.
    pub(super) fn wake(&self, has_token: bool, hold_mints: bool) -> Option<Moment> {
        let ends = self.0.iter().filter_map(|state| state.renewal.end).min();
        // With all slots taken, only a response lets the next request go.
        if !has_token || self.free() == 0 {
            return ends;
        }
        let requests = self.0.iter().filter_map(|state| state.next(hold_mints));
        requests.map(|(at, _)| at).chain(ends).min()
    }

    /// The number of further reads and renewals that may be in flight.
    fn free(&self) -> usize {
        let in_flight = |state: &&QuerySchedule| state.renewal.in_flight.is_some();
        AT_ONCE.saturating_sub(self.0.iter().filter(in_flight).count())
    }
}

impl QuerySchedule {
    /// A read gave a value, and perhaps a lease minted by `token`. Returns the token of the lease
    /// that the value replaces.
    pub(super) fn read(
        &mut self,
        lease: Option<&Lease>,
        token: TokenId,
        current: Option<TokenId>,
        sent: Moment,
        cx: &mut Context<'_>,
    ) -> Option<TokenId> {
        let replaced = self.lease.take().map(|held| held.token);
        self.ended = false;
        self.good = [Some(sent), self.good[0]];
        self.plain = lease.is_none();
        match lease {
            Some(lease) if !lease.ttl.is_zero() => {
                self.lease = Some(HeldLease {
                    id: lease.id.clone(),
                    token,
                    first: lease.ttl,
                });
                self.granted(lease, current, sent, cx);
            }
            Some(_) | None => self.poll(sent, cx),
        }
        self.read_again = false;
        replaced
    }

    /// Schedules the next read of a value without a lease.
    fn poll(&mut self, sent: Moment, cx: &mut Context<'_>) {
        let mut dates = poll(self.refresh, sent, cx.jitter);
        if self.read_again {
            dates.replace = dates.replace.min(Some(sent.plus(REFRESH)));
        }
        self.renewal.granted(dates);
    }

    /// The held lease was granted or renewed: sets its dates.
    pub(super) fn granted(
        &mut self,
        lease: &Lease,
        current: Option<TokenId>,
        sent: Moment,
        cx: &mut Context<'_>,
    ) {
        let Some(held) = &self.lease else { return };
        // A lease that was never renewable is replaced at two thirds of its life, however long.
        let reserve = if lease.renewable {
            cx.timing.grace
        } else {
            Duration::MAX
        };
        let grant = Grant {
            ttl: lease.ttl,
            renewable: lease.renewable,
            first: held.first,
        };
        let mut dates = cx.dates(grant, reserve, sent);
        if current != Some(held.token) {
            dates.replace = Some(sent);
        }
        self.renewal.granted(dates);
    }

    /// The value cannot be rendered. A value without a lease is read again slowly; a credential is
    /// not minted again.
    pub(super) fn unusable(&mut self, cx: &mut Context<'_>) {
        if self.lease.is_some() {
            return;
        }
        self.good[0] = self.good[1];
        let wait = cx.timing.slow.delay(self.unusable, cx.jitter);
        self.unusable = self.unusable.saturating_add(1);
        let replace = &mut self.renewal.replace;
        replace.at = replace.at.min(Some(cx.now.plus(wait)));
    }

    /// Whether there is a lease.
    pub(super) fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    fn is_leased_under(&self, token: TokenId) -> bool {
        self.lease.as_ref().is_some_and(|held| held.token == token)
    }

    /// The lease is gone. Its value stays served until another one is read.
    pub(super) fn expire(&mut self, now: Moment) {
        if self.lease.take().is_some() {
            self.renewal.renew = Attempt::default();
            self.renewal.end = Some(now);
            if self.renewal.replace.failures == 0 {
                self.renewal.replace.at = Some(now);
            }
        }
    }

    /// The next request and its time; `None` also for a mint that is held back.
    fn next(&self, hold_mints: bool) -> Option<(Moment, RequestKind)> {
        let (at, kind) = self.renewal.next()?;
        let mints = kind == RequestKind::Replace && !self.plain;
        (!(mints && hold_mints)).then_some((at, kind))
    }

    fn begin(&mut self, query: QueryId, token: TokenId, now: Moment) -> Option<Request> {
        let kind = self.renewal.begin(self.renewal.next(), now)?;
        Some(match &self.lease {
            Some(held) if kind == RequestKind::Renew => {
                Request::Renew(query, token, held.id.clone(), held.first)
            }
            Some(_) | None => Request::Read(query, token),
        })
    }

    /// The status at `now`. `blocked` is the failure of a session without a token.
    pub(super) fn view<'a>(&'a self, session: SubjectStatus<'a>, now: Moment) -> SubjectStatus<'a> {
        let next = self.renewal.next().map(|(at, _)| at);
        // Without a token no request is sent: the reason is the session's failure.
        let waits = session.ended && next.is_some_and(|next| next <= now);
        let of_session = if waits { session.trouble } else { None };
        let overdue = self.refresh.saturating_mul(2);
        SubjectStatus {
            trouble: self.renewal.trouble().or(of_session),
            ended: self.ended,
            missed: self.lease.is_none()
                && self.good[0].is_some_and(|good| now.since(good) > overdue),
            ends: self.renewal.end,
            next,
        }
    }
}
