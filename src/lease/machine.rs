//! The machine that keeps a token, its successor and every lease alive: `step(input, now) ->
//! outputs`. Invariants: at most one request a query and one for the session are out at a time; a
//! lease that lives is never minted again because a renewal failed; a token goes only after its
//! successor came, and is not revoked while a lease of it is served.

use super::protocol::{Input, Output, Request, Subject, TokenId, View};
use super::refusals::Refusals;
use super::renewal::{Dates, Grant, Pace, poll};
use super::source::{Cause, Failure, Lease, TokenGrant};
use crate::clock::{Backoff, Jitter, Moment};
use crate::config::plan::Query;
use crate::exit::Exit;
use crate::names::{LeaseId, QueryId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How many reads and renewals of leases are out at once: what their answers take in memory has a
/// bound. Requests of the session come besides.
const AT_ONCE: usize = 4;
/// How long after a refresh the next one takes effect.
const REFRESH: Duration = Duration::from_secs(1);
/// The longest wait that a server's `Retry-After` is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

/// The two requests that keep something alive. Of the session: renew the token, log in. Of a query:
/// renew the lease, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Renew,
    Replace,
}

/// One request to be made some time.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Errand {
    /// When, if at all.
    at: Option<Moment>,
    /// How often in a row it failed.
    failures: u32,
}

/// What keeps one thing alive: its two errands, of which one is out at a time.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Work {
    renew: Errand,
    replace: Errand,
    /// The request that is out, and when it was sent: a life counts from there.
    sent: Option<(Moment, Step)>,
    /// A request was denied; it waits for the token's lookup.
    doubt: Option<(Step, Failure)>,
    /// When what it has ends.
    end: Option<Moment>,
    /// The last failure, and the cause of the last one that was told; none since the last success.
    failure: Option<Failure>,
    told: Option<Cause>,
}

/// One query.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Entry {
    refresh: Duration,
    work: Work,
    /// The lease of the value that is served, if it has one.
    lease: Option<Held>,
    /// How often a value could not be rendered.
    unusable: u32,
    /// Whether it was read and had no lease: reading it mints nothing.
    plain: bool,
    /// Its last lease has ended, and there is no other yet.
    ended: bool,
    /// When the last value that could be used was asked for, and the one before it.
    good: [Option<Moment>; 2],
    /// A refresh came while a read was out, which may give the value of before.
    again: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Held {
    id: LeaseId,
    /// The token it dies with.
    token: TokenId,
    /// What the read granted.
    first: Duration,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Token {
    id: TokenId,
    since: Moment,
    /// What the login granted.
    first: Duration,
}

/// A token that has a successor.
#[derive(Debug, Serialize, Deserialize)]
struct Retired {
    id: TokenId,
    revoke: Moment,
    end: Option<Moment>,
}

/// What a lookup says of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Alive,
    Dead,
    /// The lookup failed.
    Unknown,
    /// The token has a successor by now.
    Retired,
}

/// The whole state.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pace: Pace,
    #[serde(skip)]
    jitter: Jitter,
    session: Work,
    /// What earlier refusals mean for the next login.
    refusals: Refusals,
    token: Option<Token>,
    retired: Vec<Retired>,
    entries: Vec<Entry>,
    /// The number of the last login.
    logins: u32,
    /// How many tokens were found dead in a row, each before it was a grace old.
    deaths: u32,
    /// Whether the token was ever allowed to look itself up or to renew itself.
    sees_itself: bool,
    /// Whether a lookup is out.
    looking: bool,
    /// Whether something may live under the token that nobody heard of: an answer that a
    /// predecessor did not hear may have minted it. Then there is to be another token, and
    /// nothing is minted under this one unless no login succeeds.
    unheard: bool,
    /// How many logins were sent whose answers nobody heard: each may have left a token that
    /// nobody can name.
    lost_logins: u32,
    /// When the last refresh took effect, and when the next one does.
    refreshed: Option<Moment>,
    refresh: Option<Moment>,
}

impl Machine {
    /// A machine that will log in at `now` and then read all `queries`.
    #[must_use]
    pub fn new(queries: &[Query], pace: Pace, jitter: Jitter, now: Moment) -> Self {
        let entry = |query: &Query| Entry {
            refresh: query.refresh.unwrap_or(pace.refresh),
            work: Work::due(now),
            ..Entry::default()
        };
        Self {
            entries: queries.iter().map(entry).collect(),
            session: Work::due(now),
            refusals: Refusals::default(),
            pace,
            jitter,
            token: None,
            retired: Vec::new(),
            logins: 0,
            deaths: 0,
            sees_itself: false,
            looking: false,
            unheard: false,
            lost_logins: 0,
            refreshed: None,
            refresh: None,
        }
    }

