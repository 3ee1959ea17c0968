//! The private files of the arena, which hold the checkpoint and the kept replies as JSON. Invariant:
//! the plan alone decides number and order of the files, so a successor finds the files of the
//! predecessor.

use super::chunks::ChunkShape;
use crate::config::plan::Plan;
use crate::names::FileId;
use crate::render;
use crate::snapshot::{Arena, Change, PublishError, Publisher, Visibility};
use serde::de::DeserializeOwned;
use std::time::UNIX_EPOCH;
use zeroize::Zeroizing;

/// Served files in a chunk of the checkpoint.
const FILES: usize = 64;
/// Queries in a chunk of the checkpoint, and of the kept replies.
const QUERIES: usize = 4;

/// The division of the table of files.
pub(super) fn file_shape(plan: &Plan) -> ChunkShape {
    ChunkShape::new(plan.files.len(), FILES)
}

/// The division of the table of queries.
pub(super) fn query_shape(plan: &Plan) -> ChunkShape {
    ChunkShape::new(plan.queries.len(), QUERIES)
}

/// The names of the private files that `fetch` needs in the arena, in order.
pub fn private_files(plan: &Plan) -> Vec<String> {
    let mut names = vec!["state".to_owned()];
    for (table, shape) in [
        ("files", file_shape(plan)),
        ("queries", query_shape(plan)),
        ("replies", query_shape(plan)),
    ] {
        for chunk in 0..shape.count {
            names.push(format!("{table}-{chunk}"));
        }
    }
    names
}

/// The private files by use; the index of a file of a table is the chunk.
#[derive(Debug)]
pub(super) struct PrivateFiles {
    /// The part that each save writes.
    pub(super) state: FileId,
    pub(super) files: Vec<FileId>,
    pub(super) queries: Vec<FileId>,
    pub(super) replies: Vec<FileId>,
}

impl PrivateFiles {
    /// The private files of an arena that was made for `plan`.
    ///
    /// # Panics
    /// On an arena without the files of `private_files`.
    pub(super) fn open(arena: &Arena, plan: &Plan) -> Self {
        let mut all = arena.files_in(Visibility::Private);
        let state = all.next().expect("the arena was made for the plan");
        let mut take = |shape: ChunkShape| all.by_ref().take(shape.count).collect();
        Self {
            state,
            files: take(file_shape(plan)),
            queries: take(query_shape(plan)),
            replies: take(query_shape(plan)),
        }
    }
}

/// The value in a private file; `None` for a file that is empty or cannot be read.
pub(super) fn read<T: DeserializeOwned>(publisher: &Publisher, file: FileId) -> Option<T> {
    let reader = publisher.reader();
    let version = reader.current(file)?;
    let len = usize::try_from(version.len).ok()?;
    let mut bytes = Zeroizing::new(vec![0; len]);
    reader.read(version.nodeid, 0, &mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Replaces the contents of private files in one step, and wipes the old contents.
///
/// # Errors
/// `TooLarge`: the old contents stay.
pub(super) fn write(
    publisher: &mut Publisher,
    contents: &[render::Change],
) -> Result<(), PublishError> {
    publisher.publish(&changes(contents), UNIX_EPOCH)?;
    publisher.collect();
    Ok(())
}

/// The contents as changes of the arena.
pub(super) fn changes(contents: &[render::Change]) -> Vec<Change<'_>> {
    contents
        .iter()
        .map(|(file, bytes)| Change { file: *file, bytes })
        .collect()
}
