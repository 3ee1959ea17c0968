//! The due announcements, kept in the writer area for a successor of `fetch`.

use super::layout::{Arena, Visibility};
use super::reader::Reader;
use super::version::Version;
use crate::names::{FileId, Generation};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// The announcing thread's side of the arena.
#[derive(Debug)]
pub struct Announcements {
    pub(super) reader: Reader,
}

impl Announcements {
    /// Registers the calling thread as the announcing thread.
    pub fn sign(arena: Arc<Arena>) -> Self {
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        arena.writer_area().announcer.store(u64::from(tid), SeqCst);
        Self {
            reader: Reader::new(arena),
        }
    }

    /// The served generation.
    pub fn generation(&self) -> Generation {
        Generation(self.reader.arena.generation())
    }

    /// Listed files whose current version is not announced. The search visits all files: for the
    /// first round, and for the round after a failure.
    pub fn due(&self) -> Vec<FileId> {
        let files = self.reader.arena.files_in(Visibility::Listed);
        files.filter(|file| self.is_due(*file)).collect()
    }

    /// Whether this listed file's current version is not announced.
    pub fn is_due(&self, file: FileId) -> bool {
        if self.reader.arena.file(file).visibility != Visibility::Listed {
            return false;
        }
        let announced = self.reader.arena.writer_file(file).announced.load(SeqCst);
        match self.reader.current(file) {
            Some(version) => version.generation.0 > announced,
            None => false,
        }
    }

    /// The file's name.
    pub fn name(&self, file: FileId) -> &str {
        self.reader.arena.file(file).name.as_str()
    }

    /// Begins an announcement, and ends an unfinished earlier announcement of the file.
    pub fn begin(&self, file: FileId) {
        let attempt = self.reader.arena.writer_file(file).attempt;
        attempt.fetch_add(1, SeqCst);
    }

    /// The version that the last create gave the hidden name to.
    pub fn made(&self, file: FileId) -> Option<Version> {
        let created = self.reader.arena.reader_file(file).created.load(SeqCst);
        self.reader.version(created)
    }

    /// Ends the announcement of the version of `generation`.
    pub fn done(&self, file: FileId, generation: Generation) {
        let announced = self.reader.arena.writer_file(file).announced;
        announced.fetch_max(generation.0, SeqCst);
    }
}