    /// Goes on where a predecessor died, which this is a copy of from before it sent its last
    /// requests. Those whose answers it cannot have heard are sent again; what they may have
    /// minted is not left behind.
    #[must_use]
    pub fn revived(mut self, pace: Pace, now: Moment) -> Self {
        (self.pace, self.looking) = (pace, false);
        if self.session.lost() == Some(Step::Replace) {
            self.lost_logins += 1;
            self.refusals.unheard(now, &mut self.jitter);
        }
        for entry in &mut self.entries {
            self.unheard |= entry.work.lost() == Some(Step::Replace) && !entry.plain;
        }
        if self.unheard && self.token.is_some() {
            self.session.replace = Errand {
                at: Some(now),
                failures: 0,
            };
        }
        self
    }

    /// The token that requests are made with.
    #[must_use]
    pub fn present(&self) -> Option<TokenId> {
        self.token.map(|token| token.id)
    }

    /// How many logins were sent whose answers nobody heard: each may have left a token that lives
    /// to its end.
    #[must_use]
    pub fn lost_logins(&self) -> u32 {
        self.lost_logins
    }

    /// Takes `input` at `now`; the outputs are to be obeyed in order.
    pub fn step(&mut self, input: Input, now: Moment) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Tick => {}
            Input::LoggedIn(result) => self.logged_in(result, now, &mut out),
            Input::TokenRenewed(token, result) => self.token_renewed(token, result, now, &mut out),
            Input::LookedUp(token, result) => self.looked_up(token, &result, now, &mut out),
            Input::Read(query, token, result) => self.read(query, token, result, now, &mut out),
            Input::Renewed(query, token, result) => {
                self.renewed(query, token, result, now, &mut out);
            }
            Input::Unusable(query) => self.unusable(query, now),
            Input::CredentialsChanged => self.credentials_changed(now),
            // One that comes soon after another waits, and those that come while it waits are the
            // same.
            Input::Refresh => {
                self.refresh = Some(
                    self.refreshed
                        .map_or(now, |last| last.plus(REFRESH).max(now)),
                );
            }
        }
        self.turn(now, &mut out);
        out
    }

    /// When `Tick` is due next; `None`: only an answer can change something.
    #[must_use]
    pub fn wake(&self) -> Option<Moment> {
        // While as many as may be are out, only an answer lets the next one go.
        let asks = self.token.is_some() && self.free() > 0;
        let works = self
            .ready()
            .filter(|_| asks)
            .filter_map(|(_, entry)| entry.work.next());
        let ends = self.entries.iter().filter_map(|entry| entry.work.end);
        let retired = self.retired.iter().filter_map(|old| {
            if serves(&self.entries, old.id) {
                old.end
            } else {
                Some(old.revoke)
            }
        });
        let works = works.chain(self.next_of_session()).map(|(at, _)| at);
        works
            .chain(ends)
            .chain(self.session.end)
            .chain(retired)
            .chain(self.refresh)
            .min()
    }

    /// What is known at `now`.
    ///
    /// # Panics
    /// When there is no such query.
    #[must_use]
    pub fn view(&self, subject: Subject, now: Moment) -> View<'_> {
        let Subject::Query(query) = subject else {
            return self.view_of_session();
        };
        let entry = &self.entries[query.index()];
        let own = entry.work.view();
        // Without a token nothing is asked.
        let waits = self.token.is_none() && own.next.is_some_and(|next| next <= now);
        let trouble = own
            .trouble
            .or_else(|| self.view_of_session().trouble.filter(|_| waits));
        let missed = entry.lease.is_none()
            && entry.good[0].is_some_and(|good| now.since(good) > entry.refresh.saturating_mul(2));
        View {
            trouble,
            ended: entry.ended,
            missed,
            ..own
        }
    }

    /// Whether the next login waits for other credentials: then they are to be watched.
    #[must_use]
    pub fn awaits_credentials(&self) -> bool {
        !self.refusals.is_open() && self.session.sent.is_none()
    }

    fn view_of_session(&self) -> View<'_> {
        let own = self.session.view();
        let next = self.next_of_session().map(|(at, _)| at);
        View {
            trouble: own.trouble.or(self.refusals.why()),
            ended: self.token.is_none(),
            next,
            ..own
        }
    }

    /// The session's next request; a login waits for what earlier refusals ask for.
    fn next_of_session(&self) -> Option<(Moment, Step)> {
        self.session.next_with(
            self.session
                .replace
                .at
                .and_then(|at| self.refusals.admit(at)),
        )
    }

    fn credentials_changed(&mut self, now: Moment) {
        if self.awaits_credentials() {
            self.refusals = Refusals::default();
            self.session.replace.at = Some(now);
            self.session.told = None;
        }
    }

    fn logged_in(
        &mut self,
        result: Result<TokenGrant, Failure>,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        let sent = self.session.answered(now);
        match result {
            Ok(grant) => {
                if let Some(old) = self.token.take() {
                    let end = self.session.end;
                    self.retired.push(Retired {
                        id: old.id,
                        revoke: self.pace.revocation(end, now),
                        end,
                    });
                }
                self.unheard = false;
                self.refusals.worked();
                let first = grant.ttl.unwrap_or_default();
                self.token = Some(Token {
                    id: TokenId(self.logins),
                    since: sent,
                    first,
                });
                self.grant_token(grant, first, sent);
                for entry in self
                    .entries
                    .iter_mut()
                    .filter(|entry| entry.lease.is_some())
                {
                    entry.work.replace.at = Some(now);
                }
            }
            Err(failure) if failure.cause.exit() == Exit::Login => self.refuse(&failure, now, out),
            Err(failure) => self.postpone(Subject::Session, Step::Replace, &failure, now, out),
        }
    }

    /// A refused login is a wait of its own, or one without an end.
    fn refuse(&mut self, failure: &Failure, now: Moment, out: &mut Vec<Output>) {
        let wait = self.refusals.refused(failure, now, &mut self.jitter);
        self.session.failed_until(Step::Replace, failure, now);
        match wait {
            Some(wait) => self.session.tell(Subject::Session, failure, wait, out),
            None => out.push(Output::Refused(failure.clone())),
        }
    }

    fn token_renewed(
        &mut self,
        token: TokenId,
        result: Result<TokenGrant, Failure>,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        let sent = self.session.answered(now);
        let Some(current) = self.token.filter(|current| current.id == token) else {
            return;
        };
        match result {
            Ok(grant) => {
                self.sees_itself = true;
                self.grant_token(grant, current.first, sent);
            }
            Err(failure) if failure.cause == Cause::Denied => {
                self.doubt(Subject::Session, Step::Renew, token, failure, now, out);
            }
            Err(failure) => self.postpone(Subject::Session, Step::Renew, &failure, now, out),
        }
    }

    fn grant_token(&mut self, grant: TokenGrant, first: Duration, sent: Moment) {
        let dates = grant.ttl.map(|ttl| {
            Grant {
                ttl,
                renewable: grant.renewable,
                first,
            }
            .dates(self.pace.grace, sent, &mut self.jitter)
        });
        self.session.granted(dates.unwrap_or_default());
    }

    fn read(
        &mut self,
        query: QueryId,
        token: TokenId,
        result: Result<Option<Lease>, Failure>,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        let Some(entry) = self.entries.get_mut(query.index()) else {
            return;
        };
        let sent = entry.work.answered(now);
        match result {
            Ok(lease) => {
                entry.ended = false;
                entry.good = [Some(sent), entry.good[0]];
                let again = std::mem::take(&mut entry.again).then(|| sent.plus(REFRESH));
                let left = entry.lease.take().map(|held| held.token);
                entry.plain = lease.is_none();
                if let Some(lease) = lease.filter(|lease| !lease.ttl.is_zero()) {
                    let first = lease.ttl;
                    entry.lease = Some(Held {
                        id: lease.id.clone(),
                        token,
                        first,
                    });
                    self.grant_lease(query, &lease, first, token, sent);
                } else {
                    let dates = poll(entry.refresh, sent, &mut self.jitter);
                    entry.work.granted(Dates {
                        replace: dates.replace.into_iter().chain(again).min(),
                        ..dates
                    });
                }
                self.spare(left, now);
            }
            Err(failure) if failure.cause == Cause::Denied => self.doubt(
                Subject::Query(query),
                Step::Replace,
                token,
                failure,
                now,
                out,
            ),
            Err(failure) => self.postpone(Subject::Query(query), Step::Replace, &failure, now, out),
        }
    }

    fn renewed(
        &mut self,
        query: QueryId,
        token: TokenId,
        result: Result<Lease, Failure>,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        let Some(entry) = self.entries.get_mut(query.index()) else {
            return;
        };
        let sent = entry.work.answered(now);
        let Some(held) = &entry.lease else { return };
        match result {
            Ok(lease) => {
                let (first, token) = (held.first, held.token);
                self.grant_lease(query, &lease, first, token, sent);
            }
            Err(failure) if failure.cause == Cause::NotFound => entry.lose(now),
            Err(failure) if failure.cause == Cause::Denied => {
                self.doubt(Subject::Query(query), Step::Renew, token, failure, now, out);
            }
            Err(failure) => self.postpone(Subject::Query(query), Step::Renew, &failure, now, out),
        }
    }

    /// Sets the dates of a lease that was made under `token`.
    fn grant_lease(
        &mut self,
        query: QueryId,
        lease: &Lease,
        first: Duration,
        token: TokenId,
        sent: Moment,
    ) {
        let Some(entry) = self.entries.get_mut(query.index()) else {
            return;
        };
        // What was never renewable is read at two thirds of its life, however long.
        let reserve = if lease.renewable {
            self.pace.grace
        } else {
            Duration::MAX
        };
        let mut dates = Grant {
            ttl: lease.ttl,
            renewable: lease.renewable,
            first,
        }
        .dates(reserve, sent, &mut self.jitter);
        if self.token.is_none_or(|current| current.id != token) {
            dates.replace = Some(sent);
        }
        entry.work.granted(dates);
    }

    /// What has no lease and cannot be rendered is read again slowly; a credential is not minted
    /// again for that.
    fn unusable(&mut self, query: QueryId, now: Moment) {
        let Some(entry) = self
            .entries
            .get_mut(query.index())
            .filter(|entry| entry.lease.is_none())
        else {
            return;
        };
        entry.good[0] = entry.good[1];
        let wait = self.pace.slow.delay(entry.unusable, &mut self.jitter);
        entry.unusable = entry.unusable.saturating_add(1);
        entry.work.replace.at = entry.work.replace.at.min(Some(now.plus(wait)));
    }

    /// A replaced token lives a grace on from the last time something stopped using it.
    fn spare(&mut self, left: Option<TokenId>, now: Moment) {
        if let Some(old) = self.retired.iter_mut().find(|old| Some(old.id) == left) {
            old.revoke = self.pace.revocation(old.end, now);
        }
    }
}

