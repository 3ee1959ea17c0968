//! The table of queries with an index. Invariants: the index agrees with the table, because
//! `change` alone changes a query; no step walks over all queries but a refresh. Ids come from the
//! table alone: an unknown id is a defect and panics.

use super::attempts::{Context, TokenState};
use super::protocol::{Effect, Subject, TokenId};
use super::query::{Place, QuerySchedule};
use crate::clock::Moment;
use crate::names::QueryId;
use std::collections::BTreeSet;

/// The number of reads and lease renewals in flight at a time, which bounds the memory of the
/// responses. Requests of the session are not counted.
const AT_ONCE: usize = 4;

/// All queries, by id.
#[derive(Debug, Default)]
pub(super) struct Queries {
    schedules: Vec<QuerySchedule>,
    /// The index: the places of all queries.
    places: BTreeSet<(Place, QueryId)>,
    /// The queries that changed since the scheduler last took the set.
    pub(super) changed: BTreeSet<QueryId>,
}

impl Queries {
    /// The table of a predecessor, from a checkpoint; no query counts as changed.
    pub(super) fn resume(schedules: Vec<QuerySchedule>) -> Self {
        let mut queries = Self::default();
        for schedule in schedules {
            queries.add(schedule);
        }
        queries.changed.clear();
        queries
    }

    /// Adds a query with the next id.
    pub(super) fn add(&mut self, schedule: QuerySchedule) -> QueryId {
        let id = u32::try_from(self.schedules.len()).expect("fewer than 2^32 queries");
        let query = QueryId(id);
        self.schedules.push(schedule);
        self.change(query, |_| ());
        query
    }

    pub(super) fn get(&self, query: QueryId) -> &QuerySchedule {
        &self.schedules[query.index()]
    }

    /// Changes a query together with its places in the index.
    pub(super) fn change<T>(
        &mut self,
        query: QueryId,
        act: impl FnOnce(&mut QuerySchedule) -> T,
    ) -> T {
        let schedule = &mut self.schedules[query.index()];
        for place in schedule.places() {
            self.places.remove(&(place, query));
        }
        let result = act(schedule);
        self.places
            .extend(schedule.places().map(|place| (place, query)));
        self.changed.insert(query);
        result
    }

    /// Drops all requests in flight after a crash. Returns whether a dropped request may
    /// have minted a lease.
    pub(super) fn drop_in_flight(&mut self) -> bool {
        let mut minted = false;
        for query in self.between(Place::InFlight, Place::AwaitsLookup) {
            minted |= self.change(query, QuerySchedule::drop_in_flight);
        }
        minted
    }

    /// Another token is current: leases of the earlier tokens are replaced now.
    pub(super) fn replace_leases(&mut self, now: Moment) {
        let first = TokenId(0);
        let last = TokenId(u32::MAX);
        for query in self.between(Place::Leased(first), Place::Leased(last)) {
            self.change(query, |state| state.renewal.replace.at = Some(now));
        }
    }

    /// `token` ended, and the leases of the token with it.
    pub(super) fn end_leases(&mut self, token: TokenId, now: Moment) {
        let leased = Place::Leased(token);
        for query in self.between(leased, leased) {
            self.change(query, |state| state.expire(now));
        }
    }

    /// Reports the leases whose end has come.
    pub(super) fn end_expired(&mut self, cx: &mut Context) {
        let first = Place::Ends(Moment::FIRST);
        let last = Place::Ends(cx.now);
        for query in self.between(first, last) {
            self.change(query, |state| state.end(cx.now));
            cx.out.push(Effect::Ended(query));
        }
    }

    /// Whether a served lease dies with `token`.
    pub(super) fn depend_on(&self, token: TokenId) -> bool {
        let leased = Place::Leased(token);
        self.range(leased, leased).next().is_some()
    }

    /// Reads queries without a lease now, and repeats failed requests now.
    pub(super) fn refresh_now(&mut self, now: Moment) {
        let all = (0..).map(QueryId).take(self.schedules.len());
        for query in all {
            self.change(query, |state| state.refresh_now(now));
        }
    }

    /// The lookup of a token ended: handles the requests that waited for the lookup.
    pub(super) fn resolve_denied(&mut self, found: TokenState, cx: &mut Context) {
        for query in self.between(Place::AwaitsLookup, Place::AwaitsLookup) {
            let subject = Subject::Query(query);
            self.change(query, |state| {
                state.renewal.resolve_denied(subject, found, cx);
            });
        }
    }

