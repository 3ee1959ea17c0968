//! Any process of the agent may die, and nobody notices: not the application, not a reader, not the
//! server.

use super::health::health;
use crate::rig::agent::{Agent, End, MOUNT, Place, Setup};
use crate::rig::process::{children, signal, status};
use crate::rig::scene::assert_left_nothing;
use crate::rig::server::{CALM, Scene, Tenant};
use crate::rig::{World, config, tries, wait_until, wait_until_or};
use baofs::clock::{Clock, Jitter, RealClock};
use baofs::exit::Exit;
use baofs::status::{DIRECTORY, FILE, Report};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

in_each_scene!(
    a_dead_fetch_costs_no_request,
    nobody_notices_a_storm_of_deaths
);
in_each_world!(a_role_that_dies_again_and_again_ends_the_container);

const FUSE: Scene = Scene::FUSE;

/// Reads nothing again by itself: after the start only a death or HUP causes requests.
fn quiet(scene: Scene, name: &str) -> (Tenant, Setup) {
    scene.setup(name, |tenant| {
        config::usual(tenant).replace("100ms", "1h") + "app {\n  on_hup = \"refresh\"\n}\n"
    })
}

pub(super) fn started(setup: Setup) -> Agent {
    setup.place(Place::UnderShell).started()
}

pub(super) fn report(agent: &Agent) -> Report {
    let text = agent.read(&format!("{DIRECTORY}/{FILE}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Kills a role and waits for its successor.
pub(super) fn replace(agent: &Agent, role: &str, number: Signal) {
    let old = agent.role(role);
    fell(old, number);
    wait_until_or(
        &format!("another {role} runs"),
        || agent.log(),
        || (agent.role(role) != old).then_some(()),
    );
}

/// A role of the agent `entry`, if it runs just now.
pub(super) fn living(entry: Pid, role: &str) -> Option<Pid> {
    children(entry)
        .into_iter()
        .find(|pid| status(*pid, "Name").is_some_and(|name| name == format!("baofs-{role}")))
}

/// Sends a deadly signal, more than once: Rust's own handler takes the first SEGV for a stack that
/// overflowed, and waits for the fault to come again.
fn fell(pid: Pid, number: Signal) {
    signal(pid, number);
    wait_until("it falls", || {
        let falls = status(pid, "State").is_none_or(|state| state.starts_with(['Z', 'X']));
        if !falls {
            signal(pid, number);
        }
        falls.then_some(())
    });
}

pub(super) fn assert_nothing_left(tenant: &Tenant, end: &End) {
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_left_nothing(tenant, end);
}

fn a_dead_fetch_costs_no_request(scene: Scene) {
    let (tenant, setup) = quiet(scene, "fetch-dies");
    let agent = started(setup);
    let (user, creds, note) = (agent.read("user"), tenant.creds(), tenant.kv("note"));
    let asked = || {
        (
            tenant.reads(&creds),
            tenant.reads(&note),
            tenant.tokens(),
            tenant.leases(),
        )
    };
    wait_until("all is quiet", || (asked() == (1, 1, 1, 1)).then_some(()));
    for _ in 0..5 {
        replace(&agent, "fetch", Signal::SIGKILL);
    }
    assert_eq!(agent.read("user"), user);
    tenant.put("note", json!({ "text": "new" }));
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.read_after("note", "old"), "new");
    assert_eq!(asked(), (1, 2, 1, 1), "{}", agent.log());
    wait_until("the deaths are reported", || {
        (report(&agent).roles.fetch_deaths >= 5).then_some(())
    });
    assert_nothing_left(&tenant, &agent.stop());
}

#[test]
fn a_dead_serve_is_not_an_event_for_readers() {
    let (tenant, setup) = quiet(FUSE, "serve-dies");
    let agent = started(setup);
    let path = agent.path(MOUNT).join("note");
    let mut open = File::open(&path).expect("the note can be opened");
    let inode = open.metadata().expect("it has attributes").ino();
    for number in [Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGKILL] {
        replace(&agent, "serve", number);
        assert_eq!(agent.read("note"), "old");
    }
    tenant.put("note", json!({ "text": "new" }));
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.read_after("note", "old"), "new");
    let mut text = String::new();
    open.read_to_string(&mut text)
        .expect("what was open still is");
    assert_eq!(
        (
            text.as_str(),
            open.metadata().expect("it has attributes").ino()
        ),
        ("old", inode)
    );
    let report = wait_until("it is reported", || {
        Some(report(&agent)).filter(|report| report.roles.serve_deaths == 3)
    });
    assert!(report.roles.recovery.is_some());
    drop(open);
    assert_nothing_left(&tenant, &agent.stop());
}

/// How a role of the agent is to die; whether there was one.
type Blow = fn(Pid, &str) -> bool;

fn by_kill(entry: Pid, role: &str) -> bool {
    living(entry, role).is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok())
}

