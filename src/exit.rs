//! The exit codes of baofs, and the refusal with an exit code. Invariant: a code has one meaning, and
//! README has the same table.
//!
//! baofs passes the application's own code on unchanged (128+n for a signal n, as a shell does). The
//! codes of the agent follow `sysexits.h`, so that they rarely collide with codes of an application.

use std::fmt;
use thiserror::Error;

/// The reason for the end of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Ok = 0,
    /// `baofs health`: unhealthy (Docker expects 1). `baofs status`: there is no report to read.
    Unhealthy = 1,
    /// The command line is invalid.
    Usage = 64,
    /// A value cannot be served: a field is missing, a secret is empty, or a template uses a missing
    /// field.
    Data = 65,
    /// A configured path is denied by policy or does not exist at the server.
    NoSecret = 66,
    /// The server was not reachable, was sealed, or did not answer in time.
    Unavailable = 69,
    /// The agent itself failed: a process died or broke an invariant.
    Software = 70,
    /// Memory for secrets cannot be locked, or processes cannot be hardened.
    Memory = 71,
    /// The tmpfs is refused, because the filesystem is not in memory, not limited, or swappable; or
    /// another agent serves the directory, by FUSE or on a tmpfs.
    Tmpfs = 73,
    /// FUSE is refused, and no fallback is allowed.
    Fuse = 74,
    /// A process of the agent crashed repeatedly for longer than `crash_loop_timeout`.
    CrashLoop = 75,
    /// The login was refused: role, secret or policy.
    Login = 77,
    /// The configuration is invalid.
    Config = 78,
    /// The application was found but cannot be executed.
    CannotExecute = 126,
    /// The application was not found.
    NotFound = 127,
}

impl Exit {
    /// All codes in order.
    pub const ALL: &'static [Self] = &[
        Self::Ok,
        Self::Unhealthy,
        Self::Usage,
        Self::Data,
        Self::NoSecret,
        Self::Unavailable,
        Self::Software,
        Self::Memory,
        Self::Tmpfs,
        Self::Fuse,
        Self::CrashLoop,
        Self::Login,
        Self::Config,
        Self::CannotExecute,
        Self::NotFound,
    ];

    /// The exit code as a number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a code that a role sent over a link. An unknown code is a failure of the agent.
    pub fn from_code(code: u8) -> Self {
        let mut known = Self::ALL.iter().copied();
        known
            .find(|exit| exit.code() == code)
            .unwrap_or(Self::Software)
    }
}

/// A refused command or a failed start. The refusals of all modules convert into this type.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct Refused {
    /// The exit code of the process.
    pub exit: Exit,
    /// The cause and the remedy, for the user.
    pub message: String,
}

impl Refused {
    /// A refusal with `message`, which may end with a line `hint: ...`.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
        }
    }

    /// A failure of the agent itself: `what` could not be done, because of `error`.
    pub fn software(what: &str, error: impl fmt::Display) -> Self {
        Self::new(Exit::Software, format_args!("{what}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_unique_and_in_readme() {
        const WORDS: [&str; 15] = [
            "success",
            "`baofs health`: unhealthy; `baofs status`: no agent found",
            "the command line is invalid",
            "a value that was read cannot be served (missing field, empty secret)",
            "a configured path is denied by policy or does not exist",
            "OpenBao was not reachable, sealed, or did not answer in time",
            "the agent itself failed",
            "memory for secrets cannot be locked",
            "the tmpfs target is refused, or another agent serves the directory",
            "FUSE is refused and no fallback was allowed",
            "a process of the agent crashed repeatedly",
            "the login was refused",
            "the configuration is invalid",
            "the application cannot be executed",
            "the application was not found",
        ];
        let readme = include_str!("../README.md");
        for pair in Exit::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code(), "{pair:?}");
        }
        assert_eq!(Exit::ALL.len(), WORDS.len());
        for (exit, words) in Exit::ALL.iter().zip(WORDS) {
            assert!(
                readme.contains(&format!("| {} | {words} |", exit.code())),
                "README lacks {} {words}",
                exit.code()
            );
            assert_eq!(Exit::from_code(exit.code()), *exit);
        }
    }
}
