//! The two backends that files are published in: the arena with its announcing thread, and a tmpfs.
//! Invariant: all changes of one publication become visible together, or none of them.

use super::private;
use crate::clock::{Clock, Moment};
use crate::config::plan::Plan;
use crate::exit::{Exit, Refused};
use crate::fuse::announce::Announcer;
use crate::names::{FileId, Generation};
use crate::observe::Incident;
use crate::render::Change;
use crate::snapshot::{self, Arena, Publisher, Visibility};
use crate::status;
use crate::tmpfs::Writer;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// The wait before old versions are freed and wiped, after a rotation and again while a reader has
/// an old version open.
const COLLECT: Duration = Duration::from_secs(2);

/// The only directory that `fetch` writes to.
#[derive(Debug)]
pub enum WriteRoot {
    /// The root of the private FUSE mount, which announcements are made on.
    Mount(OwnedFd),
    /// The root of a tmpfs, which files are written to.
    Tmpfs(OwnedFd),
}

impl AsFd for WriteRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (Self::Mount(root) | Self::Tmpfs(root)) = self;
        root.as_fd()
    }
}

/// The newest announced generation, or the failure of the last announcement.
pub(super) type Announced = Result<Generation, String>;

/// Shows the files to readers.
pub(super) enum Backend {
    /// `serve` answers from the arena, and the announcing thread makes the inotify events.
    Arena {
        /// The files of the agent's state, in the order of `status::FILES`.
        state: Vec<FileId>,
        announcer: Announcer,
    },
    /// `fetch` writes the files. The rename that shows a generation also announces it.
    Tmpfs {
        writer: Writer,
        announced: UnboundedSender<Announced>,
    },
}

impl Backend {
    /// Continues where a predecessor ended. Announcements are sent to `announced`.
    ///
    /// # Errors
    /// The thread cannot be started, or the directory of the tmpfs cannot be read or written.
    pub(super) fn open(
        root: WriteRoot,
        arena: &Arc<Arena>,
        plan: &Plan,
        announced: UnboundedSender<Announced>,
        now: Moment,
    ) -> Result<Self, Refused> {
        match root {
            WriteRoot::Mount(private) => {
                let done = move |round: Result<Generation, _>| {
                    let round = round.map_err(|error| format!("{error}"));
                    // The loop has ended when nobody receives.
                    let _ = announced.send(round);
                };
                let thread = Announcer::start(Arc::clone(arena), private, done);
                Ok(Self::Arena {
                    state: arena.files_in(Visibility::State).collect(),
                    announcer: thread.map_err(|error| Refused::new(Exit::Software, error))?,
                })
            }
            WriteRoot::Tmpfs(root) => {
                let writer = Writer::open(root, plan.filesystem.dir_mode, &plan.files, now)
                    .map_err(|error| Refused::new(Exit::Tmpfs, error))?;
                Ok(Self::Tmpfs { writer, announced })
            }
        }
    }

    /// Makes all `changes` visible in one step. `publisher` writes to the arena.
    ///
    /// # Errors
    /// No change became visible. The exit code applies to a first publication.
    pub(super) fn publish(
        &mut self,
        publisher: &mut Publisher,
        changes: &[Change],
        clock: &dyn Clock,
    ) -> Result<Generation, Refused> {
        match self {
            Self::Arena { announcer, .. } => {
                let files = changes.iter().map(|(file, _)| *file).collect();
                let generation = publisher
                    .publish(&private::changes(changes), clock.wall())
                    .map_err(|error| Refused::new(Exit::Memory, error))?;
                announcer.published(generation, files);
                Ok(generation)
            }
            Self::Tmpfs { writer, announced } => {
                let generation = writer
                    .publish(changes, clock.now())
                    .map_err(|error| Refused::new(Exit::Tmpfs, error))?;
                let _ = announced.send(Ok(generation));
                Ok(generation)
            }
        }
    }

    /// Replaces a file of the agent's state (`status::FILES`), which is no secret and is not
    /// announced.
    ///
    /// # Errors
    /// The last content stays.
    pub(super) fn report(
        &self,
        publisher: &mut Publisher,
        name: &str,
        bytes: &[u8],
        clock: &dyn Clock,
    ) -> Result<(), Refused> {
        match self {
            Self::Arena { state, .. } => {
                for (known, file) in status::FILES.into_iter().zip(state) {
                    if known == name {
                        let change = snapshot::Change { file: *file, bytes };
                        publisher
                            .publish(&[change], clock.wall())
                            .map_err(|error| Refused::new(Exit::Memory, error))?;
                    }
                }
                Ok(())
            }
            Self::Tmpfs { writer, .. } => writer
                .publish_state(name, bytes)
                .map_err(|error| Refused::new(Exit::Tmpfs, error)),
        }
    }

    /// Removes old versions and repeats failed announcements. Returns the wait until the next call,
    /// if one is needed.
    pub(super) fn maintain(&mut self, publisher: &mut Publisher, now: Moment) -> Option<Duration> {
        match self {
            Self::Arena { announcer, .. } => {
                announcer.wake();
                publisher.collect().then_some(COLLECT)
            }
            Self::Tmpfs { writer, .. } => writer.sweep(now),
        }
    }

    /// Removes the files of a tmpfs at the end. The arena ends with its processes.
    pub(super) fn close(self) {
        if let Self::Tmpfs { writer, .. } = self
            && let Err(error) = writer.clear()
        {
            Incident::FilesNotRemoved.emit(&error);
        }
    }
}
