//! The fallback on real mounts: in a mount namespace of its own (so nothing stays mounted), as
//! root, as root with few capabilities, and as uid 1000. A program of its own, because `unshare(2)`
//! wants a single thread.

use baofs::clock::{Clock, Moment, RealClock};
use baofs::config::plan::{Content, Empty, Fallback, File, Filesystem, Stale, Swap};
use baofs::names::{FileId, FileName, Generation, Owner};
use baofs::tmpfs::{RefusalCause, Target, TargetRefusal, WriteError, Writer, needs_chown};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const A: FileId = FileId(0);
const B: FileId = FileId(1);
const APP: Owner = Owner {
    uid: 1000,
    gid: 1000,
};
const ME: Owner = Owner { uid: 0, gid: 0 };

/// A name and what is done in an empty directory on disk.
type Case = (&'static str, fn(&Path));

/// What runs as root with all rights.
const CASES: &[Case] = &[
    ("own mount: options, owner, mode, nothing left", own_mount),
    ("a change flips, the unchanged keeps its inode", flips),
    (
        "a watcher sees the flip through the read-only mount",
        watched,
    ),
    ("a full filesystem keeps the last generation", full),
    ("pressure takes what is old at once", pressure),
    (
        "the agent's own state is replaced, gives way to secrets, and goes with them",
        state,
    ),
    ("a reader never sees half a change", readers),
    (
        "content is overwritten when nobody has it open",
        overwritten,
    ),
    (
        "a living agent's directory is refused, a dead one's is taken",
        one_agent,
    ),
    ("what is no directory is refused", no_directory),
    (
        "disk, no limit and no right are refused, and left alone",
        refused_for_others,
    ),
    (
        "links that somebody planted are not followed",
        links_are_not_followed,
    ),
    (
        "a given tmpfs as uid 1000, and as root with CAP_CHOWN alone",
        given_to_others,
    ),
];

/// What runs in a child with fewer rights.
const CHILD_CASES: &[Case] = &[
    ("disk", disk_is_refused),
    ("unwritable", unwritable),
    ("given", given),
    ("given-again", given_again),
    ("chown", only_chown),
    ("unlimited", unlimited),
    ("planted", planted),
];

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--child") {
        let (case, path) = (args.next().expect("a case"), args.next().expect("a path"));
        let (_, run) = CHILD_CASES
            .iter()
            .find(|(name, _)| *name == case)
            .expect("a known case");
        return run(Path::new(&path));
    }
    unshare(CloneFlags::CLONE_NEWNS)
        .expect("a mount namespace needs root: run the tests with sudo");
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        None::<&str>,
    )
    .expect("make mounts private");
    for (name, run) in CASES {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        run(dir.path());
        println!("ok: {name}");
    }
    println!("{} passed, 0 failed", CASES.len());
}

// The world of a case.

fn file(name: &str, owner: Owner, mode: u32) -> File {
    let (name, origin) = (FileName::new(name).expect("a name"), String::new());
    File {
        name,
        content: Content::Token,
        owner,
        mode,
        empty: Empty::Allow,
        on_change: None,
        stale: Stale::Degraded,
        origin,
    }
}

fn two(owner: Owner) -> Vec<File> {
    vec![file("a", owner, 0o400), file("b", owner, 0o440)]
}

fn filesystem(path: &Path, size: u64) -> Filesystem {
    Filesystem {
        path: path.to_owned(),
        fallback: Fallback::Tmpfs,
        swap: Swap::Allow,
        size: Some(size),
        dir_mode: 0o755,
    }
}

fn refusal(path: &Path, files: &[File]) -> RefusalCause {
    prepare(path, files).expect_err("a refusal").cause
}

fn prepare(path: &Path, files: &[File]) -> Result<Target, TargetRefusal> {
    Target::prepare(&filesystem(path, 1 << 20), files)
}

fn started(path: &Path, files: &[File]) -> (Target, Writer) {
    let target = prepare(path, files).expect("prepare");
    let writer = open_writer(&target, files);
    (target, writer)
}

fn open_writer(target: &Target, files: &[File]) -> Writer {
    let root = target.root().expect("root");
    Writer::open(root, 0o755, files, RealClock.now()).expect("writer")
}

fn at(seconds: u64) -> Moment {
    Moment::at(Duration::from_secs(seconds))
}

/// A tmpfs such as a container is given.
fn given_tmpfs(path: &Path, kind: &str, options: &str) {
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), path, Some(kind), harmless, Some(options)).expect("mount");
}

