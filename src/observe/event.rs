//! The closed set of events: each event is one decision and one log line. A field is a name, a
//! number, a path, or a message without a secret value. Invariant: a log line is short and has no
//! control character, because every text passes `line`.

use crate::names::{FileName, Generation, Role};
use crate::shown::ShownLine;
use std::path::Path;
use std::time::Duration;
use tracing::{error, info, warn};

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    // cli
    /// The configuration has a setting with a risk or without effect.
    ConfigWarning {
        /// The position, the problem and the hint.
        problem: &'a str,
    },

    // supervise
    /// The files are served at a path.
    Mounted {
        /// The mount point.
        path: &'a Path,
        /// `fuse` or `tmpfs`.
        how: &'static str,
    },
    /// The mount hides files that were in the directory.
    Hides {
        /// The directory.
        path: &'a Path,
        /// The number of hidden names.
        entries: usize,
    },
    /// The path of the mount leads through a link.
    BehindLink {
        /// The path as configured.
        path: &'a Path,
        /// The path without links.
        own: &'a Path,
    },
    /// The mount appears in other mount namespaces, too.
    Propagates {
        /// The mount point in this namespace.
        path: &'a Path,
    },
    /// FUSE is not available, and the configured fallback is used.
    FallingBack {
        /// The reason why FUSE is not available.
        cause: &'a str,
    },
    /// A tmpfs whose pages may reach a swap is used because of `--allow-swap`.
    SwapAllowed {
        /// The reason why a swap cannot be excluded.
        cause: &'a str,
    },
    /// A swap was turned on after the start, so that files on a tmpfs could be written to the
    /// swap; or such a swap was turned off again.
    SwapFound {
        /// The reason; `None` once no swap can be reached any more.
        cause: Option<&'a str>,
    },
    /// The application was started.
    AppStarted {
        /// Its process id.
        pid: i32,
    },
    /// The application could not be started.
    AppNotStarted {
        /// The program.
        program: &'a str,
        /// The reason.
        why: &'a str,
    },
    /// The application ended.
    AppEnded {
        /// The code that baofs will pass on.
        code: u8,
    },
    /// The application did not stop in time, or a second signal ended the wait.
    AppKilled,
    /// The application is notified of a rotation.
    Telling {
        /// A signal, a program, or `restart`.
        how: &'a str,
    },
    /// A command after a rotation failed. The rotation stays, and nothing else waits.
    CommandFailed {
        /// The program.
        program: &'a str,
        /// The exit status in words.
        how: &'a str,
    },
    /// A role ended without being told to stop.
    RoleDied {
        /// The role.
        role: Role,
        /// The exit status in words: `exit code 1`, `signal 9`.
        how: &'a str,
    },
    /// A role did not answer in time, and is killed.
    RoleHangs {
        /// The role.
        role: Role,
        /// The time since its last answer.
        since: Duration,
    },
    /// The successor of a dead role is ready.
    WorksAgain {
        /// The role.
        role: Role,
        /// The time from its fork to readiness.
        after: Duration,
    },
    /// A role crashed repeatedly until `crash_loop_timeout` was over.
    GivenUp {
        /// The role.
        role: Role,
    },
    /// An optional step failed: a pid file, a link.
    Skipped {
        /// The step and the reason.
        what: &'a str,
    },

    // fetch
    /// A new `fetch` resumed from the checkpoint of its predecessor.
    WentOn {
        /// Logins in doubt since the start: each may have left a token that cannot be revoked.
        lost_logins: u32,
    },
    /// The checkpoint for a successor of `fetch` does not fit into the arena.
    NotRecoverable {
        /// The reason.
        why: &'a str,
    },
    /// A login succeeded.
    LoggedIn {
        /// The time to live of the token, unless the token never expires; logged in seconds.
        ttl: Option<Duration>,
    },
    /// A request failed and will be tried again.
    Retrying {
        /// The failure's own message.
        failure: &'a str,
        /// The wait before the next attempt.
        after: Duration,
    },
    /// The login was refused; the next login follows a change of a credential file.
    Refused {
        /// The failure's own message.
        failure: &'a str,
    },
    /// Every file has its first value.
    Ready {
        /// The number of files.
        files: usize,
    },
    /// A file has no value when `wait` is over.
    Missing {
        /// The file.
        file: &'a FileName,
        /// The reason.
        why: &'a str,
    },
    /// New values are served.
    Published {
        /// Their generation.
        generation: Generation,
        /// The number of changed files.
        files: usize,
    },
    /// A secret could not be renewed or read again, and its last value is still served.
    Stale {
        /// The file.
        file: &'a FileName,
        /// The reason.
        why: &'a str,
    },
    /// The token and its leases were revoked.
    Revoked,
    /// The token could not be revoked within the time given.
    NotRevoked {
        /// The reason.
        why: &'a str,
    },
    /// A first value was read, but cannot be served.
    Unusable {
        /// The file and the problem.
        why: &'a str,
    },
    /// TLS verification is off because of `tls_skip_verify`.
    Unverified {
        /// The server's host.
        server: &'a str,
    },

    // serve
    /// An old version that a reader had open was removed to make room for a newer version.
    Evicted {
        /// The file.
        file: &'a FileName,
    },
    /// Log lines were dropped because the log was not read.
    Dropped {
        /// Lines dropped since the last such event.
        lines: u64,
    },
    /// The agent itself failed.
    Broken {
        /// The problem and the reason.
        what: &'a str,
    },
}