/// Failures.
impl Machine {
    fn work(&mut self, subject: Subject) -> Option<&mut Work> {
        work(&mut self.session, &mut self.entries, subject)
    }

    fn postpone(
        &mut self,
        subject: Subject,
        step: Step,
        failure: &Failure,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        let backoff = match failure.cause {
            // Of a login's own causes none comes here: see `Refusals`.
            Cause::Denied
            | Cause::NotFound
            | Cause::Malformed
            | Cause::Login
            | Cause::Rejected
            | Cause::LockedOut { .. } => self.pace.slow,
            Cause::Unreachable | Cause::Unavailable | Cause::RateLimited => self.pace.retry,
        };
        if let Some(work) = work(&mut self.session, &mut self.entries, subject) {
            let wait = work.failed(step, failure, backoff, now, &mut self.jitter);
            work.tell(subject, failure, wait, out);
        }
    }

    /// A 403: of a token that was replaced meanwhile it means nothing; else the token is looked up,
    /// once for all.
    fn doubt(
        &mut self,
        subject: Subject,
        step: Step,
        token: TokenId,
        failure: Failure,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        let current = self.token.is_some_and(|current| current.id == token);
        let Some(work) = self.work(subject) else {
            return;
        };
        if !current {
            work.replace.at = Some(now);
            return;
        }
        work.doubt = Some((step, failure));
        if !std::mem::replace(&mut self.looking, true) {
            out.push(Output::Ask(Request::LookUp(token)));
        }
    }

