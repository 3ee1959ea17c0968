//! What the programs that stop a process inside one operation on the arena share: an arena with two
//! files, and a process whose accesses to it are counted one by one. The arena is made inaccessible
//! (or read-only) in that process; at each access a signal handler lets this one instruction pass,
//! and after a given number of them stops or kills the process instead. Invariant: every process
//! here has one thread. For `x86_64` (the trap flag).

use baofs::memory::mapping::Backing;
use baofs::names::{FileId, FileName, Owner};
use baofs::snapshot::{
    Announcements, Arena, Change, FileSpec, Publisher, Reader, State, Visibility,
};
use nix::sys::mman::{ProtFlags, mprotect};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::ffi::{c_int, c_void};
use std::fs;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize};
use std::time::{Duration, UNIX_EPOCH};

/// Bytes of the arena; 4096 of them are for the files.
const SIZE: usize = 12 << 10;
/// Bytes of a usual version.
pub(crate) const LEN: usize = 500;
/// Both files.
pub(crate) const FILES: [FileId; 2] = [FileId(0), FileId(1)];

/// An arena with versions of two files.
pub(crate) struct World {
    pub(crate) arena: Arc<Arena>,
    /// What is open, the oldest first.
    pub(crate) held: Vec<u64>,
}

impl World {
    /// An arena with so many generations, of which the last one of the second file is not
    /// announced. All of them are open if `held`.
    pub(crate) fn new(generations: u64, held: bool) -> Self {
        let spec = |name| FileSpec {
            name: FileName::new(name).unwrap(),
            owner: Owner {
                uid: 1000,
                gid: 1000,
            },
            mode: 0o400,
            visibility: Visibility::Listed,
        };
        let arena = Arc::new(
            Arena::create(["a", "b"].map(spec).to_vec(), Some(SIZE), Backing::Locked).unwrap(),
        );
        let mut world = Self {
            arena,
            held: vec![],
        };
        for generation in 1..=generations {
            world.publish(LEN);
            world.announce(if generation == generations {
                &FILES[..1]
            } else {
                &FILES
            });
            if held {
                world
                    .held
                    .extend(FILES.map(|file| world.reader().hold_current(file).unwrap().nodeid));
            }
        }
        world
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.arena))
    }

    pub(crate) fn publisher(&self) -> Publisher {
        Publisher::new(Arc::clone(&self.arena))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.arena.writer_area().current.load(SeqCst)
    }

    /// A publisher that begins here changes both files.
    pub(crate) fn publish(&self, second: usize) {
        publish(&mut self.publisher(), self.generation() + 1, second);
    }

    pub(crate) fn announce(&self, files: &[FileId]) {
        let announcements = Announcements::sign(Arc::clone(&self.arena));
        for file in files {
            announcements.done(*file, self.reader().current(*file).unwrap().generation);
        }
    }

    /// No byte is left of anything but versions.
    pub(crate) fn is_tidy(&self) {
        let mut heap = vec![0; self.arena.heap_len()];
        self.arena.mapping().read(0, &mut heap).unwrap();
        let records = self.arena.all_slots().map(|slot| self.arena.record(slot));
        for record in records.filter(|record| record.is(State::Live)) {
            let [offset, len] =
                <[u64; 2]>::from(record.bytes()).map(|word| usize::try_from(word).unwrap());
            heap[offset..offset + len].fill(0);
        }
        let left = heap.iter().filter(|byte| **byte != 0).count();
        assert_eq!(left, 0, "bytes of no version are left");
    }
}

/// A change of both files, and what is done after it. The second file's version may be too large.
pub(crate) fn publish(publisher: &mut Publisher, generation: u64, second: usize) {
    let bytes = [content(0, generation, LEN), content(1, generation, second)];
    let changes: Vec<_> = FILES
        .into_iter()
        .zip(&bytes)
        .map(|(file, bytes)| Change { file, bytes })
        .collect();
    let outcome = publisher.publish(&changes, UNIX_EPOCH + Duration::from_secs(generation));
    assert_eq!(outcome.is_ok(), second == LEN);
    publisher.collect();
}

/// The bytes of a version; none is zero.
pub(crate) fn content(file: u32, generation: u64, len: usize) -> Vec<u8> {
    format!("{file} at {generation:07}; ")
        .bytes()
        .cycle()
        .take(len)
        .collect()
}

/// Whether a version is whole; nothing when it was evicted.
pub(crate) fn whole(reader: &Reader, nodeid: u64) -> Option<bool> {
    let version = reader.version(nodeid)?;
    let mut bytes = vec![0; usize::try_from(version.len).unwrap() + 1];
    let len = reader.read(nodeid, 0, &mut bytes).ok()?;
    Some(len == LEN && bytes[..len] == content(version.file.0, version.generation.0, LEN))
}

