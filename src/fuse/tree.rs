//! The filesystem without FUSE: one directory of files whose versions are inodes, and in it, found
//! by name and not listed, one of the agent's own state. Invariants: every answer comes from
//! memory; only the announcing thread may create, rename and truncate, and only as an announcement
//! does.
//!
//! A version has two inode numbers: `2 * nodeid` until its announcing rename, `2 * nodeid + 1` from
//! its create on. The rename must give the name to another inode than it had, since the kernel
//! skips a rename onto itself, and its event.

use crate::names::{FileId, FileName, STATE_DIRECTORY};
use crate::snapshot::{Reader, Stage, Version, Visibility};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

/// The directory's inode number.
pub const ROOT: u64 = 1;
/// That of the directory of the agent's own state; versions begin above it.
pub const STATE: u64 = 2;
/// What stands before a file's name while its new version is announced.
pub const HIDDEN: &str = "..new.";

/// What stands before a file's name where the kernel is to drop pages of a superseded version.
pub const OLD: &str = "..old.";

/// An operation under way, as supervise sees it in the arena; it ends when this is dropped.
#[derive(Debug)]
pub struct Operation<'a>(&'a AtomicU64);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Why an operation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsError {
    /// No such name.
    NotFound,
    /// Not by this thread, not in this way.
    ReadOnly,
    /// The inode is of a version that was evicted; its path leads to a newer one.
    Stale,
    /// The bytes were evicted while the file was open.
    Evicted(FileId),
    /// A file is not a directory.
    NotDirectory,
    /// The directory is not a file.
    IsDirectory,
}

/// File or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The directory.
    Directory,
    /// A file.
    File,
}

/// What `stat` shows.
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
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// When it was published.
    pub mtime: SystemTime,
    /// Names; 0 once a newer inode has the name.
    pub links: u32,
}

/// One name in the directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Inode number.
    pub ino: u64,
    /// File or directory.
    pub kind: Kind,
    /// The name.
    pub name: &'a str,
    /// Where to go on reading after it.
    pub next: u64,
}

/// What `statfs` shows, in bytes and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Size of the heap.
    pub size: u64,
    /// Of which the current versions leave.
    pub free: u64,
    /// Files that can be served.
    pub files: u64,
}

/// The directory's own attributes.
#[derive(Clone, Copy, Debug)]
pub struct Directory {
    /// Permission bits.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The filesystem.
#[derive(Debug)]
pub struct Tree {
    reader: Reader,
    directory: Directory,
    /// Every name in the root that leads to a file: the files' own and, marked, their hidden ones.
    names: HashMap<OsString, (FileId, Name)>,
    /// The files of the root.
    listed: Vec<FileId>,
    /// The files of the agent's own state.
    state: Vec<FileId>,
}

/// Whether a name is a file's own, its hidden one, or the one by which old pages are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Own,
    Hidden,
    Old,
}

impl Tree {
    /// The filesystem of this arena.
    pub fn new(reader: Reader, directory: Directory) -> Self {
        let mut names = HashMap::new();
        let [listed, state]: [Vec<FileId>; 2] = [Visibility::Listed, Visibility::State]
            .map(|place| reader.arena().files_in(place).collect());
        for &file in &listed {
            let name = &reader.arena().files()[file.index()].name;
            names.insert(name.as_str().into(), (file, Name::Own));
            names.insert(format!("{HIDDEN}{name}").into(), (file, Name::Hidden));
            names.insert(format!("{OLD}{name}").into(), (file, Name::Old));
        }
        Self {
            reader,
            directory,
            names,
            listed,
            state,
        }
    }

    /// The inode that `name` leads to for thread `tid`; held until as many `forget`s.
    ///
    /// # Errors
    /// `NotFound` also for a file that has no version yet, and for hidden names to all but the
    /// announcing thread.
    pub fn lookup(&self, tid: u32, parent: u64, name: &OsStr) -> Result<Attr, FsError> {
        match self.names.get(name) {
            _ if Self::place(parent)? == Visibility::State => self.lookup_state(name),
            None if name == STATE_DIRECTORY => Ok(self.directory(Inode::State)),
            None => Err(FsError::NotFound),
            Some(&found) => self.lookup_listed(tid, found),
        }
    }

