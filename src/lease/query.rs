//! One query with its lease. Invariants: a query has at most one request in flight; a live lease is
//! not minted again because its renewal failed.

use super::attempts::{Attempt, Context, Renewal, RequestKind};
use super::protocol::{Request, SubjectStatus, TokenId};
use super::renewal::{Grant, poll};
use super::source::Lease;
use crate::clock::Moment;
use crate::names::{LeaseId, QueryId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The shortest time between two refreshes.
pub(super) const REFRESH: Duration = Duration::from_secs(1);

/// The schedule of one query; opaque, for the checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct QuerySchedule {
    /// The interval of reads while there is no lease.
    refresh: Duration,
    pub(super) renewal: Renewal,
    /// The lease of the served value.
    lease: Option<HeldLease>,
    /// The number of values that failed to render.
    unusable: u32,
    /// The last read gave no lease: another read mints nothing.
    pub(super) plain: bool,
    /// The last lease ended, and no other was granted since.
    ended: bool,
    /// The sending times of the last two reads with a usable value, the latest first.
    good: [Option<Moment>; 2],
    /// A refresh came while a read was in flight, which may return the value from before.
    read_again: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeldLease {
    id: LeaseId,
    /// The token that minted the lease: the lease dies with this token.
    token: TokenId,
    /// The life granted by the read.
    first: Duration,
}

/// A fact about a query by which the query table is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A request is in flight.
    InFlight,
    /// A request got 403 and waits for the lookup of its token.
    AwaitsLookup,
    /// The query holds a lease, which dies with the token.
    Leased(TokenId),
    /// The lease ends.
    Ends(Moment),
    /// The lease's renewal is due.
    Renew(Moment),
    /// A read is due, which mints nothing.
    Read(Moment),
    /// A read is due, which may mint a lease.
    Mint(Moment),
}

impl QuerySchedule {
    /// The first read is due at `now`. While there is no lease, reads follow at intervals of
    /// `refresh`.
    pub(super) fn new(refresh: Duration, now: Moment) -> Self {
        Self {
            refresh,
            renewal: Renewal::due(now),
            ..Self::default()
        }
    }

    /// The places of the query in the index of the table.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let next = match self.renewal.next() {
            Some((at, RequestKind::Renew)) => Some(Place::Renew(at)),
            Some((at, RequestKind::Replace)) if self.plain => Some(Place::Read(at)),
            Some((at, RequestKind::Replace)) => Some(Place::Mint(at)),
            None if self.renewal.in_flight.is_some() => Some(Place::InFlight),
            None if self.renewal.denied.is_some() => Some(Place::AwaitsLookup),
            None => None,
        };
        let lease = self.lease.as_ref().map(|held| Place::Leased(held.token));
        let end = self.renewal.end.map(Place::Ends);
        next.into_iter().chain(lease).chain(end)
    }

    /// Drops the request in flight after a crash. Returns whether the request may have minted a
    /// lease.
    pub(super) fn drop_in_flight(&mut self) -> bool {
        self.renewal.drop_in_flight() == Some(RequestKind::Replace) && !self.plain
    }

    /// The end of the lease has come.
    pub(super) fn end(&mut self, now: Moment) {
        self.expire(now);
        self.renewal.end = None;
        self.ended = true;
    }

    /// Reads a query without a lease now, and repeats a failed request now.
    pub(super) fn refresh_now(&mut self, now: Moment) {
        self.read_again = self.lease.is_none() && self.renewal.in_flight.is_some();
        if self.lease.is_none() {
            self.renewal.replace.at = Some(now);
        }
        self.renewal.retry_now(now);
    }

    /// A read gave a value, and perhaps a lease minted by `token`. Returns the token of the lease
    /// that the value replaces.
    pub(super) fn read(
        &mut self,
        lease: Option<Lease>,
        token: TokenId,
        current: Option<TokenId>,
        cx: &mut Context,
    ) -> Option<TokenId> {
        let sent = self.renewal.answered(cx.now);
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
                self.granted(&lease, current, sent, cx);
            }
            Some(_) | None => self.poll(sent, cx),
        }
        self.read_again = false;
        replaced
    }

    /// Schedules the next read of a value without a lease.
    fn poll(&mut self, sent: Moment, cx: &mut Context) {
        let mut dates = poll(self.refresh, sent, &mut cx.jitter);
        if self.read_again {
            dates.replace = dates.replace.min(Some(sent.plus(REFRESH)));
        }
        self.renewal.granted(dates);
    }

    /// The lease was renewed; `None`: the lease is gone.
    pub(super) fn renewed(
        &mut self,
        lease: Option<&Lease>,
        current: Option<TokenId>,
        cx: &mut Context,
    ) {
        let sent = self.renewal.answered(cx.now);
        match lease {
            Some(lease) => self.granted(lease, current, sent, cx),
            None => self.expire(cx.now),
        }
    }

    /// The held lease was granted or renewed: sets the dates of the lease.
    fn granted(&mut self, lease: &Lease, current: Option<TokenId>, sent: Moment, cx: &mut Context) {
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
        let mut dates = grant.dates(reserve, sent, &mut cx.jitter);
        if current != Some(held.token) {
            dates.replace = Some(sent);
        }
        self.renewal.granted(dates);
    }

    /// The value cannot be rendered. A value without a lease is read again slowly; a credential is
    /// not minted again.
    pub(super) fn unusable(&mut self, cx: &mut Context) {
        if self.lease.is_some() {
            return;
        }
        self.good[0] = self.good[1];
        let wait = cx.timing.slow.delay(self.unusable, &mut cx.jitter);
        self.unusable = self.unusable.saturating_add(1);
        let replace = &mut self.renewal.replace;
        replace.at = replace.at.min(Some(cx.now.plus(wait)));
    }

    /// Whether there is a lease.
    pub(super) fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    /// The lease is gone. The value stays served until the next read succeeds.
    pub(super) fn expire(&mut self, now: Moment) {
        if self.lease.take().is_some() {
            self.renewal.renew = Attempt::default();
            self.renewal.end = Some(now);
            if self.renewal.replace.failures == 0 {
                self.renewal.replace.at = Some(now);
            }
        }
    }

    /// Marks the next request as in flight under `token`, and returns the request.
    pub(super) fn begin(&mut self, query: QueryId, token: TokenId, now: Moment) -> Request {
        let next = self.renewal.next();
        self.renewal.in_flight = next.map(|(_, kind)| (now, kind));
        match (&self.lease, self.renewal.in_flight) {
            (Some(held), Some((_, RequestKind::Renew))) => {
                Request::Renew(query, token, held.id.clone(), held.first)
            }
            (Some(_) | None, _) => Request::Read(query, token),
        }
    }

    /// The status at `now`, with `session` as the status of the session.
    pub(super) fn view<'a>(&'a self, session: SubjectStatus<'a>, now: Moment) -> SubjectStatus<'a> {
        let next = self.renewal.next().map(|(at, _)| at);
        // Without a token no request is sent: the reason is the session's failure.
        let is_due = matches!(next, Some(next) if next <= now);
        let waits = session.ended && is_due;
        let of_session = if waits { session.trouble } else { None };
        let two_refreshes = self.refresh.saturating_mul(2);
        let overdue = match self.good[0] {
            Some(good) => now.since(good) > two_refreshes,
            None => false,
        };
        SubjectStatus {
            trouble: self.renewal.trouble().or(of_session),
            ended: self.ended,
            missed: self.lease.is_none() && overdue,
            ends: self.renewal.end,
            next,
        }
    }
}
