//! Readers that race with a publication. First without chance: an operation of a reader is stopped
//! before its k-th access to the arena, a publisher runs up to its j-th store and is stopped there,
//! the operation is completed and judged, the publisher goes to its end, and what the operation
//! holds is judged again; for all pairs of k and j. Then with chance: readers that are
//! paused at random while a publisher runs at full speed. One thread, no test harness: it forks
//! without exec.
//!
//! `cargo test --test interleave`: all pairs, and two seconds of chance. `cargo test --test
//! interleave -- chance 300 7`: five minutes of chance, from seed 7.
#![allow(unsafe_code, reason = "forks, and a signal handler")]
#![allow(clippy::unwrap_used, reason = "a test ends where it is wrong")]

#[path = "steps/mod.rs"]
#[allow(dead_code, reason = "`crash` uses the rest of it")]
mod steps;

use baofs::clock::{Clock, RealClock};
use baofs::names::FileId;
use baofs::snapshot::{Announcements, Version};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, wait, waitpid};
use nix::unistd::{Pid, alarm};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use steps::{Counted, FILES, LEN, World, arm, child, content, disarm, end, publish, whole};

/// What was before the operation, and how much is published during it.
#[derive(Clone, Copy)]
struct Scene {
    name: &'static str,
    /// Generations before it.
    before: u64,
    /// Whether all of them are open, so that the publication has to evict one.
    held: bool,
    /// Whole publications, before the one that is stopped.
    more: u64,
}

const ROTATION: Scene = Scene {
    name: "a rotation",
    before: 2,
    held: false,
    more: 0,
};
/// No record is free for the new versions, so the publication begins with one more for each file.
const GROWTH: Scene = Scene {
    name: "the first rotation",
    before: 1,
    held: false,
    more: 0,
};
const EVICTION: Scene = Scene {
    name: "a rotation that evicts",
    before: 4,
    held: true,
    more: 0,
};
/// `current` moves, and records that were seen are used anew, before the publication that is
/// stopped.
const FIFTH: Scene = Scene {
    name: "the last of five rotations",
    before: 2,
    held: false,
    more: 4,
};

/// What is wrong with an outcome; its place in `WRONGS` is an exit code.
type Wrong = &'static str;

const MISSING: Wrong = "ENOENT for a file that exists";
const FUTURE: Wrong = "a version before its flip";
const OLD: Wrong = "a version older than the one served before";
const TORN: Wrong = "a version that is not whole";
const FREED: Wrong = "a version that is held and was freed";
const KEPT: Wrong = "a version that nobody holds and was not freed";
const DUE: Wrong = "an announcement that is not due, or one that is missing";
const ENDLESS: Wrong = "an operation that does not end";
const WRONGS: [Wrong; 8] = [MISSING, FUTURE, OLD, TORN, FREED, KEPT, DUE, ENDLESS];

/// The operation in a process of its own: it makes ready, calls `Steps::stopped`, judges, calls
/// `rest`, judges again.
type Operation = fn(&World, Steps) -> Result<(), Wrong>;

const OPERATIONS: &[(&str, Operation, &[Scene])] = &[
    ("hold_current", hold_current, &[ROTATION, GROWTH, FIFTH]),
    ("make", make, &[ROTATION, GROWTH]),
    ("hold", hold, &[EVICTION]),
    ("version", version, &[EVICTION]),
    ("read", read, &[EVICTION]),
    ("forget", forget, &[ROTATION, EVICTION]),
    ("due", due, &[ROTATION, GROWTH]),
    ("made", made, &[EVICTION]),
];

fn main() -> ExitCode {
    let mut words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    let (filter, mut number) = (words.next().unwrap_or_default(), || {
        words.next()?.parse().ok()
    });
    let (seconds, seed) = (number().unwrap_or(2), number().unwrap_or(9));
    let mut trials = Trials::default();
    for (name, operation, scenes) in OPERATIONS
        .iter()
        .filter(|(name, ..)| name.contains(&filter))
    {
        for scene in *scenes {
            trials.start(&format!("{name} during {}", scene.name), || {
                all_pairs(*operation, scene)
            });
        }
    }
    if "chance".contains(&filter) {
        trials.start(&format!("paused readers, seed {seed}"), || {
            chance(Duration::from_secs(seconds), seed)
        });
    }
    trials.end()
}

/// Trials in processes of their own, as many at once as there are processors.
#[derive(Default)]
struct Trials {
    running: usize,
    passed: usize,
    failed: usize,
}

