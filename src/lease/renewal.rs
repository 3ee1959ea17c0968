//! The rule of renewal and replacement: pure functions of the grant and the moment. Invariants: a
//! replacement comes before the end, and no delay is zero.

use crate::clock::{Backoff, Jitter, Moment};
use crate::config::defaults;
use std::time::Duration;

/// The shortest delay, also for a misconfigured life or refresh.
const SHORTEST: Duration = Duration::from_millis(20);

/// The waits and intervals of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The wait after a failure that may end at any time: no connection, a sealed server.
    pub retry: Backoff,
    /// The wait after a refusal, which a person has to mend: a denied path, a refused login.
    pub slow: Backoff,
    /// The time between the replacement of a grant and the end of the grant, and the time for which
    /// a replaced token stays alive.
    pub grace: Duration,
    /// The interval of reads of a value without a lease, unless the query has another.
    pub refresh: Duration,
}

impl Timing {
    /// The default timing with `retry_max` as the longest retry.
    pub fn new(retry_max: Duration) -> Self {
        let minutes = Duration::from_mins(5);
        Self {
            retry: Backoff::new(Duration::from_millis(250), retry_max),
            slow: Backoff::new(Duration::from_secs(2), minutes),
            grace: minutes,
            refresh: defaults::REFRESH,
        }
    }
}

/// The life of a lease or a token, as granted by the server.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// The life, counted from the grant.
    pub ttl: Duration,
    /// Whether the server offers a renewal.
    pub renewable: bool,
    /// The life of the first grant of the same lease. A renewal that grants clearly less has met a
    /// maximum: a further renewal would grant nothing.
    pub first: Duration,
}

/// The dates of a grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dates {
    /// The time of the renewal, if a renewal makes sense.
    pub renew: Option<Moment>,
    /// The time to ask for a successor.
    pub replace: Option<Moment>,
    /// The end.
    pub end: Option<Moment>,
}

impl Grant {
    /// The dates of a grant asked for at `from`. A replacement is asked for at most `reserve`, and
    /// at most a third of the life, before the end.
    pub fn dates(&self, reserve: Duration, from: Moment, jitter: &mut Jitter) -> Dates {
        let at_limit = self.ttl < self.first.mul_f64(0.9);
        let (renew, reserve) = if self.renewable && !at_limit {
            let earliest = self.ttl.mul_f64(0.6);
            let latest = self.ttl.mul_f64(0.7);
            let renew = jitter.between(earliest, latest);
            // Failed renewals are repeated until this reserve, and within the reserve beside the
            // replacement.
            let reserve = reserve.min(self.ttl.mul_f64(0.15));
            (Some(later(from, renew)), reserve)
        } else {
            let reserve = reserve.min(self.ttl / 3);
            let longest = reserve.mul_f64(1.25);
            (None, jitter.between(reserve, longest))
        };
        let replace = self.ttl.saturating_sub(reserve);
        Dates {
            renew,
            replace: Some(later(from, replace)),
            end: Some(from.plus(self.ttl)),
        }
    }
}

/// The dates of a value without a lease: the next read.
pub(super) fn poll(refresh: Duration, from: Moment, jitter: &mut Jitter) -> Dates {
    let earliest = refresh.mul_f64(0.9);
    let wait = jitter.between(earliest, refresh);
    Dates {
        replace: Some(later(from, wait)),
        ..Dates::default()
    }
}

fn later(from: Moment, by: Duration) -> Moment {
    from.plus(by.max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn at(seconds: u64) -> Moment {
        Moment::at(S(seconds))
    }

    #[test]
    fn dates_of_grants() {
        // (life, renewable, first life, reserve) -> renew and replace, as ranges in milliseconds.
        type Row = (u64, bool, u64, u64, Option<(u64, u64)>, (u64, u64));
        const TABLE: &[Row] = &[
            (
                60_000,
                true,
                60_000,
                300_000,
                Some((36_000, 42_000)),
                (51_000, 51_000),
            ),
            (
                7_200_000,
                true,
                7_200_000,
                300_000,
                Some((4_320_000, 5_040_000)),
                (6_900_000, 6_900_000),
            ),
            (
                2_000,
                true,
                2_000,
                300_000,
                Some((1_200, 1_400)),
                (1_700, 1_700),
            ),
            // A renewal that gave less has met the maximum.
            (30_000, true, 60_000, 300_000, None, (17_500, 20_000)),
            (
                3_600_000,
                true,
                7_200_000,
                300_000,
                None,
                (3_225_000, 3_300_000),
            ),
            // Rounding of the server is no maximum.
            (
                59_000,
                true,
                60_000,
                300_000,
                Some((35_400, 41_300)),
                (50_150, 50_150),
            ),
            (60_000, false, 60_000, u64::MAX, None, (35_000, 40_000)),
            (
                7_200_000,
                false,
                7_200_000,
                300_000,
                None,
                (6_825_000, 6_900_000),
            ),
            // Nothing is due at once.
            (0, true, 60_000, 300_000, None, (20, 20)),
            (1, false, 1, 300_000, None, (20, 20)),
        ];
        let from = at(10);
        for (ttl, renewable, first, reserve, renew, replace) in TABLE {
            for seed in 0..50 {
                let grant = Grant {
                    ttl: MS(*ttl),
                    renewable: *renewable,
                    first: MS(*first),
                };
                let dates = grant.dates(MS(*reserve), from, &mut Jitter::seeded(seed));
                let inside = |(low, high): (u64, u64), date: Moment| {
                    (MS(low)..=MS(high)).contains(&date.since(from))
                };
                assert!(
                    dates.replace.is_some_and(|date| inside(*replace, date)),
                    "{grant:?} {dates:?}"
                );
                assert_eq!(
                    dates.renew.is_some(),
                    renew.is_some(),
                    "{grant:?} {dates:?}"
                );
                assert!(
                    dates
                        .renew
                        .is_none_or(|date| inside(renew.unwrap_or_default(), date)),
                    "{grant:?} {dates:?}"
                );
                assert_eq!(dates.end, Some(from.plus(MS(*ttl))));
            }
        }
    }

    #[test]
    fn what_has_no_lease_is_polled_with_jitter() {
        let due: BTreeSet<Duration> = (0..50)
            .filter_map(|seed| {
                Some(
                    poll(S(300), at(0), &mut Jitter::seeded(seed))
                        .replace?
                        .since(at(0)),
                )
            })
            .collect();
        assert!(due.len() > 40, "all at the same time");
        assert!(
            due.iter().all(|due| (S(270)..=S(300)).contains(due)),
            "{due:?}"
        );
        assert_eq!(
            poll(Duration::ZERO, at(0), &mut Jitter::seeded(1)).replace,
            Some(Moment::at(MS(20))),
            "never a hot loop"
        );
    }

    #[test]
    fn a_backoff_of_the_pace_is_bounded() {
        let timing = Timing::new(S(60));
        assert_eq!(timing.retry, Backoff::new(MS(250), S(60)));
        assert_eq!((timing.grace, timing.refresh), (S(300), S(300)));
    }
}
