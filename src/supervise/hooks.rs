//! Decides when the hooks of a rotation are due: the first change starts a wait, and later changes
//! within the wait are merged. Invariants: pure; every change is followed by a run of the hook that
//! begins later; a hook runs at most one command at a time; two runs of a hook begin at least
//! `DISTANCE` apart.

use crate::clock::{Jitter, Moment};
use crate::config::plan::{Action, Hook};
use crate::names::HookId;
use nix::unistd::Pid;
use std::time::Duration;

/// The least time between the beginnings of two runs of a hook: the writer of a secret with a read
/// interval of 20 ms must not be able to restart the application every 20 ms.
pub const DISTANCE: Duration = Duration::from_secs(1);

/// The hooks of a plan, and the state of each.
#[derive(Debug)]
pub struct Hooks<'a> {
    plan: &'a [Hook],
    /// Indexed by `HookId`, as the plan.
    states: Vec<HookState>,
    jitter: Jitter,
}

#[derive(Clone, Debug, Default)]
struct HookState {
    /// The time of the next run, after a change.
    due: Option<Moment>,
    /// The beginning of the last run.
    begun: Option<Moment>,
    /// The running command.
    command: Option<RunningCommand>,
}

/// A running command.
#[derive(Clone, Copy, Debug)]
struct RunningCommand {
    /// The process, which leads a process group.
    pid: Pid,
    /// The time limit; `None` after the kill.
    until: Option<Moment>,
}

/// Whether a command ended within the time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The command ended before the limit.
    Met,
    /// The command was killed at the limit.
    Missed,
}

impl<'a> Hooks<'a> {
    /// Hooks without a change.
    pub fn new(plan: &'a [Hook], jitter: Jitter) -> Self {
        Self {
            plan,
            states: vec![HookState::default(); plan.len()],
            jitter,
        }
    }

    /// The action of a hook; `None` for an index outside the plan.
    pub fn action(&self, id: HookId) -> Option<&'a Action> {
        Some(&self.plan.get(id.index())?.action)
    }

    /// Records a change of a file with the hook `id`. An index outside the plan is ignored.
    pub fn changed(&mut self, id: HookId, now: Moment) {
        let Some(hook) = self.plan.get(id.index()) else {
            return;
        };
        let Some(state) = self.states.get_mut(id.index()) else {
            return;
        };
        if state.due.is_some() {
            return;
        }
        let splay = self.jitter.between(Duration::ZERO, hook.splay);
        let mut due = now.plus(hook.debounce).plus(splay);
        if let Some(begun) = state.begun {
            due = due.max(begun.plus(DISTANCE));
        }
        state.due = Some(due);
    }

    /// The hooks to run now, which are idle afterwards. A hook with a running command has to wait.
    pub fn due(&mut self, now: Moment) -> Vec<HookId> {
        let mut ids = Vec::new();
        for (id, state) in self.ids() {
            if let Some(due) = state.due
                && due <= now
                && state.command.is_none()
            {
                state.due = None;
                state.begun = Some(now);
                ids.push(id);
            }
        }
        ids
    }

    /// Records the start of a hook's command with the time limit `until`.
    pub fn started(&mut self, id: HookId, pid: Pid, until: Moment) {
        if let Some(state) = self.states.get_mut(id.index()) {
            let until = Some(until);
            state.command = Some(RunningCommand { pid, until });
        }
    }

    /// The commands to kill at the end of the time limit, each once.
    pub fn overdue(&mut self, now: Moment) -> Vec<Pid> {
        let mut pids = Vec::new();
        for state in &mut self.states {
            if let Some(RunningCommand { pid, until }) = &mut state.command
                && let Some(end) = *until
                && end <= now
            {
                *until = None;
                pids.push(*pid);
            }
        }
        pids
    }

    /// Records the end of a process. The result is the hook, if the process was a command.
    pub fn ended(&mut self, pid: Pid) -> Option<(HookId, Deadline)> {
        for (id, state) in self.ids() {
            if let Some(command) = state.command
                && command.pid == pid
            {
                state.command = None;
                let deadline = match command.until {
                    Some(_) => Deadline::Met,
                    None => Deadline::Missed,
                };
                return Some((id, deadline));
            }
        }
        None
    }

    /// The running commands.
    pub fn running(&self) -> impl Iterator<Item = Pid> {
        let commands = self.states.iter().filter_map(|state| state.command);
        commands.map(|command| command.pid)
    }

    /// The next moment at which `due` or `overdue` gives a result.
    pub fn wake(&self) -> Option<Moment> {
        let moments = self.states.iter().filter_map(|state| match state.command {
            Some(command) => command.until,
            None => state.due,
        });
        moments.min()
    }

    fn ids(&mut self) -> impl Iterator<Item = (HookId, &mut HookState)> {
        (0..).map(HookId).zip(&mut self.states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// The changed hooks, and the times.
    type Asked = &'static [(HookId, u64)];

    const FIRST: HookId = HookId(0);
    const SECOND: HookId = HookId(1);

    #[test]
    fn changes_within_the_debounce_are_merged() {
        let plan = [hook(100, 0), hook(0, 0)];
        let mut hooks = Hooks::new(&plan, Jitter::seeded(1));
        assert_eq!(hooks.wake(), None);
        // (the changes, the present, the hooks that are due, the next moment)
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
            // The second hook ran at 1,550: not again before 2,550.
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
                hooks.changed(*hook, at(*when));
            }
            assert_eq!(
                (hooks.due(at(*now)), hooks.wake()),
                (due.to_vec(), wake.map(at)),
                "{asked:?} at {now}"
            );
        }
    }

    #[test]
    fn a_command_runs_once_at_a_time_and_once_more_for_all_later_changes() {
        let plan = [hook(0, 0)];
        let mut hooks = Hooks::new(&plan, Jitter::seeded(1));
        let (one, two) = (Pid::from_raw(11), Pid::from_raw(12));
        hooks.started(FIRST, one, at(1000));
        for now in [10, 20, 30] {
            hooks.changed(FIRST, at(now));
            assert_eq!(hooks.due(at(now)), []);
        }
        assert_eq!((hooks.wake(), hooks.ended(two)), (Some(at(1000)), None));
        assert_eq!(hooks.ended(one), Some((FIRST, Deadline::Met)));
        assert_eq!(
            (hooks.due(at(40)), hooks.due(at(50))),
            (vec![FIRST], vec![])
        );
        hooks.started(FIRST, two, at(5_000));
        hooks.changed(FIRST, at(60));
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
        fn two_runs_of_a_hook_are_a_second_apart_and_no_change_is_forgotten(
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
                hooks.changed(HookId(u16::try_from(which).expect("small")), now);
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
            hooks.changed(FIRST, at(0));
            let wake = hooks.wake().expect("it was asked for");
            prop_assert!(wake >= at(debounce) && wake <= at(debounce + splay));
            prop_assert_eq!(hooks.due(wake), vec![FIRST]);
        }
    }
}
