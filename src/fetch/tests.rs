//! The loop with a scripted server and a recording outlet, in real time of milliseconds.

use super::*;
use crate::clock::{Backoff, RealClock};
use crate::config::plan::{Content, File, Query};
use crate::lease::source::{Cause, Engine, Failure, Lease, TokenGrant};
use crate::link::{FromRole, pair};
use crate::memory::mapping::Backing;
use crate::names::{FileId, FileName, HookId, LeaseId, Owner, SwapExposure};
use crate::render::Change;
use crate::render::tests::{field, file, plan, query, template};
use crate::snapshot::{FileSpec, Visibility};
use crate::status::{Condition, Counts, Detail, FileReport, Report};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

const MS: fn(u64) -> Duration = Duration::from_millis;
/// Longer than anything takes here; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

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

fn failure(cause: Cause, what: &str) -> Failure {
    Failure {
        cause,
        message: format!("{what}: {cause:?}"),
        retry_after: None,
    }
}

impl Server {
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
        let saved = &checkpoint(&self.arena)["Whole"];
        let schedule = &saved["machine"]["schedule"];
        let (session, queries) = (&schedule["session"], &schedule["queries"]);
        let sent = &session["renewal"]["in_flight"];
        match request.split_once(' ') {
            Some(("read", path)) => {
                let query = self
                    .paths
                    .iter()
                    .position(|it| it == path)
                    .expect("a query");
                queries[query]["renewal"]["in_flight"][1] == "Replace"
            }
            Some(("revoke", token)) => {
                let doomed = saved["tokens"]["doomed"].as_array().into_iter().flatten();
                doomed.map(|it| &it[1]).any(|it| it == token)
            }
            Some(("look", _)) => session["looking_up"] == true,
            Some(_) => sent[1] == "Renew",
            None if request == "login" => sent[1] == "Replace",
            None => queries.as_array().is_some_and(|all| {
                let mut sent = all.iter().map(|query| &query["renewal"]["in_flight"][1]);
                sent.any(|doing| doing == "Renew")
            }),
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

    async fn read(&self, token: &String, query: &Query) -> Result<Reply, Failure> {
        let path = query.path.as_str();
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
            let n = self.serial();
            let fields = json!({"username": format!("user-{n}-{token}"), "password": format!("pass-{n}-{token}")});
            let lease = Lease {
                id: LeaseId::new("lease").expect("not empty"),
                ttl: self.script().lease,
                renewable: false,
            };
            return Ok(Reply {
                fields: fields.as_object().expect("an object").clone(),
                engine: Engine::Other,
                lease: Some(lease),
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
            lease: None,
        })
    }

    async fn renew(&self, _: &String, lease: &LeaseId, _: Duration) -> Result<Lease, Failure> {
        self.say("renew");
        Ok(Lease {
            id: lease.clone(),
            ttl: self.script().lease,
            renewable: false,
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

    async fn revoke_token(&self, token: &String) -> Result<(), Failure> {
        self.say(&format!("revoke {token}"));
        if !self.script().revokes {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// Sends what is published; refuses as often as it was told to.
struct Recorder {
    published: Sender<BTreeMap<u32, String>>,
    announced: Announced,
    generation: u64,
    refusals: Arc<Mutex<u32>>,
    tended: Sender<()>,
    reports: Sender<Vec<u8>>,
    /// The longest report that it takes, in bytes.
    room: Arc<AtomicUsize>,
}

impl Outlet for Recorder {
    fn publish(
        &mut self,
        _: &mut Publisher,
        changes: &[Change],
        _: &dyn Clock,
    ) -> Result<Generation, OutletError> {
        let mut refusals = self.refusals.lock().expect("no test panics with it");
        if *refusals > 0 {
            *refusals -= 1;
            return Err(OutletError {
                what: "no room".to_owned(),
                exit: Exit::Tmpfs,
            });
        }
        self.generation += 1;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let _ = self.published.send(
            changes
                .iter()
                .map(|(FileId(id), bytes)| (*id, text(bytes)))
                .collect(),
        );
        let (announced, generation) = (self.announced.clone(), Generation(self.generation));
        // Once it fails; being tended it announces again, more than once.
        announced.failed("a file is busy".to_owned());
        std::thread::spawn(move || announced.done(generation))
            .join()
            .expect("it does not panic");
        Ok(generation)
    }

    fn report(
        &mut self,
        _: &mut Publisher,
        bytes: &[u8],
        _: &dyn Clock,
    ) -> Result<(), OutletError> {
        if bytes.len() > self.room.load(SeqCst) {
            return Err(OutletError {
                what: "no room".to_owned(),
                exit: Exit::Memory,
            });
        }
        let _ = self.reports.send(bytes.to_vec());
        Ok(())
    }

    fn tend(&mut self, _: &mut Publisher, _: &dyn Clock) -> Option<Duration> {
        self.announced.done(Generation(self.generation));
        let _ = self.tended.send(());
        None
    }

    fn close(self) {
        let _ = self.published.send(BTreeMap::new());
    }
}

/// An arena that holds a checkpoint and nothing else.
fn arena() -> Arc<Arena> {
    let spec = |name| FileSpec {
        name: FileName::new(name).expect("a good name"),
        owner: Owner { uid: 0, gid: 0 },
        mode: 0,
        visibility: Visibility::Private,
    };
    let specs = CHECKPOINT.map(spec).to_vec();
    Arc::new(Arena::create(specs, Some(256 << 10), Backing::Locked).expect("memory can be locked"))
}

/// What a successor would find.
fn checkpoint(arena: &Arc<Arena>) -> Value {
    let reader = crate::snapshot::Reader::new(Arc::clone(arena));
    let version = arena
        .files_in(Visibility::Private)
        .next()
        .and_then(|file| reader.current(file))
        .expect("a checkpoint");
    let mut bytes = vec![0; usize::try_from(version.len).expect("it fits")];
    reader
        .read(version.nodeid, 0, &mut bytes)
        .expect("it is live");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// A role that runs in a thread, seen from supervise.
struct Rig {
    server: Server,
    log: Receiver<String>,
    published: Receiver<BTreeMap<u32, String>>,
    refusals: Arc<Mutex<u32>>,
    tendings: Receiver<()>,
    reports: Receiver<Vec<u8>>,
    room: Arc<AtomicUsize>,
    link: End,
    role: JoinHandle<Exit>,
}

impl Rig {
    fn start(queries: &[&str], contents: Vec<Content>, change: impl FnOnce(&mut Script)) -> Self {
        Self::start_refused(queries, contents, 0, change)
    }

    fn start_refused(
        queries: &[&str],
        contents: Vec<Content>,
        refusals: u32,
        change: impl FnOnce(&mut Script),
    ) -> Self {
        let hooked = |content| (content, Some(HookId(0)));
        Self::start_with(
            queries,
            contents.into_iter().map(hooked).collect(),
            refusals,
            change,
            |_| {},
        )
    }

    /// `before` gets the role's end of the link.
    fn start_with(
        queries: &[&str],
        contents: Vec<(Content, Option<HookId>)>,
        refusals: u32,
        change: impl FnOnce(&mut Script),
        before: impl FnOnce(&End),
    ) -> Self {
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
            together: 0,
            gate: None,
            revokes: true,
            serial: 0,
            unsaved: Vec::new(),
        };
        change(&mut script);
        let (sender, log) = channel();
        let barrier = Arc::new(tokio::sync::Barrier::new(script.together.max(1)));
        let arena = arena();
        let server = Server {
            script: Arc::new(Mutex::new(script)),
            barrier,
            log: sender,
            paths: queries.iter().map(|path| (*path).to_owned()).collect(),
            arena: Arc::clone(&arena),
        };
        let (sender, published) = channel();
        let refusals = Arc::new(Mutex::new(refusals));
        let ((tended, tendings), (reported, reports)) = (channel(), channel());
        let left = Arc::clone(&refusals);
        let room = Arc::new(AtomicUsize::new(usize::MAX));
        let space = Arc::clone(&room);
        let open = move |announced| {
            Ok(Recorder {
                published: sender,
                announced,
                generation: 0,
                refusals: left,
                tended,
                reports: reported,
                room: space,
            })
        };
        let (link, end) = pair().expect("a socket pair");
        before(&end);
        let file = |(n, (content, on_change))| File {
            on_change,
            ..file(&format!("f{n}"), content)
        };
        let files = contents.into_iter().enumerate().map(file).collect();
        let plan = plan(
            queries.iter().map(|path| query(path, None)).collect(),
            files,
        );
        let quick = Backoff::new(MS(5), MS(50));
        let timing = Timing {
            retry: quick,
            slow: quick,
            grace: Duration::from_mins(5),
            refresh: MS(20),
        };
        let settings = Settings {
            timing,
            leave: MS(200),
            ..settings(&plan)
        };
        let source = server.clone();
        let role = std::thread::spawn(move || {
            run(&plan, source, &arena, open, &end, &RealClock, &settings)
        });
        Self {
            server,
            log,
            published,
            refusals,
            tendings,
            reports,
            room,
            link,
            role,
        }
    }

    /// The next message of the role.
    fn hear(&self) -> Received<FromRole> {
        let mut ready = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("it fits");
        assert_eq!(
            poll(&mut ready, patience).expect("poll"),
            1,
            "the role says nothing"
        );
        self.link.receive()
    }

    fn ready(&self) -> BTreeMap<u32, String> {
        assert_eq!(self.hear(), Received::Message(FromRole::Ready));
        self.next()
    }

    /// The next publication.
    fn next(&self) -> BTreeMap<u32, String> {
        self.published
            .recv_timeout(PATIENCE)
            .expect("a publication")
    }

    /// Waits for `times` requests of this kind.
    fn asked(&self, what: &str, times: usize) {
        let mut left = times;
        while left > 0 {
            let request = self
                .log
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("`{what}` was not asked {times} times"));
            left -= usize::from(request.starts_with(what));
        }
    }

    /// Waits for a report on a file of which `is` is true; every report is checked to hold no
    /// value.
    fn report(&self, file: usize, is: impl Fn(&FileReport) -> bool) -> Report {
        loop {
            let bytes = self.reports.recv_timeout(PATIENCE).expect("a report");
            let text = String::from_utf8(bytes).expect("text");
            assert!(
                !["one", "two", "token-", "lease\""]
                    .iter()
                    .any(|value| text.contains(value)),
                "{text}"
            );
            let report: Report = serde_json::from_str(&text).expect("a report");
            if is(&report.files[file]) {
                return report;
            }
        }
    }

    /// Ends the role; gives its exit code and what it asked since the last look.
    fn end(self, message: ToRole) -> (Exit, Vec<String>) {
        self.link.send(&message).expect("the role lives");
        let exit = self.role.join().expect("the role does not panic");
        (exit, self.log.try_iter().collect())
    }
}

fn settings(plan: &Plan) -> Settings {
    let served = Served {
        how: "fuse".into(),
        fallback: None,
        swap: None,
    };
    Settings::new(plan, served, RestartHistory::default())
}

fn all(values: &[&str]) -> BTreeMap<u32, String> {
    (0_u32..)
        .zip(values.iter().map(|value| (*value).to_owned()))
        .collect()
}

#[test]
fn the_first_publication_is_complete_and_its_reads_run_side_by_side() {
    let contents = vec![
        field(0, "a"),
        field(1, "b"),
        Content::Json { query: QueryId(2) },
        Content::Token,
    ];
    let rig = Rig::start(&["k0", "k1", "k2"], contents, |script| script.together = 3);
    assert_eq!(
        rig.ready(),
        all(&["one", "two", r#"{"a":"one","b":"two"}"#, "token-1"])
    );
    let (exit, asked) = rig.end(ToRole::Stop);
    assert_eq!(exit, Exit::Ok);
    assert_eq!(asked.iter().filter(|asked| *asked == "login").count(), 1);
    assert_eq!(asked.last().map(String::as_str), Some("revoke token-1"));
}

#[test]
fn a_question_of_supervise_is_answered_and_is_no_news() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.ready();
    for _ in 0..3 {
        rig.link.send(&ToRole::Ping).expect("the role lives");
        assert_eq!(rig.hear(), Received::Message(FromRole::Alive));
    }
    rig.end(ToRole::Stop);
}

#[test]
fn a_swap_that_supervise_finds_is_in_the_report_until_it_is_gone() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.ready();
    for found in [
        Some(SwapExposure::Reachable),
        None,
        Some(SwapExposure::CgroupV1),
    ] {
        rig.link.send(&ToRole::Swap(found)).expect("the role lives");
        let cause = found.map(|why| why.to_string().into());
        while rig
            .report(0, |_| true)
            .served
            .swap
            .map(|trouble| trouble.cause)
            != cause
        {}
    }
    rig.end(ToRole::Stop);
}

#[test]
fn nothing_is_published_while_one_value_is_missing() {
    let denied = |script: &mut Script| drop(script.kv.insert("k1".to_owned(), Err(Cause::Denied)));
    let rig = Rig::start(&["k0", "k1"], vec![field(0, "a"), field(1, "a")], denied);
    rig.asked("read k0", 5);
    assert!(rig.published.try_recv().is_err());
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((1, json!({"a": "late"}))));
    assert_eq!(rig.ready(), all(&["one", "late"]));
    rig.end(ToRole::Stop);
}

#[test]
fn user_and_password_change_in_one_publication_of_one_lease() {
    let rig = Rig::start(
        &["db"],
        vec![field(0, "username"), field(0, "password")],
        |script| script.lease = MS(200),
    );
    let mut served = rig.ready();
    for _ in 0..3 {
        assert_eq!(served[&0].replace("user", "pass"), served[&1]);
        let next = rig.next();
        assert_eq!(rig.hear(), Received::Message(FromRole::Changed(HookId(0))));
        assert!(next[&0] != served[&0] && next[&1] != served[&1]);
        served = next;
    }
    assert_eq!(rig.end(ToRole::Stop).0, Exit::Ok);
}

#[test]
fn a_poll_without_a_change_publishes_nothing_and_a_change_only_what_changed() {
    let rig = Rig::start(
        &["k0", "k1"],
        vec![field(0, "a"), field(0, "b"), field(1, "a")],
        |_| {},
    );
    rig.ready();
    rig.asked("read k0", 6);
    assert!(rig.published.try_recv().is_err(), "nothing changed");
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Ok((2, json!({"a": "new", "b": "two"}))));
    assert_eq!(rig.next(), all(&["new"]));
    assert_eq!(rig.hear(), Received::Message(FromRole::Changed(HookId(0))));
    rig.asked("read k0", 4);
    assert_eq!(
        rig.link.receive::<FromRole>(),
        Received::Empty,
        "one change is told once"
    );
    rig.end(ToRole::Stop);
}

#[test]
fn a_template_of_two_secrets_follows_both() {
    let text = r#"{{ with secret "k0" }}{{ .Data.data.a }}{{ end }}-{{ with secret "k1" }}{{ .Data.data.a }}{{ end }}"#;
    let rig = Rig::start(&["k0", "k1"], vec![template(text), field(0, "b")], |_| {});
    assert_eq!(rig.ready(), all(&["one-one", "two"]));
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((2, json!({"a": "new"}))));
    assert_eq!(rig.next(), all(&["one-new"]));
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Ok((2, json!({"a": "newer", "b": "too"}))));
    assert_eq!(rig.next(), all(&["newer-new", "too"]));
    rig.end(ToRole::Stop);
}

#[test]
fn a_later_value_that_cannot_be_served_leaves_all_files_of_its_query() {
    let rig = Rig::start(&["k0"], vec![field(0, "a"), field(0, "b")], |_| {});
    rig.ready();
    for (version, broken) in [
        (2, json!({"a": "new"})),
        (3, json!({"a": "new", "b": ""})),
        (4, json!({"a": "new", "b": null})),
    ] {
        rig.server
            .script()
            .kv
            .insert("k0".to_owned(), Ok((version, broken)));
        rig.asked("read k0", 4);
    }
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Err(Cause::Unavailable));
    rig.asked("read k0", 4);
    assert!(
        rig.published.try_recv().is_err(),
        "the last good values stay"
    );
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Ok((5, json!({"a": "good", "b": "again"}))));
    assert_eq!(rig.next(), all(&["good", "again"]));
    rig.end(ToRole::Stop);
}

