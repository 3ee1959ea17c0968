//! The closed set of events and incidents, each written as one log line with fields. A field is a
//! name, a number, a path, or a message without a secret value. Invariant: a log line is short and
//! has no control character, because every foreign text passes `shown`.

use crate::names::{FileName, Generation, Role};
use crate::shown::ShownLine;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;
use tracing::{error, info, warn};

/// A decision or a change of state.
#[derive(Debug)]
pub enum Event<'a> {
    // supervise
    /// The files are served at a path.
    Mounted {
        /// The mount point.
        path: &'a Path,
        /// `fuse` or `tmpfs`.
        how: &'static str,
    },
    /// The mount hides files that were in the directory.
    FilesHidden {
        /// The directory.
        path: &'a Path,
        /// The number of hidden names.
        entries: usize,
    },
    /// The path of the mount leads through a link.
    LinkInPath {
        /// The path as configured.
        path: &'a Path,
        /// The path without links.
        resolved: &'a Path,
    },
    /// The swap turned on after the start was turned off again.
    SwapGone,
    /// The application was started.
    AppStarted {
        /// The process id of the application.
        pid: i32,
    },
    /// The application ended.
    AppEnded {
        /// The exit code to be passed on by baofs.
        code: u8,
    },
    /// The application did not stop in time, or a second signal ended the wait.
    AppKilled,
    /// The application is notified of a rotation.
    Notifying {
        /// A signal, a program, or `restart`.
        how: &'a str,
    },
    /// A role did not answer in time, and is killed.
    RoleHung {
        /// The role.
        role: Role,
        /// The time since the last answer.
        since: Duration,
    },
    /// The successor of a dead role is ready.
    RoleRestarted {
        /// The role.
        role: Role,
        /// The time from the fork of the successor until ready.
        after: Duration,
    },
    /// Supervise was killed, and the guard stops everything.
    SuperviseKilled,
    /// `BAOFS_UNSTABLE_NO_RESEND` is set.
    ResendDisabled,

    // fetch
    /// A new `fetch` resumed from the checkpoint of the predecessor.
    Resumed {
        /// Logins in doubt since the start: each may have left a token that cannot be revoked.
        lost_logins: u32,
    },
    /// A login succeeded.
    LoggedIn {
        /// The time to live of the token, unless the token never expires; logged in seconds.
        ttl: Option<Duration>,
    },
    /// Every file has its first value.
    Ready {
        /// The number of files.
        files: usize,
    },
    /// New values are served.
    Published {
        /// The generation of the values.
        generation: Generation,
        /// The number of changed files.
        files: usize,
    },
    /// The token and its leases were revoked.
    Revoked,

    // serve
    /// An old version that a reader had open was removed to make room for a newer version.
    Evicted {
        /// The file.
        file: &'a FileName,
    },

    // every role
    /// Log lines were dropped because the log was not read.
    LinesDropped {
        /// Lines dropped since the last report.
        lines: u64,
    },
}

impl Event<'_> {
    /// Writes the event as one log line.
    pub fn emit(&self) {
        match self {
            Self::Mounted { path, how } => info!(path = %shown_path(path), how, "serving"),
            Self::FilesHidden { path, entries } => {
                warn!(path = %shown_path(path), entries, "the mount hides files in the directory");
            }
            Self::LinkInPath { path, resolved } => {
                warn!(path = %shown_path(path), resolved = %shown_path(resolved), "the path of the mount contains a link: a user who may change the link can redirect readers");
            }
            Self::SwapGone => info!("secrets cannot reach a swap any more"),
            Self::AppStarted { pid } => info!(pid, "application started"),
            Self::AppEnded { code } => info!(code, "application ended"),
            Self::AppKilled => warn!("killing the application"),
            Self::Notifying { how } => {
                info!(how = shown(how), "notifying the application of a rotation");
            }
            Self::RoleHung { role, since } => {
                error!(
                    role = role.as_str(),
                    ?since,
                    "a process of the agent does not answer: it is killed"
                );
            }
            Self::RoleRestarted { role, after } => {
                info!(
                    role = role.as_str(),
                    ?after,
                    "a process of the agent was restarted"
                );
            }
            Self::SuperviseKilled => {
                error!("supervise was killed: stopping every process and removing the mount");
            }
            Self::ResendDisabled => warn!(
                "BAOFS_UNSTABLE_NO_RESEND is set, for tests only: requests of a dead process are interrupted"
            ),
            Self::Resumed { lost_logins } => {
                info!(
                    lost_logins,
                    "fetch resumed from the checkpoint of its predecessor"
                );
            }
            Self::LoggedIn { ttl } => {
                let ttl = ttl.map(|ttl| ttl.as_secs());
                info!(ttl, "logged in");
            }
            Self::Ready { files } => info!(files, "all secrets are available"),
            Self::Published { generation, files } => {
                info!(generation = generation.0, files, "published");
            }
            Self::Revoked => info!("token revoked"),
            Self::Evicted { file } => {
                warn!(file = %shown(file), "an old version that a reader has open was removed to make room for a newer version");
            }
            Self::LinesDropped { lines } => {
                warn!(lines, "log lines were dropped because nobody read them");
            }
        }
    }
}

