//! What `fetch` writes down for a successor: its schedule, its tokens, what it knows of files. It
//! is a file of the arena that nobody is served. Invariants: it is written before the requests that
//! it speaks of are sent; one that cannot be read is none; the credential's file is removed only
//! once the whole of it is saved. Where the whole does not fit, the credentials alone are
//! saved: a successor then begins anew, and can log in although the credential's file is gone.

use super::board::{Board, BoardNote, FileState, QueryState};
use super::press::{Outlet, PressNote};
use super::requests::{Prepared, TokenNote};
use super::{Fetch, Settings};
use crate::clock::Clock;
use crate::lease::Machine;
use crate::lease::source::Source;
use crate::memory::arena::{Arena, Place};
use crate::names::FileId;
use crate::observe::Event;
use crate::snapshot::{Change, Publisher};
use crate::status::{Checkpoint, Report};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Where it is written.
pub(super) struct Journal {
    file: Option<FileId>,
    /// How much of it was saved last.
    state: Checkpoint,
    /// Whether it was said that the whole does not fit.
    warned: bool,
}

/// Requests that the last checkpoint mentions, as far as there was room for it: the witness that
/// `Requests::send` demands. Only `Fetch::save` makes one, of the very requests that it saved.
pub(super) struct Saved<T>(Vec<Prepared<T>>);

impl<T> Saved<T> {
    /// The requests.
    pub(super) fn into_requests(self) -> Vec<Prepared<T>> {
        self.0
    }
}

/// As much of it as there was room for.
#[derive(Serialize, Deserialize)]
enum Extent<N, K> {
    /// All of it.
    Whole(N),
    /// What the source keeps, which has the credentials.
    Credentials(K),
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
    pub(super) fn open(arena: &Arena) -> Self {
        Self {
            file: arena.files_in(Place::Journal).next(),
            state: Checkpoint::Whole,
            warned: false,
        }
    }

    /// How much of it was saved last.
    pub(super) fn state(&self) -> Checkpoint {
        self.state
    }

    /// What was written last, and whether there was anything at all.
    pub(super) fn read<T: DeserializeOwned>(&self, publisher: &Publisher) -> Option<T> {
        let reader = publisher.reader();
        let version = reader.current(self.file?)?;
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(version.len).ok()?]);
        reader.read(version.nodeid, 0, &mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Replaces it by `note`, else by `kept` alone, else by nothing: an old one would be worse.
    /// Says once when the whole does not fit. Whether the whole was saved.
    fn save(
        &mut self,
        publisher: &mut Publisher,
        note: impl Serialize,
        kept: impl Serialize,
        clock: &dyn Clock,
    ) -> bool {
        let (whole, less) = (
            Extent::<_, ()>::Whole(note),
            Extent::<(), _>::Credentials(kept),
        );
        self.state = match self.write(publisher, &whole, clock) {
            Ok(()) => Checkpoint::Whole,
            Err(why) => {
                if !std::mem::replace(&mut self.warned, true) {
                    Event::NotRecoverable { why: &why }.emit();
                }
                if self.write(publisher, &less, clock).is_ok() {
                    Checkpoint::Credentials
                } else {
                    self.clear(publisher, clock)
                }
            }
        };
        // The old one names tokens, and nobody reads it any more.
        publisher.collect();
        self.state == Checkpoint::Whole
    }

    fn write(
        &self,
        publisher: &mut Publisher,
        saved: &impl Serialize,
        clock: &dyn Clock,
    ) -> Result<(), String> {
        let file = self.file.ok_or("the arena has no room for it")?;
        let bytes = Zeroizing::new(serde_json::to_vec(saved).map_err(|error| error.to_string())?);
        let bytes = &bytes;
        publisher
            .publish(&[Change { file, bytes }], clock.wall())
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Empties it.
    fn clear(&self, publisher: &mut Publisher, clock: &dyn Clock) -> Checkpoint {
        if let Some(file) = self.file {
            // An empty one always fits: it takes the place of what it replaces.
            let _ = publisher.publish(&[Change { file, bytes: &[] }], clock.wall());
        }
        Checkpoint::Nothing
    }
}

impl<S: Source + 'static, O: Outlet, C: Clock> Fetch<'_, S, O, C> {
    /// Saves what a successor must know, and gives the requests that may be sent then.
    pub(super) fn save(&mut self) -> Saved<S::Token> {
        let requests = self.requests.take_prepared();
        let (kept, tokens) = (self.requests.source().keep(), self.requests.note());
        let (board, press, report) = (self.board.note(), self.press.note(), self.reporter.last());
        let note = Note {
            machine: &self.machine,
            source: &kept,
            tokens,
            board,
            press,
            report,
        };
        let whole = self
            .journal
            .save(&mut self.publisher, note, &kept, self.clock);
        if whole && std::mem::take(&mut self.settle) {
            self.requests.source().settle();
        }
        Saved(requests)
    }

    /// Goes on where a predecessor died, if there was one. Of one whose checkpoint did not fit only
    /// the credentials are known: its token lives to its ttl.
    pub(super) fn go_on(&mut self, settings: &Settings) {
        let found = match self
            .journal
            .read::<Extent<Found<S::Kept>, S::Kept>>(&self.publisher)
        {
            Some(Extent::Whole(found)) => found,
            Some(Extent::Credentials(kept)) => return self.requests.source().restore(kept),
            None => return,
        };
        let Note {
            machine,
            source,
            tokens,
            board,
            press,
            report,
        } = found;
        self.machine = machine.revived(settings.pace, self.clock.now());
        self.requests.source().restore(source);
        self.requests.go_on(tokens);
        self.board = Board::with(self.plan, board);
        self.press.go_on(press, self.clock);
        self.reporter.go_on(report);
        self.settle = true;
        Event::WentOn {
            lost_logins: self.machine.lost_logins(),
        }
        .emit();
    }
}
