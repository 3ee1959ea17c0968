//! The rule of renewal and replacement: pure functions of the grant and the moment. Invariants: a
//! replacement comes before the end, and no delay is zero.

use crate::clock::{Backoff, Jitter, Moment};
use crate::config::defaults;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The shortest delay, also for a misconfigured life or refresh.
const SHORTEST: Duration = Duration::from_millis(20);

/// The waits and intervals of the schedule.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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

/// A life that the server gave to a lease or a token.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// The life, counted from the grant.
    pub ttl: Duration,
    /// Whether the server offers to renew it.
    pub renewable: bool,
    /// The life of the first grant of the same lease. A renewal that grants clearly less has met a
    /// maximum: a further renewal would grant nothing.
    pub first: Duration,
}

/// The dates that follow from a grant.
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
        let end = from.plus(self.ttl);
        let at_limit = self.ttl < self.first.mul_f64(0.9);
        if self.renewable && !at_limit {
            let renew = jitter.between(self.ttl.mul_f64(0.6), self.ttl.mul_f64(0.7));
            // Failed renewals are repeated until this reserve, and within the reserve beside the
            // replacement.
            let reserve = reserve.min(self.ttl.mul_f64(0.15));
            return Dates {
                renew: Some(later(from, renew)),
                replace: Some(later(from, self.ttl.saturating_sub(reserve))),
                end: Some(end),
            };
        }
        let reserve = reserve.min(self.ttl / 3);
        let reserve = jitter.between(reserve, reserve.mul_f64(1.25));
        Dates {
            renew: None,
            replace: Some(later(from, self.ttl.saturating_sub(reserve))),
            end: Some(end),
        }
    }
}

/// The dates of a value without a lease: the next read.
pub(super) fn poll(refresh: Duration, from: Moment, jitter: &mut Jitter) -> Dates {
    Dates {
        replace: Some(later(from, jitter.between(refresh.mul_f64(0.9), refresh))),
        ..Dates::default()
    }
}

fn later(from: Moment, by: Duration) -> Moment {
    from.plus(by.max(SHORTEST))
}
