//! What pages of versions the kernel may keep. It keeps them for `sendfile`, `splice` and `mmap`,
//! although files are opened for direct I/O, and it would keep those of a superseded version for as
//! long as somebody has it open. `serve` notes each such read; `fetch` has the pages dropped once a
//! newer version is announced. Invariant: a note is of one version, and never of the next
//! one that uses the same record.
//!
//! A note is a word of the desk, which `serve` alone writes: the version's tag in the upper half,
//! then how often its pages were dropped, and in the lowest bits of which of its inodes pages may
//! be kept.

use super::{Reader, Version, holders, tag};
use crate::memory::arena::Arena;
use crate::names::FileId;
use std::sync::atomic::Ordering::SeqCst;

/// Which of a version's two inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inode {
    /// The one that it has until its announcing rename.
    Unannounced = 0,
    /// The one that it has from its announcement's create on.
    Announced = 1,
}

const INODES: [Inode; 2] = [Inode::Unannounced, Inode::Announced];
/// The bits of both inodes.
const KEPT: u64 = 0b11;
/// One drop.
const DROP: u64 = 0b100;

impl Inode {
    fn bit(self) -> u64 {
        1 << self as u64
    }
}

impl Reader {
    /// Notes that the kernel keeps what it reads of this inode now.
    pub fn keeps(&self, nodeid: u64, inode: Inode) {
        let word = self.note(nodeid);
        self.set_note(nodeid, word | inode.bit());
        self.arena().desk_head().kept.fetch_add(1, SeqCst);
    }

    /// How often pages of this version were dropped.
    #[must_use]
    pub fn drops(&self, nodeid: u64) -> u64 {
        self.note(nodeid) / DROP
    }

    /// A superseded version of the file whose pages the kernel may keep, held, and the inode: the
    /// same until `dropped`. One more drop is counted.
    #[must_use]
    pub fn next_kept(&self, file: FileId) -> Option<(Version, Inode)> {
        superseded(self.arena(), file)
            .into_iter()
            .find_map(|nodeid| {
                let word = self.note(nodeid);
                let inode = INODES.into_iter().find(|inode| word & inode.bit() != 0)?;
                let held = self.hold(nodeid)?;
                self.set_note(nodeid, word + DROP);
                Some((held, inode))
            })
    }

    /// The kernel was answered with that inode, and has dropped its pages.
    pub fn dropped(&self, nodeid: u64, inode: Inode) {
        self.set_note(nodeid, self.note(nodeid) & !inode.bit());
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
