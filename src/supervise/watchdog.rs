//! When a role that gives no sign of life is killed. Pure. Invariants: only looks that supervise
//! itself made on time count against a role, so that a suspended machine, a frozen container and
//! one that gets no processor kill nobody; a role that hangs is killed after `Intervals::silent`
//! such looks.

use crate::clock::Moment;
use std::time::Duration;

/// How often supervise looks after its roles, and for how long a role may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// The time between two looks.
    pub every: Duration,
    /// A look that comes this much later than planned does not count: supervise was not scheduled,
    /// so neither were the roles.
    pub late: Duration,
    /// After how many silent looks in a row a role is killed.
    pub silent: u32,
}

impl Intervals {
    /// Ten seconds: five looks, one every two seconds.
    pub const USUAL: Self = Self {
        every: Duration::from_secs(2),
        late: Duration::from_millis(100),
        silent: 5,
    };
}

/// Whether supervise looked when it had planned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It did.
    OnTime,
    /// It was held up.
    Late,
}

/// What was seen of a role since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It answered, made progress, or had nothing to do.
    Alive,
    /// It did not answer, made no progress with what it has to do, or is stopped.
    Silent,
}

/// The plan of looks.
#[derive(Debug)]
pub struct Looks {
    intervals: Intervals,
    /// When the next look is.
    due: Moment,
}

impl Looks {
    /// Looks from now on.
    pub fn new(intervals: Intervals, now: Moment) -> Self {
        Self {
            intervals,
            due: now.plus(intervals.every),
        }
    }

    /// When the next look is.
    pub fn wake(&self) -> Moment {
        self.due
    }

    /// The look, if it is time for one; the next one is planned from now.
    pub fn look(&mut self, now: Moment) -> Option<Look> {
        if now < self.due {
            return None;
        }
        let look = if now.since(self.due) < self.intervals.late {
            Look::OnTime
        } else {
            Look::Late
        };
        self.due = now.plus(self.intervals.every);
        Some(look)
    }
}

/// One life of a role, watched.
#[derive(Debug)]
pub struct Watch {
    /// Silent looks in a row that count.
    silent: u32,
    /// When it last gave a sign of life.
    heard: Moment,
    /// Whether it is stopped, as by STOP.
    stopped: bool,
    /// Whether it has not answered yet what it was asked.
    asked: bool,
    /// How far its work was at the last look.
    work: Option<u64>,
}

impl Watch {
    /// A life that begins now.
    pub fn new(now: Moment) -> Self {
        Self {
            silent: 0,
            heard: now,
            stopped: false,
            asked: false,
            work: None,
        }
    }

    /// When it last gave a sign of life.
    pub fn heard(&self) -> Moment {
        self.heard
    }

