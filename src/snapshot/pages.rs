//! What pages of versions the kernel may keep. It keeps them for `sendfile`, `splice` and `mmap`,
//! although files are opened for direct I/O, and it would keep those of a superseded version for as
//! long as somebody has it open. `serve` notes each such read; `fetch` has the pages dropped once a
//! newer version is announced. Invariant: a note is of one version, and never of the next
//! one that uses the same record.
//!
//! A note is a word of the reader area, which `serve` alone writes: the version's tag in the upper
//! half, then how often its pages were dropped, and in the lowest bits of which of its inodes pages
//! may be kept.

use super::{Reader, Version, holders, tag};
use crate::memory::arena::{Arena, LAST_KEPT};
use crate::names::FileId;
use std::sync::atomic::Ordering::SeqCst;

/// Which of a version's two inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The one that it has until its announcing rename.
    Unannounced = 0,
    /// The one that it has from its announcement's create on.
    Announced = 1,
}

const STAGES: [Stage; 2] = [Stage::Unannounced, Stage::Announced];
/// The bits of both inodes.
const KEPT: u64 = 0b11;
/// One drop.
const DROP: u64 = 0b100;

impl Stage {
    fn bit(self) -> u64 {
        1 << self as u64
    }
}

impl Reader {
    /// Notes that the kernel keeps what it reads of this inode now.
    pub fn keeps(&self, nodeid: u64, stage: Stage) {
        let word = self.note(nodeid);
        if word & stage.bit() != 0 {
            return;
        }
        self.set_note(nodeid, word | stage.bit());
        let words = self.arena().reader_area();
        let number = words.kept.load(SeqCst);
        // First the file, then the count that says so.
        let file = u64::from(self.file_of(nodeid).0);
        words.last_kept[position(number)].store(file, SeqCst);
        words.kept.store(number + 1, SeqCst);
    }

    /// How often pages of this version were dropped.
    pub fn drops(&self, nodeid: u64) -> u64 {
        self.note(nodeid) / DROP
    }

    /// A superseded version of the file whose pages the kernel may keep, held, and the inode: the
    /// same until `dropped`. One more drop is counted.
    pub fn next_kept(&self, file: FileId) -> Option<(Version, Stage)> {
        superseded(self.arena(), file)
            .into_iter()
            .find_map(|nodeid| {
                let word = self.note(nodeid);
                let stage = STAGES.into_iter().find(|stage| word & stage.bit() != 0)?;
                let held = self.hold(nodeid)?;
                self.set_note(nodeid, word + DROP);
                Some((held, stage))
            })
    }

    /// The kernel was answered with that inode, and has dropped its pages.
    pub fn dropped(&self, nodeid: u64, stage: Stage) {
        self.set_note(nodeid, self.note(nodeid) & !stage.bit());
    }

    fn note(&self, nodeid: u64) -> u64 {
        let word = self.arena().kept()[super::slot_of(self.arena(), nodeid)].load(SeqCst);
        if word >> 32 == tag(self.arena(), nodeid) {
            word & u64::from(u32::MAX)
        } else {
            0
        }
    }

    fn set_note(&self, nodeid: u64, word: u64) {
        let word = tag(self.arena(), nodeid) << 32 | word & u64::from(u32::MAX);
        self.arena().kept()[super::slot_of(self.arena(), nodeid)].store(word, SeqCst);
    }
}

/// Where the file of the note with that number is named.
fn position(number: u64) -> usize {
    usize::try_from(number % LAST_KEPT as u64).expect("less than a length")
}

/// The files that were noted since `seen`, and how many notes there are now. `None` when there
/// were more than are named.
pub(super) fn noted_since(arena: &Arena, seen: u64) -> (Option<Vec<FileId>>, u64) {
    let words = arena.reader_area();
    let now = words.kept.load(SeqCst);
    let file = |number| words.last_kept[position(number)].load(SeqCst);
    let files: Option<Vec<_>> = (seen.max(now.saturating_sub(LAST_KEPT as u64))..now)
        .map(|number| u32::try_from(file(number)).ok().map(FileId))
        .collect();
    // The next note already takes the place of the oldest one that is named.
    let is_all = words.kept.load(SeqCst) - seen < LAST_KEPT as u64;
    (files.filter(|_| is_all), now)
}

/// The versions of the file, held by the kernel and superseded, of which it may keep pages.
pub(super) fn superseded(arena: &Arena, file: FileId) -> Vec<u64> {
    let Some(current) = super::current(arena, file) else {
        return Vec::new();
    };
    let noted = arena.slots(file).filter_map(|slot| {
        let word = arena.kept()[slot].load(SeqCst);
        // The number of that record with that tag.
        (word & KEPT != 0).then(|| (word >> 32) * arena.records().len() as u64 + slot as u64)
    });
    let is_old = |nodeid: &u64| {
        super::version(arena, *nodeid)
            .is_some_and(|version| version.generation < current.generation)
    };
    noted
        .filter(|nodeid| holders(arena, *nodeid) > 0)
        .filter(is_old)
        .collect()
}