/// Which accesses to the arena are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    /// Stores.
    Stores,
    /// Loads and stores.
    All,
}

/// Where the arena is, from and to.
static PLACE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
/// Accesses to it that are still to pass; it wraps after the signal.
static LEFT: AtomicU64 = AtomicU64::new(0);
/// The protection of the arena between two counted accesses.
static CLOSED: AtomicI32 = AtomicI32::new(0);
/// The signal that this process gets in place of the access after them.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// The processor's flag that makes a trap after each instruction.
const TRAP_FLAG: i64 = 0x100;

/// From now on this process touches the arena one access at a time; after `accesses` of them it
/// gets `signal`, and if it survives that it goes on as before.
pub(crate) fn arm(arena: &Arena, counted: Counted, accesses: u64, signal: Signal) {
    let place = place_of(arena);
    PLACE[0].store(place.start, SeqCst);
    PLACE[1].store(place.end, SeqCst);
    LEFT.store(accesses, SeqCst);
    SIGNAL.store(signal as i32, SeqCst);
    let closed = match counted {
        Counted::Stores => ProtFlags::PROT_READ,
        Counted::All => ProtFlags::PROT_NONE,
    };
    CLOSED.store(closed.bits(), SeqCst);
    let handlers: [(
        Signal,
        extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void),
    ); 2] = [
        (Signal::SIGSEGV, before_access),
        (Signal::SIGTRAP, after_access),
    ];
    for (signal, handler) in handlers {
        let action = SigAction::new(
            SigHandler::SigAction(handler),
            SaFlags::SA_SIGINFO,
            SigSet::empty(),
        );
        // SAFETY: the handlers make system calls and touch atomics, no more.
        unsafe { sigaction(signal, &action) }.unwrap();
    }
    protect(closed);
}

/// Ends that; whether there were so many accesses that the signal came.
pub(crate) fn disarm() -> bool {
    protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    LEFT.load(SeqCst) > u64::MAX / 2
}

extern "C" fn before_access(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid one.
    let info = unsafe { &*info };
    // SAFETY: for SIGSEGV it has an address.
    let at = unsafe { info.si_addr() }.addr();
    let left = LEFT.fetch_sub(1, SeqCst);
    let is_arena = (PLACE[0].load(SeqCst)..PLACE[1].load(SeqCst)).contains(&at);
    if left == 0 || !is_arena {
        let signal = Signal::try_from(SIGNAL.load(SeqCst)).unwrap_or(Signal::SIGKILL);
        let _ = kill(Pid::this(), if is_arena { signal } else { Signal::SIGABRT });
    }
    protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    set_trap(context, true);
}

extern "C" fn after_access(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    protect(ProtFlags::from_bits_truncate(CLOSED.load(SeqCst)));
    set_trap(context, false);
}

/// Whether the interrupted code stops again after one instruction.
fn set_trap(context: *mut c_void, on: bool) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the interrupted registers, which are its
    // own to change.
    let flags = unsafe {
        &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_EFL as usize]
    };
    *flags = if on {
        *flags | TRAP_FLAG
    } else {
        *flags & !TRAP_FLAG
    };
}

fn protect(how: ProtFlags) {
    let [from, to] = [0, 1].map(|end| PLACE[end].load(SeqCst));
    let at = NonNull::new(std::ptr::with_exposed_provenance_mut(from)).unwrap();
    // SAFETY: the range is the arena's mapping, which this process reaches through atomics and
    // copies alone.
    unsafe { mprotect(at, to - from, how) }.unwrap();
}

/// The mapping that the arena is.
fn place_of(arena: &Arena) -> Range<usize> {
    let inside = std::ptr::from_ref(arena.writer_area().current).expose_provenance();
    let range = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let place = maps
        .lines()
        .filter_map(range)
        .find(|range| range.contains(&inside))
        .unwrap();
    assert_eq!(place.len(), SIZE);
    place
}

/// A process that does this, and nothing else; it ends with what that gives.
pub(crate) fn child(body: impl FnOnce() -> i32) -> Pid {
    // SAFETY: this process has one thread, so the child may use whatever it finds.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let code = body();
            // SAFETY: it ends this process and nothing else; what it inherited is not torn down
            // twice.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Kills a process of `child` and waits for its end.
pub(crate) fn end(child: Pid) {
    kill(child, Signal::SIGKILL).unwrap();
    while !matches!(
        waitpid(child, None).unwrap(),
        WaitStatus::Signaled(_, Signal::SIGKILL, _)
    ) {}
}
