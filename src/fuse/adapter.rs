//! Passes the kernel's requests to the tree: one call and one reply for each request. Invariants:
//! secret bytes are only in the bounce buffer, and only until the reply is written; every refusal
//! becomes an errno in one place.

use super::tree::{Access, Attr, FsError, Kind, Operation, Tree};
use crate::memory::bounce::Bounce;
use crate::observe::Event;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    Request, TimeOrNow,
};
use std::ffi::OsStr;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// The time for which the kernel may keep attributes: the attributes of an inode change only in the
/// calls of an announcement, which refresh them.
const ATTRIBUTES: Duration = Duration::from_hours(1);
/// The time for which the kernel may keep the inode of a name: each open does a lookup.
const NAMES: Duration = Duration::ZERO;
/// Open files have no state besides the inode.
const NO_HANDLE: FileHandle = FileHandle(0);
/// Reads are not answered from the page cache; `close` sends no request.
const DIRECT: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);
/// The unit of `statfs`, in bytes.
const BLOCK: u32 = 512;

/// The filesystem that fuser calls.
#[derive(Debug)]
pub struct Adapter {
    tree: Tree,
    /// Never contended: the session has one thread.
    bounce: Mutex<Bounce>,
}

impl Adapter {
    /// Answers from `tree`, through `bounce`.
    pub fn new(tree: Tree, bounce: Bounce) -> Self {
        Self {
            tree,
            bounce: Mutex::new(bounce),
        }
    }

    /// Notes the request in the arena, for a successor, and begins an operation, which ends when
    /// the result is dropped, after the reply.
    fn take(&self, request: &Request) -> Operation<'_> {
        self.tree.note(request.unique().0);
        self.tree.begin()
    }
}

/// The only conversion of a refusal into an errno.
impl From<FsError> for Errno {
    fn from(error: FsError) -> Self {
        match error {
            FsError::NotFound => Self::ENOENT,
            // The errno of the public mount, which is read-only.
            FsError::ReadOnly => Self::EROFS,
            // `open` and path walks repeat the lookup after ESTALE and find the newer version; EIO
            // would reach the reader.
            FsError::Stale => Self::ESTALE,
            // Not ESTALE: another lookup does not help an open descriptor, and readers treat EIO as
            // final.
            FsError::Evicted(_) => Self::EIO,
            FsError::NotDirectory => Self::ENOTDIR,
            FsError::IsDirectory => Self::EISDIR,
        }
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(u64::from(BLOCK)),
        atime: attr.mtime,
        mtime: attr.mtime,
        ctime: attr.mtime,
        crtime: attr.mtime,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).expect("12 bits"),
        nlink: attr.links,
        uid: attr.owner.uid,
        gid: attr.owner.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Lookups of different readers do not wait for each other in the kernel, if the kernel
        // supports that.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        // The kernel drops the pages of an inode with a new modification time (`announce`).
        let _ = config.add_capabilities(InitFlags::FUSE_AUTO_INVAL_DATA);
        // Nothing is ever written: the minimum of FUSE.
        let _ = config.set_max_write(4096);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _operation = self.take(request);
        match self.tree.lookup(request.pid(), parent.0, name) {
            Ok(attr) => {
                reply.entry_with_ttls(&ATTRIBUTES, &NAMES, &file_attr(&attr), Generation(0));
                self.tree.answered(name, attr.ino);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        let _operation = self.tree.begin();
        self.tree.forget(ino.0, count);
    }

    fn getattr(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let _operation = self.take(request);
        match self.tree.getattr(ino.0) {
            Ok(attr) => reply.attr(&ATTRIBUTES, &file_attr(&attr)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _operation = self.take(request);
        let truncated = match (size, mode, uid, gid) {
            (Some(_), None, None, None) => self.tree.truncate(request.pid(), ino.0),
            _ => Err(FsError::ReadOnly),
        };
        match truncated {
            Ok(attr) => reply.attr(&ATTRIBUTES, &file_attr(&attr)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _operation = self.take(request);
        let access = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => Access::Read,
            OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => Access::Write,
        };
        match self.tree.open(ino.0, access) {
            Ok(()) => reply.opened(NO_HANDLE, DIRECT),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _operation = self.take(request);
        // A read by a process names an owner of locks; a read that fills the page cache does not.
        if owner.is_none() {
            self.tree.kept(ino.0);
        }
        let mut bounce = self.bounce.lock().unwrap_or_else(PoisonError::into_inner);
        // The bytes are wiped after the reply.
        bounce.lend(size as usize, |bytes| {
            match self.tree.read(ino.0, offset, bytes) {
                Ok(len) => reply.data(&bytes[..len]),
                Err(error) => {
                    reply.error(error.into());
                    if let FsError::Evicted(file) = error {
                        let file = self.tree.name(file);
                        Event::Evicted { file }.emit();
                    }
                }
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let _operation = self.take(request);
        match self.tree.create(request.pid(), parent.0, name) {
            Ok(attr) => {
                let attr = file_attr(&attr);
                reply.created(&NAMES, &attr, Generation(0), NO_HANDLE, DIRECT);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _operation = self.take(request);
        let renamed = if flags.is_empty() {
            let from = (parent.0, name);
            let to = (new_parent.0, new_name);
            self.tree.rename(request.pid(), from, to)
        } else {
            Err(FsError::ReadOnly)
        };
        match renamed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _operation = self.take(request);
        match self.tree.entries(ino.0, offset) {
            Ok(mut entries) => {
                // `add` is true when the buffer is full: the kernel then asks for more from the
                // last `next` on.
                let _ = entries.any(|entry| {
                    reply.add(
                        INodeNo(entry.ino),
                        entry.next,
                        file_type(entry.kind),
                        entry.name,
                    )
                });
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _operation = self.take(request);
        let usage = self.tree.usage();
        let blocks = usage.size / u64::from(BLOCK);
        let free = usage.free / u64::from(BLOCK);
        reply.statfs(blocks, free, 0, usage.files, 0, BLOCK, 255, BLOCK);
    }
}