    fn lookup_listed(&self, tid: u32, found: (FileId, Name)) -> Result<Attr, FsError> {
        match found {
            (file, Name::Own) if self.reader.is_announcer(tid) => self.lookup_announcing(file),
            (file, Name::Own) => self.lookup_current(file),
            (file, Name::Hidden) if self.reader.is_announcer(tid) => self.lookup_hidden(file),
            (file, Name::Old) if self.reader.is_announcer(tid) => self.lookup_old(file),
            (_, Name::Hidden | Name::Old) => Err(FsError::NotFound),
        }
    }

    /// Each inode of a superseded version whose pages the kernel may keep, one after the other, and
    /// then none. Its modification time is another one than before, by a nanosecond: the kernel
    /// takes that for changed content.
    fn lookup_old(&self, file: FileId) -> Result<Attr, FsError> {
        let (version, inode) = self.reader.next_kept(file).ok_or(FsError::NotFound)?;
        Ok(self.attr(&version, inode))
    }

    fn lookup_state(&self, name: &OsStr) -> Result<Attr, FsError> {
        let mut files = self.state.iter();
        let file = files.find(|file| self.name(**file).as_str() == name);
        self.lookup_current(*file.ok_or(FsError::NotFound)?)
    }

    fn lookup_current(&self, file: FileId) -> Result<Attr, FsError> {
        let version = self.reader.hold_current(file).ok_or(FsError::NotFound)?;
        Ok(self.attr(&version, self.stage(&version)))
    }

    /// The announcing rename must take the name from the inode that watchers know: the last
    /// announced version's. With the current one's, which the kernel would then drop unseen, a
    /// watch on the file itself would hear nothing.
    fn lookup_announcing(&self, file: FileId) -> Result<Attr, FsError> {
        let announced = self
            .reader
            .hold(self.reader.renamed(file))
            .filter(|version| version.file == file);
        let Some(version) = announced else {
            return self.lookup_current(file);
        };
        Ok(self.attr(&version, Stage::Announced))
    }

    fn lookup_hidden(&self, file: FileId) -> Result<Attr, FsError> {
        let made = self.reader.made(file).ok_or(FsError::NotFound)?;
        let version = self.reader.hold(made).ok_or(FsError::NotFound)?;
        Ok(self.attr(&version, Stage::Announced))
    }

    /// `count` lookups let go of `ino`.
    pub fn forget(&self, ino: u64, count: u64) {
        if let Inode::Version(nodeid, _) = Inode::decode(ino) {
            self.reader.forget(nodeid, count);
        }
    }

