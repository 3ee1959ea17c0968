//! `baofs health` and `baofs status` as programs, on directories that hold reports made by hand,
//! and on applications that answer, refuse or say nothing. No server is needed, and no mount but
//! one that never answers.

use baofs::clock::{Clock, RealClock};
use baofs::status::{
    Condition, DIRECTORY, Detail, FILE, FORMAT, FileReport, Report, Roles, Served, Session,
    Trouble, WallsReport, seconds,
};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long before now the troubles of these reports began.
const SINCE: u64 = 200;

/// `baofs` with the words of `line` on a mount, with nothing of this process' environment.
fn command(mount: &Path, line: &str) -> Command {
    let program = std::env::var_os("BAOFS_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_baofs")), PathBuf::from);
    let mut command = Command::new(program);
    command
        .args(line.split_whitespace())
        .env_clear()
        .env("BAOFS_MOUNT", mount);
    command
}

/// Runs it: code, output, errors.
fn baofs(mount: &Path, line: &str) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command(mount, line).output().expect("baofs runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        status.code().expect("no signal ended it"),
        text(stdout),
        text(stderr),
    )
}

/// A directory with a file like the agent's report.
fn mount(content: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(dir.path().join(DIRECTORY)).expect("made");
    fs::write(dir.path().join(DIRECTORY).join(FILE), content).expect("written");
    dir
}

fn mount_of(report: &Report) -> TempDir {
    mount(&serde_json::to_vec(report).expect("JSON"))
}

/// A report that is due in a minute, less `late`.
fn report(files: Vec<FileReport>, late: Duration) -> Report {
    let now = seconds(RealClock.wall());
    let due = (RealClock.now().since_origin() + Duration::from_mins(1)).saturating_sub(late);
    Report {
        format: FORMAT,
        version: "0.1.0".into(),
        since: now - 7_500,
        written: now,
        due_monotonic_ms: u64::try_from(due.as_millis()).expect("small"),
        detail: Detail::Full,
        served: Served {
            how: "tmpfs".into(),
            fallback: Some("no /dev/fuse".into()),
            swap: None,
        },
        walls: WallsReport::default(),
        roles: Roles {
            supervise: 1,
            fetch: 7,
            serve: None,
            ..Roles::default()
        },
        session: Session {
            ends: Some(now + 4_000),
            ..Session::default()
        },
        files,
    }
}

fn file(name: &str, condition: Condition) -> FileReport {
    let now = seconds(RealClock.wall());
    let trouble = (condition != Condition::Fresh).then(|| Trouble {
        cause: "OpenBao is sealed".into(),
        since: now - SINCE,
    });
    let (changed, lease_ends) = (Some(now - 3_600), Some(now - 30));
    FileReport {
        name: name.into(),
        condition,
        changes: 3,
        version: Some(12),
        changed,
        lease_ends,
        next: None,
        strict: false,
        trouble,
    }
}

#[test]
fn every_verdict_has_its_code_and_its_words() {
    let fresh = || file("user", Condition::Fresh);
    let strict = FileReport {
        strict: true,
        ..file("db", Condition::Ended)
    };
    for (files, code, strict_code, word, parts) in [
        (vec![fresh()], 0, 0, "healthy", vec![]),
        (
            vec![fresh(), file("db", Condition::Stale)],
            0,
            1,
            "degraded",
            vec!["db: stale: OpenBao is sealed (for 3m2"],
        ),
        (
            vec![file("db", Condition::Ended), fresh()],
            0,
            1,
            "degraded",
            vec!["db: past its life: OpenBao is sealed (for 3m2"],
        ),
        (
            vec![strict, file("x", Condition::Stale)],
            1,
            1,
            "unhealthy",
            vec!["db: past its life", "x: stale"],
        ),
        (
            vec![fresh(), file("db", Condition::Missing)],
            1,
            1,
            "unhealthy",
            vec!["db: has no value yet: OpenBao is sealed"],
        ),
    ] {
        let dir = mount_of(&report(files, Duration::ZERO));
        let (found, out, err) = baofs(dir.path(), "health");
        assert_eq!((found, err.as_str()), (code, ""), "{out}");
        assert_eq!(out.lines().count(), parts.len().max(1), "{out}");
        assert!(
            out.lines().all(|line| line.split(':').next() == Some(word)),
            "{word}: {out}"
        );
        assert!(
            parts
                .iter()
                .zip(out.lines())
                .all(|(part, line)| line.contains(part)),
            "{parts:?}: {out}"
        );
        assert_eq!(
            baofs(dir.path(), "health --strict").0,
            strict_code,
            "{word}"
        );
    }
}