    fn looked_up(
        &mut self,
        token: TokenId,
        result: &Result<TokenGrant, Failure>,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        self.looking = false;
        let verdict = self.verdict(token, result, now);
        if verdict == Verdict::Dead {
            self.bury(token, now, out);
        }
        let queries = (0_u32..)
            .zip(&self.entries)
            .map(|(index, _)| Subject::Query(QueryId(index)));
        for subject in std::iter::once(Subject::Session)
            .chain(queries)
            .collect::<Vec<_>>()
        {
            if let Some((step, failure)) = self.work(subject).and_then(|work| work.doubt.take()) {
                self.settle(subject, step, &failure, verdict, now, out);
            }
        }
    }

    fn verdict(
        &mut self,
        token: TokenId,
        result: &Result<TokenGrant, Failure>,
        now: Moment,
    ) -> Verdict {
        let Some(current) = self.token.filter(|current| current.id == token) else {
            return Verdict::Retired;
        };
        if now.since(current.since) > self.pace.grace {
            self.deaths = 0;
        }
        match result {
            Ok(_) => {
                self.sees_itself = true;
                Verdict::Alive
            }
            // Without the `default` policy no token can look itself up: a second death so soon
            // would be one too many.
            Err(failure)
                if failure.cause == Cause::Denied && self.deaths > 0 && !self.sees_itself =>
            {
                Verdict::Alive
            }
            Err(failure) if failure.cause == Cause::Denied => Verdict::Dead,
            Err(_) => Verdict::Unknown,
        }
    }

