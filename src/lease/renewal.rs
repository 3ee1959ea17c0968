//! When what was granted is renewed and when it is replaced: pure functions of the grant and the
//! moment. Invariants: a replacement comes before the end, and no delay is zero.

use crate::clock::{Backoff, Jitter, Moment};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The shortest delay of all: what a misconfigured life or refresh cannot go below.
const SHORTEST: Duration = Duration::from_millis(20);

/// How fast things are asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Wait after a failure that may end at any time: no connection, a sealed server.
    pub retry: Backoff,
    /// Wait after a refusal, which ends when a person mends it: a denied path, a refused login.
    pub slow: Backoff,
    /// How long before its end a grant that cannot be renewed is replaced, and how long a replaced
    /// token still lives.
    pub grace: Duration,
    /// How often what has no lease is read again, unless the query says otherwise.
    pub refresh: Duration,
}

impl Timing {
    /// The timing of a plan whose longest wait is `retry_max`.
    #[must_use]
    pub fn new(retry_max: Duration) -> Self {
        let minutes = Duration::from_mins(5);
        Self {
            retry: Backoff::new(Duration::from_millis(250), retry_max),
            slow: Backoff::new(Duration::from_secs(2), minutes),
            grace: minutes,
            refresh: minutes,
        }
    }
}

/// A life that the server gave to a lease or a token.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// How long from the grant on.
    pub ttl: Duration,
    /// Whether the server offers to renew it.
    pub renewable: bool,
    /// What the first grant of the same lease gave: a renewal that gives clearly less has met a
    /// maximum, and a further one would give nothing.
    pub first: Duration,
}

/// What follows from a grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dates {
    /// When to renew it, if that makes sense.
    pub renew: Option<Moment>,
    /// When to ask for a successor.
    pub replace: Option<Moment>,
    /// When it ends.
    pub end: Option<Moment>,
}

impl Grant {
    /// The dates of a grant asked for at `from`. A replacement is asked for at most `reserve`, and
    /// at most a third of the life, before the end.
    #[must_use]
    pub fn dates(&self, reserve: Duration, from: Moment, jitter: &mut Jitter) -> Dates {
        let end = from.plus(self.ttl);
        let at_limit = self.ttl < self.first.mul_f64(0.9);
        if self.renewable && !at_limit {
            let renew = jitter.between(self.ttl.mul_f64(0.6), self.ttl.mul_f64(0.7));
            // Should renewals fail they are tried again until here, and beside the replacement from
            // here on.
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

/// When what has no lease is read again.
pub(super) fn poll(refresh: Duration, from: Moment, jitter: &mut Jitter) -> Dates {
    Dates {
        replace: Some(later(from, jitter.between(refresh.mul_f64(0.9), refresh))),
        ..Dates::default()
    }
}

fn later(from: Moment, by: Duration) -> Moment {
    from.plus(by.max(SHORTEST))
}