/// A failure or a risk, with a reason. `Display` is the message of the log line.
#[derive(Debug, thiserror::Error)]
pub enum Incident<'a> {
    // cli
    /// The configuration has a setting with a risk or without effect.
    #[error("configuration warning")]
    ConfigWarning,

    // supervise
    /// The mount appears in other mount namespaces, too.
    #[error("the mount appears in other mount namespaces, too")]
    MountShared {
        /// The mount point in this namespace.
        path: &'a Path,
    },
    /// FUSE is not available, and the configured fallback is used.
    #[error("FUSE is refused; falling back to tmpfs")]
    FallbackUsed,
    /// The pages of the tmpfs may reach a swap, as allowed by `--allow-swap`.
    #[error("secrets may be written to a swap (--allow-swap)")]
    SwapAllowed,
    /// A swap was turned on after the start, so that files on a tmpfs could be written to the swap.
    #[error("secrets may reach a swap that was turned on since the start")]
    SwapFound,
    /// The application could not be started.
    #[error("the application cannot be started")]
    AppNotStarted {
        /// The program.
        program: &'a str,
    },
    /// The application runs without an `AppArmor` profile.
    #[error("AppArmor does not confine the application")]
    NoAppArmor,
    /// The application can regain `SYS_ADMIN`, which the bounding set still has.
    #[error(
        "programs that the application executes as root have SYS_ADMIN, because baofs needs it; \
         hint: with `--cap-add SETPCAP` baofs can take it away for good"
    )]
    SysAdminRemains,
    /// A signal could not be sent to the application.
    #[error("the application cannot be signalled; hint: start the container with `--cap-add KILL`")]
    NotSignalled {
        /// The signal.
        signal: &'static str,
    },
    /// A command after a rotation failed. The rotation stays, and nothing else waits.
    #[error("the command after a rotation failed")]
    CommandFailed {
        /// The program.
        program: &'a str,
    },
    /// A role ended without being told to stop; the reason is the exit status.
    #[error("a process of the agent died")]
    RoleDied {
        /// The role.
        role: Role,
    },
    /// A role crashed repeatedly until `crash_loop_timeout` was over.
    #[error("a process of the agent died again and again: baofs ends")]
    CrashLoop {
        /// The role.
        role: Role,
    },
    /// No process of the agent could be forked.
    #[error("a process of the agent cannot be forked")]
    ForkFailed,
    /// A role could not be confined, and ends.
    #[error("a process of the agent cannot be confined")]
    NotConfined {
        /// The role.
        role: Role,
    },
    /// A role cannot work, and ends.
    #[error("a process of the agent failed")]
    RoleFailed {
        /// The role.
        role: Role,
    },
    /// The kernel has no Landlock, or the container forbids the use of Landlock.
    #[error(
        "no Landlock: a `fetch` that was taken over could read and write every file of its user, \
         and connect to every port; hint: Linux 5.13 with `landlock` among its security modules, \
         and a container runtime that lets its system calls pass"
    )]
    NoLandlock,
    /// The kernel has no seccomp filters.
    #[error(
        "no seccomp filters: a process of the agent that was taken over could make every system \
         call; hint: a kernel with CONFIG_SECCOMP_FILTER"
    )]
    NoSeccomp,
    /// Landlock lets `fetch` read a credential file now, but possibly not remove the file, or read
    /// a later file of the same path.
    #[error("fetch has limited access to a file; hint: put the file into a directory of its own")]
    ReachLimited {
        /// The file.
        path: &'a Path,
    },
    /// The guard, which cleans up after a killed supervise, could not be started.
    #[error("no guard: nothing cleans up if baofs is killed")]
    NoGuard,
    /// The pid file or the link to a sink could not be made.
    #[error("a pid file or link to a sink cannot be made")]
    RunFileNotMade {
        /// The path.
        path: &'a Path,
    },
    /// Another user may replace the link to a sink.
    #[error("another user may replace the link to a sink")]
    LinkReplaceable {
        /// The path of the link.
        path: &'a Path,
    },
    /// A pid file or a link could not be removed at the end.
    #[error("a pid file or link to a sink cannot be removed")]
    RunFileNotRemoved {
        /// The path.
        path: &'a Path,
    },
    /// Files of the tmpfs could not be removed at the end.
    #[error("not all files could be removed")]
    FilesNotRemoved,

    // fetch
    /// TLS verification is off because of `tls_skip_verify`.
    #[error(
        "TLS verification is off: anyone on the network path can read every secret and the token"
    )]
    TlsUnverified {
        /// The server's host.
        server: &'a str,
    },
    /// Changed files could not be published, and are published later.
    #[error("changed files cannot be published")]
    NotPublished,
    /// The status report does not fit, and is written without causes.
    #[error("the status report is written without causes")]
    ReportWithoutCauses,
    /// The status report does not fit, and only counts are written.
    #[error("the status report is written with counts only")]
    ReportOfCounts,
    /// No status report could be written.
    #[error("the status report cannot be written")]
    ReportNotWritten,
    /// The file of the `secret_id` could not be removed after the login.
    #[error("the secret_id could not be removed after reading")]
    SecretIdNotRemoved {
        /// The file.
        path: &'a Path,
    },
    /// The checkpoint for a successor of `fetch` does not fit into the arena.
    #[error("recovery is off: if fetch dies, its successor logs in and reads every secret again")]
    NotRecoverable,
    /// A request failed and will be tried again.
    #[error("a request failed; trying again")]
    Retrying {
        /// The wait before the next attempt.
        after: Duration,
    },
    /// The login was refused; the next login follows a change of a credential file.
    #[error("the login was refused; waiting for another role_id or secret_id in its file")]
    LoginRefused,
    /// A file has no value when `wait` is over.
    #[error("a secret is missing")]
    SecretMissing {
        /// The file.
        file: &'a FileName,
    },
    /// A secret could not be renewed or read again, and its last value is still served.
    #[error("the last good value is still served")]
    SecretStale {
        /// The file.
        file: &'a FileName,
    },
    /// A first value was read, but cannot be served.
    #[error("a value cannot be served")]
    ValueUnusable,
    /// The token could not be revoked within the time given.
    #[error("the token could not be revoked and lives until its TTL ends")]
    NotRevoked,
}

