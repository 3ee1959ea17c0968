//! Configuration: text -> raw -> `Plan`, all problems at once, each with its position. Invariant: only `check` makes a `Plan`.

pub mod plan;