    /// The token is dead, its leases with it: log in at once, and slowly if that happens again and
    /// again.
    fn bury(&mut self, token: TokenId, now: Moment, out: &mut Vec<Output>) {
        let wait = if self.deaths == 0 {
            Duration::ZERO
        } else {
            self.pace.slow.delay(self.deaths - 1, &mut self.jitter)
        };
        self.deaths = self.deaths.saturating_add(1);
        self.token = None;
        self.session.granted(Dates {
            replace: Some(now.plus(wait)),
            ..Dates::default()
        });
        self.end_leases(token, now);
        out.push(Output::Forget(token));
    }

    fn settle(
        &mut self,
        subject: Subject,
        step: Step,
        failure: &Failure,
        verdict: Verdict,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        match verdict {
            Verdict::Dead | Verdict::Retired => {
                if let Some(work) = self.work(subject).filter(|_| subject != Subject::Session) {
                    work.replace.at = Some(now);
                }
            }
            Verdict::Alive if step == Step::Renew => self.stop_renewing(subject, failure, now, out),
            Verdict::Alive | Verdict::Unknown => self.postpone(subject, step, failure, now, out),
        }
    }

    /// What the policy denies is tried once, said once, and done without.
    fn stop_renewing(
        &mut self,
        subject: Subject,
        failure: &Failure,
        now: Moment,
        out: &mut Vec<Output>,
    ) {
        let Some(work) = work(&mut self.session, &mut self.entries, subject) else {
            return;
        };
        if let Some(end) = work.end {
            let ttl = end.since(now);
            work.granted(
                Grant {
                    ttl,
                    renewable: false,
                    first: ttl,
                }
                .dates(self.pace.grace, now, &mut self.jitter),
            );
        }
        let wait = work.replace.at.map_or(Duration::ZERO, |at| at.since(now));
        work.tell(subject, failure, wait, out);
    }

    fn end_leases(&mut self, token: TokenId, now: Moment) {
        for entry in &mut self.entries {
            if entry.lease.as_ref().is_some_and(|held| held.token == token) {
                entry.lose(now);
            }
        }
    }
}

/// What is due.
impl Machine {
    /// Ends come before what follows from them.
    fn turn(&mut self, now: Moment, out: &mut Vec<Output>) {
        if self.refresh.is_some_and(|at| at <= now) {
            (self.refreshed, self.refresh) = (Some(now), None);
            self.refusals.hasten(now);
            self.hasten(now);
        }
        self.end_tokens(now, out);
        for (query, entry) in (0_u32..).map(QueryId).zip(&mut self.entries) {
            if entry.work.end.is_some_and(|end| end <= now) {
                entry.lose(now);
                entry.work.end = None;
                entry.ended = true;
                out.push(Output::Ended(query));
            }
        }
        self.revoke_retired(now, out);
        self.begin_session(now, out);
        let Some(token) = self.token else { return };
        for query in self.due(now) {
            let Some(entry) = self.entries.get_mut(query.index()) else {
                continue;
            };
            match (entry.work.begin(entry.work.next(), now), &entry.lease) {
                (Some(Step::Renew), Some(held)) => {
                    out.push(Output::Ask(Request::Renew(
                        query,
                        token.id,
                        held.id.clone(),
                        held.first,
                    )));
                }
                (Some(Step::Renew | Step::Replace), _) => {
                    out.push(Output::Ask(Request::Read(query, token.id)));
                }
                (None, _) => {}
            }
        }
    }

