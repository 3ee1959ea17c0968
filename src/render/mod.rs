//! Renders replies into the contents of files. Invariants: all requested files are rendered, or none;
//! bytes stay as the server sent them (numbers keep their digits); an error names the file and the
//! configured field, never a value, and at most one other field of the secret, for the log alone.

use crate::config::plan::{Content, Empty, File, Plan};
use crate::lease::source::{Engine, Reply};
use crate::names::{FileId, FileName, QueryId, SecretPath};
use crate::shown::{ShownName, distance};
use crate::template::{ExecError, SecretView};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use thiserror::Error;
use zeroize::Zeroizing;

/// The new content of a file.
pub type Change = (FileId, Zeroizing<Vec<u8>>);

/// The values for files.
#[derive(Debug, Default)]
pub struct Values<'a> {
    /// The replies by query; a query without a reply was not read yet.
    pub replies: BTreeMap<QueryId, &'a Reply>,
    /// The bytes of the token, after a login.
    pub token: Option<&'a [u8]>,
}

/// A file that cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("rendering {name} ({origin}){}: {problem}", from(path.as_ref()))]
pub struct RenderError {
    /// The file.
    pub file: FileId,
    /// The name of the file.
    pub name: FileName,
    /// The place in the configuration.
    pub origin: String,
    /// The path of the secret; `None` for a token, and for a template, whose problem names a path.
    pub path: Option<SecretPath>,
    /// The cause.
    pub problem: RenderProblem,
}

/// A defect of a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenderProblem {
    /// A reply or the token is missing.
    #[error("nothing was read yet")]
    Unread,
    /// The secret has no such field.
    #[error("the secret has no field `{field}`")]
    Missing {
        /// The field in the configuration.
        field: String,
        /// The field of the secret that was probably meant. The writers of the secret choose the
        /// name.
        similar: Option<ShownName>,
    },
    /// The field is null.
    #[error("the field `{0}` is null")]
    Null(String),
    /// The content is empty, and `allow_empty` is not set.
    #[error("the value is empty; hint: set allow_empty if that is meant")]
    Empty,
    /// A template cannot be executed.
    #[error("{0}")]
    Template(ExecError),
    /// The reply cannot be kept for want of room. Sizes are bytes.
    #[error(
        "the answer takes {size} bytes of memory, and {kept} of the {limit} bytes for answers are \
         taken; hint: a larger `filesystem.size` gives more"
    )]
    NoRoom {
        /// The size of the reply.
        size: u64,
        /// The size of all other kept replies.
        kept: u64,
        /// The limit for both.
        limit: u64,
    },
}

fn from(path: Option<&SecretPath>) -> String {
    match path {
        Some(path) => format!(" from {path}"),
        None => String::new(),
    }
}

impl RenderError {
    /// The message with the field that was probably meant. Only the log may have the names of fields,
    /// because everybody may read the report.
    pub fn in_log(&self) -> String {
        if let RenderProblem::Missing {
            similar: Some(name),
            ..
        } = &self.problem
        {
            format!("{self}; hint: did you mean `{name}`?")
        } else {
            self.to_string()
        }
    }
}

