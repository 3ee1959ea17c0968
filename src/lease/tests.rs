//! The machine against a scripted server, for hours of simulated time.

use super::source::{Cause, Failure, Lease, TokenGrant};
use super::*;
use crate::clock::{Jitter, Moment};
use crate::config::plan::Query;
use crate::names::{LeaseId, QueryId, SecretPath};
use crate::template::Read;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::collections::btree_map::OccupiedEntry;
use std::time::Duration;

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;
const LATENCY: Duration = Duration::from_millis(5);

fn at(seconds: u64) -> Moment {
    Moment::at(S(seconds))
}

fn failure(cause: Cause) -> Failure {
    Failure {
        cause,
        message: format!("{cause:?}"),
        retry_after: None,
    }
}

fn query(path: &str) -> Query {
    let path = SecretPath::new(path).expect("a good path");
    let version = None;
    Query {
        read: Read { path, version },
        refresh: None,
    }
}

fn scheduler(queries: &[Query], seed: u64, now: Moment) -> Scheduler {
    let mut machine = Scheduler::new(Timing::new(S(60)), Jitter::seeded(seed), now);
    for query in queries {
        machine.add(query, now);
    }
    machine
}

/// How a grant lives at the server.
#[derive(Clone, Copy, Debug)]
struct Life {
    ttl: Duration,
    max: Duration,
    renewable: bool,
}

#[derive(Debug)]
struct Live {
    end: Moment,
    max: Moment,
    /// The token that a lease dies with; a token's own number.
    token: u32,
}

type Fault = Box<dyn FnMut(&Request, Moment) -> Option<Cause>>;

/// A server and a machine in simulated time. Queries below `leased` have leases, the others are of
/// KV.
struct World {
    machine: Scheduler,
    now: Moment,
    token: Life,
    lease: Life,
    leased: u32,
    fault: Fault,
    tokens: BTreeMap<u32, Live>,
    leases: BTreeMap<u32, Live>,
    answers: BTreeMap<(Moment, usize), ScheduleInput>,
    log: Vec<(Moment, Request)>,
    /// Those of them that a fault hit.
    failed: Vec<(Moment, Request)>,
    said: Vec<Effect>,
    /// The checkpoint of each query.
    saved: Vec<Vec<u8>>,
    /// The lease that each query serves.
    served: BTreeMap<QueryId, u32>,
    /// How long a served lease was dead, over all queries.
    bad: Duration,
    /// Decides, while something is on its way, whether the process dies.
    fate: Option<Jitter>,
    deaths: usize,
    /// The query whose values cannot be rendered.
    unusable: Option<QueryId>,
    /// Logins and mints whose answers nobody heard.
    lost: (u32, usize),
}

impl World {
    fn new(leased: u32, kv: u32, lease: Life, token: Life) -> Self {
        let queries: Vec<Query> = (0..leased + kv).map(|n| query(&format!("q{n}"))).collect();
        let now = at(1_000);
        Self {
            machine: scheduler(&queries, 7, now),
            now,
            token,
            lease,
            leased,
            fault: Box::new(|_, _| None),
            tokens: BTreeMap::new(),
            leases: BTreeMap::new(),
            answers: BTreeMap::new(),
            log: Vec::new(),
            failed: Vec::new(),
            said: Vec::new(),
            saved: Vec::new(),
            served: BTreeMap::new(),
            bad: Duration::ZERO,
            fate: None,
            deaths: 0,
            unusable: None,
            lost: (0, 0),
        }
    }

    fn fault(mut self, fault: impl FnMut(&Request, Moment) -> Option<Cause> + 'static) -> Self {
        self.fault = Box::new(fault);
        self
    }

    /// Lets time pass until `seconds` after the start.
    fn run(&mut self, seconds: u64) {
        let end = at(1_000 + seconds);
        self.step(ScheduleInput::Tick);
        loop {
            if !self.answers.is_empty() && self.fate.as_mut().is_some_and(|fate| fate.unit() < 0.1)
            {
                self.die();
                self.step(ScheduleInput::Tick);
            }
            let answer = self.answers.first_key_value().map(|(key, _)| key.0);
            let Some(next) = answer
                .into_iter()
                .chain(self.machine.wake())
                .min()
                .filter(|next| *next <= end)
            else {
                break;
            };
            self.pass(next.max(self.now));
            assert!(
                self.log.len() < 200_000,
                "a hot loop: {:?}",
                &self.log[self.log.len() - 10..]
            );
            let input = match self
                .answers
                .first_entry()
                .filter(|entry| entry.key().0 <= next)
            {
                Some(entry) => entry.remove(),
                None => ScheduleInput::Tick,
            };
            self.step(input);
        }
        self.pass(end);
    }

    /// The process dies, and its successor goes on from what it had written down; the answers that
    /// were on their way are lost.
    fn die(&mut self) {
        for answer in std::mem::take(&mut self.answers).into_values() {
            self.lost.0 += u32::from(matches!(answer, ScheduleInput::LoggedIn(_)));
            self.lost.1 += usize::from(matches!(
                answer,
                ScheduleInput::Read(_, _, Ok(ReadValue { lease: Some(_), .. }))
            ));
        }
        let session = serde_json::to_vec(self.machine.session()).expect("it can be written");
        let session = serde_json::from_slice(&session).expect("and read");
        let queries = self.saved.iter();
        let queries = queries.map(|saved| serde_json::from_slice(saved).expect("and read"));
        let timing = Timing::new(S(60));
        self.machine = Scheduler::resume(session, queries.collect(), timing, self.now);
        self.deaths += 1;
    }

