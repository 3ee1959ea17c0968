//! The checked and complete configuration. Invariant: only `check` makes a `Plan`. A plan has paths of
//! credentials, never credentials. `defaults` has the defaults.

use crate::names::{FileName, HookId, Owner, QueryId};
pub use crate::observe::{Level, Log, LogFormat};
use crate::template::{Read, Template};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole configuration of `run` and `mount`.
#[derive(Debug)]
pub struct Plan {
    /// The server.
    pub server: Server,
    /// The login.
    pub auth: Auth,
    /// The mount.
    pub filesystem: Filesystem,
    /// Distinct reads; the index is the `QueryId`.
    pub queries: Vec<Query>,
    /// Served files; the index is the `FileId`.
    pub files: Vec<File>,
    /// Distinct actions after a rotation; the index is the `HookId`.
    pub hooks: Vec<Hook>,
    /// Links outside the mount to served files, for sinks.
    pub links: Vec<Link>,
    /// The application.
    pub app: App,
    /// The log.
    pub log: Log,
    /// A file for the agent's pid. A failure to write the file is a warning.
    pub pid_file: Option<PathBuf>,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    /// The address.
    pub address: Address,
    /// The TLS settings.
    pub tls: Tls,
    /// The namespace of every request but the login.
    pub namespace: Option<String>,
    /// The longest wait after a failed request; waits double from 250 ms.
    pub retry_max: Duration,
}

