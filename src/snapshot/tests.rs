//! Publisher and reader against a model, over a real arena.

use super::*;
use crate::memory::mapping::Backing;
use crate::names::{FileId, FileName, Generation, Owner};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FILES: u32 = 3;

/// The agent's own state, after all files.
const STATE: FileId = FileId(FILES);

fn arena(size: usize) -> Arc<Arena> {
    let spec = |index| FileSpec {
        name: FileName::new(&format!("f{index}")).expect("name"),
        owner: Owner { uid: 1, gid: 2 },
        mode: 0o400,
        visibility: if index == STATE.0 {
            Visibility::State
        } else {
            Visibility::Listed
        },
    };
    Arc::new(
        Arena::create((0..=FILES).map(spec).collect(), Some(size), Backing::Locked)
            .expect("64 KiB can be locked"),
    )
}

/// All live versions.
fn versions(arena: &Arena) -> impl Iterator<Item = Version> {
    (0..arena.record_count()).filter_map(|slot| arena.load(slot))
}

#[derive(Clone, Debug)]
enum Op {
    Publish(Vec<(u32, usize)>),
    Hold(u32),
    Forget(usize),
    Read(usize, u64),
    Announce(u32),
    Collect,
    /// `fetch` is born again.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let changes = prop::collection::btree_map(0..FILES, 0_usize..9000, 1..4)
        .prop_map(|map| map.into_iter().collect());
    let state = (0_usize..2000).prop_map(|size| vec![(STATE.0, size)]);
    prop_oneof![
        4 => changes.prop_map(Op::Publish),
        1 => state.prop_map(Op::Publish),
        4 => (0..=FILES).prop_map(Op::Hold),
        3 => any::<usize>().prop_map(Op::Forget),
        4 => (any::<usize>(), 0_u64..10_000).prop_map(|(which, offset)| Op::Read(which, offset)),
        2 => (0..FILES).prop_map(Op::Announce),
        1 => Just(Op::Collect),
        1 => Just(Op::Restart),
    ]
}

/// What must be true.
struct Model {
    /// The bytes of each file's newest version.
    newest: HashMap<u32, Vec<u8>>,
    /// What is held, with its bytes.
    held: Vec<(Version, Vec<u8>)>,
    /// Marks the bytes of each publication.
    serial: u8,
    /// When a listed file was published last.
    newest_time: SystemTime,
}

struct World {
    arena: Arc<Arena>,
    publisher: Publisher,
    reader: Reader,
    model: Model,
}

impl World {
    fn new() -> Self {
        let arena = arena(64 << 10);
        Self {
            publisher: Publisher::new(Arc::clone(&arena)),
            reader: Reader::new(Arc::clone(&arena)),
            arena,
            model: Model {
                newest: HashMap::new(),
                held: Vec::new(),
                serial: 0,
                newest_time: UNIX_EPOCH,
            },
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Publish(sizes) => self.publish(&sizes),
            Op::Hold(file) => self.hold(file),
            Op::Forget(which) if !self.model.held.is_empty() => {
                let (version, _) = self.model.held.swap_remove(which % self.model.held.len());
                self.reader.forget(version.nodeid, 1);
            }
            Op::Read(which, offset) if !self.model.held.is_empty() => {
                self.read(which % self.model.held.len(), offset);
            }
            Op::Forget(_) | Op::Read(..) => {}
            Op::Announce(file) => {
                let announcements = Announcements::sign(Arc::clone(&self.arena));
                announcements.begin(FileId(file));
                if let Some(made) = self.reader.make(FileId(file)) {
                    self.reader.rename(FileId(file)).expect("just made");
                    announcements.done(FileId(file), made.generation);
                    assert!(!announcements.due().contains(&FileId(file)));
                    self.reader.forget(made.nodeid, 1);
                }
            }
            Op::Collect => {
                self.publisher.collect();
            }
            Op::Restart => self.publisher = Publisher::new(Arc::clone(&self.arena)),
        }
    }

    fn publish(&mut self, sizes: &[(u32, usize)]) {
        self.model.serial = self.model.serial.wrapping_add(1).max(1);
        let bytes: Vec<(u32, Vec<u8>)> = sizes
            .iter()
            .map(|(file, size)| (*file, vec![self.model.serial; *size]))
            .collect();
        let changes: Vec<_> = bytes
            .iter()
            .map(|(file, bytes)| Change {
                file: FileId(*file),
                bytes,
            })
            .collect();
        let before = self.arena.writer_area().current.load(SeqCst);
        let mtime = UNIX_EPOCH + Duration::new(before, 7);
        match self.publisher.publish(&changes, mtime) {
            Ok(generation) => {
                // Bytes that are served already make no new version.
                if bytes.iter().any(|(file, bytes)| {
                    *file < FILES && self.model.newest.get(file) != Some(bytes)
                }) {
                    self.model.newest_time = mtime;
                }
                assert_eq!(generation.0, before + 1);
                self.model.newest.extend(bytes);
            }
            Err(PublishError::TooLarge { needed, available }) => {
                assert_eq!(self.arena.writer_area().current.load(SeqCst), before);
                assert_eq!(
                    needed,
                    sizes.iter().map(|(_, size)| *size as u64).sum::<u64>()
                );
                let served: usize = self.model.newest.values().map(Vec::len).sum();
                assert_eq!(available, (self.arena.heap_len() - served) as u64);
                // What is served, and what of the change was staged, cannot move: between them are
                // so many gaps, each too small.
                let gaps = 2 * self.arena.files().len() as u64 + 1;
                assert!(
                    needed * (gaps + 1) > available,
                    "{needed} of {available} were refused"
                );
            }
        }
    }