    /// Saves the queries that changed, as a checkpoint does, and compares the index of the queries
    /// with a walk over all of them.
    fn save(&mut self) {
        for query in self.machine.take_changed() {
            let state = serde_json::to_vec(self.machine.query(query)).expect("it can be written");
            match self.saved.get_mut(query.index()) {
                Some(saved) => *saved = state,
                None => self.saved.push(state),
            }
        }
        for (query, saved) in (0..).map(QueryId).zip(&self.saved) {
            let state = serde_json::to_vec(self.machine.query(query)).expect("it can be written");
            assert!(*saved == state, "{query:?} changed and was not named");
        }
        self.machine.queries.compare_with_a_walk(self.now);
    }

    fn pass(&mut self, to: Moment) {
        for lease in self.served.values() {
            let lease = &self.leases[lease];
            let token = &self.tokens[&lease.token];
            self.bad += to.since(self.now.max(lease.end.min(token.end)));
        }
        self.now = to;
    }

    fn step(&mut self, input: ScheduleInput) {
        if let ScheduleInput::Read(
            query,
            _,
            Ok(ReadValue {
                lease: Some(lease), ..
            }),
        ) = &input
        {
            self.served.insert(
                *query,
                lease.id.as_str().parse().expect("a lease that was given"),
            );
        }
        let before = self.said.len();
        let outputs = self.machine.step(input, self.now);
        self.save();
        for output in outputs {
            if let Effect::Ask(request) = output {
                self.answer(&request);
                self.log.push((self.now, request));
            } else {
                self.said.push(output);
            }
        }
        assert!(self.said.len() - before <= 8, "too much is said at once");
        assert!(
            self.machine.wake().is_none_or(|wake| wake > self.now),
            "it wants to be woken in the past"
        );
    }

    fn answer(&mut self, request: &Request) {
        let fault = (self.fault)(request, self.now);
        if fault.is_some() {
            self.failed.push((self.now, request.clone()));
        }
        let input = match request.clone() {
            Request::Revoke(token) => {
                let alive = |lease: &Live| lease.token == token.0 && lease.end > self.now;
                assert!(
                    !self.served.values().any(|lease| alive(&self.leases[lease])),
                    "the token of a served lease was revoked"
                );
                self.tokens
                    .get_mut(&token.0)
                    .expect("a token that was given")
                    .end = self.now;
                return;
            }
            Request::Login(id) => ScheduleInput::LoggedIn(
                fault.map_or_else(|| Ok(self.log_in(id.0)), |cause| Err(failure(cause))),
            ),
            Request::RenewToken(id) => {
                ScheduleInput::TokenRenewed(id, self.self_request(id, fault, true))
            }
            Request::LookUp(id) => ScheduleInput::LookedUp(id, self.self_request(id, fault, false)),
            Request::Read(query, id) => ScheduleInput::Read(query, id, self.read(query, id, fault)),
            Request::Renew(query, id, lease, increment) => {
                ScheduleInput::Renewed(query, id, self.renew(id, &lease, increment, fault))
            }
        };
        self.answers
            .insert((self.now.plus(LATENCY), self.log.len()), input);
    }

    fn log_in(&mut self, token: u32) -> TokenGrant {
        let (end, max) = (self.now.plus(self.token.ttl), self.now.plus(self.token.max));
        self.tokens.insert(token, Live { end, max, token });
        TokenGrant {
            ttl: Some(self.token.ttl),
            renewable: self.token.renewable,
        }
    }

    fn refuse(&self, token: TokenId, fault: Option<Cause>) -> Result<(), Failure> {
        let dead = self.tokens[&token.0].end <= self.now;
        fault
            .or(dead.then_some(Cause::Denied))
            .map_or(Ok(()), |cause| Err(failure(cause)))
    }

    fn self_request(
        &mut self,
        token: TokenId,
        fault: Option<Cause>,
        renew: bool,
    ) -> Result<TokenGrant, Failure> {
        self.refuse(token, fault)?;
        let live = self
            .tokens
            .get_mut(&token.0)
            .expect("a token that was given");
        if renew {
            live.end = self.now.plus(self.token.ttl).min(live.max);
        }
        Ok(TokenGrant {
            ttl: Some(live.end.since(self.now)),
            renewable: self.token.renewable,
        })
    }

    fn read(
        &mut self,
        query: QueryId,
        token: TokenId,
        fault: Option<Cause>,
    ) -> Result<ReadValue, Failure> {
        self.refuse(token, fault)?;
        let usable = self.unusable != Some(query);
        if query.0 >= self.leased {
            return Ok(ReadValue {
                lease: None,
                usable,
            });
        }
        let id = u32::try_from(self.leases.len()).expect("few leases");
        let (end, max) = (self.now.plus(self.lease.ttl), self.now.plus(self.lease.max));
        self.leases.insert(
            id,
            Live {
                end,
                max,
                token: token.0,
            },
        );
        let lease = Some(Lease {
            id: lease_id(id),
            ttl: self.lease.ttl,
            renewable: self.lease.renewable,
        });
        Ok(ReadValue { lease, usable })
    }

    fn renew(
        &mut self,
        token: TokenId,
        lease: &LeaseId,
        increment: Duration,
        fault: Option<Cause>,
    ) -> Result<Lease, Failure> {
        self.refuse(token, fault)?;
        let id: u32 = lease.as_str().parse().expect("a lease that was given");
        let live = self.leases.get_mut(&id).expect("a lease that was given");
        if live.end.min(self.tokens[&live.token].end) <= self.now {
            return Err(failure(Cause::NotFound));
        }
        live.end = self.now.plus(increment).min(live.max);
        Ok(Lease {
            id: lease.clone(),
            ttl: live.end.since(self.now),
            renewable: true,
        })
    }

    fn count(&self, which: impl Fn(&Request) -> bool) -> usize {
        self.log
            .iter()
            .filter(|(_, request)| which(request))
            .count()
    }

    fn logins(&self) -> usize {
        self.count(|r| matches!(r, Request::Login(_)))
    }

    fn reads_of(&self, n: u32) -> usize {
        self.count(|r| matches!(r, Request::Read(query, _) if query.0 == n))
    }
}

