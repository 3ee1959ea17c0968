//! The renewal and the replacement of a token or a lease, with the failures of both. Invariant: at
//! most one of the two requests is in flight.

use super::protocol::{Effect, Request, Subject};
use super::renewal::{Dates, Grant, Timing};
use super::source::{Cause, Failure};
use crate::clock::{Jitter, Moment};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest `Retry-After` that is obeyed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

/// The environment of a step: the present, the settings, the random source and the effects so far.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) now: Moment,
    pub(super) timing: Timing,
    pub(super) jitter: Jitter,
    pub(super) out: Vec<Effect>,
}

impl Context {
    pub(super) fn ask(&mut self, request: Request) {
        self.out.push(Effect::Ask(request));
    }
}

/// Which of the two requests. Renew: the token or the lease. Replace: log in, or read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum RequestKind {
    Renew,
    Replace,
}

/// The state of a token after a 403, as far as the lookup tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenState {
    Alive,
    Dead,
    /// The lookup failed.
    Unknown,
    /// The token was replaced meanwhile.
    Replaced,
}

/// A request to be sent at some time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// The time of the next try; `None`: the request is not wanted.
    pub(super) at: Option<Moment>,
    /// Consecutive failures.
    pub(super) failures: u32,
}

impl Attempt {
    fn new(at: Option<Moment>) -> Self {
        Self { at, failures: 0 }
    }
}

/// The upkeep of a token or lease: two attempts, of which at most one is in flight.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Renewal {
    pub(super) renew: Attempt,
    pub(super) replace: Attempt,
    /// The request in flight and the time of sending, from which a granted life counts.
    pub(super) in_flight: Option<(Moment, RequestKind)>,
    /// A request with the response 403; the lookup of the token decides about the next request.
    pub(super) denied: Option<(RequestKind, Failure)>,
    /// The end of the token or lease.
    pub(super) end: Option<Moment>,
    /// The last failure since the last success.
    failure: Option<Failure>,
    /// The last reported cause of a failure since the last success.
    pub(super) reported: Option<Cause>,
}

impl Renewal {
    /// A first request is due at `now`.
    pub(super) fn due(now: Moment) -> Self {
        Self {
            replace: Attempt::new(Some(now)),
            ..Self::default()
        }
    }

    /// The next request and when to send it; `None` while a request is in flight or waits for a
    /// lookup.
    pub(super) fn next(&self) -> Option<(Moment, RequestKind)> {
        self.next_with(self.replace.at)
    }

    /// As `next`, with the replacement due at `replace`.
    pub(super) fn next_with(&self, replace: Option<Moment>) -> Option<(Moment, RequestKind)> {
        if self.in_flight.is_some() || self.denied.is_some() {
            return None;
        }
        match self.renew.at {
            Some(renew) if replace.is_none_or(|replace| renew < replace) => {
                Some((renew, RequestKind::Renew))
            }
            Some(_) | None => Some((replace?, RequestKind::Replace)),
        }
    }

    /// Drops the request in flight and any pending lookup: after a crash the responses never
    /// arrive. The attempts stay due.
    pub(super) fn drop_in_flight(&mut self) -> Option<RequestKind> {
        self.denied = None;
        let (_, kind) = self.in_flight.take()?;
        Some(kind)
    }

    /// Takes the response to the request in flight; returns the time of sending.
    pub(super) fn answered(&mut self, now: Moment) -> Moment {
        self.in_flight.take().map_or(now, |(sent, _)| sent)
    }

    /// A request succeeded: sets the dates and clears the failures.
    pub(super) fn granted(&mut self, dates: Dates) {
        self.renew = Attempt::new(dates.renew);
        self.replace = Attempt::new(dates.replace);
        self.end = dates.end;
        self.failure = None;
        self.reported = None;
    }