    fn hold(&mut self, file: u32) {
        let held = self.reader.hold_current(FileId(file));
        assert_eq!(held.is_some(), self.model.newest.contains_key(&file));
        if let Some(version) = held {
            let bytes = self.model.newest[&file].clone();
            assert_eq!(
                (version.file, version.len),
                (FileId(file), bytes.len() as u64)
            );
            assert!(version.nodeid >= self.arena.record_count() as u64);
            self.model.held.push((version, bytes));
        }
    }

    /// A held version reads as it was, or is gone; it is gone only when it is no more the newest.
    fn read(&self, which: usize, offset: u64) {
        let (version, bytes) = &self.model.held[which];
        let mut into = [0xff; 4096];
        let expected = bytes
            .get(usize::try_from(offset).expect("small")..)
            .unwrap_or_default();
        let expected = &expected[..expected.len().min(into.len())];
        match self.reader.read(version.nodeid, offset, &mut into) {
            Ok(len) => assert_eq!(&into[..len], expected),
            Err(Gone) => assert_ne!(
                self.reader
                    .current(version.file)
                    .map(|newest| newest.nodeid),
                Some(version.nodeid)
            ),
        }
    }

    /// The newest versions are there, the summary and the index say what the records say, and what
    /// no record describes is zero.
    fn check(&self) {
        assert!(self.publisher.is_indexed(), "{:?}", self.publisher);
        let listed = self.model.newest.iter().filter(|(file, _)| **file < FILES);
        let used: usize = listed.map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(self.reader.summary().used, used as u64);
        assert_eq!(self.reader.summary().mtime, self.model.newest_time);
        for (file, bytes) in &self.model.newest {
            let version = self.reader.current(FileId(*file)).expect("published");
            let mut into = vec![0xff; bytes.len()];
            assert_eq!(
                self.reader.read(version.nodeid, 0, &mut into),
                Ok(bytes.len())
            );
            assert_eq!(&into, bytes);
        }
        let mut heap = vec![0xff; self.arena.heap_len()];
        self.arena
            .mapping()
            .read(0, &mut heap)
            .expect("the whole heap");
        for record in versions(&self.arena) {
            let at = usize::try_from(record.offset).expect("inside");
            heap[at..at + usize::try_from(record.len).expect("inside")].fill(0);
        }
        assert!(
            heap.iter().all(|byte| *byte == 0),
            "freed bytes are not wiped"
        );
    }
}

/// Without it, a `fetch` that begins anew would need room for all of them a second time, and not
/// come to its first publication.
#[test]
fn bytes_that_are_served_make_no_new_version() {
    let mut world = World::new();
    let large = vec![7; world.arena.heap_len() * 2 / 3];
    let both = |small: &[u8]| [(FileId(0), large.clone()), (FileId(1), small.to_vec())];
    let publish = |publisher: &mut Publisher, files: [(FileId, Vec<u8>); 2]| {
        let changes: Vec<_> = files
            .iter()
            .map(|(file, bytes)| Change { file: *file, bytes })
            .collect();
        publisher.publish(&changes, UNIX_EPOCH)
    };
    assert_eq!(
        publish(&mut world.publisher, both(b"one")),
        Ok(Generation(1))
    );
    let first = [0, 1].map(|file| {
        world
            .reader
            .current(FileId(file))
            .expect("published")
            .nodeid
    });
    let mut successor = Publisher::new(Arc::clone(&world.arena));
    assert_eq!(publish(&mut successor, both(b"two")), Ok(Generation(2)));
    let second = [0, 1].map(|file| {
        world
            .reader
            .current(FileId(file))
            .expect("published")
            .nodeid
    });
    assert!(
        first[0] == second[0] && first[1] != second[1],
        "{first:?} {second:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_like_the_model(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
            world.check();
        }
        // With nothing held and everything announced, only the newest versions stay.
        for (version, _) in std::mem::take(&mut world.model.held) {
            world.reader.forget(version.nodeid, 1);
        }
        (0..FILES).for_each(|file| world.run(Op::Announce(file)));
        world.publisher.collect();
        world.check();
        prop_assert_eq!(versions(&world.arena).count(), world.model.newest.len());
    }
}

