//! Decides when a dead role is restarted. Pure. Invariants: the first death costs no time; repeated
//! crashes make the wait longer and longer, and repeated kills cost a short wait, so no restart
//! loop is hot.

use crate::clock::{Backoff, Jitter, Moment};
use crate::names::RestartHistory;
use std::time::Duration;

/// The age of a stable process: earlier crashes no longer count.
const STABLE_AFTER: Duration = RestartHistory::STABLE_AFTER;
/// The least time between two starts of a role after kills of ready processes.
const KILLED: Duration = Duration::from_millis(5);
/// The longest wait before the restart after a second crash; later crashes double the wait.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// The longest wait before a restart.
const LONGEST: Duration = Duration::from_secs(5);

/// The cause of a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// KILL from outside, which includes the kernel when memory is short.
    Killed,
    /// An exit, or another signal.
    Crashed,
    /// The watchdog, after a hang since the given moment; the hang counts as a crash.
    Hung(Moment),
}

/// The restarts of one role.
#[derive(Debug)]
pub struct Restart {
    /// The start of the present or the last process.
    started: Moment,
    /// Whether the process has said `Ready`.
    ready: bool,
    /// Consecutive crashes: exits before ready, or without being told to stop.
    crashes: u32,
    /// The time of the first of the consecutive deaths.
    failing_since: Option<Moment>,
    /// The time of the next start; `None` while a process runs.
    due: Option<Moment>,
}

impl Restart {
    /// The first process starts `now`.
    pub fn new(now: Moment) -> Self {
        Self {
            started: now,
            ready: false,
            crashes: 0,
            failing_since: None,
            due: None,
        }
    }

    /// Records the message `Ready`. The result is the time since the start, or `None` if the process
    /// was ready before.
    pub fn ready(&mut self, now: Moment) -> Option<Duration> {
        if self.ready {
            return None;
        }
        self.ready = true;
        Some(now.since(self.started))
    }

    /// Whether the present process is ready.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Records a death and plans the next start; see `wake`.
    pub fn died(&mut self, cause: EndCause, now: Moment, jitter: &mut Jitter) {
        let end = match cause {
            EndCause::Hung(since) => since,
            EndCause::Killed | EndCause::Crashed => now,
        };
        if end.since(self.started) >= STABLE_AFTER {
            self.crashes = 0;
            self.failing_since = None;
        }
        let first = self.failing_since.is_none();
        if first {
            self.failing_since = Some(now);
        }
        self.due = Some(match cause {
            EndCause::Killed if first => now,
            EndCause::Killed if self.ready => {
                // The process was ready, so earlier crashes no longer count.
                self.crashes = 0;
                now.max(self.started.plus(KILLED))
            }
            EndCause::Killed | EndCause::Crashed | EndCause::Hung(_) => {
                self.crashes = self.crashes.saturating_add(1);
                if first {
                    now
                } else {
                    let backoff = Backoff::new(FIRST_WAIT, LONGEST);
                    now.plus(backoff.delay(self.crashes.saturating_sub(2), jitter))
                }
            }
        });
    }

    /// The time of the next start; `None` while a process runs.
    pub fn wake(&self) -> Option<Moment> {
        self.due
    }

    /// Consecutive crashes: exits before ready, or without being told to stop.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Whether a start is due. If so, the life of the next process begins `now`.
    pub fn begin(&mut self, now: Moment) -> bool {
        match self.due {
            Some(due) if due <= now => {
                self.started = now;
                self.ready = false;
                self.due = None;
                true
            }
            Some(_) | None => false,
        }
    }