impl Trials {
    fn start(&mut self, name: &str, trial: impl FnOnce() -> Result<String, String>) {
        if self.running == std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            self.wait();
        }
        self.running += 1;
        child(|| {
            let (code, said) = match trial() {
                Ok(said) => (0, format!("ok {said}")),
                Err(why) => (1, format!("FAILED: {why}")),
            };
            println!("{name} ... {said}");
            code
        });
    }

    fn wait(&mut self) {
        let ended = wait().unwrap();
        self.running -= 1;
        if matches!(ended, WaitStatus::Exited(_, 0)) {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    fn end(mut self) -> ExitCode {
        while self.running > 0 {
            self.wait();
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs the operation with all pairs of an access of its own and a store of the publisher.
fn all_pairs(operation: Operation, scene: &Scene) -> Result<String, String> {
    let (mut pairs, mut wrong) = (0, BTreeMap::<Wrong, Vec<(u64, u64)>>::new());
    for access in 0.. {
        for store in 0.. {
            let Some((outcome, is_last)) = pair(operation, scene, access, store) else {
                let all = format!("({pairs} interleavings)");
                let said = |(wrong, at): (&Wrong, &Vec<_>)| {
                    format!("{} times {wrong}, first at {:?}; ", at.len(), at[0])
                };
                return if wrong.is_empty() {
                    Ok(all)
                } else {
                    Err(wrong.iter().map(said).collect::<String>() + &all)
                };
            };
            pairs += 1;
            if let Err(why) = outcome {
                wrong.entry(why).or_default().push((access, store));
            }
            if is_last {
                break;
            }
        }
    }
    unreachable!("an operation has a last access")
}

/// One pair: the outcome, and whether the publisher has no store after `store`. Nothing when the
/// operation has no such access.
fn pair(
    operation: Operation,
    scene: &Scene,
    access: u64,
    store: u64,
) -> Option<(Result<(), Wrong>, bool)> {
    let world = World::new(scene.before, scene.held);
    let reader = child(|| {
        alarm::set(20);
        let outcome = operation(
            &world,
            Steps {
                access,
                may_evict: scene.held,
            },
        );
        outcome.map_or_else(code, |()| 0)
    });
    if waits(reader) == Turn::Ended(NO_SUCH_ACCESS) {
        return None;
    }
    let publisher = child(|| {
        let mut publisher = world.publisher();
        for _ in 0..scene.more {
            publish(&mut publisher, world.generation() + 1, LEN);
        }
        arm(&world.arena, Counted::Stores, store, Signal::SIGSTOP);
        publish(&mut publisher, world.generation() + 1, LEN);
        0
    });
    let is_last = waits(publisher) == Turn::Ended(0);
    let first = goes_on(reader);
    if !is_last {
        assert_eq!(
            goes_on(publisher),
            Turn::Ended(0),
            "the publisher goes to its end"
        );
    }
    let last = if first == Turn::Stopped {
        goes_on(reader)
    } else {
        first
    };
    let Turn::Ended(code) = last else {
        panic!("a reader stops twice, and then ends")
    };
    let wrong = WRONGS
        .iter()
        .copied()
        .find(|wrong| self::code(wrong) == code);
    assert!(wrong.is_some() || code == 0, "a reader ended with {code}");
    Some((wrong.map_or(Ok(()), Err), is_last))
}

/// The exit code of a reader whose operation has fewer accesses.
const NO_SUCH_ACCESS: i32 = 100;

fn code(wrong: Wrong) -> i32 {
    1 + i32::try_from(WRONGS.iter().position(|known| *known == wrong).unwrap()).unwrap()
}

/// What a process that was waited for did.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Stopped,
    Ended(i32),
}

fn waits(process: Pid) -> Turn {
    let status = waitpid(process, Some(WaitPidFlag::WUNTRACED)).unwrap();
    if let WaitStatus::Stopped(..) = status {
        return Turn::Stopped;
    }
    if let WaitStatus::Signaled(_, Signal::SIGALRM, _) = status {
        return Turn::Ended(code(ENDLESS));
    }
    let WaitStatus::Exited(_, code) = status else {
        panic!("{status:?}")
    };
    Turn::Ended(code)
}

fn goes_on(process: Pid) -> Turn {
    kill(process, Signal::SIGCONT).unwrap();
    waits(process)
}

/// How an operation is stopped on its way.
#[derive(Clone, Copy)]
struct Steps {
    access: u64,
    /// Whether what is open may be gone after the publication.
    may_evict: bool,
}

impl Steps {
    /// Runs `body`, stopped before its access of that number; ends the process when it has not so
    /// many.
    fn stopped<T>(&self, world: &World, body: impl FnOnce() -> T) -> T {
        arm(&world.arena, Counted::All, self.access, Signal::SIGSTOP);
        let result = body();
        if !disarm() {
            // SAFETY: it ends this process, which has nothing to tear down.
            unsafe { libc::_exit(NO_SUCH_ACCESS) }
        }
        result
    }

    /// A version that is held: whole, or gone if it may be.
    fn held(&self, world: &World, nodeid: u64) -> Result<(), Wrong> {
        match whole(&world.reader(), nodeid) {
            Some(true) => Ok(()),
            Some(false) => Err(TORN),
            None if self.may_evict => Ok(()),
            None => Err(FREED),
        }
    }
}

/// Until the publisher has come to its end.
fn rest() {
    raise(Signal::SIGSTOP).unwrap();
}

/// A version that was found as the current one, by an operation that began when `since` was served.
fn is_current(world: &World, found: Option<&Version>, since: u64) -> Result<(), Wrong> {
    let found = found.ok_or(MISSING)?;
    match found.generation.0 {
        early if early > world.generation() => Err(FUTURE),
        late if late < since => Err(OLD),
        _ if whole(&world.reader(), found.nodeid) == Some(false) => Err(TORN),
        _ => Ok(()),
    }
}

fn hold_current(world: &World, steps: Steps) -> Result<(), Wrong> {
    let (reader, since) = (world.reader(), world.generation());
    let found = steps.stopped(world, || reader.hold_current(FILES[0]));
    is_current(world, found.as_ref(), since)?;
    let nodeid = found.ok_or(MISSING)?.nodeid;
    steps.held(world, nodeid)?;
    rest();
    steps.held(world, nodeid)
}

/// The announcement's create.
fn make(world: &World, steps: Steps) -> Result<(), Wrong> {
    let (reader, since) = (world.reader(), world.generation());
    Announcements::sign(Arc::clone(&world.arena)).begin(FILES[0]);
    let found = steps.stopped(world, || reader.make(FILES[0]));
    is_current(world, found.as_ref(), since)?;
    let nodeid = found.ok_or(MISSING)?.nodeid;
    rest();
    if reader.made(FILES[0]) == Some(nodeid) {
        steps.held(world, nodeid)
    } else {
        Err(MISSING)
    }
}

/// The oldest version that is open; where none is yet, the current one is opened.
fn opened(world: &World) -> u64 {
    world
        .held
        .first()
        .copied()
        .unwrap_or_else(|| world.reader().hold_current(FILES[0]).unwrap().nodeid)
}

fn hold(world: &World, steps: Steps) -> Result<(), Wrong> {
    let (reader, nodeid) = (world.reader(), opened(world));
    let found = steps.stopped(world, || reader.hold(nodeid));
    is_that(&steps, found, nodeid)?;
    rest();
    steps.held(world, nodeid)
}

fn version(world: &World, steps: Steps) -> Result<(), Wrong> {
    let (reader, nodeid) = (world.reader(), opened(world));
    let before = reader.version(nodeid);
    let found = steps.stopped(world, || reader.version(nodeid));
    is_that(&steps, found, nodeid)?;
    if found.is_none() || found == before {
        Ok(())
    } else {
        Err(TORN)
    }
}

/// A version of that number was found, unless it may be gone.
fn is_that(steps: &Steps, found: Option<Version>, nodeid: u64) -> Result<(), Wrong> {
    match found {
        Some(version) if version.nodeid == nodeid => Ok(()),
        Some(_) => Err(TORN),
        None if steps.may_evict => Ok(()),
        None => Err(FREED),
    }
}

fn read(world: &World, steps: Steps) -> Result<(), Wrong> {
    let (reader, nodeid) = (world.reader(), opened(world));
    let expected = content(0, reader.version(nodeid).unwrap().generation.0, LEN);
    let mut bytes = [0; LEN + 1];
    let len = steps.stopped(world, || reader.read(nodeid, 0, &mut bytes));
    match len {
        Ok(len) if bytes[..len] == expected => Ok(()),
        Ok(_) => Err(TORN),
        Err(_) if steps.may_evict => Ok(()),
        Err(_) => Err(FREED),
    }
}

/// What nobody holds any more is freed by the next collection, once a newer version is announced.
fn forget(world: &World, steps: Steps) -> Result<(), Wrong> {
    let (reader, nodeid) = (world.reader(), opened(world));
    steps.stopped(world, || reader.forget(nodeid, 1));
    rest();
    world.announce(&FILES);
    world.publisher().collect();
    world.is_tidy();
    if reader.version(nodeid).is_none() {
        Ok(())
    } else {
        Err(KEPT)
    }
}

fn due(world: &World, steps: Steps) -> Result<(), Wrong> {
    let (announcements, before) = (
        Announcements::sign(Arc::clone(&world.arena)),
        world.generation(),
    );
    let found = steps.stopped(world, || announcements.due());
    // The second file was due before, the first one is from the flip on.
    let expected: &[&[FileId]] = if world.generation() == before {
        &[&FILES[1..]]
    } else {
        &[&FILES[1..], &FILES]
    };
    if expected.contains(&found.as_slice()) {
        Ok(())
    } else {
        Err(DUE)
    }
}

/// The version that the announcing thread asks for after its create.
fn made(world: &World, steps: Steps) -> Result<(), Wrong> {
    let announcements = Announcements::sign(Arc::clone(&world.arena));
    announcements.begin(FILES[0]);
    let nodeid = world.reader().make(FILES[0]).unwrap().nodeid;
    let found = steps.stopped(world, || announcements.made(FILES[0]));
    // The current version is never evicted.
    is_that(
        &Steps {
            may_evict: false,
            ..steps
        },
        found,
        nodeid,
    )
}

/// Readers in this trial.
const READERS: usize = 6;

/// Readers that look up, hold and read without end, are stopped and continued at random places, as
/// a busy machine or a CPU quota does it, while one publisher runs at full speed.
fn chance(duration: Duration, seed: u64) -> Result<String, String> {
    let world = World::new(2, false);
    let readers: Vec<Pid> = (0..READERS)
        .map(|_| child(|| read_for_ever(&world).map_or_else(code, |()| 0)))
        .collect();
    let publisher = child(|| rotate_for_ever(&world));
    let (clock, mut seed) = (RealClock, seed);
    let (start, mut pauses) = (clock.now(), 0);
    let all = || readers.iter().copied();
    let lives = |reader: Pid| waitpid(reader, Some(WaitPidFlag::WNOHANG)).unwrap();
    let mut wrong = None;
    while wrong.is_none() && clock.now().since(start) < duration {
        let still: Vec<Pid> = all()
            .filter(|_| random(&mut seed).is_multiple_of(2))
            .collect();
        send(&still, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_micros(20 + random(&mut seed) % 100));
        send(&still, Signal::SIGCONT);
        std::thread::sleep(Duration::from_micros(20 + random(&mut seed) % 100));
        pauses += 1;
        wrong = all().find_map(|reader| {
            let WaitStatus::Exited(reader, code) = lives(reader) else {
                return None;
            };
            Some((reader, code))
        });
    }
    end(publisher);
    all()
        .filter(|reader| wrong.is_none_or(|(ended, _)| ended != *reader))
        .for_each(end);
    let (rotations, reads) = (
        world.generation(),
        world.arena.reader_area().opens.load(SeqCst),
    );
    let said = format!("({rotations} rotations, {reads} reads, {pauses} pauses)");
    match wrong {
        Some((_, code)) => Err(format!(
            "{} {said}",
            WRONGS
                .iter()
                .find(|wrong| self::code(wrong) == code)
                .unwrap_or(&"a panic")
        )),
        None if rotations > 100 && reads > 100 => Ok(said),
        None => Err(format!("too few {said}")),
    }
}

fn send(to: &[Pid], signal: Signal) {
    for process in to {
        kill(*process, signal).unwrap();
    }
}

/// Looks up in both orders, mostly without reading, since the lookup is what races; ends at the
/// first wrong outcome.
fn read_for_ever(world: &World) -> Result<(), Wrong> {
    let (reader, mut last) = (world.reader(), 0);
    for turn in 0_u64.. {
        let file = FILES[usize::from(turn % 4 == 0 || turn % 4 == 3)];
        let held = reader.hold_current(file).ok_or(MISSING)?;
        match held.generation.0 {
            early if early > world.generation() => return Err(FUTURE),
            late if late < last => return Err(OLD),
            generation => last = generation,
        }
        // While this reader was paused its version may have had to make room; never is it half
        // there.
        if turn % 64 == 0 && whole(&reader, held.nodeid) == Some(false) {
            return Err(TORN);
        }
        reader.forget(held.nodeid, 1);
        if turn % 64 == 0 {
            world.arena.reader_area().opens.fetch_add(64, SeqCst);
        }
    }
    Ok(())
}

fn rotate_for_ever(world: &World) -> i32 {
    let mut publisher = world.publisher();
    loop {
        publish(&mut publisher, world.generation() + 1, LEN);
        world.announce(&FILES);
    }
}

/// xorshift64.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}
