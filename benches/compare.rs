//! baofs beside `bao agent`, doing the same job on the same server: ten files from one database
//! lease and eight KV v2 secrets. Prints figures and how they stand to the aims; a miss is no
//! failure, as a busy machine may cause it.

mod measure;
#[allow(dead_code, reason = "the tests use the rest of it")]
#[path = "../tests/rig/mod.rs"]
mod rig;

use baofs::clock::{Clock, RealClock};
use baofs::status::{DIRECTORY, FILE, Report};
use measure::{is_agent, median, micros, millis, one_open, proportional, wait_tightly};
use nix::sys::signal::Signal;
use rig::agent::{self, Agent, MOUNT, Setup};
use rig::process::{run, signal, status};
use rig::server::{CALM, Real, Tenant};
use rig::{World, bao, config, http, wait_until};
use serde_json::json;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Starts of each agent; the figure is the median.
const STARTS: usize = 9;
/// Opens of one file through each filesystem.
const OPENS: usize = 20_000;
/// Deaths of each role.
const DEATHS: usize = 50;

fn main() {
    let clock = RealClock;
    let real = std::sync::Arc::new(Real::start(std::net::Ipv4Addr::LOCALHOST));
    let tenant = real.tenant("bench", "bench", CALM);
    for n in 0..8 {
        tenant.put(
            &format!("kv{n}"),
            json!({ "value": format!("the value of secret number {n}") }),
        );
    }
    let mut table = Table::new();

    // A copy of its own: the server runs from the original, and shared pages would be counted by
    // half.
    let dir = tempfile::tempdir().expect("a directory");
    let (theirs, ours) = (
        stripped(&bao::binary(), &dir.path().join("bao")),
        stripped(&agent::binary(), &dir.path().join("baofs")),
    );
    table.row(
        "stripped binary, MB",
        megabytes(theirs),
        megabytes(ours),
        Some(30.0),
    );
    let job = |kind| Job {
        kind,
        tenant: &tenant,
        incumbent: dir.path().join("bao"),
    };
    let (incumbent, fuse, tmpfs) = (job(Kind::Incumbent), job(Kind::Fuse), job(Kind::Tmpfs));

    let (theirs, ours) = starts(&incumbent, &fuse, clock);
    table.row(
        "exec to the last of ten files, ms",
        millis(theirs),
        millis(ours),
        Some(5.0),
    );
    let server = median((0..STARTS).map(|_| server_alone(&tenant, clock)).collect());

    let (theirs, their_processes) = memory(&incumbent.start());
    let (ours, our_processes) = memory(&fuse.start());
    table.row(
        "memory, PSS of all its processes, MB",
        megabytes(theirs),
        megabytes(ours),
        Some(13.0),
    );

    let on_tmpfs = open_read_close(&tmpfs.start(), clock);
    let on_fuse = open_read_close(&fuse.start(), clock);
    let restarts = restarts(&fuse.start(), clock);

    println!("measured: {}\n{}", agent::binary().display(), table.text);
    println!("resident, MB: bao agent {their_processes}; baofs {our_processes}");
    println!(
        "the server alone, the same ten requests in sequence: {:.1} ms",
        millis(server)
    );
    let (fuse, tmpfs) = (micros(on_fuse), micros(on_tmpfs));
    println!(
        "open+read+close, median: {fuse:.1} us through FUSE, {tmpfs:.1} us on tmpfs ({:.1} times)",
        fuse / tmpfs
    );
    println!("restart to ready, of {DEATHS} deaths each:{restarts}");
}

/// Who serves.
#[derive(Clone, Copy)]
enum Kind {
    Incumbent,
    Fuse,
    Tmpfs,
}

/// Ten files, served by one of them.
struct Job<'a> {
    kind: Kind,
    tenant: &'a Tenant,
    /// The binary of `bao agent`.
    incumbent: PathBuf,
}

impl Job<'_> {
    fn setup(&self) -> Setup {
        let text = config::ten_files(self.tenant, MOUNT);
        match self.kind {
            Kind::Incumbent => Setup::incumbent(&self.incumbent, self.tenant, &text),
            Kind::Fuse => Setup::new(World::Fuse, self.tenant, &text),
            Kind::Tmpfs => Setup::new(World::Tmpfs, self.tenant, &text),
        }
    }

    /// Starts it and waits for its files.
    fn start(&self) -> Agent {
        let agent = self.setup().start();
        for name in names() {
            agent.read(&name);
        }
        agent
    }
}

