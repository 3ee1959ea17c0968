//! When each thing that a rotation asks for is due: the first change starts the wait, what comes
//! meanwhile is merged into it. Invariants: pure; a change that was told is followed by one doing
//! that begins after it; a hook's command runs once at a time; two doings of one hook begin at
//! least `DISTANCE` apart.

use crate::clock::{Jitter, Moment};
use crate::config::plan::Hook;
use crate::names::HookId;
use nix::unistd::Pid;
use std::time::Duration;

/// The least time between the beginnings of two doings of one hook, whatever changes: who may write
/// a secret that is read again every 20 ms must not be able to restart the application at that
/// rate.
pub const DISTANCE: Duration = Duration::from_secs(1);

/// The hooks of a plan, and how far each is.
#[derive(Debug)]
pub struct Hooks<'a> {
    plan: &'a [Hook],
    /// As many, in the same order.
    states: Vec<HookState>,
    jitter: Jitter,
}

#[derive(Debug, Default)]
struct HookState {
    /// When it is to be done, if it was asked for.
    due: Option<Moment>,
    /// When it was done last, if it was.
    done: Option<Moment>,
    /// Its command, while it runs.
    run: Option<Run>,
}

/// A command that runs.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Its process, and the group that it leads.
    pid: Pid,
    /// When it is killed; `None` once it was.
    until: Option<Moment>,
}

/// Whether a command ended within its time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The command ended by itself.
    Met,
    /// The command was killed at its time limit.
    Missed,
}

impl<'a> Hooks<'a> {
    /// None is asked for yet.
    pub fn new(hooks: &'a [Hook], jitter: Jitter) -> Self {
        Self {
            plan: hooks,
            states: hooks.iter().map(|_| HookState::default()).collect(),
            jitter,
        }
    }

