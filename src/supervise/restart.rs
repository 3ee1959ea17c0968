//! When a role that died is started again. Pure. Invariants: the first death costs nothing; a role
//! that dies by itself again and again waits longer and longer, and one that is killed again and
//! again waits a little: no loop is hot.

use crate::clock::{Backoff, Jitter, Moment};
use crate::names::Past;
use std::time::Duration;

/// A role that lived so long is well, whatever was before.
const WELL: Duration = Past::WELL;
/// The least time between two starts of a role that somebody else kills once it works.
const KILLED: Duration = Duration::from_millis(5);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(5);

/// How a role came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By KILL, which is sent from outside (the kernel's, too, when memory is short).
    Killed,
    /// By itself: another signal, or its own exit.
    Crashed,
    /// It was killed because it hung, since then: a crash of that moment.
    Hung(Moment),
}

/// The lives of one role.
#[derive(Debug)]
pub struct Rebirth {
    /// When the present life began, or the last one.
    born: Moment,
    /// Whether it has said that it works.
    ready: bool,
    /// Lives in a row that ended by themselves, or before they worked.
    crashes: u32,
    /// When the first death of this row was.
    ill: Option<Moment>,
    /// When the next life begins, if there is none now.
    due: Option<Moment>,
    backoff: Backoff,
}

