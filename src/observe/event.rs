//! The closed set of events: each is one decision, one line. A field is a name, a number, a path,
//! or a message that its maker has promised to hold no value. Invariant: whatever a message
//! repeats, the line is short and has no control character: every text passes `line`.

use crate::names::{FileName, Generation, Role};
use crate::shown::ShownLine;
use std::path::Path;
use std::time::Duration;
use tracing::{error, info, warn};

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    // supervise
    /// The files are served at a path.
    Mounted {
        /// Where.
        path: &'a Path,
        /// `fuse` or `tmpfs`.
        how: &'static str,
    },
    /// What is mounted hides what was in the directory.
    Hides {
        /// The directory.
        path: &'a Path,
        /// How many names.
        entries: usize,
    },
    /// The path of the mount leads through a link.
    BehindLink {
        /// The path as configured.
        path: &'a Path,
        /// The directory's own path.
        own: &'a Path,
    },
    /// The mount appears in other mount namespaces, too.
    Propagates {
        /// Where it is here.
        path: &'a Path,
    },
    /// FUSE is refused; the allowed fallback is taken.
    FallingBack {
        /// Why FUSE is refused.
        cause: &'a str,
    },
    /// A tmpfs whose pages may reach a swap is used because `--allow-swap` said so.
    SwapAllowed {
        /// Why it cannot be excluded.
        cause: &'a str,
    },
    /// Files on a tmpfs could reach a swap, which was excluded at the start; or not any more.
    SwapFound {
        /// Why; `None` when they cannot any more.
        cause: Option<&'a str>,
    },
    /// The application was started.
    AppStarted {
        /// Its process id.
        pid: i32,
    },
    /// The application could not be started.
    AppNotStarted {
        /// What was to be executed.
        program: &'a str,
        /// Why not.
        why: &'a str,
    },
    /// The application ended.
    AppEnded {
        /// The code that baofs will pass on.
        code: u8,
    },
    /// The application did not stop in time, or is not to be waited for.
    AppKilled,
    /// A rotation is told to the application, unless it ends or starts just now.
    Telling {
        /// A signal, a program, or `restart`.
        how: &'a str,
    },
    /// A command after a rotation failed; that undoes and delays nothing.
    CommandFailed {
        /// What was executed.
        program: &'a str,
        /// How it ended.
        how: &'a str,
    },
    /// A role ended although nobody asked it to.
    RoleDied {
        /// Which.
        role: Role,
        /// How, in words: `exit code 1`, `signal 9`.
        how: &'a str,
    },
    /// A role gave no sign of life for too long, and is killed.
    RoleHangs {
        /// Which.
        role: Role,
        /// When it gave the last one, before now.
        since: Duration,
    },
    /// The successor of a role that died works.
    WorksAgain {
        /// Which.
        role: Role,
        /// How long after its birth.
        after: Duration,
    },
    /// A role died again and again, for too long.
    GivenUp {
        /// Which.
        role: Role,
    },
    /// Something that is wanted but not needed could not be done: a pid file, a link.
    Skipped {
        /// What and why.
        what: &'a str,
    },

    // fetch
    /// A new `fetch` goes on where another died.
    WentOn {
        /// How many logins since the start may have left a token that nobody can name.
        lost_logins: u32,
    },
    /// What a successor of `fetch` needs does not fit.
    NotRecoverable {
        /// Why.
        why: &'a str,
    },
    /// A login succeeded.
    LoggedIn {
        /// How long the token lives, if it ends; logged in seconds.
        ttl: Option<Duration>,
    },
    /// A request failed and will be tried again.
    Retrying {
        /// The failure's own message.
        failure: &'a str,
        /// When.
        after: Duration,
    },
    /// The login was refused; it is sent again when a credential file changes.
    Refused {
        /// The failure's own message.
        failure: &'a str,
    },
    /// All first secrets are there.
    Ready {
        /// How many files.
        files: usize,
    },
    /// A first secret is missing and the wait is over.
    Missing {
        /// Which file.
        file: &'a FileName,
        /// Why.
        why: &'a str,
    },
    /// New values are served.
    Published {
        /// Their generation.
        generation: Generation,
        /// How many files changed.
        files: usize,
    },
    /// A secret is still served although it could not be renewed or read again.
    Stale {
        /// Which file.
        file: &'a FileName,
        /// Why.
        why: &'a str,
    },
    /// The token was revoked, its leases with it.
    Revoked,
    /// The token could not be revoked within the time given.
    NotRevoked {
        /// Why.
        why: &'a str,
    },
    /// A first value was read, and cannot be served as it is.
    Unusable {
        /// Which file, and what is wrong with it.
        why: &'a str,
    },
    /// `tls_skip_verify`: anybody in between can read everything.
    Unverified {
        /// The server's host.
        server: &'a str,
    },

    // serve
    /// A read failed because its version had to make room for a newer one.
    Evicted {
        /// Which file.
        file: &'a FileName,
    },
    /// Lines that were dropped because nobody read the log.
    Dropped {
        /// How many since the last such line.
        lines: u64,
    },
    /// The agent itself failed.
    Broken {
        /// What and why.
        what: &'a str,
    },
}

