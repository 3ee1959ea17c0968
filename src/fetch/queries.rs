//! The table of queries, which grows while the agent runs. Invariant: two queries never ask the same;
//! the queries of the plan come first, in the plan's order, and no query is ever removed.

use crate::names::QueryId;
use crate::template::Read;
use std::collections::HashMap;

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

    /// Adds a query with the next id, if no query asks the same.
    pub(super) fn add(&mut self, read: Read) {
        let next = QueryId(u32::try_from(self.reads.len()).expect("fewer than 2^32 queries"));
        if *self.ids.entry(read.clone()).or_insert(next) == next {
            self.reads.push(read);
        }
    }

    /// The read of a query.
    pub(super) fn read(&self, id: QueryId) -> &Read {
        &self.reads[id.index()]
    }
}
