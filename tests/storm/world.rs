//! One mount with its roles, and readers that count what they see.

use baofs::clock::{Clock, RealClock};
use baofs::fuse::announce::Announcer;
use baofs::fuse::mount::{FuseMount, Public};
use baofs::link::{self, FromRole, Received};
use baofs::memory::mapping::Backing;
use baofs::names::Role;
use baofs::names::{FileId, FileName, Owner};
use baofs::names::{Recovery, RestartHistory};
use baofs::serve::{self, Job};
use baofs::snapshot::{Arena, Change, FileSpec, Publisher, Visibility};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, setgroups, setresgid, setresuid};
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

/// The application's user.
pub(crate) const APP: u32 = 1000;
pub(crate) const ONE_FILE: &[&str] = &["a"];
pub(crate) const TWO_FILES: &[&str] = &["a", "b"];
/// An order's second half: rotate every file.
const ALL: u32 = u32::MAX;

/// Gives this process mounts of its own.
pub(crate) fn isolate() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
}

/// Hides a directory under an empty one, in a namespace of the caller's own.
pub(crate) fn cover(path: &str) {
    isolate().unwrap();
    mount(
        Some("none"),
        path,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
}

/// A temporary directory that other users may enter.
pub(crate) fn open_directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Runs `child` in a forked process; its result is the exit code, 101 when it panics.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> Pid {
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends the process without running what belongs to the parent.
            unsafe { libc::_exit(i32::from(code)) }
        }
    }
}

/// The exit code of a child; 128 and its number for a signal.
pub(crate) fn exit_of(child: Pid) -> i32 {
    let ended = waitpid(child, None).unwrap();
    if let WaitStatus::Signaled(_, signal, _) = ended {
        return 128 + signal as i32;
    }
    let WaitStatus::Exited(_, code) = ended else {
        unreachable!("{ended:?} is no end")
    };
    code
}

/// Becomes that user for good. The death signal, which a change of user clears, is set again.
pub(crate) fn as_user(uid: u32) {
    setgroups(&[]).unwrap();
    setresgid(Gid::from_raw(uid), Gid::from_raw(uid), Gid::from_raw(uid)).unwrap();
    setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid)).unwrap();
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
}

/// The bytes of every file in that generation: its number again and again, 8 bytes to 20 kB.
pub(crate) fn content(generation: u64) -> Vec<u8> {
    let count = usize::try_from(generation * 7919 % 2500 + 1).unwrap();
    generation.to_le_bytes().repeat(count)
}

/// The generation that these bytes are all of, if they are one.
pub(crate) fn generation_of(bytes: &[u8]) -> Option<u64> {
    let generation = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == content(generation)).then_some(generation)
}

/// The files of these names, and one of the agent's own state.
pub(crate) fn specs(names: &[&str]) -> Vec<FileSpec> {
    let owner = Owner { uid: APP, gid: APP };
    let spec = |name: &str, visibility| FileSpec {
        name: FileName::new(name).unwrap(),
        owner,
        mode: 0o400,
        visibility,
    };
    names
        .iter()
        .map(|name| spec(name, Visibility::Listed))
        .chain([spec("state", Visibility::State)])
        .collect()
}

/// One mount, its `serve`, and a `fetch` that publishes on order.
pub(crate) struct World {
    pub(crate) arena: Arc<Arena>,
    public: Option<Public>,
    private: Option<OwnedFd>,
    device: Option<OwnedFd>,
    init: Vec<u8>,
    serve: Pid,
    fetch: Pid,
    orders: Option<UnixStream>,
    dir: TempDir,
}

