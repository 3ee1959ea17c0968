//! Every exit code of baofs, once, and the one shape of a refusal. Invariant: a code has one meaning,
//! and README's table is this one.
//!
//! The application's own code is passed on unchanged (128+n for a signal n, as a shell does). The
//! codes of the agent follow `sysexits.h`, so that they rarely collide with an application's.

use std::fmt;

/// Why the agent itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went as asked.
    Ok = 0,
    /// `baofs health`: unhealthy (1 is what Docker wants). `baofs status`: there is no status to be
    /// read.
    Unhealthy = 1,
    /// The command line cannot be understood.
    Usage = 64,
    /// A value that was read cannot be served: a field is missing, a secret is empty, a template
    /// asks for what is not there.
    Data = 65,
    /// A configured path is denied by policy or does not exist at the server.
    NoSecret = 66,
    /// The server was not reachable, sealed, or did not answer in time.
    Unavailable = 69,
    /// The agent itself failed: one of its processes died or broke an invariant.
    Software = 70,
    /// Memory for secrets cannot be locked, or processes cannot be hardened.
    Memory = 71,
    /// The tmpfs target is refused: not memory, not limited, swappable. Or another agent serves the
    /// directory, by FUSE or tmpfs.
    Tmpfs = 73,
    /// FUSE is refused here, and no fallback was allowed.
    Fuse = 74,
    /// A process of the agent died again and again, for longer than `crash_loop_timeout`.
    CrashLoop = 75,
    /// The login was refused: role, secret or policy.
    Login = 77,
    /// The configuration cannot be used.
    Config = 78,
    /// The application was found but cannot be executed.
    CannotExecute = 126,
    /// The application was not found.
    NotFound = 127,
}

impl Exit {
    /// All codes, in order, each with the words of README's table.
    pub const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Ok, "all went as asked"),
        (
            Self::Unhealthy,
            "`baofs health`: unhealthy; `baofs status`: no agent found",
        ),
        (Self::Usage, "the command line cannot be understood"),
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
        (
            Self::CrashLoop,
            "a process of the agent died again and again",
        ),
        (Self::Login, "the login was refused"),
        (Self::Config, "the configuration cannot be used"),
        (Self::CannotExecute, "the application cannot be executed"),
        (Self::NotFound, "the application was not found"),
    ];

    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a code that came over a link from a role; an unknown one is a failure of the
    /// agent.
    pub fn from_code(code: u8) -> Self {
        Self::TABLE
            .iter()
            .map(|(exit, _)| *exit)
            .find(|exit| exit.code() == code)
            .unwrap_or(Self::Software)
    }
}

/// Why a command was refused or the agent did not start. Every module's own refusal converts into
/// this one.
#[derive(Debug)]
pub struct Refused {
    /// The exit code of the process.
    pub exit: Exit,
    /// Cause and remedy, for the user.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Refused {
    /// A refusal in the words of `message`, which may end with a line `hint: ...`.
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