#[test]
fn a_new_token_is_served_in_its_sink_and_the_leases_follow_it() {
    let rig = Rig::start(
        &["db"],
        vec![Content::Token, field(0, "password")],
        |script| script.token = MS(300),
    );
    assert_eq!(rig.ready()[&0], "token-1");
    let sink = rig.next();
    let token = sink[&0].clone();
    assert_eq!(sink.len(), 1);
    let credential = rig.next();
    assert!(
        credential[&1].ends_with(&token),
        "{credential:?} is not of {token}"
    );
    rig.asked("revoke token-1", 1);
    rig.end(ToRole::Stop);
}

#[test]
fn every_request_is_in_the_checkpoint_before_it_is_sent() {
    let rig = Rig::start(
        &["db", "k1", "k2"],
        vec![Content::Token, field(0, "password"), field(1, "a")],
        |script| {
            (script.token, script.lease) = (MS(300), MS(100));
            script.kv.insert("k2".to_owned(), Err(Cause::Denied));
        },
    );
    rig.asked("read db", 1);
    rig.asked("look up", 1);
    rig.server
        .script()
        .kv
        .insert("k2".to_owned(), Ok((1, json!({"a": "late"}))));
    rig.ready();
    rig.asked("login", 1);
    rig.asked("revoke token-1", 1);
    assert_eq!(rig.server.script().unsaved, [""; 0]);
    rig.end(ToRole::Stop);
}