    /// It was stopped, or goes on: the kernel says so to its parent.
    pub fn stopped(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// It is asked for an answer.
    pub fn asked(&mut self) {
        self.asked = true;
    }

    /// It said something.
    pub fn answered(&mut self) {
        self.asked = false;
    }

    /// What a look sees of a role that answers when it is asked.
    pub fn sign_of_answer(&self) -> Sign {
        self.unless(self.asked)
    }

    /// What a look sees of a role that shows its work: a number that changes when an operation
    /// begins or ends, odd in the middle of one. `None` while it does not work yet. One
    /// operation takes microseconds, so one that goes on from look to look hangs.
    pub fn sign_of_work(&mut self, work: Option<u64>) -> Sign {
        let before = std::mem::replace(&mut self.work, work);
        self.unless(work.is_none_or(|number| number % 2 == 1 && before == work))
    }

    fn unless(&self, silent: bool) -> Sign {
        if silent || self.stopped {
            Sign::Silent
        } else {
            Sign::Alive
        }
    }

    /// Takes what a look has seen; whether the role is to be killed.
    pub fn look(&mut self, look: Look, sign: Sign, intervals: Intervals, now: Moment) -> bool {
        match (sign, look) {
            (Sign::Alive, _) => (self.silent, self.heard) = (0, now),
            (Sign::Silent, Look::OnTime) => self.silent += 1,
            // It had no more time than supervise.
            (Sign::Silent, Look::Late) => {}
        }
        self.silent >= intervals.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVALS: Intervals = Intervals::USUAL;

    const fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    /// What each look sees, and at which of them the role is killed.
    type LookRow<'a> = (&'a [(Look, Sign)], Option<usize>);

    #[test]
    fn a_stop_an_open_question_and_an_endless_operation_are_silence() {
        use Sign::{Alive, Silent};
        let mut watch = Watch::new(at(0));
        assert_eq!(watch.sign_of_answer(), Alive, "nothing was asked yet");
        watch.asked();
        assert_eq!(watch.sign_of_answer(), Silent);
        watch.answered();
        assert_eq!(watch.sign_of_answer(), Alive);
        // How far the work is at each look: it does not work yet, is idle, works, hangs, goes on.
        let work = [
            None,
            Some(4),
            Some(4),
            Some(7),
            Some(9),
            Some(9),
            Some(9),
            Some(10),
            Some(10),
            None,
        ];
        let seen = [
            Silent, Alive, Alive, Alive, Alive, Silent, Silent, Alive, Alive, Silent,
        ];
        assert_eq!(work.map(|work| watch.sign_of_work(work)), seen);
        watch.stopped(true);
        assert_eq!(
            (watch.sign_of_answer(), watch.sign_of_work(Some(12))),
            (Silent, Silent)
        );
        watch.stopped(false);
        assert_eq!(
            (watch.sign_of_answer(), watch.sign_of_work(Some(12))),
            (Alive, Alive)
        );
    }

    #[test]
    fn ten_seconds_of_looks_on_time_are_too_long() {
        use Look::{Late, OnTime};
        use Sign::{Alive, Silent};
        let table: &[LookRow<'_>] = &[
            (&[(OnTime, Silent); 5], Some(4)),
            (&[(OnTime, Silent); 4], None),
            (&[(OnTime, Alive); 9], None),
            (&[(Late, Silent); 9], None),
            // One that is late neither counts nor begins anew.
            (
                &[
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (Late, Silent),
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (OnTime, Silent),
                ],
                Some(5),
            ),
            (
                &[
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (OnTime, Alive),
                    (OnTime, Silent),
                ],
                None,
            ),
            (
                &[
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (OnTime, Silent),
                    (Late, Alive),
                    (OnTime, Silent),
                ],
                None,
            ),
        ];
        for (looks, killed) in table {
            let mut watch = Watch::new(at(0));
            let found = looks
                .iter()
                .position(|(look, sign)| watch.look(*look, *sign, INTERVALS, at(1)));
            assert_eq!(found, *killed, "{looks:?}");
        }
    }

    #[test]
    fn a_look_is_on_time_or_late_and_the_next_one_is_planned_from_it() {
        let mut looks = Looks::new(INTERVALS, at(0));
        // (when supervise is awake, what kind of look that is, when the next one is)
        let table = [
            (1_999, None, 2_000),
            (2_000, Some(Look::OnTime), 4_000),
            (3_000, None, 4_000),
            (4_099, Some(Look::OnTime), 6_099),
            (6_199, Some(Look::Late), 8_199),
            (3_600_000, Some(Look::Late), 3_602_000),
            (3_602_001, Some(Look::OnTime), 3_604_001),
        ];
        for (now, look, next) in table {
            assert_eq!(
                (looks.look(at(now)), looks.wake()),
                (look, at(next)),
                "at {now} ms"
            );
        }
    }

    /// Lets time pass: supervise wakes so many milliseconds after each look is due, and sees a role
    /// that is silent from the beginning; the number of looks that were made when it is killed.
    fn killed_after(delays: &[u64]) -> Option<usize> {
        let (mut looks, mut watch) = (Looks::new(INTERVALS, at(0)), Watch::new(at(0)));
        let seen = delays.iter().position(|delay| {
            let now = looks.wake().plus(Duration::from_millis(*delay));
            let look = looks.look(now).expect("it is due");
            watch.look(look, Sign::Silent, INTERVALS, now)
        });
        seen.map(|last| last + 1)
    }

    proptest! {
        #[test]
        fn nobody_is_killed_while_supervise_is_not_scheduled(delays in proptest::collection::vec(100_u64..100_000, 0..200)) {
            prop_assert_eq!(killed_after(&delays), None);
        }

        #[test]
        fn whoever_hangs_is_killed_after_five_looks_on_time(delays in proptest::collection::vec(prop_oneof![0_u64..100, 100_u64..10_000], 5..200)) {
            let on_time = delays.iter().enumerate().filter(|(_, delay)| **delay < 100).map(|(n, _)| n + 1).nth(4);
            prop_assert_eq!(killed_after(&delays), on_time);
        }

        #[test]
        fn whoever_answers_every_fifth_time_lives(answers in proptest::collection::vec(1_usize..5, 1..50)) {
            let mut watch = Watch::new(at(0));
            for silent in answers {
                for _ in 0..silent {
                    prop_assert!(!watch.look(Look::OnTime, Sign::Silent, INTERVALS, at(1)));
                }
                prop_assert!(!watch.look(Look::OnTime, Sign::Alive, INTERVALS, at(1)));
            }
        }
    }
}
