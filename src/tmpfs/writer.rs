//! Writing generations. Invariants: a generation is complete before the one rename that shows it; a
//! failed one leaves the last as it was; a content file has its owner and mode before it has a
//! byte.

use super::{DATA, DATA_NEXT, DATA_PREFIX, FILES, remove};
use crate::clock::Moment;
use crate::config::plan;
use crate::names::{FileId, FileName, Generation, Owner, STATE_DIRECTORY};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, symlinkat, unlinkat};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long an old generation stays after the flip, for a reader that resolved `..data` just before
/// it.
const GRACE: Duration = Duration::from_secs(1);
/// How often a file that somebody still has open is looked at again.
const HELD: Duration = Duration::from_secs(30);
/// How many of those are kept in mind: an application that never closes what it opened must not use
/// up our descriptors.
const HELD_MAX: usize = 64;
/// The pages that a filesystem of memory counts in.
const PAGE: u64 = 4096;

/// Why a generation could not be written. The last one is still served, whole.
#[derive(Debug)]
pub enum WriteError {
    /// The filesystem is full.
    Full {
        /// Bytes that all files need while one change replaces the other.
        needed: u64,
    },
    /// A call failed.
    Io {
        /// What was done to which name.
        doing: String,
        /// Why it failed.
        error: io::Error,
    },
}

