//! A crash at every step of a publication. A forked publisher finds the arena read-only: at each store into it a signal handler
//! either lets this one instruction pass or kills the process, so that it dies with every content that the arena ever has. Then
//! a reader sees whole versions of one generation, and a successor finds nothing half done. For `x86_64` (the trap flag). One
//! thread, no test harness: it forks without exec.
#![allow(unsafe_code, reason = "forks, and a signal handler")]
#![allow(clippy::unwrap_used, reason = "a test ends where it is wrong")]

use baofs::memory::arena::{Arena, FileSpec, Kind, Place};
use baofs::names::{FileId, FileName, Owner};
use baofs::snapshot::{Bulletin, Change, Publisher, Reader};
use nix::sys::mman::{ProtFlags, mprotect};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::fs;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, UNIX_EPOCH};

/// Bytes of the arena; 4096 of them are for the files.
const SIZE: usize = 12 << 10;
/// Bytes of a usual version.
const LEN: usize = 500;
/// The `state` of a record that is a version.
const LIVE: u32 = 1;
/// Both files.
const FILES: [FileId; 2] = [FileId(0), FileId(1)];

/// A publication, and what was before it.
struct Scene {
    name: &'static str,
    /// Generations before it.
    before: u64,
    /// Whether somebody has all of them open.
    held: bool,
    /// Bytes of the second file's change.
    second: usize,
}

const SCENES: [Scene; 4] = [
    Scene { name: "the first publication", before: 0, held: false, second: LEN },
    Scene { name: "a rotation", before: 2, held: false, second: LEN },
    Scene { name: "one that evicts what is open", before: 4, held: true, second: LEN },
    Scene { name: "one that does not fit", before: 2, held: true, second: 4000 },
];

fn main() {
    let (mut crashes, mut longest) = (0, 0);
    for scene in &SCENES {
        let (mut points, mut flipped, mut again) = (0, 0, 0);
        loop {
            let world = World::new(scene);
            let died = world.crash(scene.second, points);
            again += world.crash_successors(scene.before);
            let after = world.check(scene);
            if !died {
                assert_eq!(after, scene.second == LEN, "the whole of it");
                break;
            }
            (points, flipped) = (points + 1, flipped + u64::from(after));
        }
        println!("{} ... ok ({points} crashes, {flipped} after the flip, {again} of successors)", scene.name);
        (crashes, longest) = (crashes + points + again, points.max(longest));
    }
    println!("under a reader ... ok ({})", under_a_reader(500, longest));
    println!("{crashes} crash points\n{} passed, 0 failed", SCENES.len() + 1);
}