impl Event<'_> {
    /// Writes it.
    #[expect(clippy::too_many_lines, reason = "a line or two for each event")]
    pub fn emit(&self) {
        match self {
            Self::Mounted { path, how } => {
                info!(path = %line(&path.to_string_lossy()), how, "serving");
            }
            Self::Hides { path, entries } => {
                warn!(path = %line(&path.to_string_lossy()), entries, "the mount hides what is in the directory");
            }
            Self::BehindLink { path, own } => {
                let (path, own) = (line(&path.to_string_lossy()), line(&own.to_string_lossy()));
                warn!(%path, %own, "the path of the mount leads through a link: who may change it leads readers elsewhere");
            }
            Self::Propagates { path } => {
                let path = line(&path.to_string_lossy());
                warn!(%path, "the mount appears in other mount namespaces, too: the one beneath it is shared");
            }
            Self::FallingBack { cause } => warn!(
                cause = line(cause).as_str(),
                "FUSE is refused; falling back to tmpfs"
            ),
            Self::SwapAllowed { cause } => warn!(
                cause = line(cause).as_str(),
                "secrets may reach a swap: --allow-swap"
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
            Self::Telling { how } => info!(how = line(how).as_str(), "telling of a rotation"),
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
                info!(lost_logins, "fetch goes on where its predecessor died");
            }
            Self::NotRecoverable { why } => {
                warn!(
                    why = line(why).as_str(),
                    "recovery is off: if fetch dies, its successor logs in and reads everything anew"
                );
            }
            Self::LoggedIn { ttl } => info!(ttl = ttl.map(|ttl| ttl.as_secs()), "logged in"),
            Self::Retrying { failure, after } => warn!(?after, "{}; trying again", line(failure)),
            Self::Refused { failure } => error!(
                "{}; waiting for another role_id or secret_id in its file",
                line(failure)
            ),
            Self::Ready { files } => info!(files, "all secrets are there"),
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
                "the token could not be revoked; it ends with its ttl"
            ),
            Self::Unusable { why } => warn!("{}", line(why)),
            Self::Unverified { server } => {
                warn!(
                    server = line(server).as_str(),
                    "TLS verification is off: anybody on the way can read every secret and the token"
                );
            }
            Self::Evicted { file } => {
                warn!(file = %line(file.as_str()), "an old version that is still open made room for a newer one");
            }
            Self::Dropped { lines } => {
                warn!(lines, "log lines were dropped because nobody read them");
            }
            Self::Broken { what } => error!("{}", line(what)),
        }
    }
}

/// A text as a log line may hold it.
fn line(text: &str) -> ShownLine {
    text.into()
}