/// Crashes would add up, and each successor wait longer: one that is killed once it works is well
/// again.
fn by_crash(entry: Pid, role: &str) -> bool {
    fell(
        wait_until("it runs", || living(entry, role)),
        Signal::SIGSEGV,
    );
    let successor = wait_until("its successor runs", || living(entry, role));
    std::thread::sleep(Duration::from_millis(10));
    fell(successor, Signal::SIGKILL);
    true
}

/// Readers, a watcher and rotations go on while roles are killed at random moments; how much
/// everybody did.
fn storm(scene: Scene, blows: u32, blow: Blow, setup: impl FnOnce(Setup) -> Setup) -> String {
    let tenant = scene.tenant("storm", CALM);
    tenant.put("note", json!({ "text": text(0) }));
    let config = config::usual(&tenant).replace("100ms", "20ms");
    let agent = started(setup(Setup::new(scene.world, &tenant, &config)));
    let mount = agent.path(MOUNT);
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
    inotify
        .add_watch(&mount, AddWatchFlags::IN_MOVED_TO)
        .expect("a watch");
    let name = if scene.world == World::Fuse {
        "note"
    } else {
        "..data"
    };
    let (entry, before, since) = (agent.pid(), Weight::of(agent.pid()), report(&agent).since);
    let (calm, over, rotations) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    let counts: Vec<AtomicU64> = READERS.iter().map(|_| AtomicU64::new(0)).collect();
    let (events, heard) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for (read, count) in READERS.iter().zip(&counts) {
            threads.spawn(|| {
                let mut last = 0;
                while !over.load(SeqCst) {
                    last = read(&mount, last);
                    count.fetch_add(1, SeqCst);
                }
            });
        }
        // Reads what an event tells of.
        threads.spawn(|| {
            while !over.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
                let Ok(some) = inotify.read_events() else {
                    continue;
                };
                let of_note = some
                    .iter()
                    .filter(|event| event.name.as_deref().is_some_and(|it| it == name))
                    .count() as u64;
                if of_note > 0 {
                    heard.store(by_read(&mount, heard.load(SeqCst)), SeqCst);
                    events.fetch_add(of_note, SeqCst);
                }
            }
        });
        // Each version is told by an event of its own, or the next one never comes.
        threads.spawn(|| {
            let _over = OnDrop(|| over.store(true, SeqCst));
            while !calm.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
                let number = rotations.load(SeqCst) + 1;
                tenant.put("note", json!({ "text": text(number) }));
                wait_until_or(
                    "the version is heard of",
                    || agent.log(),
                    || (heard.load(SeqCst) == number).then_some(()),
                );
                rotations.store(number, SeqCst);
            }
        });
        // Whatever fails: the other threads end.
        let _calm = OnDrop(|| calm.store(true, SeqCst));
        let mut dice = Jitter::seeded(u64::from(blows));
        let mut hits = 0;
        while hits < blows {
            hits += u32::from(blow(
                entry,
                if dice.unit() < 0.5 { "fetch" } else { "serve" },
            ));
            std::thread::sleep(dice.between(Duration::ZERO, Duration::from_millis(16)));
            assert!(!over.load(SeqCst), "somebody failed");
        }
    });
    let last = text(rotations.load(SeqCst));
    wait_until_or(
        "the last value is there",
        || agent.log(),
        || agent.try_read("note").filter(|note| *note == last),
    );
    let report = report(&agent);
    let (after, crashes) = (Weight::of(entry), agent.log().matches("signal 11").count());
    let said = format!(
        "{blows} blows ({} of fetch, {} of serve, {crashes} of all crashed), {rotations:?} versions, {events:?} events, reads {counts:?}, \
         {before:?} -> {after:?}",
        report.roles.fetch_deaths, report.roles.serve_deaths
    );
    assert_eq!(report.since, since, "the agent has been up since before");
    assert_eq!(after.descriptors, before.descriptors, "{said}");
    assert!(after.kib < before.kib + 512, "{said}");
    assert!(
        agent
            .processes()
            .iter()
            .all(|(pid, _)| status(*pid, "State").is_none_or(|state| !state.starts_with('Z'))),
        "a zombie is left"
    );
    assert_eq!(
        (
            tenant.reads(&tenant.creds()),
            tenant.tokens(),
            report.session.lost_logins
        ),
        (1, 1, 0),
        "{said}"
    );
    assert_nothing_left(&tenant, &agent.stop());
    said
}

