//! The roles as real processes over a real mount: rotations under load, what watchers hear, what an
//! open file shows, who may change what, how it begins and ends. One thread, no test harness: it
//! forks without exec, as supervise does. Needs root; everything is mounted in a mount namespace of
//! its own.
#![allow(unsafe_code, reason = "forks, and calls that no wrapper has")]
#![allow(clippy::unwrap_used, reason = "a test ends where it is wrong")]

#[path = "storm/world.rs"]
mod world;

use baofs::fuse::mount::FuseMount;
use baofs::fuse::refusal::Refusal;
use baofs::memory::alloc::Wiping;
use baofs::memory::mapping::Backing;
use baofs::names::Recovery;
use baofs::names::Role;
use baofs::snapshot::{Arena, State};
use baofs::sys;
use baofs::sys::mount::FsContext;
use baofs::sys::mounts::{SOURCE, hides_agent};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use world::{
    APP, Board, ONE_FILE, TWO_FILES, World, as_user, content, exit_of, fork, isolate, specs,
};

/// The whole program runs on the allocator that the roles use.
#[global_allocator]
static HEAP: Wiping = Wiping;

/// What went well, or what did not.
type Outcome = Result<String, String>;
/// A check and what it is called.
type Check = (&'static str, fn() -> Outcome);
/// What a role must not do.
type Write = (Role, fn(&Arena));

const CHECKS: &[Check] = &[
    ("ten_thousand_rotations_are_read_whole", || {
        storm(Backing::Secret, 10_000, 1)
    }),
    ("so_are_they_from_memory_locked_by_supervise", || {
        storm(Backing::Locked, 1_000, 1)
    }),
    ("and_when_flips_overtake_announcements", || {
        storm(Backing::Secret, 1_000, 4)
    }),
    ("nobody_notices_a_dead_serve", || {
        storm_with_kills(Recovery::Resend)
    }),
    ("nor_on_a_kernel_before_6_9", || {
        storm_with_kills(Recovery::Interrupt)
    }),
    ("the_state_is_read_whole_while_it_is_rewritten", state),
    (
        "watchers_of_the_directory_hear_each_rotation",
        directory_events,
    ),
    ("a_watcher_of_the_file_hears_its_end", file_events),
    ("an_open_file_keeps_its_version", open_files),
    ("the_kernel_keeps_no_page_of_an_old_version", old_pages),
    ("freshness_wins_over_open_files", eviction),
    ("nobody_changes_anything", refusals_to_change),
    ("serve_ends_with_the_mount", the_end),
    ("a_dead_mount_is_cleared", dead_mount),
    ("an_agent_that_lives_is_not_hidden", living_agents),
    ("of_mounts_at_the_same_moment_one_stays", same_moment),
    ("no_role_writes_the_part_of_another", protection),
    ("mounting_is_refused_by_cause", refused_mounts),
];

fn main() -> ExitCode {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    if let Err(why) = isolate() {
        println!(
            "no mount namespace: {why}; hint: run the tests as root (with SYS_ADMIN)\n0 passed, 1 failed"
        );
        return ExitCode::FAILURE;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(&filter)) {
        match check() {
            Ok(said) => {
                passed += 1;
                println!("{name} ... ok {said}");
            }
            Err(why) => {
                failed += 1;
                println!("{name} ... FAILED: {why}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn ensure(truth: bool, why: impl Into<String>) -> Result<(), String> {
    if truth { Ok(()) } else { Err(why.into()) }
}

/// Rotations under three readers.
fn storm(kind: Backing, rotations: u32, burst: u32) -> Outcome {
    under_readers(kind, |world| world.rotate_in_bursts(rotations, burst))
}

/// The same, while `serve` is killed every few milliseconds.
fn storm_with_kills(recovery: Recovery) -> Outcome {
    let mut kills = 0;
    let said = under_readers(Backing::Secret, |world| {
        kills = world.rotate_and_kill(2_000, recovery);
    })?;
    ensure(kills > 100, format!("only {kills} kills"))?;
    Ok(format!("({kills} kills) {said}"))
}

/// Three readers as another user: by read, by sendfile, and of two files in both orders.
fn under_readers(kind: Backing, rotate: impl FnOnce(&mut World)) -> Outcome {
    let mut world = World::start(TWO_FILES, None, kind);
    world.rotate(1);
    let board = Board::new();
    let (a, b) = (world.path("a"), world.path("b"));
    let published = || world.arena.writer_area().current.load(SeqCst);
    let readers = [
        fork(|| {
            board.hammer(0, |tally| {
                tally.check(published, || fs::read(&a));
            })
        }),
        fork(|| {
            board.hammer(1, |tally| {
                tally.check(published, || world::by_sendfile(&a));
            })
        }),
        fork(|| {
            board.hammer(2, |tally| {
                let (first, second) = if tally.reads.load(SeqCst) % 4 == 0 {
                    (&a, &b)
                } else {
                    (&b, &a)
                };
                let older = tally.check(published, || fs::read(first));
                let newer = tally.check(published, || fs::read(second));
                tally.older.fetch_add(u64::from(newer < older), SeqCst);
            })
        }),
    ];
    rotate(&mut world);
    board.stop();
    let ended: Vec<_> = readers.into_iter().map(exit_of).collect();
    ensure(ended == [0, 0, 0], format!("readers ended with {ended:?}"))?;
    let said = board.to_string();
    ensure(board.is_clean(), said.clone())?;
    Ok(said)
}

/// Three readers of what is not announced, and one who keeps the first version open.
fn state() -> Outcome {
    let mut world = World::start(ONE_FILE, None, Backing::Secret);
    world.rotate(1);
    world.rewrite_state(1);
    let path = world.path("..baofs/state");
    let mut first = File::open(&path).unwrap();
    let board = Board::new();
    let published = || world.arena.writer_area().current.load(SeqCst);
    let readers = [0, 1, 2].map(|reader| {
        let read: fn(&Path) -> io::Result<Vec<u8>> = if reader == 1 {
            world::by_sendfile
        } else {
            |path| fs::read(path)
        };
        fork(|| {
            board.hammer(reader, |tally| {
                tally.check(published, || read(&path));
            })
        })
    });
    world.rewrite_state(40_000);
    board.stop();
    let ended = readers.map(exit_of);
    ensure(ended == [0, 0, 0], format!("readers ended with {ended:?}"))?;
    let mut kept = Vec::new();
    first
        .read_to_end(&mut kept)
        .map_err(|error| format!("the open one: {error}"))?;
    ensure(kept == content(2), "the open one changed")?;
    let said = board.to_string();
    ensure(board.is_clean(), said.clone())?;
    Ok(said)
}

fn directory_events() -> Outcome {
    let mut world = World::start(TWO_FILES, None, Backing::Secret);
    world.rotate(1);
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let all = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE;
    inotify
        .add_watch(&world.path(""), all | AddWatchFlags::IN_DELETE)
        .unwrap();
    world.rewrite_state(20);
    world.rotate(20);
    let mut seen = BTreeMap::new();
    while let Ok(events) = inotify.read_events() {
        for event in events {
            let name = event.name.unwrap_or_default().into_string().unwrap();
            *seen.entry((name, format!("{:?}", event.mask))).or_insert(0) += 1;
        }
    }
    let mut expected = BTreeMap::new();
    for name in TWO_FILES {
        for event in ["IN_CREATE", "IN_MOVED_FROM"] {
            expected.insert(
                (format!("..new.{name}"), format!("AddWatchFlags({event})")),
                20,
            );
        }
        for event in ["IN_MOVED_TO", "IN_MODIFY", "IN_CLOSE_WRITE"] {
            expected.insert(((*name).to_owned(), format!("AddWatchFlags({event})")), 20);
        }
    }
    ensure(seen == expected, format!("{seen:?}"))?;
    Ok(format!("({} events)", seen.values().sum::<i32>()))
}

fn file_events() -> Outcome {
    let mut world = World::start(ONE_FILE, None, Backing::Secret);
    world.rotate(1);
    for turn in 0..20 {
        // Half of the time somebody has the old version open and asks for its attributes: the end
        // comes with the last close.
        let open = (turn % 2 == 0).then(|| File::open(world.path("a")).unwrap());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let mask = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(&world.path("a"), mask).unwrap();
        world.rotate(1);
        ensure(
            open.is_none_or(|file| file.metadata().unwrap().nlink() == 0),
            "the old version still claims a name",
        )?;
        let events: Vec<_> = std::iter::from_fn(|| inotify.read_events().ok())
            .flatten()
            .map(|event| event.mask)
            .collect();
        ensure(
            events.contains(&AddWatchFlags::IN_DELETE_SELF),
            format!("{events:?}"),
        )?;
    }
    Ok(String::new())
}

fn open_files() -> Outcome {
    let mut world = World::start(TWO_FILES, None, Backing::Secret);
    world.rotate(1);
    let path = world.path("a");
    let first = File::open(&path).unwrap();
    let inode = first.metadata().unwrap().ino();
    world.rotate(3);
    let stat = first.metadata().unwrap();
    ensure(
        (stat.len(), stat.ino(), stat.nlink()) == (content(1).len() as u64, inode, 0),
        format!("{stat:?}"),
    )?;
    let mut bytes = Vec::new();
    (&first).read_to_end(&mut bytes).unwrap();
    ensure(bytes == content(1), "the open file changed")?;
    let now = fs::metadata(&path).unwrap();
    ensure(
        now.ino() != inode && now.nlink() == 1 && now.len() == content(4).len() as u64,
        format!("{now:?}"),
    )?;
    ensure(
        fs::read(&path).unwrap() == content(4),
        "a new open does not see the newest version",
    )?;
    let untouched = fs::metadata(world.path("b")).unwrap().ino();
    world.rotate_only(0);
    ensure(
        fs::metadata(world.path("b")).unwrap().ino() == untouched,
        "a file that did not change has a new inode",
    )?;
    ensure(
        fs::read(world.path("b")).unwrap() == content(4),
        "a file that did not change has other bytes",
    )?;
    Ok(String::new())
}

/// After `sendfile` and through a mapping: the old version stays readable, its pages go, each time
/// again.
fn old_pages() -> Outcome {
    let mut world = World::start(TWO_FILES, None, Backing::Secret);
    world.rotate(1);
    let path = world.path("a");
    let open = File::open(&path).unwrap();
    let untouched = File::open(world.path("b")).unwrap();
    let mapping = world::Mapping::of(&open);
    let mtime = open.metadata().unwrap().mtime_nsec();
    for turn in 1..=5 {
        ensure(
            world::by_sendfile_of(&open).unwrap() == content(1),
            format!("turn {turn}: sendfile is not of the old version"),
        )?;
        ensure(
            mapping.bytes() == content(1),
            format!("turn {turn}: the mapping is not of the old version"),
        )?;
        ensure(
            world::cached_pages(&open) > 0,
            format!("turn {turn}: nothing to drop, so nothing is tested"),
        )?;
        world.rotate(1);
        let why = || {
            format!(
                "turn {turn}: {} pages of a superseded version are kept",
                world::cached_pages(&open)
            )
        };
        world::wait_until(|| world::cached_pages(&open) == 0).map_err(|()| why())?;
    }
    let mut bytes = Vec::new();
    (&open).read_to_end(&mut bytes).unwrap();
    ensure(bytes == content(1), "the open file changed")?;
    ensure(
        untouched.metadata().unwrap().mtime_nsec() == 0 && mtime == 0,
        "an inode without pages was touched",
    )?;
    // The current version's pages stay, as README says.
    let current = File::open(&path).unwrap();
    world::by_sendfile_of(&current).unwrap();
    ensure(
        world::cached_pages(&current) > 0,
        "the current version has no pages: README is wrong",
    )?;
    world.rotate_only(1);
    ensure(
        world::cached_pages(&current) > 0,
        "a rotation of another file dropped them",
    )?;
    Ok(String::new())
}

fn eviction() -> Outcome {
    let mut world = World::start(ONE_FILE, Some(64 << 10), Backing::Secret);
    world.rotate(1);
    let path = world.path("a");
    let open: Vec<File> = (0..40)
        .map(|_| {
            let file = File::open(&path).unwrap();
            world.rotate(1);
            file
        })
        .collect();
    let newest = world.arena.writer_area().current.load(SeqCst);
    ensure(
        fs::read(&path).unwrap() == content(newest),
        "the newest version is not whole",
    )?;
    let (mut whole, mut evicted) = (0, 0);
    for (generation, mut file) in (1..).zip(&open) {
        let mut bytes = Vec::new();
        match file.read_to_end(&mut bytes) {
            Ok(_) if bytes == content(generation) => whole += 1,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => evicted += 1,
            other => {
                return Err(format!(
                    "generation {generation}: {other:?}, {} bytes",
                    bytes.len()
                ));
            }
        }
    }
    ensure(
        whole > 0 && evicted > 0,
        format!("{whole} whole, {evicted} evicted"),
    )?;
    Ok(format!("({whole} kept, {evicted} evicted)"))
}

fn refusals_to_change() -> Outcome {
    let mut world = World::start(TWO_FILES, None, Backing::Secret);
    ensure(
        fs::read(world.path("a")).unwrap_err().raw_os_error() == Some(libc::ENOENT),
        "there before its first version",
    )?;
    world.rotate(1);
    let path = world.path("a");
    let errno = |result: std::io::Result<()>| {
        result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0)
    };
    let write = errno(OpenOptions::new().write(true).open(&path).map(drop));
    let changes = [
        write,
        errno(fs::remove_file(&path)),
        errno(fs::rename(&path, world.path("c"))),
        errno(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o777),
        )),
        errno(fs::write(world.path("new"), "x")),
    ];
    ensure(changes == [libc::EROFS; 5], format!("{changes:?}"))?;
    // Even through the private mount: this process is not the announcing thread.
    let private = format!("/proc/self/fd/{}", world.private());
    let hidden = errno(
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(format!("{private}/..new.a"))
            .map(drop),
    );
    let private_changes = [
        hidden,
        errno(fs::rename(format!("{private}/a"), format!("{private}/b"))),
    ];
    ensure(
        private_changes == [libc::EROFS; 2],
        format!("{private_changes:?}"),
    )?;
    ensure(
        errno(fs::metadata(world.path("..new.a")).map(drop)) == libc::ENOENT,
        "the hidden name is found",
    )?;
    let mut names: Vec<_> = fs::read_dir(world.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    ensure(names == ["a", "b"], format!("{names:?}"))?;
    let stranger = exit_of(fork(|| {
        as_user(1001);
        u8::from(
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_CLOEXEC)
                .open(&path)
                .is_ok(),
        )
    }));
    ensure(stranger == 0, "another user reads it")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts
        .lines()
        .find(|line| line.contains(world.path("").to_str().unwrap()))
        .unwrap_or_default();
    ensure(
        ours.contains(" ro,nosuid,nodev,noexec,") && ours.contains(" - fuse baofs "),
        ours,
    )?;
    Ok(String::new())
}

fn the_end() -> Outcome {
    let mut world = World::start(ONE_FILE, None, Backing::Secret);
    world.rotate(1);
    let mut open = File::open(world.path("a")).unwrap();
    let (serve, fetch) = world.unmount();
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    ensure(
        bytes == content(1),
        "an open file did not outlive the mount",
    )?;
    drop(open);
    ensure(
        (exit_of(serve), exit_of(fetch)) == (0, 0),
        "serve or fetch did not end well",
    )?;
    Ok(String::new())
}

fn dead_mount() -> Outcome {
    let mut world = World::start(ONE_FILE, None, Backing::Secret);
    world.rotate(1);
    let path = world.path("");
    world.kill_roles();
    let dead = fs::metadata(&path).unwrap_err();
    ensure(
        dead.raw_os_error() == Some(libc::ENOTCONN),
        format!("{dead}"),
    )?;
    let again = FuseMount::create(&path, 0o755).map_err(|refusal| refusal.to_string())?;
    let count = mounts_at(&path);
    drop(again);
    ensure(count == 1, format!("{count} mounts lie there"))?;
    Ok(String::new())
}

/// By FUSE, or in a tmpfs that a lock says somebody lives in; where nobody does, a dead agent's
/// tmpfs goes, and another stays.
fn living_agents() -> Outcome {
    let world = World::start(ONE_FILE, None, Backing::Secret);
    let held = |path: &Path| matches!(FuseMount::create(path, 0o755), Err(Refusal::Held(_)));
    ensure(
        held(&world.path("")),
        "the mount of an agent that lives is hidden",
    )?;
    drop(world);
    for (source, left) in [("baofs", 1), ("given", 2)] {
        let dir = world::open_directory();
        mount(
            Some(source),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|error| error.to_string())?;
        let lock = File::open(dir.path()).unwrap();
        lock.try_lock().unwrap();
        ensure(
            held(dir.path()),
            format!("a tmpfs of {source} that is locked is hidden"),
        )?;
        drop(lock);
        let created = FuseMount::create(dir.path(), 0o755).map_err(|error| error.to_string())?;
        let count = mounts_at(dir.path());
        ensure(
            count == left,
            format!("{count} mounts lie at the tmpfs of {source}"),
        )?;
        drop(created);
        let _ = umount(dir.path());
    }
    Ok(String::new())
}

/// Both agents saw an empty directory before: the one that is attached later finds the other
/// beneath, and not the other way round.
fn same_moment() -> Outcome {
    let dir = world::open_directory();
    let attached = || {
        let context = FsContext::open(c"tmpfs")?;
        context.set(c"source", SOURCE)?;
        let mount = context.mount()?;
        sys::mount::attach(mount.as_fd(), dir.path()).map(|()| mount)
    };
    let [first, second] = [(); 2].map(|()| attached().unwrap());
    let found = [&first, &second].map(|mount| hides_agent(mount.as_fd()).unwrap());
    ensure(found == [false, true], format!("{found:?}"))?;
    sys::mount::unmount_root(second.as_fd()).unwrap();
    let left = mounts_at(dir.path());
    sys::mount::unmount_root(first.as_fd()).unwrap();
    ensure(left == 1, format!("{left} mounts are left"))?;
    Ok(String::new())
}

/// How many mounts lie there.
fn mounts_at(path: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .filter(|line| line.contains(path.to_str().unwrap()))
        .count()
}

fn protection() -> Outcome {
    let writes: [Write; 4] = [
        (Role::Serve, |arena| {
            arena.writer_area().current.store(7, SeqCst);
        }),
        (Role::Serve, |arena| arena.mapping().write(0, b"x").unwrap()),
        (Role::Serve, |arena| {
            arena.record(0).mark(State::Live);
        }),
        (Role::Fetch, |arena| arena.holders(0).store(7, SeqCst)),
    ];
    for kind in [Backing::Secret, Backing::Locked] {
        let arena = Arc::new(
            Arena::create(specs(TWO_FILES), None, kind).map_err(|error| error.to_string())?,
        );
        for (index, (role, write)) in writes.iter().enumerate() {
            let child = fork(|| {
                arena.protect_for(*role).unwrap();
                write(&arena);
                0
            });
            let ended = waitpid(child, None).unwrap();
            ensure(
                matches!(ended, WaitStatus::Signaled(_, Signal::SIGSEGV, _)),
                format!("write {index} as {role:?}: {ended:?}"),
            )?;
            write(&arena);
        }
    }
    Ok(String::new())
}

/// Each in a child that first loses what mounting needs.
fn refused_mounts() -> Outcome {
    let without_device = || world::cover("/dev");
    let without_right = || {
        // SAFETY: the call takes numbers; 21 is SYS_ADMIN.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 21, 0, 0, 0) };
        assert_eq!(dropped, 0);
        as_user(APP);
    };
    let rows: [(&str, &dyn Fn()); 3] = [
        ("it is not there", &without_device),
        ("is not root", &|| as_user(APP)),
        ("SYS_ADMIN is missing", &without_right),
    ];
    for (words, lose) in rows {
        let dir = world::open_directory();
        let child = fork(|| {
            lose();
            let Err(refusal) = FuseMount::create(dir.path(), 0o755) else {
                return 1;
            };
            if refusal.to_string().contains(words) && refusal.to_string().contains("hint:") {
                return 0;
            }
            println!("{refusal}");
            2
        });
        ensure(exit_of(child) == 0, format!("not said: {words}"))?;
    }
    let file = world::open_directory();
    fs::write(file.path().join("taken"), "").unwrap();
    let refusal = FuseMount::create(&file.path().join("taken"), 0o755)
        .err()
        .map(|refusal| refusal.to_string())
        .unwrap_or_default();
    ensure(
        refusal.contains("cannot mount at") && refusal.contains("--mount"),
        refusal,
    )?;
    Ok(String::new())
}
