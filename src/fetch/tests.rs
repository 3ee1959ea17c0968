//! The loop with a scripted server and the backends of production, in paused time: a wait of the
//! loop passes at once.

use super::*;
use crate::clock::tests::PausedClock;
use crate::config::plan::{Content, File};
use crate::lease::source::{Cause, Engine, Failure, Lease, Ownership, TokenGrant};
use crate::link::{FromRole, pair};
use crate::memory::mapping::Backing;
use crate::names::{
    FileId, FileName, Generation, HookId, LeaseId, Owner, STATE_DIRECTORY, SwapExposure,
};
use crate::render::tests::{field, file, plan, query, template};
use crate::snapshot::{FileSpec, Reader, Visibility};
use crate::status::{self, Condition, Detail, FileReport, Report};
use crate::template::Read;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

const MINUTES: fn(u64) -> Duration = Duration::from_mins;
/// How often a test looks; shorter than the life of an old generation on a tmpfs.
const STEP: Duration = Duration::from_millis(100);
/// Longer than anything takes here; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_hours(3);

/// What the server answers.
struct Script {
    /// By path: the version and fields of KV, or why it fails. `db` is a lease, `hang` never
    /// answers.
    kv: BTreeMap<String, Result<(u64, Value), Cause>>,
    login: Option<Cause>,
    /// Whether the credential files changed since the last login.
    changed: bool,
    /// Lives of the token and of the lease of `db`.
    token: Duration,
    lease: Duration,
    /// Whether the lease can be renewed.
    renewable: bool,
    /// Requests that wait for one another: proves that so many are out at once.
    together: usize,
    /// Logins wait for this, if it is set.
    gate: Option<Arc<tokio::sync::Notify>>,
    /// Whether revocations are answered.
    revokes: bool,
    serial: u32,
    /// Requests that came although the checkpoint did not mention them.
    unsaved: Vec<String>,
}

#[derive(Clone)]
struct Server {
    script: Arc<Mutex<Script>>,
    barrier: Arc<tokio::sync::Barrier>,
    log: Sender<String>,
    paths: Vec<String>,
    arena: Arc<Arena>,
}

pub(super) fn failure(cause: Cause, what: &str) -> Failure {
    Failure {
        cause,
        message: format!("{what}: {cause:?}"),
        retry_after: None,
    }
}

impl Server {
    /// A server that answers as `change` says, and the log of its requests.
    fn start(
        queries: &[&str],
        arena: &Arc<Arena>,
        change: impl FnOnce(&mut Script),
    ) -> (Self, Receiver<String>) {
        let kv = queries
            .iter()
            .map(|path| ((*path).to_owned(), Ok((1, json!({"a": "one", "b": "two"})))))
            .collect();
        let (token, lease) = (Duration::from_hours(1), Duration::from_hours(1));
        let mut script = Script {
            kv,
            login: None,
            changed: false,
            token,
            lease,
            renewable: false,
            together: 0,
            gate: None,
            revokes: true,
            serial: 0,
            unsaved: Vec::new(),
        };
        change(&mut script);
        let (sender, log) = channel();
        let barrier = Arc::new(tokio::sync::Barrier::new(script.together.max(1)));
        let server = Self {
            script: Arc::new(Mutex::new(script)),
            barrier,
            log: sender,
            paths: queries.iter().map(|path| (*path).to_owned()).collect(),
            arena: Arc::clone(arena),
        };
        (server, log)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no test panics with it")
    }

    /// Takes note of a request, which the checkpoint has to mention by now.
    fn say(&self, what: &str) {
        if !self.is_saved(what) {
            self.script().unsaved.push(what.to_owned());
        }
        let _ = self.log.send(what.to_owned());
    }

    fn is_saved(&self, request: &str) -> bool {
        let saved = &private(&self.arena, "state")["Whole"];
        let session = &saved["session"];
        let chunks: Vec<_> = (0..self.paths.len().div_ceil(4).max(1))
            .map(|chunk| private(&self.arena, &format!("queries-{chunk}")))
            .collect();
        let queries = || chunks.iter().filter_map(Value::as_array).flatten();
        let sent = &session["renewal"]["in_flight"];
        match request.split_once(' ') {
            Some(("read", path)) => {
                let query = queries().find(|query| query[0]["path"] == path);
                query.expect("a query")[1]["renewal"]["in_flight"][1] == "Replace"
            }
            Some(("revoke", token)) => {
                let doomed = saved["tokens"]["doomed"].as_array().into_iter().flatten();
                doomed.map(|it| &it[1]).any(|it| it == token)
            }
            Some(("look", _)) => session["looking_up"] == true,
            Some(_) => sent[1] == "Renew",
            None if request == "login" => sent[1] == "Replace",
            None => {
                let mut sent = queries().map(|query| &query[1]["renewal"]["in_flight"][1]);
                sent.any(|doing| doing == "Renew")
            }
        }
    }

    fn serial(&self) -> u32 {
        let mut script = self.script();
        script.serial += 1;
        script.serial
    }
}

impl Source for Server {
    type Token = String;
    type Kept = ();

    async fn login(&self) -> Result<(String, TokenGrant), Failure> {
        self.say("login");
        let gate = self.script().gate.clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let ttl = self.script().token;
        let refused = self.script().login;
        self.script().changed = false;
        match refused {
            Some(cause) => Err(failure(cause, "logging in")),
            None => Ok((
                format!("token-{}", self.serial()),
                TokenGrant {
                    ttl: Some(ttl),
                    renewable: false,
                },
            )),
        }
    }