#[test]
fn giving_up_names_the_most_telling_cause_and_revokes() {
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
        rig.asked(wait_for, if *path == "hang" { 1 } else { 2 });
        assert!(
            rig.published.try_recv().is_err(),
            "nothing partial is published"
        );
        let logged_in = *wait_for != "login";
        let (exit, asked) = rig.end(ToRole::GiveUp);
        assert_eq!(exit, *expected, "{wait_for}");
        assert_eq!(
            asked.iter().any(|asked| asked.starts_with("revoke")),
            logged_in,
            "{asked:?}"
        );
    }
}

#[test]
fn an_answer_that_there_is_no_room_for_is_an_error_of_its_query_alone() {
    let paths = ["q0", "q1", "q2"];
    let files = (0..3)
        .map(|n| file(&format!("f{n}"), field(n, "a")))
        .collect();
    let plan = plan(paths.iter().map(|path| query(path, None)).collect(), files);
    let mut secrets = Secrets::new(&plan);
    // Many small fields, of 173 bytes each as they are reckoned: one large block would change how
    // the heap serves other tests.
    let reply = |mib: usize| {
        let fields = (0..mib * 6_050)
            .map(|n| (format!("{n:05}"), Value::Null))
            .chain([("a".to_owned(), json!("x"))])
            .collect();
        Reply {
            fields,
            engine: Engine::Other,
            lease: None,
        }
    };
    assert!(matches!(
        secrets.accept(QueryId(0), reply(5), Some(b"t")),
        Rendered::Nothing
    ));
    let Rendered::Unusable(errors) = secrets.accept(QueryId(1), reply(5), Some(b"t")) else {
        panic!("there is room")
    };
    let words = errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(
        words.len() == 1 && words[0].starts_with("rendering f1 "),
        "{words:?}"
    );
    assert!(
        words[0].contains(" from q1: the answer takes 5")
            && words[0].contains("of the 8388608 bytes"),
        "{words:?}"
    );
    let (missing, exit) = secrets.missing(None);
    assert_eq!((missing.len(), exit), (2, Exit::Data));
    // The same query may get a smaller one, or the one that it has may give way to one that fits.
    assert!(matches!(
        secrets.accept(QueryId(0), reply(6), Some(b"t")),
        Rendered::Nothing
    ));
    assert!(matches!(
        secrets.accept(QueryId(1), reply(1), Some(b"t")),
        Rendered::Nothing
    ));
    let Rendered::Changes(changes) = secrets.accept(QueryId(2), reply(0), Some(b"t")) else {
        panic!("all are there")
    };
    assert_eq!(changes.len(), 3);
    // Now only what is rendered is kept.
    assert!(matches!(
        secrets.accept(QueryId(2), reply(20), Some(b"t")),
        Rendered::Changes(_)
    ));
}

