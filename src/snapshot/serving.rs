//! The present `serve`, described by words of the reader area. Invariant: `fetch` never sees words
//! of two processes together.

use super::layout::Arena;
use crate::clock::Moment;
use crate::names::{Recovery, RestartHistory};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// A `serve` at work.
#[derive(Clone, Copy, Debug)]
pub struct Serving {
    /// The restarts before this process.
    pub past: RestartHistory,
    /// Process id.
    pub pid: i32,
    /// When the process began to answer.
    pub born: Moment,
    /// How the requests of a dead predecessor are recovered.
    pub recovery: Recovery,
}

impl Arena {
    /// Notes the calling process as the present `serve`.
    ///
    /// `fetch` may read meanwhile: the process id is 0 until the other words belong to the process.
    pub fn serve_was_born(&self, past: RestartHistory, recovery: Recovery, now: Moment) {
        let [pid, deaths, crashes, born, recovered] = self.serving();
        pid.store(0, SeqCst);
        deaths.store(past.deaths, SeqCst);
        crashes.store(u64::from(past.crashes), SeqCst);
        let millis = now.since_origin().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        born.store(millis, SeqCst);
        recovered.store(recovery as u64, SeqCst);
        pid.store(u64::from(std::process::id()), SeqCst);
        // A predecessor that died during an operation left an odd number.
        let work = self.reader_area().work;
        work.fetch_add(work.load(Relaxed) & 1, Relaxed);
    }

    /// The last `serve` that began to answer; `None` before the first, and while another begins.
    pub fn last_serve(&self) -> Option<Serving> {
        let words = self.serving();
        let loaded = words.each_ref().map(|word| word.load(SeqCst));
        let [pid, deaths, crashes, born, recovery] = loaded;
        if pid == 0 || words[0].load(SeqCst) != pid {
            return None;
        }
        Some(Serving {
            past: RestartHistory {
                deaths,
                crashes: u32::try_from(crashes).ok()?,
            },
            pid: i32::try_from(pid).ok()?,
            born: Moment::at(Duration::from_millis(born)),
            recovery: match recovery {
                0 => Recovery::Resend,
                _ => Recovery::Interrupt,
            },
        })
    }
}
