//! The messages that supervise is owed. Invariants: `Ready` is sent once; a hook is sent after the
//! announcement of the change, and once for all changes that were announced meanwhile.

use super::publish::Publication;
use crate::clock::Moment;
use crate::config::plan::Plan;
use crate::link::{End, FromRole};
use crate::names::{Generation, HookId};
use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::time::Duration;

/// The wait for room in a full link.
const FULL: Duration = Duration::from_millis(100);

/// Tells supervise of publications.
pub(super) struct Notifier<'a> {
    link: &'a End,
    plan: &'a Plan,
    /// The hooks of changes that were published after the first publication and not announced yet.
    unannounced: BTreeSet<(Generation, HookId)>,
    /// The messages to send, in order, without duplicates.
    owed: VecDeque<FromRole>,
    /// When a full link is tried again.
    retry_at: Option<Moment>,
}

impl<'a> Notifier<'a> {
    pub(super) fn new(link: &'a End, plan: &'a Plan) -> Self {
        Self {
            link,
            plan,
            unannounced: BTreeSet::new(),
            owed: VecDeque::new(),
            retry_at: None,
        }
    }

    /// The hooks that supervise was not told of, for the checkpoint.
    pub(super) fn hooks(&self) -> BTreeSet<HookId> {
        let unannounced = self.unannounced.iter().map(|(_, hook)| *hook);
        let mut hooks: BTreeSet<_> = unannounced.collect();
        for message in &self.owed {
            if let FromRole::Changed(hook) = message {
                hooks.insert(*hook);
            }
        }
        hooks
    }

    /// Resumes from a predecessor's checkpoint: supervise may not have received these messages.
    pub(super) fn resume(&mut self, hooks: BTreeSet<HookId>, is_ready: bool) {
        if is_ready {
            self.ready();
        }
        self.owed.extend(hooks.into_iter().map(FromRole::Changed));
    }

    /// The first publication was made.
    pub(super) fn ready(&mut self) {
        self.owed.push_back(FromRole::Ready);
    }

    /// A later publication was made, if any.
    pub(super) fn published(&mut self, publication: Option<Publication>) {
        let Some(Publication { generation, files }) = publication else {
            return;
        };
        for file in files {
            if let Some(hook) = self.plan.files[file.index()].on_change {
                self.unannounced.insert((generation, hook));
            }
        }
    }

    /// `generation` and all generations before it were announced.
    pub(super) fn announced(&mut self, generation: Generation) {
        let next = (Generation(generation.0 + 1), HookId(0));
        let later = self.unannounced.split_off(&next);
        let announced = self.unannounced.iter().map(|(_, hook)| *hook);
        let hooks: BTreeSet<_> = announced.collect();
        self.unannounced = later;
        for hook in hooks {
            let message = FromRole::Changed(hook);
            if !self.owed.contains(&message) {
                self.owed.push_back(message);
            }
        }
    }

    /// The time of the next `send`, if the link was full.
    pub(super) fn wake(&self) -> Option<Moment> {
        self.retry_at
    }

    /// Sends the messages that the link has room for.
    pub(super) fn send(&mut self, now: Moment) {
        self.retry_at = None;
        while let Some(message) = self.owed.front() {
            if let Err(error) = self.link.send(message)
                && error.kind() == ErrorKind::WouldBlock
            {
                self.retry_at = Some(now.plus(FULL));
                return;
            }
            // The loop learns of the death of supervise when the loop receives.
            self.owed.pop_front();
        }
    }
}