#[test]
fn what_is_missing_is_named_with_its_cause() {
    let plan = plan(
        vec![query("q0", None), query("q1", None)],
        vec![file("one", field(0, "a")), file("two", field(1, "a"))],
    );
    let mut secrets = Secrets::new(&plan);
    let names = |(missing, exit): (Vec<(&crate::names::FileName, String)>, Exit)| {
        (
            missing
                .iter()
                .map(|(name, why)| format!("{name}: {why}"))
                .collect::<Vec<_>>(),
            exit,
        )
    };
    assert_eq!(
        names(secrets.missing(None)),
        (
            vec![
                "one: reading q0: no answer came yet".to_owned(),
                "two: reading q1: no answer came yet".to_owned()
            ],
            Exit::Unavailable
        )
    );
    secrets.failed(QueryId(1), &failure(Cause::Denied, "reading q1"));
    secrets.accept(
        QueryId(0),
        crate::render::tests::reply(&json!({"b": "value"})),
        None,
    );
    let (missing, exit) = names(secrets.missing(None));
    assert_eq!(missing[1], "two: reading q1: Denied");
    assert!(
        missing[0].contains("no field `a`") && !missing[0].contains("value"),
        "{missing:?}"
    );
    assert_eq!(
        exit,
        Exit::Data,
        "what a person must mend in the data is more telling than a denied path"
    );
    let (missing, exit) = names(secrets.missing(Some(&failure(Cause::Login, "logging in"))));
    assert_eq!(
        (missing[0].as_str(), exit),
        ("one: logging in: Login", Exit::Login)
    );
}