/// The bytes of version `n`: its number again and again.
fn text(n: u64) -> String {
    format!("{n:07} ").repeat(500)
}

/// The version that these bytes are all of; never an older one than `last`.
fn version(bytes: &[u8], last: u64) -> u64 {
    let number = std::str::from_utf8(&bytes[..7])
        .expect("digits")
        .parse()
        .expect("a number");
    assert_eq!(bytes, text(number).as_bytes(), "a torn read");
    assert!(number >= last, "{number} after {last}");
    number
}

/// Reads once; what `last` is to `version`.
type Reader = fn(&Path, u64) -> u64;

const READERS: [Reader; 4] = [by_read, by_sendfile, by_mmap, by_list];

/// The same after a signal, as POSIX asks of every caller; std does it for most calls, but not for
/// all.
fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.expect("it works"),
        }
    }
}

fn by_read(mount: &Path, last: u64) -> u64 {
    version(&std::fs::read(mount.join("note")).expect("a read"), last)
}

/// As `std::io::copy` does from file to file, in the kernel.
fn by_sendfile(mount: &Path, last: u64) -> u64 {
    let mut from = File::open(mount.join("note")).expect("an open");
    let mut to = tempfile::tempfile().expect("a file");
    std::io::copy(&mut from, &mut to).expect("a copy");
    let mut bytes = Vec::new();
    to.rewind()
        .and_then(|()| to.read_to_end(&mut bytes))
        .expect("what was copied");
    version(&bytes, last)
}

#[allow(unsafe_code, reason = "mmap has no safe form")]
fn by_mmap(mount: &Path, last: u64) -> u64 {
    let file = File::open(mount.join("note")).expect("an open");
    let len = NonZeroUsize::new(usize::try_from(again(|| file.metadata()).len()).expect("small"))
        .expect("not empty");
    // SAFETY: a new private mapping of a file that never changes, at an address of the kernel's
    // choice.
    let at = unsafe {
        mmap(
            None,
            len,
            ProtFlags::PROT_READ,
            MapFlags::MAP_PRIVATE,
            &file,
            0,
        )
    }
    .expect("a mapping");
    // SAFETY: the mapping is `len` bytes long and stays until the call below.
    let number = version(
        unsafe { std::slice::from_raw_parts(at.cast::<u8>().as_ptr(), len.get()) },
        last,
    );
    // SAFETY: nothing refers to it any more.
    unsafe { munmap(at, len.get()) }.expect("it was mapped");
    number
}

fn by_list(mount: &Path, last: u64) -> u64 {
    let names = || {
        std::fs::read_dir(mount)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()
    };
    let mut names: Vec<_> = again(names)
        .into_iter()
        .filter(|name| !name.to_string_lossy().starts_with(".."))
        .collect();
    names.sort();
    assert_eq!(names, ["note", "password", "user"]);
    last
}

/// What the supervisor costs.
#[derive(Debug, PartialEq)]
struct Weight {
    descriptors: usize,
    kib: u64,
}

impl Weight {
    fn of(pid: Pid) -> Self {
        let kib = status(pid, "RssAnon")
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .expect("a size");
        Self {
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))
                .expect("its descriptors")
                .count(),
            kib,
        }
    }
}