    /// The time at which a dead role is given up: `patience` after the first of its consecutive
    /// deaths. A role with a process is not given up, because the process may become stable.
    pub fn give_up_at(&self, patience: Duration) -> Option<Moment> {
        self.due?;
        Some(self.failing_since?.plus(patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// The waits before `count` restarts of a role whose processes live for `life`.
    fn waits(cause: EndCause, ready: bool, life: Duration, count: usize) -> Vec<Duration> {
        let (mut now, mut jitter) = (Moment::at(MS(100_000)), Jitter::seeded(1));
        let mut restart = Restart::new(now);
        let one = |_| {
            if ready {
                assert_eq!(restart.ready(now), Some(Duration::ZERO));
            }
            now = now.plus(life);
            restart.died(cause, now, &mut jitter);
            let due = restart.wake().expect("a restart is planned");
            let wait = due.since(now);
            now = now.max(due);
            assert!(restart.begin(now) && restart.wake().is_none());
            wait
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn the_first_death_costs_nothing_and_repeated_deaths_more_and_more() {
        assert_eq!(
            waits(EndCause::Killed, true, MS(1), 3),
            [MS(0), MS(4), MS(4)]
        );
        assert_eq!(waits(EndCause::Killed, true, MS(50), 3), [MS(0); 3]);
        assert_eq!(waits(EndCause::Crashed, true, MS(20_000), 3), [MS(0); 3]);
        for (cause, ready) in [
            (EndCause::Crashed, true),
            (EndCause::Crashed, false),
            (EndCause::Killed, false),
        ] {
            let waits = waits(cause, ready, MS(1), 12);
            assert_eq!(waits[0], MS(0));
            assert!((MS(10)..=MS(20)).contains(&waits[1]), "{waits:?}");
            assert!((MS(2_500)..=LONGEST).contains(&waits[11]), "{waits:?}");
        }
    }

    #[test]
    fn a_role_that_hangs_repeatedly_is_not_stable_however_long_a_hang_takes() {
        let (mut now, mut jitter) = (Moment::at(MS(100_000)), Jitter::seeded(1));
        let (mut restart, patience) = (Restart::new(now), Duration::from_mins(5));
        let first = now.plus(STABLE_AFTER * 2);
        for row in 1..=4 {
            let heard = now.plus(MS(50));
            now = now.plus(STABLE_AFTER * 2);
            restart.died(EndCause::Hung(heard), now, &mut jitter);
            assert_eq!(
                (restart.crashes(), restart.give_up_at(patience)),
                (row, Some(first.plus(patience)))
            );
            now = now.max(restart.wake().expect("a restart is planned"));
            assert!(restart.begin(now));
        }
        // A process that worked for long before the hang.
        restart.died(
            EndCause::Hung(now.plus(STABLE_AFTER)),
            now.plus(STABLE_AFTER * 2),
            &mut jitter,
        );
        assert_eq!(restart.crashes(), 1);
    }

    #[test]
    fn a_role_that_fails_for_long_is_given_up() {
        let (start, patience) = (Moment::at(MS(1_000)), Duration::from_mins(5));
        let mut restart = Restart::new(start);
        assert_eq!(restart.give_up_at(patience), None, "no death yet");
        restart.died(EndCause::Crashed, start, &mut Jitter::seeded(1));
        assert_eq!(restart.give_up_at(patience), Some(start.plus(patience)));
        assert!(restart.begin(start));
        assert_eq!(restart.give_up_at(patience), None, "a process runs");
        restart.died(
            EndCause::Crashed,
            start.plus(MS(9_999)),
            &mut Jitter::seeded(1),
        );
        assert_eq!(
            restart.give_up_at(patience),
            Some(start.plus(patience)),
            "the deaths are consecutive"
        );
        let again = start.plus(STABLE_AFTER * 2);
        assert!(restart.begin(again));
        restart.died(
            EndCause::Crashed,
            again.plus(STABLE_AFTER),
            &mut Jitter::seeded(1),
        );
        assert_eq!(
            restart.give_up_at(patience),
            Some(again.plus(STABLE_AFTER).plus(patience)),
            "the process was stable"
        );
    }

    proptest! {
        #[test]
        fn no_row_of_crashes_is_hot(lives in proptest::collection::vec(0_u64..50, 20..100)) {
            let (mut now, mut jitter) = (Moment::at(MS(1)), Jitter::seeded(3));
            let mut restart = Restart::new(now);
            for life in &lives {
                now = now.plus(MS(*life));
                restart.died(EndCause::Crashed, now, &mut jitter);
                now = now.max(restart.wake().unwrap_or(now));
                prop_assert!(restart.begin(now));
            }
            prop_assert!(now.since_origin() > MS(2_500) * u32::try_from(lives.len() - 12).unwrap_or(0));
        }
    }
}