#[test]
fn an_agent_that_does_not_work_is_unhealthy() {
    let fresh = || vec![file("db", Condition::Fresh)];
    let future = Report {
        format: FORMAT + 1,
        ..report(fresh(), Duration::ZERO)
    };
    let whole = serde_json::to_vec(&report(fresh(), Duration::ZERO)).expect("JSON");
    for (dir, part) in [
        (
            mount_of(&report(fresh(), Duration::from_secs(80))),
            ": fetch (pid 7) hangs or is dead",
        ),
        (mount_of(&future), "has format 3"),
        (mount(b"geheim"), "not a report of baofs"),
        (mount(&whole[..whole.len() / 2]), "not a report of baofs"),
        (mount(b""), "not a report of baofs"),
        (
            tempfile::tempdir().expect("a directory"),
            "no agent serves there",
        ),
    ] {
        let (code, out, err) = baofs(dir.path(), "health");
        assert_eq!((code, err.as_str()), (1, ""), "{out}");
        assert!(
            out.starts_with("unhealthy: ") && out.contains(part) && !out.contains("geheim"),
            "{part}: {out}"
        );
    }
    let dir = mount(b"");
    let path = dir.path().join(DIRECTORY).join(FILE);
    fs::remove_file(&path).expect("removed");
    fs::create_dir(path).expect("made");
    let (code, out, _) = baofs(dir.path(), "health");
    assert!(
        code == 1 && out.contains("the file is not a regular file"),
        "{out}"
    );
}

#[test]
fn the_flag_wins_over_the_environment() {
    let (healthy, empty) = (
        mount_of(&report(vec![], Duration::ZERO)),
        tempfile::tempdir().expect("a directory"),
    );
    let line = format!("health --mount {}", healthy.path().display());
    assert_eq!(
        baofs(empty.path(), &line),
        (0, "healthy\n".into(), String::new())
    );
    assert_eq!(baofs(Path::new(""), &line).0, 0);
}

/// A report whose every text is hostile.
const HOSTILE: &str = r#"{"format":2,"version":"\u001b[2J\u009b1m","since":1,"written":1,"due_monotonic_ms":18446744073709551615,
    "served":{"how":"\u001b]0;x\u0007","fallback":"\u202e\u2066"},"roles":{"supervise":1,"fetch":7},
    "session":{"trouble":{"cause":"\u001b[31m\n\u200b","since":1}},
    "files":[{"name":"\u001b[1A\nforged","condition":"stale","changes":1,"trouble":{"cause":"\r\u001b[K\u2028","since":1}}]}"#;

#[test]
fn texts_of_a_report_are_cleaned() {
    let dir = mount(HOSTILE.as_bytes());
    for (line, parts) in [
        (
            "status",
            &[
                "agent   \u{fffd}[2J\u{fffd}1m",
                "served  \u{fffd}]0;x\u{fffd}",
                "\u{fffd}[1A forged  stale",
            ][..],
        ),
        ("status --json", &["\u{fffd}[1A forged"]),
        (
            "health",
            &[
                "degraded: login: \u{fffd}[31m \u{fffd}",
                "degraded: \u{fffd}[1A forged: stale:  \u{fffd}[K  (for",
            ],
        ),
    ] {
        let (code, out, err) = baofs(dir.path(), line);
        assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
        let bad = |c: char| {
            (c.is_control() && c != '\n') || "\u{202e}\u{2066}\u{200b}\u{2028}".contains(c)
        };
        assert!(
            !out.contains(bad) && !out.contains("\nforged"),
            "{line}: {out:?}"
        );
        assert!(parts.iter().all(|part| out.contains(part)), "{line}: {out}");
    }
}

/// What an application may put in the report's place, and what is said of it.
type Plant = fn(&Path);