    fn credentials_changed(&self) -> bool {
        self.script().changed
    }

    fn expose<'a>(&self, token: &'a String) -> &'a [u8] {
        token.as_bytes()
    }

    fn token(&self, bytes: &[u8]) -> Option<String> {
        String::from_utf8(bytes.to_vec()).ok()
    }

    fn export_credentials(&self) {}

    fn import_credentials(&self, (): ()) {}

    fn commit_credentials(&self) {}

    async fn read(&self, token: &String, read: &Read) -> Result<Reply, Failure> {
        let path = read.path.as_str();
        self.say(&format!("read {path}"));
        if path == "hang" {
            std::future::pending::<()>().await;
        }
        let together = std::mem::take(&mut self.script().together);
        if together > 0 {
            self.script().together = together - 1;
            self.barrier.wait().await;
        }
        if path == "db" {
            let (n, renewable) = (self.serial(), self.script().renewable);
            let fields = json!({"username": format!("user-{n}-{token}"), "password": format!("pass-{n}-{token}")});
            return Ok(Reply {
                fields: fields.as_object().expect("an object").clone(),
                lease_id: LeaseId::new("lease"),
                ttl: self.script().lease,
                renewable,
                ..Reply::default()
            });
        }
        let (version, fields) = self.script().kv[path]
            .clone()
            .map_err(|cause| failure(cause, path))?;
        let engine = Engine::Kv2 {
            version,
            metadata: serde_json::Map::new(),
        };
        Ok(Reply {
            fields: fields.as_object().expect("an object").clone(),
            engine,
            ..Reply::default()
        })
    }

    async fn renew(&self, _: &String, lease: &LeaseId, _: Duration) -> Result<Lease, Failure> {
        self.say("renew");
        let renewable = self.script().renewable;
        Ok(Lease {
            id: lease.clone(),
            ttl: self.script().lease,
            renewable,
        })
    }

    async fn renew_token(&self, _: &String) -> Result<TokenGrant, Failure> {
        self.say("renew token");
        Ok(TokenGrant {
            ttl: Some(self.script().token),
            renewable: false,
        })
    }

    async fn look_up_token(&self, _: &String) -> Result<TokenGrant, Failure> {
        self.say("look up");
        Ok(TokenGrant {
            ttl: Some(self.script().token),
            renewable: false,
        })
    }

    async fn revoke_token(&self, token: &String) -> Result<Ownership, Failure> {
        self.say(&format!("revoke {token}"));
        if !self.script().revokes {
            std::future::pending::<()>().await;
        }
        Ok(Ownership::Ours)
    }
}

fn spec(name: &str, visibility: Visibility) -> FileSpec {
    FileSpec {
        name: FileName::new(name).expect("a good name"),
        owner: Owner { uid: 0, gid: 0 },
        mode: 0,
        visibility,
    }
}

fn arena_of(files: Vec<FileSpec>) -> Arc<Arena> {
    Arc::new(Arena::create(files, Some(256 << 10), Backing::Locked).expect("memory can be locked"))
}

/// An arena that holds the private files of a plan and nothing else.
pub(super) fn arena(plan: &Plan) -> Arc<Arena> {
    let names = private_files(plan).into_iter();
    arena_of(names.map(|name| spec(&name, Visibility::Private)).collect())
}

/// The part of the checkpoint with that name, as a successor would find it.
fn private(arena: &Arc<Arena>, name: &str) -> Value {
    let reader = Reader::new(Arc::clone(arena));
    let version = arena
        .files_in(Visibility::Private)
        .find(|file| arena.files()[file.index()].name.as_str() == name)
        .and_then(|file| reader.current(file))
        .expect("a checkpoint");
    let mut bytes = vec![0; usize::try_from(version.len).expect("it fits")];
    reader
        .read(version.nodeid, 0, &mut bytes)
        .expect("it is live");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// A directory for a tmpfs backend. Nothing but the proof asks that it is a tmpfs.
fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).expect("a directory").into()
}

/// Makes the tmpfs backend refuse each publication that has this file, until it is removed.
fn obstacle(directory: &Path, generation: u64, file: u32) -> PathBuf {
    let path = directory.join(format!("..files/{generation}.{file}"));
    fs::create_dir_all(&path).expect("a directory");
    path
}

/// A role in a task of the test, seen from supervise.
struct Rig {
    tasks: LocalSet,
    server: Server,
    log: Receiver<String>,
    directory: TempDir,
    /// The last generation that the test has seen on the tmpfs, and the contents that it links.
    seen: RefCell<(u64, BTreeMap<u32, PathBuf>)>,
    link: End,
    role: JoinHandle<Exit>,
}

impl Rig {
    fn start(queries: &[&str], contents: Vec<Content>, change: impl FnOnce(&mut Script)) -> Self {
        let hooked = |content| (content, Some(HookId(0)));
        let contents = contents.into_iter().map(hooked).collect();
        Self::start_with(queries, contents, change, |_, _| {})
    }