fn detach(path: &Path) {
    umount2(path, MntFlags::MNT_DETACH).expect("umount");
}

fn names(path: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry
            .expect("entry")
            .file_name()
            .into_string()
            .expect("utf-8")
    };
    let mut names: Vec<String> = fs::read_dir(path).expect("read_dir").map(name).collect();
    names.sort();
    names
}

fn read(path: &Path, name: &str) -> Vec<u8> {
    fs::read(path.join(name)).expect("a served file")
}

fn mounts_at(path: &Path) -> Vec<String> {
    let here = format!(" {} ", path.display());
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    mountinfo
        .lines()
        .filter(|line| line.contains(&here))
        .map(str::to_owned)
        .collect()
}

/// A look at a content that does not count as having it open.
fn peek(path: &Path) -> fs::File {
    fs::File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .expect("O_PATH")
}

fn peeked(file: &fs::File) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("the unlinked file")
}

// As root.

fn own_mount(path: &Path) {
    let files = two(APP);
    let (target, mut writer) = started(path, &files);
    let mounts = mounts_at(path);
    let [line] = mounts.as_slice() else {
        panic!("one mount, not {mounts:?}")
    };
    for word in [
        "ro,nosuid,nodev,noexec",
        " - tmpfs baofs ",
        "size=1024k",
        "mode=755",
        "noswap",
    ] {
        assert!(line.contains(word), "{word} in {line}");
    }
    writer
        .publish(&[(A, b"1"), (B, b"2")], at(0))
        .expect("publish");
    assert_eq!(names(path), ["..1", "..data", "..files", "a", "b"]);
    assert_eq!(
        (read(path, "a"), read(path, "b")),
        (b"1".to_vec(), b"2".to_vec())
    );
    for (name, mode) in [("a", 0o100_400), ("b", 0o100_440)] {
        let stat = fs::metadata(path.join(name)).expect("stat");
        assert_eq!(
            (stat.uid(), stat.gid(), stat.mode()),
            (1000, 1000, mode),
            "{name}"
        );
    }
    for name in ["..1", "..files"] {
        let stat = fs::metadata(path.join(name)).expect("stat");
        assert_eq!((stat.uid(), stat.mode()), (0, 0o40_755), "{name}");
    }
    let refused = fs::write(path.join("x"), "").expect_err("the public mount is read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    writer.clear().expect("clear");
    assert_eq!(names(path), [""; 0]);
    target.clear().expect("clear");
    assert!(mounts_at(path).is_empty());
}

fn flips(path: &Path) {
    assert!(needs_chown(&two(APP)) && !needs_chown(&two(ME)));
    let (target, mut writer) = started(path, &two(ME));
    assert_eq!(
        writer.publish(&[(A, b"1")], at(0)).expect("publish"),
        Generation(1)
    );
    assert!(fs::metadata(path.join("b")).is_err(), "b is not there yet");
    writer.publish(&[(B, b"1")], at(0)).expect("publish");
    let inodes = |name| fs::metadata(path.join(name)).expect("stat").ino();
    let (a, b) = (inodes("a"), inodes("b"));
    let mut old = fs::File::open(path.join("b")).expect("open");

    assert_eq!(
        writer.publish(&[(B, b"2")], at(5)).expect("publish"),
        Generation(3)
    );
    assert_eq!((inodes("a"), inodes("b") != b), (a, true), "only b is new");
    assert_eq!(
        (read(path, "a"), read(path, "b")),
        (b"1".to_vec(), b"2".to_vec())
    );
    let mut bytes = Vec::new();
    old.read_to_end(&mut bytes)
        .expect("an open file keeps its version");
    assert_eq!(bytes, b"1");

    assert_eq!(
        names(path),
        ["..2", "..3", "..data", "..files", "a", "b"],
        "the old generation stays for who is on the way to it"
    );
    assert_eq!(writer.sweep(at(5)), Some(Duration::from_secs(1)));
    assert_eq!(
        writer.sweep(at(6)),
        Some(Duration::from_secs(30)),
        "b's old content is open"
    );
    assert_eq!(names(path), ["..3", "..data", "..files", "a", "b"]);
    drop(old);
    assert_eq!(writer.sweep(at(36)), None);
    assert_eq!(names(&path.join("..files")).len(), 2);
    target.clear().expect("clear");
}

fn watched(path: &Path) {
    let (target, mut writer) = started(path, &two(ME));
    writer.publish(&[(A, b"1")], at(0)).expect("publish");
    let mut watcher = Command::new("inotifywait")
        .args(["--monitor", "--timeout", "20", "--format", "%e %f"])
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("inotifywait is needed: apt-get install inotify-tools");
    let told = BufReader::new(watcher.stderr.take().expect("stderr"))
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("established"));
    assert!(told, "the watch stands");
    writer.publish(&[(A, b"2")], at(0)).expect("publish");
    let events = BufReader::new(watcher.stdout.take().expect("stdout"))
        .lines()
        .map_while(Result::ok);
    let seen: Vec<String> = events
        .take_while(|event| event != "MOVED_TO ..data")
        .collect();
    watcher.kill().expect("kill");
    watcher.wait().expect("wait");
    assert!(
        seen.contains(&"CREATE ..data_tmp".to_owned())
            && seen.last().is_some_and(|e| e == "MOVED_FROM ..data_tmp"),
        "{seen:?}"
    );
    target.clear().expect("clear");
}

