//! The closed set of events: each event is one decision and one log line. A field is a name, a
//! number, a path, or a message without a secret value. Invariant: a log line is short and has no
//! control character, because every text passes `line`.

use crate::names::{FileName, Generation, Role};
use crate::shown::ShownLine;
use std::io;
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
    /// No process of the agent could be forked.
    NotForked {
        /// The reason.
        why: &'a io::Error,
    },
    /// A role could not be confined, and ends.
    NotConfined {
        /// The role.
        role: Role,
        /// The reason.
        why: &'a io::Error,
    },
    /// A role cannot do its work, and ends.
    RoleFailed {
        /// The role.
        role: Role,
        /// The reason.
        why: &'a str,
    },
    /// The kernel has no Landlock, or the container forbids the use of Landlock.
    NoLandlock {
        /// The reason.
        why: &'a io::Error,
    },
    /// The kernel has no seccomp filters.
    NoSeccomp,
    /// Landlock lets `fetch` read a credential file now, but possibly not a later file of the same
    /// path.
    WeakReach {
        /// The file.
        file: &'a Path,
        /// The case in which the file cannot be read or removed.
        weakness: &'static str,
    },
    /// The application runs without its `AppArmor` profile.
    NoAppArmor {
        /// The reason.
        why: &'a io::Error,
    },
    /// The application can regain `SYS_ADMIN`, which the bounding set still has.
    RightsRemain,
    /// A signal could not be sent to the application.
    NotSignalled {
        /// The signal.
        signal: &'a str,
        /// The reason.
        why: &'a io::Error,
    },
    /// The guard, which cleans up after a killed supervise, could not be started.
    NoGuard {
        /// The reason.
        why: &'a io::Error,
    },
    /// Supervise was killed, and the guard stops everything.
    SuperviseKilled,
    /// The pid file could not be written.
    PidFileNotWritten {
        /// The path of the pid file.
        path: &'a Path,
        /// The reason.
        why: &'a io::Error,
    },
    /// The link to a sink could not be made.
    LinkNotMade {
        /// The path of the link.
        path: &'a Path,
        /// The target of the link.
        target: &'a Path,
        /// The reason.
        why: &'a io::Error,
    },
    /// Another user may replace the link to a sink.
    LinkReplaceable {
        /// The path of the link.
        path: &'a Path,
        /// The users who may write the directory of the link.
        by: &'a str,
    },
    /// A pid file or a link could not be removed at the end.
    RunFileNotRemoved {
        /// The path.
        path: &'a Path,
        /// The reason.
        why: &'a io::Error,
    },
    /// Files of the tmpfs could not be removed at the end.
    FilesNotRemoved {
        /// The reason.
        why: &'a str,
    },
    /// `BAOFS_UNSTABLE_NO_RESEND` is set.
    NoResend,

    // fetch
    /// Changed files could not be published, and are published later.
    NotPublished {
        /// The reason.
        why: &'a str,
    },
    /// The status report does not fit, and a smaller one was written.
    ReportReduced {
        /// The part that was written: `without causes`, `counts only`.
        to: &'static str,
        /// The reason.
        why: &'a str,
    },
    /// No status report could be written.
    ReportNotWritten {
        /// The reason.
        why: &'a str,
    },
    /// The file of the `secret_id` could not be removed after the login.
    SecretIdNotRemoved {
        /// The file.
        file: &'a Path,
        /// The reason.
        why: &'a io::Error,
    },
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
}

impl Event<'_> {
    /// Writes the event as one log line.
    #[expect(clippy::too_many_lines, reason = "a line or two for each event")]
    pub fn emit(&self) {
        match self {
            Self::ConfigWarning { problem } => warn!("{}", line(problem)),
            Self::Mounted { path, how } => {
                info!(path = %path_line(path), how, "serving");
            }
            Self::Hides { path, entries } => {
                warn!(path = %path_line(path), entries, "the mount hides files in the directory");
            }
            Self::BehindLink { path, own } => {
                let (path, own) = (path_line(path), path_line(own));
                warn!(%path, %own, "the path of the mount contains a link: a user who may change the link can redirect readers");
            }
            Self::Propagates { path } => {
                let path = path_line(path);
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
            Self::NotForked { why } => {
                error!("a process of the agent cannot be forked: {}", line(why));
            }
            Self::NotConfined { role, why } => {
                error!("{} cannot be confined: {}", role.as_str(), line(why));
            }
            Self::RoleFailed { role, why } => {
                error!(role = role.as_str(), "{}", line(why));
            }
            Self::NoLandlock { why } => warn!(
                "no Landlock ({}): a `fetch` that was taken over could read and write every file of its user, and connect to \
                 every port; hint: Linux 5.13 with `landlock` among its security modules, and a container runtime that lets \
                 its system calls pass",
                line(why)
            ),
            Self::NoSeccomp => warn!(
                "no seccomp filters: a process of the agent that was taken over could make every system call; \
                 hint: a kernel with CONFIG_SECCOMP_FILTER"
            ),
            Self::WeakReach { file, weakness } => warn!(
                "{}: {weakness}; hint: put it into a directory of its own",
                path_line(file)
            ),
            Self::NoAppArmor { why } => warn!(
                "AppArmor does not confine the application: the profile docker-default cannot be requested: {}",
                line(why)
            ),
            Self::RightsRemain => warn!(
                "with `no_new_privs = false`, what the application executes as root has SYS_ADMIN, because baofs needs it; \
                 hint: with `--cap-add SETPCAP` baofs can take it away for good"
            ),
            Self::NotSignalled { signal, why } => warn!(
                "the application cannot be sent {signal}: {}; hint: start the container with `--cap-add KILL`",
                line(why)
            ),
            Self::NoGuard { why } => {
                warn!("nobody will clean up if baofs is killed: {}", line(why));
            }
            Self::SuperviseKilled => error!("supervise was killed: all is stopped and taken away"),
            Self::PidFileNotWritten { path, why } => {
                warn!(
                    "the pid file {} cannot be written: {}",
                    path_line(path),
                    line(why)
                );
            }
            Self::LinkNotMade { path, target, why } => {
                let (path, target) = (path_line(path), path_line(target));
                warn!("the link {path} to {target} cannot be made: {}", line(why));
            }
            Self::LinkReplaceable { path, by } => warn!(
                "{by} may replace the link to a sink at {}, because of the directory that it lies in",
                path_line(path)
            ),
            Self::RunFileNotRemoved { path, why } => {
                warn!("{} cannot be removed: {}", path_line(path), line(why));
            }
            Self::FilesNotRemoved { why } => {
                warn!("not all files could be removed: {}", line(why));
            }
            Self::NoResend => warn!(
                "BAOFS_UNSTABLE_NO_RESEND is set: requests that a dead process left are interrupted; it is for tests alone"
            ),
            Self::NotPublished { why } => error!("{}", line(why)),
            Self::ReportReduced { to, why } => {
                warn!("the status report is written {to}: {}", line(why));
            }
            Self::ReportNotWritten { why } => {
                error!("the status report cannot be written: {}", line(why));
            }
            Self::SecretIdNotRemoved { file, why } => warn!(
                "{} could not be removed after reading: {}",
                path_line(file),
                line(why)
            ),
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
        }
    }
}

/// A text that is short and clean enough for a log line.
fn line(text: &(impl ToString + ?Sized)) -> ShownLine {
    text.to_string().as_str().into()
}

/// A path as such a text.
fn path_line(path: &Path) -> ShownLine {
    line(&path.to_string_lossy())
}
