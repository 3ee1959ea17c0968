//! The backend as supervise holds it: FUSE over an arena, or a tmpfs. Invariant: the process that
//! opens a mount or a directory also removes it, even after a failure.

use super::walls::Confinement;
use crate::config::plan::{Fallback, Plan};
use crate::exit::{Exit, Refused};
use crate::fetch::{self, WriteRoot};
use crate::fuse::mount::{FuseMount, Public};
use crate::fuse::refusal as fuse;
use crate::link::End;
use crate::memory::mapping::Backing;
use crate::names::{FileName, Owner, Recovery, RestartHistory, Role, SwapExposure};
use crate::observe::{Event, Incident};
use crate::serve::{self, Job};
use crate::snapshot::{Arena, FileSpec, Visibility};
use crate::status::{self, Served};
use crate::sys::caps::Capability;
use crate::sys::mounts::Ground;
use crate::tmpfs::{self, Target};
use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The variable that makes the successor of a dead `serve` do without RESEND, as on kernels before
/// 6.9. For tests.
const NO_RESEND: &str = "BAOFS_UNSTABLE_NO_RESEND";

/// The least size of the arena beside a tmpfs, in bytes, where that can be locked.
const LEAST_BESIDE_TMPFS: usize = 4 << 20;

/// The mounts and the arena of a backend.
#[derive(Debug)]
pub(super) enum Mounts {
    /// The arena, and the mount that `serve` answers. The device is there until the abort.
    Fuse {
        arena: Arc<Arena>,
        device: Option<OwnedFd>,
        init: Vec<u8>,
        private: OwnedFd,
        public: Public,
    },
    /// A directory in memory that `fetch` writes to, the reason why FUSE was refused, and an arena
    /// for the private files of `fetch`.
    Tmpfs {
        target: Target,
        refusal: String,
        arena: Arc<Arena>,
    },
}

impl Mounts {
    /// Mounts FUSE. Where FUSE is refused and the plan allows the fallback, prepares a tmpfs.
    pub(super) fn open(plan: &Plan) -> Result<Self, Refused> {
        let filesystem = &plan.filesystem;
        let path = &filesystem.path;
        let size = filesystem
            .size
            .map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let mounts = match FuseMount::create(path, filesystem.dir_mode) {
            Ok(FuseMount {
                device,
                init,
                private,
                public,
                ground,
            }) => {
                warn_of(&ground, path);
                Self::Fuse {
                    arena: arena(plan, size)?,
                    device: Some(device),
                    init,
                    private,
                    public,
                }
            }
            // No backend may be used where another agent serves.
            Err(refusal @ fuse::Refusal::Held(_)) => return Err(refusal.into()),
            Err(refusal) if filesystem.fallback == Fallback::None => {
                let Refused { exit, message } = refusal.into();
                let hint = "or let baofs write into a verified tmpfs: --fallback tmpfs";
                return Err(Refused::new(exit, format_args!("{message}\nhint: {hint}")));
            }
            Err(refusal) => {
                let refusal = refusal.to_string();
                Incident::FallbackUsed.emit(&refusal);
                let target = Target::prepare(filesystem, &plan.files)?;
                if let Some(ground) = &target.ground {
                    warn_of(ground, path);
                }
                Self::Tmpfs {
                    target,
                    refusal,
                    arena: arena_beside_tmpfs(plan, size)?,
                }
            }
        };
        Event::Mounted {
            path,
            how: mounts.name(),
        }
        .emit();
        if env::var_os(NO_RESEND).is_some() {
            Event::ResendDisabled.emit();
        }
        Ok(mounts)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Fuse { .. } => "fuse",
            Self::Tmpfs { .. } => "tmpfs",
        }
    }

    /// The capabilities that `fetch` keeps, to give files to another user.
    pub(super) fn rights_of_fetch(&self, plan: &Plan) -> &'static [Capability] {
        match self {
            Self::Tmpfs { .. } if tmpfs::needs_chown(&plan.files) => &[Capability::Chown],
            Self::Fuse { .. } | Self::Tmpfs { .. } => &[],
        }
    }

    /// The descriptors that no role inherits. A role gets copies of the descriptors that the role
    /// needs.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Fuse {
                device, private, ..
            } => {
                let all = device.iter().chain([private]);
                all.map(AsFd::as_fd).collect()
            }
            Self::Tmpfs { .. } => vec![],
        }
    }

    /// The root of the public mount, which only supervise and the guard hold.
    pub(super) fn root(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Fuse { public, .. } => Some(public.as_fd()),
            Self::Tmpfs { .. } => None,
        }
    }

    /// The roles, in the order of their start.
    pub(super) fn roles(&self) -> &'static [Role] {
        match self {
            Self::Fuse { .. } => &[Role::Serve, Role::Fetch],
            Self::Tmpfs { .. } => &[Role::Fetch],
        }
    }

    /// The work of a forked role: of `serve`, with a copy of the device; of `fetch`, with a
    /// descriptor of the directory that `fetch` writes to.
    pub(super) fn work<'a>(
        &'a self,
        role: Role,
        plan: &'a Plan,
        past: RestartHistory,
        walls: Confinement,
    ) -> io::Result<Box<dyn FnOnce(End) -> Exit + 'a>> {
        let (root, fallback) = match (role, self) {
            (
                Role::Serve,
                Self::Fuse {
                    arena,
                    device: Some(device),
                    init,
                    ..
                },
            ) => {
                let device = device.try_clone()?;
                let recovery = if env::var_os(NO_RESEND).is_some() {
                    Recovery::Interrupt
                } else {
                    Recovery::Resend
                };
                return Ok(Box::new(move |link| match walls.confine_serve() {
                    Ok(()) => serve::run(&Job {
                        arena: Arc::clone(arena),
                        device,
                        init: init.clone(),
                        past,
                        recovery,
                        dir_mode: plan.filesystem.dir_mode,
                        link,
                    }),
                    Err(error) => unconfined(Role::Serve, &error),
                }));
            }
            (Role::Serve, _) => return Err(io::ErrorKind::NotConnected.into()),
            (Role::Fetch, Self::Fuse { private, .. }) => {
                (WriteRoot::Mount(private.try_clone()?), None)
            }
            (
                Role::Fetch,
                Self::Tmpfs {
                    target, refusal, ..
                },
            ) => (WriteRoot::Tmpfs(target.root()?), Some(refusal.into())),
        };
        let settings = fetch::Settings {
            served: Served {
                how: self.name().into(),
                fallback,
                swap: None,
            },
            past,
            walls: walls.report(self.rights_of_fetch(plan), self.roles()),
        };
        Ok(Box::new(move |link| {
            let job = match fetch::FetchJob::prepare(plan, self.arena(), root, link, settings) {
                Ok(job) => job,
                Err(exit) => return exit,
            };
            match walls.confine_fetch(plan, job.root()) {
                Ok(()) => fetch::run(job),
                Err(error) => unconfined(Role::Fetch, &error),
            }
        }))
    }

    fn arena(&self) -> &Arc<Arena> {
        let (Self::Fuse { arena, .. } | Self::Tmpfs { arena, .. }) = self;
        arena
    }

    /// The operation counter of `serve`: changes at the begin and the end of each operation, and is
    /// odd during an operation. Stays 0 on a tmpfs, which has no `serve`.
    pub(super) fn work_of_serve(&self) -> u64 {
        self.arena().reader_area().work.load(Relaxed)
    }

    /// The way by which files could now reach a swap; see `Target::swap_risk`. FUSE serves from
    /// locked memory.
    pub(super) fn swap_risk(&self) -> Option<SwapExposure> {
        match self {
            Self::Fuse { .. } => None,
            Self::Tmpfs { target, .. } => target.swap_risk(),
        }
    }

    /// Forks a process that needs no secret: `fork` runs while children do not inherit the arena.
    pub(super) fn without_arena<T>(&self, fork: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.arena().mapping().not_inherited(fork)
    }

    /// Ends the connection to the kernel once `serve` is dead, so that waiting readers get an error.
    pub(super) fn abort(&mut self) {
        if let Self::Fuse { device, .. } = self {
            drop(device.take());
        }
    }

    /// Removes the FUSE mount. Requests in flight end with an error, even while `serve` still runs.
    pub(super) fn unmount(&self) {
        if let Self::Fuse { public, .. } = self {
            public.abort();
        }
    }

    /// Removes the mount or the files. To be called when no `fetch` writes any more.
    pub(super) fn close(&self) {
        self.unmount();
        if let Self::Tmpfs { target, .. } = self
            && let Err(error) = target.clear()
        {
            Incident::FilesNotRemoved.emit(&error);
        }
    }
}