    /// The queries whose requests are to be sent now: renewals first, then what has been due for
    /// longest. So no query waits for others that fail again and again.
    fn due(&self, now: Moment) -> Vec<QueryId> {
        let next = |(query, entry): (QueryId, &Entry)| {
            entry
                .work
                .next()
                .map(|(at, step)| (step == Step::Replace, at, query))
        };
        let mut due: Vec<_> = self
            .ready()
            .filter_map(next)
            .filter(|(_, at, _)| *at <= now)
            .collect();
        due.sort_unstable();
        due.into_iter()
            .take(self.free())
            .map(|(_, _, query)| query)
            .collect()
    }

    /// The queries that may be asked for, now or later: a mint may have to wait for another token.
    fn ready(&self) -> impl Iterator<Item = (QueryId, &Entry)> {
        let waits = self.waits_for_login();
        (0_u32..)
            .map(QueryId)
            .zip(&self.entries)
            .filter(move |(_, entry)| !(waits && entry.is_minting()))
    }

    /// How many more reads and renewals may be out.
    fn free(&self) -> usize {
        AT_ONCE.saturating_sub(
            self.entries
                .iter()
                .filter(|entry| entry.work.sent.is_some())
                .count(),
        )
    }

    /// Whether the next mint is to be under another token, which a login may bring soon.
    fn waits_for_login(&self) -> bool {
        self.unheard && self.session.replace.failures == 0 && self.refusals.is_open()
    }

    /// What has no lease is read now, and what waits after a failure is tried now.
    fn hasten(&mut self, now: Moment) {
        for entry in &mut self.entries {
            entry.again = entry.lease.is_none() && entry.work.sent.is_some();
            if entry.lease.is_none() {
                entry.work.replace.at = Some(now);
            }
        }
        let works = self
            .entries
            .iter_mut()
            .map(|entry| &mut entry.work)
            .chain([&mut self.session]);
        for errand in works
            .flat_map(|work| [&mut work.renew, &mut work.replace])
            .filter(|errand| errand.failures > 0)
        {
            errand.at = Some(now);
        }
    }

    fn end_tokens(&mut self, now: Moment, out: &mut Vec<Output>) {
        let over = |end: Option<Moment>| end.is_some_and(|end| end <= now);
        let mut ended: Vec<TokenId> = self
            .retired
            .extract_if(.., |old| over(old.end))
            .map(|old| old.id)
            .collect();
        if over(self.session.end) {
            self.session.end = None;
            self.session.renew.at = None;
            ended.extend(self.token.take().map(|token| token.id));
        }
        for token in ended {
            self.end_leases(token, now);
            out.push(Output::Forget(token));
        }
    }

    fn revoke_retired(&mut self, now: Moment, out: &mut Vec<Output>) {
        let entries = &self.entries;
        let idle = self
            .retired
            .extract_if(.., |old| old.revoke <= now && !serves(entries, old.id));
        out.extend(idle.map(|old| Output::Ask(Request::Revoke(old.id))));
    }

    fn begin_session(&mut self, now: Moment, out: &mut Vec<Output>) {
        match (self.session.begin(self.next_of_session(), now), self.token) {
            (Some(Step::Renew), Some(token)) => {
                out.push(Output::Ask(Request::RenewToken(token.id)));
            }
            (Some(Step::Renew | Step::Replace), _) => {
                self.logins += 1;
                out.push(Output::Ask(Request::Login(TokenId(self.logins))));
            }
            (None, _) => {}
        }
    }
}

/// Whether a lease that is served dies with `token`.
fn serves(entries: &[Entry], token: TokenId) -> bool {
    entries
        .iter()
        .any(|entry| entry.lease.as_ref().is_some_and(|held| held.token == token))
}

impl Pace {
    /// When a token that was replaced at `now` is revoked: after the grace, and before it ends by
    /// itself.
    fn revocation(&self, end: Option<Moment>, now: Moment) -> Moment {
        let grace = end.map_or(self.grace, |end| {
            self.grace.min(end.since(now).mul_f64(0.9))
        });
        now.plus(grace)
    }
}