impl World {
    pub(crate) fn start(names: &[&str], size: Option<usize>, kind: Backing) -> Self {
        let arena = Arc::new(Arena::create(specs(names), size, kind).unwrap());
        let dir = open_directory();
        let FuseMount {
            device,
            init,
            private,
            public,
            ..
        } = FuseMount::create(&dir.path().join("secrets"), 0o755).unwrap();
        let serve = start_serve(
            &arena,
            &device,
            &init,
            Recovery::Resend,
            &[private.as_fd(), public.as_fd()],
        );
        let (orders, taken) = UnixStream::pair().unwrap();
        orders
            .set_read_timeout(Some(Duration::from_secs(100)))
            .unwrap();
        let (of_fetch, its_private) = (Arc::clone(&arena), private.try_clone().unwrap());
        let others = [
            orders.as_raw_fd(),
            private.as_raw_fd(),
            public.as_fd().as_raw_fd(),
            device.as_raw_fd(),
        ];
        let fetch = fork(move || {
            for raw in others {
                nix::unistd::close(raw).unwrap();
            }
            publish(&of_fetch, its_private, taken);
            0
        });
        Self {
            arena,
            public: Some(public),
            private: Some(private),
            device: Some(device),
            init,
            serve,
            fetch,
            orders: Some(orders),
            dir,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let root: &Path = &self.dir.path().join("secrets");
        if name.is_empty() {
            root.to_owned()
        } else {
            root.join(name)
        }
    }

    pub(crate) fn private(&self) -> i32 {
        self.private.as_ref().unwrap().as_raw_fd()
    }

    /// Publishes and announces so many new generations of all files.
    pub(crate) fn rotate(&mut self, count: u32) {
        self.order(count, ALL, 1);
    }

    /// The same, `burst` generations at a time: all but the first are published while that one is
    /// announced.
    pub(crate) fn rotate_in_bursts(&mut self, count: u32, burst: u32) {
        self.order(count, ALL, burst);
    }

    /// Publishes so many new versions of the agent's own state.
    pub(crate) fn rewrite_state(&mut self, count: u32) {
        let state = self.arena.files_in(Visibility::State).next().unwrap();
        self.order(count, state.0, 1);
    }

    /// Publishes and announces one new generation of one file.
    pub(crate) fn rotate_only(&mut self, file: u32) {
        self.order(1, file, 1);
    }

    /// Publishes and announces so many new generations of all files, and kills `serve` again and
    /// again meanwhile. How often.
    pub(crate) fn rotate_and_kill(&mut self, count: u32, recovery: Recovery) -> u32 {
        self.begin(count, ALL, 1);
        let mut kills = 0;
        while !self.is_done() {
            kill(self.serve, Signal::SIGKILL).unwrap();
            waitpid(self.serve, None).unwrap();
            let (device, private) = (
                self.device.as_ref().unwrap(),
                self.private.as_ref().unwrap(),
            );
            self.serve = start_serve(
                &self.arena,
                device,
                &self.init,
                recovery,
                &[private.as_fd(), self.public.as_ref().unwrap().as_fd()],
            );
            kills += 1;
        }
        self.finish();
        kills
    }

    fn order(&mut self, count: u32, file: u32, burst: u32) {
        self.begin(count, file, burst);
        self.finish();
    }

    fn begin(&mut self, count: u32, file: u32, burst: u32) {
        self.orders
            .as_mut()
            .unwrap()
            .write_all(&[count, file, burst].map(u32::to_le_bytes).concat())
            .unwrap();
    }

    /// Whether fetch has finished, or ended; looks for some milliseconds.
    fn is_done(&self) -> bool {
        let mut answered = [PollFd::new(
            self.orders.as_ref().unwrap().as_fd(),
            PollFlags::POLLIN,
        )];
        poll(&mut answered, PollTimeout::from(5_u16)).unwrap() > 0
    }

    fn finish(&mut self) {
        let mut answer = [0];
        self.orders
            .as_mut()
            .unwrap()
            .read_exact(&mut answer)
            .expect("fetch failed, or did not finish in time");
    }

    /// Takes the public mount away and lets fetch end; gives the roles' pids to wait for.
    pub(crate) fn unmount(&mut self) -> (Pid, Pid) {
        drop(self.public.take());
        drop(self.private.take());
        drop(self.device.take());
        drop(self.orders.take());
        (
            std::mem::replace(&mut self.serve, Pid::from_raw(0)),
            std::mem::replace(&mut self.fetch, Pid::from_raw(0)),
        )
    }

    /// As a power cut would; the mount stays, dead.
    pub(crate) fn kill_roles(&mut self) {
        drop(self.device.take());
        for pid in [&mut self.serve, &mut self.fetch] {
            let pid = std::mem::replace(pid, Pid::from_raw(0));
            kill(pid, Signal::SIGKILL).unwrap();
            waitpid(pid, None).unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (serve, fetch) = self.unmount();
        for pid in [serve, fetch].into_iter().filter(|pid| pid.as_raw() > 0) {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// Starts a `serve` and waits until it answers.
fn start_serve(
    arena: &Arc<Arena>,
    device: &OwnedFd,
    init: &[u8],
    recovery: Recovery,
    foreign: &[BorrowedFd<'_>],
) -> Pid {
    let (ours, link) = link::pair().unwrap();
    let (arena, init) = (Arc::clone(arena), init.to_owned());
    let foreign: Vec<_> = foreign.iter().map(AsRawFd::as_raw_fd).collect();
    let its_device = device.try_clone().unwrap();
    let serve = fork(move || {
        for raw in foreign {
            nix::unistd::close(raw).unwrap();
        }
        serve::run(&Job {
            arena,
            device: its_device,
            init,
            past: RestartHistory::default(),
            recovery,
            dir_mode: 0o755,
            link,
        })
        .code()
    });
    let mut ready = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::from(10_000_u16)).unwrap();
    assert_eq!(
        ours.receive::<FromRole>(),
        Received::Message(FromRole::Ready)
    );
    serve
}

/// What `fetch` does, on order: publish, announce, wait for the announcement's end, collect.
fn publish(arena: &Arc<Arena>, private: OwnedFd, mut orders: UnixStream) {
    arena.protect_for(Role::Fetch).unwrap();
    let mut publisher = Publisher::new(Arc::clone(arena));
    let (done, rounds) = channel();
    let announcer = Announcer::start(Arc::clone(arena), private, move |round| {
        done.send(round).unwrap_or(());
    })
    .unwrap();
    let mut order = [0; 12];
    while orders.read_exact(&mut order).is_ok() {
        let [count, file, burst] =
            [0, 4, 8].map(|at| u32::from_le_bytes(order[at..at + 4].try_into().unwrap()));
        let listed: Vec<u32> = arena
            .files_in(Visibility::Listed)
            .map(|id| id.0)
            .filter(|id| file == ALL || *id == file)
            .collect();
        let files = if file == ALL {
            listed.clone()
        } else {
            vec![file]
        };
        for turn in 1..=count {
            let generation = arena.writer_area().current.load(SeqCst) + 1;
            let bytes = content(generation);
            let changes: Vec<_> = files
                .iter()
                .map(|file| Change {
                    file: FileId(*file),
                    bytes: &bytes,
                })
                .collect();
            let flipped = publisher
                .publish(&changes, UNIX_EPOCH + Duration::from_secs(generation))
                .unwrap();
            assert_eq!(flipped.0, generation);
            announcer.published(flipped, files.iter().copied().map(FileId).collect());
            let due = |id: &u32| arena.writer_file(FileId(*id)).announced.load(SeqCst) < generation;
            while turn % burst == 0 && listed.iter().any(due) {
                rounds.recv().unwrap().unwrap();
            }
            publisher.collect();
        }
        orders.write_all(&[1]).unwrap();
    }
}

/// A file's bytes as `cat` of busybox reads them.
pub(crate) fn by_sendfile(path: &Path) -> io::Result<Vec<u8>> {
    by_sendfile_of(&fs::File::open(path)?)
}

/// The same of an open file, from its beginning; its offset stays.
pub(crate) fn by_sendfile_of(from: &fs::File) -> io::Result<Vec<u8>> {
    let mut offset = 0;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"copy".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: a descriptor that was just made, owned by nobody else.
    let mut to = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    loop {
        // SAFETY: both descriptors are open, and the offset is a local variable.
        let sent =
            unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &raw mut offset, 1 << 20) };
        match sent {
            0 => break,
            1.. => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut to)?;
    to.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How many pages of the file the kernel keeps (`cachestat(2)`, Linux 6.5).
pub(crate) fn cached_pages(file: &fs::File) -> u64 {
    const CACHESTAT: libc::c_long = 451;
    let (whole, mut counts) = ([0_u64; 2], [0_u64; 5]);
    // SAFETY: both structs are read and written as the call has them, two and five 64-bit numbers.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            &raw const whole,
            &raw mut counts,
            0,
        )
    };
    assert_eq!(result, 0, "cachestat: {}", io::Error::last_os_error());
    counts[0]
}

/// A file, mapped until the program ends.
pub(crate) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

impl Mapping {
    pub(crate) fn of(file: &fs::File) -> Self {
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            mmap(
                None,
                NonZeroUsize::new(len).unwrap(),
                ProtFlags::PROT_READ,
                MapFlags::MAP_PRIVATE,
                file,
                0,
            )
        };
        Self {
            at: at.unwrap().cast(),
            len,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has so many bytes and is never unmapped; an inode's content never
        // changes.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

/// Asks again and again; an error when it is not so within ten seconds.
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) -> Result<(), ()> {
    let clock = RealClock;
    let start = clock.now();
    while !is_so() {
        if clock.now().since(start) > Duration::from_secs(10) {
            return Err(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What one reader saw.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reads: AtomicU64,
    torn: AtomicU64,
    stale: AtomicU64,
    failed: AtomicU64,
    /// The last failure's errno.
    errno: AtomicU64,
    /// Second files that were older than the first.
    pub(crate) older: AtomicU64,
}

impl Tally {
    /// Judges one read: whole, and not older than what was published before its open.
    pub(crate) fn check(
        &self,
        published: impl Fn() -> u64,
        read: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> u64 {
        self.reads.fetch_add(1, SeqCst);
        let published = published();
        match read().map(|bytes| generation_of(&bytes)) {
            Ok(Some(generation)) => {
                self.stale
                    .fetch_add(u64::from(generation < published), SeqCst);
                generation
            }
            Ok(None) => {
                self.torn.fetch_add(1, SeqCst);
                published
            }
            Err(error) => {
                self.failed.fetch_add(1, SeqCst);
                self.errno.store(
                    error.raw_os_error().unwrap_or(0).unsigned_abs().into(),
                    SeqCst,
                );
                published
            }
        }
    }
}

/// What the readers share with the one who judges.
#[derive(Debug)]
pub(crate) struct Board {
    stopped: AtomicU64,
    tallies: [Tally; 3],
}

impl Board {
    /// In memory that children share; it stays until the program ends.
    pub(crate) fn new() -> &'static Self {
        let size = NonZeroUsize::new(size_of::<Self>()).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
            )
        }
        .unwrap();
        // SAFETY: the mapping is large enough, zero is valid for atomics, and it is never unmapped.
        unsafe { at.cast::<Self>().as_ref() }
    }

    /// Reads as the application until stopped.
    pub(crate) fn hammer(&self, reader: usize, read: impl Fn(&Tally)) -> u8 {
        as_user(APP);
        while self.stopped.load(SeqCst) == 0 {
            read(&self.tallies[reader]);
        }
        0
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(1, SeqCst);
    }

    /// Every reader read, and none saw anything wrong.
    pub(crate) fn is_clean(&self) -> bool {
        let wrong = |tally: &Tally| {
            [&tally.torn, &tally.stale, &tally.failed, &tally.older]
                .iter()
                .any(|count| count.load(SeqCst) > 0)
        };
        self.tallies
            .iter()
            .all(|tally| tally.reads.load(SeqCst) > 100 && !wrong(tally))
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Tally {
            reads,
            torn,
            stale,
            failed,
            errno,
            older,
        } in &self.tallies
        {
            write!(
                f,
                "({} reads, {} torn, {} stale, ",
                reads.load(SeqCst),
                torn.load(SeqCst),
                stale.load(SeqCst)
            )?;
            write!(
                f,
                "{} failed (errno {}), {} older) ",
                failed.load(SeqCst),
                errno.load(SeqCst),
                older.load(SeqCst)
            )?;
        }
        Ok(())
    }
}
