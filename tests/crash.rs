//! A crash at every step of a publication. A forked publisher dies instead of its n-th store into
//! the arena, for every n, so with every content that the arena ever has (`steps` says how). Then a
//! reader sees whole versions of one generation, and a successor finds nothing half done. One
//! thread, no test harness: it forks without exec.
#![allow(unsafe_code, reason = "forks, and a signal handler")]
#![allow(clippy::unwrap_used, reason = "a test ends where it is wrong")]

#[path = "steps/mod.rs"]
#[allow(dead_code, reason = "`interleave` uses the rest of it")]
mod steps;

use baofs::names::FileId;
use baofs::snapshot::{Announcements, Publisher};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use steps::{Counted, FILES, LEN, World, arm, child, end, publish, whole};

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
    Scene {
        name: "the first publication",
        before: 0,
        held: false,
        second: LEN,
    },
    Scene {
        name: "a rotation",
        before: 2,
        held: false,
        second: LEN,
    },
    Scene {
        name: "one that evicts what is open",
        before: 4,
        held: true,
        second: LEN,
    },
    Scene {
        name: "one that does not fit",
        before: 2,
        held: true,
        second: 4000,
    },
];

fn main() {
    let (mut crashes, mut longest) = (0, 0);
    for scene in &SCENES {
        let (mut points, mut flipped, mut again) = (0, 0, 0);
        loop {
            let world = World::new(scene.before, scene.held);
            let died = world.crash(scene.second, points);
            again += world.crash_successors(scene.before);
            let after = world.check(scene);
            if !died {
                assert_eq!(after, scene.second == LEN, "the whole of it");
                break;
            }
            (points, flipped) = (points + 1, flipped + u64::from(after));
        }
        println!(
            "{} ... ok ({points} crashes, {flipped} after the flip, {again} of successors)",
            scene.name
        );
        (crashes, longest) = (crashes + points + again, points.max(longest));
    }
    println!("under a reader ... ok ({})", under_a_reader(500, longest));
    println!(
        "{crashes} crash points\n{} passed, 0 failed",
        SCENES.len() + 1
    );
}

/// Another process reads and holds while one publisher after the other dies; it sees whole versions
/// that only grow newer. A publication has `stores` stores at most.
fn under_a_reader(crashes: u64, stores: u64) -> String {
    let world = World::new(1, false);
    let reader = child(|| read_for_ever(&world));
    let mut flipped = 0;
    for at in 0..crashes {
        let before = world.generation();
        world.crash(LEN, at % stores);
        flipped += u32::from(world.look(before) > before);
        world.next();
    }
    let reads = world.arena.reader_area().opens.load(SeqCst);
    assert_eq!(
        waitpid(reader, Some(WaitPidFlag::WNOHANG)).unwrap(),
        WaitStatus::StillAlive,
        "it saw what is not whole, or old"
    );
    end(reader);
    assert!(reads > 100 && flipped > 0, "{reads} reads, {flipped} flips");
    format!("{crashes} crashes, {flipped} after the flip, {reads} reads")
}

/// In both orders: the second is never older than the first.
fn read_for_ever(world: &World) -> i32 {
    let reader = world.reader();
    let (mut last, mut turn) = (0, 0);
    loop {
        turn += 1;
        let file = FILES[usize::from(turn % 4 == 0 || turn % 4 == 3)];
        let held = reader.hold_current(file).unwrap();
        assert_eq!(whole(&reader, held.nodeid), Some(true));
        reader.forget(held.nodeid, 1);
        assert!(held.generation.0 >= last);
        last = held.generation.0;
        world.arena.reader_area().opens.fetch_add(1, SeqCst);
    }
}

impl World {
    /// Runs a publisher that dies instead of its store number `at`; false when it has not so many.
    fn crash(&self, second: usize, at: u64) -> bool {
        self.dies(at, |mut publisher| {
            publish(&mut publisher, self.generation() + 1, second);
        })
    }

    /// One successor after the other dies while it takes over, each a store later, until one has
    /// done it; how many died.
    fn crash_successors(&self, before: u64) -> u64 {
        let mut count = 0;
        let seen = self.look(before);
        while self.dies(count, drop) {
            assert_eq!(self.look(before), seen, "a successor changes what is seen");
            count += 1;
        }
        count
    }

    /// Runs `body` with a publisher that takes over, and dies instead of store number `at`; false
    /// when there are not so many.
    fn dies(&self, at: u64, body: impl FnOnce(Publisher)) -> bool {
        let publisher = child(|| {
            arm(&self.arena, Counted::Stores, at, Signal::SIGKILL);
            body(self.publisher());
            0
        });
        let ended = waitpid(publisher, None).unwrap();
        let died = matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        assert!(
            died || ended == WaitStatus::Exited(publisher, 0),
            "{ended:?}"
        );
        died
    }

    /// After a crash: what is seen before there is a successor, what the successor makes of it, and
    /// that it can go on.
    fn check(&self, scene: &Scene) -> bool {
        let seen = self.look(scene.before);
        drop(self.publisher());
        assert_eq!(
            self.look(scene.before),
            seen,
            "a successor changes what is seen"
        );
        self.is_tidy();
        let flipped = seen > scene.before;
        let due = Announcements::sign(Arc::clone(&self.arena)).due();
        let owed: &[FileId] = match (flipped, scene.before) {
            (true, _) => &FILES,
            (false, 0) => &[],
            (false, _) => &FILES[1..],
        };
        assert_eq!(due, owed, "what is to be announced");
        self.next();
        flipped
    }

    /// Reads both files, and what was open: whole, of the same generation, this one or the next;
    /// which.
    fn look(&self, before: u64) -> u64 {
        let reader = self.reader();
        let versions = FILES.map(|file| reader.current(file));
        for version in versions.iter().flatten() {
            assert_eq!(
                whole(&reader, version.nodeid),
                Some(true),
                "a version that is served"
            );
        }
        for nodeid in &self.held {
            assert_ne!(
                whole(&reader, *nodeid),
                Some(false),
                "a version that is open"
            );
        }
        let [first, second] =
            versions.map(|version| version.map_or(0, |version| version.generation.0));
        assert_eq!(first, second, "the files are of one generation");
        assert!(
            (before..=before + 1).contains(&first),
            "{first} after {before}"
        );
        first
    }

    /// The next publication is read, has numbers that were never used, and leaves nothing behind.
    fn next(&self) {
        let slots = || self.arena.all_slots();
        let numbers = || slots().map(|slot| self.arena.record(slot).id().0);
        let (used, before): (BTreeSet<u64>, u64) = (numbers().collect(), self.generation());
        self.publish(LEN);
        assert_eq!(self.look(before), before + 1, "the next publication");
        let fresh = FILES.map(|file| self.reader().current(file).unwrap().nodeid);
        assert!(
            fresh.iter().all(|nodeid| !used.contains(nodeid)),
            "{fresh:?} of {used:?}"
        );
        self.announce(&FILES);
        self.publisher().collect();
        self.is_tidy();
    }
}
