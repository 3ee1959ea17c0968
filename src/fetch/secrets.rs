//! The secrets: which replies came, which contents were rendered, which files are missing.
//! Invariants: the first publication is complete; a file that cannot be rendered anew keeps its
//! last good content, and so do all files of the same query.

use super::tracked::Tracked;
use crate::config::plan::{Content, Plan};
use crate::exit::Exit;
use crate::lease::source::{Engine, Failure, Reply};
use crate::names::{FileId, FileName, QueryId};
use crate::render::{self, Change, RenderError, RenderProblem, Values};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};

/// What all replies that are kept may take in memory, in bytes, at least; it is twice
/// `filesystem.size` where that is more.
const KEPT: usize = 8 << 20;

/// The result of rendering a reply.
pub(super) enum Rendered {
    /// These files changed. The first time: all files.
    Changes(Vec<Change>),
    /// The values cannot be served; the errors that were not told before.
    Unusable(Vec<RenderError>),
    /// Nothing new, or other first values are still missing.
    Nothing,
}

/// The state of all files and queries.
pub(super) struct Secrets<'p> {
    plan: &'p Plan,
    queries: Tracked<Vec<QueryState>>,
    /// By file the keyed hash of the content that was rendered last: contents are compared without
    /// being kept. (64 bits under a random key: two contents are taken for one in 2^-64 of all
    /// changes.)
    hashes: Tracked<Vec<Option<u64>>>,
    /// Why files cannot be rendered.
    errors: BTreeMap<FileId, RenderError>,
    /// Keys the hashes of contents.
    key: u64,
    /// Whether the first publication was made.
    complete: bool,
    /// Before the first publication: how many queries that files are made of have no reply yet.
    unread: usize,
    /// What the replies that are kept take in memory, in bytes, and what they may take.
    kept: usize,
    budget: usize,
}

/// The part of the checkpoint that stands beside the queries and hashes.
#[derive(Serialize, Deserialize)]
pub(super) struct SecretsNote {
    key: u64,
    complete: bool,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct QueryState {
    /// The last good reply; after the first publication only where a file is made of several.
    reply: Option<Reply>,
    /// What it takes in memory, in bytes.
    weight: usize,
    /// The version that was read last (KV v2).
    version: Option<u64>,
    /// Why the last read failed.
    failure: Option<Failure>,
    /// The files that are made of it.
    #[serde(skip)]
    files: Vec<FileId>,
    /// Whether such a file is made of other queries, too.
    #[serde(skip)]
    shared: bool,
}

impl<'p> Secrets<'p> {
    pub(super) fn new(plan: &'p Plan) -> Self {
        let queries = plan.queries.iter().map(|_| QueryState::default()).collect();
        let note = SecretsNote {
            key: RandomState::new().hash_one(()),
            complete: false,
        };
        Self::with(plan, note, queries, vec![None; plan.files.len()])
    }

    /// Resumes from a predecessor's checkpoint.
    pub(super) fn with(
        plan: &'p Plan,
        SecretsNote { key, complete }: SecretsNote,
        mut queries: Vec<QueryState>,
        hashes: Vec<Option<u64>>,
    ) -> Self {
        for (id, file) in ids(plan).zip(&plan.files) {
            let read = render::queries(&file.content);
            for query in &read {
                queries[query.index()].files.push(id);
                queries[query.index()].shared |= read.len() > 1;
            }
        }
        let served = plan
            .filesystem
            .size
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or_default();
        Self {
            plan,
            hashes: Tracked::new(hashes),
            errors: BTreeMap::new(),
            key,
            complete,
            unread: queries.iter().filter(|query| query.is_awaited()).count(),
            kept: queries.iter().map(|query| query.weight).sum(),
            budget: served.saturating_mul(2).max(KEPT),
            queries: Tracked::new(queries),
        }
    }

    /// The part of the checkpoint that stands beside the queries and hashes.
    pub(super) fn note(&self) -> SecretsNote {
        SecretsNote {
            key: self.key,
            complete: self.complete,
        }
    }

    /// The parts of the checkpoint that are written only when they changed.
    pub(super) fn parts(
        &mut self,
    ) -> (
        &mut Tracked<Vec<QueryState>>,
        &mut Tracked<Vec<Option<u64>>>,
    ) {
        (&mut self.queries, &mut self.hashes)
    }

