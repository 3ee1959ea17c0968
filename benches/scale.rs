//! What one secret more costs: 10 to 10,000 files, each a field of a KV v2 secret with 200 fields,
//! on a real OpenBao. Prints a row for each number of files, with how the last row stands to the
//! aims; a miss is no failure, as a busy machine may cause it.

#[allow(dead_code, reason = "the benches share it")]
mod measure;
#[allow(dead_code, reason = "the tests use the rest of it")]
#[path = "../tests/rig/mod.rs"]
mod rig;

use baofs::clock::{Clock, Moment, RealClock};
use baofs::status::{DIRECTORY, FILE};
use measure::{is_agent, median, micros, millis, one_open, proportional, wait_tightly};
use nix::sys::signal::Signal;
use rig::agent::{self, Agent, MOUNT, Setup};
use rig::process::run;
use rig::server::{CALM, Real, Tenant};
use rig::{World, config, http};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How many files are served, a row each.
const FILES: [usize; 4] = [10, 100, 1_000, 10_000];
/// Fields of one secret.
const FIELDS: usize = 200;
/// Opens of one file; the figure is the median.
const OPENS: usize = 5_000;
/// Changes of one secret; the figure is the median.
const CHANGES: usize = 5;
/// Seconds without an event in which the CPU time of the agent is counted.
const IDLE: u64 = 60;
/// Sizes of the arena in MiB, of which the first that the files fit into is taken.
const SIZES: [usize; 5] = [1, 2, 4, 6, 8];

/// What was measured with one number of files.
struct Row {
    files: usize,
    size: usize,
    check: Duration,
    /// From exec to the last file, without the time that the server needs for the same requests.
    start: Duration,
    open: Duration,
    /// From the answer with a changed secret to the last of its files.
    change: Duration,
    /// CPU time in the idle time.
    idle: Duration,
    /// The proportional share of all roles.
    memory: u64,
    /// Whether the report is there.
    report: bool,
}

impl Row {
    fn text(&self) -> String {
        format!(
            "{:>5}{:>12}{:>12.1}{:>12.1}{:>22.1}{:>13.1}{:>15.0}{:>14}   {}",
            self.files,
            self.size,
            millis(self.check),
            millis(self.start),
            micros(self.open),
            millis(self.change),
            millis(self.idle),
            self.memory / 1024,
            if self.report { "yes" } else { "missing" }
        )
    }
}

fn main() {
    let real = Arc::new(Real::start(Ipv4Addr::LOCALHOST));
    let tenant = real.tenant("scale", "scale", CALM);
    for secret in 0..FILES[FILES.len() - 1].div_ceil(FIELDS) {
        put(&tenant, secret, 0);
    }
    println!("measured: {}", agent::binary().display());
    println!(
        "files   size, MiB   check, ms   start, ms   open+read+close, us   change, ms   CPU idle, ms   memory, KiB   report"
    );
    let proxy = Proxy::start(&real.bao.address);
    let rows: Vec<_> = FILES
        .into_iter()
        .map(|files| measure(&tenant, &proxy, files))
        .collect();
    print!("{}", aims(&rows[0], &rows[rows.len() - 1]));
}

fn measure(tenant: &Tenant, proxy: &Proxy, files: usize) -> Row {
    let clock = RealClock;
    let check = check(tenant, files, clock);
    let (agent, size, start) = SIZES
        .into_iter()
        .find_map(|size| started(tenant, proxy, files, size, clock))
        .expect("8 MiB are enough");
    let server = server_alone(tenant, files.div_ceil(FIELDS), clock);
    let directory = File::open(agent.path(MOUNT)).expect("the mount is there");
    let open = median(
        (0..OPENS)
            .map(|_| one_open(&directory, &name(files / 2), clock))
            .collect(),
    );
    let change = median(
        (1..=CHANGES)
            .map(|round| change(tenant, &agent, proxy, files, round))
            .collect(),
    );
    let idle = idle(&agent);
    let roles = agent
        .processes()
        .into_iter()
        .filter(|(pid, _)| is_agent(*pid));
    let row = Row {
        files,
        size,
        check,
        start: start.saturating_sub(server),
        open,
        change,
        idle,
        memory: roles.map(|(pid, _)| proportional(pid)).sum(),
        report: std::fs::read(agent.path(MOUNT).join(DIRECTORY).join(FILE)).is_ok(),
    };
    println!("{}", row.text());
    row
}