    /// The hook itself; `None` for an index that the plan does not have.
    pub fn hook(&self, id: HookId) -> Option<&'a Hook> {
        self.plan.get(id.index())
    }

    /// Files of this hook changed.
    pub fn asked(&mut self, id: HookId, now: Moment) {
        let (Some(hook), Some(state)) =
            (self.plan.get(id.index()), self.states.get_mut(id.index()))
        else {
            return;
        };
        let (jitter, splay) = (&mut self.jitter, hook.splay);
        let earliest = state.done.map(|done| done.plus(DISTANCE));
        state.due.get_or_insert_with(|| {
            now.plus(hook.debounce)
                .plus(jitter.between(Duration::ZERO, splay))
                .max(earliest.unwrap_or_default())
        });
    }

    /// What is to be done now; it is not asked for any more then. What still runs has to end first.
    pub fn due(&mut self, now: Moment) -> Vec<HookId> {
        let mut ids = Vec::new();
        for (id, state) in self.ids() {
            if state.run.is_none() && state.due.take_if(|due| *due <= now).is_some() {
                state.done = Some(now);
                ids.push(id);
            }
        }
        ids
    }

    /// The hook's command runs as `pid`, which may take until then.
    pub fn started(&mut self, id: HookId, pid: Pid, until: Moment) {
        if let Some(state) = self.states.get_mut(id.index()) {
            state.run = Some(Run {
                pid,
                until: Some(until),
            });
        }
    }

    /// The commands to be killed because their time is over, each once.
    pub fn overdue(&mut self, now: Moment) -> Vec<Pid> {
        let runs = self
            .states
            .iter_mut()
            .filter_map(|state| state.run.as_mut());
        runs.filter_map(|run| run.until.take_if(|until| *until <= now).map(|_| run.pid))
            .collect()
    }

    /// A process ended: whose command it was, if it was one.
    pub fn ended(&mut self, pid: Pid) -> Option<(HookId, Deadline)> {
        let (id, run) = self
            .ids()
            .find_map(|(id, state)| Some((id, state.run.take_if(|run| run.pid == pid)?)))?;
        Some((
            id,
            if run.until.is_some() {
                Deadline::Met
            } else {
                Deadline::Missed
            },
        ))
    }

    /// The commands that run.
    pub fn running(&self) -> impl Iterator<Item = Pid> {
        self.states
            .iter()
            .filter_map(|state| state.run)
            .map(|run| run.pid)
    }

    /// When `due` or `overdue` has something.
    pub fn wake(&self) -> Option<Moment> {
        self.states
            .iter()
            .filter_map(|state| state.run.map_or(state.due, |run| run.until))
            .min()
    }

    fn ids(&mut self) -> impl Iterator<Item = (HookId, &mut HookState)> {
        (0..).map(HookId).zip(&mut self.states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Action;
    use proptest::prelude::*;

    const fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    fn hook(debounce: u64, splay: u64) -> Hook {
        Hook {
            action: Action::Restart,
            debounce: Duration::from_millis(debounce),
            splay: Duration::from_millis(splay),
        }
    }

    /// Which, and when.
    type Asked = &'static [(HookId, u64)];

    const FIRST: HookId = HookId(0);
    const SECOND: HookId = HookId(1);

    #[test]
    fn what_comes_within_the_debounce_is_one() {
        let plan = [hook(100, 0), hook(0, 0)];
        let mut hooks = Hooks::new(&plan, Jitter::seeded(1));
        assert_eq!(hooks.wake(), None);
        // When a hook is asked for, when the hooks are looked at, and what is due then.
        let table: &[(Asked, u64, &[HookId], Option<u64>)] = &[
            (&[(FIRST, 0)], 99, &[], Some(100)),
            (&[(FIRST, 99), (FIRST, 100)], 100, &[FIRST], None),
            (&[], 500, &[], None),
            (
                &[(FIRST, 1_500), (SECOND, 1_550)],
                1_550,
                &[SECOND],
                Some(1_600),
            ),
            // The second one was done at 1,550: not again before 2,550.
            (&[(SECOND, 1_560)], 1_700, &[FIRST], Some(2_550)),
            (
                &[(SECOND, 2_000), (FIRST, 2_500)],
                2_550,
                &[SECOND],
                Some(2_700),
            ),
            (&[(HookId(2), 2_700)], 2_700, &[FIRST], None),
        ];
        for (asked, now, due, wake) in table {
            for (hook, when) in *asked {
                hooks.asked(*hook, at(*when));
            }
            assert_eq!(
                (hooks.due(at(*now)), hooks.wake()),
                (due.to_vec(), wake.map(at)),
                "{asked:?} at {now}"
            );
        }
    }

    #[test]
    fn a_command_runs_once_at_a_time_and_once_more_for_all_that_came_meanwhile() {
        let plan = [hook(0, 0)];
        let mut hooks = Hooks::new(&plan, Jitter::seeded(1));
        let (one, two) = (Pid::from_raw(11), Pid::from_raw(12));
        hooks.started(FIRST, one, at(1000));
        for now in [10, 20, 30] {
            hooks.asked(FIRST, at(now));
            assert_eq!(hooks.due(at(now)), []);
        }
        assert_eq!((hooks.wake(), hooks.ended(two)), (Some(at(1000)), None));
        assert_eq!(hooks.ended(one), Some((FIRST, Deadline::Met)));
        assert_eq!(
            (hooks.due(at(40)), hooks.due(at(50))),
            (vec![FIRST], vec![])
        );
        hooks.started(FIRST, two, at(5_000));
        hooks.asked(FIRST, at(60));
        assert_eq!(hooks.ended(two), Some((FIRST, Deadline::Met)));
        assert_eq!(
            (hooks.due(at(1_039)), hooks.due(at(1_040))),
            (vec![], vec![FIRST]),
            "a second after the last one began"
        );
    }

    #[test]
    fn a_command_is_killed_once() {
        let plan = [hook(0, 0)];
        let mut hooks = Hooks::new(&plan, Jitter::seeded(1));
        let pid = Pid::from_raw(11);
        hooks.started(FIRST, pid, at(1000));
        assert_eq!(
            (
                hooks.overdue(at(999)),
                hooks.overdue(at(1000)),
                hooks.overdue(at(1001))
            ),
            (vec![], vec![pid], vec![])
        );
        assert_eq!((hooks.wake(), hooks.running().collect()), (None, vec![pid]));
        assert_eq!(
            (hooks.ended(pid), hooks.running().next()),
            (Some((FIRST, Deadline::Missed)), None)
        );
    }

    proptest! {
        #[test]
        fn two_doings_of_one_hook_are_a_second_apart_and_no_change_is_forgotten(
            asks in proptest::collection::vec((0_usize..2, 0_u64..700), 1..60),
            debounce in 0_u64..3000,
            seed in any::<u64>(),
        ) {
            let plan = [hook(0, 0), hook(debounce, 500)];
            let mut hooks = Hooks::new(&plan, Jitter::seeded(seed));
            let (mut now, mut last, mut asked, mut begun) = (at(0), [None; 2], [None; 2], 0);
            let mut look = |hooks: &mut Hooks, now: Moment, asked: &mut [Option<Moment>; 2]| {
                for id in hooks.due(now) {
                    if let Some(last) = last[id.index()].replace(now) {
                        assert!(now.since(last) >= DISTANCE);
                    }
                    assert!(asked[id.index()].take().is_some(), "nobody asked");
                    begun += 1;
                }
            };
            for (which, pause) in asks {
                hooks.asked(HookId(u16::try_from(which).expect("small")), now);
                asked[which] = Some(now);
                now = now.plus(Duration::from_millis(pause));
                look(&mut hooks, now, &mut asked);
            }
            while let Some(wake) = hooks.wake() {
                now = now.max(wake);
                look(&mut hooks, now, &mut asked);
            }
            prop_assert_eq!(asked, [None; 2]);
            prop_assert!(begun > 0);
        }

        #[test]
        fn the_wait_is_the_debounce_and_at_most_the_splay(debounce in 0_u64..5000, splay in 0_u64..5000, seed in any::<u64>()) {
            let plan = [hook(debounce, splay)];
            let mut hooks = Hooks::new(&plan, Jitter::seeded(seed));
            hooks.asked(FIRST, at(0));
            let wake = hooks.wake().expect("it was asked for");
            prop_assert!(wake >= at(debounce) && wake <= at(debounce + splay));
            prop_assert_eq!(hooks.due(wake), vec![FIRST]);
        }
    }
}
