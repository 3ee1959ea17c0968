//! The secrets: which queries have replies, which contents were rendered, which files are missing.
//! Invariants: the first publication is complete; a file that cannot be rendered keeps the last good
//! content, and so do all files of the same query.

use super::chunks::Chunks;
use super::private::{PrivateFiles, file_shape, query_shape};
use super::queries::QueryTable;
use super::replies::{KeptReplies, Replies};
use crate::config::plan::{Content, Plan};
use crate::exit::Exit;
use crate::lease::source::{Engine, Failure, Reply};
use crate::names::{FileId, FileName, QueryId};
use crate::render::{self, Change, RenderError, RenderProblem, Values};
use crate::snapshot::Publisher;
use crate::template::Read;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};

/// The least limit for replies that wait in ordinary memory, in bytes; the limit is twice
/// `filesystem.size` where that is more.
const WAITING: usize = 8 << 20;

/// The result of rendering a reply.
pub(super) enum Rendered {
    /// All files, for the first publication.
    First(Vec<Change>),
    /// The files that changed since.
    Changes(Vec<Change>),
    /// The values cannot be served; has only the errors that are new.
    Unusable(Vec<RenderError>),
    /// Nothing changed, or other first values are still missing.
    Nothing,
}

/// The state of all files and queries.
pub(super) struct Secrets<'p> {
    plan: &'p Plan,
    pub(super) table: QueryTable,
    /// By query, in the order of the table.
    pub(super) queries: Chunks<QueryState>,
    /// The queries of files. A file may use a query that the table does not have yet.
    uses: BTreeMap<QueryId, QueryUse>,
    /// By file the keyed hash of the last rendered content: contents are compared without being
    /// kept. (64 bits under a random key: two contents are taken for one in 2^-64 of all changes.)
    pub(super) hashes: Chunks<Option<u64>>,
    pub(super) replies: KeptReplies,
    /// Why files cannot be rendered.
    errors: BTreeMap<FileId, RenderError>,
    pub(super) state: SecretsState,
    /// Before the first publication: how many queries of files have no reply yet.
    unread: usize,
}

/// The part of the checkpoint besides the tables.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct SecretsState {
    /// The key of the hashes of contents.
    key: u64,
    /// Whether the first publication was made.
    complete: bool,
}

/// The state of a query.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct QueryState {
    /// Whether the last good reply is kept.
    kept: bool,
    /// The last version (KV v2).
    version: Option<u64>,
    /// Why the last read failed.
    failure: Option<Failure>,
}

/// The use of a query.
#[derive(Clone, Default)]
struct QueryUse {
    /// The files with values of the query.
    files: Vec<FileId>,
    /// Whether one of the files has other queries, too.
    shared: bool,
}

impl<'p> Secrets<'p> {
    /// The secrets of a plan, with no query yet.
    pub(super) fn new(plan: &'p Plan, files: &PrivateFiles) -> Self {
        let state = SecretsState {
            key: RandomState::new().hash_one(()),
            complete: false,
        };
        let hashes = vec![None; plan.files.len()];
        Self::resume(
            plan,
            files,
            state,
            QueryTable::default(),
            Vec::new(),
            hashes,
        )
    }

    /// Resumes from a predecessor's checkpoint.
    pub(super) fn resume(
        plan: &'p Plan,
        files: &PrivateFiles,
        state: SecretsState,
        table: QueryTable,
        queries: Vec<QueryState>,
        hashes: Vec<Option<u64>>,
    ) -> Self {
        let mut uses: BTreeMap<_, QueryUse> = BTreeMap::new();
        for (id, file) in ids(plan).zip(&plan.files) {
            let read = render::queries(&file.content);
            for query in &read {
                let query_use = uses.entry(*query).or_default();
                query_use.files.push(id);
                query_use.shared |= read.len() > 1;
            }
        }
        let size = plan.filesystem.size.unwrap_or(0);
        let of_size = usize::try_from(size).unwrap_or(usize::MAX);
        let limit = of_size.saturating_mul(2).max(WAITING);
        let kept = queries.iter().filter(|query| query.kept);
        Self {
            plan,
            table,
            unread: uses.len() - kept.count(),
            queries: Chunks::new(queries, query_shape(plan)),
            uses,
            hashes: Chunks::new(hashes, file_shape(plan)),
            replies: KeptReplies::new(files.replies.clone(), query_shape(plan), limit),
            errors: BTreeMap::new(),
            state,
        }
    }