#[test]
fn a_login_that_is_out_at_the_stop_is_waited_for_and_revoked() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
        script.gate = Some(Arc::clone(&gate));
    });
    rig.asked("login", 1);
    rig.link.send(&ToRole::Stop).expect("the role lives");
    gate.notify_one();
    assert_eq!(rig.role.join().expect("the role does not panic"), Exit::Ok);
    assert_eq!(
        rig.log
            .try_iter()
            .filter(|asked| asked == "revoke token-1")
            .count(),
        1
    );
}

#[test]
fn leaving_is_bounded_and_begins_when_supervise_is_gone() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
        script.revokes = false;
    });
    rig.ready();
    drop(rig.link);
    assert_eq!(rig.role.join().expect("the role does not panic"), Exit::Ok);
    assert!(rig.log.try_iter().any(|asked| asked == "revoke token-1"));
}

#[test]
fn a_first_publication_that_is_refused_ends_the_role() {
    let rig = Rig::start_refused(&["k0"], vec![field(0, "a")], 1, |_| {});
    assert_eq!(
        rig.role.join().expect("the role does not panic"),
        Exit::Tmpfs
    );
    assert!(rig.log.try_iter().any(|asked| asked == "revoke token-1"));
}

#[test]
fn an_outlet_is_tended_again_after_a_failed_announcement_and_closed_at_the_end() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.ready();
    for _ in 0..2 {
        rig.tendings
            .recv_timeout(PATIENCE)
            .expect("after the publication, and after the failure");
    }
    rig.link.send(&ToRole::Stop).expect("the role lives");
    assert_eq!(rig.next(), BTreeMap::new(), "it was closed");
    rig.role.join().expect("the role does not panic");
}