fn usable(lease: Option<Lease>) -> ReadValue {
    ReadValue {
        lease,
        usable: true,
    }
}

fn lease_id(n: u32) -> LeaseId {
    LeaseId::new(&n.to_string()).expect("not empty")
}

fn life(ttl: u64, max: u64) -> Life {
    Life {
        ttl: S(ttl),
        max: S(max),
        renewable: true,
    }
}

/// Seconds since the start of a world.
fn second(now: Moment) -> u64 {
    now.since(at(1_000)).as_secs()
}

fn is_renewal(request: &Request) -> bool {
    matches!(request, Request::Renew(..))
}

#[test]
fn a_calm_day_costs_little_and_serves_no_dead_lease() {
    let mut world = World::new(2, 2, life(600, 3_600), life(3_600, 4 * 3_600));
    world.run(24 * 3_600);
    assert_eq!(world.bad, Duration::ZERO);
    assert!(
        !world
            .said
            .iter()
            .any(|said| matches!(said, Effect::Failed(..) | Effect::Ended(_))),
        "{:?}",
        world.said
    );
    // 24 h / 4 h successions, each before the end.
    assert!((6..=8).contains(&world.logins()), "{}", world.logins());
    assert_eq!(
        world.count(|r| matches!(r, Request::Revoke(_))),
        world.logins() - 1,
        "every replaced token is revoked"
    );
    assert_eq!(world.count(|r| matches!(r, Request::LookUp(_))), 0);
    // An hour's lease is replaced before its maximum; a successor of the token brings one more.
    assert!(
        (24..=40).contains(&world.reads_of(0)),
        "{}",
        world.reads_of(0)
    );
    assert!(
        (288..=320).contains(&world.reads_of(2)),
        "{}",
        world.reads_of(2)
    );
    assert!(world.log.len() < 1_300, "{}", world.log.len());
}

#[test]
fn four_reads_run_side_by_side_at_the_start() {
    let mut world = World::new(3, 6, life(600, 3_600), life(3_600, 3_600));
    world.run(1);
    assert!(matches!(world.log[0].1, Request::Login(_)));
    let sent: Vec<Duration> = world.log[1..]
        .iter()
        .map(|(at, _)| at.since(world.log[1].0))
        .collect();
    let want: Vec<Duration> = (0..9).map(|n| LATENCY * (n / 4)).collect();
    assert_eq!(sent, want, "{:?}", world.log);
}

#[test]
fn reads_that_hang_delay_a_renewal_by_one_of_them_and_starve_nobody() {
    // 40 secrets whose reads take 10 s each, one with a lease of a minute, and one that is
    // refreshed like all others.
    let slow = |n: u32| (1..41).contains(&n);
    let queries: Vec<Query> = (0..42).map(|n| query(&format!("q{n}"))).collect();
    let mut machine = scheduler(&queries, 3, at(0));
    let (mut answers, mut now) = (BTreeMap::<(Moment, u32), ScheduleInput>::new(), at(0));
    let (mut out, mut serial, mut good, mut renewals) = (0, 0, 0, 0);
    machine.step(ScheduleInput::Tick, now);
    let mut outputs = machine.step(
        ScheduleInput::LoggedIn(Ok(TokenGrant {
            ttl: None,
            renewable: false,
        })),
        now,
    );
    while now < at(1_800) {
        for output in outputs.drain(..) {
            let Effect::Ask(request) = output else {
                continue;
            };
            serial += 1;
            let lease = Lease {
                id: lease_id(0),
                ttl: S(60),
                renewable: true,
            };
            let (wait, input) = match request {
                Request::Read(query, token) if slow(query.0) => (
                    S(10),
                    ScheduleInput::Read(query, token, Err(failure(Cause::Unreachable))),
                ),
                Request::Read(QueryId(0), token) => (
                    LATENCY,
                    ScheduleInput::Read(QueryId(0), token, Ok(usable(Some(lease)))),
                ),
                Request::Read(query, token) => {
                    good += 1;
                    (LATENCY, ScheduleInput::Read(query, token, Ok(usable(None))))
                }
                Request::Renew(query, token, ..) => {
                    renewals += 1;
                    (LATENCY, ScheduleInput::Renewed(query, token, Ok(lease)))
                }
                Request::Login(_)
                | Request::RenewToken(_)
                | Request::LookUp(_)
                | Request::Revoke(_) => panic!("{request:?}"),
            };
            out += 1;
            assert!(out <= 4, "{out} are out");
            answers.insert((now.plus(wait), serial), input);
        }
        let answer = answers.first_key_value().map(|(key, _)| key.0);
        now = answer
            .into_iter()
            .chain(machine.wake())
            .min()
            .expect("it goes on");
        let input = answers
            .first_entry()
            .filter(|entry| entry.key().0 <= now)
            .map(OccupiedEntry::remove);
        out -= u32::from(input.is_some());
        outputs = machine.step(input.unwrap_or(ScheduleInput::Tick), now);
        assert!(
            !outputs
                .iter()
                .any(|output| matches!(output, Effect::Ended(_))),
            "the lease ended at {now:?}"
        );
    }
    assert!((30..=60).contains(&renewals), "{renewals}");
    assert!((4..=8).contains(&good), "{good}");
}

#[test]
fn a_death_between_requests_costs_nothing() {
    let life_of = |deaths: bool| {
        let mut world = World::new(2, 2, life(60, 3_600), life(600, 4_000));
        for second in 1..3_000 {
            world.run(second);
            if deaths && world.answers.is_empty() {
                world.die();
            }
        }
        (world.count(|_| true), world.bad)
    };
    let (calm, dying) = (life_of(false), life_of(true));
    assert_eq!((calm.1, dying.1), (Duration::ZERO, Duration::ZERO));
    // The dice are thrown anew, so that dates differ within their jitter.
    assert!(
        dying.0.abs_diff(calm.0) <= calm.0 / 10,
        "{calm:?} {dying:?}"
    );
}