const PLANTS: [(Plant, &str); 8] = [
    (
        |dir| symlink("/etc/shadow", dir.join("..baofs/status.json")).expect("planted"),
        "the file is a link",
    ),
    (
        |dir| symlink("../real.json", dir.join("..baofs/status.json")).expect("planted"),
        "the file is a link",
    ),
    (
        |dir| mkfifo(&dir.join("..baofs/status.json"), Mode::S_IRWXU).expect("planted"),
        "the file is not a regular file",
    ),
    (
        |dir| fs::create_dir(dir.join("..baofs/status.json")).expect("planted"),
        "the file is not a regular file",
    ),
    (
        |dir| drop(UnixListener::bind(dir.join("..baofs/status.json")).expect("planted")),
        "cannot read",
    ),
    (
        |dir| {
            fs::rename(dir.join("real.json"), dir.join("..baofs/status.json")).expect("planted");
            chown(dir.join("..baofs/status.json"), Some(1000), Some(1000)).expect("root");
        },
        "the file belongs to uid 1000, but the directory to uid 0",
    ),
    (
        |dir| {
            fs::rename(dir.join("..baofs"), dir.join("elsewhere")).expect("moved");
            fs::rename(dir.join("real.json"), dir.join("elsewhere/status.json")).expect("moved");
            symlink("elsewhere", dir.join("..baofs")).expect("planted");
        },
        "Not a directory",
    ),
    (
        |dir| {
            let file = fs::File::create(dir.join("..baofs/status.json")).expect("planted");
            file.set_len((16 << 20) + 1).expect("sparse");
        },
        "the file is larger than",
    ),
];

#[test]
fn what_an_application_planted_is_neither_followed_nor_printed() {
    for (n, (plant, part)) in PLANTS.into_iter().enumerate() {
        let dir = mount(b"");
        fs::remove_file(dir.path().join(DIRECTORY).join(FILE)).expect("removed");
        let whole = serde_json::to_vec(&report(vec![], Duration::ZERO)).expect("JSON");
        fs::write(dir.path().join("real.json"), whole).expect("written");
        plant(dir.path());
        let (code, out, err) = baofs(dir.path(), "status --json");
        assert_eq!((code, out.as_str()), (1, ""), "plant {n}: {err}");
        assert!(
            err.contains(part) && !err.contains("root:"),
            "plant {n}: {part}: {err}"
        );
        let (code, out, err) = baofs(dir.path(), "health");
        assert_eq!((code, err.as_str()), (1, ""), "plant {n}: {out}");
        assert!(
            out.starts_with("unhealthy: ") && out.contains(part),
            "plant {n}: {part}: {out}"
        );
    }
}

#[test]
fn a_request_that_no_signal_ends_holds_nobody() {
    // A thread may have a mount namespace of its own, which its children get.
    let stuck = || {
        unshare(CloneFlags::CLONE_NEWNS)
            .expect("a mount namespace needs root: run the tests with sudo");
        mount_at(
            None,
            Path::new("/"),
            None,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            "",
        );
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut device = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .expect("FUSE");
        let options = format!(
            "fd={},rootmode=40755,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        mount_at(
            Some("baofs"),
            dir.path(),
            Some("fuse"),
            MsFlags::empty(),
            &options,
        );
        greet(&mut device);
        let check = command(dir.path(), "health")
            .stdout(Stdio::piped())
            .spawn()
            .expect("baofs runs");
        // The kernel does not let a process go while its request is ours.
        assert_eq!(take(&mut device)[4], 1, "a LOOKUP");
        let output = check
            .wait_with_output()
            .expect("it ends, and nobody else holds its output");
        drop(device);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            said.contains("no answer within 2s")
                && said.contains(dir.path().to_str().expect("UTF-8")),
            "{said}"
        );
    };
    std::thread::spawn(stuck).join().expect("the check gave up");
}

fn mount_at(source: Option<&str>, at: &Path, kind: Option<&str>, flags: MsFlags, options: &str) {
    nix::mount::mount(source, at, kind, flags, Some(options)).expect("a mount");
}

/// The next request of the kernel: a `fuse_in_header` and what follows.
fn take(device: &mut fs::File) -> Vec<u8> {
    let mut request = vec![0; 1 << 20];
    let len = device.read(&mut request).expect("a request");
    request.truncate(len);
    request
}

/// Answers INIT: a `fuse_out_header` and a `fuse_init_out`.
fn greet(device: &mut fs::File) {
    let unique = take(device)[8..16].to_vec();
    let mut answer = [80_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
    answer.extend(unique);
    // Version 7.31, no read-ahead, no flags, no queue, and 64 KiB in one write.
    answer.extend(
        [7_u32, 31, 0, 0, 0, 1 << 16]
            .into_iter()
            .flat_map(u32::to_ne_bytes),
    );
    answer.resize(80, 0);
    device.write_all(&answer).expect("the kernel takes it");
}

/// An application that answers the first connection with `answer`, or keeps it and says nothing.
fn application(answer: Option<&'static str>) -> (u16, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let port = listener.local_addr().expect("bound").port();
    let serve = move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut asked = Vec::new();
        let mut piece = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            asked.extend_from_slice(&piece[..n]);
            if let Some(answer) = answer.filter(|_| asked.ends_with(b"\r\n\r\n")) {
                stream
                    .write_all(answer.as_bytes())
                    .expect("the check reads");
                break;
            }
        }
        String::from_utf8(asked).expect("a request")
    };
    (port, std::thread::spawn(serve))
}