    /// Schedules another try of a failed request, after the backoff of the cause.
    pub(super) fn postpone(
        &mut self,
        subject: Subject,
        kind: RequestKind,
        failure: &Failure,
        cx: &mut Context,
    ) {
        // The causes of a refused login are handled by `Refusals` and do not come here; the other
        // causes wait for a person.
        let backoff = if matches!(
            failure.cause,
            Cause::Unreachable | Cause::Unavailable | Cause::RateLimited
        ) {
            cx.timing.retry
        } else {
            cx.timing.slow
        };
        let asked = failure.retry_after.unwrap_or_default();
        let wait = backoff
            .delay(self.attempt(kind).failures, &mut cx.jitter)
            .max(asked.min(LONGEST_RETRY_AFTER));
        self.failed_until(kind, failure, cx.now.plus(wait));
        self.report(subject, failure, wait, cx);
    }

    /// A request failed; the next try is due at `at`.
    pub(super) fn failed_until(&mut self, kind: RequestKind, failure: &Failure, at: Moment) {
        let attempt = self.attempt(kind);
        attempt.at = Some(at);
        attempt.failures = attempt.failures.saturating_add(1);
        self.failure = Some(failure.clone());
    }

    /// The request of `kind` failed. A 403 leads to a lookup of the token, or to a new request if
    /// the token of the request was replaced meanwhile. Returns whether a lookup is wanted.
    pub(super) fn failed(
        &mut self,
        subject: Subject,
        kind: RequestKind,
        failure: Failure,
        is_current: bool,
        cx: &mut Context,
    ) -> bool {
        self.in_flight = None;
        if failure.cause != Cause::Denied {
            self.postpone(subject, kind, &failure, cx);
            return false;
        }
        if is_current {
            self.denied = Some((kind, failure));
        } else {
            self.replace.at = Some(cx.now);
        }
        is_current
    }

    /// The lookup ended: a request that waited for the lookup is repeated, postponed or given up.
    pub(super) fn resolve_denied(&mut self, subject: Subject, token: TokenState, cx: &mut Context) {
        let Some((kind, failure)) = self.denied.take() else {
            return;
        };
        match token {
            // The death of the token scheduled the session anew.
            TokenState::Dead | TokenState::Replaced if subject == Subject::Session => {}
            TokenState::Dead | TokenState::Replaced => self.replace.at = Some(cx.now),
            TokenState::Alive if kind == RequestKind::Renew => {
                self.stop_renewing(subject, &failure, cx);
            }
            TokenState::Alive | TokenState::Unknown => self.postpone(subject, kind, &failure, cx),
        }
    }

    /// The policy denies renewals: a renewal is tried once, reported once, and then omitted.
    fn stop_renewing(&mut self, subject: Subject, failure: &Failure, cx: &mut Context) {
        if let Some(end) = self.end {
            let ttl = end.since(cx.now);
            let rest = Grant {
                ttl,
                renewable: false,
                first: ttl,
            };
            let dates = rest.dates(cx.timing.grace, cx.now, &mut cx.jitter);
            self.granted(dates);
        }
        let wait = match self.replace.at {
            Some(at) => at.since(cx.now),
            None => Duration::ZERO,
        };
        self.report(subject, failure, wait, cx);
    }

    /// A person asked for fresh secrets: attempts that wait after a failure are due now.
    pub(super) fn retry_now(&mut self, now: Moment) {
        for attempt in [&mut self.renew, &mut self.replace] {
            if attempt.failures > 0 {
                attempt.at = Some(now);
            }
        }
    }

    /// Reports a failure once for as long as the cause stays the same.
    pub(super) fn report(
        &mut self,
        subject: Subject,
        failure: &Failure,
        after: Duration,
        cx: &mut Context,
    ) {
        if self.reported != Some(failure.cause) {
            self.reported = Some(failure.cause);
            cx.out.push(Effect::Failed(subject, failure.clone(), after));
        }
    }

    /// The last failure, while another try is pending.
    pub(super) fn trouble(&self) -> Option<&Failure> {
        let failing = self.renew.failures > 0 || self.replace.failures > 0;
        self.failure.as_ref().filter(|_| failing)
    }

    fn attempt(&mut self, kind: RequestKind) -> &mut Attempt {
        match kind {
            RequestKind::Renew => &mut self.renew,
            RequestKind::Replace => &mut self.replace,
        }
    }
}
