//! The queue of changes before the backend. Invariant: a refused change is offered again until the
//! change is published or newer content of the file arrives.

use super::backend::Backend;
use super::chunks::Chunks;
use super::private::file_shape;
use crate::clock::{Backoff, Clock, Jitter, Moment};
use crate::config::plan::Plan;
use crate::exit::Refused;
use crate::names::{FileId, Generation};
use crate::observe::{Event, Incident};
use crate::render::Change;
use crate::snapshot::Publisher;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// The shortest wait between two maintenances of the backend.
const MAINTENANCE: Duration = Duration::from_millis(20);

/// The number of publications of a file, and the time of the last one.
pub(super) type Published = (u64, Option<SystemTime>);

/// A generation that became visible.
pub(super) struct Publication {
    pub(super) generation: Generation,
    pub(super) files: Vec<FileId>,
}

/// The backend and the refused changes.
pub(super) struct Queue {
    pub(super) backend: Backend,
    /// By file.
    pub(super) history: Chunks<Published>,
    /// The refused changes, by file.
    refused: Vec<Change>,
    /// The last failure that was logged.
    trouble: Option<String>,
    /// Consecutive failures.
    failures: u32,
    /// When the refused changes are offered again.
    offer_at: Option<Moment>,
    maintain_at: Option<Moment>,
    backoff: Backoff,
    jitter: Jitter,
}

impl Queue {
    pub(super) fn new(backend: Backend, plan: &Plan, backoff: Backoff) -> Self {
        let unpublished = vec![(0, None); plan.files.len()];
        Self {
            backend,
            history: Chunks::new(unpublished, file_shape(plan)),
            refused: Vec::new(),
            trouble: None,
            failures: 0,
            offer_at: None,
            maintain_at: None,
            backoff,
            jitter: Jitter::new(),
        }
    }

    /// The refused changes, for the checkpoint.
    pub(super) fn refused(&self) -> Vec<(FileId, Vec<u8>)> {
        let copy = |(file, bytes): &Change| (*file, bytes.to_vec());
        self.refused.iter().map(copy).collect()
    }

    /// Resumes from a predecessor's checkpoint.
    pub(super) fn resume(&mut self, refused: Vec<(FileId, Vec<u8>)>, now: Moment) {
        for (file, bytes) in refused {
            self.refused.push((file, Zeroizing::new(bytes)));
        }
        self.offer_at = Some(now);
        self.maintain_at = Some(now);
    }

    /// The time of the next `turn`.
    pub(super) fn wake(&self) -> Option<Moment> {
        [self.offer_at, self.maintain_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Offers the refused changes again and maintains the backend, if due.
    pub(super) fn turn(
        &mut self,
        publisher: &mut Publisher,
        clock: &dyn Clock,
    ) -> Option<Publication> {
        let now = clock.now();
        let mut publication = None;
        if let Some(at) = self.offer_at
            && at <= now
        {
            self.offer_at = None;
            publication = self.offer(publisher, Vec::new(), clock);
        }
        if let Some(at) = self.maintain_at
            && at <= now
        {
            self.maintain(publisher, now);
        }
        publication
    }

    /// Publishes `changes` together with the refused changes. Returns `None` without a change, and
    /// after a refusal.
    pub(super) fn offer(
        &mut self,
        publisher: &mut Publisher,
        changes: Vec<Change>,
        clock: &dyn Clock,
    ) -> Option<Publication> {
        if changes.is_empty() && self.refused.is_empty() {
            return None;
        }
        self.publish(publisher, changes, clock).ok()
    }

    /// As `offer`, but also publishes a generation without a change: the first publication.
    ///
    /// # Errors
    /// The backend refused the changes, which stay in the queue.
    pub(super) fn publish(
        &mut self,
        publisher: &mut Publisher,
        mut changes: Vec<Change>,
        clock: &dyn Clock,
    ) -> Result<Publication, Refused> {
        changes.append(&mut self.refused);
        // The sort is stable: of two contents of a file the newer content comes first and stays.
        changes.sort_by_key(|(file, _)| *file);
        changes.dedup_by_key(|(file, _)| *file);
        let now = clock.now();
        match self.backend.publish(publisher, &changes, clock) {
            Ok(generation) => {
                self.trouble = None;
                self.failures = 0;
                self.offer_at = None;
                let files = changes.iter().map(|(file, _)| *file);
                let files: Vec<FileId> = files.collect();
                for file in &files {
                    self.history.update(file.index(), |(times, last)| {
                        *times += 1;
                        *last = Some(clock.wall());
                    });
                }
                self.maintain(publisher, now);
                Event::Published {
                    generation,
                    files: files.len(),
                }
                .emit();
                Ok(Publication { generation, files })
            }
            Err(refused) => {
                self.refused = changes;
                self.offer_at = Some(self.next_try(&refused.message, now));
                Err(refused)
            }
        }
    }

    /// Schedules another try after a failed announcement.
    pub(super) fn announcement_failed(&mut self, why: &str, now: Moment) {
        self.maintain_at = Some(self.next_try(why, now));
    }

    /// The reason for the refusal of the newest content of the file, if any.
    pub(super) fn refusal(&self, file: FileId) -> Option<&str> {
        let found = self.refused.binary_search_by_key(&file, |(file, _)| *file);
        found.ok()?;
        self.trouble.as_deref()
    }

    fn maintain(&mut self, publisher: &mut Publisher, now: Moment) {
        let wait = self.backend.maintain(publisher, now);
        self.maintain_at = wait.map(|wait| now.plus(wait.max(MAINTENANCE)));
    }

    /// Logs a failure, unless the last failure was the same; returns the time of the next try.
    fn next_try(&mut self, why: &str, now: Moment) -> Moment {
        if self.trouble.as_deref() != Some(why) {
            Incident::NotPublished.emit(&why);
        }
        self.trouble = Some(why.to_owned());
        let wait = self.backoff.delay(self.failures, &mut self.jitter);
        self.failures = self.failures.saturating_add(1);
        now.plus(wait)
    }
}