    /// Whether the first publication was made.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    /// The names of the files that a query is in.
    pub(super) fn names(&self, query: QueryId) -> impl Iterator<Item = &'p FileName> {
        let plan = self.plan;
        self.queries[query.index()]
            .files
            .iter()
            .map(|file| &plan.files[file.index()].name)
    }

    /// Takes the reply to `query`.
    pub(super) fn accept(
        &mut self,
        query: QueryId,
        reply: Reply,
        token: Option<&[u8]>,
    ) -> Rendered {
        if self.queries[query.index()].failure.is_some() {
            self.queries[query.index()].failure = None;
        }
        let files = self.queries[query.index()].files.clone();
        let version = version(&reply);
        if version.is_some() && self.queries[query.index()].version == version {
            return if files.iter().any(|file| self.errors.contains_key(file)) {
                Rendered::Unusable(Vec::new())
            } else {
                Rendered::Nothing
            };
        }
        if version.is_some() {
            self.queries[query.index()].version = version;
        }
        if let Err(problem) = self.admit(query, &reply) {
            let errors = files
                .iter()
                .map(|file| render::error(self.plan, *file, problem.clone()))
                .collect();
            return Rendered::Unusable(self.blame(errors));
        }
        let overlay = Overlay {
            queries: &self.queries,
            fresh: Some((query, &reply)),
            token,
        };
        match render::render(self.plan, files.iter().copied(), &overlay) {
            Ok(changes) => {
                self.mend(&files);
                self.keep(query, reply);
                if self.complete {
                    Rendered::Changes(self.changed(changes))
                } else {
                    self.first(token)
                }
            }
            Err(mut errors) => {
                // Before the first publication there is no good reply to fall back on, and others
                // may still be missing.
                if !self.complete {
                    self.keep(query, reply);
                    errors.retain(|error| error.problem != RenderProblem::Unread);
                }
                if errors.is_empty() {
                    Rendered::Nothing
                } else {
                    Rendered::Unusable(self.blame(errors))
                }
            }
        }
    }

    /// The token is new: its files change; or the last piece of the first publication is there.
    pub(super) fn renew_token(&mut self, token: &[u8]) -> Rendered {
        if !self.complete {
            return self.first(Some(token));
        }
        let sinks = ids(self.plan)
            .filter(|id| matches!(self.plan.files[id.index()].content, Content::Token));
        match render::render(
            self.plan,
            sinks,
            &Overlay {
                queries: &self.queries,
                fresh: None,
                token: Some(token),
            },
        ) {
            Ok(changes) => Rendered::Changes(self.changed(changes)),
            Err(errors) => Rendered::Unusable(self.blame(errors)),
        }
    }

    /// The read of `query` failed.
    pub(super) fn failed(&mut self, query: QueryId, failure: &Failure) {
        if self.queries[query.index()].failure.as_ref() != Some(failure) {
            self.queries[query.index()].failure = Some(failure.clone());
        }
    }

    /// Why the file cannot be rendered anew, if so, for the report.
    pub(super) fn error(&self, file: FileId) -> Option<String> {
        self.errors.get(&file).map(ToString::to_string)
    }

    /// The version that was read last, of what is made of one secret of KV v2.
    pub(super) fn version(&self, content: &Content) -> Option<u64> {
        match render::queries(content)[..] {
            [query] => self.queries[query.index()].version,
            _ => None,
        }
    }

