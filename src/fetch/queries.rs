//! The table of queries, which grows while the agent runs. Invariant: a query is known by what it
//! asks; the queries of the plan come first, in the plan's order, and no query is ever removed.

use crate::config::plan::Query;
use crate::names::{QueryId, SecretPath};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Index;

/// What a query asks, for the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Ask {
    path: String,
    /// A pinned version of KV v2.
    version: Option<u32>,
}

impl Ask {
    fn of(query: &Query) -> Self {
        Self {
            path: query.path.as_str().to_owned(),
            version: query.version,
        }
    }
}

/// All queries, by what they ask and by id.
#[derive(Debug, Default)]
pub(super) struct QueryTable {
    queries: Vec<Query>,
    ids: BTreeMap<Ask, QueryId>,
}

impl QueryTable {
    /// The id of a query that asks the same.
    pub(super) fn find(&self, query: &Query) -> Option<QueryId> {
        self.ids.get(&Ask::of(query)).copied()
    }

    /// The id of a query that asks the same, else a new id.
    pub(super) fn add(&mut self, query: Query) -> QueryId {
        let next = QueryId(u32::try_from(self.queries.len()).unwrap_or(u32::MAX));
        let id = *self.ids.entry(Ask::of(&query)).or_insert(next);
        if id == next {
            self.queries.push(query);
        }
        id
    }

    /// The id of a query of a checkpoint, which the table may not have yet; `None` for a path that is
    /// not valid.
    pub(super) fn add_saved(&mut self, ask: &Ask) -> Option<QueryId> {
        Some(self.add(Query {
            path: SecretPath::new(&ask.path).ok()?,
            version: ask.version,
            refresh: None,
        }))
    }

    /// What a query asks.
    pub(super) fn ask(&self, id: QueryId) -> Ask {
        Ask::of(&self[id])
    }

    /// Queries in the table.
    pub(super) fn len(&self) -> usize {
        self.queries.len()
    }
}

impl Index<QueryId> for QueryTable {
    type Output = Query;

    fn index(&self, id: QueryId) -> &Query {
        &self.queries[id.index()]
    }
}
