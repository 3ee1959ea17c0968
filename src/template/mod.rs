//! The template language: a small honest subset of Go's `text/template` as `bao agent` uses it. Invariant: pure, and
//! no error ever holds a value.

/// A parsed template; `Q` is how it names a read (a path as parsed, a `QueryId` once checked).
#[derive(Debug)]
pub struct Template<Q>(std::marker::PhantomData<Q>);
