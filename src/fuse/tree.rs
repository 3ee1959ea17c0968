//! The filesystem without FUSE: one directory of files whose versions are inodes. The directory has
//! a subdirectory for the agent's state, which is found by name and not listed. Invariants: every
//! answer comes from memory; only the announcing thread may create, rename and truncate, and only
//! in the steps of an announcement.
//!
//! A version has two inode numbers: `2 * nodeid` until the announcing rename, and `2 * nodeid + 1`
//! from the announcing create on. The rename must give the name to a different inode, because the
//! kernel skips the rename of an inode onto itself, and sends no event.

use crate::names::{FileId, FileName, Owner, STATE_DIRECTORY};
use crate::snapshot::{Reader, Stage, Version, Visibility};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

/// The inode number of the directory.
pub const ROOT: u64 = 1;
/// The inode number of the directory of the agent's state; the numbers of versions are higher.
pub const STATE: u64 = 2;
/// The prefix of a file's name for the announcement of a new version.
pub const HIDDEN: &str = "..new.";
/// The prefix of a file's name for lookups after which the kernel drops pages of old versions.
pub const OLD: &str = "..old.";

/// An operation in progress, which supervise sees in the arena; ends on drop.
#[derive(Debug)]
pub struct Operation<'a>(&'a AtomicU64);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The reasons to refuse an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsError {
    /// The name does not exist.
    NotFound,
    /// The caller may not make this change.
    ReadOnly,
    /// The version of the inode was evicted; the path leads to a newer version.
    Stale,
    /// The bytes were evicted while the file was open.
    Evicted(FileId),
    /// The operation needs a directory, and the inode is a file.
    NotDirectory,
    /// The operation needs a file, and the inode is a directory.
    IsDirectory,
}

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// The attributes of an inode, as for `stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// File or directory.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: Owner,
    /// The time of publication.
    pub mtime: SystemTime,
    /// The number of names; 0 once a newer inode has the name.
    pub links: u32,
}

/// A name in a directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Inode number.
    pub ino: u64,
    /// File or directory.
    pub kind: Kind,
    /// The name.
    pub name: &'a str,
    /// The offset of the next entry.
    pub next: u64,
}

/// The usage of the filesystem in bytes and files, as for `statfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Size of the heap.
    pub size: u64,
    /// Bytes of the heap that the current versions do not use.
    pub free: u64,
    /// Files of the root, with or without a version.
    pub files: u64,
}

/// The filesystem.
#[derive(Debug)]
pub struct Tree {
    reader: Reader,
    /// Permission bits of the root.
    dir_mode: u32,
    /// Owner of both directories.
    owner: Owner,
    /// The files of the root by name.
    names: HashMap<String, FileId>,
    /// The files of the root.
    listed: Vec<FileId>,
    /// The files of the agent's state.
    state: Vec<FileId>,
}

/// The prefix of a name in the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    None,
    Hidden,
    Old,
}

impl Tree {
    /// The filesystem of the arena of `reader`.
    pub fn new(reader: Reader, dir_mode: u32, owner: Owner) -> Self {
        let files_in = |visibility| reader.arena().files_in(visibility).collect();
        let listed: Vec<FileId> = files_in(Visibility::Listed);
        let state = files_in(Visibility::State);
        let mut names = HashMap::new();
        for &file in &listed {
            let name = reader.arena().file(file).name.as_str();
            names.insert(name.to_owned(), file);
        }
        Self {
            reader,
            dir_mode,
            owner,
            names,
            listed,
            state,
        }
    }

    /// The inode that `name` leads to for thread `tid`, held until as many `forget`s.
    ///
    /// # Errors
    /// `NotFound` also for a file without a version, and for prefixed names to all threads but the
    /// announcing thread; `NotDirectory`.
    pub fn lookup(&self, tid: u32, parent: u64, name: &OsStr) -> Result<Attr, FsError> {
        let found = match Inode::decode(parent) {
            Inode::Root if name == STATE_DIRECTORY => return Ok(self.directory(Inode::State)),
            Inode::Root => self.hold_listed(tid, name),
            Inode::State => self.hold_state(name),
            Inode::Version(..) => return Err(FsError::NotDirectory),
        };
        let (version, stage) = found.ok_or(FsError::NotFound)?;
        Ok(self.attr(&version, stage))
    }

