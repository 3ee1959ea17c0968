//! Publishing, and telling supervise of it. Invariants: what the outlet does not take is offered again, newer content in
//! place of older; `Ready` is sent once, and `Changed` once for each later generation that was announced.

use crate::clock::{Jitter, Moment};
use crate::exit::Exit;
use crate::lease::Pace;
use crate::link::{End, FromRole};
use crate::names::{FileId, Generation};
use crate::observe::Event;
use crate::render::Change;
use std::collections::BTreeMap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zeroize::Zeroizing;

/// Where files go: the arena with its announcing thread, or a tmpfs.
pub trait Outlet {
    /// Makes all `changes` visible in one step, or none of them. `announced` is told the generation once inotify
    /// watchers have seen it: at once, or later from another thread.
    ///
    /// # Errors
    /// Why the last generation stays; the same changes are offered again later.
    fn publish(&mut self, changes: &[Change], announced: &Announced) -> Result<Generation, OutletError>;

    /// Removes what old generations have left, as far as it is due. When it is worth to come again, if at all.
    fn tidy(&mut self) -> Option<Moment> {
        None
    }
}

/// Why something could not be published. Holds no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutletError {
    /// What and why.
    pub what: String,
    /// The exit code, should it be the first publication.
    pub exit: Exit,
}

/// Tells the loop that a generation was announced; may be used in any thread.
#[derive(Clone, Debug)]
pub struct Announced(UnboundedSender<Generation>);

impl Announced {
    /// `generation` was announced.
    pub fn done(&self, generation: Generation) {
        // Nobody receives once the loop has ended: then nobody needs to know.
        let _ = self.0.send(generation);
    }
}

/// An outlet and what it owes.
pub(super) struct Press<'a, O> {
    outlet: O,
    link: &'a End,
    pace: Pace,
    announced: (Announced, UnboundedReceiver<Generation>),
    /// The generation of the first publication.
    first: Option<Generation>,
    /// What the outlet did not take; the last reason; how often in a row; when it is offered again.
    refused: BTreeMap<FileId, Zeroizing<Vec<u8>>>,
    reason: Option<OutletError>,
    failures: u32,
    again: Option<Moment>,
}

impl<'a, O: Outlet> Press<'a, O> {
    pub(super) fn new(outlet: O, link: &'a End, pace: Pace) -> Self {
        let (sender, receiver) = unbounded_channel();
        Self {
            outlet,
            link,
            pace,
            announced: (Announced(sender), receiver),
            first: None,
            refused: BTreeMap::new(),
            reason: None,
            failures: 0,
            again: None,
        }
    }

    /// When refused changes are to be offered again.
    pub(super) fn wake(&self) -> Option<Moment> {
        self.again
    }

    /// The next generation that was announced.
    pub(super) async fn announced(&mut self) -> Generation {
        match self.announced.1.recv().await {
            Some(generation) => generation,
            None => std::future::pending().await,
        }
    }

    /// Tells supervise of an announced rotation. A message lost to a full link changes nothing: as many wait there already.
    pub(super) fn tell(&self, generation: Generation) {
        if self.first.is_some_and(|first| generation > first) {
            let _ = self.link.send(&FromRole::Changed);
        }
    }

    /// Publishes `changes` with all that was refused before.
    ///
    /// # Errors
    /// The exit code when the first publication is refused.
    pub(super) fn publish(&mut self, changes: Vec<Change>, now: Moment, jitter: &mut Jitter) -> Result<(), Exit> {
        let first = self.first.is_none();
        self.refused.extend(changes);
        if self.refused.is_empty() && !first {
            return Ok(());
        }
        let all: Vec<Change> = std::mem::take(&mut self.refused).into_iter().collect();
        match self.outlet.publish(&all, &self.announced.0) {
            Ok(generation) => {
                (self.reason, self.failures, self.again) = (None, 0, None);
                Event::Published { generation, files: all.len() }.emit();
                if first {
                    self.first = Some(generation);
                    Event::Ready { files: all.len() }.emit();
                    let _ = self.link.send(&FromRole::Ready);
                }
                Ok(())
            }
            Err(error) => {
                if self.reason.as_ref() != Some(&error) {
                    Event::Broken { what: &error.what }.emit();
                }
                let exit = error.exit;
                self.again = Some(now.plus(self.pace.slow.delay(self.failures, jitter)));
                (self.reason, self.failures) = (Some(error), self.failures.saturating_add(1));
                self.refused = all.into_iter().collect();
                if first { Err(exit) } else { Ok(()) }
            }
        }
    }
}
