//! Publishing, and telling supervise of it. Invariants: what the outlet does not take is offered
//! again, newer content in place of older; `Ready` is sent once; later changes are told when they
//! were announced, each hook once for all of them.

use super::backend::{Announced, Backend};
use super::chunks::Chunks;
use super::private::file_shape;
use crate::clock::{Clock, Jitter, Moment};
use crate::config::plan::Plan;
use crate::exit::{Exit, Refused};
use crate::lease::Timing;
use crate::link::{End, FromRole};
use crate::names::{FileId, Generation, HookId};
use crate::observe::Event;
use crate::render::Change;
use crate::snapshot::Publisher;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// How long to wait for room in a full link.
const FULL: Duration = Duration::from_millis(100);

/// How often a file was published, and when last.
pub(super) type Published = (u64, Option<SystemTime>);

/// The part of the checkpoint that stands beside the history.
#[derive(Serialize, Deserialize)]
pub(super) struct PressState {
    hooks: BTreeSet<HookId>,
    ready: bool,
    refused: Vec<(FileId, Vec<u8>)>,
}

/// A backend and what it owes.
pub(super) struct Press<'a> {
    backend: Backend,
    link: &'a End,
    plan: &'a Plan,
    timing: Timing,
    jitter: Jitter,
    /// By file.
    pub(super) history: Chunks<Published>,
    /// The hooks of what was published after the first time and not announced yet.
    unheard: BTreeSet<(Generation, HookId)>,
    /// What supervise is to be told.
    owed: Vec<FromRole>,
    /// Whether the first publication was made.
    ready: bool,
    /// What the outlet did not take.
    refused: BTreeMap<FileId, Zeroizing<Vec<u8>>>,
    /// The last trouble that was told, how often in a row there was any, and when it is tried
    /// again.
    trouble: Option<String>,
    failures: u32,
    again: Option<Moment>,
    /// When the outlet is tended.
    tend: Option<Moment>,
}

impl<'a> Press<'a> {
    pub(super) fn new(backend: Backend, link: &'a End, plan: &'a Plan, timing: Timing) -> Self {
        Self {
            backend,
            link,
            plan,
            timing,
            jitter: Jitter::new(),
            history: Chunks::new(vec![(0, None); plan.files.len()], file_shape(plan)),
            unheard: BTreeSet::new(),
            owed: Vec::new(),
            ready: false,
            refused: BTreeMap::new(),
            trouble: None,
            failures: 0,
            again: None,
            tend: None,
        }
    }

    /// The part of the checkpoint that stands beside the history.
    pub(super) fn state(&self) -> PressState {
        let owed = self.owed.iter().filter_map(|message| match message {
            FromRole::Changed(hook) => Some(*hook),
            FromRole::Ready | FromRole::Failed(_) | FromRole::Alive => None,
        });
        PressState {
            hooks: self
                .unheard
                .iter()
                .map(|(_, hook)| *hook)
                .chain(owed)
                .collect(),
            ready: self.ready,
            refused: self
                .refused
                .iter()
                .map(|(file, bytes)| (*file, bytes.to_vec()))
                .collect(),
        }
    }

    /// Resumes from a predecessor's checkpoint. Messages that supervise may not have received are
    /// sent again.
    pub(super) fn resume(&mut self, note: PressState, history: Vec<Published>, clock: &dyn Clock) {
        self.history = Chunks::new(history, file_shape(self.plan));
        self.ready = note.ready;
        self.refused = note
            .refused
            .into_iter()
            .map(|(file, bytes)| (file, Zeroizing::new(bytes)))
            .collect();
        self.owed = note.hooks.into_iter().map(FromRole::Changed).collect();
        if self.ready {
            self.owed.insert(0, FromRole::Ready);
        }
        // Nothing is offered again before the first publication: it is complete, or it is none.
        (self.again, self.tend) = (self.ready.then(|| clock.now()), Some(clock.now()));
    }

    /// When `turn` is due.
    pub(super) fn wake(&self) -> Option<Moment> {
        self.again.into_iter().chain(self.tend).min()
    }

    /// Offers again what was refused, and tends the outlet, when it is time.
    pub(super) fn turn(&mut self, publisher: &mut Publisher, clock: &dyn Clock) {
        let now = clock.now();
        if self.again.is_some_and(|again| again <= now) {
            self.again = None;
            // Not the first publication: nothing is refused before it.
            let _ = self.publish(publisher, Vec::new(), clock);
        }
        if self.tend.is_some_and(|tend| tend <= now) {
            self.tend(publisher, clock);
        }
    }