fn full(path: &Path) {
    let files = two(ME);
    let target = Target::prepare(&filesystem(path, 64 << 10), &files).expect("prepare");
    let mut writer = open_writer(&target, &files);
    let small = vec![1_u8; 20 << 10];
    writer
        .publish(&[(A, small.clone()), (B, b"b".to_vec())], at(0))
        .expect("publish");
    let before = (names(path), names(&path.join("..files")));

    // The first file fits, the second does not.
    let error = writer
        .publish(&[(B, small.clone()), (A, vec![2; 60 << 10])], at(9))
        .expect_err("too big");
    let WriteError::Full { needed } = &error else {
        panic!("{error}")
    };
    assert_eq!(*needed, (20 << 10) + (4 << 10) + (20 << 10) + (60 << 10));
    assert!(
        error.to_string().contains("hint: raise filesystem.size"),
        "{error}"
    );
    assert_eq!(
        (names(path), names(&path.join("..files"))),
        before,
        "nothing half-made is left"
    );
    assert_eq!((read(path, "a"), read(path, "b")), (small, b"b".to_vec()));

    assert_eq!(
        writer
            .publish(&[(A, vec![3; 30 << 10])], at(9))
            .expect("it goes on"),
        Generation(2)
    );
    assert_eq!(read(path, "a"), vec![3; 30 << 10]);
    target.clear().expect("clear");
}

fn pressure(path: &Path) {
    let files = two(ME);
    let target = Target::prepare(&filesystem(path, 64 << 10), &files).expect("prepare");
    let mut writer = open_writer(&target, &files);
    for round in 1..=20_u8 {
        writer
            .publish(&[(A, vec![round; 20 << 10])], at(0))
            .expect("old generations make room");
        assert_eq!(read(path, "a"), vec![round; 20 << 10]);
    }
    target.clear().expect("clear");
}

fn state(path: &Path) {
    let files = two(APP);
    let target = Target::prepare(&filesystem(path, 64 << 10), &files).expect("prepare");
    let mut writer = open_writer(&target, &files);
    writer
        .publish_state("status.json", b"{}")
        .expect("before the first secret");
    let file = path.join("..baofs/status.json");
    let mut old = fs::File::open(&file).expect("open");
    writer.publish_state("status.json", b"{ }").expect("again");
    assert_eq!(fs::read(&file).expect("read"), b"{ }");
    let mut text = String::new();
    old.read_to_string(&mut text)
        .expect("an open file keeps its version");
    assert_eq!(text, "{}");
    for (name, mode) in [("..baofs", 0o40_755), ("..baofs/status.json", 0o100_444)] {
        let stat = fs::metadata(path.join(name)).expect("stat");
        assert_eq!((stat.uid(), stat.mode()), (0, mode), "{name}");
    }
    assert_eq!(names(&path.join("..baofs")), ["status.json"]);

    // 16 pages: two versions of 8 pages fit only without the state.
    drop(old);
    for round in 0..5 {
        writer
            .publish(&[(A, vec![round; 32 << 10])], at(0))
            .expect("secrets come first");
        assert_eq!(read(path, "a"), vec![round; 32 << 10]);
        if round == 1 {
            let full = writer
                .publish_state("status.json", b"{}")
                .expect_err("no page is left");
            assert!(
                full.to_string().contains("writing ..baofs/status.json"),
                "{full}"
            );
            assert_eq!(names(&path.join("..baofs")), [""; 0]);
        }
        writer.sweep(at(1));
        writer
            .publish_state("status.json", b"{}")
            .expect("there is room again");
    }
    drop(writer);
    target.clear().expect("clear");
    drop(target);
    assert_eq!(names(path), [""; 0]);

    let target = Target::prepare(&filesystem(path, 64 << 10), &files).expect("prepare");
    let writer = open_writer(&target, &files);
    writer.publish_state("status.json", b"{}").expect("publish");
    writer.clear().expect("clear");
    assert_eq!(names(path), [""; 0]);
    target.clear().expect("clear");
}

