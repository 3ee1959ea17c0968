//! The checkpoint of `fetch`: schedule, tokens and the tables of files and queries, saved for a
//! successor in private files of the arena. A save writes the state and the changed chunks.
//! Invariants: one publication flips all written parts, so a successor finds parts of the same
//! moment; a request is sent after the checkpoint that mentions the request was saved; an unreadable
//! checkpoint counts as none; the credential's file is removed only once all parts are saved. Where
//! the parts do not fit, the credentials alone are saved: the successor then begins anew, and can log
//! in although the credential's file is gone.

use super::Fetch;
use super::private::{PrivateFiles, read, write};
use super::publish::Published;
use super::queries::QueryTable;
use super::report::ReporterState;
use super::requests::{Prepared, RequestsState};
use super::secrets::{QueryState, Secrets, SecretsState};
use crate::lease::source::Source;
use crate::lease::{QuerySchedule, Scheduler, SessionSchedule, Timing};
use crate::names::{FileId, HookId, QueryId};
use crate::observe::{Event, Incident};
use crate::render::{Change, json};
use crate::snapshot::Publisher;
use crate::status::Checkpoint;
use crate::template::Read;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use zeroize::Zeroizing;

/// The private files and the success of the last save.
pub(super) struct CheckpointFiles {
    files: PrivateFiles,
    /// How much was saved last.
    pub(super) saved: Checkpoint,
    /// Whether the lack of room was logged.
    warned: bool,
}

/// Requests of the last checkpoint, if there was room: the witness that `Requests::send` demands.
/// Only `Fetch::save` makes the witness, after the requests were saved.
pub(super) struct Saved<T>(Vec<Prepared<T>>);

impl<T> Saved<T> {
    /// The requests.
    pub(super) fn into_requests(self) -> Vec<Prepared<T>> {
        self.0
    }
}

/// As much of the checkpoint as there was room for.
#[derive(Serialize, Deserialize)]
enum Extent<N, K> {
    /// All parts.
    Whole(N),
    /// The exported credentials of the source.
    Credentials(K),
}

/// The part that most events change: borrowed to be written, owned once it was read.
#[derive(Serialize, Deserialize)]
struct FetchState<M, K> {
    session: M,
    source: K,
    tokens: RequestsState,
    secrets: SecretsState,
    /// The pending notifications of supervise.
    hooks: BTreeSet<HookId>,
    refused: Vec<(FileId, Vec<u8>)>,
    report: ReporterState,
}

/// A query of the checkpoint.
type SavedQuery = (Read, QuerySchedule, QueryState);

/// A file of the checkpoint.
#[derive(Serialize, Deserialize)]
struct SavedFile {
    hash: Option<u64>,
    published: Published,
    /// When the trouble began, in seconds since 1970.
    trouble: Option<u64>,
}

impl CheckpointFiles {
    /// The checkpoint in `files`, as a predecessor left the files.
    pub(super) fn open(files: PrivateFiles) -> Self {
        Self {
            files,
            saved: Checkpoint::Whole,
            warned: false,
        }
    }

    /// Saves `kept` alone, else nothing: an older checkpoint would be worse. Logs once `why` the
    /// parts are not saved.
    fn reduce(&mut self, publisher: &mut Publisher, kept: impl Serialize, why: &str) {
        if !self.warned {
            Incident::NotRecoverable.emit(&why);
        }
        self.warned = true;
        let private = &self.files;
        let kept = json(&Extent::<(), _>::Credentials(kept));
        let mut parts = vec![(private.state, kept)];
        for file in private.files.iter().chain(&private.queries) {
            parts.push((*file, Zeroizing::default()));
        }
        self.saved = if write(publisher, &parts).is_ok() {
            Checkpoint::Credentials
        } else {
            // Empty parts always fit, because they replace larger parts.
            parts[0].1 = Zeroizing::default();
            let _ = write(publisher, &parts);
            Checkpoint::Nothing
        };
    }
}

impl<S: Source + 'static> Fetch<'_, S> {
    /// Saves the state for a successor; returns the requests, which may now be sent.
    pub(super) fn save(&mut self) -> Saved<S::Token> {
        let requests = self.requests.take_prepared();
        let kept = self.requests.source.export_credentials();
        if let Err(why) = self.save_whole(&kept) {
            self.checkpoint.reduce(&mut self.publisher, kept, &why);
        } else {
            self.checkpoint.saved = Checkpoint::Whole;
            if self.settle {
                self.settle = false;
                self.requests.source.commit_credentials();
            }
        }
        Saved(requests)
    }

    /// Saves all parts.
    ///
    /// # Errors
    /// The reason why the parts do not fit.
    fn save_whole(&mut self, kept: &S::Kept) -> Result<(), String> {
        if !self.secrets.replies.waiting.is_empty() {
            return Err("the first replies do not fit into the arena".to_owned());
        }
        let mut parts = self.changed_chunks();
        let state = Extent::<_, ()>::Whole(FetchState {
            session: self.machine.session(),
            source: kept,
            tokens: self.requests.state(),
            secrets: self.secrets.state,
            hooks: self.notifier.hooks(),
            refused: self.queue.refused(),
            report: self.reporter.state,
        });
        parts.push((self.checkpoint.files.state, json(&state)));
        write(&mut self.publisher, &parts).map_err(|error| error.to_string())
    }