    /// `before` gets the role's end of the link, and the directory of the tmpfs.
    fn start_with(
        queries: &[&str],
        contents: Vec<(Content, Option<HookId>)>,
        change: impl FnOnce(&mut Script),
        before: impl FnOnce(&End, &Path),
    ) -> Self {
        let file = |(n, (content, on_change))| File {
            on_change,
            owner: Owner {
                uid: geteuid().as_raw(),
                gid: getegid().as_raw(),
            },
            ..file(&format!("f{n}"), content)
        };
        let files = contents.into_iter().enumerate().map(file).collect();
        let every = Some(MINUTES(1));
        let reads = queries.iter().map(|path| query(path, every)).collect();
        let plan = plan(reads, files);
        let arena = arena(&plan);
        let (server, log) = Server::start(queries, &arena, change);
        let (link, end) = pair().expect("a socket pair");
        let directory = tempfile::tempdir().expect("a directory");
        before(&end, directory.path());
        let root = WriteRoot::Tmpfs(self::directory(directory.path()));
        let (source, clock) = (server.clone(), PausedClock::new());
        let tasks = LocalSet::new();
        let role = tasks.spawn_local(async move {
            let job = FetchJob {
                plan: &plan,
                arena: &arena,
                source,
                root,
                link: end,
                settings: settings(),
            };
            work(job, &clock).await
        });
        Self {
            tasks,
            server,
            log,
            directory,
            seen: RefCell::default(),
            link,
            role,
        }
    }

    /// Lets the role work for this long.
    async fn pass(&self, time: Duration) {
        self.tasks.run_until(tokio::time::sleep(time)).await;
    }

    /// Lets the role work until `look` finds something.
    async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let clock = PausedClock::new();
        while clock.now() < Moment::at(PATIENCE) {
            if let Some(found) = look() {
                return found;
            }
            self.pass(STEP).await;
        }
        panic!("waited in vain for {what}")
    }

    /// The server answers a read of `path` with this from now on.
    fn set(&self, path: &str, answer: Result<(u64, Value), Cause>) {
        self.server.script().kv.insert(path.to_owned(), answer);
    }

    /// The next message of the role.
    async fn hear(&self) -> Received<FromRole> {
        let receive = || match self.link.receive() {
            Received::Empty => None,
            told @ (Received::Message(_) | Received::Closed) => Some(told),
        };
        self.until("a message", receive).await
    }

    async fn ready(&self) -> BTreeMap<u32, String> {
        assert_eq!(self.hear().await, Received::Message(FromRole::Ready));
        self.next().await
    }

    /// The next publication on the tmpfs: the files that it changed.
    async fn next(&self) -> BTreeMap<u32, String> {
        self.until("a publication", || self.published()).await
    }

    /// The next publication on the tmpfs, if there was one.
    fn published(&self) -> Option<BTreeMap<u32, String>> {
        let (generation, contents) = &mut *self.seen.borrow_mut();
        if self.shown() == *generation {
            return None;
        }
        *generation += 1;
        let mut changes = BTreeMap::new();
        let directory = self.directory.path().join(format!("..{generation}"));
        for entry in fs::read_dir(directory).expect("a generation") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str());
            let file = name
                .and_then(|name| name[1..].parse().ok())
                .expect("a name");
            let content = fs::read_link(&path).expect("a link");
            if contents.insert(file, content.clone()) != Some(content) {
                changes.insert(file, fs::read_to_string(&path).expect("text"));
            }
        }
        Some(changes)
    }

    /// The generation that the tmpfs shows.
    fn shown(&self) -> u64 {
        let shown = fs::read_link(self.directory.path().join("..data")).unwrap_or_default();
        let number = shown.to_str().and_then(|name| name.strip_prefix(".."));
        number.map_or(0, |number| number.parse().expect("a generation"))
    }

    /// Waits for `times` requests of this kind.
    async fn asked(&self, what: &str, times: usize) {
        for _ in 0..times {
            let is = |request: &String| request.starts_with(what);
            self.until(what, || self.log.try_iter().find(is)).await;
        }
    }

    /// The last report. Every report that a test sees is checked to hold no value.
    fn last_report(&self) -> Option<Report> {
        let state = self.directory.path().join(STATE_DIRECTORY);
        let bytes = fs::read(state.join(status::FILE)).ok()?;
        let text = String::from_utf8(bytes).expect("text");
        assert!(
            !["one", "two", "token-", "lease\""]
                .iter()
                .any(|value| text.contains(value)),
            "{text}"
        );
        Some(serde_json::from_str(&text).expect("a report"))
    }

    /// Waits for a report on a file of which `is` is true.
    async fn report(&self, file: usize, is: impl Fn(&FileReport) -> bool) -> Report {
        self.report_of(|report| is(&report.files[file])).await
    }

    /// Waits for a report of which `is` is true.
    async fn report_of(&self, is: impl Fn(&Report) -> bool) -> Report {
        let look = || self.last_report().filter(&is);
        self.until("a report", look).await
    }

    /// The exit code of the role, and the requests since the last look.
    async fn exit(self) -> (Exit, Vec<String>) {
        let exit = self.tasks.run_until(self.role).await;
        let exit = exit.expect("the role does not panic");
        let left = fs::read_dir(self.directory.path()).expect("a directory");
        let left: Vec<_> = left.map(|entry| entry.expect("an entry")).collect();
        assert!(left.is_empty(), "not closed: {left:?}");
        (exit, self.log.try_iter().collect())
    }

    /// Ends the role as `exit` says.
    async fn end(self, message: ToRole) -> (Exit, Vec<String>) {
        self.link.send(&message).expect("the role lives");
        self.exit().await
    }
}

fn settings() -> Settings {
    let how = "fuse".into();
    Settings {
        served: Served {
            how,
            fallback: None,
            swap: None,
        },
        past: RestartHistory::default(),
        walls: WallsReport::default(),
    }
}

