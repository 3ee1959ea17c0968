//! The start of the application and of the commands of hooks. Invariant: a started process gets the
//! mask, the dispositions, limits, descriptors and environment from the start of baofs, less the
//! agent's credentials and the capabilities that only baofs needs.

use super::guard::Guard;
use super::profile;
use crate::config::plan::{App, Identity, NewPrivileges};
use crate::exit::Exit;
use crate::memory;
use crate::names::Owner;
use crate::observe::Incident;
use crate::sys::caps::{self, Capability};
use crate::sys::process::{self, Disposition};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{
    Gid, Pid, Uid, dup2_stdin, dup2_stdout, geteuid, getpgrp, getpid, getppid, setgid, setgroups,
    setpgid, setuid, tcgetpgrp, tcsetpgrp,
};
use std::convert::Infallible;
use std::env;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;

/// `BAO_` and `VAULT_` variables without a credential, which an application may need.
const HARMLESS: &[&str] = &[
    "ADDR",
    "CACERT",
    "CAPATH",
    "TLS_SERVER_NAME",
    "SKIP_VERIFY",
    "NAMESPACE",
    "FORMAT",
    "LOG_LEVEL",
];

/// The capabilities that only baofs needs if the application runs as another user.
pub(super) const OWN: &[Capability] = &[
    Capability::SysAdmin,
    Capability::SetUid,
    Capability::SetGid,
    Capability::Kill,
];
/// The same if the application runs as the same user. A root application may change to another user
/// later, and needs the other capabilities for the change.
const OWN_MOUNT: &[Capability] = &[Capability::SysAdmin];

/// The state of the process at the start of baofs, before any change.
#[derive(Debug)]
pub struct Inherited {
    /// The signal mask.
    mask: SigSet,
    /// `RLIMIT_MEMLOCK`, soft and hard: the arena raises the soft limit.
    memlock: (rlim_t, rlim_t),
    /// The disposition of CHLD: a process that ignores CHLD cannot wait for children.
    child: Disposition,
}

impl Inherited {
    /// Reads the state, then blocks `signals`.
    ///
    /// # Errors
    /// None is known; the kernel would have to refuse a valid call.
    pub fn take(signals: &SigSet) -> io::Result<Self> {
        Ok(Self {
            memlock: getrlimit(Resource::RLIMIT_MEMLOCK)?,
            mask: signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?,
            child: process::set_disposition(Signal::SIGCHLD, Disposition::Default)?,
        })
    }

    fn restore(&self) -> io::Result<()> {
        setrlimit(Resource::RLIMIT_MEMLOCK, self.memlock.0, self.memlock.1)?;
        // Rust's start-up ignores PIPE, but an application expects to be ended by PIPE.
        process::set_disposition(Signal::SIGPIPE, Disposition::Default)?;
        process::set_disposition(Signal::SIGCHLD, self.child)?;
        self.mask.thread_set_mask()?;
        Ok(())
    }
}

/// The terminal of standard input, lent to the application. A drop gives the terminal back.
#[derive(Debug)]
pub struct Terminal {
    /// The foreground process group at the start.
    owner: Pid,
}

impl Terminal {
    /// The terminal, if standard input is the controlling terminal with baofs in the foreground.
    pub fn foreground() -> Option<Self> {
        let owner = tcgetpgrp(io::stdin()).ok()?;
        if owner == getpgrp() {
            Some(Self { owner })
        } else {
            None
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetpgrp(io::stdin(), self.owner);
    }
}

/// The standard streams of a started process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// The application: the streams of baofs, and the terminal, if any.
    App,
    /// A command of a hook: no input, and all output goes to the stream of the log.
    Hook,
}

/// The user of the application; `None` if baofs already runs as this user.
pub fn other_user(app: &App) -> Option<&Identity> {
    let own = Owner::of_process();
    app.user.as_ref().filter(|user| user.owner != own)
}

/// Whether the application's user id differs from the user id of baofs. If so, the application loses
/// every capability, and supervise may lower its own.
pub fn has_own_uid(app: &App) -> bool {
    let Some(user) = other_user(app) else {
        return false;
    };
    user.owner.uid != geteuid().as_raw()
}