#[test]
fn what_an_unheard_answer_may_have_minted_is_not_left_behind() {
    let (mut deaths, mut unheard) = (0, 0);
    for seed in 0..40 {
        let mut world = World::new(3, 1, life(60, 120), life(600, 4_000));
        world.fate = Some(Jitter::seeded(seed));
        world.run(3_000);
        deaths += world.deaths;
        unheard += world.lost.1;
        assert_eq!(world.bad, Duration::ZERO, "seed {seed}");
        assert_eq!(world.machine.orphaned_logins(), world.lost.0, "seed {seed}");
        // Each death adds at most a login and a mint for each query.
        let calm = 3_000 / 102 + 2;
        let mints = (0..3).map(|n| world.reads_of(n)).sum::<usize>();
        assert!(
            world.logins() <= 2 + world.deaths,
            "seed {seed}: {} logins, {} deaths",
            world.logins(),
            world.deaths
        );
        assert!(
            mints <= 3 * (calm + world.deaths),
            "seed {seed}: {mints} mints, {} deaths",
            world.deaths
        );
        // What nobody heard of dies with its token, once everything lives under another.
        world.fate = None;
        world.run(3_000 + 650);
        let living = world
            .tokens
            .values()
            .filter(|token| token.end > world.now)
            .count();
        assert!(
            living <= 1 + world.lost.0 as usize,
            "seed {seed}: {living} tokens"
        );
        for lease in world
            .leases
            .values()
            .filter(|lease| lease.end > world.now && world.tokens[&lease.token].end > world.now)
        {
            assert_eq!(
                Some(lease.token),
                world.machine.session().current().map(|token| token.0),
                "seed {seed}: a lease was left behind"
            );
        }
    }
    assert!(
        deaths > 1_000 && unheard > 500,
        "{deaths} deaths, {unheard} unheard mints"
    );
}

#[test]
fn short_leases_and_tokens_live_on() {
    for (lease, token) in [
        (life(2, 6), life(4, 8)),
        (life(4, 4), life(3, 12)),
        (life(60, 120), life(8, 8)),
    ] {
        let mut world = World::new(2, 0, lease, token);
        world.run(600);
        assert_eq!(world.bad, Duration::ZERO, "{lease:?} {token:?}");
        let alive = world
            .tokens
            .values()
            .filter(|token| token.end > world.now)
            .count();
        assert!(alive <= 2, "{alive} tokens are left");
    }
}

#[test]
fn what_cannot_be_renewed_is_replaced_in_time() {
    let once = |ttl| Life {
        ttl: S(ttl),
        max: S(ttl),
        renewable: false,
    };
    let mut world = World::new(1, 0, once(90), once(300));
    world.run(3_600);
    assert_eq!((world.bad, world.count(is_renewal)), (Duration::ZERO, 0));
    assert_eq!(world.count(|r| matches!(r, Request::RenewToken(_))), 0);
    assert!(
        (60..=90).contains(&world.reads_of(0)),
        "{}",
        world.reads_of(0)
    );
}

#[test]
fn a_failed_renewal_mints_nothing_while_the_lease_lives() {
    let mut world =
        World::new(1, 0, life(3_600, 36_000), life(36_000, 36_000)).fault(|request, now| {
            let down = (1_000..3_200).contains(&second(now));
            (down && is_renewal(request)).then_some(Cause::Unavailable)
        });
    world.run(3_300);
    assert_eq!((world.reads_of(0), world.bad), (1, Duration::ZERO));
    assert!(
        (2..=40).contains(&world.count(is_renewal)),
        "{}",
        world.count(is_renewal)
    );
    let said = world
        .said
        .iter()
        .filter(|said| matches!(said, Effect::Failed(..)))
        .count();
    assert_eq!(said, 1, "one cause is said once");
}

#[test]
fn a_renewal_that_never_works_leads_to_a_replacement_before_the_end() {
    for cause in [Cause::Unavailable, Cause::Denied] {
        let mut world = World::new(1, 0, life(60, 6_000), life(36_000, 36_000))
            .fault(move |request, _| is_renewal(request).then_some(cause));
        world.run(600);
        assert_eq!(
            (world.bad, world.logins()),
            (Duration::ZERO, 1),
            "{cause:?}"
        );
        assert!(
            (10..=17).contains(&world.reads_of(0)),
            "{cause:?}: {}",
            world.reads_of(0)
        );
        let lookups = world.count(|r| matches!(r, Request::LookUp(_)));
        assert!(lookups <= world.count(is_renewal), "{cause:?}: {lookups}");
    }
}

#[test]
fn a_server_that_is_down_for_an_hour_is_asked_little() {
    for cause in [Cause::Unreachable, Cause::Unavailable, Cause::RateLimited] {
        let mut world = World::new(2, 2, life(9_000, 36_000), life(18_000, 36_000))
            .fault(move |_, now| (600..4_200).contains(&second(now)).then_some(cause));
        world.run(600);
        let before = world.log.len();
        world.run(4_200);
        assert!(
            world.log.len() - before < 2 * 100,
            "{} requests of two polled queries",
            world.log.len() - before
        );
        world.run(7_200);
        assert_eq!(
            (world.bad, world.logins(), world.reads_of(0)),
            (Duration::ZERO, 1, 1)
        );
    }
}

#[test]
fn a_server_that_is_down_at_the_start_is_asked_with_backoff() {
    let mut world = World::new(1, 1, life(60, 600), life(600, 6_000))
        .fault(|_, now| (second(now) < 3_600).then_some(Cause::Unreachable));
    world.run(3_599);
    assert!(
        world
            .log
            .iter()
            .all(|(_, request)| matches!(request, Request::Login(_)))
    );
    assert!((60..=130).contains(&world.logins()), "{}", world.logins());
    world.run(3_700);
    assert_eq!((world.served.len(), world.bad), (1, Duration::ZERO));
}

