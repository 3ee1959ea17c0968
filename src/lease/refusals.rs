//! When a login may be sent after a refused login: pure. `OpenBao` locks a role for every
//! node's clients after five refused logins (`user_lockout_threshold`; measured with 2.7.2), so
//! refused logins are a budget that replicas share. Invariant: the same credentials are rejected at
//! most twice, and within [`LOCKOUT`] at most [`BUDGET`] logins are sent that the server may have
//! rejected.

use super::source::{Cause, Failure};
use crate::clock::{Jitter, Moment};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The wait before the second try of rejected credentials: a standby answers 400 to a new
/// `secret_id` until the entry was replicated to it (0.2 to 1.7 s, measured).
const REPLICATION: Duration = Duration::from_secs(2);
/// The time for which `OpenBao` locks a role, and after which rejected logins are forgotten
/// (the defaults of `user_lockout_duration` and `user_lockout_counter_reset`).
const LOCKOUT: Duration = Duration::from_mins(15);
/// The number of logins that the server may reject within [`LOCKOUT`], orphaned logins included.
const BUDGET: u32 = 3;
/// The number of rejections after which only other credentials are tried.
const TRIES: u32 = 2;

/// The refused logins since the last successful login, or since the credentials changed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Refusals {
    gate: Gate,
    /// The last answered login worked: an orphaned login with the same credentials is assumed to
    /// have worked, too.
    proven: bool,
    /// Rejections of the current credentials (`Cause::Rejected`).
    rejected: u32,
    /// Logins whose responses were lost in a crash.
    orphaned: u32,
    /// After a lockout at one address, another address was already asked at once.
    moved: bool,
    /// The time of the last refused or orphaned login.
    last: Option<Moment>,
    /// The last refusal. Kept while the token's renewals work: the next login will be refused, too.
    why: Option<Failure>,
}

/// The condition that a login waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Gate {
    /// Nothing.
    #[default]
    Open,
    /// The moment, or other credentials.
    Until(Moment),
    /// Other credentials.
    Changed,
}

impl Refusals {
    /// Takes a refused login and returns the wait before the next login; `None`: only other
    /// credentials are tried.
    pub(super) fn refused(
        &mut self,
        failure: &Failure,
        now: Moment,
        jitter: &mut Jitter,
    ) -> Option<Duration> {
        self.why = Some(failure.clone());
        self.proven = false;
        let wait = if let Cause::LockedOut { elsewhere } = failure.cause {
            if elsewhere && !self.moved {
                self.moved = true;
                Some(Duration::ZERO)
            } else {
                Some(self.lockout(jitter))
            }
        } else if failure.cause == Cause::Rejected {
            self.rejected(jitter)
        } else {
            // `Login`: no credentials could be read, nothing was sent. The other causes do not come
            // here.
            return self.close(None, now);
        };
        self.last = Some(now);
        self.close(wait, now)
    }

    /// A login worked.
    pub(super) fn worked(&mut self) {
        *self = Self {
            proven: true,
            ..Self::default()
        };
    }

    /// A login was in flight when the predecessor of the process died: whether the server rejected
    /// the login is unknown.
    pub(super) fn orphaned(&mut self, now: Moment, jitter: &mut Jitter) {
        if self.proven {
            return;
        }
        self.orphaned += 1;
        self.last = Some(now);
        if self.rejected + self.orphaned >= BUDGET {
            let wait = self.lockout(jitter);
            self.close(Some(wait), now);
        }
    }

    /// A person asks for a login. The server forgets a rejected login after [`LOCKOUT`], so another
    /// login is harmless then.
    pub(super) fn refresh_now(&mut self, now: Moment) {
        if let Some(last) = self.last
            && now.since(last) >= LOCKOUT
        {
            self.gate = Gate::Open;
            self.rejected = self.rejected.min(TRIES - 1);
        }
    }

    /// The time at which a login due at `at` may be sent; `None`: only with other credentials.
    pub(super) fn admit(&self, at: Moment) -> Option<Moment> {
        match self.gate {
            Gate::Open => Some(at),
            Gate::Until(opens) => Some(at.max(opens)),
            Gate::Changed => None,
        }
    }

    /// Whether no refusal holds back the next login.
    pub(super) fn is_open(&self) -> bool {
        self.gate == Gate::Open
    }

    /// The refusal of the last login, if no login worked since.
    pub(super) fn why(&self) -> Option<&Failure> {
        self.why.as_ref()
    }

    fn rejected(&mut self, jitter: &mut Jitter) -> Option<Duration> {
        self.rejected += 1;
        if self.rejected >= TRIES {
            return None;
        }
        let spent = self.rejected + self.orphaned >= BUDGET;
        Some(if spent || self.moved {
            self.lockout(jitter)
        } else {
            REPLICATION
        })
    }

    /// The wait of a lockout, with jitter: replicas that were locked out together do not come back
    /// together. By then the server has forgotten the logins counted for the budget.
    fn lockout(&mut self, jitter: &mut Jitter) -> Duration {
        self.moved = false;
        self.orphaned = 0;
        let longest = LOCKOUT.mul_f64(1.2);
        jitter.between(LOCKOUT, longest)
    }

    fn close(&mut self, wait: Option<Duration>, now: Moment) -> Option<Duration> {
        self.gate = match wait {
            Some(wait) => Gate::Until(now.plus(wait)),
            None => Gate::Changed,
        };
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const LOCKED: Cause = Cause::LockedOut { elsewhere: false };
    const LOCKED_HERE: Cause = Cause::LockedOut { elsewhere: true };

    fn failure(cause: Cause) -> Failure {
        Failure {
            cause,
            message: String::new(),
            retry_after: None,
        }
    }

    /// What a row does: a login is refused, or its answer is never heard.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Refused(Cause),
        Unheard,
        Worked,
    }