    /// Sends the due requests under `token`: renewals first, then by age, so that no query waits
    /// for others that keep failing. With `hold_mints`, nothing is minted.
    pub(super) fn send_due(&mut self, token: TokenId, hold_mints: bool, cx: &mut Context) {
        while self.has_slot()
            && let Some((_, query)) = self.due(hold_mints, cx.now)
        {
            let request = self.change(query, |state| state.begin(query, token, cx.now));
            cx.ask(request);
        }
    }

    /// The earliest moment at which `send_due` (if `has_token`) or `end_expired` has work.
    pub(super) fn wake(&self, has_token: bool, hold_mints: bool) -> Option<Moment> {
        let end = self.earliest(Place::Ends);
        // With all slots taken, only a response lets the next request go.
        let may_send = has_token && self.has_slot();
        let requests = self.next(hold_mints).filter(|_| may_send);
        requests.chain(end).map(|(at, _)| at).min()
    }

    /// The request to be sent next, if one is due.
    fn due(&self, hold_mints: bool, now: Moment) -> Option<(Moment, QueryId)> {
        self.next(hold_mints).find(|(at, _)| *at <= now)
    }

    /// The next renewal and the next read; with `hold_mints`, of the reads that mint nothing.
    fn next(&self, hold_mints: bool) -> impl Iterator<Item = (Moment, QueryId)> {
        let mint = if hold_mints {
            None
        } else {
            self.earliest(Place::Mint)
        };
        let read = self.earliest(Place::Read).into_iter().chain(mint).min();
        self.earliest(Place::Renew).into_iter().chain(read)
    }

    /// Whether another read or renewal may be in flight.
    fn has_slot(&self) -> bool {
        let in_flight = self.range(Place::InFlight, Place::InFlight);
        in_flight.count() < AT_ONCE
    }

    /// The earliest moment of a kind of place, and the query.
    fn earliest(&self, place: fn(Moment) -> Place) -> Option<(Moment, QueryId)> {
        let first = place(Moment::FIRST);
        let last = place(Moment::LAST);
        let mut range = self.range(first, last);
        let (Place::Ends(at) | Place::Renew(at) | Place::Read(at) | Place::Mint(at), query) =
            range.next()?
        else {
            return None;
        };
        Some((at, query))
    }

    /// The queries with a place from `first` to `last`, for changes.
    fn between(&self, first: Place, last: Place) -> Vec<QueryId> {
        self.range(first, last).map(|(_, query)| query).collect()
    }

    /// The part of the index from `first` to `last`.
    fn range(&self, first: Place, last: Place) -> impl Iterator<Item = (Place, QueryId)> {
        let last = (last, QueryId(u32::MAX));
        self.places.range((first, QueryId(0))..=last).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::attempts::RequestKind;

    impl Queries {
        /// Compares the index, the next end and the due requests with a walk over all self.
        pub(in crate::lease) fn compare_with_a_walk(&self, now: Moment) {
            let all = || (0..).map(QueryId).zip(&self.schedules);
            let places: BTreeSet<_> = all()
                .flat_map(|(query, state)| state.places().map(move |place| (place, query)))
                .collect();
            assert_eq!(self.places, places);

            let in_flight = all().filter(|(_, state)| state.renewal.in_flight.is_some());
            assert_eq!(self.has_slot(), in_flight.count() < AT_ONCE);

            let end = all().filter_map(|(_, state)| state.renewal.end).min();
            assert_eq!(self.wake(false, false), end);

            for hold_mints in [false, true] {
                let requests = all().filter_map(|(query, state)| {
                    let (at, kind) = state.renewal.next()?;
                    let mints = kind == RequestKind::Replace && !state.plain;
                    (!(mints && hold_mints)).then_some((kind, at, query))
                });
                let requests: BTreeSet<_> = requests.collect();
                let due = requests.iter().find(|(_, at, _)| *at <= now);
                let due = due.map(|(_, at, query)| (*at, *query));
                assert_eq!(self.due(hold_mints, now), due);

                let wake = requests.iter().map(|(_, at, _)| *at).chain(end).min();
                if self.has_slot() {
                    assert_eq!(self.wake(true, hold_mints), wake);
                }
            }
        }
    }
}