#[test]
fn rejected_credentials_are_tried_twice_whatever_happens_and_others_at_once() {
    let mut world = World::new(1, 0, life(60, 600), life(600, 6_000)).fault(|request, _| {
        matches!(request, Request::Login(TokenId(..=3))).then_some(Cause::Rejected)
    });
    world.run(1);
    for _ in 0..10 {
        world.die();
        world.step(ScheduleInput::Refresh);
    }
    world.run(3_600);
    assert_eq!(logins_at(&world), [0, 2]);
    assert!(
        matches!(
            world.said[..],
            [Effect::Failed(_, _, S2), Effect::Refused(_)]
        ),
        "{:?}",
        world.said
    );
    let view = world.machine.view(Subject::Session, world.now);
    assert!(view.trouble.is_some() && view.next.is_none() && world.machine.awaits_credentials());
    // The third login is rejected, too, and is said anew; the fourth works.
    world.step(ScheduleInput::CredentialsChanged);
    world.run(4_000);
    assert_eq!(logins_at(&world), [0, 2, 3_600, 3_602]);
    assert_eq!(world.said.len(), 3, "{:?}", world.said);
    assert!(
        !world.machine.awaits_credentials()
            && world
                .machine
                .view(Subject::Session, world.now)
                .trouble
                .is_none()
    );
    assert_eq!((world.served.len(), world.bad), (1, Duration::ZERO));
}

#[test]
fn a_role_that_is_locked_out_is_asked_again_after_a_quarter_of_an_hour() {
    for (elsewhere, first) in [(false, vec![0]), (true, vec![0, 0])] {
        let mut world = World::new(1, 0, life(60, 600), life(600, 6_000))
            .fault(move |_, now| (second(now) < 1_800).then_some(Cause::LockedOut { elsewhere }));
        world.run(890);
        assert_eq!(logins_at(&world), first);
        world.run(2_200);
        assert_eq!(
            world.logins(),
            2 * first.len() + 1,
            "{:?}",
            logins_at(&world)
        );
        let waits = logins_at(&world);
        assert!(
            waits
                .windows(2)
                .all(|pair| pair[0] == pair[1] || (900..=1_081).contains(&(pair[1] - pair[0]))),
            "{waits:?}"
        );
        assert_eq!(world.served.len(), 1);
    }
}

#[test]
fn a_crash_loop_does_not_spend_the_budget_of_refused_logins() {
    // Each life dies before the answer to its login comes.
    let mut world =
        World::new(1, 0, life(60, 600), life(600, 6_000)).fault(|_, _| Some(Cause::Rejected));
    for _ in 0..60 {
        world.step(ScheduleInput::Tick);
        world.die();
        world.pass(world.now.plus(S(5)));
    }
    assert_eq!(world.logins(), 3, "{:?}", logins_at(&world));
    // The server has forgotten them; what is rejected now is rejected for itself.
    world.run(7_200);
    let logins = logins_at(&world);
    assert!(
        logins.len() == 5 && logins[3] >= 900 && logins[4] == logins[3] + 2,
        "{logins:?}"
    );
}

#[test]
fn a_refusal_is_told_while_the_tokens_renewals_work() {
    // The token could not be renewed in time, a login was refused, and then renewals work again:
    // the next login will be refused.
    let mut world = World::new(0, 1, life(60, 600), life(600, 60_000)).fault(|request, now| {
        let late = matches!(request, Request::RenewToken(_)) && second(now) < 540;
        let refused = matches!(request, Request::Login(TokenId(2..))).then_some(Cause::Rejected);
        refused.or(late.then_some(Cause::Unavailable))
    });
    world.run(7_200);
    assert_eq!(world.logins(), 3, "{:?}", logins_at(&world));
    let view = world.machine.view(Subject::Session, world.now);
    assert!(
        view.trouble.is_some() && !view.ended && view.ends.is_some_and(|end| end > world.now),
        "{view:?}"
    );
    world.fault = Box::new(|_, _| None);
    world.step(ScheduleInput::CredentialsChanged);
    world.run(7_201);
    assert!(
        world
            .machine
            .view(Subject::Session, world.now)
            .trouble
            .is_none()
    );
    assert_eq!(
        (world.logins(), world.machine.session().current()),
        (4, Some(TokenId(4)))
    );
}

/// When logins were sent, in seconds since the start.
fn logins_at(world: &World) -> Vec<u64> {
    world
        .log
        .iter()
        .filter(|(_, request)| matches!(request, Request::Login(_)))
        .map(|(at, _)| second(*at))
        .collect()
}

/// The wait before the second try of rejected credentials.
const S2: Duration = Duration::from_secs(2);

#[test]
fn the_servers_word_on_when_to_ask_again_is_kept() {
    let mut machine = scheduler(&[query("q")], 1, at(0));
    machine.step(ScheduleInput::Tick, at(0));
    let limited = Failure {
        retry_after: Some(S(90)),
        ..failure(Cause::RateLimited)
    };
    machine.step(ScheduleInput::LoggedIn(Err(limited)), at(1));
    assert_eq!(machine.wake(), Some(at(91)));
    assert_eq!(machine.step(ScheduleInput::Tick, at(90)), []);
}

#[test]
fn a_dead_token_costs_one_lookup_one_login_and_one_read_for_each_lease() {
    let mut world = World::new(2, 3, life(60, 600), life(3_600, 36_000));
    world.run(100);
    world.tokens.get_mut(&1).expect("the first token").end = world.now;
    let before = world.log.len();
    world.run(140);
    let after: Vec<_> = world.log[before..]
        .iter()
        .map(|(_, request)| request.clone())
        .collect();
    let is = |which: fn(&Request) -> bool| after.iter().filter(|request| which(request)).count();
    assert_eq!(is(|r| matches!(r, Request::LookUp(_))), 1, "{after:?}");
    assert_eq!(is(|r| matches!(r, Request::Login(_))), 1, "{after:?}");
    assert_eq!(is(|r| matches!(r, Request::Read(..))), 2, "{after:?}");
    let second = &world.log[before..]
        .iter()
        .find(|(_, r)| matches!(r, Request::Login(_)))
        .expect("a login")
        .0;
    assert!(
        world.log.last().expect("a read").0.since(*second) < S(41),
        "at once"
    );
}