    #[test]
    fn waits_after_refusals() {
        use Act::{Refused, Unheard, Worked};
        use Cause::{Login, Rejected};
        // Acts, and the wait in seconds before the login after the last one: `None` is for ever.
        type Row = (&'static [Act], Option<(u64, u64)>);
        let long = Some((900, 1_080));
        let table: &[Row] = &[
            (&[Refused(Rejected)], Some((2, 2))),
            (&[Refused(Rejected), Refused(Rejected)], None),
            (&[Refused(LOCKED)], long),
            (&[Refused(LOCKED), Refused(LOCKED), Refused(LOCKED)], long),
            (&[Refused(LOCKED_HERE)], Some((0, 0))),
            (&[Refused(LOCKED_HERE), Refused(LOCKED)], long),
            // However many addresses there are, one more is asked at once.
            (&[Refused(LOCKED_HERE), Refused(LOCKED_HERE)], long),
            (
                &[
                    Refused(LOCKED_HERE),
                    Refused(LOCKED_HERE),
                    Refused(LOCKED_HERE),
                ],
                Some((0, 0)),
            ),
            // Two refused logins a start, whatever they were.
            (&[Refused(LOCKED_HERE), Refused(Rejected)], long),
            (&[Refused(Rejected), Refused(LOCKED)], long),
            // The locked role opens again, and the credentials were bad twice.
            (
                &[Refused(Rejected), Refused(LOCKED), Refused(Rejected)],
                None,
            ),
            // Nothing was sent.
            (&[Refused(Login)], None),
            // Deaths in flight: each may have been a rejection.
            (&[Unheard], Some((0, 0))),
            (&[Unheard, Unheard], Some((0, 0))),
            (&[Unheard, Unheard, Unheard], long),
            (&[Unheard, Unheard, Unheard, Unheard], long),
            (&[Unheard, Unheard, Refused(Rejected)], long),
            (&[Unheard, Refused(Rejected)], Some((2, 2))),
            (&[Unheard, Refused(Rejected), Refused(Rejected)], None),
            // Whoever is killed again and again with good credentials logs in all the same.
            (&[Worked, Unheard, Unheard, Unheard, Unheard], Some((0, 0))),
            (
                &[Worked, Unheard, Refused(Rejected), Unheard, Unheard],
                long,
            ),
            (
                &[Refused(Rejected), Worked, Refused(Rejected)],
                Some((2, 2)),
            ),
        ];
        for (acts, want) in table {
            for seed in 0..20 {
                let (mut refusals, now, mut jitter) = (
                    Refusals::default(),
                    Moment::at(S(5_000)),
                    Jitter::seeded(seed),
                );
                for act in *acts {
                    match act {
                        Refused(cause) => {
                            let _ = refusals.refused(&failure(*cause), now, &mut jitter);
                        }
                        Unheard => refusals.orphaned(now, &mut jitter),
                        Worked => refusals.worked(),
                    }
                }
                let wait = refusals.admit(now).map(|at| at.since(now));
                let inside = |(low, high): (u64, u64)| {
                    wait.is_some_and(|wait| (S(low)..=S(high)).contains(&wait))
                };
                assert!(want.map_or(wait.is_none(), inside), "{acts:?}: {wait:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        /// Whatever the server answers, whoever dies and however often a person asks: the role is not locked by this agent.
        #[test]
        fn the_server_rejects_few_logins(acts in proptest::collection::vec((0_u8..6, 0_u64..400), 1..100), seed in any::<u64>()) {
            let (mut refusals, mut jitter) = (Refusals::default(), Jitter::seeded(seed));
            let (mut now, mut counted) = (Moment::at(S(5_000)), Vec::new());
            for (act, pause) in acts {
                now = now.plus(S(pause));
                if act == 5 {
                    refusals.refresh_now(now);
                }
                // A login is wanted all the time; one that has to wait long is waited for.
                let Some(at) = refusals.admit(now) else { continue };
                now = at;
                match act {
                    0 | 1 => drop(refusals.refused(&failure(Cause::Rejected), now, &mut jitter)),
                    2 => drop(refusals.refused(&failure(Cause::LockedOut { elsewhere: true }), now, &mut jitter)),
                    3 => drop(refusals.refused(&failure(LOCKED), now, &mut jitter)),
                    _ => refusals.orphaned(now, &mut jitter),
                }
                if !(2..=3).contains(&act) {
                    counted.push(now);
                }
            }
            for (n, first) in counted.iter().enumerate() {
                let within = counted[n..].iter().take_while(|at| at.since(*first) < LOCKOUT).count();
                prop_assert!(within <= BUDGET as usize, "{} logins within 15 min: {:?}", within, counted);
            }
        }
    }

    #[test]
    fn a_person_may_ask_once_more_when_the_server_has_forgotten() {
        let (mut refusals, start, mut jitter) =
            (Refusals::default(), Moment::at(S(1)), Jitter::seeded(1));
        for _ in 0..2 {
            refusals.refused(&failure(Cause::Rejected), start, &mut jitter);
        }
        refusals.refresh_now(start.plus(S(899)));
        assert_eq!(
            refusals.admit(start),
            None,
            "a HUP each minute would lock the role"
        );
        let later = start.plus(LOCKOUT);
        refusals.refresh_now(later);
        assert_eq!(refusals.admit(later), Some(later));
        assert_eq!(
            refusals.refused(&failure(Cause::Rejected), later, &mut jitter),
            None,
            "one try, not two"
        );
    }
}
