//! The table of queries, which grows while the agent runs. Invariant: two queries never ask the same;
//! the queries of the plan come first, in the plan's order, and no query is ever removed.

use crate::names::{QueryId, SecretPath};
use crate::template::Read;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Index;

/// The content of a query, for the checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    path: String,
    version: Option<u32>,
}

/// All queries, by read and by id.
#[derive(Debug, Default)]
pub(super) struct QueryTable {
    reads: Vec<Read>,
    ids: HashMap<Read, QueryId>,
}

impl QueryTable {
    /// The id of the query with this read.
    pub(super) fn find(&self, read: &Read) -> Option<QueryId> {
        self.ids.get(read).copied()
    }

    /// Adds a query with the next id, if no query asks the same. Returns the id.
    pub(super) fn add(&mut self, read: Read) -> QueryId {
        let next = QueryId(u32::try_from(self.reads.len()).expect("fewer than 2^32 queries"));
        let id = *self.ids.entry(read.clone()).or_insert(next);
        if id == next {
            self.reads.push(read);
        }
        id
    }

    /// Adds a query of a checkpoint; returns `None` for a path that is not valid.
    pub(super) fn add_saved(&mut self, ask: &Ask) -> Option<QueryId> {
        Some(self.add(Read {
            path: SecretPath::new(&ask.path).ok()?,
            version: ask.version,
        }))
    }

    /// The content of a query, for the checkpoint.
    pub(super) fn ask(&self, id: QueryId) -> Ask {
        let Read { path, version } = &self[id];
        Ask {
            path: path.as_str().to_owned(),
            version: *version,
        }
    }

    /// Queries in the table.
    pub(super) fn len(&self) -> usize {
        self.reads.len()
    }
}

impl Index<QueryId> for QueryTable {
    type Output = Read;

    fn index(&self, id: QueryId) -> &Read {
        &self.reads[id.index()]
    }
}