    /// The changed chunks; all chunks, if the last save was not whole.
    fn changed_chunks(&mut self) -> Vec<Change> {
        for query in self.machine.take_changed() {
            self.secrets.queries.mark(query.index());
        }
        let mut queries = self.secrets.queries.take_changed();
        let mut files = self.secrets.hashes.take_changed();
        files.append(&mut self.queue.history.take_changed());
        files.append(&mut self.reporter.troubles.take_changed());
        let private = &self.checkpoint.files;
        if self.checkpoint.saved != Checkpoint::Whole {
            queries = (0..private.queries.len()).collect();
            files = (0..private.files.len()).collect();
        }
        let mut parts = Vec::new();
        for chunk in queries {
            let saved = self.secrets.queries.range(chunk).map(|index| {
                let id = QueryId(u32::try_from(index).unwrap_or(u32::MAX));
                let state = &self.secrets.queries[index];
                let read = self.secrets.table.read(id);
                (read, self.machine.query(id), state)
            });
            let saved: Vec<_> = saved.collect();
            parts.push((private.queries[chunk], json(&saved)));
        }
        for chunk in files {
            let saved = self.secrets.hashes.range(chunk).map(|index| SavedFile {
                hash: self.secrets.hashes[index],
                published: self.queue.history[index],
                trouble: self.reporter.troubles[index],
            });
            let saved: Vec<_> = saved.collect();
            parts.push((private.files[chunk], json(&saved)));
        }
        parts
    }

    /// Continues where a predecessor died, if there was one. Of a predecessor whose checkpoint does
    /// not fit only the credentials are known: its token lives until the TTL ends.
    pub(super) fn resume(&mut self, timing: Timing) {
        let private = &self.checkpoint.files;
        match read(&self.publisher, private.state) {
            Some(Extent::Whole(state)) => {
                let queries = self.chunks(&private.queries);
                let files = self.chunks(&private.files);
                if let (Some(queries), Some(files)) = (queries, files) {
                    return self.resume_whole(state, queries, &files, timing);
                }
            }
            Some(Extent::Credentials(credentials)) => {
                self.requests.source.import_credentials(credentials);
            }
            None => {}
        }
        self.drop_replies();
    }

    /// The items of a table; `None` if a chunk cannot be read.
    fn chunks<T: DeserializeOwned>(&self, files: &[FileId]) -> Option<Vec<T>> {
        let mut items = Vec::new();
        for file in files {
            items.append(&mut read(&self.publisher, *file)?);
        }
        Some(items)
    }

    fn drop_replies(&mut self) {
        let none = BTreeSet::new();
        self.secrets.replies.retain(&mut self.publisher, &none);
    }

    /// Continues from all parts of a checkpoint. After a crash in the middle of the first publication
    /// replies may be missing: the queries are then read again, under the same token.
    fn resume_whole(
        &mut self,
        state: FetchState<SessionSchedule, S::Kept>,
        saved: Vec<SavedQuery>,
        files: &[SavedFile],
        timing: Timing,
    ) {
        let mut table = QueryTable::default();
        let mut schedules = Vec::new();
        let mut queries = Vec::new();
        for (read, schedule, query) in saved {
            table.add(read);
            schedules.push(schedule);
            queries.push(query);
        }
        let is_of_plan = files.len() == self.plan.files.len()
            && (0..)
                .zip(&self.plan.queries)
                .all(|(id, query)| table.find(&query.read) == Some(QueryId(id)));
        let hashes = files.iter().map(|file| file.hash).collect();
        let private = &self.checkpoint.files;
        let secrets = Secrets::resume(self.plan, private, state.secrets, table, queries, hashes);
        let now = self.clock.now();
        if is_of_plan && secrets.has_kept_replies(&self.publisher) {
            self.secrets = secrets;
            for (index, file) in files.iter().enumerate() {
                let history = &mut self.queue.history;
                let troubles = &mut self.reporter.troubles;
                history.update(index, |published| *published = file.published);
                troubles.update(index, |trouble| *trouble = file.trouble);
            }
            self.queue.resume(state.refused, now);
            let is_ready = self.secrets.is_complete();
            self.notifier.resume(state.hooks, is_ready);
            self.reporter.state = state.report;
        } else {
            schedules.clear();
            self.drop_replies();
        }
        self.machine = Scheduler::resume(state.session, schedules, timing, now);
        self.requests.source.import_credentials(state.source);
        self.requests.resume(state.tokens);
        self.settle = true;
        Event::Resumed {
            lost_logins: self.machine.orphaned_logins(),
        }
        .emit();
    }
}
