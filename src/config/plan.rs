//! What baofs will do, checked and complete. Invariant: only `check` makes a `Plan`; it holds
//! references to credentials (paths), never credentials.

use crate::names::{FileName, HookId, Owner, QueryId, SecretPath};
pub use crate::observe::{Level, Log, LogFormat};
use crate::template::Template;
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that `run` and `mount` need to know.
#[derive(Debug)]
pub struct Plan {
    /// Where the server is and how to trust it.
    pub server: Server,
    /// How to log in.
    pub auth: Auth,
    /// Where and how files are served.
    pub filesystem: Filesystem,
    /// Distinct reads; files refer to them by index (`QueryId`).
    pub queries: Vec<Query>,
    /// Served files; the index is the `FileId`.
    pub files: Vec<File>,
    /// What is done after a rotation; equal ones are one. Files refer to them by index (`HookId`).
    pub hooks: Vec<Hook>,
    /// Links to be made outside the mount, to served files: a sink's path.
    pub links: Vec<Link>,
    /// The application.
    pub app: App,
    /// How to log.
    pub log: Log,
    /// A file for the agent's pid; one that cannot be written is a warning.
    pub pid_file: Option<PathBuf>,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub address: Address,
    /// How it is trusted and what it is shown.
    pub tls: Tls,
    /// Namespace of every request but the login, if any.
    pub namespace: Option<String>,
    /// Wait after a failed request: from 250 ms, doubling, to this at most.
    pub retry_max: Duration,
}