#[test]
fn a_held_version_is_kept_until_its_last_forget() {
    let mut world = World::new();
    world.publish(&[(0, 100)]);
    let first = world.reader.hold_current(FileId(0)).expect("published");
    world.reader.hold_current(FileId(0)).expect("published");
    world.publish(&[(0, 100)]);
    world.reader.forget(first.nodeid, 1);
    world.publisher.collect();
    assert_eq!(world.reader.version(first.nodeid), Some(first));
    world.reader.forget(first.nodeid, 1);
    world.publisher.collect();
    assert_eq!(world.reader.version(first.nodeid), None);
    // One forget too many, or one of a version whose record is used again, takes nothing from
    // others.
    world.reader.forget(first.nodeid, 5);
    let second = world.reader.hold_current(FileId(0)).expect("published");
    world.publish(&[(0, 100)]);
    world.publisher.collect();
    assert_eq!(world.reader.version(second.nodeid), Some(second));
}

#[test]
fn what_was_not_flipped_is_dropped_at_a_restart() {
    let mut world = World::new();
    world.publish(&[(0, 100)]);
    let staged = world
        .arena
        .all_slots()
        .map(|slot| world.arena.record(slot))
        .find(|record| record.is(State::Free))
        .expect("a free record");
    world
        .arena
        .mapping()
        .write(5000, b"hunter2")
        .expect("inside");
    staged.describe(0, 2, (5000, 7), 0);
    staged.mark(State::Live);
    world.run(Op::Restart);
    world.check();
}

#[test]
fn state_is_never_announced_and_leaves_no_old_version() {
    let mut world = World::new();
    world.publish(&[(0, 100)]);
    let announcements = Announcements::sign(Arc::clone(&world.arena));
    for _ in 0..1_000 {
        world.publish(&[(STATE.0, 300)]);
        assert_eq!(announcements.due(), [FileId(0)]);
        assert!(
            !world.publisher.collect(),
            "there is nothing to come back for"
        );
        world.check();
    }
    let states = || {
        world
            .arena
            .slots(STATE)
            .filter_map(|slot| world.arena.load(slot))
            .count()
    };
    assert_eq!(states(), 1);
}

#[test]
fn a_reader_of_old_state_keeps_it_and_delays_no_other() {
    let mut world = World::new();
    world.publish(&[(STATE.0, 300)]);
    let held = world.reader.hold_current(STATE).expect("published");
    for _ in 0..1_000 {
        world.publish(&[(STATE.0, 300)]);
        world.check();
    }
    assert_eq!(world.reader.read(held.nodeid, 0, &mut [0; 300]), Ok(300));
    assert!(!world.publisher.collect(), "the next report collects it");
    world.reader.forget(held.nodeid, 1);
    world.publisher.collect();
    assert_eq!(world.reader.version(held.nodeid), None);
}

#[test]
fn state_stands_in_the_way_of_no_large_file() {
    let mut world = World::new();
    let third = world.arena.heap_len() / 3;
    for _ in 0..10 {
        // Two versions beside each other are two thirds: room amidst the third one would be lost.
        world.publish(&[(0, third)]);
        world.publish(&[(STATE.0, third / 8)]);
    }
    let generation = world.arena.writer_area().current.load(SeqCst);
    assert_eq!(generation, 20, "nothing was refused");
}

#[test]
fn state_is_published_although_open_versions_fill_the_heap() {
    let mut world = World::new();
    let half = world.arena.heap_len() / 2 - 100;
    world.publish(&[(0, half)]);
    let held = world.reader.hold_current(FileId(0)).expect("published");
    world.publish(&[(0, half)]);
    // An agent that cannot say that it lives would count as dead, and be restarted.
    world.publish(&[(STATE.0, 1_000)]);
    assert_eq!(world.reader.version(held.nodeid), None, "freshness wins");
    world.check();
}

#[test]
fn kept_pages_are_named_until_there_are_too_many() {
    let mut world = World::new();
    let announcements = Announcements::sign(Arc::clone(&world.arena));
    world.publish(&[(0, 100), (1, 100)]);
    let held = world.reader.hold_current(FileId(1)).expect("published");
    for _again in 0..2 {
        world.reader.keeps(held.nodeid, Stage::Announced);
    }
    assert_eq!(announcements.kept_since(0), (Some(vec![FileId(1)]), 1));
    assert_eq!(announcements.kept_since(1), (Some(vec![]), 1));
    for _ in 0..LAST_KEPT {
        world.reader.dropped(held.nodeid, Stage::Announced);
        world.reader.keeps(held.nodeid, Stage::Announced);
    }
    let (kept, seen) = announcements.kept_since(2);
    assert_eq!(kept.map(|files| files.len()), Some(LAST_KEPT - 1));
    assert_eq!(announcements.kept_since(1), (None, seen));
}