    fn hold_listed(&self, tid: u32, name: &OsStr) -> Option<(Version, Stage)> {
        let (prefix, file) = self.parse(name)?;
        match (prefix, self.reader.is_announcer(tid)) {
            (Prefix::None, false) => self.hold_current(file),
            (Prefix::None, true) => self.hold_watched(file),
            (Prefix::Hidden, true) => {
                let made = self.reader.made(file)?;
                let version = self.reader.hold(made)?;
                Some((version, Stage::Announced))
            }
            // Each inode of a superseded version with pages in the kernel, one per lookup. The
            // modification time of the inode grows by a nanosecond, which the kernel takes for
            // changed content.
            (Prefix::Old, true) => self.reader.next_kept(file),
            (Prefix::Hidden | Prefix::Old, false) => None,
        }
    }

    fn hold_state(&self, name: &OsStr) -> Option<(Version, Stage)> {
        let mut files = self.state.iter();
        let is_named = |file: &&FileId| self.name(**file).as_str() == name;
        let file = files.find(is_named)?;
        self.hold_current(*file)
    }

    fn hold_current(&self, file: FileId) -> Option<(Version, Stage)> {
        let version = self.reader.hold_current(file)?;
        Some((version, self.stage(&version)))
    }

    /// Holds the last announced version, which watchers of the file know: the announcing rename
    /// must take the name from this inode. If the rename took the name from the current version,
    /// the kernel would drop an inode without watchers, and a watch on the file would get no event.
    fn hold_watched(&self, file: FileId) -> Option<(Version, Stage)> {
        let renamed = self.reader.renamed(file);
        match self.reader.hold(renamed) {
            Some(version) if version.file == file => Some((version, Stage::Announced)),
            Some(_) | None => self.hold_current(file),
        }
    }

    /// Releases `count` lookups of `ino`.
    pub fn forget(&self, ino: u64, count: u64) {
        if let Inode::Version(nodeid, _) = Inode::decode(ino) {
            self.reader.forget(nodeid, count);
        }
    }