/// Two readers by name and one by directory, while a writer rotates as fast as it can.
fn readers(path: &Path) {
    const ROTATIONS: u64 = 2_000;
    let files = two(ME);
    let target = Target::prepare(&filesystem(path, 64 << 20), &files).expect("prepare");
    let mut writer = open_writer(&target, &files);
    let clock = RealClock;
    let done = AtomicBool::new(false);
    let number = |path: &Path, name: &str| -> u64 {
        let bytes = read(path, name);
        let text = bytes[..20].to_vec();
        assert!(
            bytes.len() == 2_000 && bytes.chunks(20).all(|part| part == text),
            "torn"
        );
        String::from_utf8(text)
            .expect("digits")
            .trim_start()
            .parse()
            .expect("a number")
    };
    let content = |n: u64| format!("{n:>20}").repeat(100).into_bytes();
    writer
        .publish(&[(A, content(0)), (B, content(0))], clock.now())
        .expect("publish");
    let reads: Vec<u64> = std::thread::scope(|scope| {
        let pairs = |first: &'static str, second: &'static str| {
            let (mut last, mut reads) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let (x, y) = (number(path, first), number(path, second));
                assert!(
                    last <= x && x <= y,
                    "{second} is older than {first}: {last} {x} {y}"
                );
                (last, reads) = (y, reads + 1);
            }
            reads
        };
        let generation = || {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let dir = path.join(fs::read_link(path.join("..data")).expect("..data"));
                assert_eq!(number(&dir, "a"), number(&dir, "b"), "one generation");
                reads += 1;
            }
            reads
        };
        let threads = [
            scope.spawn(move || pairs("a", "b")),
            scope.spawn(move || pairs("b", "a")),
            scope.spawn(generation),
        ];
        for n in 1..=ROTATIONS {
            writer
                .publish(&[(A, content(n)), (B, content(n))], clock.now())
                .expect("publish");
        }
        done.store(true, Ordering::Relaxed);
        threads
            .map(|thread| thread.join().expect("no reader failed"))
            .into()
    });
    assert!(reads.iter().all(|reads| *reads > 0), "{reads:?}");
    println!("  {ROTATIONS} rotations, rounds of the readers: {reads:?}");
    target.clear().expect("clear");
}

fn overwritten(path: &Path) {
    let (target, mut writer) = started(path, &two(APP));
    writer
        .publish(&[(A, vec![b'x'; 5_000]), (B, vec![b'y'; 5_000])], at(0))
        .expect("publish");
    let looks = (peek(&path.join("a")), peek(&path.join("b")));
    let reader = fs::File::open(path.join("b")).expect("open");
    writer
        .publish(&[(A, b"2"), (B, b"2")], at(0))
        .expect("publish");
    assert_eq!(peeked(&looks.0), vec![b'x'; 5_000], "still in its grace");
    writer.sweep(at(1));
    assert_eq!(peeked(&looks.0), vec![0; 5_000], "overwritten");
    assert_eq!(peeked(&looks.1), vec![b'y'; 5_000], "somebody has it open");
    drop(reader);
    writer.sweep(at(2));
    assert_eq!(
        peeked(&looks.1),
        vec![0; 5_000],
        "overwritten as soon as it was closed"
    );

    let last = peek(&path.join("a"));
    drop(writer);
    target.clear().expect("clear");
    assert_eq!(peeked(&last), b"\0", "overwritten at the end");
}

fn one_agent(path: &Path) {
    let files = two(ME);
    let (first, mut writer) = started(path, &files);
    writer.publish(&[(A, b"1")], at(0)).expect("publish");
    assert!(matches!(refusal(path, &files), RefusalCause::Held));
    assert_eq!(mounts_at(path).len(), 1, "the refused one left nothing");
    let left = peek(&path.join("a"));
    // What a kill does: no cleaning.
    drop((first, writer));

    let (second, _) = started(path, &files);
    assert_eq!(mounts_at(path).len(), 1, "the dead one's mount is gone");
    assert_eq!(peeked(&left), b"\0", "and what was in it");
    second.clear().expect("clear");

    given_tmpfs(path, "tmpfs", "size=64k");
    let lock = fs::File::open(path).expect("open");
    lock.try_lock().expect("lock");
    assert!(
        matches!(refusal(path, &files), RefusalCause::Held),
        "not even by mounting over it"
    );
    detach(path);
}