/// Another process reads and holds while one publisher after the other dies; it sees whole versions that only grow newer.
/// A publication has `stores` stores at most.
fn under_a_reader(crashes: u64, stores: u64) -> String {
    let scene = Scene { name: "under a reader", before: 1, held: false, second: LEN };
    let world = World::new(&scene);
    let reader = child(|| read_for_ever(&world));
    let mut flipped = 0;
    for at in 0..crashes {
        let before = world.generation();
        world.crash(LEN, at % stores);
        flipped += u32::from(world.look(before) > before);
        world.next();
    }
    let reads = world.arena.desk_head().opens.load(SeqCst);
    assert_eq!(waitpid(reader, Some(WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::StillAlive, "it saw what is not whole, or old");
    end(reader);
    assert!(reads > 100 && flipped > 0, "{reads} reads, {flipped} flips");
    format!("{crashes} crashes, {flipped} after the flip, {reads} reads")
}

/// In both orders: the second is never older than the first.
fn read_for_ever(world: &World) {
    let reader = world.reader();
    let mut last = 0;
    for turn in 0.. {
        let file = FILES[usize::from(turn % 4 == 0 || turn % 4 == 3)];
        let held = reader.hold_current(file).unwrap();
        assert_eq!(whole(&reader, held.nodeid), Some(true));
        reader.forget(held.nodeid, 1);
        assert!(held.generation.0 >= last);
        last = held.generation.0;
        world.arena.desk_head().opens.fetch_add(1, SeqCst);
    }
}

struct World {
    arena: Arc<Arena>,
    /// What was open before the crash.
    held: Vec<u64>,
}

impl World {
    /// An arena in which the last generation of the second file is not announced.
    fn new(scene: &Scene) -> Self {
        let spec = |name| FileSpec {
            name: FileName::new(name).unwrap(),
            owner: Owner { uid: 1000, gid: 1000 },
            mode: 0o400,
            place: Place::Listed,
        };
        let arena = Arc::new(Arena::create(["a", "b"].map(spec).to_vec(), Some(SIZE), Kind::Locked).unwrap());
        let mut world = Self { arena, held: vec![] };
        for generation in 1..=scene.before {
            world.publish(LEN);
            world.announce(if generation == scene.before { &FILES[..1] } else { &FILES });
            if scene.held {
                world.held.extend(FILES.map(|file| world.reader().hold_current(file).unwrap().nodeid));
            }
        }
        world
    }

    fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.arena))
    }

    fn generation(&self) -> u64 {
        self.arena.head().current.load(SeqCst)
    }

    fn publish(&self, second: usize) {
        let mut publisher = Publisher::new(Arc::clone(&self.arena));
        publish(&mut publisher, self.generation() + 1, second);
    }

    fn announce(&self, files: &[FileId]) {
        let bulletin = Bulletin::sign(Arc::clone(&self.arena));
        for file in files {
            bulletin.done(*file, self.reader().current(*file).unwrap().generation);
        }
    }

    /// Runs a publisher that dies instead of its store number `at`; false when it has not so many.
    fn crash(&self, second: usize, at: u64) -> bool {
        self.dies(at, |mut publisher| publish(&mut publisher, self.generation() + 1, second))
    }

    /// One successor after the other dies while it takes over, each a store later, until one has done it; how many died.
    fn crash_successors(&self, before: u64) -> u64 {
        let mut count = 0;
        let seen = self.look(before);
        while self.dies(count, drop) {
            assert_eq!(self.look(before), seen, "a successor changes what is seen");
            count += 1;
        }
        count
    }

    /// Runs `body` with a publisher that takes over, and dies instead of store number `at`; false when there are not so many.
    fn dies(&self, at: u64, body: impl FnOnce(Publisher)) -> bool {
        let publisher = child(|| {
            arm(place_of(&self.arena), at);
            body(Publisher::new(Arc::clone(&self.arena)));
        });
        let ended = waitpid(publisher, None).unwrap();
        let died = matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        assert!(died || ended == WaitStatus::Exited(publisher, 0), "{ended:?}");
        died
    }

    /// After a crash: what is seen before there is a successor, what the successor makes of it, and that it can go on.
    fn check(&self, scene: &Scene) -> bool {
        let seen = self.look(scene.before);
        drop(Publisher::new(Arc::clone(&self.arena)));
        assert_eq!(self.look(scene.before), seen, "a successor changes what is seen");
        self.is_tidy();
        let flipped = seen > scene.before;
        let due = Bulletin::sign(Arc::clone(&self.arena)).due();
        let owed: &[FileId] = match (flipped, scene.before) {
            (true, _) => &FILES,
            (false, 0) => &[],
            (false, _) => &FILES[1..],
        };
        assert_eq!(due, owed, "what is to be announced");
        self.next();
        flipped
    }

    /// Reads both files, and what was open: whole, of the same generation, this one or the next; which.
    fn look(&self, before: u64) -> u64 {
        let reader = self.reader();
        let versions = FILES.map(|file| reader.current(file));
        for version in versions.iter().flatten() {
            assert_eq!(whole(&reader, version.nodeid), Some(true), "a version that is served");
        }
        for nodeid in &self.held {
            assert_ne!(whole(&reader, *nodeid), Some(false), "a version that is open");
        }
        let [first, second] = versions.map(|version| version.map_or(0, |version| version.generation.0));
        assert_eq!(first, second, "the files are of one generation");
        assert!((before..=before + 1).contains(&first), "{first} after {before}");
        first
    }

    /// The next publication is read, has numbers that were never used, and leaves nothing behind.
    fn next(&self) {
        let numbers = || self.arena.records().iter().map(|record| record.nodeid.load(SeqCst));
        let (used, before): (BTreeSet<u64>, u64) = (numbers().collect(), self.generation());
        self.publish(LEN);
        assert_eq!(self.look(before), before + 1, "the next publication");
        let fresh = FILES.map(|file| self.reader().current(file).unwrap().nodeid);
        assert!(fresh.iter().all(|nodeid| !used.contains(nodeid)), "{fresh:?} of {used:?}");
        self.announce(&FILES);
        Publisher::new(Arc::clone(&self.arena)).collect();
        self.is_tidy();
    }

    /// No byte is left of anything but versions.
    fn is_tidy(&self) {
        let mut heap = vec![0; self.arena.heap_len()];
        self.arena.read(0, &mut heap).unwrap();
        for record in self.arena.records().iter().filter(|record| record.state.load(SeqCst) == LIVE) {
            let [offset, len] = [&record.offset, &record.len].map(|word| usize::try_from(word.load(SeqCst)).unwrap());
            heap[offset..offset + len].fill(0);
        }
        let left = heap.iter().filter(|byte| **byte != 0).count();
        assert_eq!(left, 0, "bytes of no version are left");
    }
}