/// The name of the program of a command, for log lines.
pub fn program(command: &[String]) -> &str {
    match command {
        [program, ..] => program,
        [] => "",
    }
}

/// The context of each start of the application or of a command.
#[derive(Debug)]
pub struct Launcher<'a> {
    app: &'a App,
    inherited: &'a Inherited,
    /// Kills the application and the commands if supervise dies.
    guard: Option<&'a Guard>,
    terminal: Option<Terminal>,
}

impl<'a> Launcher<'a> {
    /// A launcher of processes as `app`'s user.
    pub fn new(app: &'a App, inherited: &'a Inherited, guard: Option<&'a Guard>) -> Self {
        Self {
            app,
            inherited,
            guard,
            terminal: Terminal::foreground(),
        }
    }

    /// Starts `command` in a new process group, which the guard knows before the program runs. The
    /// child exits with 126 or 127 if the program cannot be executed; an application logs the reason.
    ///
    /// # Errors
    /// Only if no process can be forked.
    pub fn start(&self, command: &[String], stdio: Stdio) -> io::Result<Pid> {
        let pid = process::fork(&[], || {
            if let Some(guard) = self.guard {
                guard.tell(getpid().as_raw());
            }
            let Err(error) = self.execute(command, stdio);
            if stdio == Stdio::App {
                let program = program(command);
                Incident::AppNotStarted { program }.emit(&error);
            }
            if error.kind() == io::ErrorKind::NotFound {
                Exit::NotFound.code()
            } else {
                Exit::CannotExecute.code()
            }
        })?;
        // Parent and child both make the group, so neither has to wait for the other.
        let _ = setpgid(pid, pid);
        Ok(pid)
    }

    /// Tells the guard the end of the process group `group`.
    pub fn ended(&self, group: Pid) {
        if let Some(guard) = self.guard {
            guard.tell(-group.as_raw());
        }
    }

    /// Runs in the child; returns only on failure.
    fn execute(&self, command: &[String], stdio: Stdio) -> io::Result<Infallible> {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        match stdio {
            // Allowed in the background, because TTOU is still blocked.
            Stdio::App if self.terminal.is_some() => tcsetpgrp(io::stdin(), getpid())?,
            Stdio::App => {}
            Stdio::Hook => {
                dup2_stdin(File::open("/dev/null")?)?;
                dup2_stdout(io::stderr())?;
            }
        }
        let arguments: Vec<_> = command
            .iter()
            .map(|argument| CString::new(argument.as_str()))
            .collect::<Result<_, _>>()?;
        let user = other_user(self.app);
        let environment = environment(env::vars_os(), user, (getppid(), getpid()))?;
        let program = arguments.first().ok_or(io::ErrorKind::NotFound)?;
        profile::restrict(self.app.seccomp, |why| {
            if stdio == Stdio::App {
                Incident::NoAppArmor.emit(why);
            }
        })?;
        become_user(self.app)?;
        self.inherited.restore()?;
        Err(process::exec(program, &arguments, &environment).into())
    }
}

/// Changes to the application's user, and gives up the capabilities that only baofs needs.
fn become_user(app: &App) -> io::Result<()> {
    let own_uid = has_own_uid(app);
    let own = if own_uid { OWN } else { OWN_MOUNT };
    let no_new_privileges = app.new_privileges == NewPrivileges::Never;
    // A set-user-id program needs SETUID and SETGID in the bounding set, as without baofs.
    caps::forbid(if no_new_privileges { own } else { OWN_MOUNT });
    if let Some(user) = other_user(app) {
        change_user(user, own_uid)?;
    }
    caps::drop(own)?;
    if no_new_privileges {
        prctl::set_no_new_privs()?;
    }
    Ok(())
}