    /// The attributes of `ino`.
    ///
    /// # Errors
    /// `Stale` for an evicted version: the kernel then looks up the path again.
    pub fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        match Inode::decode(ino) {
            directory @ (Inode::Root | Inode::State) => Ok(self.directory(directory)),
            Inode::Version(nodeid, stage) => {
                let version = self.reader.version(nodeid).ok_or(FsError::Stale)?;
                Ok(self.attr(&version, stage))
            }
        }
    }

    /// Opens `ino` for reading. The kernel has checked owner and mode.
    ///
    /// # Errors
    /// `ReadOnly`, `Stale`, `IsDirectory`.
    pub fn open(&self, ino: u64, access: Access) -> Result<(), FsError> {
        match (Inode::decode(ino), access) {
            (Inode::Root | Inode::State, _) => Err(FsError::IsDirectory),
            (Inode::Version(..), Access::Write) => Err(FsError::ReadOnly),
            (Inode::Version(nodeid, _), Access::Read) => {
                self.reader.version(nodeid).ok_or(FsError::Stale)?;
                self.reader
                    .arena()
                    .reader_area()
                    .opens
                    .fetch_add(1, Relaxed);
                Ok(())
            }
        }
    }

    /// Copies bytes of `ino` from `offset` on and returns the number of copied bytes.
    ///
    /// # Errors
    /// `Evicted` when memory for a newer version ran out, `IsDirectory`. After an error `buffer`
    /// may hold bytes that must not be shown.
    pub fn read(&self, ino: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, FsError> {
        let Inode::Version(nodeid, _) = Inode::decode(ino) else {
            return Err(FsError::IsDirectory);
        };
        self.reader.read(nodeid, offset, buffer).map_err(|_gone| {
            self.reader
                .arena()
                .reader_area()
                .evicted
                .fetch_add(1, Relaxed);
            FsError::Evicted(self.reader.file_of(nodeid))
        })
    }

    /// Notes that the kernel got the reply to a lookup of `name`, which led to `ino`. Must be
    /// called after the reply: if this process dies in between, the kernel sends the lookup to the
    /// successor, which must find the same inode.
    pub fn answered(&self, name: &OsStr, ino: u64) {
        if let Inode::Version(nodeid, stage) = Inode::decode(ino)
            && let Some((Prefix::Old, _)) = self.parse(name)
        {
            self.reader.dropped(nodeid, stage);
        }
    }

    /// Notes that the kernel keeps the bytes of the present read of `ino` as pages.
    pub fn kept(&self, ino: u64) {
        if let Inode::Version(nodeid, stage) = Inode::decode(ino)
            && self.is_listed(nodeid)
        {
            self.reader.keeps(nodeid, stage);
        }
    }

    /// The first step of an announcement: creates the hidden name as the second inode of the
    /// current version, held.
    ///
    /// # Errors
    /// `ReadOnly` for other threads and other names; `NotFound` for a file without a version.
    pub fn create(&self, tid: u32, parent: u64, name: &OsStr) -> Result<Attr, FsError> {
        let file = self.announcing(tid, (parent, name), Prefix::Hidden)?;
        let version = self.reader.make(file).ok_or(FsError::NotFound)?;
        Ok(self.attr(&version, Stage::Announced))
    }

    /// The second step of an announcement: renames the hidden name to the file's name.
    ///
    /// # Errors
    /// `ReadOnly` for any other rename; `NotFound` without the first step.
    pub fn rename(&self, tid: u32, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), FsError> {
        let file = self.announcing(tid, from, Prefix::Hidden)?;
        if self.announcing(tid, to, Prefix::None)? != file {
            return Err(FsError::ReadOnly);
        }
        self.reader.rename(file).map_err(|_gone| FsError::NotFound)
    }

    /// The third step of an announcement: a truncation to the present size, for the event alone.
    ///
    /// # Errors
    /// `ReadOnly` for other threads and for inodes that are not announced; `Stale`.
    pub fn truncate(&self, tid: u32, ino: u64) -> Result<Attr, FsError> {
        if let Inode::Version(nodeid, _) = Inode::decode(ino)
            && self.reader.is_announcer(tid)
            && self.is_listed(nodeid)
        {
            self.getattr(ino)
        } else {
            Err(FsError::ReadOnly)
        }
    }

    /// A directory's entries from `offset` on: `.`, `..`, then the files that have a version.
    ///
    /// # Errors
    /// `NotDirectory`.
    pub fn entries(
        &self,
        ino: u64,
        offset: u64,
    ) -> Result<impl Iterator<Item = Entry<'_>>, FsError> {
        let files = match Inode::decode(ino) {
            Inode::Root => &self.listed,
            Inode::State => &self.state,
            Inode::Version(..) => return Err(FsError::NotDirectory),
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok((offset..files.len() + 2).filter_map(move |position| {
            let (ino, kind, name) = match position {
                0 => (ino, Kind::Directory, "."),
                1 => (ROOT, Kind::Directory, ".."),
                _ => {
                    let version = self.reader.current(files[position - 2])?;
                    let stage = self.stage(&version);
                    let ino = Inode::Version(version.nodeid, stage).encode();
                    (ino, Kind::File, self.name(version.file).as_str())
                }
            };
            let next = position as u64 + 1;
            Some(Entry {
                ino,
                kind,
                name,
                next,
            })
        }))
    }

    /// The usage of the filesystem.
    pub fn usage(&self) -> Usage {
        let size = self.reader.arena().heap_len() as u64;
        Usage {
            size,
            free: size.saturating_sub(self.reader.summary().used),
            files: self.listed.len() as u64,
        }
    }

    /// The file's name.
    pub fn name(&self, file: FileId) -> &FileName {
        &self.reader.arena().file(file).name
    }

    /// Notes the kernel's number of the present request in the arena, for a successor.
    pub fn note(&self, request: u64) {
        self.reader
            .arena()
            .reader_area()
            .last_request
            .store(request, Relaxed);
    }

    /// Begins an operation, which ends when the result is dropped. Supervise sees in the arena
    /// whether this process works, and whether it hangs in an operation.
    pub fn begin(&self) -> Operation<'_> {
        let work = self.reader.arena().reader_area().work;
        work.fetch_add(1, Relaxed);
        Operation(work)
    }

    fn directory(&self, inode: Inode) -> Attr {
        Attr {
            ino: inode.encode(),
            kind: Kind::Directory,
            size: 0,
            mode: match inode {
                Inode::Root => self.dir_mode,
                Inode::State | Inode::Version(..) => 0o555,
            },
            owner: self.owner,
            mtime: self.reader.summary().mtime,
            links: 2,
        }
    }

    /// The stage of the version's inode in the directory.
    fn stage(&self, version: &Version) -> Stage {
        if self.reader.renamed(version.file) == version.nodeid {
            Stage::Announced
        } else {
            Stage::Unannounced
        }
    }

    fn attr(&self, version: &Version, stage: Stage) -> Attr {
        let spec = self.reader.arena().file(version.file);
        Attr {
            ino: Inode::Version(version.nodeid, stage).encode(),
            kind: Kind::File,
            size: version.len,
            mode: spec.mode,
            owner: spec.owner,
            mtime: version.mtime + Duration::from_nanos(self.reader.drops(version.nodeid)),
            links: self.links(version, stage),
        }
    }

    /// An inode without a name must have 0 links. Otherwise the kernel restores the link that the
    /// rename removed, and a watch on the inode gets no `DELETE_SELF`.
    fn links(&self, version: &Version, stage: Stage) -> u32 {
        let is_current = self.reader.current(version.file) == Some(*version);
        if !is_current {
            return 0;
        }
        u32::from(stage == Stage::Announced || self.stage(version) == stage)
    }

    /// The prefix and the file of a name in the root.
    fn parse(&self, name: &OsStr) -> Option<(Prefix, FileId)> {
        let name = name.to_str()?;
        let (prefix, name) = if let Some(name) = name.strip_prefix(HIDDEN) {
            (Prefix::Hidden, name)
        } else if let Some(name) = name.strip_prefix(OLD) {
            (Prefix::Old, name)
        } else {
            (Prefix::None, name)
        };
        Some((prefix, *self.names.get(name)?))
    }

    /// The file of a step of an announcement: `name` must have this prefix.
    fn announcing(
        &self,
        tid: u32,
        (parent, name): (u64, &OsStr),
        expected: Prefix,
    ) -> Result<FileId, FsError> {
        match self.parse(name) {
            Some((prefix, file))
                if prefix == expected && parent == ROOT && self.reader.is_announcer(tid) =>
            {
                Ok(file)
            }
            Some(_) | None => Err(FsError::ReadOnly),
        }
    }

    /// Whether a version belongs to a file of the root.
    fn is_listed(&self, nodeid: u64) -> bool {
        let file = self.reader.file_of(nodeid);
        self.reader.arena().file(file).visibility == Visibility::Listed
    }
}

