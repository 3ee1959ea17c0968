//! What `fetch` writes down for a successor: its schedule, its tokens, what it knows of files. It is a file of the arena that
//! nobody is served. Invariants: it is written before the requests that it speaks of are sent; one that is not whole, or cannot
//! be read, is none.

use super::board::{Board, BoardNote, FileState, QueryState};
use super::press::{Outlet, PressNote};
use super::requests::TokenNote;
use super::{Fetch, Settings};
use crate::clock::Clock;
use crate::lease::Machine;
use crate::lease::source::Source;
use crate::memory::arena::{Arena, Place};
use crate::names::FileId;
use crate::observe::Event;
use crate::snapshot::{Change, Publisher};
use crate::status::Report;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Where it is written.
pub(super) struct Journal {
    publisher: Publisher,
    file: Option<FileId>,
}

/// All of it: borrowed to be written, owned once it was read.
#[derive(Serialize, Deserialize)]
pub(super) struct Note<M, K, Q, F, R> {
    machine: M,
    source: K,
    tokens: TokenNote,
    board: BoardNote<Q, F>,
    press: PressNote,
    report: R,
}

/// What a predecessor wrote.
pub(super) type Found<K> = Note<Machine, K, Vec<QueryState>, Vec<FileState>, Option<Report>>;

impl Journal {
    /// Opens it in the arena, as a predecessor left it.
    pub(super) fn open(arena: &Arc<Arena>) -> Self {
        Self { publisher: Publisher::new(Arc::clone(arena)), file: arena.files_in(Place::Journal).next() }
    }

    /// What was written last, and whether there was anything at all.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        let reader = self.publisher.reader();
        let version = reader.current(self.file?)?;
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(version.len).ok()?]);
        reader.read(version.nodeid, 0, &mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Replaces it. What does not fit leaves none: an old one would be worse.
    fn write(&mut self, note: &impl Serialize, clock: &dyn Clock) {
        let Some(file) = self.file else { return };
        let bytes = Zeroizing::new(serde_json::to_vec(note).unwrap_or_default());
        if self.publisher.publish(&[Change { file, bytes: &bytes }], clock.wall()).is_err() {
            // An empty one always fits: it takes the place of what it replaces.
            let _ = self.publisher.publish(&[Change { file, bytes: &[] }], clock.wall());
        }
        // The old one names tokens, and nobody reads it any more.
        self.publisher.collect();
    }
}

impl<S: Source + 'static, O: Outlet, C: Clock> Fetch<'_, S, O, C> {
    /// Writes down what a successor must know.
    pub(super) fn write_down(&mut self) {
        let (source, tokens) = (self.requests.source().keep(), self.requests.note());
        let (board, press, report) = (self.board.note(), self.press.note(), self.reporter.last());
        let note = Note { machine: &self.machine, source, tokens, board, press, report };
        self.journal.write(&note, self.clock);
        if std::mem::take(&mut self.settle) {
            self.requests.source().settle();
        }
    }

    /// Goes on where a predecessor died, if there was one.
    pub(super) fn go_on(&mut self, settings: &Settings) {
        let Some(found) = self.journal.read::<Found<S::Kept>>() else { return };
        let Note { machine, source, tokens, board, press, report } = found;
        self.machine = machine.revived(settings.pace, self.clock.now());
        self.requests.source().restore(source);
        self.requests.go_on(tokens);
        self.board = Board::with(self.plan, board);
        self.press.go_on(press, self.clock);
        self.reporter.go_on(report);
        self.settle = true;
        Event::WentOn { lost_logins: self.machine.lost_logins() }.emit();
    }
}