/// Changes user and groups. Until exec the child's memory is a copy of supervise's memory, which
/// other processes of the new user must not read (`ptrace(2)`). A change of ids makes a process as
/// dumpable as the host allows (`fs.suid_dumpable`), so the child is hardened again. In between the
/// child keeps all capabilities (`PR_SET_KEEPCAPS`): no process can trace a process with more
/// capabilities.
fn change_user(user: &Identity, own_uid: bool) -> io::Result<()> {
    let groups = user.groups.iter().copied();
    let groups: Vec<_> = groups.map(Gid::from_raw).collect();
    // Fails only if the securebits are locked; then only the moment before `harden` is unprotected.
    let _ = prctl::set_keepcaps(own_uid);
    setgroups(&groups)?;
    setgid(Gid::from_raw(user.owner.gid))?;
    setuid(Uid::from_raw(user.owner.uid))?;
    memory::harden().map_err(io::Error::other)?;
    if own_uid { caps::lower_to(&[]) } else { Ok(()) }
}

/// The application's environment: the environment of baofs, less the agent's credentials, with
/// `HOME`, `USER` and `LOGNAME` of `user`. Sockets from systemd (`sd_listen_fds(3)`) belong to the
/// process `LISTEN_PID`: if the variable names `baofs`, the sockets are passed on to `app`.
fn environment(
    own: impl Iterator<Item = (OsString, OsString)>,
    user: Option<&Identity>,
    (baofs, app): (Pid, Pid),
) -> Result<Vec<CString>, NulError> {
    let kept = own.filter(|(key, _)| !is_credential(key));
    let mut variables: Vec<_> = kept.collect();
    for (key, value) in &mut variables {
        if key == "LISTEN_PID" && *value == *baofs.to_string() {
            *value = app.to_string().into();
        }
    }
    if let Some(Identity { home, name, .. }) = user {
        let name = OsStr::new(name);
        for (key, value) in [
            ("HOME", home.as_os_str()),
            ("USER", name),
            ("LOGNAME", name),
        ] {
            variables.retain(|(other, _)| other != key);
            variables.push((key.into(), value.into()));
        }
    }
    let text = |(mut text, value): (OsString, OsString)| {
        text.push("=");
        text.push(value);
        CString::new(text.into_vec())
    };
    variables.into_iter().map(text).collect()
}

/// Whether a variable may hold a credential for OpenBao: any variable of OpenBao may, except the
/// `HARMLESS` ones.
fn is_credential(key: &OsStr) -> bool {
    let key = key.to_string_lossy();
    for prefix in ["BAO_", "VAULT_"] {
        if let Some(name) = key.strip_prefix(prefix) {
            return !HARMLESS.contains(&name);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Owner;

    fn built(own: &[(&str, &str)], user: Option<&Identity>) -> Vec<String> {
        let own = own
            .iter()
            .map(|(k, v)| (OsString::from(k), OsString::from(v)));
        let pids = (Pid::from_raw(1), Pid::from_raw(9));
        environment(own, user, pids)
            .expect("no zero byte")
            .into_iter()
            .map(|v| v.into_string().expect("text"))
            .collect()
    }

    #[test]
    fn credentials_stay_and_the_rest_goes_on() {
        let own = [
            ("BAO_TOKEN", "s"),
            ("VAULT_TOKEN", "s"),
            ("BAO_SECRET_ID", "s"),
            ("BAO_ADDR", "a"),
            ("BAOFS_MOUNT", "m"),
            ("PATH", "p"),
        ];
        assert_eq!(built(&own, None), ["BAO_ADDR=a", "BAOFS_MOUNT=m", "PATH=p"]);
    }

    #[test]
    fn sockets_for_baofs_are_for_the_application() {
        assert_eq!(
            built(&[("LISTEN_PID", "1"), ("LISTEN_FDS", "2")], None),
            ["LISTEN_PID=9", "LISTEN_FDS=2"]
        );
        assert_eq!(built(&[("LISTEN_PID", "12")], None), ["LISTEN_PID=12"]);
    }

    #[test]
    fn the_users_home_replaces_the_agents() {
        let owner = Owner {
            uid: 1000,
            gid: 1000,
        };
        let user = Identity {
            owner,
            groups: vec![1000],
            home: "/home/app".into(),
            name: "app".into(),
        };
        assert_eq!(
            built(&[("HOME", "/root"), ("A", "b")], Some(&user)),
            ["A=b", "HOME=/home/app", "USER=app", "LOGNAME=app"]
        );
    }
}
