//! Decides when a silent role is killed. Pure. Invariants: a look counts against a role only if
//! supervise made the look on time, so that a suspended machine, a frozen container or a lack of
//! processor time kills no role; a role that hangs is killed after `SILENT_LOOKS` looks on time.

use crate::clock::Moment;
use std::time::Duration;

/// The time between two looks at the roles.
const EVERY: Duration = Duration::from_secs(2);
/// A look with this delay does not count: supervise was not scheduled, so neither were the roles.
const LATE: Duration = Duration::from_millis(100);
/// The number of silent looks in a row after which a role is killed: ten seconds.
const SILENT_LOOKS: u32 = 5;

/// The punctuality of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// As planned, or less than 100 ms later.
    OnTime,
    /// Later.
    Late,
}

/// The state of a role at a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The role answered, made progress, or had nothing to do.
    Alive,
    /// The role did not answer, made no progress with its work, or is stopped.
    Silent,
}

/// The plan of looks.
#[derive(Debug)]
pub struct Looks {
    due: Moment,
}

impl Looks {
    /// The first look is due one interval after `now`.
    pub fn new(now: Moment) -> Self {
        Self {
            due: now.plus(EVERY),
        }
    }

    /// The time of the next look.
    pub fn wake(&self) -> Moment {
        self.due
    }

    /// The look, if one is due; the next look is due one interval after `now`.
    pub fn look(&mut self, now: Moment) -> Option<Look> {
        if now < self.due {
            return None;
        }
        let late = now.since(self.due) >= LATE;
        self.due = now.plus(EVERY);
        Some(if late { Look::Late } else { Look::OnTime })
    }
}

/// The watch over a process of a role.
#[derive(Debug, Default)]
pub struct Watch {
    /// Silent looks on time in a row.
    silent: u32,
    /// The time of the last sign of life.
    heard: Moment,
    /// Whether the process is stopped, for example by STOP.
    stopped: bool,
    /// Whether an answer is outstanding.
    asked: bool,
    /// The operation counter at the last look.
    work: Option<u64>,
}

impl Watch {
    /// The watch over a process that was started `now`.
    pub fn new(now: Moment) -> Self {
        Self {
            heard: now,
            ..Self::default()
        }
    }

    /// The time of the last sign of life.
    pub fn heard(&self) -> Moment {
        self.heard
    }

    /// Records that the process was stopped, or continues (`waitpid` reports both).
    pub fn stopped(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// Records a question to the process.
    pub fn asked(&mut self) {
        self.asked = true;
    }

    /// Records a message of the process.
    pub fn answered(&mut self) {
        self.asked = false;
    }

    /// The sign of a role that answers questions.
    pub fn sign_of_answer(&self) -> Sign {
        self.sign(self.asked)
    }

    /// The sign of a role with an operation counter `work`: the counter changes at the begin and at
    /// the end of each operation and is odd in between; `None` before the role is ready. An
    /// operation takes microseconds, so an operation that lasts from look to look hangs.
    pub fn sign_of_work(&mut self, work: Option<u64>) -> Sign {
        let hangs = match work {
            Some(count) => count % 2 == 1 && self.work == work,
            None => true,
        };
        self.work = work;
        self.sign(hangs)
    }

    fn sign(&self, silent: bool) -> Sign {
        if silent || self.stopped {
            Sign::Silent
        } else {
            Sign::Alive
        }
    }

    /// Records the sign of a look. The result is whether the role is to be killed.
    pub fn look(&mut self, look: Look, sign: Sign, now: Moment) -> bool {
        match (sign, look) {
            (Sign::Alive, _) => {
                self.silent = 0;
                self.heard = now;
            }
            (Sign::Silent, Look::OnTime) => self.silent += 1,
            // The role had no more processor time than supervise.
            (Sign::Silent, Look::Late) => {}
        }
        self.silent >= SILENT_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    /// The sign at each look, and the index of the look at which the role is killed.
    type LookRow<'a> = (&'a [(Look, Sign)], Option<usize>);

    #[test]
    fn a_stop_an_open_question_and_an_endless_operation_are_silence() {
        use Sign::{Alive, Silent};
        let mut watch = Watch::new(at(0));
        assert_eq!(watch.sign_of_answer(), Alive, "no question yet");
        watch.asked();
        assert_eq!(watch.sign_of_answer(), Silent);
        watch.answered();
        assert_eq!(watch.sign_of_answer(), Alive);
        // The counter at each look: not ready, idle, at work, hanging, at work again.
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
            // A late look neither counts nor starts the count again.
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
                .position(|(look, sign)| watch.look(*look, *sign, at(1)));
            assert_eq!(found, *killed, "{looks:?}");
        }
    }

    #[test]
    fn a_look_is_on_time_or_late_and_the_next_one_is_planned_from_it() {
        let mut looks = Looks::new(at(0));
        // (the time at which supervise is awake, the look, the time of the next look)
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

    /// The number of looks until a role is killed that was silent from the beginning; `delays` are
    /// the milliseconds by which supervise wakes after each look is due.
    fn killed_after(delays: &[u64]) -> Option<usize> {
        let (mut looks, mut watch) = (Looks::new(at(0)), Watch::new(at(0)));
        let seen = delays.iter().position(|delay| {
            let now = looks.wake().plus(Duration::from_millis(*delay));
            let look = looks.look(now).expect("it is due");
            watch.look(look, Sign::Silent, now)
        });
        seen.map(|last| last + 1)
    }

    proptest! {
        #[test]
        fn no_role_is_killed_while_supervise_is_not_scheduled(delays in proptest::collection::vec(100_u64..100_000, 0..200)) {
            prop_assert_eq!(killed_after(&delays), None);
        }

        #[test]
        fn a_role_that_hangs_is_killed_after_five_looks_on_time(delays in proptest::collection::vec(prop_oneof![0_u64..100, 100_u64..10_000], 5..200)) {
            let on_time = delays.iter().enumerate().filter(|(_, delay)| **delay < 100).map(|(n, _)| n + 1).nth(4);
            prop_assert_eq!(killed_after(&delays), on_time);
        }

        #[test]
        fn a_role_that_answers_every_fifth_time_lives(answers in proptest::collection::vec(1_usize..5, 1..50)) {
            let mut watch = Watch::new(at(0));
            for silent in answers {
                for _ in 0..silent {
                    prop_assert!(!watch.look(Look::OnTime, Sign::Silent, at(1)));
                }
                prop_assert!(!watch.look(Look::OnTime, Sign::Alive, at(1)));
            }
        }
    }
}
