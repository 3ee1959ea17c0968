//! The two outlets: the arena with its announcing thread, and a tmpfs.

use super::press::{Announced, Outlet, OutletError};
use crate::clock::{Clock, Moment};
use crate::exit::Exit;
use crate::fuse::announce::Announcer;
use crate::memory::arena::Arena;
use crate::names::Generation;
use crate::observe::Event;
use crate::render::Change;
use crate::snapshot::{self, Publisher};
use crate::tmpfs::Writer;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Publishes into the arena: `serve` answers from it, and the announcing thread makes the events.
#[derive(Debug)]
pub struct ArenaOutlet<'a, C> {
    clock: &'a C,
    arena: Arc<Arena>,
    publisher: Publisher,
    /// The private mount, until the announcing thread takes it.
    private: Option<OwnedFd>,
    announcer: Option<Announcer>,
}

impl<'a, C: Clock> ArenaOutlet<'a, C> {
    /// Takes over the arena, and the private mount to announce on.
    #[must_use]
    pub fn new(arena: Arc<Arena>, private: OwnedFd, clock: &'a C) -> Self {
        Self { clock, publisher: Publisher::new(Arc::clone(&arena)), arena, private: Some(private), announcer: None }
    }

    /// Has what was published announced; the thread is started with the first publication.
    fn announce(&mut self, announced: &Announced) -> io::Result<()> {
        if let Some(announcer) = &self.announcer {
            announcer.wake();
        } else if let Some(private) = self.private.take() {
            let announced = announced.clone();
            let done = move |result: Result<Generation, _>| match result {
                Ok(generation) => announced.done(generation),
                Err(error) => failed(&error),
            };
            self.announcer = Some(Announcer::start(Arc::clone(&self.arena), private, done)?);
        }
        Ok(())
    }
}

fn failed(error: &impl fmt::Display) {
    Event::Broken { what: &error.to_string() }.emit();
}

impl<C: Clock> Outlet for ArenaOutlet<'_, C> {
    fn publish(&mut self, changes: &[Change], announced: &Announced) -> Result<Generation, OutletError> {
        let changes: Vec<_> = changes.iter().map(|(file, bytes)| snapshot::Change { file: *file, bytes }).collect();
        let refused = |error: &dyn fmt::Display, exit| OutletError { what: error.to_string(), exit };
        let generation = self.publisher.publish(&changes, self.clock.wall()).map_err(|error| refused(&error, Exit::Memory))?;
        self.announce(announced).map_err(|error| refused(&format_args!("no thread to announce with: {error}"), Exit::Software))?;
        Ok(generation)
    }
}

/// Writes into a tmpfs; the flip is the announcement.
pub struct TmpfsOutlet<'a, C> {
    clock: &'a C,
    /// Until the end, when its files are removed.
    writer: Option<Writer>,
}

impl<'a, C> TmpfsOutlet<'a, C> {
    /// Takes the writer.
    #[must_use]
    pub fn new(writer: Writer, clock: &'a C) -> Self {
        Self { clock, writer: Some(writer) }
    }
}

impl<C: Clock> Outlet for TmpfsOutlet<'_, C> {
    fn publish(&mut self, changes: &[Change], announced: &Announced) -> Result<Generation, OutletError> {
        let now = self.clock.now();
        let writer = self.writer.as_mut().expect("the writer is taken only on drop");
        let generation = writer.publish(changes, now).map_err(|error| OutletError { what: error.to_string(), exit: Exit::Tmpfs })?;
        announced.done(generation);
        Ok(generation)
    }

    fn tidy(&mut self) -> Option<Moment> {
        let now = self.clock.now();
        self.writer.as_mut()?.sweep(now).map(|after| now.plus(after))
    }
}

impl<C> Drop for TmpfsOutlet<'_, C> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.writer.take().map(Writer::clear) {
            Event::Skipped { what: &format!("not all files could be removed: {error}") }.emit();
        }
    }
}