fn name(file: usize) -> String {
    format!("f{file}")
}

fn value(file: usize, round: usize) -> String {
    format!("the value of file {file} in round {round}")
}

/// Writes one secret, with a value for each of its files.
fn put(tenant: &Tenant, secret: usize, round: usize) {
    let fields = (secret * FIELDS..(secret + 1) * FIELDS)
        .map(|file| (name(file), Value::from(value(file, round))));
    tenant.put(&format!("s{secret}"), Value::Object(fields.collect()));
}

/// The configuration; secrets are read again on HUP alone.
fn text(tenant: &Tenant, server: &str, files: usize, size: usize) -> String {
    let mut text = config::login(server);
    let _ = writeln!(
        text,
        "app {{\n  on_hup = \"refresh\"\n}}\nfilesystem {{\n  size = \"{size}MiB\"\n}}"
    );
    let _ = writeln!(
        text,
        "template_config {{\n  static_secret_render_interval = \"1h\"\n}}"
    );
    for file in 0..files {
        let (name, path) = (name(file), tenant.kv(&format!("s{}", file / FIELDS)));
        let _ = writeln!(
            text,
            "secret \"{name}\" {{\n  path = \"{path}\"\n  field = \"{name}\"\n}}"
        );
    }
    text
}

/// The median of `baofs check`.
fn check(tenant: &Tenant, files: usize, clock: RealClock) -> Duration {
    let file = tempfile::NamedTempFile::with_suffix(".hcl").expect("a file");
    std::fs::write(&file, text(tenant, &tenant.url(), files, 8)).expect("it is written");
    let one = |_| {
        let start = clock.now();
        run(Command::new(agent::binary())
            .arg("check")
            .arg("--config")
            .arg(file.path()));
        clock.now().since(start)
    };
    median((0..5).map(one).collect())
}

/// Starts an agent whose arena has `size` MiB, and waits for the last file; `None` when that is too
/// small.
fn started(
    tenant: &Tenant,
    proxy: &Proxy,
    files: usize,
    size: usize,
    clock: RealClock,
) -> Option<(Agent, usize, Duration)> {
    let agent = Setup::new(
        World::Fuse,
        tenant,
        &text(tenant, &format!("http://{}", proxy.address), files, size),
    )
    .options(&["--wait", "120s"])
    .start();
    let is_refused = || agent.log().contains("hint: raise `filesystem.size`");
    // Until the room is made, which takes the same time each time. A refused agent ends at once.
    wait_tightly(&agent, || {
        is_refused() || agent.entry().is_some_and(is_agent)
    });
    let start = clock.now();
    loop {
        if agent.try_read(&name(files - 1)).is_some() {
            return Some((agent, size, clock.now().since(start)));
        }
        if is_refused() {
            return None;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The requests of a refresh, one after the other, by nobody's agent.
fn server_alone(tenant: &Tenant, secrets: usize, clock: RealClock) -> Duration {
    let address = tenant.url().replace("http://", "");
    let login = json!({ "role_id": tenant.role_id, "secret_id": tenant.secret_id });
    let login = http::request(&address, "POST", "auth/approle/login", "", Some(&login))
        .expect("OpenBao answers");
    let token = login.body["auth"]["client_token"]
        .as_str()
        .expect("a login gives a token");
    let start = clock.now();
    for secret in 0..secrets {
        http::request(
            &address,
            "GET",
            &tenant.kv(&format!("s{secret}")),
            token,
            None,
        )
        .expect("OpenBao answers");
    }
    clock.now().since(start)
}

/// From the answer with a changed secret to the last of its files.
fn change(tenant: &Tenant, agent: &Agent, proxy: &Proxy, files: usize, round: usize) -> Duration {
    let last = FIELDS.min(files) - 1;
    proxy.look_for(&value(last, round));
    put(tenant, 0, round);
    agent.signal(Signal::SIGHUP);
    let file = agent.path(MOUNT).join(name(last));
    wait_tightly(agent, || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == value(last, round))
    });
    RealClock.now().since(proxy.seen())
}

/// Forwards connections to the server, and notes when a text came from there.
#[derive(Clone)]
struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<(String, Option<Moment>)>>,
}