/// The access that an `open` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Writing, or reading and writing.
    Write,
}

/// The meaning of an inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inode {
    /// The root directory.
    Root,
    /// The directory of the agent's state.
    State,
    /// A version, by `nodeid`.
    Version(u64, Stage),
}

impl Inode {
    fn decode(ino: u64) -> Self {
        match ino {
            ROOT => Self::Root,
            STATE => Self::State,
            _ if ino.is_multiple_of(2) => Self::Version(ino / 2, Stage::Unannounced),
            _ => Self::Version(ino / 2, Stage::Announced),
        }
    }

    fn encode(self) -> u64 {
        match self {
            Self::Root => ROOT,
            Self::State => STATE,
            Self::Version(nodeid, stage) => nodeid * 2 + stage as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::mapping::Backing as Memory;
    use crate::snapshot::{Announcements, Arena, Change, FileSpec, Publisher};
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    /// Another thread than the announcing thread.
    const OTHER: u32 = 1;

    struct World {
        tree: Tree,
        publisher: Publisher,
        announcements: Announcements,
        /// The announcing thread: this one.
        tid: u32,
    }

    /// File `a` with a version of 3 bytes, not announced; file `b` and a file of the agent's state
    /// without a version.
    fn world() -> World {
        let owner = Owner {
            uid: 1000,
            gid: 1001,
        };
        let spec = |name| FileSpec {
            name: FileName::new(name).expect("name"),
            owner,
            mode: 0o440,
            visibility: Visibility::Listed,
        };
        let state = FileSpec {
            mode: 0o444,
            visibility: Visibility::State,
            ..spec("status.json")
        };
        let arena = Arc::new(
            Arena::create(
                vec![spec("a"), spec("b"), state],
                Some(64 << 10),
                Memory::Locked,
            )
            .expect("64 KiB can be locked"),
        );
        let tree = Tree::new(
            Reader::new(Arc::clone(&arena)),
            0o751,
            Owner { uid: 7, gid: 8 },
        );
        let (publisher, announcements) = (
            Publisher::new(Arc::clone(&arena)),
            Announcements::sign(arena),
        );
        let mut world = World {
            tree,
            publisher,
            announcements,
            tid: nix::unistd::gettid().as_raw().cast_unsigned(),
        };
        world.publish(b"one");
        world
    }

    impl World {
        fn publish(&mut self, bytes: &[u8]) {
            let mtime = UNIX_EPOCH + std::time::Duration::from_secs(bytes.len() as u64);
            self.publisher
                .publish(
                    &[Change {
                        file: FileId(0),
                        bytes,
                    }],
                    mtime,
                )
                .expect("fits");
        }

        fn publish_state(&mut self, bytes: &[u8]) {
            let mtime = UNIX_EPOCH + std::time::Duration::from_hours(1);
            self.publisher
                .publish(
                    &[Change {
                        file: FileId(2),
                        bytes,
                    }],
                    mtime,
                )
                .expect("fits");
        }

        fn lookup_state(&self, name: &str) -> Result<Attr, FsError> {
            self.tree.lookup(OTHER, STATE, OsStr::new(name))
        }

        fn lookup(&self, tid: u32, name: &str) -> Result<Attr, FsError> {
            self.tree.lookup(tid, ROOT, OsStr::new(name))
        }

        fn create(&self, tid: u32, name: &str) -> Result<Attr, FsError> {
            self.tree.create(tid, ROOT, OsStr::new(name))
        }

        fn rename(&self, tid: u32, from: &str, to: &str) -> Result<(), FsError> {
            self.tree
                .rename(tid, (ROOT, OsStr::new(from)), (ROOT, OsStr::new(to)))
        }

        fn names(&self, offset: u64) -> Vec<&str> {
            self.tree
                .entries(ROOT, offset)
                .expect("the root")
                .map(|entry| entry.name)
                .collect()
        }

        fn read(&self, ino: u64, offset: u64) -> Result<Vec<u8>, FsError> {
            let mut buffer = [0xff; 8];
            self.tree
                .read(ino, offset, &mut buffer)
                .map(|len| buffer[..len].to_vec())
        }
    }

    #[test]
    fn names_lead_where_they_should() {
        let world = world();
        for (tid, name, found) in [
            (OTHER, "a", Ok(3)),
            (world.tid, "a", Ok(3)),
            // No version yet.
            (OTHER, "b", Err(FsError::NotFound)),
            (OTHER, "c", Err(FsError::NotFound)),
            // Before the create.
            (world.tid, "..new.a", Err(FsError::NotFound)),
            (OTHER, "..new.a", Err(FsError::NotFound)),
        ] {
            assert_eq!(
                world.lookup(tid, name).map(|attr| attr.size),
                found,
                "{name} by {tid}"
            );
        }
        let file = world.lookup(OTHER, "a").expect("published");
        assert_eq!(
            world.tree.lookup(OTHER, file.ino, OsStr::new("a")),
            Err(FsError::NotDirectory)
        );
        assert_eq!(
            (file.mode, file.owner.uid, file.owner.gid, file.links),
            (0o440, 1000, 1001, 1)
        );
        let root = world.tree.getattr(ROOT).expect("always there");
        assert_eq!(
            (root.mode, root.owner, root.kind, root.mtime),
            (0o751, Owner { uid: 7, gid: 8 }, Kind::Directory, file.mtime)
        );
        assert_eq!(world.names(0), [".", "..", "a"]);
        assert_eq!(world.names(2), ["a"]);
        assert_eq!(world.names(3), [""; 0]);
        assert_eq!(world.tree.usage().size - world.tree.usage().free, 3);
    }

    #[test]
    fn state_is_found_by_name_alone() {
        let mut world = world();
        let directory = world.lookup(OTHER, "..baofs").expect("always there");
        assert_eq!(
            (
                directory.ino,
                directory.kind,
                directory.mode,
                directory.owner
            ),
            (STATE, Kind::Directory, 0o555, Owner { uid: 7, gid: 8 })
        );
        assert_eq!(world.tree.getattr(STATE), Ok(directory));
        assert_eq!(
            world.lookup_state("status.json"),
            Err(FsError::NotFound),
            "not yet"
        );
        let (root, usage) = (world.tree.getattr(ROOT), world.tree.usage());
        world.publish_state(b"{}");
        let file = world.lookup_state("status.json").expect("published");
        assert_eq!(
            (file.size, file.mode, file.kind, file.links),
            (2, 0o444, Kind::File, 1)
        );
        assert_eq!(world.read(file.ino, 0), Ok(b"{}".to_vec()));
        let listed = |ino| {
            world
                .tree
                .entries(ino, 0)
                .expect("a directory")
                .map(|entry| (entry.ino, entry.name))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            listed(STATE),
            [(STATE, "."), (ROOT, ".."), (file.ino, "status.json")]
        );
        assert_eq!(world.names(0), [".", "..", "a"]);
        assert_eq!(
            (world.tree.getattr(ROOT), world.tree.usage()),
            (root, usage),
            "the root does not show it"
        );
        for (tid, name) in [
            (OTHER, "status.json"),
            (world.tid, "status.json"),
            (world.tid, "..new.status.json"),
        ] {
            assert_eq!(world.lookup(tid, name), Err(FsError::NotFound), "{name}");
        }
        for name in ["a", "..new.a", "..baofs", "..new.status.json"] {
            assert_eq!(world.lookup_state(name), Err(FsError::NotFound), "{name}");
        }
        world.publish_state(b"{ }");
        assert_eq!(
            world.read(file.ino, 0),
            Ok(b"{}".to_vec()),
            "a descriptor keeps its version"
        );
        assert_eq!(world.tree.getattr(file.ino).expect("held").links, 0);
        assert_eq!(
            world.lookup_state("status.json").expect("published").size,
            3
        );
        world.tree.forget(STATE, 1);
        world.tree.forget(file.ino, 1);
        world.publish_state(b"{}");
        assert_eq!(world.tree.getattr(file.ino), Err(FsError::Stale), "freed");
    }

    #[test]
    fn nobody_changes_state() {
        let mut world = world();
        world.publish_state(b"{}");
        let (tid, name, denied) = (world.tid, OsStr::new("status.json"), Err(FsError::ReadOnly));
        let ino = world.lookup_state("status.json").expect("published").ino;
        for name in ["status.json", "..new.status.json", "..new.a", "new"] {
            assert_eq!(
                world.tree.create(tid, STATE, OsStr::new(name)).map(drop),
                denied,
                "{name}"
            );
        }
        for name in ["status.json", "..new.status.json", "..baofs"] {
            assert_eq!(world.create(tid, name).map(drop), denied, "{name}");
        }
        world.announcements.begin(FileId(0));
        world
            .create(tid, "..new.a")
            .expect("the announcement's own");
        assert_eq!(
            world
                .tree
                .rename(tid, (ROOT, OsStr::new("..new.a")), (STATE, name)),
            denied
        );
        assert_eq!(
            world
                .tree
                .rename(tid, (STATE, name), (ROOT, OsStr::new("a"))),
            denied
        );
        for ino in [ino, STATE] {
            assert_eq!(world.tree.truncate(tid, ino).map(drop), denied);
        }
        assert_eq!(world.tree.open(ino, Access::Write), denied);
        assert_eq!(
            world.tree.open(STATE, Access::Read),
            Err(FsError::IsDirectory)
        );
        assert_eq!(world.read(STATE, 0), Err(FsError::IsDirectory));
    }

    #[test]
    fn only_the_announcing_thread_changes_names() {
        let world = world();
        let (tid, denied) = (world.tid, Err(FsError::ReadOnly));
        world.announcements.begin(FileId(0));
        for (tid, name) in [
            (OTHER, "..new.a"),
            (tid, "a"),
            (tid, "c"),
            (tid, "..new.c"),
            (OTHER, "a"),
        ] {
            assert_eq!(world.create(tid, name).map(drop), denied, "{name} by {tid}");
        }
        world
            .create(tid, "..new.a")
            .expect("the announcement's own");
        for (tid, from, to) in [
            (OTHER, "..new.a", "a"),
            (tid, "..new.a", "b"),
            (tid, "a", "b"),
            (tid, "..new.a", "..new.a"),
            (tid, "a", "..new.a"),
        ] {
            assert_eq!(
                world.rename(tid, from, to),
                denied,
                "{from} to {to} by {tid}"
            );
        }
        let ino = world.lookup(OTHER, "a").expect("published").ino;
        assert_eq!(world.tree.truncate(OTHER, ino).map(drop), denied);
        assert_eq!(world.tree.truncate(tid, ROOT).map(drop), denied);
        assert_eq!(world.tree.open(ino, Access::Write), denied);
        assert_eq!(
            world.tree.open(ROOT, Access::Read),
            Err(FsError::IsDirectory)
        );
    }

    #[test]
    fn an_announcement_gives_the_name_to_a_second_inode() {
        let world = world();
        let before = world.lookup(OTHER, "a").expect("published");
        world.announcements.begin(FileId(0));
        assert_eq!(
            world.rename(world.tid, "..new.a", "a"),
            Err(FsError::NotFound),
            "nothing was created in this attempt"
        );
        let made = world
            .create(world.tid, "..new.a")
            .expect("the announcement's own");
        assert_eq!((made.ino, made.links), (before.ino + 1, 1));
        assert_eq!(
            world.lookup(world.tid, "..new.a").expect("created").ino,
            made.ino
        );
        assert_eq!(world.lookup(OTHER, "..new.a"), Err(FsError::NotFound));
        assert_eq!(
            world.lookup(OTHER, "a").expect("published").ino,
            before.ino,
            "not renamed yet"
        );
        for _resent in 0..2 {
            world
                .rename(world.tid, "..new.a", "a")
                .expect("the announcement's own");
            assert_eq!(world.lookup(OTHER, "a").expect("published").ino, made.ino);
        }
        assert_eq!(
            world
                .tree
                .truncate(world.tid, made.ino)
                .expect("the announcement's own")
                .size,
            3
        );
        assert_eq!(world.tree.getattr(before.ino).expect("held").links, 0);
        // The next attempt begins with no hidden name.
        world.announcements.begin(FileId(0));
        assert_eq!(world.lookup(world.tid, "..new.a"), Err(FsError::NotFound));
    }

    #[test]
    fn a_flip_during_an_announcement_is_announced_after_it() {
        let mut world = world();
        world.announcements.begin(FileId(0));
        let made = world
            .create(world.tid, "..new.a")
            .expect("the announcement's own");
        world.publish(b"second");
        assert_eq!(
            world.lookup(world.tid, "..new.a").expect("created").ino,
            made.ino
        );
        world
            .rename(world.tid, "..new.a", "a")
            .expect("the announcement's own");
        let version = world.announcements.made(FileId(0)).expect("held");
        world.announcements.done(FileId(0), version.generation);
        assert_eq!(version.len, 3);
        assert_eq!(world.announcements.due(), [FileId(0)]);
        let newest = world.lookup(OTHER, "a").expect("published");
        assert_eq!(newest.size, 6, "a lookup sees the flip at once");
        // The announcing thread finds the inode that watchers know.
        assert_eq!(
            world.lookup(world.tid, "a").expect("last announced").ino,
            made.ino
        );
    }

    #[test]
    fn old_pages_are_dropped_inode_by_inode() {
        let mut world = world();
        let none = Err(FsError::NotFound);
        let first = world.lookup(OTHER, "a").expect("published");
        world.announcements.begin(FileId(0));
        let second = world
            .create(world.tid, "..new.a")
            .expect("the announcement's own");
        world
            .rename(world.tid, "..new.a", "a")
            .expect("the announcement's own");
        world.tree.kept(first.ino);
        world.tree.kept(second.ino);
        assert_eq!(
            world.lookup(world.tid, "..old.a").map(drop),
            none,
            "the version is served"
        );
        assert_eq!(world.announcements.kept(), []);

        world.publish(b"second");
        assert_eq!(world.announcements.kept(), [FileId(0)]);
        assert_eq!(
            world.lookup(OTHER, "..old.a").map(drop),
            none,
            "by another thread"
        );
        let mut times = vec![first.mtime];
        for ino in [first.ino, second.ino] {
            // The second lookup is sent to the successor of a `serve` that died before the reply: the
            // time must change again.
            for _resent in 0..2 {
                let old = world.lookup(world.tid, "..old.a").expect("kept");
                assert_eq!((old.ino, old.size, old.links), (ino, 3, 0));
                assert!(
                    !times.contains(&old.mtime)
                        && world.tree.getattr(ino).map(|attr| attr.mtime) == Ok(old.mtime)
                );
                times.push(old.mtime);
            }
            world.tree.answered(OsStr::new("..old.a"), ino);
        }
        assert_eq!(world.lookup(world.tid, "..old.a").map(drop), none);
        assert_eq!(
            world.read(first.ino, 0),
            Ok(b"one".to_vec()),
            "a descriptor keeps its version"
        );

        // The kernel keeps pages once more; then the version is released and its record reused.
        world.tree.kept(first.ino);
        assert_eq!(world.announcements.kept(), [FileId(0)]);
        world.tree.forget(first.ino, 100);
        assert_eq!(world.announcements.kept(), []);
        for n in 0..100 {
            world.publish(&[n]);
        }
        assert_eq!(
            world.lookup(world.tid, "..old.a").map(drop),
            none,
            "a note is of one version"
        );
        assert_eq!(
            world.tree.open(first.ino, Access::Read),
            Err(FsError::Stale)
        );
    }

    #[test]
    fn reads_are_of_one_version_until_it_is_evicted() {
        let mut world = world();
        let ino = world.lookup(OTHER, "a").expect("published").ino;
        world.publish(b"second");
        for (offset, bytes) in [(0, "one"), (2, "e"), (3, ""), (u64::MAX, "")] {
            assert_eq!(
                world.read(ino, offset),
                Ok(bytes.as_bytes().to_vec()),
                "at {offset}"
            );
        }
        for n in 0..100 {
            let newest = world.lookup(OTHER, "a").expect("published").ino;
            assert_eq!(world.tree.open(newest, Access::Read), Ok(()));
            world.publish(&[n]);
        }
        assert_eq!(world.read(ino, 0), Err(FsError::Evicted(FileId(0))));
        assert_eq!(world.tree.open(ino, Access::Read), Err(FsError::Stale));
        assert_eq!(world.tree.getattr(ino), Err(FsError::Stale));
        assert_eq!(world.read(ROOT, 0), Err(FsError::IsDirectory));
    }
}