    /// What was announced is owed to supervise.
    pub(super) fn announced(&mut self, announced: Announced, clock: &dyn Clock) {
        match announced {
            Ok(Generation(generation)) => {
                let later = self
                    .unheard
                    .split_off(&(Generation(generation + 1), HookId(0)));
                let heard: BTreeSet<HookId> = std::mem::replace(&mut self.unheard, later)
                    .into_iter()
                    .map(|(_, hook)| hook)
                    .collect();
                let new = heard
                    .into_iter()
                    .map(FromRole::Changed)
                    .filter(|message| !self.owed.contains(message));
                self.owed.extend(new.collect::<Vec<_>>());
            }
            Err(why) => {
                let wait = self.fail(why);
                self.tend = Some(clock.now().plus(wait));
            }
        }
    }

    /// Publishes `changes` with all that was refused before.
    ///
    /// # Errors
    /// The exit code when the first publication is refused.
    pub(super) fn publish(
        &mut self,
        publisher: &mut Publisher,
        changes: Vec<Change>,
        clock: &dyn Clock,
    ) -> Result<(), Exit> {
        self.refused.extend(changes);
        if self.refused.is_empty() && self.is_ready() {
            return Ok(());
        }
        let all: Vec<Change> = std::mem::take(&mut self.refused).into_iter().collect();
        match self.backend.publish(publisher, &all, clock) {
            Ok(generation) => {
                self.published(generation, &all, clock);
                self.tend(publisher, clock);
                Ok(())
            }
            Err(error) => {
                let wait = self.fail(error.message);
                self.again = Some(clock.now().plus(wait));
                self.refused = all.into_iter().collect();
                if self.is_ready() {
                    Ok(())
                } else {
                    Err(error.exit)
                }
            }
        }
    }

    /// Tells supervise what it is owed; what a full link does not take is told later.
    pub(super) fn tell(&mut self, clock: &dyn Clock) {
        // When supervise is gone, the loop hears that by itself.
        let full = |message: &FromRole| {
            self.link
                .send(message)
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let sent = self.owed.iter().position(full).unwrap_or(self.owed.len());
        self.owed.drain(..sent);
        if !self.owed.is_empty() {
            let later = clock.now().plus(FULL);
            self.tend = Some(self.tend.map_or(later, |tend| tend.min(later)));
        }
    }

    /// Whether the first publication was made.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Why the newest content of the file is not served, if it is not.
    pub(super) fn refusal(&self, file: FileId) -> Option<&str> {
        self.trouble
            .as_deref()
            .filter(|_| self.refused.contains_key(&file))
    }

    /// Replaces a file of the agent's own state.
    ///
    /// # Errors
    /// As `Backend::report`.
    pub(super) fn report(
        &mut self,
        publisher: &mut Publisher,
        name: &'static str,
        bytes: &[u8],
        clock: &dyn Clock,
    ) -> Result<(), Refused> {
        self.backend.report(publisher, name, bytes, clock)
    }

    /// Takes away what is left of the files.
    pub(super) fn close(self) {
        self.backend.close();
    }

    fn published(&mut self, generation: Generation, changes: &[Change], clock: &dyn Clock) {
        (self.trouble, self.failures, self.again) = (None, 0, None);
        let files = changes.len();
        Event::Published { generation, files }.emit();
        if self.is_ready() {
            let hook = |(file, _): &Change| self.plan.files[file.index()].on_change;
            self.unheard.extend(
                changes
                    .iter()
                    .filter_map(hook)
                    .map(|hook| (generation, hook)),
            );
        } else {
            self.ready = true;
            Event::Ready { files }.emit();
            self.owed.push(FromRole::Ready);
        }
        for (file, _) in changes {
            let (times, last) = &mut self.history[file.index()];
            (*times, *last) = (*times + 1, Some(clock.wall()));
        }
    }

    fn tend(&mut self, publisher: &mut Publisher, clock: &dyn Clock) {
        self.tend = self
            .backend
            .maintain(publisher, clock.now())
            .map(|after| clock.now().plus(after.max(Duration::from_millis(20))));
    }

    /// Says a trouble, if it is not the last one; gives the wait before the next try.
    fn fail(&mut self, why: String) -> Duration {
        if self.trouble.as_ref() != Some(&why) {
            Event::NotPublished { why: &why }.emit();
        }
        self.trouble = Some(why);
        self.failures = self.failures.saturating_add(1);
        self.timing.slow.delay(self.failures - 1, &mut self.jitter)
    }
}
