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
    /// All codes in order, with the texts of README's table.
    pub const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Ok, "success"),
        (
            Self::Unhealthy,
            "`baofs health`: unhealthy; `baofs status`: no agent found",
        ),
        (Self::Usage, "the command line is invalid"),
        (
            Self::Data,
            "a value that was read cannot be served (missing field, empty secret)",
        ),
        (
            Self::NoSecret,
            "a configured path is denied by policy or does not exist",
        ),
        (
            Self::Unavailable,
            "OpenBao was not reachable, sealed, or did not answer in time",
        ),
        (Self::Software, "the agent itself failed"),
        (Self::Memory, "memory for secrets cannot be locked"),
        (
            Self::Tmpfs,
            "the tmpfs target is refused, or another agent serves the directory",
        ),
        (Self::Fuse, "FUSE is refused and no fallback was allowed"),
        (Self::CrashLoop, "a process of the agent crashed repeatedly"),
        (Self::Login, "the login was refused"),
        (Self::Config, "the configuration is invalid"),
        (Self::CannotExecute, "the application cannot be executed"),
        (Self::NotFound, "the application was not found"),
    ];

    /// The exit code as a number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a code that a role sent over a link. An unknown code is a failure of the agent.
    pub fn from_code(code: u8) -> Self {
        for (exit, _) in Self::TABLE {
            if exit.code() == code {
                return *exit;
            }
        }
        Self::Software
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
        let readme = include_str!("../README.md");
        for pair in Exit::TABLE.windows(2) {
            assert!(pair[0].0.code() < pair[1].0.code(), "{pair:?}");
        }
        for (exit, words) in Exit::TABLE {
            assert!(
                readme.contains(&format!("| {} | {words} |", exit.code())),
                "README lacks {} {words}",
                exit.code()
            );
            assert_eq!(Exit::from_code(exit.code()), *exit);
        }
    }
}
