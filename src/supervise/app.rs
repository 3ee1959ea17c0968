//! The start of the application, and of the commands that are run beside it: what they inherit,
//! what they must not. Invariant: they get what baofs was started with (mask, dispositions, limits,
//! descriptors, environment), less the credentials of the agent and the rights that only it needs.

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
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{
    Gid, Pid, Uid, dup2_stdin, dup2_stdout, getegid, geteuid, getpid, getppid, setgid, setgroups,
    setpgid, setuid, tcgetpgrp, tcsetpgrp,
};
use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;

/// `BAO_` and `VAULT_` variables that hold no credential and that an application may need for
/// itself.
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

/// What baofs needs for itself, where the application runs as another user.
const OWN: &[Capability] = &[
    Capability::SysAdmin,
    Capability::SetUid,
    Capability::SetGid,
    Capability::Kill,
];
/// And where it runs as the same one. A root application that gives up its rights by itself needs
/// the others for that.
const OWN_MOUNT: &[Capability] = &[Capability::SysAdmin];

/// What baofs was started with, taken before it changes anything.
#[derive(Debug)]
pub struct Inherited {
    /// The signal mask.
    mask: SigSet,
    /// `RLIMIT_MEMLOCK`, soft and hard: the arena raises the soft one.
    memlock: (rlim_t, rlim_t),
    /// What CHLD does: who ignores it hears of no child's end.
    child: Disposition,
}

impl Inherited {
    /// Takes it, and blocks `signals` from now on.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn take(signals: &SigSet) -> io::Result<Self> {
        let memlock = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        let mut mask = SigSet::empty();
        nix::sys::signal::sigprocmask(
            nix::sys::signal::SigmaskHow::SIG_BLOCK,
            Some(signals),
            Some(&mut mask),
        )?;
        let child = process::set_disposition(Signal::SIGCHLD, Disposition::Default)?;
        Ok(Self {
            mask,
            memlock,
            child,
        })
    }

    fn restore(&self) -> io::Result<()> {
        setrlimit(Resource::RLIMIT_MEMLOCK, self.memlock.0, self.memlock.1)?;
        // Rust's start-up ignores PIPE; an application expects to be ended by it.
        process::set_disposition(Signal::SIGPIPE, Disposition::Default)?;
        process::set_disposition(Signal::SIGCHLD, self.child)?;
        self.mask.thread_set_mask()?;
        Ok(())
    }
}

/// The terminal that the application is given while it runs.
#[derive(Debug)]
pub struct Terminal {
    /// Whose it was before.
    owner: Pid,
}

impl Terminal {
    /// Standard input's terminal, if it is one and baofs is in its foreground.
    pub fn foreground() -> Option<Self> {
        let owner = tcgetpgrp(io::stdin()).ok()?;
        (io::stdin().is_terminal() && owner == nix::unistd::getpgrp()).then_some(Self { owner })
    }

    /// Gives it back.
    pub fn take_back(&self) {
        let _ = tcsetpgrp(io::stdin(), self.owner);
    }
}

/// The standard streams of a started process.
#[derive(Clone, Copy, Debug)]
pub enum Stdio<'a> {
    /// The application: standard streams as baofs has them, and the terminal, if there is one.
    App(Option<&'a Terminal>),
    /// A command after a rotation: it reads nothing, and all that it writes goes where the log
    /// goes.
    Hook,
}

/// The user that the application is to become; `None` when it is who baofs is already, in which
/// case nothing changes.
pub fn other_user(app: &App) -> Option<&Identity> {
    let own = Owner {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
    };
    app.user.as_ref().filter(|user| user.owner != own)
}

/// Whether the application has a user id of its own: then it loses every capability, and supervise
/// may lower its own.
pub fn has_own_uid(app: &App) -> bool {
    other_user(app).is_some_and(|user| user.owner.uid != geteuid().as_raw())
}

/// Starts `command` as `app`'s user in a process group of its own, which `guard` knows before it
/// runs. The child ends with 126 or 127 when it cannot be executed, and the application's says why.
///
/// # Errors
/// Only when no process can be forked.
pub fn start(
    command: &[String],
    stdio: Stdio<'_>,
    app: &App,
    inherited: &Inherited,
    guard: Option<&Guard>,
) -> io::Result<Pid> {
    let pid = process::fork(&[], || {
        guard.inspect(|guard| guard.tell(getpid().as_raw()));
        let error = match execute(command, stdio, app, inherited) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if matches!(stdio, Stdio::App(_)) {
            let program = command.first().map_or("", String::as_str);
            Incident::AppNotStarted { program }.emit(&error);
        }
        if error.kind() == io::ErrorKind::NotFound {
            Exit::NotFound.code()
        } else {
            Exit::CannotExecute.code()
        }
    })?;
    // Both sides do it, so that neither has to wait for the other.
    let _ = setpgid(pid, pid);
    Ok(pid)
}