/// Logs that a role cannot be confined. Such a role does not work.
fn unconfined(role: Role, why: &io::Error) -> Exit {
    Incident::NotConfined { role }.emit(why);
    Exit::Software
}

/// Logs unusual properties of the directory below the mount.
fn warn_of(ground: &Ground, path: &Path) {
    if ground.entries > 0 {
        Event::FilesHidden {
            path,
            entries: ground.entries,
        }
        .emit();
    }
    if let Some(resolved) = &ground.behind_link {
        Event::LinkInPath { path, resolved }.emit();
    }
    if ground.is_shared {
        Incident::MountShared { path }.emit(&"the mount beneath is shared");
    }
}

/// Locked memory for the files of the plan, the report and the private files of `fetch`.
fn arena(plan: &Plan, size: Option<usize>) -> Result<Arc<Arena>, Refused> {
    let report = status::FILES.map(|name| own(name, 0o444, Visibility::State));
    let listed = plan.files.iter().map(FileSpec::listed);
    let files = listed.chain(report).chain(private_files(plan));
    create(files.collect(), size)
}

/// Locked memory for the files of `fetch` alone: as large as the tmpfs may become, or as large as
/// possible.
fn arena_beside_tmpfs(plan: &Plan, size: Option<usize>) -> Result<Arc<Arena>, Refused> {
    if let Some(size) = size {
        let size = size.max(LEAST_BESIDE_TMPFS);
        if let Ok(arena) = create(private_files(plan), Some(size)) {
            return Ok(arena);
        }
    }
    create(private_files(plan), None)
}

/// The private files of `fetch`.
fn private_files(plan: &Plan) -> Vec<FileSpec> {
    let names = fetch::private_files(plan).into_iter();
    names
        .map(|name| own(&name, 0, Visibility::Private))
        .collect()
}

/// A file that belongs to the agent.
fn own(name: &str, mode: u32, visibility: Visibility) -> FileSpec {
    FileSpec {
        name: FileName::new(name).expect("a good name"),
        owner: Owner::of_process(),
        mode,
        visibility,
    }
}

fn create(files: Vec<FileSpec>, size: Option<usize>) -> Result<Arc<Arena>, Refused> {
    Arena::create(files, size, Backing::Secret)
        .map(Arc::new)
        .map_err(|error| Refused::new(Exit::Memory, error))
}