    /// Each file that cannot be served, with the reason, and the exit code of the most telling one.
    /// `login` is why there is no token, if there is none. For the log.
    pub(super) fn missing(&self, login: Option<&Failure>) -> (Vec<(&'p FileName, String)>, Exit) {
        let reasons = ids(self.plan).filter_map(|id| {
            Some((
                &self.plan.files[id.index()].name,
                self.reason(id, login, RenderError::in_log)?,
            ))
        });
        let (missing, exits): (Vec<_>, Vec<_>) = reasons
            .map(|(name, (why, exit))| ((name, why), exit))
            .unzip();
        let exit = [Exit::Login, Exit::Data, Exit::NoSecret]
            .into_iter()
            .find(|exit| exits.contains(exit));
        (missing, exit.unwrap_or(Exit::Unavailable))
    }

    /// Why the file cannot be served, and the exit code of it; `login` is why there is no token, if
    /// there is none. `words` are what is said of an error: more to the log than to the report.
    pub(super) fn reason(
        &self,
        file: FileId,
        login: Option<&Failure>,
        words: fn(&RenderError) -> String,
    ) -> Option<(String, Exit)> {
        let failed = |failure: &Failure| (failure.message.clone(), failure.cause.exit());
        let error = self
            .errors
            .get(&file)
            .map(|error| (words(error), Exit::Data));
        let unread = || {
            let mut read = render::queries(&self.plan.files[file.index()].content).into_iter();
            let query = read.find(|query| self.queries[query.index()].reply.is_none())?;
            let path = &self.plan.queries[query.index()].read.path;
            let silent = || {
                (
                    format!("reading {path}: no answer came yet"),
                    Exit::Unavailable,
                )
            };
            Some(
                self.queries[query.index()]
                    .failure
                    .as_ref()
                    .map_or_else(silent, failed),
            )
        };
        login.map(failed).or(error).or_else(unread)
    }

    /// All files, once each can be rendered. Nothing is rendered while a reply is missing.
    fn first(&mut self, token: Option<&[u8]>) -> Rendered {
        if self.unread > 0 {
            return Rendered::Nothing;
        }
        match render::render(
            self.plan,
            ids(self.plan),
            &Overlay {
                queries: &self.queries,
                fresh: None,
                token,
            },
        ) {
            Ok(changes) => {
                self.complete = true;
                for state in self.queries.iter_mut().filter(|state| !state.shared) {
                    (state.reply, state.weight) = (None, 0);
                }
                self.kept = self.queries.iter().map(|query| query.weight).sum();
                Rendered::Changes(self.changed(changes))
            }
            Err(_) => Rendered::Nothing,
        }
    }

    /// Whether there is room to keep this reply, if it is to be kept.
    fn admit(&self, query: QueryId, reply: &Reply) -> Result<(), RenderProblem> {
        let (size, limit) = (reply.weight(), self.budget);
        let kept = self.kept - self.queries[query.index()].weight;
        let fits = !self.is_kept(query) || kept.saturating_add(size) <= limit;
        if fits {
            Ok(())
        } else {
            Err(RenderProblem::NoRoom { size, kept, limit })
        }
    }

    /// Before the first publication all replies are kept; later those of files that are made of
    /// several.
    fn is_kept(&self, query: QueryId) -> bool {
        self.queries[query.index()].shared || !self.complete
    }

    fn keep(&mut self, query: QueryId, reply: Reply) {
        if !self.is_kept(query) {
            return;
        }
        let state = &mut self.queries[query.index()];
        if state.is_awaited() && !self.complete {
            self.unread -= 1;
        }
        let weight = reply.weight();
        self.kept = self.kept - state.weight + weight;
        (state.reply, state.weight) = (Some(reply), weight);
    }

    fn mend(&mut self, files: &[FileId]) {
        for file in files {
            self.errors.remove(file);
        }
    }

    /// Notes the errors; gives those that are new.
    fn blame(&mut self, mut errors: Vec<RenderError>) -> Vec<RenderError> {
        errors
            .retain(|error| self.errors.insert(error.file, error.clone()).as_ref() != Some(error));
        errors
    }

    fn changed(&mut self, mut changes: Vec<Change>) -> Vec<Change> {
        changes.retain(|(file, bytes)| {
            let mut hasher = DefaultHasher::new();
            (self.key, &**bytes).hash(&mut hasher);
            let hash = Some(hasher.finish());
            let is_new = self.hashes[file.index()] != hash;
            if is_new {
                self.hashes[file.index()] = hash;
            }
            is_new
        });
        changes
    }
}

impl QueryState {
    /// Whether a file is made of it, and its first reply did not come yet.
    fn is_awaited(&self) -> bool {
        self.reply.is_none() && !self.files.is_empty()
    }
}

/// The kept replies, with a fresh reply over them.
struct Overlay<'a> {
    queries: &'a [QueryState],
    fresh: Option<(QueryId, &'a Reply)>,
    token: Option<&'a [u8]>,
}

impl Values for Overlay<'_> {
    fn reply(&self, query: QueryId) -> Option<&Reply> {
        match self.fresh {
            Some((fresh, reply)) if fresh == query => Some(reply),
            _ => self.queries[query.index()].reply.as_ref(),
        }
    }

    fn token(&self) -> Option<&[u8]> {
        self.token
    }
}

fn ids(plan: &Plan) -> impl Iterator<Item = FileId> + use<> {
    (0..u32::try_from(plan.files.len()).unwrap_or(u32::MAX)).map(FileId)
}

fn version(reply: &Reply) -> Option<u64> {
    match reply.engine {
        Engine::Kv2 { version, .. } => Some(version),
        Engine::Other => None,
    }
}