    /// Adds a query, which the table does not have yet.
    pub(super) fn add(&mut self, read: Read) {
        self.table.add(read);
        self.queries.push(QueryState::default());
    }

    /// Whether the first publication was made.
    pub(super) fn is_complete(&self) -> bool {
        self.state.complete
    }

    /// Whether all kept replies can be read. After a crash in the middle of the first
    /// publication replies may be missing.
    pub(super) fn has_kept_replies(&self, publisher: &Publisher) -> bool {
        let kept = self.select(|query| self.queries[query.index()].kept);
        self.replies.load(publisher, &kept).len() == kept.len()
    }

    /// The queries of the table that `is_wanted`.
    fn select(&self, is_wanted: impl Fn(&QueryId) -> bool) -> BTreeSet<QueryId> {
        let ids = (0_u32..).map(QueryId).take(self.queries.len());
        ids.filter(is_wanted).collect()
    }

    /// The names of the files with values of a query.
    pub(super) fn names(&self, query: QueryId) -> impl Iterator<Item = &'p FileName> {
        let plan = self.plan;
        let files = self.uses.get(&query).map(|used| used.files.iter());
        let files = files.unwrap_or_default();
        files.map(|file| &plan.files[file.index()].name)
    }

    /// Takes the reply to `query`.
    pub(super) fn accept(
        &mut self,
        publisher: &mut Publisher,
        query: QueryId,
        reply: Reply,
        token: Option<&[u8]>,
    ) -> Rendered {
        self.queries
            .update(query.index(), |state| state.failure = None);
        let QueryUse { files, shared } = self.uses.get(&query).cloned().unwrap_or_default();
        let version = match reply.engine {
            Engine::Kv2 { version, .. } => Some(version),
            Engine::Other => None,
        };
        if version.is_some() && self.queries[query.index()].version == version {
            return if files.iter().any(|file| self.errors.contains_key(file)) {
                Rendered::Unusable(Vec::new())
            } else {
                Rendered::Nothing
            };
        }
        let others = self.load_others(publisher, query, &files);
        let mut values = Values {
            replies: self.with_waiting(&others),
            token,
        };
        values.replies.insert(query, &reply);
        let rendered = render::render(self.plan, files.iter().copied(), &values);
        // Before the first publication there is no good reply to fall back on.
        let is_kept = !self.is_complete() || (shared && rendered.is_ok());
        if is_kept
            && !files.is_empty()
            && let Err(problem) = self.keep(publisher, query, reply)
        {
            let mut errors = Vec::new();
            for file in files {
                errors.push(render::error(self.plan, file, problem.clone()));
            }
            return Rendered::Unusable(self.add_errors(errors));
        }
        if version.is_some() {
            self.queries
                .update(query.index(), |state| state.version = version);
        }
        match rendered {
            Ok(changes) => {
                for file in &files {
                    self.errors.remove(file);
                }
                if self.is_complete() {
                    Rendered::Changes(self.changed(changes))
                } else {
                    self.first(publisher, token)
                }
            }
            Err(mut errors) => {
                // Other first replies may still be missing.
                if !self.is_complete() {
                    errors.retain(|error| error.problem != RenderProblem::Unread);
                }
                if errors.is_empty() {
                    Rendered::Nothing
                } else {
                    Rendered::Unusable(self.add_errors(errors))
                }
            }
        }
    }

    /// Renders the files of a new token, or all files if only the token was missing for the first
    /// publication.
    pub(super) fn renew_token(&mut self, publisher: &mut Publisher, token: &[u8]) -> Rendered {
        if !self.is_complete() {
            return self.first(publisher, Some(token));
        }
        let is_sink = |id: &FileId| {
            let file = &self.plan.files[id.index()];
            matches!(file.content, Content::Token)
        };
        let sinks = ids(self.plan).filter(is_sink);
        let values = Values {
            replies: BTreeMap::new(),
            token: Some(token),
        };
        match render::render(self.plan, sinks, &values) {
            Ok(changes) => Rendered::Changes(self.changed(changes)),
            Err(errors) => Rendered::Unusable(self.add_errors(errors)),
        }
    }

    /// Records a failed read of `query`.
    pub(super) fn failed(&mut self, query: QueryId, failure: &Failure) {
        self.queries.update(query.index(), |state| {
            state.failure = Some(failure.clone());
        });
    }

    /// Why the last reply to a query of the file cannot be rendered, for the report.
    pub(super) fn error(&self, file: FileId) -> Option<String> {
        self.errors.get(&file).map(ToString::to_string)
    }

    /// The last version of KV v2, for content of a single secret.
    pub(super) fn version(&self, content: &Content) -> Option<u64> {
        match render::queries(content)[..] {
            [query] => self.queries.get(query.index())?.version,
            _ => None,
        }
    }

    /// For the log: every file that cannot be served with the reason, and the exit code of the most
    /// telling reason. `login` is the failure for which there is no token.
    pub(super) fn missing(&self, login: Option<&Failure>) -> (Vec<(&'p FileName, String)>, Exit) {
        let mut missing = Vec::new();
        let mut exits = Vec::new();
        for (id, file) in ids(self.plan).zip(&self.plan.files) {
            let reason = self.reason(id, login, RenderError::in_log);
            if let Some((why, exit)) = reason {
                missing.push((&file.name, why));
                exits.push(exit);
            }
        }
        let telling = [Exit::Login, Exit::Data, Exit::NoSecret]
            .into_iter()
            .find(|exit| exits.contains(exit));
        (missing, telling.unwrap_or(Exit::Unavailable))
    }

    /// Why the file cannot be served before the first publication, with the exit code. `login` is the
    /// failure for which there is no token. `words` formats an error: the log has more than the report.
    pub(super) fn reason(
        &self,
        file: FileId,
        login: Option<&Failure>,
        words: fn(&RenderError) -> String,
    ) -> Option<(String, Exit)> {
        if let Some(failure) = login {
            return Some((failure.message.clone(), failure.cause.exit()));
        }
        if let Some(error) = self.errors.get(&file) {
            return Some((words(error), Exit::Data));
        }
        let content = &self.plan.files[file.index()].content;
        for query in render::queries(content) {
            let Some(state) = self.queries.get(query.index()) else {
                return Some((
                    "a secret of it is not read yet".to_owned(),
                    Exit::Unavailable,
                ));
            };
            if state.kept {
                continue;
            }
            if let Some(failure) = &state.failure {
                return Some((failure.message.clone(), failure.cause.exit()));
            }
            let path = &self.table.read(query).path;
            let why = format!("reading {path}: no answer came yet");
            return Some((why, Exit::Unavailable));
        }
        None
    }

    /// Renders all files once no reply is missing.
    fn first(&mut self, publisher: &mut Publisher, token: Option<&[u8]>) -> Rendered {
        if self.unread > 0 {
            return Rendered::Nothing;
        }
        let all = self.select(|_| true);
        let loaded = self.replies.load(publisher, &all);
        let values = Values {
            replies: self.with_waiting(&loaded),
            token,
        };
        let Ok(changes) = render::render(self.plan, ids(self.plan), &values) else {
            return Rendered::Nothing;
        };
        self.state.complete = true;
        let is_shared = |query: &QueryId| self.uses.get(query).is_some_and(|used| used.shared);
        let shared = self.select(is_shared);
        self.replies.retain(publisher, &shared);
        for query in all {
            let is_kept = shared.contains(&query);
            self.queries
                .update(query.index(), |state| state.kept = is_kept);
        }
        Rendered::First(self.changed(changes))
    }

    /// The kept replies to the other queries of `files`.
    fn load_others(&self, publisher: &Publisher, query: QueryId, files: &[FileId]) -> Replies {
        let mut others = BTreeSet::new();
        for file in files {
            let content = &self.plan.files[file.index()].content;
            others.extend(render::queries(content));
        }
        others.remove(&query);
        self.replies.load(publisher, &others)
    }

    /// The `loaded` and the waiting replies.
    fn with_waiting<'a>(&'a self, loaded: &'a Replies) -> BTreeMap<QueryId, &'a Reply> {
        let all = loaded.iter().chain(&self.replies.waiting);
        all.map(|(query, reply)| (*query, reply)).collect()
    }

    /// Keeps the reply for later renderings.
    fn keep(
        &mut self,
        publisher: &mut Publisher,
        query: QueryId,
        reply: Reply,
    ) -> Result<(), RenderProblem> {
        let used = &self.uses[&query];
        self.replies.store(publisher, query, reply, !used.shared)?;
        let is_first = self
            .queries
            .update(query.index(), |state| state.kept = true);
        if is_first {
            self.unread = self.unread.saturating_sub(1);
        }
        Ok(())
    }

    /// Records the errors; returns the new errors.
    fn add_errors(&mut self, mut errors: Vec<RenderError>) -> Vec<RenderError> {
        errors.retain(|error| {
            let last = self.errors.insert(error.file, error.clone());
            last.as_ref() != Some(error)
        });
        errors
    }

    /// The contents that differ from the last rendered contents.
    fn changed(&mut self, mut changes: Vec<Change>) -> Vec<Change> {
        changes.retain(|(file, bytes)| {
            let mut hasher = DefaultHasher::new();
            (self.state.key, &**bytes).hash(&mut hasher);
            let hash = Some(hasher.finish());
            self.hashes.update(file.index(), |last| *last = hash)
        });
        changes
    }
}

