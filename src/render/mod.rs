//! `Plan` x replies -> the bytes of files. Invariants: all files that are asked for, or none; bytes
//! as the server gave them (numbers keep their digits); an error names file and configured field,
//! never a value, and at most one other name of the secret's fields, which is for the log alone.

use crate::config::plan::{Content, Empty, File, Plan};
use crate::lease::source::{Engine, Reply};
use crate::names::{FileId, FileName, QueryId, SecretPath};
use crate::shown::{ShownName, distance};
use crate::template::{ExecError, SecretView};
use serde_json::{Map, Value};
use std::fmt;
use zeroize::Zeroizing;

/// One file's new content.
pub type Change = (FileId, Zeroizing<Vec<u8>>);

/// What files are made of.
pub trait Values {
    /// What a query gave, if it was read.
    fn reply(&self, query: QueryId) -> Option<&Reply>;
    /// The token's bytes, once there is one.
    fn token(&self) -> Option<&[u8]>;
}

/// Why a file cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderError {
    /// Which.
    pub file: FileId,
    /// Its name.
    pub name: FileName,
    /// Where it is configured.
    pub origin: String,
    /// What it reads; `None` for a template, whose problem has a place of its own, and for a
    /// token.
    pub path: Option<SecretPath>,
    /// What is wrong.
    pub problem: RenderProblem,
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenderProblem {
    /// Nothing was read yet.
    Unread,
    /// The secret has no such field.
    Missing {
        /// The field that is configured.
        field: String,
        /// The field of the secret that was probably meant. Whoever may write the secret chooses
        /// this name.
        similar: Option<ShownName>,
    },
    /// The field is null.
    Null(String),
    /// The content is empty, and `allow_empty` is not set.
    Empty,
    /// A template cannot be executed.
    Template(ExecError),
    /// There is no room to keep what was read: how much it takes in memory, how much others take,
    /// and the bound, in bytes.
    NoRoom {
        /// Of this answer.
        size: usize,
        /// Of those that are kept.
        kept: usize,
        /// Of all.
        limit: usize,
    },
}

impl fmt::Display for RenderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rendering {} ({})", self.name, self.origin)?;
        if let Some(path) = &self.path {
            write!(f, " from {path}")?;
        }
        match &self.problem {
            RenderProblem::Unread => f.write_str(": nothing was read yet"),
            RenderProblem::Missing { field, .. } => {
                write!(f, ": the secret has no field `{field}`")
            }
            RenderProblem::Null(field) => write!(f, ": the field `{field}` is null"),
            RenderProblem::Empty => {
                f.write_str(": the value is empty; hint: set allow_empty if that is meant")
            }
            RenderProblem::Template(error) => write!(f, ": {error}"),
            RenderProblem::NoRoom { size, kept, limit } => write!(
                f,
                ": the answer takes {size} bytes of memory, and {kept} of the {limit} bytes for answers are taken; \
                 hint: a larger `filesystem.size` gives more"
            ),
        }
    }
}

impl std::error::Error for RenderError {}

impl RenderError {
    /// The message with the field that was probably meant. It is for the log: the report may be
    /// read by everybody, and names of fields are not for everybody.
    pub fn in_log(&self) -> String {
        match &self.problem {
            RenderProblem::Missing {
                similar: Some(name),
                ..
            } => format!("{self}; hint: did you mean `{name}`?"),
            RenderProblem::Missing { similar: None, .. }
            | RenderProblem::Unread
            | RenderProblem::Null(_)
            | RenderProblem::Empty
            | RenderProblem::Template(_)
            | RenderProblem::NoRoom { .. } => self.to_string(),
        }
    }
}

/// Renders `files`, all or none.
///
/// # Errors
/// One for each file that cannot be rendered.
pub fn render(
    plan: &Plan,
    files: impl IntoIterator<Item = FileId>,
    values: &impl Values,
) -> Result<Vec<Change>, Vec<RenderError>> {
    let (mut changes, mut errors) = (Vec::new(), Vec::new());
    for id in files {
        let Some(file) = plan.files.get(id.index()) else {
            continue;
        };
        match content(file, values) {
            Ok(bytes) => changes.push((id, bytes)),
            Err(problem) => errors.push(error(plan, id, problem)),
        }
    }
    if errors.is_empty() {
        Ok(changes)
    } else {
        Err(errors)
    }
}