    /// What `stat` shows of `ino`.
    ///
    /// # Errors
    /// `Stale` for a version that was evicted: the kernel then asks for the path again.
    pub fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        match Inode::decode(ino) {
            directory @ (Inode::Root | Inode::State) => Ok(self.directory(directory)),
            Inode::Version(nodeid, stage) => {
                let version = self.reader.version(nodeid).ok_or(FsError::Stale)?;
                Ok(self.attr(&version, stage))
            }
        }
    }

    /// Opens `ino`: for reading, or not at all. Who may read it the kernel decides by owner and
    /// mode.
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

    /// Copies bytes of `ino` from `offset` on; returns how many.
    ///
    /// # Errors
    /// `Evicted` when memory for a newer version ran out; `buffer` then holds nothing that may be
    /// shown.
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

    /// The kernel has the answer to a lookup of `name`, which was `ino`. To be called after the
    /// reply and not before it: should this process die in between, its successor is asked for
    /// the same name again, and must find the same inode.
    pub fn answered(&self, name: &OsStr, ino: u64) {
        if let Inode::Version(nodeid, stage) = Inode::decode(ino)
            && name.as_bytes().starts_with(OLD.as_bytes())
        {
            self.reader.dropped(nodeid, stage);
        }
    }

    /// Notes that the kernel keeps as pages what it reads of `ino` now.
    pub fn kept(&self, ino: u64) {
        if let Inode::Version(nodeid, stage) = Inode::decode(ino)
            && self.is_listed(nodeid)
        {
            self.reader.keeps(nodeid, stage);
        }
    }

    /// The announcement's first step: the hidden name comes to be, as the second inode of the
    /// current version. Held.
    ///
    /// # Errors
    /// `ReadOnly` for all but the announcing thread and its hidden names.
    pub fn create(&self, tid: u32, parent: u64, name: &OsStr) -> Result<Attr, FsError> {
        let file = self.announcing(tid, parent, name, Name::Hidden)?;
        let version = self.reader.make(file).ok_or(FsError::NotFound)?;
        Ok(self.attr(&version, Stage::Announced))
    }

    /// Its second: the hidden name becomes the file's own.
    ///
    /// # Errors
    /// `ReadOnly` for any other rename.
    pub fn rename(&self, tid: u32, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), FsError> {
        let file = self.announcing(tid, from.0, from.1, Name::Hidden)?;
        if self.announcing(tid, to.0, to.1, Name::Own)? != file {
            return Err(FsError::ReadOnly);
        }
        self.reader.rename(file).map_err(|_gone| FsError::NotFound)
    }

    /// Its third: a truncation to the size that the file has, for the event alone.
    ///
    /// # Errors
    /// `ReadOnly` for all but the announcing thread.
    pub fn truncate(&self, tid: u32, ino: u64) -> Result<Attr, FsError> {
        match Inode::decode(ino) {
            Inode::Version(nodeid, _)
                if self.reader.is_announcer(tid) && self.is_listed(nodeid) =>
            {
                self.getattr(ino)
            }
            Inode::Version(..) | Inode::Root | Inode::State => Err(FsError::ReadOnly),
        }
    }

    /// A directory's entries from `offset` on: `.`, `..`, then its files that have a version.
    ///
    /// # Errors
    /// `NotDirectory`.
    pub fn entries(
        &self,
        ino: u64,
        offset: u64,
    ) -> Result<impl Iterator<Item = Entry<'_>>, FsError> {
        let dots = [(ino, "."), (ROOT, "..")].map(|(ino, name)| Some((ino, Kind::Directory, name)));
        let files = match Self::place(ino)? {
            Visibility::Listed => &self.listed,
            Visibility::State | Visibility::Private => &self.state,
        };
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        let dots = dots.into_iter().skip(skipped);
        // No version is looked up of what was read before.
        let files = files.iter().skip(skipped.saturating_sub(2)).map(|file| {
            let version = self.reader.current(*file)?;
            let ino = Inode::Version(version.nodeid, self.stage(&version)).encode();
            Some((ino, Kind::File, self.name(*file).as_str()))
        });
        let all = dots.chain(files).zip(offset.saturating_add(1)..);
        Ok(all.filter_map(|(entry, next)| {
            entry.map(|(ino, kind, name)| Entry {
                ino,
                kind,
                name,
                next,
            })
        }))
    }

    /// What `statfs` shows.
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
        &self.reader.arena().files()[file.index()].name
    }

    /// Notes the kernel's number of the request in hand, in the arena.
    pub fn note(&self, request: u64) {
        self.reader
            .arena()
            .reader_area()
            .last_request
            .store(request, Relaxed);
    }

    /// Begins an operation, which ends when the result is dropped: supervise sees in the arena
    /// whether this process works, and whether it hangs in the middle of something.
    pub fn begin(&self) -> Operation<'_> {
        let work = self.reader.arena().reader_area().work;
        work.fetch_add(1, Relaxed);
        Operation(work)
    }

    fn directory(&self, inode: Inode) -> Attr {
        let Directory { mode, uid, gid } = self.directory;
        Attr {
            ino: inode.encode(),
            kind: Kind::Directory,
            size: 0,
            mode: if inode == Inode::Root { mode } else { 0o555 },
            uid,
            gid,
            mtime: self.reader.summary().mtime,
            links: 2,
        }
    }

    /// Which of its two inodes the version's path leads to.
    fn stage(&self, version: &Version) -> Stage {
        if self.reader.renamed(version.file) == version.nodeid {
            Stage::Announced
        } else {
            Stage::Unannounced
        }
    }

    fn attr(&self, version: &Version, stage: Stage) -> Attr {
        Attr {
            ino: Inode::Version(version.nodeid, stage).encode(),
            kind: Kind::File,
            size: version.len,
            mode: version.mode,
            uid: version.owner.uid,
            gid: version.owner.gid,
            mtime: version.mtime + Duration::from_nanos(self.reader.drops(version.nodeid)),
            links: self.links(version, stage),
        }
    }

    /// An inode that lost its name must say so, or the kernel takes back what it concluded from the
    /// rename, and a watch on it would not hear of its end.
    fn links(&self, version: &Version, stage: Stage) -> u32 {
        let newest = self
            .reader
            .current(version.file)
            .is_some_and(|current| current.nodeid == version.nodeid);
        u32::from(newest && (stage == Stage::Announced || self.stage(version) == stage))
    }

    /// The file that `name` is of, if this is a step of its announcement.
    fn announcing(
        &self,
        tid: u32,
        parent: u64,
        name: &OsStr,
        kind: Name,
    ) -> Result<FileId, FsError> {
        match (Self::place(parent)?, self.names.get(name)) {
            (Visibility::Listed, Some((file, found)))
                if *found == kind && self.reader.is_announcer(tid) =>
            {
                Ok(*file)
            }
            _ => Err(FsError::ReadOnly),
        }
    }

    /// Whether this is a version of a listed file.
    fn is_listed(&self, nodeid: u64) -> bool {
        self.reader.arena().visibility(self.reader.file_of(nodeid)) == Visibility::Listed
    }

    /// Where the files of a directory are.
    fn place(ino: u64) -> Result<Visibility, FsError> {
        match Inode::decode(ino) {
            Inode::Root => Ok(Visibility::Listed),
            Inode::State => Ok(Visibility::State),
            Inode::Version(..) => Err(FsError::NotDirectory),
        }
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading alone.
    Read,
    /// Anything else.
    Write,
}

