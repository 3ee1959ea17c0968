//! The checkpoint of `fetch`: its schedule, its tokens, its knowledge of files, saved for a
//! successor in private files of the arena. Each part has a file of its own and is written only
//! when it changed; one publication flips all parts, so that a successor finds parts of the same
//! moment. Invariants: a request is sent after the checkpoint that mentions it was saved; an
//! unreadable checkpoint counts as none; the credential's file is removed only once all parts are
//! saved. Where they do not fit, the credentials alone are saved: the successor then begins anew,
//! and can log in although the credential's file is gone.

use super::press::{History, Outlet, PressNote};
use super::requests::{Prepared, TokenNote};
use super::secrets::{QueryState, Secrets, SecretsNote};
use super::{Fetch, Settings};
use crate::clock::Clock;
use crate::lease::Scheduler;
use crate::lease::source::Source;
use crate::names::FileId;
use crate::observe::Event;
use crate::snapshot::{Arena, Change, Publisher, Visibility};
use crate::status::{Checkpoint, Report};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The private files that the parts are written to, by name.
pub const PARTS: [&str; 4] = ["state", "queries", "files", "report"];

/// A serialised part; `None`: the part has not changed since it was saved.
type Part = Option<Zeroizing<Vec<u8>>>;

/// Where the checkpoint is written, and how much of it was.
pub(super) struct CheckpointFiles {
    /// By part; none where the arena has no room for a checkpoint.
    files: Vec<FileId>,
    /// How much of it was saved last.
    state: Checkpoint,
    /// Whether it was said that the whole does not fit.
    warned: bool,
}

/// Requests that the last checkpoint mentions, as far as there was room for it: the witness that
/// `Requests::send` demands. Only `Fetch::save` makes one, of the very requests that it saved.
pub(super) struct Saved<T>(Vec<Prepared<T>>);

impl<T> Saved<T> {
    /// The requests.
    pub(super) fn into_requests(self) -> Vec<Prepared<T>> {
        self.0
    }
}

/// As much of it as there was room for.
#[derive(Serialize, Deserialize)]
enum Extent<N, K> {
    /// All of it.
    Whole(N),
    /// What the source keeps, which has the credentials.
    Credentials(K),
}

/// The part that most events change: borrowed to be written, owned once it was read.
#[derive(Serialize, Deserialize)]
struct FetchState<M, K> {
    machine: M,
    source: K,
    tokens: TokenNote,
    secrets: SecretsNote,
    press: PressNote,
}

/// What a predecessor saved in all parts.
struct Found<K> {
    state: FetchState<Scheduler, K>,
    queries: Vec<QueryState>,
    hashes: Vec<Option<u64>>,
    history: History,
    report: Option<Report>,
}

impl CheckpointFiles {
    /// Opens it in the arena, as a predecessor left it.
    pub(super) fn open(arena: &Arena) -> Self {
        Self {
            files: arena.files_in(Visibility::Private).collect(),
            state: Checkpoint::Whole,
            warned: false,
        }
    }

    /// How much of it was saved last.
    pub(super) fn state(&self) -> Checkpoint {
        self.state
    }