/// `scheme://host:port/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Plain or encrypted.
    pub scheme: Scheme,
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What stands before `/v1`, without a trailing slash: empty or `/bao`.
    pub prefix: String,
}

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`: everything is readable on the way.
    Http,
    /// `https`.
    Https,
}

/// TLS settings; files are read by `fetch`.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// A PEM file with the authorities to trust, instead of the system's.
    pub ca_cert: Option<PathBuf>,
    /// A directory of such files.
    pub ca_path: Option<PathBuf>,
    /// The client's certificate chain (PEM).
    pub client_cert: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key: Option<PathBuf>,
    /// The name to ask for and to verify, instead of the address' host.
    pub server_name: Option<String>,
    /// Whether the server is verified at all.
    pub verify: Verify,
}

/// Whether the server's certificate is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Yes.
    #[default]
    Full,
    /// No (`tls_skip_verify`): anybody in between can read everything.
    Skip,
}

/// How to log in.
#[derive(Debug)]
pub struct Auth {
    /// The mount of the method with its `auth/`: `auth/approle`.
    pub mount_path: String,
    /// Namespace of the login; else the server's.
    pub namespace: Option<String>,
    /// The method.
    pub method: Method,
}

/// A login method.
#[derive(Debug)]
pub enum Method {
    /// `AppRole`.
    AppRole {
        /// The file with the `role_id`.
        role_id_file: PathBuf,
        /// The file with the `secret_id`; absent for a role that needs none.
        secret_id_file: Option<PathBuf>,
        /// What becomes of the `secret_id`'s file once read.
        after_reading: AfterReading,
    },
}

/// What becomes of a credential's file once it was read and a login with it succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReading {
    /// It stays.
    Keep,
    /// It is removed (the default of `bao agent`).
    Remove,
}

/// The mount.
#[derive(Debug)]
pub struct Filesystem {
    /// Absolute path of the mount point.
    pub path: PathBuf,
    /// What to do where FUSE is refused.
    pub fallback: Fallback,
    /// Whether a fallback that can reach a swap is allowed.
    pub swap: Swap,
    /// Bytes: limits the arena on FUSE and the mount on tmpfs. `None`: see `snapshot::Arena`.
    pub size: Option<u64>,
    /// Permission bits of the directory (default 0755: names are not secret). The owner's are
    /// always set: the agent announces changes with them, and everybody else's mount is
    /// read-only anyway.
    pub dir_mode: u32,
}

/// What to do where FUSE is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Refuse to start, naming the flag.
    None,
    /// Write into a verified tmpfs.
    Tmpfs,
}

/// Whether pages of the fallback may reach a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Refuse.
    Refuse,
    /// Allowed on the command line; the log repeats it.
    Allow,
}

/// One distinct read at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What to read, as configured: KV v2 with or without `data/`.
    pub path: SecretPath,
    /// A pinned version of KV v2.
    pub version: Option<u32>,
    /// How often to read again what has no lease; `None` is the default (5 min).
    pub refresh: Option<Duration>,
}

/// One served file.
#[derive(Debug)]
pub struct File {
    /// Its name in the mount.
    pub name: FileName,
    /// What it holds.
    pub content: Content,
    /// Who owns it (default: the application's user).
    pub owner: Owner,
    /// Permission bits (default 0400).
    pub mode: u32,
    /// Whether it may be empty.
    pub empty: Empty,
    /// What is done when it changed: its own `on_change`, else the application's.
    pub on_change: Option<HookId>,
    /// What `baofs health` says when it is past its life.
    pub stale: Stale,
    /// Where it is configured, for messages: `agent-config.hcl:12`.
    pub origin: String,
}

/// What `baofs health` says of a secret past its life: its lease has ended, or, where it has none,
/// two refreshes in a row are missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Degraded: the last good value serves on.
    Degraded,
    /// Unhealthy: a value that is past its life must not serve.
    Unhealthy,
}

/// What is done after a rotation of some files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What.
    pub action: Action,
    /// How long to wait, after the first change, for more of them: all are told as one (default:
    /// not at all).
    pub debounce: Duration,
    /// And then a random time up to this, so that the replicas of a service do not all do it at
    /// once (default: none).
    pub splay: Duration,
}

/// How the application is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its process group is sent a signal.
    Signal(Signal),
    /// A command is run as the application's user, in its environment.
    Command {
        /// Program and arguments.
        command: Vec<String>,
        /// After what time it is killed (default 30 s).
        timeout: Duration,
    },
    /// It is stopped, as at the end, and started again.
    Restart,
}

/// What a file holds.
#[derive(Debug)]
pub enum Content {
    /// One field of a secret: an exact key, else a dotted path.
    Field {
        /// The read.
        query: QueryId,
        /// The field.
        field: String,
    },
    /// The whole secret as one JSON object, keys sorted, no newline at the end.
    Json {
        /// The read.
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
    /// It is an error of that file.
    Refuse,
    /// It is served.
    Allow,
}

/// A symbolic link outside the mount to a served file.
#[derive(Debug)]
pub struct Link {
    /// Where the link is made.
    pub path: PathBuf,
    /// The served file that it names.
    pub name: FileName,
}

/// The application.
#[derive(Debug)]
pub struct App {
    /// Program and arguments; empty for `mount`.
    pub command: Vec<String>,
    /// Whom it runs as; `None`: as whom baofs was started.
    pub user: Option<Identity>,
    /// How long to wait for all secrets before giving up (default 30 s).
    pub wait: Duration,
    /// The signal that asks it to stop (default TERM).
    pub stop_signal: Signal,
    /// How long it may take before KILL (default 6 s).
    pub stop_timeout: Duration,
    /// For how long a process of the agent may die again and again before the container ends
    /// (default 5 min).
    pub crash_loop_timeout: Duration,
    /// What HUP does.
    pub on_hup: OnHup,
    /// Whether it may gain rights by executing a file.
    pub new_privileges: NewPrivileges,
    /// Which filter of system calls it runs under.
    pub seccomp: Seccomp,
}

/// What HUP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHup {
    /// It is relayed, and every secret without a lease is read again.
    Both,
    /// It is relayed.
    App,
    /// Every secret without a lease is read again.
    Refresh,
}

/// Whether the application may gain rights by executing a file: set-user-id programs (sudo), file
/// capabilities (ping).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewPrivileges {
    /// `no_new_privs` is set (`PR_SET_NO_NEW_PRIVS`, the default).
    Never,
    /// As baofs was started (`no_new_privs = false`).
    Inherited,
}

/// Which filter of system calls (`seccomp(2)`) the application and the commands run under, in a
/// container that was given `SYS_ADMIN` for baofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The container's, and what Docker's default profile refuses to a container without
    /// `SYS_ADMIN` (the default).
    Default,
    /// The container's alone (`seccomp = "inherit"`).
    Inherited,
}

/// A user, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User and primary group.
    pub owner: Owner,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<u32>,
    /// `HOME` for the application.
    pub home: PathBuf,
    /// `USER` and `LOGNAME`; the number where it has no name.
    pub name: String,
}