/// What an inode number is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inode {
    /// The directory.
    Root,
    /// The directory of the agent's own state.
    State,
    /// A version, by its number (`nodeid`).
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
    use crate::names::Owner;
    use crate::snapshot::{Announcements, Arena, Change, FileSpec, Publisher, Visibility};
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    /// A thread that is not the announcing one.
    const OTHER: u32 = 1;

    struct World {
        tree: Tree,
        publisher: Publisher,
        announcements: Announcements,
        /// The announcing thread: this one.
        tid: u32,
    }

    /// Two files, of which `a` has a version of 3 bytes that is not announced; and one of the
    /// agent's own state without any.
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
            Directory {
                mode: 0o751,
                uid: 7,
                gid: 8,
            },
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
            // Not before its create, and then not for others.
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
            (file.mode, file.uid, file.gid, file.links),
            (0o440, 1000, 1001, 1)
        );
        let root = world.tree.getattr(ROOT).expect("always there");
        assert_eq!(
            (root.mode, root.uid, root.gid, root.kind, root.mtime),
            (0o751, 7, 8, Kind::Directory, file.mtime)
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
                directory.uid,
                directory.gid
            ),
            (STATE, Kind::Directory, 0o555, 7, 8)
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
        // The thread that is about to rename over the name sees whom the watchers watch.
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
            // Asked again by a successor of a `serve` that died over the answer: again another
            // time.
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

        // Read into pages once more; then let go of, and its record used anew.
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