    /// What was saved last in this part; `None` where nothing was, or nothing that can be read.
    fn read<T: DeserializeOwned>(&self, publisher: &Publisher, part: usize) -> Option<T> {
        let reader = publisher.reader();
        let version = reader.current(*self.files.get(part)?)?;
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(version.len).ok()?]);
        reader.read(version.nodeid, 0, &mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn read_all<K: DeserializeOwned>(&self, publisher: &Publisher) -> Option<Extent<Found<K>, K>> {
        let state = match self.read(publisher, 0)? {
            Extent::Whole(state) => state,
            Extent::Credentials(kept) => return Some(Extent::Credentials(kept)),
        };
        let (hashes, history) = self.read(publisher, 2)?;
        Some(Extent::Whole(Found {
            state,
            queries: self.read(publisher, 1)?,
            hashes,
            history,
            report: self.read(publisher, 3)?,
        }))
    }

    /// Writes `parts`, else `kept` alone, else nothing: an older checkpoint would be worse. Says
    /// once when the parts do not fit. Whether all parts are saved.
    fn save(
        &mut self,
        publisher: &mut Publisher,
        parts: &[Part; PARTS.len()],
        kept: impl Serialize,
        clock: &dyn Clock,
    ) -> bool {
        self.state = match self.write(publisher, parts, clock) {
            Ok(()) => Checkpoint::Whole,
            Err(why) => {
                if !std::mem::replace(&mut self.warned, true) {
                    Event::NotRecoverable { why: &why }.emit();
                }
                let empty = || Some(Zeroizing::new(Vec::new()));
                let less = json(&Extent::<(), _>::Credentials(kept));
                if self
                    .write(publisher, &[Some(less), empty(), empty(), empty()], clock)
                    .is_ok()
                {
                    Checkpoint::Credentials
                } else {
                    // Empty parts always fit: they take the place of what they replace.
                    let _ = self.write(publisher, &[(); PARTS.len()].map(|()| empty()), clock);
                    Checkpoint::Nothing
                }
            }
        };
        // Old versions hold tokens, and nobody reads them any more.
        publisher.collect();
        self.state == Checkpoint::Whole
    }

    fn write(
        &self,
        publisher: &mut Publisher,
        parts: &[Part; PARTS.len()],
        clock: &dyn Clock,
    ) -> Result<(), String> {
        if self.files.len() < PARTS.len() {
            return Err("the arena has no room for it".to_owned());
        }
        let mut changes = Vec::new();
        for (&file, part) in self.files.iter().zip(parts) {
            if let Some(bytes) = part {
                changes.push(Change { file, bytes });
            }
        }
        match publisher.publish(&changes, clock.wall()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(serde_json::to_vec(value).expect("state is plain data, with names as keys"))
}

impl<S: Source + 'static, O: Outlet, C: Clock> Fetch<'_, S, O, C> {
    /// Saves what a successor must know, and gives the requests that may be sent then.
    pub(super) fn save(&mut self) -> Saved<S::Token> {
        let requests = self.requests.take_prepared();
        let kept = self.requests.source().export_credentials();
        let state = json(&Extent::<_, ()>::Whole(FetchState {
            machine: &self.machine,
            source: &kept,
            tokens: self.requests.note(),
            secrets: self.secrets.note(),
            press: self.press.note(),
        }));
        let all = self.checkpoint.state != Checkpoint::Whole;
        let (queries, hashes) = self.secrets.parts();
        let (history, report) = (self.press.history_part(), self.reporter.last());
        let mut parts = [Some(state), None, None, None];
        if all || queries.changed {
            parts[1] = Some(json(&queries.value));
        }
        if all || hashes.changed || history.changed {
            parts[2] = Some(json(&(&hashes.value, &history.value)));
        }
        if all || report.changed {
            parts[3] = Some(json(&report.value));
        }
        (queries.changed, hashes.changed) = (false, false);
        (history.changed, report.changed) = (false, false);
        let whole = self
            .checkpoint
            .save(&mut self.publisher, &parts, &kept, self.clock);
        if whole && std::mem::take(&mut self.settle) {
            self.requests.source().commit_credentials();
        }
        Saved(requests)
    }

    /// Goes on where a predecessor died, if there was one. Of one whose checkpoint did not fit only
    /// the credentials are known: its token lives to its ttl.
    pub(super) fn resume(&mut self, settings: &Settings) {
        let found = match self.checkpoint.read_all::<S::Kept>(&self.publisher) {
            Some(Extent::Whole(found)) => found,
            Some(Extent::Credentials(kept)) => {
                return self.requests.source().import_credentials(kept);
            }
            None => return,
        };
        let FetchState {
            machine,
            source,
            tokens,
            secrets,
            press,
        } = found.state;
        self.machine = machine.resume(settings.timing, self.clock.now());
        self.requests.source().import_credentials(source);
        self.requests.resume(tokens);
        self.secrets = Secrets::with(self.plan, secrets, found.queries, found.hashes);
        self.press.resume(press, found.history, self.clock);
        self.reporter.resume(found.report);
        self.settle = true;
        Event::WentOn {
            lost_logins: self.machine.orphaned_logins(),
        }
        .emit();
    }
}