#[test]
fn the_application_is_asked() {
    let dir = mount_of(&report(vec![], Duration::ZERO));
    for (answer, code, part) in [
        (
            Some("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\nx"),
            0,
            "healthy",
        ),
        (Some("HTTP/1.1 204 No Content\r\n\r\n"), 0, "healthy"),
        (
            Some("HTTP/1.0 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n"),
            0,
            "healthy",
        ),
        (
            Some("HTTP/1.1 500 Internal Server Error\r\n\r\n"),
            1,
            "answered 500",
        ),
        (Some("HTTP/1.1 404 Not Found\r\n\r\n"), 1, "answered 404"),
        (Some("SSH-2.0-OpenSSH_9.2\r\n"), 1, "no HTTP answer"),
        (Some("HTTP/1.1 500 \x1b[2J\r\n\r\n"), 1, "no HTTP answer"),
        (Some(""), 1, "no HTTP answer"),
        (None, 1, "no answer within 2s"),
    ] {
        let (port, thread) = application(answer);
        let (found, out, err) = baofs(
            dir.path(),
            &format!("health --http http://127.0.0.1:{port}/up?a=b"),
        );
        assert_eq!((found, err.as_str()), (code, ""), "{answer:?}: {out}");
        assert!(out.contains(part), "{answer:?}: {out}");
        let asked = thread.join().expect("asked");
        assert!(
            asked.starts_with("GET /up?a=b HTTP/1.1\r\n")
                && asked.contains(&format!("host: 127.0.0.1:{port}\r\n")),
            "{asked}"
        );
    }
}

#[test]
fn a_connection_is_enough_for_tcp() {
    let dir = mount_of(&report(vec![], Duration::ZERO));
    let (port, thread) = application(None);
    assert_eq!(
        baofs(dir.path(), &format!("health --tcp localhost:{port}")),
        (0, "healthy\n".into(), String::new())
    );
    assert_eq!(thread.join().expect("asked"), "");
    // The listener is gone.
    for line in [
        format!("--tcp 127.0.0.1:{port}"),
        format!("--http http://127.0.0.1:{port}/"),
    ] {
        let (code, out, _) = baofs(dir.path(), &format!("health {line}"));
        assert_eq!(code, 1);
        assert!(
            out.starts_with(&format!(
                "unhealthy: probe of 127.0.0.1:{port}: no connection: "
            )),
            "{out}"
        );
    }
}

#[test]
fn wrong_words_are_64() {
    for line in [
        "health --tcp",
        "health --http https://localhost/",
        "health --tcp a:1 --http http://a/",
        "health x",
        "status --strict",
    ] {
        let (code, out, err) = baofs(Path::new("/nowhere"), line);
        assert_eq!((code, out.as_str()), (64, ""), "{line}: {err}");
    }
}

#[test]
fn the_status_is_a_table_or_the_file() {
    let user = FileReport {
        lease_ends: None,
        version: None,
        ..file("user", Condition::Fresh)
    };
    let report = report(
        vec![user, file("db_password", Condition::Ended)],
        Duration::ZERO,
    );
    let dir = mount_of(&report);
    let (code, out, err) = baofs(dir.path(), "status");
    assert_eq!((code, err.as_str()), (0, ""));
    for part in [
        "agent   0.1.0, up 2h5m, supervise 1, fetch 7\n",
        "served  tmpfs, because FUSE is refused: no /dev/fuse\n",
        "login   token ends in 1h6m\n",
        "\nFILE         CONDITION  CHANGES  VERSION  AGE  LEASE ENDS  NEXT  TROUBLE\nuser         fresh      3        -        1h   -",
        "\ndb_password  ended      3        12       1h   3",
        "OpenBao is sealed (for 3m2",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    let (code, out, _) = baofs(dir.path(), "status --json");
    assert_eq!((code, serde_json::from_str(&out).ok()), (0, Some(report)));
    let (code, out, err) = baofs(Path::new("/nowhere"), "status");
    assert!(
        code == 1 && out.is_empty() && err.contains("no agent serves there"),
        "{err}"
    );
}