fn no_directory(path: &Path) {
    let missing = prepare(&path.join("missing"), &[])
        .expect_err("no such directory")
        .to_string();
    assert!(
        missing.contains("/missing: No such file or directory"),
        "{missing}"
    );
    fs::write(path.join("file"), "").expect("write");
    assert!(matches!(
        refusal(&path.join("file"), &[]),
        RefusalCause::Open(_)
    ));
}

// With fewer rights.

const USER: &[&str] = &["--reuid", "1000", "--regid", "1000", "--clear-groups"];
const ROOT_CHOWN: &[&str] = &["--inh-caps=-all", "--bounding-set=-all,+chown"];
const ROOT_NOTHING: &[&str] = &["--inh-caps=-all", "--bounding-set=-all"];

/// Runs `case` as `who` (arguments of `setpriv`) in directory `dir`.
fn child(who: &[&str], case: &str, dir: &Path) {
    let program = dir.with_file_name("program");
    if !program.exists() {
        fs::copy("/proc/self/exe", &program).expect("a copy that uid 1000 can start");
    }
    let status = Command::new("setpriv")
        .args(who)
        .arg(program)
        .args(["--child", case])
        .arg(dir)
        .status();
    let status = status.expect("setpriv is needed: apt-get install util-linux");
    assert!(status.success(), "{case} as {who:?}: {status}");
}

/// A tmpfs such as a container is given; it goes with the value.
struct Given(PathBuf);