#[test]
fn an_outlet_that_cannot_be_opened_ends_the_role() {
    let (link, end) = pair().expect("a socket pair");
    let plan = plan(Vec::new(), Vec::new());
    let open = |_| {
        Err::<Recorder, _>(OutletError {
            what: "no thread".to_owned(),
            exit: Exit::Memory,
        })
    };
    let server = Rig::start(&[], Vec::new(), |_| {}).server;
    assert_eq!(
        run(
            &plan,
            server,
            &arena(),
            open,
            &end,
            &RealClock,
            &settings(&plan)
        ),
        Exit::Memory
    );
    drop(link);
}

#[test]
fn what_the_outlet_refuses_is_offered_again() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.ready();
    *rig.refusals.lock().expect("no test panics with it") = 3;
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Ok((2, json!({"a": "new"}))));
    assert_eq!(rig.next(), all(&["new"]));
    rig.end(ToRole::Stop);
}

#[test]
fn each_hook_of_the_files_that_changed_is_told_once() {
    let contents = vec![
        (field(0, "a"), Some(HookId(1))),
        (field(0, "b"), Some(HookId(7))),
        (Content::Json { query: QueryId(0) }, Some(HookId(1))),
        (field(1, "a"), None),
    ];
    let rig = Rig::start_with(&["k0", "k1"], contents, 0, |_| {}, |_| {});
    rig.ready();
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((2, json!({"a": "untold"}))));
    assert_eq!(rig.next()[&3], "untold");
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Ok((2, json!({"a": "new", "b": "new"}))));
    assert_eq!(rig.next().len(), 3);
    for hook in [1, 7] {
        assert_eq!(
            rig.hear(),
            Received::Message(FromRole::Changed(HookId(hook)))
        );
    }
    rig.asked("read k0", 3);
    assert_eq!(rig.link.receive::<FromRole>(), Received::Empty);
    rig.end(ToRole::Stop);
}