fn all(values: &[&str]) -> BTreeMap<u32, String> {
    (0_u32..)
        .zip(values.iter().map(|value| (*value).to_owned()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_publication_is_complete_and_its_reads_run_side_by_side() {
    let contents = vec![
        field(0, "a"),
        field(1, "b"),
        Content::Json { query: QueryId(2) },
        Content::Token,
    ];
    let rig = Rig::start(&["k0", "k1", "k2"], contents, |script| script.together = 3);
    assert_eq!(
        rig.ready().await,
        all(&["one", "two", r#"{"a":"one","b":"two"}"#, "token-1"])
    );
    let (exit, asked) = rig.end(ToRole::Stop).await;
    assert_eq!(exit, Exit::Ok);
    assert_eq!(asked.iter().filter(|asked| *asked == "login").count(), 1);
    assert_eq!(asked.last().map(String::as_str), Some("revoke token-1"));
}

#[tokio::test(start_paused = true)]
async fn a_question_of_supervise_is_answered_and_is_no_news() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.ready().await;
    for _ in 0..3 {
        rig.link.send(&ToRole::Ping).expect("the role lives");
        assert_eq!(rig.hear().await, Received::Message(FromRole::Alive));
    }
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_supervise_finds_is_in_the_report_until_it_is_gone() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.ready().await;
    for found in [
        Some(SwapExposure::Reachable),
        None,
        Some(SwapExposure::CgroupV1),
    ] {
        rig.link.send(&ToRole::Swap(found)).expect("the role lives");
        let cause = found.map(|why| why.to_string());
        let swap = |report: &Report| {
            let swap = report.served.swap.as_ref();
            swap.map(|trouble| trouble.cause.to_string())
        };
        rig.report_of(|report| swap(report) == cause).await;
    }
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_while_one_value_is_missing() {
    let denied = |script: &mut Script| drop(script.kv.insert("k1".to_owned(), Err(Cause::Denied)));
    let rig = Rig::start(&["k0", "k1"], vec![field(0, "a"), field(1, "a")], denied);
    rig.asked("read k0", 5).await;
    assert!(rig.published().is_none());
    rig.set("k1", Ok((1, json!({"a": "late"}))));
    assert_eq!(rig.ready().await, all(&["one", "late"]));
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn user_and_password_change_in_one_publication_of_one_lease() {
    let rig = Rig::start(
        &["db"],
        vec![field(0, "username"), field(0, "password")],
        |script| script.lease = MINUTES(20),
    );
    let mut served = rig.ready().await;
    for _ in 0..3 {
        assert_eq!(served[&0].replace("user", "pass"), served[&1]);
        let next = rig.next().await;
        assert_eq!(
            rig.hear().await,
            Received::Message(FromRole::Changed(HookId(0)))
        );
        assert!(next[&0] != served[&0] && next[&1] != served[&1]);
        served = next;
    }
    assert_eq!(rig.end(ToRole::Stop).await.0, Exit::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_poll_without_a_change_publishes_nothing_and_a_change_only_what_changed() {
    let rig = Rig::start(
        &["k0", "k1"],
        vec![field(0, "a"), field(0, "b"), field(1, "a")],
        |_| {},
    );
    rig.ready().await;
    rig.asked("read k0", 6).await;
    assert!(rig.published().is_none(), "nothing changed");
    rig.set("k0", Ok((2, json!({"a": "new", "b": "two"}))));
    assert_eq!(rig.next().await, all(&["new"]));
    assert_eq!(
        rig.hear().await,
        Received::Message(FromRole::Changed(HookId(0)))
    );
    rig.asked("read k0", 4).await;
    assert_eq!(
        rig.link.receive::<FromRole>(),
        Received::Empty,
        "one change is told once"
    );
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_template_of_two_secrets_follows_both() {
    let text = r#"{{ with secret "k0" }}{{ .Data.data.a }}{{ end }}-{{ with secret "k1" }}{{ .Data.data.a }}{{ end }}"#;
    let rig = Rig::start(&["k0", "k1"], vec![template(text), field(0, "b")], |_| {});
    assert_eq!(rig.ready().await, all(&["one-one", "two"]));
    rig.set("k1", Ok((2, json!({"a": "new"}))));
    assert_eq!(rig.next().await, all(&["one-new"]));
    rig.set("k0", Ok((2, json!({"a": "newer", "b": "too"}))));
    assert_eq!(rig.next().await, all(&["newer-new", "too"]));
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_later_value_that_cannot_be_served_leaves_all_files_of_its_query() {
    let rig = Rig::start(&["k0"], vec![field(0, "a"), field(0, "b")], |_| {});
    rig.ready().await;
    for (version, broken) in [
        (2, json!({"a": "new"})),
        (3, json!({"a": "new", "b": ""})),
        (4, json!({"a": "new", "b": null})),
    ] {
        rig.set("k0", Ok((version, broken)));
        rig.asked("read k0", 4).await;
    }
    rig.set("k0", Err(Cause::Unavailable));
    rig.asked("read k0", 4).await;
    assert!(rig.published().is_none(), "the last good values stay");
    rig.set("k0", Ok((5, json!({"a": "good", "b": "again"}))));
    assert_eq!(rig.next().await, all(&["good", "again"]));
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_token_is_served_in_its_sink_and_the_leases_follow_it() {
    let rig = Rig::start(
        &["db"],
        vec![Content::Token, field(0, "password")],
        |script| script.token = MINUTES(30),
    );
    assert_eq!(rig.ready().await[&0], "token-1");
    let sink = rig.next().await;
    let token = sink[&0].clone();
    assert_eq!(sink.len(), 1);
    let credential = rig.next().await;
    assert!(
        credential[&1].ends_with(&token),
        "{credential:?} is not of {token}"
    );
    rig.asked("revoke token-1", 1).await;
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn every_request_is_in_the_checkpoint_before_it_is_sent() {
    let rig = Rig::start(
        &["db", "k1", "k2"],
        vec![Content::Token, field(0, "password"), field(1, "a")],
        |script| {
            (script.token, script.lease) = (MINUTES(30), MINUTES(10));
            script.kv.insert("k2".to_owned(), Err(Cause::Denied));
        },
    );
    rig.asked("read db", 1).await;
    rig.asked("look up", 1).await;
    rig.set("k2", Ok((1, json!({"a": "late"}))));
    rig.ready().await;
    rig.asked("login", 1).await;
    rig.asked("revoke token-1", 1).await;
    assert_eq!(rig.server.script().unsaved, [""; 0]);
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn giving_up_names_the_most_telling_cause_and_revokes() {
    type Change = fn(&mut Script);
    let table: &[(&str, Change, &str, Exit)] = &[
        (
            "k1",
            |s| s.login = Some(Cause::Rejected),
            "login",
            Exit::Login,
        ),
        (
            "k1",
            |s| s.login = Some(Cause::Unreachable),
            "login",
            Exit::Unavailable,
        ),
        (
            "k1",
            |s| drop(s.kv.insert("k1".to_owned(), Err(Cause::Denied))),
            "look up",
            Exit::NoSecret,
        ),
        (
            "k1",
            |s| drop(s.kv.insert("k1".to_owned(), Err(Cause::NotFound))),
            "read k1",
            Exit::NoSecret,
        ),
        (
            "k1",
            |s| drop(s.kv.insert("k1".to_owned(), Err(Cause::RateLimited))),
            "read k1",
            Exit::Unavailable,
        ),
        (
            "k1",
            |s| drop(s.kv.insert("k1".to_owned(), Ok((1, json!({}))))),
            "read k1",
            Exit::Data,
        ),
        ("hang", |_| {}, "read hang", Exit::Unavailable),
    ];
    for (path, change, wait_for, expected) in table {
        let rig = Rig::start(&["k0", path], vec![field(0, "a"), field(1, "a")], change);
        // What follows the second one, the answer to the first has been taken.
        rig.asked(wait_for, if *path == "hang" { 1 } else { 2 })
            .await;
        assert!(rig.published().is_none(), "nothing partial is published");
        let logged_in = *wait_for != "login";
        let (exit, asked) = rig.end(ToRole::GiveUp).await;
        assert_eq!(exit, *expected, "{wait_for}");
        assert_eq!(
            asked.iter().any(|asked| asked.starts_with("revoke")),
            logged_in,
            "{asked:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_out_at_the_stop_is_waited_for_and_revoked() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
        script.gate = Some(Arc::clone(&gate));
    });
    rig.asked("login", 1).await;
    rig.link.send(&ToRole::Stop).expect("the role lives");
    gate.notify_one();
    let (exit, asked) = rig.exit().await;
    assert_eq!(exit, Exit::Ok);
    assert_eq!(asked, ["revoke token-1"]);
}

#[tokio::test(start_paused = true)]
async fn leaving_is_bounded_and_begins_when_supervise_is_gone() {
    let mut rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
        script.revokes = false;
    });
    rig.ready().await;
    let (link, _) = pair().expect("a socket pair");
    rig.link = link;
    let clock = PausedClock::new();
    let (exit, asked) = rig.exit().await;
    assert_eq!(exit, Exit::Ok);
    assert!(asked.iter().any(|asked| asked == "revoke token-1"));
    let took = clock.now().since_origin();
    assert!((LEAVE..LEAVE + STEP).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_first_publication_that_is_refused_ends_the_role() {
    let contents = vec![(field(0, "a"), None)];
    let refuse = |_: &End, directory: &Path| drop(obstacle(directory, 1, 0));
    let mut rig = Rig::start_with(&["k0"], contents, |_| {}, refuse);
    let exit = rig.tasks.run_until(&mut rig.role).await;
    assert_eq!(exit.expect("the role does not panic"), Exit::Tmpfs);
    assert!(rig.log.try_iter().any(|asked| asked == "revoke token-1"));
}

#[tokio::test(start_paused = true)]
async fn an_announcement_that_fails_is_tried_again_and_is_told_once_when_it_succeeds() {
    let files = vec![File {
        on_change: Some(HookId(3)),
        ..file("f0", field(0, "a"))
    }];
    let plan = plan(vec![query("k0", None)], files);
    let arena = arena_of(vec![spec("f0", Visibility::Listed)]);
    let temporary = tempfile::tempdir().expect("a directory");
    let root = WriteRoot::Mount(directory(temporary.path()));
    let (clock, (link, end)) = (PausedClock::new(), pair().expect("a socket pair"));
    let (sender, mut announced) = unbounded_channel();
    let backend = Backend::open(root, &arena, &plan, sender, clock.now()).expect("a thread");
    let mut queue = Queue::new(backend, &plan, Timing::new(MINUTES(1)).slow);
    let mut notifier = Notifier::new(&end, &plan);
    let mut publisher = Publisher::new(Arc::clone(&arena));
    let change = (FileId(0), Zeroizing::new(b"one".to_vec()));
    let publication = queue.offer(&mut publisher, vec![change], &clock);
    notifier.published(&publication.expect("there is room"));
    // No `serve` answers in this directory. Up to three rounds were asked for already.
    for _ in 0..6 {
        let failed = announced.recv().await.expect("the thread lives");
        queue.announcement_failed(&failed.expect_err("a failure"), clock.now());
        let wake = queue.wake().expect("the next try");
        assert!(wake > clock.now(), "a hot loop");
        tokio::time::advance(wake.since(clock.now())).await;
        queue.turn(&mut publisher, &clock);
    }
    notifier.send(clock.now());
    assert_eq!(link.receive::<FromRole>(), Received::Empty);
    for _ in 0..2 {
        notifier.announced(Generation(1));
    }
    notifier.send(clock.now());
    assert_eq!(
        link.receive(),
        Received::Message(FromRole::Changed(HookId(3)))
    );
    assert_eq!(link.receive::<FromRole>(), Received::Empty);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_cannot_be_opened_ends_the_role() {
    let occupy = |_: &End, directory: &Path| {
        fs::write(directory.join("..files"), "no directory").expect("a file");
    };
    let mut rig = Rig::start_with(&[], Vec::new(), |_| {}, occupy);
    let exit = rig.tasks.run_until(&mut rig.role).await;
    assert_eq!(exit.expect("the role does not panic"), Exit::Tmpfs);
}

#[tokio::test(start_paused = true)]
async fn what_the_backend_refuses_is_offered_again() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.ready().await;
    let obstacle = obstacle(rig.directory.path(), 2, 0);
    rig.set("k0", Ok((2, json!({"a": "new"}))));
    let refused = |file: &FileReport| file.trouble.is_some();
    rig.report(0, refused).await;
    rig.pass(MINUTES(30)).await;
    assert!(rig.published().is_none(), "it is refused");
    fs::remove_dir(obstacle).expect("an obstacle");
    assert_eq!(rig.next().await, all(&["new"]));
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn each_hook_of_the_files_that_changed_is_told_once() {
    let contents = vec![
        (field(0, "a"), Some(HookId(1))),
        (field(0, "b"), Some(HookId(7))),
        (Content::Json { query: QueryId(0) }, Some(HookId(1))),
        (field(1, "a"), None),
    ];
    let rig = Rig::start_with(&["k0", "k1"], contents, |_| {}, |_, _| {});
    rig.ready().await;
    rig.set("k1", Ok((2, json!({"a": "untold"}))));
    assert_eq!(rig.next().await[&3], "untold");
    rig.set("k0", Ok((2, json!({"a": "new", "b": "new"}))));
    assert_eq!(rig.next().await.len(), 3);
    for hook in [1, 7] {
        assert_eq!(
            rig.hear().await,
            Received::Message(FromRole::Changed(HookId(hook)))
        );
    }
    rig.asked("read k0", 3).await;
    assert_eq!(rig.link.receive::<FromRole>(), Received::Empty);
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_full_link_refuses_is_told_later_and_once() {
    let noise = FromRole::Failed(Exit::Ok);
    let fill = |end: &End, _: &Path| while end.send(&noise).is_ok() {};
    let rig = Rig::start_with(
        &["k0"],
        vec![(field(0, "a"), Some(HookId(0)))],
        |_| {},
        fill,
    );
    rig.next().await;
    for version in 2..5 {
        rig.set("k0", Ok((version, json!({"a": version}))));
        rig.next().await;
    }
    // Until the last change was announced, too.
    rig.log.try_iter().for_each(drop);
    rig.asked("read k0", 3).await;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match rig.hear().await {
            Received::Message(message) if message != noise => heard.push(message),
            Received::Message(_) => {}
            Received::Empty | Received::Closed => panic!("the role is gone"),
        }
    }
    assert_eq!(heard, [FromRole::Ready, FromRole::Changed(HookId(0))]);
    assert_eq!(rig.link.receive::<FromRole>(), Received::Empty);
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn the_report_follows_a_secret_through_its_life() {
    let rig = Rig::start(
        &["k0", "k1"],
        vec![field(0, "a"), field(1, "a")],
        |script| {
            script.kv.insert("k1".to_owned(), Err(Cause::Denied));
        },
    );
    let waiting = rig
        .report(1, |file| {
            file.trouble
                .as_ref()
                .is_some_and(|trouble| &*trouble.cause == "k1: Denied")
        })
        .await;
    assert_eq!(
        (
            waiting.format,
            waiting.served.how.as_str(),
            waiting.roles.serve
        ),
        (2, "fuse", None)
    );
    assert_eq!(
        waiting
            .files
            .iter()
            .map(|file| file.condition)
            .collect::<Vec<_>>(),
        [Condition::Missing; 2]
    );

    rig.set("k1", Ok((4, json!({"a": "one"}))));
    let fresh = rig
        .report(1, |file| file.condition == Condition::Fresh)
        .await;
    let file = &fresh.files[1];
    assert_eq!(
        (
            file.name.as_str(),
            file.changes,
            file.version,
            &file.trouble
        ),
        ("f1", 1, Some(4), &None)
    );
    assert!(
        file.changed.is_some_and(|changed| changed >= fresh.since)
            && file.next.is_some()
            && !file.strict
    );
    assert!(
        fresh.session.ends.is_some_and(|end| end > fresh.written)
            && fresh.session.trouble.is_none()
    );

    rig.set("k1", Ok((5, json!({"a": "two"}))));
    rig.report(1, |file| (file.changes, file.version) == (2, Some(5)))
        .await;
    rig.set("k1", Err(Cause::Unavailable));
    // Two refreshes are missed.
    let ended = rig
        .report(1, |file| file.condition == Condition::Ended)
        .await;
    assert_eq!(
        (ended.files[0].condition, &ended.files[0].trouble),
        (Condition::Fresh, &None)
    );
    let since = |report: &Report| {
        report.files[1]
            .trouble
            .as_ref()
            .map(|trouble| trouble.since)
    };

    rig.set("k1", Ok((6, json!({"a": null}))));
    let null = rig
        .report(1, |file| {
            file.trouble
                .as_ref()
                .is_some_and(|trouble| trouble.cause.contains("the field `a` is null"))
        })
        .await;
    assert_eq!(since(&null), since(&ended), "it lasts since its begin");
    rig.set("k1", Ok((7, json!({"a": "two"}))));
    rig.report(1, |file| {
        file.condition == Condition::Fresh && file.version == Some(7) && file.trouble.is_none()
    })
    .await;
    let generation = rig.shown() + 1;
    let obstacle = obstacle(rig.directory.path(), generation, 1);
    rig.set("k1", Ok((8, json!({"a": "one"}))));
    rig.report(1, |file| {
        file.trouble
            .as_ref()
            .is_some_and(|trouble| trouble.cause.starts_with("writing f1: "))
    })
    .await;
    fs::remove_dir(obstacle).expect("an obstacle");
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn secrets_are_published_while_no_report_can_be_written() {
    let rig = Rig::start(&["k0", "k1"], vec![field(0, "a"), field(1, "a")], |_| {});
    let is_fresh = |file: &FileReport| file.condition == Condition::Fresh;
    rig.report_of(|report| report.files.iter().all(is_fresh))
        .await;
    rig.ready().await;
    let state = rig.directory.path().join(STATE_DIRECTORY);
    let obstacle = state.join(format!("{}.next", status::FILE));
    fs::create_dir(&obstacle).expect("a directory");
    rig.set("k1", Ok((9, json!({"a": "two"}))));
    assert_eq!(rig.next().await[&1], "two");
    let missed = rig.last_report().expect("the report from before");
    assert_eq!(
        (missed.files[1].changes, missed.files[1].version),
        (1, Some(1))
    );
    fs::remove_dir(obstacle).expect("an obstacle");
    let report = rig.report(1, |file| file.changes == 2).await;
    assert_eq!(report.detail, Detail::Full);
    assert!(report.files.iter().all(is_fresh));
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn names_of_fields_are_in_no_report() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.report(0, |file| file.condition == Condition::Fresh)
        .await;
    rig.set("k0", Ok((2, json!({"aa": "two", "other": "two"}))));
    let report = rig
        .report(0, |file| file.condition != Condition::Fresh)
        .await;
    let cause = &report.files[0]
        .trouble
        .as_ref()
        .expect("it is in trouble")
        .cause;
    assert_eq!(
        &**cause,
        "rendering f0 (test.hcl:1) from k0: the secret has no field `a`"
    );
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn the_report_is_fresh_before_supervise_hears_of_it() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    let link = rig.link.try_clone().expect("a descriptor");
    let report = rig
        .directory
        .path()
        .join(STATE_DIRECTORY)
        .join(status::FILE);
    // A thread, which sees what stands between two awaits of the role.
    let supervise = std::thread::spawn(move || {
        let mut ready = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(10_000_u16)).expect("poll");
        let report = fs::read(report).expect("a report");
        assert_eq!(link.receive(), Received::Message(FromRole::Ready));
        serde_json::from_slice::<Report>(&report).expect("a report")
    });
    let is_done = || supervise.is_finished().then_some(());
    rig.until("the thread", is_done).await;
    let report = supervise.join().expect("the thread does not panic");
    assert_eq!(report.files[0].condition, Condition::Fresh);
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_login_that_fails_is_the_trouble_of_the_session_and_of_all_files() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
        script.login = Some(Cause::Unreachable);
    });
    let report = rig
        .report(0, |file| {
            file.trouble
                .as_ref()
                .is_some_and(|trouble| trouble.cause.contains("logging in"))
        })
        .await;
    assert_eq!(
        report.session.trouble.map(|trouble| trouble.cause),
        report.files[0].trouble.as_ref().map(|it| it.cause.clone())
    );
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_without_a_successor_is_past_its_life() {
    let rig = Rig::start(
        &["db"],
        vec![field(0, "username"), Content::Token],
        |script| (script.token, script.lease) = (MINUTES(35), MINUTES(30)),
    );
    let fresh = rig
        .report(0, |file| file.condition == Condition::Fresh)
        .await;
    assert!(fresh.files[0].lease_ends.is_some() && fresh.files[0].version.is_none());
    rig.server.script().login = Some(Cause::Unavailable);
    let ended = rig
        .report(0, |file| file.condition == Condition::Ended)
        .await;
    assert!(ended.files[0].trouble.is_some());
    assert_eq!(
        ended.files[1].condition,
        Condition::Ended,
        "there is no token"
    );
    rig.server.script().login = None;
    rig.report(0, |file| file.condition == Condition::Fresh)
        .await;
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_is_sent_again_when_the_credentials_change() {
    for cause in [Cause::Login, Cause::LockedOut { elsewhere: false }] {
        let rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
            script.login = Some(cause);
        });
        rig.report(0, |file| file.trouble.is_some()).await;
        rig.asked("login", 1).await;
        // Longer than two looks, and no login.
        rig.pass(LOOK * 3).await;
        assert!(rig.log.try_recv().is_err(), "{cause:?}");
        rig.server.script().changed = true;
        rig.pass(LOOK + STEP).await;
        assert_eq!(rig.log.try_recv().as_deref(), Ok("login"));
        // Longer than two looks, and no login.
        rig.pass(LOOK * 3).await;
        assert!(rig.log.try_recv().is_err(), "{cause:?}: refused again");
        rig.server.script().login = None;
        rig.server.script().changed = true;
        rig.ready().await;
        rig.end(ToRole::Stop).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_reads_at_once() {
    let slow = |script: &mut Script| script.token = Duration::from_hours(1);
    let rig = Rig::start(
        &["db", "k1"],
        vec![field(0, "username"), field(1, "a")],
        slow,
    );
    rig.ready().await;
    rig.link.send(&ToRole::Refresh).expect("the role lives");
    rig.set("k1", Ok((2, json!({"a": "new"}))));
    assert_eq!(rig.next().await[&1], "new");
    let (_, asked) = rig.end(ToRole::Stop).await;
    assert_eq!(
        asked.iter().filter(|asked| *asked == "read db").count(),
        1,
        "a live lease is not minted again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_says_that_the_report_stays_true() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.report(0, |file| file.condition == Condition::Fresh)
        .await;
    rig.pass(Duration::from_secs(20)).await;
    let before = rig.last_report().expect("a report");
    rig.pass(Duration::from_secs(20)).await;
    let heartbeat = rig
        .directory
        .path()
        .join(STATE_DIRECTORY)
        .join(status::HEARTBEAT);
    let heartbeat = fs::read(heartbeat).expect("a heartbeat");
    let mut after = rig.last_report().expect("a report");
    assert_eq!(before, after, "nothing happened");
    after.prolong(serde_json::from_slice(&heartbeat).expect("a heartbeat"));
    assert!(after.written >= before.written + 20, "{after:?}");
    assert!(after.due_monotonic_ms >= before.due_monotonic_ms + 20_000);
    rig.end(ToRole::Stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_query_that_is_found_while_running_is_read_renewed_and_survives_a_death() {
    // The second file is made of a query that the plan does not have.
    let contents = [field(0, "a"), field(1, "username")]
        .into_iter()
        .enumerate();
    let files = contents.map(|(n, content)| File {
        owner: Owner {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        },
        ..file(&format!("f{n}"), content)
    });
    let plan = plan(vec![query("k0", None)], files.collect());
    let (found, arena) = (query("db", None), arena(&plan));
    let (server, log) = Server::start(&["k0", "db"], &arena, |script| {
        (script.token, script.renewable) = (Duration::from_hours(10), true);
    });
    let (link, end) = pair().expect("a socket pair");
    let root = tempfile::tempdir().expect("a directory");
    let (clock, settings) = (PausedClock::new(), settings());
    let life = async |is_second: bool| {
        let (sender, mut announced) = unbounded_channel();
        let open = WriteRoot::Tmpfs(directory(root.path()));
        let timing = Timing::new(plan.server.retry_max);
        let private = PrivateFiles::open(&arena, &plan);
        let backend = Backend::open(open, &arena, &plan, sender, clock.now());
        let mut fetch = Fetch {
            clock: &clock,
            plan: &plan,
            arena: &arena,
            machine: Scheduler::new(timing, Jitter::new(), clock.now()),
            secrets: Secrets::new(&plan, &private),
            requests: Requests::new(server.clone()),
            queue: Queue::new(backend.expect("a directory"), &plan, timing.slow),
            notifier: Notifier::new(&end, &plan),
            publisher: Publisher::new(Arc::clone(&arena)),
            reporter: Reporter::new(&settings, &plan, &clock),
            checkpoint: CheckpointFiles::open(private),
            look_at: None,
            settle: false,
        };
        fetch.resume(timing);
        fetch.add_query(&plan.queries[0]);
        let watch = watch::readable(end.as_fd()).expect("a socket");
        let control = Control { link: &end, watch };
        if !is_second {
            let run = fetch.run(&control, &mut announced);
            assert!(tokio::time::timeout(MINUTES(1), run).await.is_err());
            assert!(!fetch.secrets.is_complete());
        }
        assert_eq!(fetch.secrets.table.len(), 1 + usize::from(is_second));
        for _ in 0..2 {
            assert_eq!(fetch.add_query(&found), QueryId(1));
        }
        let run = fetch.run(&control, &mut announced);
        assert!(tokio::time::timeout(MINUTES(50), run).await.is_err());
    };
    for is_second in [false, true] {
        LocalSet::new().run_until(life(is_second)).await;
        let content = fs::read_to_string(root.path().join("f1")).expect("it is published");
        assert_eq!(content, "user-2-token-1");
        let asked: Vec<_> = log.try_iter().collect();
        let count = |what: &str| asked.iter().filter(|asked| asked.starts_with(what)).count();
        let once = usize::from(!is_second);
        assert_eq!(
            (count("login"), count("read db")),
            (once, once),
            "{asked:?}"
        );
        assert!(count("renew") > 0, "{asked:?}");
    }
    assert_eq!(server.script().unsaved, [""; 0]);
    drop(link);
}