impl Incident<'_> {
    /// Writes the incident and its reason as one log line.
    pub fn emit(&self, why: &dyn Display) {
        let why = shown(why);
        match self {
            Self::AppNotStarted { program } => error!(program = shown(program), why, "{self}"),
            Self::CommandFailed { program } => warn!(program = shown(program), why, "{self}"),
            Self::NotSignalled { signal } => warn!(signal, why, "{self}"),
            Self::RoleDied { role }
            | Self::CrashLoop { role }
            | Self::NotConfined { role }
            | Self::RoleFailed { role } => error!(role = role.as_str(), why, "{self}"),
            Self::MountShared { path }
            | Self::ReachLimited { path }
            | Self::RunFileNotMade { path }
            | Self::LinkReplaceable { path }
            | Self::RunFileNotRemoved { path }
            | Self::SecretIdNotRemoved { path } => warn!(path = %shown_path(path), why, "{self}"),
            Self::TlsUnverified { server } => warn!(server = shown(server), why, "{self}"),
            Self::Retrying { after } => warn!(why, ?after, "{self}"),
            Self::SecretMissing { file } => error!(file = %shown(file), why, "{self}"),
            Self::SecretStale { file } => warn!(file = %shown(file), why, "{self}"),
            Self::ForkFailed | Self::NotPublished | Self::ReportNotWritten | Self::LoginRefused => {
                error!(why, "{self}");
            }
            Self::ConfigWarning
            | Self::FallbackUsed
            | Self::SwapAllowed
            | Self::SwapFound
            | Self::NoAppArmor
            | Self::SysAdminRemains
            | Self::NoLandlock
            | Self::NoSeccomp
            | Self::NoGuard
            | Self::FilesNotRemoved
            | Self::ReportWithoutCauses
            | Self::ReportOfCounts
            | Self::NotRecoverable
            | Self::ValueUnusable
            | Self::NotRevoked => warn!(why, "{self}"),
        }
    }
}

/// A text, shortened and cleaned for a log line.
fn shown(text: &dyn Display) -> String {
    ShownLine::from(text.to_string()).to_string()
}

/// A path, shortened and cleaned.
fn shown_path(path: &Path) -> String {
    shown(&path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::io::{Read, Seek};
    use std::sync::Arc;

    #[test]
    fn a_line_of_json_has_the_fields_without_control_characters() {
        let mut file = tempfile::tempfile().expect("a file");
        let writer = Arc::new(file.try_clone().expect("a copy"));
        let format = tracing_subscriber::fmt().with_writer(writer).json();
        let subscriber = format.flatten_event(true).finish();
        tracing::subscriber::with_default(subscriber, || {
            let path = Path::new("/run/a\u{1b}pid");
            Event::FilesHidden { path, entries: 3 }.emit();
            Incident::RunFileNotRemoved { path }.emit(&"not\npermitted");
            Incident::Retrying {
                after: Duration::from_millis(1500),
            }
            .emit(&"x".repeat(900));
        });
        file.rewind().expect("a file");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("text");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let long = "x".repeat(799) + "…";
        let expected = [
            json!({ "level": "WARN", "message": "the mount hides files in the directory",
                "path": "/run/a\u{fffd}pid", "entries": 3 }),
            json!({ "level": "WARN", "message": "a pid file or link to a sink cannot be removed",
                "path": "/run/a\u{fffd}pid", "why": "not permitted" }),
            json!({ "level": "WARN", "message": "a request failed; trying again",
                "why": long, "after": "1.5s" }),
        ];
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, expected) in lines.iter().zip(&expected) {
            for (name, value) in expected.as_object().expect("an object") {
                assert_eq!(&line[name], value, "{name}: {text}");
            }
        }
    }
}