fn ids(plan: &Plan) -> impl Iterator<Item = FileId> + use<> {
    (0_u32..).map(FileId).take(plan.files.len())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arena, failure};
    use super::*;
    use crate::lease::source::Cause;
    use crate::render::tests::{field, file, plan, query, reply};
    use serde_json::{Value, json};

    fn with_secrets(plan: &Plan) -> (Publisher, Secrets<'_>) {
        let arena = arena(plan);
        let mut secrets = Secrets::new(plan, &PrivateFiles::open(&arena, plan));
        for query in &plan.queries {
            secrets.add(query.read.clone());
        }
        (Publisher::new(arena), secrets)
    }

    #[test]
    fn an_answer_that_there_is_no_room_for_is_an_error_of_its_query_alone() {
        let paths = ["q0", "q1", "q2"];
        let files = (0..3)
            .map(|n| file(&format!("f{n}"), field(n, "a")))
            .collect();
        let plan = plan(paths.iter().map(|path| query(path, None)).collect(), files);
        let (mut publisher, mut secrets) = with_secrets(&plan);
        let publisher = &mut publisher;
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
                ..Reply::default()
            }
        };
        assert!(matches!(
            secrets.accept(publisher, QueryId(0), reply(5), Some(b"t")),
            Rendered::Nothing
        ));
        let Rendered::Unusable(errors) =
            secrets.accept(publisher, QueryId(1), reply(5), Some(b"t"))
        else {
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
            secrets.accept(publisher, QueryId(0), reply(6), Some(b"t")),
            Rendered::Nothing
        ));
        assert!(matches!(
            secrets.accept(publisher, QueryId(1), reply(1), Some(b"t")),
            Rendered::Nothing
        ));
        let Rendered::First(changes) = secrets.accept(publisher, QueryId(2), reply(0), Some(b"t"))
        else {
            panic!("all are there")
        };
        assert_eq!(changes.len(), 3);
        // Now only what is rendered is kept.
        assert!(matches!(
            secrets.accept(publisher, QueryId(2), reply(20), Some(b"t")),
            Rendered::Changes(_)
        ));
    }

    #[test]
    fn what_is_missing_is_named_with_its_cause() {
        let plan = plan(
            vec![query("q0", None), query("q1", None)],
            vec![file("one", field(0, "a")), file("two", field(1, "a"))],
        );
        let (mut publisher, mut secrets) = with_secrets(&plan);
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
            &mut publisher,
            QueryId(0),
            reply(&json!({"b": "value"})),
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
}