impl Entry {
    /// Whether its next request mints something.
    fn is_minting(&self) -> bool {
        !self.plain
            && self
                .work
                .next()
                .is_some_and(|(_, step)| step == Step::Replace)
    }

    /// The lease is gone; its value is served until there is another.
    fn lose(&mut self, now: Moment) {
        if self.lease.take().is_some() {
            self.work.renew = Errand::default();
            self.work.end = Some(now);
            if self.work.replace.failures == 0 {
                self.work.replace.at = Some(now);
            }
        }
    }
}

fn work<'a>(
    session: &'a mut Work,
    entries: &'a mut [Entry],
    subject: Subject,
) -> Option<&'a mut Work> {
    match subject {
        Subject::Session => Some(session),
        Subject::Query(query) => entries.get_mut(query.index()).map(|entry| &mut entry.work),
    }
}

impl Work {
    fn due(now: Moment) -> Self {
        Self {
            replace: Errand {
                at: Some(now),
                failures: 0,
            },
            ..Self::default()
        }
    }

    /// The next request and its time; none while one is out or in doubt.
    fn next(&self) -> Option<(Moment, Step)> {
        self.next_with(self.replace.at)
    }

    /// The same, if the replacement is due at `replace`.
    fn next_with(&self, replace: Option<Moment>) -> Option<(Moment, Step)> {
        if self.sent.is_some() || self.doubt.is_some() {
            return None;
        }
        let both = [(replace, Step::Replace), (self.renew.at, Step::Renew)];
        both.into_iter()
            .filter_map(|(at, step)| Some((at?, step)))
            .min_by_key(|(at, _)| *at)
    }

    /// Sends `next`, what is due next, if its time has come.
    fn begin(&mut self, next: Option<(Moment, Step)>, now: Moment) -> Option<Step> {
        let (_, step) = next.filter(|(at, _)| *at <= now)?;
        self.sent = Some((now, step));
        Some(step)
    }

    /// Gives up the request that is out, and a doubt, whose lookup nobody hears of: what was to be
    /// done still is.
    fn lost(&mut self) -> Option<Step> {
        self.doubt = None;
        self.sent.take().map(|(_, step)| step)
    }

    /// When the request that is answered now was sent.
    fn answered(&mut self, now: Moment) -> Moment {
        self.sent.take().map_or(now, |(sent, _)| sent)
    }

    fn granted(&mut self, dates: Dates) {
        self.renew = Errand {
            at: dates.renew,
            failures: 0,
        };
        self.replace = Errand {
            at: dates.replace,
            failures: 0,
        };
        self.end = dates.end;
        (self.failure, self.told) = (None, None);
    }

    fn failed(
        &mut self,
        step: Step,
        failure: &Failure,
        backoff: Backoff,
        now: Moment,
        jitter: &mut Jitter,
    ) -> Duration {
        let asked = failure
            .retry_after
            .unwrap_or_default()
            .min(LONGEST_RETRY_AFTER);
        let wait = backoff.delay(self.errand(step).failures, jitter).max(asked);
        self.failed_until(step, failure, now.plus(wait));
        wait
    }

    /// A request failed and is wanted again at `at`.
    fn failed_until(&mut self, step: Step, failure: &Failure, at: Moment) {
        let errand = self.errand(step);
        *errand = Errand {
            at: Some(at),
            failures: errand.failures.saturating_add(1),
        };
        self.failure = Some(failure.clone());
    }

    fn errand(&mut self, step: Step) -> &mut Errand {
        match step {
            Step::Renew => &mut self.renew,
            Step::Replace => &mut self.replace,
        }
    }

    fn view(&self) -> View<'_> {
        let trouble = self
            .failure
            .as_ref()
            .filter(|_| self.renew.failures.max(self.replace.failures) > 0);
        View {
            trouble,
            ends: self.end,
            next: self.next().map(|(at, _)| at),
            ..View::default()
        }
    }

    /// Says a failure, once as long as its cause stays the same.
    fn tell(
        &mut self,
        subject: Subject,
        failure: &Failure,
        after: Duration,
        out: &mut Vec<Output>,
    ) {
        if self.told.replace(failure.cause) != Some(failure.cause) {
            out.push(Output::Failed(subject, failure.clone(), after));
        }
    }
}
