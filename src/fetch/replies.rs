//! The kept replies: of queries that share a file with other queries, and before the first
//! publication of every query. Invariant: kept replies rest in private files of the arena and are in
//! ordinary memory only while files are rendered. Before the first publication a reply of a query that
//! shares no file may wait in ordinary memory for want of room.

use super::chunks::ChunkShape;
use super::private::{read, write};
use crate::lease::source::Reply;
use crate::names::{FileId, QueryId};
use crate::render::{RenderProblem, json};
use crate::snapshot::{PublishError, Publisher};
use std::collections::{BTreeMap, BTreeSet};
use zeroize::Zeroizing;

/// Replies by query.
pub(super) type Replies = BTreeMap<QueryId, Reply>;

/// The place of the kept replies.
pub(super) struct KeptReplies {
    /// By chunk of the table of queries.
    files: Vec<FileId>,
    shape: ChunkShape,
    /// Replies that the arena had no room for.
    pub(super) waiting: Replies,
    /// The limit for the weight of `waiting`, in bytes.
    limit: usize,
}

impl KeptReplies {
    /// The replies in `files`, as a predecessor left them.
    pub(super) fn new(files: Vec<FileId>, shape: ChunkShape, limit: usize) -> Self {
        Self {
            files,
            shape,
            waiting: Replies::new(),
            limit,
        }
    }

    /// The replies in the arena to the `wanted` queries.
    pub(super) fn load(&self, publisher: &Publisher, wanted: &BTreeSet<QueryId>) -> Replies {
        let chunks = wanted.iter().map(|query| self.file_of(*query));
        let chunks: BTreeSet<_> = chunks.collect();
        let mut found = Replies::new();
        for file in chunks {
            found.append(&mut read(publisher, file).unwrap_or_default());
        }
        found.retain(|query, _| wanted.contains(query));
        found
    }

    /// Keeps a reply in place of the last reply to the same query. `may_wait` allows ordinary memory.
    ///
    /// # Errors
    /// `NoRoom`: the last reply stays.
    pub(super) fn store(
        &mut self,
        publisher: &mut Publisher,
        query: QueryId,
        reply: Reply,
        may_wait: bool,
    ) -> Result<(), RenderProblem> {
        let file = self.file_of(query);
        let mut chunk: Replies = read(publisher, file).unwrap_or_default();
        let size = reply.weight();
        chunk.insert(query, reply);
        let Err(PublishError::TooLarge { needed, available }) =
            write(publisher, &[(file, json(&chunk))])
        else {
            self.waiting.remove(&query);
            return Ok(());
        };
        if !may_wait {
            let limit = publisher.reader().arena().heap_len() as u64;
            return Err(RenderProblem::NoRoom {
                size: needed,
                kept: limit.saturating_sub(available),
                limit,
            });
        }
        let others = self.waiting.iter().filter(|(other, _)| **other != query);
        let kept: usize = others.map(|(_, reply)| reply.weight()).sum();
        if kept.saturating_add(size) > self.limit {
            return Err(RenderProblem::NoRoom {
                size: size as u64,
                kept: kept as u64,
                limit: self.limit as u64,
            });
        }
        self.waiting.extend(chunk.remove_entry(&query));
        Ok(())
    }

    /// Drops all replies but the ones to `kept`.
    pub(super) fn retain(&mut self, publisher: &mut Publisher, kept: &BTreeSet<QueryId>) {
        self.waiting.clear();
        for file in &self.files {
            let Some(mut chunk) = read::<Replies>(publisher, *file) else {
                continue;
            };
            chunk.retain(|query, _| kept.contains(query));
            let bytes = if chunk.is_empty() {
                Zeroizing::default()
            } else {
                json(&chunk)
            };
            // Empty bytes always fit. Without room for fewer replies all replies of the chunk stay.
            let _ = write(publisher, &[(*file, bytes)]);
        }
    }

    fn file_of(&self, query: QueryId) -> FileId {
        self.files[self.shape.chunk_of(query.index())]
    }
}