impl Rebirth {
    /// A first life that begins now.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        let backoff = Backoff::new(Duration::from_millis(20), LONGEST);
        Self {
            born: now,
            ready: false,
            crashes: 0,
            ill: None,
            due: None,
            backoff,
        }
    }

    /// It works, so long after its birth; `None` if that was known.
    pub fn ready(&mut self, now: Moment) -> Option<Duration> {
        let known = std::mem::replace(&mut self.ready, true);
        (!known).then(|| now.since(self.born))
    }

    /// It died: the next life begins when `wake` says so.
    pub fn died(&mut self, death: Death, now: Moment, jitter: &mut Jitter) {
        let end = if let Death::Hung(since) = death {
            since
        } else {
            now
        };
        let was_well = end.since(self.born) >= WELL;
        if was_well {
            (self.crashes, self.ill) = (0, None);
        }
        let first = self.ill.is_none();
        self.ill = self.ill.or(Some(now));
        self.due = Some(match death {
            Death::Killed if first => now,
            Death::Crashed | Death::Hung(_) if first => {
                self.crashes = 1;
                now
            }
            Death::Killed if self.ready => {
                // It worked: what was before is over.
                self.crashes = 0;
                now.max(self.born.plus(KILLED))
            }
            Death::Killed | Death::Crashed | Death::Hung(_) => {
                self.crashes = self.crashes.saturating_add(1);
                now.plus(self.backoff.delay(self.crashes.saturating_sub(2), jitter))
            }
        });
    }

    /// When the next life begins, if there is none now.
    #[must_use]
    pub fn wake(&self) -> Option<Moment> {
        self.due
    }

    /// How many lives in a row ended by themselves, or before they worked.
    #[must_use]
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Whether it is to be started now; then a life begins.
    pub fn begin(&mut self, now: Moment) -> bool {
        let begins = self.due.is_some_and(|due| due <= now);
        if begins {
            (self.born, self.ready, self.due) = (now, false, None);
        }
        begins
    }

    /// When there is no more hope for one that is dead: `patience` after the first death of the
    /// row. A life that is under way may turn out well.
    #[must_use]
    pub fn end_of_hope(&self, patience: Duration) -> Option<Moment> {
        self.due.and(self.ill).map(|ill| ill.plus(patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// The waits before each life of a role that lives so long each time.
    fn waits(death: Death, ready: bool, life: Duration, count: usize) -> Vec<Duration> {
        let (mut now, mut jitter) = (Moment::at(MS(100_000)), Jitter::seeded(1));
        let mut rebirth = Rebirth::new(now);
        let one = |_| {
            if ready {
                assert_eq!(rebirth.ready(now), Some(Duration::ZERO));
            }
            now = now.plus(life);
            rebirth.died(death, now, &mut jitter);
            let due = rebirth.wake().expect("it was told to live again");
            let wait = due.since(now);
            now = now.max(due);
            assert!(rebirth.begin(now) && rebirth.wake().is_none());
            wait
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn the_first_death_costs_nothing_and_a_row_of_them_more_and_more() {
        assert_eq!(waits(Death::Killed, true, MS(1), 3), [MS(0), MS(4), MS(4)]);
        assert_eq!(waits(Death::Killed, true, MS(50), 3), [MS(0); 3]);
        assert_eq!(waits(Death::Crashed, true, MS(20_000), 3), [MS(0); 3]);
        for (death, ready) in [
            (Death::Crashed, true),
            (Death::Crashed, false),
            (Death::Killed, false),
        ] {
            let waits = waits(death, ready, MS(1), 12);
            assert_eq!(waits[0], MS(0));
            assert!((MS(10)..=MS(20)).contains(&waits[1]), "{waits:?}");
            assert!((MS(2_500)..=LONGEST).contains(&waits[11]), "{waits:?}");
        }
    }

    #[test]
    fn a_role_that_hangs_again_and_again_is_not_well_however_long_that_takes() {
        let (mut now, mut jitter) = (Moment::at(MS(100_000)), Jitter::seeded(1));
        let (mut rebirth, patience) = (Rebirth::new(now), Duration::from_mins(5));
        let first = now.plus(WELL * 2);
        for row in 1..=4 {
            let heard = now.plus(MS(50));
            now = now.plus(WELL * 2);
            rebirth.died(Death::Hung(heard), now, &mut jitter);
            assert_eq!(
                (rebirth.crashes(), rebirth.end_of_hope(patience)),
                (row, Some(first.plus(patience)))
            );
            now = now.max(rebirth.wake().expect("it lives again"));
            assert!(rebirth.begin(now));
        }
        // It worked for long before it hung.
        rebirth.died(Death::Hung(now.plus(WELL)), now.plus(WELL * 2), &mut jitter);
        assert_eq!(rebirth.crashes(), 1);
    }

    #[test]
    fn hope_ends_when_it_was_not_well_for_long() {
        let (start, patience) = (Moment::at(MS(1_000)), Duration::from_mins(5));
        let mut rebirth = Rebirth::new(start);
        assert_eq!(rebirth.end_of_hope(patience), None, "it never died");
        rebirth.died(Death::Crashed, start, &mut Jitter::seeded(1));
        assert_eq!(rebirth.end_of_hope(patience), Some(start.plus(patience)));
        assert!(rebirth.begin(start));
        assert_eq!(rebirth.end_of_hope(patience), None, "it lives");
        rebirth.died(
            Death::Crashed,
            start.plus(MS(9_999)),
            &mut Jitter::seeded(1),
        );
        assert_eq!(
            rebirth.end_of_hope(patience),
            Some(start.plus(patience)),
            "it is the same row"
        );
        let again = start.plus(WELL * 2);
        assert!(rebirth.begin(again));
        rebirth.died(Death::Crashed, again.plus(WELL), &mut Jitter::seeded(1));
        assert_eq!(
            rebirth.end_of_hope(patience),
            Some(again.plus(WELL).plus(patience)),
            "it was well"
        );
    }

    proptest! {
        #[test]
        fn no_row_of_crashes_is_hot(lives in proptest::collection::vec(0_u64..50, 20..100)) {
            let (mut now, mut jitter) = (Moment::at(MS(1)), Jitter::seeded(3));
            let mut rebirth = Rebirth::new(now);
            for life in &lives {
                now = now.plus(MS(*life));
                rebirth.died(Death::Crashed, now, &mut jitter);
                now = now.max(rebirth.wake().unwrap_or(now));
                prop_assert!(rebirth.begin(now));
            }
            prop_assert!(now.since_origin() > MS(2_500) * u32::try_from(lives.len() - 12).unwrap_or(0));
        }
    }
}