/// A change of both files, and what is done after it.
fn publish(publisher: &mut Publisher, generation: u64, second: usize) {
    let bytes = [content(0, generation, LEN), content(1, generation, second)];
    let changes: Vec<_> = FILES.into_iter().zip(&bytes).map(|(file, bytes)| Change { file, bytes }).collect();
    let outcome = publisher.publish(&changes, UNIX_EPOCH + Duration::from_secs(generation));
    assert_eq!(outcome.is_ok(), second == LEN);
    publisher.collect();
}

/// The bytes of a version; none is zero.
fn content(file: u32, generation: u64, len: usize) -> Vec<u8> {
    format!("{file} at {generation:07}; ").bytes().cycle().take(len).collect()
}

/// Whether a version is whole; nothing when it was evicted.
fn whole(reader: &Reader, nodeid: u64) -> Option<bool> {
    let version = reader.version(nodeid)?;
    let mut bytes = vec![0; usize::try_from(version.len).unwrap() + 1];
    let len = reader.read(nodeid, 0, &mut bytes).ok()?;
    Some(len == LEN && bytes[..len] == content(version.file.0, version.generation.0, LEN))
}

/// The mapping that the arena is.
fn place_of(arena: &Arena) -> Range<usize> {
    let inside = std::ptr::from_ref(arena.head()).expose_provenance();
    let range = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let place = maps.lines().filter_map(range).find(|range| range.contains(&inside)).unwrap();
    assert_eq!(place.len(), SIZE);
    place
}

/// Where the arena is, from and to.
static PLACE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
/// Stores into it that are still to pass.
static LEFT: AtomicU64 = AtomicU64::new(0);
/// The processor's flag that makes a trap after each instruction.
const TRAP_FLAG: i64 = 0x100;

/// From now on the arena is written one store at a time, and not more than `stores` times.
fn arm(place: Range<usize>, stores: u64) {
    PLACE[0].store(place.start, SeqCst);
    PLACE[1].store(place.end, SeqCst);
    LEFT.store(stores, SeqCst);
    let handlers: [(Signal, extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)); 2] =
        [(Signal::SIGSEGV, before_store), (Signal::SIGTRAP, after_store)];
    for (signal, handler) in handlers {
        let action = SigAction::new(SigHandler::SigAction(handler), SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handlers make system calls and touch atomics, no more.
        unsafe { sigaction(signal, &action) }.unwrap();
    }
    protect(ProtFlags::PROT_READ);
}

extern "C" fn before_store(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid one.
    let info = unsafe { &*info };
    // SAFETY: for SIGSEGV it has an address.
    let at = unsafe { info.si_addr() }.addr();
    let left = LEFT.fetch_sub(1, SeqCst);
    let is_arena = (PLACE[0].load(SeqCst)..PLACE[1].load(SeqCst)).contains(&at);
    if left == 0 || !is_arena {
        let _ = kill(Pid::this(), if is_arena { Signal::SIGKILL } else { Signal::SIGABRT });
    }
    protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    set_trap(context, true);
}

extern "C" fn after_store(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    protect(ProtFlags::PROT_READ);
    set_trap(context, false);
}

/// Whether the interrupted code stops again after one instruction.
fn set_trap(context: *mut c_void, on: bool) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the interrupted registers, which are its own to change.
    let flags = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_EFL as usize] };
    *flags = if on { *flags | TRAP_FLAG } else { *flags & !TRAP_FLAG };
}

fn protect(how: ProtFlags) {
    let [from, to] = [0, 1].map(|end| PLACE[end].load(SeqCst));
    let at = NonNull::new(std::ptr::with_exposed_provenance_mut(from)).unwrap();
    // SAFETY: the range is the arena's mapping, which this process writes through atomics and copies alone.
    unsafe { mprotect(at, to - from, how) }.unwrap();
}

/// A process that does this, and nothing else.
fn child(body: impl FnOnce()) -> Pid {
    // SAFETY: this process has one thread, so the child may use whatever it finds.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            body();
            // SAFETY: it ends this process and nothing else; what it inherited is not torn down twice.
            unsafe { libc::_exit(0) }
        }
    }
}

fn end(child: Pid) {
    kill(child, Signal::SIGKILL).unwrap();
    while !matches!(waitpid(child, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGKILL, _)) {}
}