#[test]
fn what_a_full_link_refuses_is_told_later_and_once() {
    let noise = FromRole::Failed(Exit::Ok);
    let fill = |end: &End| while end.send(&noise).is_ok() {};
    let rig = Rig::start_with(
        &["k0"],
        vec![(field(0, "a"), Some(HookId(0)))],
        0,
        |_| {},
        fill,
    );
    rig.next();
    for version in 2..5 {
        rig.server
            .script()
            .kv
            .insert("k0".to_owned(), Ok((version, json!({"a": version}))));
        rig.next();
    }
    // Until the last change was announced, too.
    rig.log.try_iter().for_each(drop);
    rig.asked("read k0", 3);
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match rig.hear() {
            Received::Message(message) if message != noise => heard.push(message),
            Received::Message(_) => {}
            Received::Empty | Received::Closed => panic!("the role is gone"),
        }
    }
    assert_eq!(heard, [FromRole::Ready, FromRole::Changed(HookId(0))]);
    assert_eq!(rig.link.receive::<FromRole>(), Received::Empty);
    rig.end(ToRole::Stop);
}

#[test]
fn the_report_follows_a_secret_through_its_life() {
    let rig = Rig::start(
        &["k0", "k1"],
        vec![field(0, "a"), field(1, "a")],
        |script| {
            script.kv.insert("k1".to_owned(), Err(Cause::Denied));
        },
    );
    let waiting = rig.report(1, |file| {
        file.trouble
            .as_ref()
            .is_some_and(|trouble| &*trouble.cause == "k1: Denied")
    });
    assert_eq!(
        (
            waiting.format,
            waiting.served.how.as_str(),
            waiting.roles.serve
        ),
        (1, "fuse", None)
    );
    assert_eq!(
        waiting
            .files
            .iter()
            .map(|file| file.condition)
            .collect::<Vec<_>>(),
        [Condition::Missing; 2]
    );

    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((4, json!({"a": "one"}))));
    let fresh = rig.report(1, |file| file.condition == Condition::Fresh);
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

    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((5, json!({"a": "two"}))));
    rig.report(1, |file| (file.changes, file.version) == (2, Some(5)));
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Err(Cause::Unavailable));
    // Two refreshes of 20 ms are soon missed.
    let ended = rig.report(1, |file| file.condition == Condition::Ended);
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

    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((6, json!({"a": null}))));
    let null = rig.report(1, |file| {
        file.trouble
            .as_ref()
            .is_some_and(|trouble| trouble.cause.contains("the field `a` is null"))
    });
    assert_eq!(since(&null), since(&ended), "it lasts since its begin");
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((7, json!({"a": "two"}))));
    rig.report(1, |file| {
        file.condition == Condition::Fresh && file.version == Some(7) && file.trouble.is_none()
    });
    *rig.refusals.lock().expect("no test panics with it") = u32::MAX;
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((8, json!({"a": "one"}))));
    rig.report(1, |file| {
        file.trouble
            .as_ref()
            .is_some_and(|trouble| &*trouble.cause == "no room")
    });
    rig.end(ToRole::Stop);
}

#[test]
fn a_report_that_does_not_fit_is_written_without_causes_or_only_counts() {
    let rig = Rig::start(&["k0", "k1"], vec![field(0, "a"), field(1, "a")], |_| {});
    let until = |is: &dyn Fn(&Report) -> bool| {
        let next = || rig.reports.recv_timeout(PATIENCE).expect("a report");
        std::iter::repeat_with(|| serde_json::from_slice(&next()).expect("a report"))
            .take(1_000)
            .find(is)
            .expect("such a report")
    };
    let len = |report: &Report| serde_json::to_vec(report).expect("JSON").len();
    let fresh = until(&|report| {
        report
            .files
            .iter()
            .all(|file| file.condition == Condition::Fresh)
    });
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((2, json!({"a": null}))));
    let whole = until(&|report| report.files[1].condition == Condition::Ended);
    rig.room.store(len(&whole) - 10, SeqCst);
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Ok((2, json!({"a": "two"}))));
    let less = until(&|report| report.detail == Detail::NoCauses);
    let trouble = less.files[1].trouble.as_ref().expect("it is in trouble");
    assert_eq!(
        (&*trouble.cause, Some(trouble.since)),
        (
            "",
            whole.files[1].trouble.as_ref().map(|trouble| trouble.since)
        )
    );

    rig.room.store(len(&fresh) - 20, SeqCst);
    rig.server
        .script()
        .kv
        .insert("k0".to_owned(), Ok((3, json!({"a": "one"}))));
    let counted = until(&|report| report.files.is_empty());
    assert_eq!(
        counted.detail,
        Detail::Counts(Counts {
            fresh: 1,
            ended: 1,
            ..Counts::default()
        })
    );

    rig.room.store(0, SeqCst);
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((9, json!({"a": "two"}))));
    let mut published = rig.ready();
    while published.get(&1).is_none_or(|value| value != "two") {
        published = rig.next();
    }
    rig.room.store(usize::MAX, SeqCst);
    until(&|report| {
        report.detail == Detail::Full
            && report
                .files
                .iter()
                .all(|file| file.condition == Condition::Fresh)
    });
    rig.end(ToRole::Stop);
}