#[test]
fn a_denied_path_touches_nothing_else() {
    let mut world = World::new(1, 2, life(60, 600), life(36_000, 36_000)).fault(|request, now| {
        (second(now) > 10 && matches!(request, Request::Read(QueryId(1), _)))
            .then_some(Cause::Denied)
    });
    world.run(7_200);
    assert_eq!((world.logins(), world.bad), (1, Duration::ZERO));
    assert!(world.reads_of(1) < 40, "{}", world.reads_of(1));
    assert!(world.count(|r| matches!(r, Request::LookUp(_))) < 40);
    let said: Vec<_> = world
        .said
        .iter()
        .filter(|said| matches!(said, Effect::Failed(..)))
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn without_the_default_policy_logins_stay_few() {
    let mut world = World::new(1, 1, life(600, 6_000), life(3_600, 3_600)).fault(|request, _| {
        let denied = matches!(
            request,
            Request::LookUp(_)
                | Request::RenewToken(_)
                | Request::Renew(..)
                | Request::Read(QueryId(1), _)
        );
        denied.then_some(Cause::Denied)
    });
    world.run(36_000);
    assert!(world.logins() < 120, "{}", world.logins());
    assert_eq!(world.bad, Duration::ZERO);
}

#[test]
fn a_lease_that_is_gone_is_read_again_once() {
    let mut world = World::new(1, 0, life(60, 600), life(3_600, 36_000));
    world.run(30);
    world.leases.get_mut(&0).expect("the first lease").end = world.now;
    world.run(50);
    assert_eq!((world.reads_of(0), world.logins()), (2, 1));
    assert_eq!(world.said, [Effect::Ended(QueryId(0))]);
}

#[test]
fn the_old_token_outlives_its_successor_by_a_grace() {
    let mut world = World::new(1, 0, life(600, 36_000), life(3_600, 3_600));
    world.run(3_600);
    let time = |which: fn(&Request) -> bool| {
        world
            .log
            .iter()
            .filter(|(_, r)| which(r))
            .map(|(at, _)| second(*at))
            .collect::<Vec<_>>()
    };
    let (logins, revoked) = (
        time(|r| matches!(r, Request::Login(_))),
        time(|r| matches!(r, Request::Revoke(_))),
    );
    assert_eq!((logins.len(), revoked.len()), (2, 1));
    assert!(
        (3_600 - 376..=3_600 - 300).contains(&logins[1]),
        "{logins:?}"
    );
    assert!(
        revoked[0] > logins[1] + 250 && revoked[0] < 3_600,
        "{logins:?} {revoked:?}"
    );
}

#[test]
fn a_token_is_not_revoked_while_a_lease_of_it_is_served() {
    // Under the second token nothing can be read: the first one's lease is served to its end.
    let mut world = World::new(1, 0, life(36_000, 36_000), life(600, 600)).fault(|request, _| {
        matches!(request, Request::Read(_, TokenId(2..))).then_some(Cause::Unavailable)
    });
    world.run(599);
    assert_eq!((world.logins(), world.bad), (2, Duration::ZERO));
    assert_eq!(world.count(|r| matches!(r, Request::Revoke(_))), 0);
    world.run(700);
    assert!(
        world.said.contains(&Effect::Ended(QueryId(0))),
        "its end is said: {:?}",
        world.said
    );
}

#[test]
fn a_single_use_secret_id_keeps_its_token_to_the_end() {
    let mut world = World::new(1, 1, life(60, 600), life(600, 900)).fault(|request, _| {
        matches!(request, Request::Login(TokenId(2..))).then_some(Cause::Rejected)
    });
    world.run(899);
    assert_eq!((world.bad, world.logins()), (Duration::ZERO, 3));
}

#[test]
fn what_cannot_be_rendered_is_read_again_slowly() {
    let mut machine = scheduler(&[query("q")], 1, at(0));
    machine.step(ScheduleInput::Tick, at(0));
    machine.step(
        ScheduleInput::LoggedIn(Ok(TokenGrant {
            ttl: None,
            renewable: false,
        })),
        at(0),
    );
    let mut now = at(0);
    let mut reads = 0;
    while now < at(3_600) {
        let value = ReadValue {
            lease: None,
            usable: false,
        };
        machine.step(ScheduleInput::Read(QueryId(0), TokenId(1), Ok(value)), now);
        now = machine.wake().expect("it will be read again");
        reads += machine.step(ScheduleInput::Tick, now).len();
    }
    assert!((15..40).contains(&reads), "{reads}");
}

#[test]
fn a_refresh_reads_what_has_no_lease_and_mints_nothing() {
    let mut world = World::new(1, 2, life(3_600, 36_000), life(36_000, 36_000));
    world.run(10);
    world.step(ScheduleInput::Refresh);
    world.run(11);
    assert_eq!([0, 1, 2].map(|n| world.reads_of(n)), [1, 2, 2]);
    assert_eq!((world.logins(), world.count(is_renewal)), (1, 0));
    // The first of several takes effect at once, and the others are one, when a second is over.
    for _ in 0..5 {
        world.step(ScheduleInput::Refresh);
    }
    world.run(12);
    assert_eq!([0, 1, 2].map(|n| world.reads_of(n)), [1, 4, 4]);
    world.run(100);
    assert_eq!(
        [0, 1, 2].map(|n| world.reads_of(n)),
        [1, 4, 4],
        "each took effect once"
    );
}

#[test]
fn a_refresh_while_a_read_is_out_reads_once_more() {
    let mut world = World::new(0, 1, life(1, 1), life(36_000, 36_000));
    world.run(0);
    let (_, login) = world.answers.pop_first().expect("the login's answer");
    world.step(login);
    world.step(ScheduleInput::Refresh);
    world.run(60);
    let reads: Vec<u64> = world
        .log
        .iter()
        .filter(|(_, r)| matches!(r, Request::Read(..)))
        .map(|(at, _)| second(*at))
        .collect();
    assert_eq!(reads, [0, 1]);
}

#[test]
fn a_refresh_ends_every_wait_after_a_failure() {
    // What fails until the 1,000th second, and what is asked at once when a refresh comes there.
    type Row = (fn(&Request) -> bool, fn(&Request) -> bool);
    let table: &[Row] = &[
        (|_| true, |r| matches!(r, Request::Login(_))),
        (is_renewal, is_renewal),
        (
            |r| matches!(r, Request::RenewToken(_)),
            |r| matches!(r, Request::RenewToken(_)),
        ),
        (
            |r| matches!(r, Request::Read(..)),
            |r| matches!(r, Request::Read(..)),
        ),
    ];
    for (n, (fails, tried)) in table.iter().enumerate() {
        let mut world = World::new(1, 1, life(1_200, 36_000), life(1_300, 36_000)).fault(
            move |request, now| {
                (fails(request) && second(now) < 1_000).then_some(Cause::Unavailable)
            },
        );
        world.run(999);
        world.step(ScheduleInput::Tick);
        world.now = at(2_000);
        let before = world.log.len();
        world.step(ScheduleInput::Refresh);
        assert!(
            world.log[before..]
                .iter()
                .any(|(_, request)| tried(request)),
            "row {n}: {:?}",
            &world.log[before..]
        );
        assert_eq!(world.bad, Duration::ZERO, "row {n}");
    }
}

#[test]
fn a_refresh_after_the_end_of_a_token_whose_renewals_failed_is_one_login() {
    let mut world = World::new(0, 1, life(1, 1), life(60, 600))
        .fault(|_, now| (second(now) > 10).then_some(Cause::Unavailable));
    world.run(100);
    let before = world.logins();
    world.step(ScheduleInput::Refresh);
    world.run(101);
    assert!(world.logins() - before <= 3, "{} logins", world.logins());
}

#[test]
fn what_is_known_of_a_query_follows_its_life() {
    let down = |request: &Request, now: Moment| {
        let hit = (1_000..5_000).contains(&second(now)) && !matches!(request, Request::Revoke(_));
        hit.then_some(Cause::Unreachable)
    };
    let mut world = World::new(1, 1, life(600, 36_000), life(3_600, 36_000)).fault(down);
    let (leased, polled) = (Subject::Query(QueryId(0)), Subject::Query(QueryId(1)));
    // (second, of which, trouble, ended, missed): the lease ends in the outage, and the token does;
    // two refreshes are 600 s.
    let table = [
        (900, leased, false, false, false),
        (900, polled, false, false, false),
        (900, Subject::Session, false, false, false),
        (1_350, polled, true, false, false),
        (1_900, leased, true, true, true),
        (1_950, polled, true, false, true),
        (4_990, Subject::Session, true, true, false),
        (4_990, polled, true, false, true),
        (5_300, leased, false, false, false),
        (5_300, polled, false, false, false),
        (5_300, Subject::Session, false, false, false),
    ];
    for (until, subject, trouble, ended, missed) in table {
        world.run(until);
        let view = world.machine.view(subject, world.now);
        assert_eq!(
            (view.trouble.is_some(), view.ended, view.missed),
            (trouble, ended, missed),
            "{subject:?} at {until} s: {view:?}"
        );
    }
    let view = world.machine.view(leased, world.now);
    assert!(
        view.ends.is_some_and(|end| end > world.now)
            && view.next.is_some_and(|next| next > world.now),
        "{view:?}"
    );
    assert_eq!(world.machine.view(polled, world.now).ends, None);
}

#[test]
fn what_the_policy_denies_and_is_done_without_is_no_trouble() {
    let mut world = World::new(1, 0, life(600, 36_000), life(3_600, 36_000))
        .fault(|request, _| is_renewal(request).then_some(Cause::Denied));
    world.run(500);
    assert_eq!(world.said.len(), 1, "it is said: {:?}", world.said);
    assert!(
        world
            .machine
            .view(Subject::Query(QueryId(0)), world.now)
            .trouble
            .is_none()
    );
}

/// Whether `a` and `b` ask for the same.
fn same(a: &Request, b: &Request) -> bool {
    match (a, b) {
        (Request::Read(a, _), Request::Read(b, _))
        | (Request::Renew(a, ..), Request::Renew(b, ..)) => a == b,
        _ => {
            std::mem::discriminant(a) == std::mem::discriminant(b)
                && !matches!(a, Request::Read(..) | Request::Renew(..))
        }
    }
}

/// A window of time in which one kind of request is spared, and all others fail.
fn window() -> impl Strategy<Value = (u64, u64, Cause, usize)> {
    let causes = [
        Cause::Unreachable,
        Cause::RateLimited,
        Cause::NotFound,
        Cause::Malformed,
        Cause::Denied,
    ];
    (
        0_u64..7_200,
        1_u64..3_600,
        proptest::sample::select(causes.to_vec()),
        0_usize..5,
    )
}

fn hits(
    (from, length, cause, spared): &(u64, u64, Cause, usize),
    request: &Request,
    now: Moment,
) -> Option<Cause> {
    let kind = match request {
        Request::Login(_) => 1,
        Request::Read(..) => 2,
        Request::Renew(..) => 3,
        Request::RenewToken(_) | Request::LookUp(_) | Request::Revoke(_) => 4,
    };
    // What these would say is true or another cause: the token is dead, the lease is gone, the
    // login is refused.
    let real = match request {
        Request::Login(_) | Request::LookUp(_) => *cause != Cause::Denied,
        Request::Renew(..) => *cause != Cause::NotFound,
        Request::Read(..) | Request::RenewToken(_) | Request::Revoke(_) => true,
    };
    ((*from..from + length).contains(&second(now)) && kind != *spared && real).then_some(*cause)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whatever fails, and however long: a failed request is repeated after a backoff only (a read also once for each login, a
    /// lookup for each 403), and an hour after the last fault everything is served from a living lease, by at most two tokens.
    #[test]
    fn faults_are_never_made_worse(
        lease in (2_u64..4_000, 1_u64..10, any::<bool>()),
        token in (2_u64..4_000, 1_u64..10, any::<bool>()),
        faults in proptest::collection::vec(window(), 0..6),
    ) {
        let make = |(ttl, times, renewable): (u64, u64, bool)| Life { ttl: S(ttl), max: S(ttl * times), renewable };
        let last = faults.iter().map(|(from, length, ..)| from + length).max().unwrap_or(0);
        let mut world = World::new(2, 1, make(lease), make(token)).fault(move |request, now| faults.iter().find_map(|f| hits(f, request, now)));
        world.run(last + 3_600);
        let mut early = 0;
        for (n, (later, request)) in world.failed.iter().enumerate() {
            let before = world.failed[..n].iter().rev().find(|(_, earlier)| same(earlier, request));
            if before.is_some_and(|(earlier, _)| later.since(*earlier) < MS(125)) {
                prop_assert!(matches!(request, Request::Read(..) | Request::LookUp(_)), "{:?} at {:?}", request, later);
                early += usize::from(matches!(request, Request::Read(..)));
            }
        }
        prop_assert!(early <= 3 * world.logins(), "{} reads without a backoff, {} logins", early, world.logins());
        for (n, (from, _)) in world.log.iter().enumerate() {
            let burst = world.log[n..].iter().take_while(|(at, _)| at.since(*from) < S(10)).count();
            prop_assert!(burst <= 150, "{} requests in 10 s from {:?}", burst, from);
        }
        prop_assert_eq!(world.served.len(), 2);
        for lease in world.served.values() {
            let lease = &world.leases[lease];
            prop_assert!(lease.end.min(world.tokens[&lease.token].end) > world.now, "a dead lease is served");
        }
        let alive = world.tokens.values().filter(|token| token.end > world.now).count();
        prop_assert!(alive <= 2, "{} tokens live", alive);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// However many refreshes come, and whenever, and whatever fails: a query is read once a second for them, and what has a
    /// lease not at all.
    #[test]
    fn refreshes_are_bounded(waits in proptest::collection::vec(0_u64..700, 1..200), faulty in any::<bool>()) {
        let mut world = World::new(1, 1, life(36_000, 36_000), life(36_000, 36_000))
            .fault(move |request, now| (faulty && second(now) > 5 && matches!(request, Request::Read(..))).then_some(Cause::Unavailable));
        world.run(1);
        for wait in waits {
            world.step(ScheduleInput::Refresh);
            let end = world.now.plus(MS(wait));
            while let Some(next) = world.answers.first_key_value().map(|(key, _)| key.0).into_iter().chain(world.machine.wake()).min() {
                if next > end {
                    break;
                }
                world.now = next;
                let input = world.answers.first_entry().filter(|it| it.key().0 <= next).map_or(ScheduleInput::Tick, OccupiedEntry::remove);
                world.step(input);
            }
            world.now = end;
        }
        prop_assert_eq!((world.reads_of(0), world.logins()), (1, 1));
        let reads: Vec<Moment> = world.log.iter().filter(|(_, r)| matches!(r, Request::Read(QueryId(1), _))).map(|(at, _)| *at).collect();
        let passed = usize::try_from(world.now.since(at(1_000)).as_secs()).expect("a few minutes");
        // Its own retries come besides: at most 9 until their wait is the longest.
        prop_assert!(reads.len() <= passed + 3 + if faulty { 9 } else { 0 }, "{} reads in {} s", reads.len(), passed);
        if !faulty {
            prop_assert!(reads.windows(2).all(|pair| pair[1].since(pair[0]) >= MS(990)), "{:?}", reads);
        }
    }
}

#[test]
fn a_query_that_is_added_later_is_read_at_once_and_kept_fresh() {
    let mut world = World::new(1, 0, life(600, 36_000), life(36_000, 36_000));
    world.run(100);
    assert_eq!(world.machine.add(&query("q1"), world.now), QueryId(1));
    assert_eq!(world.machine.wake(), Some(world.now));
    world.run(101);
    assert_eq!([0, 1].map(|n| world.reads_of(n)), [1, 1]);
    world.die();
    world.run(500);
    assert_eq!([0, 1].map(|n| world.reads_of(n)), [1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    /// `World::save` compares the index with a walk, and the checkpoint with the state, after each
    /// step.
    #[test]
    fn the_index_agrees_with_a_walk(
        lease in 2_u64..900,
        acts in proptest::collection::vec((0_u8..7, 0_u64..200, 0_u32..3), 1..30),
        faults in proptest::collection::vec(window(), 0..4),
    ) {
        let mut world = World::new(2, 1, life(lease, 3 * lease), life(1_200, 2_400))
            .fault(move |request, now| faults.iter().find_map(|f| hits(f, request, now)));
        for (act, pause, query_id) in acts {
            world.run(second(world.now) + pause);
            match act {
                0 => world.step(ScheduleInput::Refresh),
                1 => world.unusable = Some(QueryId(query_id)),
                2 => world.step(ScheduleInput::CredentialsChanged),
                3 => world.die(),
                4 => drop(world.machine.add(&query("added"), world.now)),
                _ => {}
            }
        }
    }
}