impl Proxy {
    /// Forwards to `server` until this program ends.
    fn start(server: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (proxy, server) = (
            Self {
                address,
                seen: Arc::default(),
            },
            server.to_owned(),
        );
        let seen = proxy.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&server).expect("OpenBao accepts");
                let (from, to) = (
                    client.try_clone().expect("a descriptor"),
                    server.try_clone().expect("a descriptor"),
                );
                std::thread::spawn(move || forward(from, to, |_| ()));
                let seen = seen.clone();
                std::thread::spawn(move || forward(server, client, |text| seen.look(text)));
            }
        });
        proxy
    }

    fn look_for(&self, text: &str) {
        *self.seen.lock().expect("nobody panics with it") = (text.to_owned(), None);
    }

    /// Notes the time if `text` holds what is looked for.
    fn look(&self, text: &str) {
        let mut seen = self.seen.lock().expect("nobody panics with it");
        if seen.1.is_none() && text.contains(&seen.0) {
            seen.1 = Some(RealClock.now());
        }
    }

    fn seen(&self) -> Moment {
        self.seen
            .lock()
            .expect("nobody panics with it")
            .1
            .expect("the answer came through here")
    }
}

/// Copies what comes until the end; `look` is shown each piece, with the end of the piece before.
fn forward(mut from: TcpStream, mut to: TcpStream, look: impl Fn(&str)) {
    let (mut text, mut piece) = (Vec::new(), [0; 16384]);
    while let Ok(len @ 1..) = from.read(&mut piece) {
        text.extend_from_slice(&piece[..len]);
        look(&String::from_utf8_lossy(&text));
        text.drain(..text.len().saturating_sub(100));
        if to.write_all(&piece[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// The CPU time of all roles while nothing happens.
fn idle(agent: &Agent) -> Duration {
    let used = || {
        agent
            .processes()
            .into_iter()
            .filter(|(pid, _)| is_agent(*pid))
            .map(|(pid, _)| cpu(pid.as_raw()))
            .sum::<Duration>()
    };
    // What the last change has left to do.
    std::thread::sleep(Duration::from_secs(10));
    let before = used();
    std::thread::sleep(Duration::from_secs(IDLE));
    used().saturating_sub(before)
}

/// The CPU time of a process, by the scheduler's own account in nanoseconds
/// (`/proc/PID/schedstat`).
fn cpu(pid: i32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        Duration::from_nanos(
            text.split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0),
        )
    };
    tasks.flatten().map(of).sum()
}

/// The aims, and whether the row with the most files reaches them.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn aims(few: &Row, many: &Row) -> String {
    let bytes = value(many.files - 1, 0).len() as f64;
    let each =
        many.memory.saturating_sub(few.memory) as f64 / (many.files - few.files) as f64 - bytes;
    let rows = [
        ("check, ms", millis(many.check), 300.0),
        (
            "start above the server's own time, ms",
            millis(many.start),
            2_000.0,
        ),
        (
            "open+read+close, times that of the fewest files",
            micros(many.open) / micros(few.open),
            1.2,
        ),
        ("a change of 200 files, ms", millis(many.change), 10.0),
        ("memory a file above its bytes, bytes", each, 1_024.0),
        ("CPU in an idle minute, ms", millis(many.idle), 10.0),
    ];
    let verdict = |is: f64, aim: f64| if is <= aim { "reached" } else { "missed" };
    rows.map(|(what, is, aim)| format!("{what}: {is:.1} (aim {aim}: {})\n", verdict(is, aim)))
        .concat()
}
