//! Writes generations. Invariants: a generation is complete before the rename that shows it; a
//! failed generation leaves the last generation unchanged; a content file has owner and mode before
//! the first byte.

use super::{DATA, DATA_NEXT, DATA_PREFIX, FILES, dir_name, generation_of, remove};
use crate::clock::Moment;
use crate::config::plan;
use crate::names::{FileId, Generation, Owner, STATE_DIRECTORY};
use crate::snapshot::FileSpec;
use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, symlinkat, unlinkat};
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The time that an old generation stays after the flip, for readers that have resolved `..data`.
const GRACE: Duration = Duration::from_secs(1);
/// The interval of the checks whether an old file is still open.
const HELD: Duration = Duration::from_secs(30);
/// The limit of old open files that are remembered: an application that never closes files must not
/// use up our descriptors.
const HELD_MAX: usize = 64;
/// The page size of a tmpfs in bytes.
const PAGE: u64 = 4096;

/// A failure to write a generation. The last generation is still served, whole.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The filesystem is full.
    #[error(
        "the tmpfs is full: old and new files need {needed} bytes; hint: raise filesystem.size, or \
         the given tmpfs' size"
    )]
    Full {
        /// Bytes of all files, with old and new bytes of changed files.
        needed: u64,
    },
    /// A call failed.
    #[error("{doing}: {error}")]
    Io {
        /// The action and the name.
        doing: String,
        /// The error of the call.
        error: io::Error,
    },
}

impl WriteError {
    fn is_full(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull)
    }
}

/// Names the action that failed.
pub(super) fn doing<E: Into<io::Error>>(what: &str, name: &str) -> impl FnOnce(E) -> WriteError {
    move |error| WriteError::Io {
        doing: format!("{what} {name}"),
        error: error.into(),
    }
}

/// A content file.
#[derive(Clone, PartialEq, Eq)]
struct ContentFile {
    /// The name in `..files`.
    name: String,
    /// Bytes.
    len: u64,
}

/// The files that a flip made obsolete.
struct RetiredGeneration {
    /// The time of the flip.
    since: Moment,
    /// The old generation.
    generation: Generation,
    /// The contents without a link in a later generation.
    contents: Vec<ContentFile>,
}

/// Writes generations into the directory of a `Target`.
pub struct Writer {
    /// The directory, writable.
    root: OwnedFd,
    /// The subdirectory `..files`.
    store: OwnedFd,
    /// Mode of the subdirectories.
    dir_mode: Mode,
    /// By `FileId`.
    files: Vec<FileSpec>,
    /// The contents of the last generation, by `FileId`.
    current: Vec<Option<ContentFile>>,
    /// The last generation; 0 before the first.
    generation: Generation,
    /// Old generations, oldest first.
    retired: VecDeque<RetiredGeneration>,
    /// Unlinked files that other processes have open; each is our only descriptor of the file.
    held: Vec<File>,
}

