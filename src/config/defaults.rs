//! The defaults of settings with a value. Invariant: no other code repeats a default. The help text
//! and README name the defaults; `tests/config.rs` compares the texts.

use nix::sys::signal::Signal;
use std::time::Duration;

/// The configuration file.
pub const CONFIG: &str = "/etc/bao/agent-config.hcl";
/// The server's address.
pub const ADDRESS: &str = "https://127.0.0.1:8200";
/// The mount of the login method at the server.
pub const LOGIN: &str = "auth/approle";
/// The longest wait between two failed requests (`max_backoff`).
pub const RETRY_MAX: Duration = Duration::from_mins(1);
/// The directory of the served files.
pub const MOUNT: &str = "/app/secrets";
/// The permission bits of a file.
pub const MODE: u32 = 0o400;
/// The permission bits of the directory. The names of files are not secret.
pub const DIR_MODE: u32 = 0o755;
/// The interval of reads of a value without a lease.
pub const REFRESH: Duration = Duration::from_mins(5);
/// The time limit for the first secrets.
pub const WAIT: Duration = Duration::from_secs(30);
/// The signal that asks the application to stop.
pub const STOP_SIGNAL: Signal = Signal::SIGTERM;
/// The time between the stop signal and SIGKILL.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(6);
/// The time limit for repeated crashes of a process of the agent.
pub const CRASH_LOOP_TIMEOUT: Duration = Duration::from_mins(5);
/// The time limit of a command after a rotation, as in `bao agent`.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