/// Runs in the child; returns only on failure.
fn execute(
    command: &[String],
    stdio: Stdio<'_>,
    app: &App,
    inherited: &Inherited,
) -> io::Result<Infallible> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    match stdio {
        // TTOU is blocked still, so the call is allowed from the background.
        Stdio::App(Some(_)) => tcsetpgrp(io::stdin(), getpid())?,
        Stdio::App(None) => {}
        Stdio::Hook => {
            dup2_stdin(File::open("/dev/null")?)?;
            dup2_stdout(io::stderr())?;
        }
    }
    let arguments = command
        .iter()
        .map(|argument| c_string(OsStr::new(argument)))
        .collect::<io::Result<Vec<_>>>()?;
    let environment = environment(env::vars_os(), other_user(app), (getppid(), getpid()))
        .collect::<io::Result<Vec<_>>>()?;
    let program = arguments.first().ok_or(io::ErrorKind::NotFound)?;
    profile::restrict(app.seccomp, |why| {
        if matches!(stdio, Stdio::App(_)) {
            Incident::NoAppArmor.emit(why);
        }
    })?;
    become_user(app)?;
    inherited.restore()?;
    Err(process::exec(program, &arguments, &environment).into())
}

/// Becomes the application's user, and gives up what only baofs needs.
fn become_user(app: &App) -> io::Result<()> {
    let own = if has_own_uid(app) { OWN } else { OWN_MOUNT };
    // Whoever lets programs gain rights needs SETUID and SETGID for them, as where baofs is not.
    caps::forbid(if app.new_privileges == NewPrivileges::Never {
        own
    } else {
        OWN_MOUNT
    });
    if let Some(user) = other_user(app) {
        let groups: Vec<_> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        change_user(user.owner, &groups)?;
    }
    caps::drop(own)?;
    if app.new_privileges == NewPrivileges::Never {
        prctl::set_no_new_privs()?;
    }
    Ok(())
}

/// Changes user and groups. Until the program is executed, the memory of this process is a copy of
/// supervise's, and others of the new user must not look into it (`ptrace(2)`): a change of ids
/// makes a process as dumpable as the host has it (`fs.suid_dumpable`), so it is hardened again. In
/// the moment between the two it has its capabilities still (`PR_SET_KEEPCAPS`), and nobody traces
/// a process that has more of them than himself.
fn change_user(owner: Owner, groups: &[Gid]) -> io::Result<()> {
    let another = owner.uid != geteuid().as_raw();
    // It can only fail where the securebits are locked, and then the moment is all that is lost.
    let _ = prctl::set_keepcaps(another);
    setgroups(groups)?;
    setgid(Gid::from_raw(owner.gid))?;
    setuid(Uid::from_raw(owner.uid))?;
    memory::harden().map_err(io::Error::other)?;
    if another { caps::lower_to(&[]) } else { Ok(()) }
}

/// The application's environment: baofs' own, less the agent's credentials, with `HOME`, `USER` and
/// `LOGNAME` of its `user`. The sockets that systemd passes (`sd_listen_fds(3)`) are for the
/// process that `LISTEN_PID` names: where that is baofs, it becomes the application; `pids` are
/// theirs.
fn environment(
    own: impl Iterator<Item = (OsString, OsString)>,
    user: Option<&Identity>,
    (baofs, app): (Pid, Pid),
) -> impl Iterator<Item = io::Result<CString>> {
    let set = user.map_or_else(Vec::new, |user| {
        let name = OsString::from(&user.name);
        vec![
            ("HOME".into(), user.home.clone().into_os_string()),
            ("USER".into(), name.clone()),
            ("LOGNAME".into(), name),
        ]
    });
    let replaced: Vec<OsString> = set
        .iter()
        .map(|(key, _): &(OsString, OsString)| key.clone())
        .collect();
    let kept = own
        .filter(move |(key, _)| !is_credential(key) && !replaced.contains(key))
        .map(move |(key, value)| {
            let ours = key == "LISTEN_PID" && value == *baofs.to_string();
            (key, if ours { app.to_string().into() } else { value })
        });
    kept.chain(set).map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        c_string(&key)
    })
}

/// Whether the variable is one of OpenBao's that may hold a credential: every one that is not known
/// to be harmless.
fn is_credential(key: &OsStr) -> bool {
    let key = key.to_string_lossy();
    let name = key
        .strip_prefix("BAO_")
        .or_else(|| key.strip_prefix("VAULT_"));
    name.is_some_and(|name| !HARMLESS.contains(&name))
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
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
            .map(|v| v.expect("no zero byte").into_string().expect("text"))
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
