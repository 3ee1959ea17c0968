//! Publishing, and telling supervise of it. Invariants: what the outlet does not take is offered again, newer content in
//! place of older; `Ready` is sent once, and `Changed` once for each later generation that was announced.

use crate::clock::{Clock, Jitter, Moment};
use crate::exit::Exit;
use crate::lease::Pace;
use crate::link::{End, FromRole};
use crate::names::{FileId, Generation};
use crate::observe::Event;
use crate::render::Change;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zeroize::Zeroizing;

/// Where files go: the arena with its announcing thread, or a tmpfs.
pub trait Outlet {
    /// Makes all `changes` visible in one step, or none of them.
    ///
    /// # Errors
    /// Why the last generation stays; the same changes are offered again later.
    fn publish(&mut self, changes: &[Change], clock: &dyn Clock) -> Result<Generation, OutletError>;

    /// What is to be done besides: wiping old versions, announcing again what could not be announced. Called after every
    /// publication, and again after what it returns.
    fn tend(&mut self, clock: &dyn Clock) -> Option<Duration>;

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

/// How an outlet says that inotify watchers have seen a generation, or why not; may be used in any thread.
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

/// What the announcing side says, in order.
pub(super) type Announcements = UnboundedReceiver<Result<Generation, String>>;

/// An outlet and what it owes.
pub(super) struct Press<'a, O> {
    outlet: O,
    link: &'a End,
    pace: Pace,
    jitter: Jitter,
    /// The generation of the first publication, and the last one that supervise knows of.
    first: Option<Generation>,
    told: Generation,
    /// What the outlet did not take.
    refused: BTreeMap<FileId, Zeroizing<Vec<u8>>>,
    /// The last trouble that was told, how often in a row there was any, and when it is tried again.
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
    pub(super) fn open<F>(open: F, link: &'a End, pace: Pace) -> Result<(Self, Announcements), OutletError>
    where
        F: FnOnce(Announced) -> Result<O, OutletError>,
    {
        let (sender, receiver) = unbounded_channel();
        let press = Self {
            outlet: open(Announced(sender))?,
            link,
            pace,
            jitter: Jitter::new(),
            first: None,
            told: Generation::default(),
            refused: BTreeMap::new(),
            trouble: None,
            failures: 0,
            again: None,
            tend: None,
        };
        Ok((press, receiver))
    }

    /// When `turn` is due.
    pub(super) fn wake(&self) -> Option<Moment> {
        self.again.into_iter().chain(self.tend).min()
    }

    /// Offers again what was refused, and tends the outlet, when it is time.
    pub(super) fn turn(&mut self, clock: &dyn Clock) {
        let now = clock.now();
        if self.again.is_some_and(|again| again <= now) {
            self.again = None;
            // Not the first publication: nothing is refused before it.
            let _ = self.publish(Vec::new(), clock);
        }
        if self.tend.is_some_and(|tend| tend <= now) {
            self.tend(clock);
        }
    }

    /// Tells supervise of an announced rotation. A message that a full link drops changes nothing: as many wait there already.
    pub(super) fn announced(&mut self, announced: Result<Generation, String>, clock: &dyn Clock) {
        match announced {
            Ok(generation) if self.first.is_some_and(|first| generation > first) && generation > self.told => {
                self.told = generation;
                let _ = self.link.send(&FromRole::Changed(crate::names::HookId(0)));
            }
            Ok(_) => {}
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
    pub(super) fn publish(&mut self, changes: Vec<Change>, clock: &dyn Clock) -> Result<(), Exit> {
        self.refused.extend(changes);
        if self.refused.is_empty() && self.first.is_some() {
            return Ok(());
        }
        let all: Vec<Change> = std::mem::take(&mut self.refused).into_iter().collect();
        match self.outlet.publish(&all, clock) {
            Ok(generation) => {
                self.published(generation, all.len());
                self.tend(clock);
                Ok(())
            }
            Err(error) => {
                let wait = self.fail(error.what);
                self.again = Some(clock.now().plus(wait));
                self.refused = all.into_iter().collect();
                if self.first.is_some() { Ok(()) } else { Err(error.exit) }
            }
        }
    }

    /// Takes away what is left of the files.
    pub(super) fn close(self) {
        self.outlet.close();
    }

    fn published(&mut self, generation: Generation, files: usize) {
        (self.trouble, self.failures, self.again) = (None, 0, None);
        Event::Published { generation, files }.emit();
        if self.first.replace(self.first.unwrap_or(generation)).is_none() {
            Event::Ready { files }.emit();
            let _ = self.link.send(&FromRole::Ready);
        }
    }

    fn tend(&mut self, clock: &dyn Clock) {
        self.tend = self.outlet.tend(clock).map(|after| clock.now().plus(after.max(Duration::from_millis(20))));
    }

    /// Says a trouble, if it is not the last one; gives the wait before the next try.
    fn fail(&mut self, why: String) -> Duration {
        if self.trouble.as_ref() != Some(&why) {
            Event::Broken { what: &why }.emit();
        }
        self.trouble = Some(why);
        self.failures = self.failures.saturating_add(1);
        self.pace.slow.delay(self.failures - 1, &mut self.jitter)
    }
}