/// What is wrong with this file of the plan.
///
/// # Panics
/// When there is no such file.
pub fn error(plan: &Plan, file: FileId, problem: RenderProblem) -> RenderError {
    let File {
        name,
        origin,
        content,
        ..
    } = &plan.files[file.index()];
    RenderError {
        file,
        name: name.clone(),
        origin: origin.clone(),
        path: path(plan, content),
        problem,
    }
}

/// What a file reads, each once.
pub fn queries(content: &Content) -> Vec<QueryId> {
    let mut queries = match content {
        Content::Field { query, .. } | Content::Json { query } => vec![*query],
        Content::Template(template) => template.queries().into_iter().copied().collect(),
        Content::Token => Vec::new(),
    };
    queries.sort_unstable();
    queries.dedup();
    queries
}

fn path(plan: &Plan, content: &Content) -> Option<SecretPath> {
    match content {
        Content::Field { query, .. } | Content::Json { query } => plan
            .queries
            .get(query.index())
            .map(|query| query.read.path.clone()),
        Content::Template(_) | Content::Token => None,
    }
}

fn content(file: &File, values: &impl Values) -> Result<Zeroizing<Vec<u8>>, RenderProblem> {
    if queries(&file.content)
        .into_iter()
        .any(|query| values.reply(query).is_none())
    {
        return Err(RenderProblem::Unread);
    }
    let bytes = match &file.content {
        Content::Field { query, field } => bytes(
            field,
            find_field(values.reply(*query).ok_or(RenderProblem::Unread)?, field)?,
        )?,
        Content::Json { query } => match &values.reply(*query).ok_or(RenderProblem::Unread)?.fields
        {
            none if none.is_empty() && file.empty == Empty::Refuse => {
                return Err(RenderProblem::Empty);
            }
            fields => compact(fields),
        },
        Content::Template(template) => template
            .execute(&|query| values.reply(*query).map(view))
            .map_err(RenderProblem::Template)?,
        Content::Token => Zeroizing::new(values.token().ok_or(RenderProblem::Unread)?.to_vec()),
    };
    if bytes.is_empty() && file.empty == Empty::Refuse {
        Err(RenderProblem::Empty)
    } else {
        Ok(bytes)
    }
}

fn find_field<'a>(reply: &'a Reply, field: &str) -> Result<&'a Value, RenderProblem> {
    find(&reply.fields, field).ok_or_else(|| RenderProblem::Missing {
        field: field.to_owned(),
        similar: similar(&reply.fields, field),
    })
}

/// The field that was probably meant by `field`: one that differs by letter case, or by a few
/// bytes. Whoever may write the secret decides how many names there are and how long they are: what
/// is compared is bounded by `COMPARED` and `LONGEST`.
fn similar(fields: &Map<String, Value>, field: &str) -> Option<ShownName> {
    const COMPARED: usize = 1_000;
    const LONGEST: usize = 64;
    let (limit, wanted) = (1 + field.len() / 4, field.to_lowercase());
    let is_near = |name: &&String| {
        name.len().max(field.len()) <= LONGEST && name.len().abs_diff(field.len()) <= limit
    };
    let near = fields.keys().filter(is_near).take(COMPARED);
    let (distance, name) = near
        .map(|name| (distance(&wanted, &name.to_lowercase()), name))
        .min()?;
    (distance <= limit).then(|| name.as_str().into())
}

/// An exact key wins (`tls.crt` is an ordinary one), at each level; then the part before a dot is
/// an object's key.
fn find<'a>(object: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    object.get(path).or_else(|| {
        path.match_indices('.')
            .find_map(|(dot, _)| find(object.get(&path[..dot])?.as_object()?, &path[dot + 1..]))
    })
}

fn bytes(field: &str, value: &Value) -> Result<Zeroizing<Vec<u8>>, RenderProblem> {
    match value {
        Value::Null => Err(RenderProblem::Null(field.to_owned())),
        Value::String(text) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
        Value::Bool(_) | Value::Number(_) => Ok(Zeroizing::new(value.to_string().into_bytes())),
        Value::Array(_) | Value::Object(_) => Ok(compact(value)),
    }
}

/// JSON without spaces, keys sorted at every level (`serde_json`'s map is a sorted one).
fn compact(value: &impl serde::Serialize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::new());
    serde_json::to_writer(&mut *bytes, value)
        .expect("a parsed JSON value can be written to memory");
    bytes
}

fn view(reply: &Reply) -> SecretView<'_> {
    match &reply.engine {
        Engine::Kv2 { metadata, .. } => SecretView::Versioned {
            data: &reply.fields,
            metadata,
        },
        Engine::Other => SecretView::Plain(&reply.fields),
    }
}

#[cfg(test)]
pub(crate) mod tests;
