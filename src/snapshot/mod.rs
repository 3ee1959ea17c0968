//! Versions of files in the arena: one `Publisher` (in `fetch`), many `Reader`s (in `serve`), and
//! the due `Announcements`. Invariants: the bytes of a version never change while the number of the
//! version is valid; a single store of `current` flips all files of a change together; generations
//! only grow; a number (`nodeid`) is never used again.
//!
//! A file's current version is the live record with the greatest generation up to `current`, so an
//! unchanged file keeps the record. Freeing is safe by the order of two
//! words (both sides sequentially consistent): the publisher first moves `current` and then loads
//! the count of holders; the reader first raises the count and then loads `current`.

mod announcements;
mod index;
mod layout;
mod pages;
mod publisher;
mod reader;
mod serving;
#[cfg(test)]
mod tests;
mod version;

pub use announcements::Announcements;
pub use layout::{Arena, ArenaError, FileSpec, LAST_KEPT, State, Visibility};
pub use pages::Stage;
pub use publisher::{Change, PublishError, Publisher};
pub use reader::{Gone, Reader, Summary};
pub use serving::Serving;
pub use version::Version;