fn names() -> Vec<String> {
    ["user", "password"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..8).map(|n| format!("kv{n}")))
        .collect()
}

/// Medians of alternating starts: theirs, ours.
fn starts(incumbent: &Job, own: &Job, clock: RealClock) -> (Duration, Duration) {
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        theirs.push(one_start(incumbent, clock));
        ours.push(one_start(own, clock));
    }
    (median(theirs), median(ours))
}

/// From exec to the last file readable. The room is made before; its shell waits at a pipe and then
/// becomes the agent.
fn one_start(job: &Job, clock: RealClock) -> Duration {
    let agent = job
        .setup()
        .prepare("mkfifo /etc/bao/go; read -r go </etc/bao/go")
        .start();
    let go = agent.etc("go");
    wait_until("the room is made", || go.exists().then_some(()));
    let mount = format!(
        "/proc/{}/root{MOUNT}",
        agent.entry().expect("the room has an inhabitant")
    );
    // Opening for writing waits until the shell has opened it for reading.
    let mut go = File::options()
        .write(true)
        .open(go)
        .expect("the pipe is there");
    go.write_all(b"go\n").expect("the shell reads it");
    drop(go);
    let start = clock.now();
    for name in names() {
        let path = format!("{mount}/{name}");
        wait_tightly(&agent, || {
            std::fs::read(&path).is_ok_and(|bytes| !bytes.is_empty())
        });
    }
    clock.now().since(start)
}

/// The requests of a start, one after the other, by nobody's agent.
fn server_alone(tenant: &Tenant, clock: RealClock) -> Duration {
    let address = tenant.url().replace("http://", "");
    let ask = |method: &str, path: &str, token: &str, body| {
        let answer = http::request(&address, method, path, token, body).expect("OpenBao answers");
        assert!(answer.status < 300, "{path}: {}", answer.status);
        answer.body
    };
    let start = clock.now();
    let login = json!({ "role_id": tenant.role_id, "secret_id": tenant.secret_id });
    let login = ask("POST", "auth/approle/login", "", Some(&login));
    let token = login["auth"]["client_token"]
        .as_str()
        .expect("a login gives a token");
    ask("GET", &tenant.creds(), token, None);
    for n in 0..8 {
        ask("GET", &tenant.kv(&format!("kv{n}")), token, None);
    }
    clock.now().since(start)
}

/// The proportional share of all processes of the agent in bytes, once it no longer moves, and each
/// one's resident size.
fn memory(agent: &Agent) -> (u64, String) {
    let processes: Vec<_> = agent
        .processes()
        .into_iter()
        .filter(|(pid, _)| is_agent(*pid))
        .collect();
    let share = || {
        processes
            .iter()
            .map(|(pid, _)| proportional(*pid))
            .sum::<u64>()
    };
    let mut before = 0;
    let steady = wait_until("the memory is steady", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = share();
        let moved = now.abs_diff(std::mem::replace(&mut before, now));
        (moved * 100 <= now).then_some(now)
    });
    let mut text = String::new();
    for (pid, name) in &processes {
        let resident = status(*pid, "VmRSS").unwrap_or_default();
        let kilobytes: f64 = resident.trim_end_matches(" kB").parse().unwrap_or(0.0);
        let _ = write!(
            text,
            "{}{name} {:.1}",
            if text.is_empty() { "" } else { ", " },
            kilobytes / 1024.0
        );
    }
    (steady, text)
}

fn open_read_close(agent: &Agent, clock: RealClock) -> Duration {
    let directory = File::open(agent.path(MOUNT)).expect("the mount is there");
    let mut times: Vec<_> = (0..OPENS)
        .map(|_| one_open(&directory, "kv0", clock))
        .collect();
    times.sort_unstable();
    times[OPENS / 2]
}

