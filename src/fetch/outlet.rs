//! The two outlets: the arena with its announcing thread, and a tmpfs.

use super::press::{Announced, Outlet, OutletError};
use crate::clock::Clock;
use crate::exit::Exit;
use crate::fuse::announce::Announcer;
use crate::names::{FileId, Generation};
use crate::observe::Event;
use crate::render::Change;
use crate::snapshot::{self, Arena, Publisher, Visibility};
use crate::status;
use crate::tmpfs::Writer;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How long after a rotation, and how often while somebody keeps an old version open, old versions
/// are freed and wiped.
const COLLECT: Duration = Duration::from_secs(2);

/// Publishes into the arena: `serve` answers from it, and the announcing thread makes the events.
#[derive(Debug)]
pub struct ArenaOutlet {
    /// The file that the report is written to.
    report: Option<FileId>,
    announcer: Announcer,
}

impl ArenaOutlet {
    /// Takes over the arena, and the private mount to announce on.
    ///
    /// # Errors
    /// When the system gives no thread to announce with.
    pub fn open(
        arena: &Arc<Arena>,
        private: OwnedFd,
        announced: Announced,
    ) -> Result<Self, OutletError> {
        let done = move |round: Result<Generation, _>| match round {
            Ok(generation) => announced.done(generation),
            Err(error) => announced.failed(format!("{error}")),
        };
        let thread = Announcer::start(Arc::clone(arena), private, done);
        let report = arena.files_in(Visibility::State).next();
        Ok(Self {
            report,
            announcer: thread.map_err(|error| refused(&error, Exit::Software))?,
        })
    }
}

impl Outlet for ArenaOutlet {
    fn publish(
        &mut self,
        publisher: &mut Publisher,
        changes: &[Change],
        clock: &dyn Clock,
    ) -> Result<Generation, OutletError> {
        let changes: Vec<_> = changes
            .iter()
            .map(|(file, bytes)| snapshot::Change { file: *file, bytes })
            .collect();
        let generation = publisher
            .publish(&changes, clock.wall())
            .map_err(|error| refused(&error, Exit::Memory))?;
        let files = changes.iter().map(|change| change.file).collect();
        self.announcer.published(generation, files);
        Ok(generation)
    }

    fn report(
        &mut self,
        publisher: &mut Publisher,
        bytes: &[u8],
        clock: &dyn Clock,
    ) -> Result<(), OutletError> {
        let Some(file) = self.report else {
            return Ok(());
        };
        publisher
            .publish(&[snapshot::Change { file, bytes }], clock.wall())
            .map(drop)
            .map_err(|error| refused(&error, Exit::Memory))
    }

    fn tend(&mut self, publisher: &mut Publisher, _clock: &dyn Clock) -> Option<Duration> {
        self.announcer.wake();
        publisher.collect().then_some(COLLECT)
    }

    fn close(self) {}
}

/// Writes into a tmpfs; the flip is the announcement.
pub struct TmpfsOutlet {
    writer: Writer,
    announced: Announced,
}

impl TmpfsOutlet {
    /// Takes the writer.
    pub fn open(writer: Writer, announced: Announced) -> Self {
        Self { writer, announced }
    }
}

impl Outlet for TmpfsOutlet {
    fn publish(
        &mut self,
        _publisher: &mut Publisher,
        changes: &[Change],
        clock: &dyn Clock,
    ) -> Result<Generation, OutletError> {
        let generation = self
            .writer
            .publish(changes, clock.now())
            .map_err(|error| refused(&error, Exit::Tmpfs))?;
        self.announced.done(generation);
        Ok(generation)
    }

    fn report(
        &mut self,
        _publisher: &mut Publisher,
        bytes: &[u8],
        _clock: &dyn Clock,
    ) -> Result<(), OutletError> {
        self.writer
            .publish_state(status::FILE, bytes)
            .map_err(|error| refused(&error, Exit::Tmpfs))
    }

    fn tend(&mut self, _publisher: &mut Publisher, clock: &dyn Clock) -> Option<Duration> {
        self.writer.sweep(clock.now())
    }

    fn close(self) {
        if let Err(error) = self.writer.clear() {
            Event::Skipped {
                what: &format!("not all files could be removed: {error}"),
            }
            .emit();
        }
    }
}

fn refused(error: &dyn fmt::Display, exit: Exit) -> OutletError {
    OutletError {
        what: error.to_string(),
        exit,
    }
}