/// Runs at the end of a scope.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

fn nobody_notices_a_storm_of_deaths(scene: Scene) {
    // In the long form, with those of the old kernel below, 10,000 on FUSE.
    let kills = match scene {
        FUSE => tries(800, 8_000),
        _ => tries(100, 300),
    };
    println!("{}", storm(scene, kills, by_kill, |setup| setup));
}

#[test]
fn nor_of_crashes_inside_of_operations() {
    println!("{}", storm(FUSE, tries(30, 100), by_crash, |setup| setup));
}

/// A role that is stopped for five seconds is no dead one: readers wait, or go on.
#[test]
fn nor_of_a_role_that_hangs_for_a_while() {
    let (tenant, setup) = quiet(FUSE, "hangs");
    let agent = started(setup);
    let roles = report(&agent).roles;
    for (role, first, second) in [
        ("serve", "unhealthy: ", "no answer within 2s"),
        ("fetch", "degraded: ", "has not reported for"),
    ] {
        let pid = agent.role(role);
        let (clock, over, reads) = (RealClock, AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !over.load(SeqCst) {
                    assert_eq!(
                        std::fs::read(agent.path(MOUNT).join("note")).expect("a read"),
                        b"old"
                    );
                    reads.fetch_add(1, SeqCst);
                }
            });
            let _over = OnDrop(|| over.store(true, SeqCst));
            let _on = OnDrop(|| signal(pid, Signal::SIGCONT));
            let begin = clock.now();
            signal(pid, Signal::SIGSTOP);
            let before = reads.load(SeqCst);
            wait_until_or(
                "health says so",
                || format!("{:?}", health(&agent)),
                || {
                    Some(health(&agent).1)
                        .filter(|said| said.starts_with(first) && said.contains(second))
                },
            );
            wait_until("it hung for five seconds", || {
                (clock.now().since(begin) >= Duration::from_secs(5)).then_some(())
            });
            assert!(
                role == "serve" || reads.load(SeqCst) > before + 100,
                "readers go on without fetch"
            );
        });
        wait_until_or(
            "all is well",
            || agent.log(),
            || (health(&agent) == (0, "healthy\n".to_owned())).then_some(()),
        );
    }
    assert_eq!(report(&agent).roles, roles, "nobody died");
    assert_nothing_left(&tenant, &agent.stop());
}

#[test]
fn nor_on_a_kernel_before_6_9() {
    println!(
        "{}",
        storm(FUSE, tries(300, 2_000), by_kill, |setup| setup
            .variable("BAOFS_UNSTABLE_NO_RESEND", "1"))
    );
}

/// A switch of the tests that is set in production must not stay unseen.
#[test]
fn doing_without_resend_is_one_warning() {
    let (tenant, setup) = quiet(FUSE, "no-resend");
    let agent = started(setup.variable("BAOFS_UNSTABLE_NO_RESEND", "1"));
    let (entry, serve) = (agent.pid(), agent.role("serve"));
    let _ = kill(serve, Signal::SIGKILL);
    wait_until("another serve runs", || {
        living(entry, "serve").filter(|pid| *pid != serve)
    });
    let end = agent.stop();
    let warnings = end.stderr.matches("BAOFS_UNSTABLE_NO_RESEND").count();
    assert_eq!(warnings, 1, "{}", end.stderr);
    assert_nothing_left(&tenant, &end);
}

/// A stranger's SEGV looks like its own.
fn a_role_that_dies_again_and_again_ends_the_container(world: World) {
    let (tenant, setup) = quiet(Scene::of(world), "loop");
    let text = config::usual(&tenant) + "app {\n  crash_loop_timeout = \"1s\"\n}\n";
    let agent = started(setup.file("agent-config.hcl", &text));
    let entry = agent.pid();
    wait_until("the agent gives up", || {
        let _ = living(entry, "fetch").map(|pid| kill(pid, Signal::SIGSEGV));
        kill(entry, None).is_err().then_some(())
    });
    let end = agent.end();
    assert_eq!(
        end.code,
        i32::from(Exit::CrashLoop.code()),
        "{}",
        end.stderr
    );
    assert!(!end.stdout.contains("left "), "{}", end.stdout);
}