/// From a death of `serve` to the first read, and from one of `fetch` to its successor's first
/// report, both seen from outside.
fn restarts(agent: &Agent, clock: RealClock) -> String {
    let mount = agent.path(MOUNT);
    let (path, report) = (mount.join("kv0"), mount.join(DIRECTORY).join(FILE));
    let writer = || {
        let report = std::fs::read(&report).ok()?;
        serde_json::from_slice::<Report>(&report)
            .ok()
            .map(|report| report.roles.fetch)
    };
    let serve = deaths(
        agent,
        "serve",
        clock,
        || (),
        |()| std::fs::read(&path).is_ok(),
    );
    let fetch = deaths(agent, "fetch", clock, writer, |old| {
        writer().is_some_and(|new| Some(new) != *old)
    });
    let mut text = String::new();
    for (role, whole, aim) in [("serve", serve, 1.0), ("fetch", fetch, 5.0)] {
        let ready = births(agent, role);
        let (p50, max) = (ready[DEATHS / 2], ready[DEATHS - 1]);
        let verdict = if p50 < aim { "reached" } else { "missed" };
        let from_death = millis(whole[DEATHS / 2]);
        let _ = write!(
            text,
            "\n  {role} p50 {p50:.2} ms (aim below {aim:.0} ms: {verdict}), max {max:.2} ms; "
        );
        let _ = write!(
            text,
            "from KILL to the first {} p50 {from_death:.2} ms",
            if role == "serve" { "read" } else { "report" }
        );
    }
    text
}

/// How long after its birth each successor worked, by the agent's own log, in milliseconds, sorted.
fn births(agent: &Agent, role: &str) -> Vec<f64> {
    let time = |line: &str| {
        let (_, after) = line.split_once(&format!("agent was restarted role=\"{role}\" after="))?;
        let micros = after
            .trim()
            .strip_suffix("µs")
            .and_then(|text| text.parse::<f64>().ok());
        micros
            .map(|micros| micros / 1000.0)
            .or_else(|| after.trim().strip_suffix("ms")?.parse().ok())
    };
    let all = || agent.log().lines().filter_map(time).collect::<Vec<_>>();
    let mut times = wait_until("every birth is logged", || {
        Some(all()).filter(|times| times.len() == DEATHS)
    });
    times.sort_by(f64::total_cmp);
    times
}

/// Sorted times from a KILL until `is_back`, which gets what `before` found.
fn deaths<T>(
    agent: &Agent,
    role: &str,
    clock: RealClock,
    before: impl Fn() -> T,
    is_back: impl Fn(&T) -> bool,
) -> Vec<Duration> {
    let one = |_| {
        // It is not held back when it has lived for a while.
        std::thread::sleep(Duration::from_millis(50));
        let (pid, before) = (agent.role(role), before());
        let start = clock.now();
        signal(pid, Signal::SIGKILL);
        wait_tightly(agent, || is_back(&before));
        clock.now().since(start)
    };
    let mut times: Vec<_> = (0..DEATHS).map(one).collect();
    times.sort_unstable();
    times
}

/// Makes a stripped copy and tells its size.
fn stripped(binary: &Path, copy: &Path) -> u64 {
    run(Command::new("strip").arg("-o").arg(copy).arg(binary));
    std::fs::metadata(copy).expect("strip made it").len()
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Figures side by side.
struct Table {
    text: String,
}

impl Table {
    fn new() -> Self {
        Self {
            text: format!(
                "{:<38}{:>10}{:>10}{:>9}{:>8}  verdict\n",
                "", "bao agent", "baofs", "ratio", "aim"
            ),
        }
    }

    /// One figure; `aim` is how many times smaller ours should be.
    fn row(&mut self, what: &str, theirs: f64, ours: f64, aim: Option<f64>) {
        let times = theirs / ours;
        let ratio = format!("1/{times:.1}");
        let (aim, verdict) = match aim {
            Some(aim) if times >= aim => (format!("1/{aim:.0}"), "reached"),
            Some(aim) => (format!("1/{aim:.0}"), "missed"),
            None => (String::new(), ""),
        };
        let _ = writeln!(
            self.text,
            "{what:<38}{theirs:>10.1}{ours:>10.1}{ratio:>9}{aim:>8}  {verdict}"
        );
    }
}