#[test]
fn names_of_fields_are_in_no_report() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    rig.report(0, |file| file.condition == Condition::Fresh);
    rig.server.script().kv.insert(
        "k0".to_owned(),
        Ok((2, json!({"aa": "two", "other": "two"}))),
    );
    let report = rig.report(0, |file| file.condition != Condition::Fresh);
    let cause = &report.files[0]
        .trouble
        .as_ref()
        .expect("it is in trouble")
        .cause;
    assert_eq!(
        &**cause,
        "rendering f0 (test.hcl:1) from k0: the secret has no field `a`"
    );
    rig.end(ToRole::Stop);
}

#[test]
fn the_report_is_fresh_before_supervise_hears_of_it() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |_| {});
    assert_eq!(rig.hear(), Received::Message(FromRole::Ready));
    let reports: Vec<Report> = rig
        .reports
        .try_iter()
        .map(|bytes| serde_json::from_slice(&bytes).expect("a report"))
        .collect();
    assert_eq!(
        reports.last().map(|report| report.files[0].condition),
        Some(Condition::Fresh)
    );
    rig.end(ToRole::Stop);
}

#[test]
fn a_login_that_fails_is_the_trouble_of_the_session_and_of_all_files() {
    let rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
        script.login = Some(Cause::Unreachable);
    });
    let report = rig.report(0, |file| {
        file.trouble
            .as_ref()
            .is_some_and(|trouble| trouble.cause.contains("logging in"))
    });
    assert_eq!(
        report.session.trouble.map(|trouble| trouble.cause),
        report.files[0].trouble.as_ref().map(|it| it.cause.clone())
    );
    rig.end(ToRole::Stop);
}

#[test]
fn a_lease_that_ends_without_a_successor_is_past_its_life() {
    let rig = Rig::start(
        &["db"],
        vec![field(0, "username"), Content::Token],
        |script| (script.token, script.lease) = (MS(700), MS(600)),
    );
    let fresh = rig.report(0, |file| file.condition == Condition::Fresh);
    assert!(fresh.files[0].lease_ends.is_some() && fresh.files[0].version.is_none());
    rig.server.script().login = Some(Cause::Unavailable);
    let ended = rig.report(0, |file| file.condition == Condition::Ended);
    assert!(ended.files[0].trouble.is_some());
    assert_eq!(
        ended.files[1].condition,
        Condition::Ended,
        "there is no token"
    );
    rig.server.script().login = None;
    rig.report(0, |file| file.condition == Condition::Fresh);
    rig.end(ToRole::Stop);
}

#[test]
fn a_refused_login_is_sent_again_when_the_credentials_change() {
    for cause in [Cause::Login, Cause::LockedOut { elsewhere: false }] {
        let rig = Rig::start(&["k0"], vec![field(0, "a")], |script| {
            script.login = Some(cause);
        });
        rig.report(0, |file| file.trouble.is_some());
        rig.asked("login", 1);
        // Longer than two looks, and no login.
        assert!(rig.log.recv_timeout(LOOK * 3).is_err(), "{cause:?}");
        rig.server.script().changed = true;
        rig.asked("login", 1);
        assert!(
            rig.log.recv_timeout(LOOK * 3).is_err(),
            "{cause:?}: refused again"
        );
        rig.server.script().login = None;
        rig.server.script().changed = true;
        rig.ready();
        rig.end(ToRole::Stop);
    }
}

#[test]
fn a_refresh_reads_at_once() {
    let slow = |script: &mut Script| script.token = Duration::from_hours(1);
    let rig = Rig::start(
        &["db", "k1"],
        vec![field(0, "username"), field(1, "a")],
        slow,
    );
    rig.ready();
    rig.link.send(&ToRole::Refresh).expect("the role lives");
    rig.server
        .script()
        .kv
        .insert("k1".to_owned(), Ok((2, json!({"a": "new"}))));
    assert_eq!(rig.next()[&1], "new");
    let (_, asked) = rig.end(ToRole::Stop);
    assert_eq!(
        asked.iter().filter(|asked| *asked == "read db").count(),
        1,
        "a live lease is not minted again"
    );
}