/// `scheme://host:port/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The scheme.
    pub scheme: Scheme,
    /// A host name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The path before `/v1` without a trailing slash: empty or `/bao`.
    pub prefix: String,
}

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`: not encrypted.
    Http,
    /// `https`.
    Https,
}

/// TLS settings. `fetch` reads the files.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// A PEM file of trusted authorities, instead of the system's.
    pub ca_cert: Option<PathBuf>,
    /// A directory of PEM files of trusted authorities.
    pub ca_path: Option<PathBuf>,
    /// The client's certificate chain (PEM).
    pub client_cert: Option<PathBuf>,
    /// The key of the client's certificate (PEM).
    pub client_key: Option<PathBuf>,
    /// The server name to send and to verify, instead of the host of the address.
    pub server_name: Option<String>,
    /// The verification of the server's certificate.
    pub verify: Verify,
}

/// Whether the server's certificate is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// The certificate is verified.
    #[default]
    Full,
    /// The certificate is not verified (`tls_skip_verify`): anyone on the network path can read
    /// every secret.
    Skip,
}

/// The login.
#[derive(Debug)]
pub struct Auth {
    /// The mount of the method at the server, with `auth/`: `auth/approle`.
    pub mount_path: String,
    /// The namespace of the login; `None`: the server's.
    pub namespace: Option<String>,
    /// The method.
    pub method: Method,
}

/// A login method.
#[derive(Clone, Debug)]
pub enum Method {
    /// `AppRole`.
    AppRole {
        /// The file with the `role_id`.
        role_id_file: PathBuf,
        /// The file with the `secret_id`; `None` for a role without a `secret_id`.
        secret_id_file: Option<PathBuf>,
        /// Whether the file of the `secret_id` is removed.
        after_reading: AfterReading,
    },
}

impl Method {
    /// The files that a login reads.
    pub fn credential_files(&self) -> Vec<&Path> {
        match self {
            Self::AppRole {
                role_id_file,
                secret_id_file,
                ..
            } => {
                let files = [Some(role_id_file), secret_id_file.as_ref()];
                files.into_iter().flatten().map(PathBuf::as_path).collect()
            }
        }
    }

    /// The file that is removed after a login succeeded.
    pub fn removed_file(&self) -> Option<&Path> {
        match self {
            Self::AppRole {
                secret_id_file,
                after_reading: AfterReading::Remove,
                ..
            } => secret_id_file.as_deref(),
            Self::AppRole { .. } => None,
        }
    }
}

/// The fate of a credential's file after a successful login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReading {
    /// The file stays.
    Keep,
    /// The file is removed (the default, as in `bao agent`).
    Remove,
}

/// The mount.
#[derive(Debug)]
pub struct Filesystem {
    /// The absolute path of the mount point.
    pub path: PathBuf,
    /// The behaviour where FUSE is refused.
    pub fallback: Fallback,
    /// Whether the pages of the fallback may be swapped.
    pub swap: Swap,
    /// The size limit in bytes of the arena on FUSE and of the mount on tmpfs. `None`: see
    /// `snapshot::Arena`.
    pub size: Option<u64>,
    /// The permission bits of the directory. The owner's bits are always set, because the agent
    /// announces changes with them; the mount of all other users is read-only.
    pub dir_mode: u32,
}

/// The behaviour where FUSE is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// baofs does not start.
    None,
    /// baofs writes into a verified tmpfs.
    Tmpfs,
}

/// Whether the pages of the fallback may be swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// baofs refuses a tmpfs that may be swapped.
    Refuse,
    /// Allowed on the command line; the log has a warning.
    Allow,
}

/// One distinct read at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The identity of the query: two queries of a `Plan` never have equal reads.
    pub read: Read,
    /// The interval of reads of a value without a lease; `None` is the default (5 min).
    pub refresh: Option<Duration>,
}

/// One served file.
#[derive(Debug)]
pub struct File {
    /// The name in the mount.
    pub name: FileName,
    /// The content.
    pub content: Content,
    /// The owner; by default the application's user.
    pub owner: Owner,
    /// The permission bits.
    pub mode: u32,
    /// Whether the content may be empty.
    pub empty: Empty,
    /// The hook after a change: `on_change` of the file, else of the application.
    pub on_change: Option<HookId>,
    /// The health of the agent while the file is past its life.
    pub stale: Stale,
    /// The position in the configuration, for messages: `agent-config.hcl:12`.
    pub origin: String,
}

/// The health of an agent that serves a secret past its life: the lease has ended, or a secret
/// without a lease has missed two refreshes in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Degraded: the last good value is served.
    Degraded,
    /// Unhealthy: a value past its life must not be used.
    Unhealthy,
}

/// The action after a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The action.
    pub action: Action,
    /// The time after the first change in which further changes join the same action; zero by
    /// default.
    pub debounce: Duration,
    /// The upper limit of a random delay after `debounce`, so that the replicas of a service do not
    /// act at the same time; zero by default.
    pub splay: Duration,
}

/// The notification of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A signal to the application's process group.
    Signal(Signal),
    /// A command as the application's user, in the application's environment.
    Command {
        /// Program and arguments.
        command: Vec<String>,
        /// The time after which the command is killed.
        timeout: Duration,
    },
    /// A stop, as at the end, and a new start.
    Restart,
}

/// The content of a file.
#[derive(Debug)]
pub enum Content {
    /// One field of a secret: an exact key, else a dotted path.
    Field {
        /// The query.
        query: QueryId,
        /// The field.
        field: String,
    },
    /// The whole secret as one JSON object with sorted keys, without a newline at the end.
    Json {
        /// The query.
        query: QueryId,
    },
    /// A rendered template.
    Template(Template<QueryId>),
    /// The agent's own token (a sink).
    Token,
}

/// Whether an empty value is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Empty {
    /// An empty value is an error of the file.
    Refuse,
    /// An empty value is served.
    Allow,
}

/// A symbolic link outside the mount to a served file.
#[derive(Debug)]
pub struct Link {
    /// The path of the link.
    pub path: PathBuf,
    /// The target: a served file.
    pub name: FileName,
}

/// The application.
#[derive(Debug)]
pub struct App {
    /// The program and the arguments; empty for `mount`.
    pub command: Vec<String>,
    /// The user; `None`: the user that runs baofs.
    pub user: Option<Identity>,
    /// The time limit for all secrets at the start.
    pub wait: Duration,
    /// The signal that asks the application to stop.
    pub stop_signal: Signal,
    /// The time between the signal and SIGKILL.
    pub stop_timeout: Duration,
    /// The time for which a process of the agent may crash repeatedly before the container ends.
    pub crash_loop_timeout: Duration,
    /// The receivers of SIGHUP.
    pub on_hup: OnHup,
    /// Whether the application may gain privileges by executing a file.
    pub new_privileges: NewPrivileges,
    /// The filter of system calls.
    pub seccomp: Seccomp,
}

/// The receivers of SIGHUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHup {
    /// The application and the agent, which reads every secret without a lease again.
    Both,
    /// The application.
    App,
    /// The agent, which reads every secret without a lease again.
    Refresh,
}

/// Whether the application may gain privileges by executing a file with the set-user-id bit (sudo)
/// or with file capabilities (ping).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewPrivileges {
    /// `no_new_privs` is set (`PR_SET_NO_NEW_PRIVS`, the default).
    Never,
    /// Inherited from the process that started baofs (`no_new_privs = false`).
    Inherited,
}

/// The filter of system calls (`seccomp(2)`) for the application and the commands, in a container
/// with `SYS_ADMIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The container's filter, and a second filter that refuses the system calls that Docker's
    /// default profile refuses without `SYS_ADMIN` (the default).
    Default,
    /// Only the container's filter (`seccomp = "inherit"`).
    Inherited,
}

/// A user with resolved ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user and the primary group.
    pub owner: Owner,
    /// The supplementary groups, including the primary group.
    pub groups: Vec<u32>,
    /// `HOME` for the application.
    pub home: PathBuf,
    /// `USER` and `LOGNAME`; the number of a user without a name.
    pub name: String,
}
