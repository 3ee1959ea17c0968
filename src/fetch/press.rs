//! Publishing, and telling supervise of it. Invariants: what the outlet does not take is offered
//! again, newer content in place of older; `Ready` is sent once; later changes are told when they
//! were announced, each hook once for all of them.

use super::tracked::Tracked;
use crate::clock::{Clock, Jitter, Moment};
use crate::config::plan::Plan;
use crate::exit::Exit;
use crate::lease::Timing;
use crate::link::{End, FromRole};
use crate::names::{FileId, Generation, HookId};
use crate::observe::{Event, Incident};
use crate::render::Change;
use crate::snapshot::Publisher;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zeroize::Zeroizing;

/// Where files go: the arena with its announcing thread, or a tmpfs.
pub trait Outlet {
    /// Makes all `changes` visible in one step, or none of them. `publisher` is the arena's one
    /// writer, here and below: the loop owns it.
    ///
    /// # Errors
    /// Why the last generation stays; the same changes are offered again later.
    fn publish(
        &mut self,
        publisher: &mut Publisher,
        changes: &[Change],
        clock: &dyn Clock,
    ) -> Result<Generation, OutletError>;

    /// Replaces the report on all this, which is no secret and is not announced.
    ///
    /// # Errors
    /// Why the last one stays.
    fn report(
        &mut self,
        publisher: &mut Publisher,
        bytes: &[u8],
        clock: &dyn Clock,
    ) -> Result<(), OutletError>;

    /// What is to be done besides: wiping old versions, announcing again what could not be
    /// announced. Called after every publication, and again after what it returns.
    fn tend(&mut self, publisher: &mut Publisher, clock: &dyn Clock) -> Option<Duration>;

    /// Takes away what is left of the files, at the end.
    fn close(self);
}

/// Why something could not be published. Holds no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutletError {
    /// What and why.
    pub what: String,
    /// The exit code, should it be the first publication.
    pub exit: Exit,
}

/// How an outlet says that inotify watchers have seen a generation, or why not; may be used in any
/// thread.
#[derive(Clone, Debug)]
pub struct Announced(UnboundedSender<Result<Generation, String>>);

impl Announced {
    /// `generation` was announced, and all before it.
    pub fn done(&self, generation: Generation) {
        // Nobody receives once the loop has ended: then nobody needs to know. Here and below.
        let _ = self.0.send(Ok(generation));
    }

    /// Something could not be announced, and this is why; the outlet is tended again after a while.
    pub fn failed(&self, why: String) {
        let _ = self.0.send(Err(why));
    }
}

/// How long to wait for room in a full link.
const FULL: Duration = Duration::from_millis(100);

/// What the announcing side says, in order.
pub(super) type Announcements = UnboundedReceiver<Result<Generation, String>>;

/// By file: how often it was published, and when last.
pub(super) type History = Vec<(u64, Option<SystemTime>)>;

/// The part of the checkpoint that stands beside the history.
#[derive(Serialize, Deserialize)]
pub(super) struct PressNote {
    hooks: BTreeSet<HookId>,
    ready: bool,
    refused: Vec<(FileId, Vec<u8>)>,
}

/// An outlet and what it owes.
pub(super) struct Press<'a, O> {
    outlet: O,
    link: &'a End,
    plan: &'a Plan,
    timing: Timing,
    jitter: Jitter,
    history: Tracked<History>,
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

impl<'a, O: Outlet> Press<'a, O> {
    /// Opens the outlet.
    ///
    /// # Errors
    /// As `open`.
    pub(super) fn open<F>(
        open: F,
        link: &'a End,
        plan: &'a Plan,
        timing: Timing,
    ) -> Result<(Self, Announcements), OutletError>
    where
        F: FnOnce(Announced) -> Result<O, OutletError>,
    {
        let (sender, receiver) = unbounded_channel();
        let press = Self {
            outlet: open(Announced(sender))?,
            link,
            plan,
            timing,
            jitter: Jitter::new(),
            history: Tracked::new(vec![(0, None); plan.files.len()]),
            unheard: BTreeSet::new(),
            owed: Vec::new(),
            ready: false,
            refused: BTreeMap::new(),
            trouble: None,
            failures: 0,
            again: None,
            tend: None,
        };
        Ok((press, receiver))
    }

    /// The part of the checkpoint that is written only when it changed.
    pub(super) fn history_part(&mut self) -> &mut Tracked<History> {
        &mut self.history
    }

    /// The part of the checkpoint that stands beside the history.
    pub(super) fn note(&self) -> PressNote {
        let owed = self.owed.iter().filter_map(|message| match message {
            FromRole::Changed(hook) => Some(*hook),
            FromRole::Ready | FromRole::Failed(_) | FromRole::Alive => None,
        });
        PressNote {
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
    pub(super) fn resume(&mut self, note: PressNote, history: History, clock: &dyn Clock) {
        (self.history, self.ready) = (Tracked::new(history), note.ready);
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
    pub(super) fn announced(&mut self, announced: Result<Generation, String>, clock: &dyn Clock) {
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
        match self.outlet.publish(publisher, &all, clock) {
            Ok(generation) => {
                self.published(generation, &all, clock);
                self.tend(publisher, clock);
                Ok(())
            }
            Err(error) => {
                let wait = self.fail(error.what);
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

    /// How often the file was published, and when last.
    pub(super) fn history(&self, file: FileId) -> (u64, Option<SystemTime>) {
        self.history[file.index()]
    }

    /// Why the newest content of the file is not served, if it is not.
    pub(super) fn refusal(&self, file: FileId) -> Option<&str> {
        self.trouble
            .as_deref()
            .filter(|_| self.refused.contains_key(&file))
    }

    /// Replaces the report.
    ///
    /// # Errors
    /// As `Outlet::report`.
    pub(super) fn report(
        &mut self,
        publisher: &mut Publisher,
        bytes: &[u8],
        clock: &dyn Clock,
    ) -> Result<(), OutletError> {
        self.outlet.report(publisher, bytes, clock)
    }

    /// Takes away what is left of the files.
    pub(super) fn close(self) {
        self.outlet.close();
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
            .outlet
            .tend(publisher, clock)
            .map(|after| clock.now().plus(after.max(Duration::from_millis(20))));
    }

    /// Says a trouble, if it is not the last one; gives the wait before the next try.
    fn fail(&mut self, why: String) -> Duration {
        if self.trouble.as_ref() != Some(&why) {
            Incident::NotPublished.emit(&why);
        }
        self.trouble = Some(why);
        self.failures = self.failures.saturating_add(1);
        self.timing.slow.delay(self.failures - 1, &mut self.jitter)
    }
}
