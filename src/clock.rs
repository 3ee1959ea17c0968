//! Time as an argument: the only place that reads a clock or draws a random number. Invariant:
//! every decision takes a `Moment` as an argument, so that a test can set the time.

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

/// A point in monotonic time (`CLOCK_MONOTONIC`, which stops while the machine is suspended).
/// Moments of `RealClock` mean the same in every process of a machine (of a time namespace).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Moment(Duration);

impl Moment {
    /// The origin.
    pub const FIRST: Self = Self(Duration::ZERO);
    /// The last moment that can be represented.
    pub const LAST: Self = Self(Duration::MAX);

    /// A moment `since` an arbitrary origin; for tests and tables.
    pub const fn at(since: Duration) -> Self {
        Self(since)
    }

    /// The time since the origin.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// This moment, later by `by`; saturates.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// The time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A source of time.
pub trait Clock {
    /// The present.
    fn now(&self) -> Moment;
    /// The present by the wall, for file times.
    fn wall(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> Moment {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
        Moment(now.into())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A small generator of jitter (SplitMix64). Not for keys.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Seeded by the system, different in every process.
    pub fn new() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    /// Seeded by hand; for tables.
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = z ^ (z >> 31);
        let upper = u32::try_from(mixed >> 32).unwrap_or(0);
        let range = f64::from(u32::MAX) + 1.0;
        f64::from(upper) / range
    }

    /// A duration in `low..high`.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        low + high.saturating_sub(low).mul_f64(self.unit())
    }
}

impl Default for Jitter {
    fn default() -> Self {
        Self::new()
    }
}

/// Exponential backoff with jitter: attempt n (from 0) waits between half and all of `min * 2^n`,
/// never more than `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest first wait.
    min: Duration,
    /// The longest wait of all.
    max: Duration,
}

impl Backoff {
    /// `min` is raised to 1 ms and `max` to `min`, so that no wait is ever zero.
    pub fn new(min: Duration, max: Duration) -> Self {
        let min = min.max(Duration::from_millis(1));
        Self {
            min,
            max: max.max(min),
        }
    }

    /// The wait after failure number `attempt`, counted from 0.
    pub fn delay(&self, attempt: u32, jitter: &mut Jitter) -> Duration {
        let full = self
            .min
            .saturating_mul(2_u32.saturating_pow(attempt.min(31)))
            .min(self.max);
        jitter.between(full / 2, full)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The paused clock of tokio, from the creation of this value.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct PausedClock(tokio::time::Instant);

    impl PausedClock {
        pub(crate) fn new() -> Self {
            Self(tokio::time::Instant::now())
        }
    }

    impl Clock for PausedClock {
        fn now(&self) -> Moment {
            Moment(self.0.elapsed())
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_hours(24) + self.0.elapsed()
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_never_zero_and_never_above_the_maximum(min in 0_u64..100_000, max in 0_u64..1_000_000, n in any::<u32>(), seed in any::<u64>()) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
            let wait = Backoff::new(min, max).delay(n, &mut Jitter::seeded(seed));
            prop_assert!(!wait.is_zero());
            prop_assert!(wait <= max.max(min).max(Duration::from_millis(1)));
        }

        #[test]
        fn jitter_stays_inside(seed in any::<u64>()) {
            let unit = Jitter::seeded(seed).unit();
            prop_assert!((0.0..1.0).contains(&unit));
        }
    }
}