impl Writer {
    /// Begins in an empty directory, or resumes from the last generation of a dead predecessor and
    /// removes the files that were not shown. Directories are never writable by others, whatever
    /// `dir_mode` says.
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
        let store = open_or_make_dir(&root, FILES, dir_mode).map_err(doing("making", FILES))?;
        let mut writer = Self {
            root,
            store,
            dir_mode,
            files: files.iter().map(FileSpec::listed).collect(),
            current: vec![None; files.len()],
            generation: Generation(0),
            retired: VecDeque::new(),
            held: Vec::new(),
        };
        writer.adopt(now).map_err(doing("reading", DATA))?;
        Ok(writer)
    }

    /// Finds the generation that a predecessor showed, if any, and the files to remove.
    fn adopt(&mut self, now: Moment) -> nix::Result<()> {
        let Ok(shown) = readlinkat(&self.root, DATA) else {
            self.discard(Generation(1));
            return Ok(());
        };
        let generation = generation_of(&shown.to_string_lossy());
        self.generation = generation.ok_or(Errno::EUCLEAN)?;
        let contents = self.files.iter().map(|file| self.shown(file));
        self.current = contents.collect();
        self.discard(Generation(self.generation.0 + 1));
        for (name, _) in remove::entries(self.root.as_fd())? {
            if let Some(generation) = generation_of(&name)
                && generation != self.generation
            {
                self.retire(now, generation, Vec::new());
            }
        }
        let current = self.current.iter().flatten();
        let names = current.map(|content| content.name.as_str());
        let current: HashSet<&str> = names.collect();
        let mut contents = Vec::new();
        for (name, _) in remove::entries(self.store.as_fd())? {
            if !current.contains(name.as_str()) {
                contents.push(ContentFile { name, len: 0 });
            }
        }
        // Some of these contents belong to the generations above, some to none: all are removed at
        // the same time.
        self.retire(now, Generation(0), contents);
        Ok(())
    }

    /// The content of `file` in the last generation.
    fn shown(&self, file: &FileSpec) -> Option<ContentFile> {
        let link = format!("{}/{}", dir_name(self.generation), file.name);
        let target = readlinkat(&self.root, link.as_str()).ok()?;
        let name = target.to_str()?.rsplit('/').next()?.to_owned();
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let stat = fstatat(&self.store, name.as_str(), flags).ok()?;
        let len = u64::try_from(stat.st_size).ok()?;
        Some(ContentFile { name, len })
    }

    /// Shows `changes` and all unchanged files as the next generation, in one step.
    ///
    /// # Errors
    /// See `WriteError`; nothing of the new generation is left then.
    ///
    /// # Panics
    /// When a `FileId` is not of the plan.
    pub fn publish(
        &mut self,
        changes: &[(FileId, impl AsRef<[u8]>)],
        now: Moment,
    ) -> Result<Generation, WriteError> {
        self.sweep(now);
        let next = Generation(self.generation.0 + 1);
        let mut result = self.try_publish(next, changes);
        if matches!(&result, Err(error) if error.is_full()) {
            // New secrets come before the grace of old generations and before the agent's state.
            self.sweep(now.plus(GRACE));
            // The directory of the state stays: in a parent directory that all users may write to,
            // another user could make a directory with the same name.
            let _ = remove::contents(self.root.as_fd(), STATE_DIRECTORY);
            result = self.try_publish(next, changes);
        }
        match result {
            Ok(contents) => {
                self.replace(now, contents);
                self.generation = next;
                Ok(next)
            }
            Err(error) if error.is_full() => Err(WriteError::Full {
                needed: self.needed(changes),
            }),
            Err(error) => Err(error),
        }
    }

    /// Replaces file `name` of the agent's state, which all users may read.
    ///
    /// # Errors
    /// See `WriteError`; then the last version of the file stays.
    pub fn publish_state(&self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let mode = Mode::from_bits_truncate(0o755);
        let dir = open_or_make_dir(&self.root, STATE_DIRECTORY, mode)
            .map_err(doing("making", STATE_DIRECTORY))?;
        let next = format!("{name}.next");
        let owner = Owner::of_process();
        let show = |()| Ok(renameat(&dir, next.as_str(), &dir, name)?);
        let written = write_file(&dir, &next, bytes, owner, 0o444).and_then(show);
        if written.is_err() {
            let _ = unlinkat(&dir, next.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        let path = format!("{STATE_DIRECTORY}/{name}");
        written.map_err(doing("writing", &path))
    }

    /// Removes generations that are older than the grace. Returns the time until the next sweep,
    /// if one is needed: at most a second while a generation is retired, 30 s while another process
    /// has an old file open. `publish` sweeps, too.
    pub fn sweep(&mut self, now: Moment) -> Option<Duration> {
        self.held.retain(|file| !remove::overwrite(file));
        while let Some(old) = self
            .retired
            .pop_front_if(|old| now.since(old.since) >= GRACE)
        {
            self.remove_generation(old.generation);
            for content in &old.contents {
                self.remove_content(&content.name);
            }
        }
        match self.retired.front() {
            Some(next) => {
                let age = now.since(next.since);
                Some(GRACE.saturating_sub(age))
            }
            None if self.held.is_empty() => None,
            None => Some(HELD),
        }
    }

    /// Removes all files at the end of the role, which may overwrite files of other users;
    /// `Target::clear` may have lost this right.
    ///
    /// # Errors
    /// The files that cannot be removed.
    pub fn clear(self) -> io::Result<()> {
        for file in &self.held {
            remove::overwrite(file);
        }
        remove::everything(self.root.as_fd())
    }

    /// Makes a generation and shows it, or leaves nothing of it.
    fn try_publish(
        &mut self,
        next: Generation,
        changes: &[(FileId, impl AsRef<[u8]>)],
    ) -> Result<Vec<Option<ContentFile>>, WriteError> {
        let made = self.make(next, changes);
        if made.is_err() {
            self.discard(next);
        }
        made
    }

    fn make(
        &self,
        generation: Generation,
        changes: &[(FileId, impl AsRef<[u8]>)],
    ) -> Result<Vec<Option<ContentFile>>, WriteError> {
        let mut contents = self.current.clone();
        for (id, bytes) in changes {
            let file = &self.files[id.index()];
            let bytes = bytes.as_ref();
            let name = content_name(generation, *id);
            write_file(&self.store, &name, bytes, file.owner, file.mode)
                .map_err(doing("writing", file.name.as_str()))?;
            let len = bytes.len() as u64;
            contents[id.index()] = Some(ContentFile { name, len });
        }
        let name = dir_name(generation);
        let dir = make_dir(&self.root, &name).map_err(doing("making", &name))?;
        for (file, content) in self.files.iter().zip(&contents) {
            if let Some(content) = content {
                let target = format!("../{FILES}/{}", content.name);
                symlinkat(target.as_str(), &dir, file.name.as_str())
                    .map_err(doing("linking", file.name.as_str()))?;
            }
        }
        fchmod(&dir, self.dir_mode).map_err(doing("setting the mode of", &name))?;
        self.flip(&name, &contents)?;
        Ok(contents)
    }

    /// Makes the public links of new files, which lead nowhere before the rename of `..data`.
    fn flip(&self, dir: &str, contents: &[Option<ContentFile>]) -> Result<(), WriteError> {
        let files = self.files.iter().zip(contents);
        for ((file, new), old) in files.zip(&self.current) {
            if new.is_none() || old.is_some() {
                continue;
            }
            let name = file.name.as_str();
            let target = format!("{DATA_PREFIX}{}", file.name);
            match symlinkat(target.as_str(), &self.root, name) {
                // The link of a failed attempt.
                Err(Errno::EEXIST)
                    if readlinkat(&self.root, name).is_ok_and(|to| to == target.as_str()) => {}
                result => result.map_err(doing("linking", name))?,
            }
        }
        symlinkat(dir, &self.root, DATA_NEXT).map_err(doing("making", DATA_NEXT))?;
        renameat(&self.root, DATA_NEXT, &self.root, DATA).map_err(doing("renaming", DATA_NEXT))
    }

    /// Makes `contents` the current contents, and retires the last generation with the replaced
    /// contents.
    fn replace(&mut self, now: Moment, contents: Vec<Option<ContentFile>>) {
        let mut replaced = Vec::new();
        for (current, new) in self.current.iter_mut().zip(contents) {
            if *current != new {
                replaced.extend(current.take());
                *current = new;
            }
        }
        if self.generation > Generation(0) {
            self.retire(now, self.generation, replaced);
        }
    }

    fn retire(&mut self, since: Moment, generation: Generation, contents: Vec<ContentFile>) {
        self.retired.push_back(RetiredGeneration {
            since,
            generation,
            contents,
        });
    }

    /// Removes everything of a generation that was not shown.
    fn discard(&mut self, generation: Generation) {
        let _ = unlinkat(&self.root, DATA_NEXT, UnlinkatFlags::NoRemoveDir);
        self.remove_generation(generation);
        let ids = (0..).map(FileId).take(self.files.len());
        for id in ids {
            self.remove_content(&content_name(generation, id));
        }
    }

    /// A failure is repaired at the end of the role, or by the next agent; so in `remove_content`.
    fn remove_generation(&self, generation: Generation) {
        let _ = remove::tree(self.root.as_fd(), &dir_name(generation));
    }

    fn remove_content(&mut self, name: &str) {
        let removed = remove::file(self.store.as_fd(), name, Some(Type::File));
        if let Ok(Some(held)) = removed {
            self.held.push(held);
        }
        let excess = self.held.len().saturating_sub(HELD_MAX);
        self.held.drain(..excess);
    }

    /// Bytes of all files, in whole pages, plus the new bytes of `changes`.
    fn needed(&self, changes: &[(FileId, impl AsRef<[u8]>)]) -> u64 {
        let old = self.current.iter().flatten().map(|content| content.len);
        let new = changes.iter().map(|(_, new)| new.as_ref().len() as u64);
        let pages = |len: u64| len.next_multiple_of(PAGE);
        old.chain(new).map(pages).sum()
    }
}

/// Creates file `name` of `dir`. The mode is 0 until the group is set, and the owner is set last,
/// because only the owner may set the mode: so each step needs no right but `CAP_CHOWN`, and only
/// users with a right to the finished file can open the file.
fn write_file(dir: &OwnedFd, name: &str, bytes: &[u8], owner: Owner, mode: u32) -> io::Result<()> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    let mut file = File::from(fd);
    let gid = Gid::from_raw(owner.gid);
    fchown(&file, None, Some(gid))?;
    fchmod(&file, Mode::from_bits_truncate(mode))?;
    let uid = Uid::from_raw(owner.uid);
    fchown(&file, Some(uid), None)?;
    file.write_all(bytes)
}

/// Opens a directory of ours and sets the mode; makes the directory if it is missing.
fn open_or_make_dir(root: &OwnedFd, name: &str, mode: Mode) -> nix::Result<OwnedFd> {
    let dir = match make_dir(root, name) {
        Err(Errno::EEXIST) => remove::open_dir(root.as_fd(), name)?,
        result => result?,
    };
    fchmod(&dir, mode)?;
    Ok(dir)
}

/// Makes a directory that only this user can enter.
fn make_dir(root: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    mkdirat(root, name, Mode::S_IRWXU)?;
    remove::open_dir(root.as_fd(), name)
}

fn content_name(generation: Generation, id: FileId) -> String {
    format!("{}.{}", generation.0, id.0)
}