/// Renders `files`, all or none.
///
/// # Errors
/// Returns an error for each file that cannot be rendered.
pub fn render(
    plan: &Plan,
    files: impl IntoIterator<Item = FileId>,
    values: &Values<'_>,
) -> Result<Vec<Change>, Vec<RenderError>> {
    let mut changes = Vec::new();
    let mut errors = Vec::new();
    for id in files {
        match content(&plan.files[id.index()], values) {
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

/// The error of a file with this problem.
///
/// # Panics
/// Panics if the plan has no such file.
pub fn error(plan: &Plan, file: FileId, problem: RenderProblem) -> RenderError {
    let File {
        name,
        origin,
        content,
        ..
    } = &plan.files[file.index()];
    let path = match content {
        Content::Field { query, .. } | Content::Json { query } => {
            let query = plan.queries.get(query.index());
            query.map(|query| query.read.path.clone())
        }
        Content::Template(_) | Content::Token => None,
    };
    RenderError {
        file,
        name: name.clone(),
        origin: origin.clone(),
        path,
        problem,
    }
}

/// The queries of a file, each once.
pub fn queries(content: &Content) -> Vec<QueryId> {
    let mut queries = match content {
        Content::Field { query, .. } | Content::Json { query } => vec![*query],
        Content::Template(template) => {
            let queries = template.queries();
            queries.into_iter().copied().collect()
        }
        Content::Token => Vec::new(),
    };
    queries.sort_unstable();
    queries.dedup();
    queries
}

fn content(file: &File, values: &Values<'_>) -> Result<Zeroizing<Vec<u8>>, RenderProblem> {
    let replies = &values.replies;
    if queries(&file.content)
        .iter()
        .any(|query| !replies.contains_key(query))
    {
        return Err(RenderProblem::Unread);
    }
    let bytes = match &file.content {
        Content::Field { query, field } => {
            let fields = &replies[query].fields;
            bytes(fields, field)?
        }
        Content::Json { query } => {
            let fields = &replies[query].fields;
            if fields.is_empty() && file.empty == Empty::Refuse {
                return Err(RenderProblem::Empty);
            }
            json(fields)
        }
        Content::Template(template) => template
            .execute(&|query| Some(view(replies.get(query)?)))
            .map_err(RenderProblem::Template)?,
        Content::Token => {
            let token = values.token.ok_or(RenderProblem::Unread)?;
            Zeroizing::new(token.to_vec())
        }
    };
    if bytes.is_empty() && file.empty == Empty::Refuse {
        Err(RenderProblem::Empty)
    } else {
        Ok(bytes)
    }
}

/// The field that was probably meant by `field`: the name differs in letter case or in a few bytes.
/// The writers of the secret choose number and length of the names, so `COMPARED` and `LONGEST` bound
/// the comparison.
fn similar(fields: &Map<String, Value>, field: &str) -> Option<ShownName> {
    const COMPARED: usize = 1_000;
    const LONGEST: usize = 64;
    let limit = 1 + field.len() / 4;
    let wanted = field.to_lowercase();
    let is_near = |name: &&String| {
        let longest = name.len().max(field.len());
        let difference = name.len().abs_diff(field.len());
        longest <= LONGEST && difference <= limit
    };
    let near = fields.keys().filter(is_near).take(COMPARED);
    let (distance, name) = near
        .map(|name| (distance(&wanted, &name.to_lowercase()), name))
        .min()?;
    (distance <= limit).then(|| name.as_str().into())
}

/// The value at a path of keys. At each level an exact key wins (`tls.crt` is an ordinary key); else
/// the part before a dot is the key of an object.
fn find<'a>(object: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    object.get(path).or_else(|| {
        path.match_indices('.').find_map(|(dot, _)| {
            let outer = object.get(&path[..dot])?;
            find(outer.as_object()?, &path[dot + 1..])
        })
    })
}

fn bytes(fields: &Map<String, Value>, field: &str) -> Result<Zeroizing<Vec<u8>>, RenderProblem> {
    let Some(value) = find(fields, field) else {
        return Err(RenderProblem::Missing {
            field: field.to_owned(),
            similar: similar(fields, field),
        });
    };
    match value {
        Value::Null => Err(RenderProblem::Null(field.to_owned())),
        Value::String(text) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
        Value::Bool(_) | Value::Number(_) => {
            let text = value.to_string();
            Ok(Zeroizing::new(text.into_bytes()))
        }
        Value::Array(_) | Value::Object(_) => Ok(json(value)),
    }
}

/// JSON without spaces, keys sorted at every level (`serde_json`'s map is a sorted one).
///
/// # Panics
/// On a map whose keys are not text.
pub fn json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(serde_json::to_vec(value).expect("plain data, with names as keys"))
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