impl WriteError {
    fn is_full(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull)
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { needed } => {
                write!(
                    f,
                    "the tmpfs is full: old and new files need {needed} bytes; hint: raise filesystem.size, or the given tmpfs' size"
                )
            }
            Self::Io { doing, error } => write!(f, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for WriteError {}

/// Names what was being done.
fn doing(what: &str, name: &str) -> impl FnOnce(Errno) -> WriteError {
    let doing = format!("{what} {name}");
    |errno| WriteError::Io {
        doing,
        error: errno.into(),
    }
}

/// What a file is to be.
struct Spec {
    name: FileName,
    owner: Owner,
    mode: Mode,
}

/// A content file.
#[derive(Clone)]
struct ContentFile {
    /// Its name in `..files`.
    name: String,
    /// Its length in bytes.
    len: u64,
}

/// What a flip left behind.
struct RetiredGeneration {
    /// When.
    since: Moment,
    /// The directory of the old generation.
    generation: Generation,
    /// The contents that no generation shows any more.
    contents: Vec<ContentFile>,
}

/// Writes generations into a directory that a `Target` proved.
pub struct Writer {
    /// The directory, writable.
    root: OwnedFd,
    /// `..files` in it.
    store: OwnedFd,
    /// Mode of the directories in it.
    dir_mode: Mode,
    /// By `FileId`.
    specs: Vec<Spec>,
    /// By `FileId`: what the last generation shows.
    current: Vec<Option<ContentFile>>,
    /// The last one.
    generation: Generation,
    /// Old generations, oldest first.
    retired: Vec<RetiredGeneration>,
    /// Unlinked files that somebody still had open; each is our only descriptor of it.
    held: Vec<File>,
}

impl Writer {
    /// Begins in an empty directory, or goes on where a predecessor died: what it had not shown is
    /// removed. Directories are never writable by others, whatever `dir_mode` says.
    ///
    /// # Errors
    /// The directory of contents cannot be made, or the directory cannot be read.
    pub fn open(
        root: OwnedFd,
        dir_mode: u32,
        files: &[plan::File],
        now: Moment,
    ) -> Result<Self, WriteError> {
        let dir_mode = Mode::from_bits_truncate(dir_mode & 0o755);
        let store = open_or_make_dir(&root, FILES)
            .and_then(|store| fchmod(&store, dir_mode).map(|()| store))
            .map_err(doing("making", FILES))?;
        let spec = |file: &plan::File| Spec {
            name: file.name.clone(),
            owner: file.owner,
            mode: Mode::from_bits_truncate(file.mode),
        };
        let specs = files.iter().map(spec).collect();
        let (current, retired, held) = (vec![None; files.len()], Vec::new(), Vec::new());
        let mut writer = Self {
            root,
            store,
            dir_mode,
            specs,
            current,
            generation: Generation(0),
            retired,
            held,
        };
        writer.adopt(now).map_err(doing("reading", DATA))?;
        Ok(writer)
    }

    /// Finds what a predecessor showed, if there was one, and what it left to be removed.
    fn adopt(&mut self, now: Moment) -> nix::Result<()> {
        let Ok(shown) = readlinkat(&self.root, DATA) else {
            self.discard(Generation(1));
            return Ok(());
        };
        let number = |name: &str| {
            name.strip_prefix("..")
                .and_then(|number| number.parse().ok())
                .map(Generation)
        };
        self.generation = shown.to_str().and_then(number).ok_or(Errno::EUCLEAN)?;
        self.current = self.specs.iter().map(|spec| self.shown(spec)).collect();
        self.discard(Generation(self.generation.0 + 1));
        let names = |dir: &OwnedFd| {
            Ok::<_, Errno>(
                remove::entries(dir.as_fd())?
                    .into_iter()
                    .map(|(name, _)| name),
            )
        };
        let old = names(&self.root)?
            .filter_map(|name| number(&name))
            .filter(|old| *old != self.generation);
        self.retired = old
            .map(|generation| RetiredGeneration {
                since: now,
                generation,
                contents: Vec::new(),
            })
            .collect();
        let is_current = |name: &String| {
            self.current
                .iter()
                .flatten()
                .any(|content| content.name == *name)
        };
        let contents = names(&self.store)?
            .filter(|name| !is_current(name))
            .map(|name| ContentFile { name, len: 0 })
            .collect();
        // Of no generation that is there any more, or of one of those above: all go together.
        self.retired.push(RetiredGeneration {
            since: now,
            generation: Generation(0),
            contents,
        });
        Ok(())
    }

    /// The content that the present generation shows as `spec`.
    fn shown(&self, spec: &Spec) -> Option<ContentFile> {
        let link = readlinkat(
            &self.root,
            format!("{}/{}", dir_name(self.generation), spec.name).as_str(),
        )
        .ok()?;
        let name = link.to_str()?.rsplit('/').next()?.to_owned();
        let stat = fstatat(&self.store, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        Some(ContentFile {
            name,
            len: u64::try_from(stat.st_size).ok()?,
        })
    }

    /// Shows `changes` and everything unchanged as the next generation, in one step.
    ///
    /// # Errors
    /// As `WriteError` says; then the last generation is served as before, and nothing of the new
    /// one is left.
    ///
    /// # Panics
    /// When a `FileId` is not of the plan.
    pub fn publish<B: AsRef<[u8]>>(
        &mut self,
        changes: &[(FileId, B)],
        now: Moment,
    ) -> Result<Generation, WriteError> {
        self.sweep(now);
        let next = Generation(self.generation.0 + 1);
        let mut result = self.try_publish(next, changes);
        if result.as_ref().is_err_and(WriteError::is_full) {
            // Freshness wins over the grace of what is old, and secrets over the agent's own state.
            self.sweep(now.plus(GRACE));
            let _ = self.remove_state();
            result = self.try_publish(next, changes);
        }
        let needed = self.needed(changes);
        let contents = result.map_err(|error| {
            if error.is_full() {
                WriteError::Full { needed }
            } else {
                error
            }
        })?;
        self.retire(now, contents);
        self.generation = next;
        Ok(next)
    }

    /// Replaces file `name` of the agent's own state: for all to read, for nobody to write.
    ///
    /// # Errors
    /// As `WriteError` says; then the last one stays.
    pub fn publish_state(&self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let dir = open_or_make_dir(&self.root, STATE_DIRECTORY)
            .map_err(doing("making", STATE_DIRECTORY))?;
        let next = format!("{name}.next");
        let written = write_state(&dir, &next, bytes)
            .and_then(|()| Ok(renameat(&dir, next.as_str(), &dir, name)?));
        written.map_err(|error| {
            let _ = unlinkat(&dir, next.as_str(), UnlinkatFlags::NoRemoveDir);
            WriteError::Io {
                doing: format!("writing {STATE_DIRECTORY}/{name}"),
                error,
            }
        })
    }

    /// Removes the files of the agent's own state. Their directory stays: in a directory that all
    /// may write to, somebody else could make one in its place.
    fn remove_state(&self) -> nix::Result<()> {
        let dir = remove::open_dir(self.root.as_fd(), STATE_DIRECTORY)?;
        for (name, kind) in remove::entries(dir.as_fd())? {
            remove::file(dir.as_fd(), &name, kind)?;
        }
        Ok(())
    }

    /// Removes what is old enough. When it is worth to come again, if at all: a second after a
    /// rotation, then seldom while somebody keeps an old file open. `publish` does it, too.
    pub fn sweep(&mut self, now: Moment) -> Option<Duration> {
        let split = self
            .retired
            .partition_point(|old| now.since(old.since) >= GRACE);
        let old: Vec<RetiredGeneration> = self.retired.drain(..split).collect();
        self.held.retain(|file| !remove::overwrite(file));
        for old in old {
            self.remove_generation(old.generation);
            for content in &old.contents {
                self.remove_content(&content.name);
            }
        }
        let next = self
            .retired
            .first()
            .map(|old| GRACE.saturating_sub(now.since(old.since)));
        next.or_else(|| (!self.held.is_empty()).then_some(HELD))
    }

    /// Removes all files, at the end of the role: it has the right to overwrite files of another
    /// user, which `Target::clear` may have no more.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn clear(self) -> io::Result<()> {
        for file in &self.held {
            remove::overwrite(file);
        }
        Ok(remove::everything(self.root.as_fd())?)
    }

    /// Makes a generation and shows it, or leaves no trace of it.
    fn try_publish<B: AsRef<[u8]>>(
        &mut self,
        next: Generation,
        changes: &[(FileId, B)],
    ) -> Result<Vec<Option<ContentFile>>, WriteError> {
        let made = self
            .make(next, changes)
            .and_then(|contents| self.flip(next, &contents).map(|()| contents));
        made.inspect_err(|_| self.discard(next))
    }

    /// Writes contents and the directory of `generation`; nobody sees it yet.
    fn make<B: AsRef<[u8]>>(
        &self,
        generation: Generation,
        changes: &[(FileId, B)],
    ) -> Result<Vec<Option<ContentFile>>, WriteError> {
        let mut contents = self.current.clone();
        for (id, bytes) in changes {
            contents[id.index()] = Some(self.write(generation, *id, bytes.as_ref())?);
        }
        let name = dir_name(generation);
        let dir = make_dir(&self.root, &name).map_err(doing("making", &name))?;
        for (spec, content) in self.specs.iter().zip(&contents) {
            if let Some(content) = content {
                let target = format!("../{FILES}/{}", content.name);
                symlinkat(target.as_str(), &dir, spec.name.as_str())
                    .map_err(doing("linking", spec.name.as_str()))?;
            }
        }
        fchmod(&dir, self.dir_mode).map_err(doing("setting the mode of", &name))?;
        Ok(contents)
    }

    /// Writes one content. It has mode 0 until it has its group, and its owner last: so each step
    /// is allowed with no right but `CAP_CHOWN`, and nobody can open it who may not in the end.
    fn write(
        &self,
        generation: Generation,
        id: FileId,
        bytes: &[u8],
    ) -> Result<ContentFile, WriteError> {
        let (spec, name) = (&self.specs[id.index()], content_name(generation, id));
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(
            openat(&self.store, name.as_str(), flags, Mode::empty())
                .map_err(doing("creating", spec.name.as_str()))?,
        );
        give(&file, spec).map_err(doing("giving owner and mode to", spec.name.as_str()))?;
        let len = bytes.len() as u64;
        let failed = |error| WriteError::Io {
            doing: format!("writing {}", spec.name),
            error,
        };
        file.write_all(bytes)
            .map(|()| ContentFile { name, len })
            .map_err(failed)
    }

    /// Makes the links of new names, which lead nowhere until the rename that shows them all.
    fn flip(
        &self,
        generation: Generation,
        contents: &[Option<ContentFile>],
    ) -> Result<(), WriteError> {
        let is_new = |id: usize| contents[id].is_some() && self.current[id].is_none();
        for (_, spec) in self.specs.iter().enumerate().filter(|(id, _)| is_new(*id)) {
            let (name, target) = (spec.name.as_str(), format!("{DATA_PREFIX}{}", spec.name));
            match symlinkat(target.as_str(), &self.root, name) {
                // From an attempt that failed.
                Err(Errno::EEXIST)
                    if readlinkat(&self.root, name).is_ok_and(|to| to == target.as_str()) => {}
                result => result.map_err(doing("linking", name))?,
            }
        }
        let name = dir_name(generation);
        symlinkat(name.as_str(), &self.root, DATA_NEXT).map_err(doing("making", DATA_NEXT))?;
        renameat(&self.root, DATA_NEXT, &self.root, DATA).map_err(doing("renaming", DATA_NEXT))
    }

    /// Takes over `contents` and remembers what they replaced.
    fn retire(&mut self, now: Moment, contents: Vec<Option<ContentFile>>) {
        let old = std::mem::replace(&mut self.current, contents);
        let replaced = |(old, new): (Option<ContentFile>, &Option<ContentFile>)| {
            old.filter(|old| new.as_ref().is_none_or(|new| new.name != old.name))
        };
        let contents = old
            .into_iter()
            .zip(&self.current)
            .filter_map(replaced)
            .collect();
        if self.generation > Generation(0) {
            self.retired.push(RetiredGeneration {
                since: now,
                generation: self.generation,
                contents,
            });
        }
    }

    /// Removes all traces of a generation that was not shown.
    fn discard(&mut self, generation: Generation) {
        let _ = unlinkat(&self.root, DATA_NEXT, UnlinkatFlags::NoRemoveDir);
        self.remove_generation(generation);
        for id in (0..).map(FileId).take(self.specs.len()) {
            self.remove_content(&content_name(generation, id));
        }
    }

    /// What cannot be removed now is removed at the end, or by the next agent.
    fn remove_generation(&self, generation: Generation) {
        let _ = remove::tree(self.root.as_fd(), &dir_name(generation));
    }

    fn remove_content(&mut self, name: &str) {
        let held = remove::file(self.store.as_fd(), name, Some(nix::dir::Type::File));
        self.held.extend(held.ok().flatten());
        self.held.drain(..self.held.len().saturating_sub(HELD_MAX));
    }

    /// Bytes that all files need, in pages, with those that `changes` replaces twice.
    fn needed<B: AsRef<[u8]>>(&self, changes: &[(FileId, B)]) -> u64 {
        let pages = |len: u64| len.div_ceil(PAGE) * PAGE;
        let current: u64 = self
            .current
            .iter()
            .flatten()
            .map(|content| pages(content.len))
            .sum();
        current
            + changes
                .iter()
                .map(|(_, bytes)| pages(bytes.as_ref().len() as u64))
                .sum::<u64>()
    }
}

/// Makes file `name` of `dir`, which everybody may enter and only we may change.
fn write_state(dir: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    fchmod(dir, Mode::from_bits_truncate(0o755))?;
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(dir, name, flags, Mode::empty())?);
    file.write_all(bytes)?;
    Ok(fchmod(&file, Mode::from_bits_truncate(0o444))?)
}

/// Opens a directory of ours, making it as `make_dir` does where it is missing.
fn open_or_make_dir(root: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    match make_dir(root, name) {
        Err(Errno::EEXIST) => remove::open_dir(root.as_fd(), name),
        made => made,
    }
}

/// Makes a directory that only we can enter.
fn make_dir(root: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    mkdirat(root, name, Mode::S_IRWXU)?;
    remove::open_dir(root.as_fd(), name)
}

/// Group, mode, owner, in this order: whoever is not the owner any more may not change the mode.
fn give(file: &File, spec: &Spec) -> nix::Result<()> {
    fchown(file, None, Some(Gid::from_raw(spec.owner.gid)))?;
    fchmod(file, spec.mode)?;
    fchown(file, Some(Uid::from_raw(spec.owner.uid)), None)
}

fn dir_name(generation: Generation) -> String {
    format!("..{}", generation.0)
}

fn content_name(generation: Generation, id: FileId) -> String {
    format!("{}.{}", generation.0, id.0)
}