impl Given {
    fn new(path: &Path, name: &str, kind: &str, options: &str) -> Self {
        let path = path.join(name);
        fs::create_dir(&path).expect("mkdir");
        given_tmpfs(&path, kind, options);
        Self(path)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

fn refused_for_others(path: &Path) {
    // Temporary files may be in memory themselves; an overlay, such as a container's root, is a
    // disk to everybody.
    for part in ["upper", "work", "lower"] {
        fs::create_dir(path.join(part)).expect("mkdir");
    }
    let layers = format!(
        "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
        path.display()
    );
    let disk = Given::new(path, "disk", "overlay", &layers);
    fs::set_permissions(&disk.0, fs::Permissions::from_mode(0o1777)).expect("chmod");
    child(USER, "disk", &disk.0);
    child(ROOT_NOTHING, "disk", &disk.0);
    assert_eq!(names(&disk.0), [""; 0], "nothing was made on the disk");
    drop(disk);
    for (name, kind, options) in [
        ("ramfs", "ramfs", "mode=1777"),
        ("endless", "tmpfs", "mode=1777,size=0"),
    ] {
        child(USER, "unlimited", &Given::new(path, name, kind, options).0);
    }
    child(
        USER,
        "unwritable",
        &Given::new(path, "shut", "tmpfs", "size=64k,mode=755").0,
    );
    child(
        ROOT_CHOWN,
        "unwritable",
        &Given::new(path, "others", "tmpfs", "size=64k,mode=755,uid=1000").0,
    );
}

fn links_are_not_followed(path: &Path) {
    let (trap, victim) = (
        Given::new(path, "trap", "tmpfs", "size=64k,mode=1777"),
        path.join("victim"),
    );
    let files = trap.0.join("..files");
    fs::write(&victim, "root's").expect("write");
    fs::create_dir(&files).expect("mkdir");
    symlink(&victim, files.join("1.0")).expect("symlink");
    chown(&files, Some(1000), Some(1000)).expect("chown");
    let before = fs::metadata(&victim).expect("stat");
    child(ROOT_CHOWN, "planted", &trap.0);
    let after = fs::metadata(&victim).expect("stat");
    assert_eq!(
        (after.uid(), after.mode(), read(path, "victim")),
        (0, before.mode(), b"root's".to_vec())
    );
}

fn given_to_others(path: &Path) {
    for (name, options) in [
        ("swarm", "size=1m,mode=1777"),
        ("volume", "size=1m,mode=0700,uid=1000,gid=1000"),
    ] {
        let given = Given::new(path, name, "tmpfs", options);
        fs::write(given.0.join("theirs"), "x").expect("a file of somebody else");
        child(USER, "given", &given.0);
        child(USER, "given-again", &given.0);
        assert_eq!(
            names(&given.0),
            ["theirs"],
            "{name}: only what is ours was removed"
        );
    }
    child(
        ROOT_CHOWN,
        "chown",
        &Given::new(path, "chown", "tmpfs", "size=1m,mode=755").0,
    );
}

fn disk_is_refused(path: &Path) {
    let refusal = prepare(path, &[]).expect_err("a disk");
    let RefusalCause::NotMemory { kind: Some(_), .. } = &refusal.cause else {
        panic!("{refusal}")
    };
    let words = refusal.to_string();
    assert!(
        words.contains("not in memory")
            && words.contains("mounting a tmpfs there failed: fsopen(tmpfs): ")
            && words.contains("hint: "),
        "{words}"
    );
}

fn unwritable(path: &Path) {
    let words = prepare(path, &[]).expect_err("not writable").to_string();
    assert!(
        words.contains("may not create files in") && words.contains("which is of uid "),
        "{words}"
    );
}

fn unlimited(path: &Path) {
    assert!(matches!(refusal(path, &[]), RefusalCause::Unlimited(_)));
    assert_eq!(names(path), [""; 0]);
}

/// As root where another user has made what looks like a dead agent's.
fn planted(path: &Path) {
    assert!(matches!(refusal(path, &[]), RefusalCause::Leftovers(_)));
}

/// As uid 1000 in a tmpfs that the container was given; ends as if it was killed.
fn given(path: &Path) {
    let files = two(APP);
    let words = prepare(path, &[file("a", ME, 0o400)])
        .expect_err("no CAP_CHOWN")
        .to_string();
    assert!(
        words.contains("cannot create files for uid 0, gid 0 in")
            && words.contains("add CAP_CHOWN"),
        "{words}"
    );
    assert!(matches!(
        refusal(path, &[file("theirs", APP, 0o400)]),
        RefusalCause::Taken(_)
    ));
    assert!(!needs_chown(&files));
    let (_target, mut writer) = started(path, &files);
    assert!(matches!(refusal(path, &files), RefusalCause::Held));
    writer
        .publish(&[(A, b"1"), (B, b"1")], at(0))
        .expect("publish");
    writer.publish(&[(A, b"2")], at(9)).expect("publish");
    assert_eq!(
        (read(path, "a"), read(path, "b")),
        (b"2".to_vec(), b"1".to_vec())
    );
    writer
        .publish_state("status.json", b"{}")
        .expect("as anybody");
}

fn given_again(path: &Path) {
    assert_eq!(
        names(path),
        [
            "..1", "..2", "..baofs", "..data", "..files", "a", "b", "theirs"
        ],
        "left by the killed one"
    );
    let left = fs::canonicalize(path.join("a")).expect("the content");
    let left = peek(&left);
    let (target, mut writer) = started(path, &two(APP));
    assert_eq!(peeked(&left), b"\0", "overwritten by the next one");
    assert_eq!(names(path), ["..files", "theirs"]);
    writer
        .publish(&[(A, b"3"), (B, b"3")], at(0))
        .expect("publish");
    assert_eq!(read(path, "a"), b"3");
    target.clear().expect("clear");
}

/// Root with nothing but `CAP_CHOWN`: another user's files, unchanged ones kept, old ones
/// overwritten.
fn only_chown(path: &Path) {
    let (target, mut writer) = started(path, &two(APP));
    writer
        .publish(&[(A, b"1"), (B, b"1")], at(0))
        .expect("publish");
    let (look, b) = (
        peek(&path.join("a")),
        fs::metadata(path.join("b")).expect("stat").ino(),
    );
    writer.publish(&[(A, b"2")], at(0)).expect("publish");
    writer
        .publish_state("status.json", b"{}")
        .expect("without a right to override modes");
    writer.publish_state("status.json", b"{ }").expect("again");
    writer.sweep(at(1));
    let (stat, store) = (
        fs::metadata(path.join("a")).expect("stat"),
        names(&path.join("..files")),
    );
    assert_eq!(
        (stat.uid(), stat.gid(), stat.mode()),
        (1000, 1000, 0o100_400)
    );
    assert_eq!(fs::metadata(path.join("b")).expect("stat").ino(), b);
    assert_eq!(store, ["1.1", "2.0"], "a's old content is unlinked");
    // The old content was made ours to overwrite it, so it can be looked at.
    assert_eq!(peeked(&look), b"\0");
    target.clear().expect("clear");
    assert_eq!(names(path), [""; 0]);
}