impl Event<'_> {
    /// Writes the event as one log line.
    #[expect(clippy::too_many_lines, reason = "a line or two for each event")]
    pub fn emit(&self) {
        match self {
            Self::ConfigWarning { problem } => warn!("{}", line(problem)),
            Self::Mounted { path, how } => {
                info!(path = %line(&path.to_string_lossy()), how, "serving");
            }
            Self::Hides { path, entries } => {
                warn!(path = %line(&path.to_string_lossy()), entries, "the mount hides files in the directory");
            }
            Self::BehindLink { path, own } => {
                let (path, own) = (line(&path.to_string_lossy()), line(&own.to_string_lossy()));
                warn!(%path, %own, "the path of the mount contains a link: a user who may change the link can redirect readers");
            }
            Self::Propagates { path } => {
                let path = line(&path.to_string_lossy());
                warn!(%path, "the mount appears in other mount namespaces, too: the mount beneath is shared");
            }
            Self::FallingBack { cause } => warn!(
                cause = line(cause).as_str(),
                "FUSE is refused; falling back to tmpfs"
            ),
            Self::SwapAllowed { cause } => warn!(
                cause = line(cause).as_str(),
                "secrets may be written to a swap (--allow-swap)"
            ),
            Self::SwapFound { cause: Some(cause) } => warn!(
                cause,
                "secrets may reach a swap that was turned on since the start"
            ),
            Self::SwapFound { cause: None } => info!("secrets cannot reach a swap any more"),
            Self::AppStarted { pid } => info!(pid, "application started"),
            Self::AppNotStarted { program, why } => {
                error!(
                    program = line(program).as_str(),
                    why = line(why).as_str(),
                    "the application cannot be started"
                );
            }
            Self::AppEnded { code } => info!(code, "application ended"),
            Self::AppKilled => warn!("the application is killed"),
            Self::Telling { how } => info!(
                how = line(how).as_str(),
                "notifying the application of a rotation"
            ),
            Self::CommandFailed { program, how } => {
                warn!(
                    program = line(program).as_str(),
                    how = line(how).as_str(),
                    "the command after a rotation failed"
                );
            }
            Self::RoleDied { role, how } => error!(
                role = role.as_str(),
                how = line(how).as_str(),
                "a process of the agent died"
            ),
            Self::RoleHangs { role, since } => error!(
                role = role.as_str(),
                ?since,
                "a process of the agent does not answer: it is killed"
            ),
            Self::WorksAgain { role, after } => info!(
                role = role.as_str(),
                ?after,
                "another one works in its place"
            ),
            Self::GivenUp { role } => error!(
                role = role.as_str(),
                "a process of the agent died again and again: baofs ends"
            ),
            Self::Skipped { what } => warn!("{}", line(what)),
            Self::WentOn { lost_logins } => {
                info!(
                    lost_logins,
                    "fetch resumed from the checkpoint of its predecessor"
                );
            }
            Self::NotRecoverable { why } => {
                warn!(
                    why = line(why).as_str(),
                    "recovery is off: if fetch dies, its successor logs in and reads every secret again"
                );
            }
            Self::LoggedIn { ttl } => info!(ttl = ttl.map(|ttl| ttl.as_secs()), "logged in"),
            Self::Retrying { failure, after } => warn!(?after, "{}; trying again", line(failure)),
            Self::Refused { failure } => error!(
                "{}; waiting for another role_id or secret_id in its file",
                line(failure)
            ),
            Self::Ready { files } => info!(files, "all secrets are available"),
            Self::Missing { file, why } => {
                error!(file = %line(file.as_str()), why = line(why).as_str(), "a secret is missing");
            }
            Self::Published { generation, files } => {
                info!(generation = generation.0, files, "published");
            }
            Self::Stale { file, why } => {
                warn!(file = %line(file.as_str()), why = line(why).as_str(), "the last good value is still served");
            }
            Self::Revoked => info!("token revoked"),
            Self::NotRevoked { why } => warn!(
                why = line(why).as_str(),
                "the token could not be revoked and lives until its TTL ends"
            ),
            Self::Unusable { why } => warn!("{}", line(why)),
            Self::Unverified { server } => {
                warn!(
                    server = line(server).as_str(),
                    "TLS verification is off: anyone on the network path can read every secret and the token"
                );
            }
            Self::Evicted { file } => {
                warn!(file = %line(file.as_str()), "an old version that a reader has open was removed to make room for a newer version");
            }
            Self::Dropped { lines } => {
                warn!(lines, "log lines were dropped because nobody read them");
            }
            Self::Broken { what } => error!("{}", line(what)),
        }
    }
}

/// A text that is short and clean enough for a log line.
fn line(text: &str) -> ShownLine {
    text.into()
}
