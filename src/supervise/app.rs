//! The application's start: what it inherits, what it must not. Invariant: it gets what baofs was started with (mask,
//! limits, streams, terminal, environment), less the credentials of the agent.

use crate::config::plan::{App, Identity};
use crate::exit::Exit;
use crate::observe::Event;
use crate::sys::process;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Pid, Uid, getpid, setgid, setgroups, setpgid, setuid, tcgetpgrp, tcsetpgrp};
use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;

/// `BAO_` and `VAULT_` variables that hold no credential and that an application may need for itself.
const HARMLESS: &[&str] = &["ADDR", "CACERT", "CAPATH", "TLS_SERVER_NAME", "SKIP_VERIFY", "NAMESPACE", "FORMAT", "LOG_LEVEL"];

/// What baofs was started with, taken before it changes anything.
#[derive(Debug)]
pub struct Inherited {
    /// The signal mask.
    mask: SigSet,
    /// `RLIMIT_MEMLOCK`, soft and hard: the arena raises the soft one.
    memlock: (rlim_t, rlim_t),
}

impl Inherited {
    /// Takes it, and blocks `signals` from now on.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn take(signals: &SigSet) -> io::Result<Self> {
        let memlock = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        let mut mask = SigSet::empty();
        nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_BLOCK, Some(signals), Some(&mut mask))?;
        Ok(Self { mask, memlock })
    }

    fn restore(&self) -> io::Result<()> {
        setrlimit(Resource::RLIMIT_MEMLOCK, self.memlock.0, self.memlock.1)?;
        // Rust's start-up ignores PIPE; an application expects to be ended by it.
        process::default_disposition(Signal::SIGPIPE)?;
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
    #[must_use]
    pub fn foreground() -> Option<Self> {
        let owner = tcgetpgrp(io::stdin()).ok()?;
        (io::stdin().is_terminal() && owner == nix::unistd::getpgrp()).then_some(Self { owner })
    }

    /// Gives it back.
    pub fn take_back(&self) {
        let _ = tcsetpgrp(io::stdin(), self.owner);
    }
}

/// Starts `app` in a process group of its own; the child says why when it cannot, and ends with 126 or 127.
///
/// # Errors
/// Only when no process can be forked.
pub fn start(app: &App, inherited: &Inherited, terminal: Option<&Terminal>) -> io::Result<Pid> {
    let pid = process::fork(&[], || become_app(app, inherited, terminal))?;
    // Both sides do it, so that neither has to wait for the other.
    let _ = setpgid(pid, pid);
    Ok(pid)
}

/// Runs in the child; returns only on failure.
fn become_app(app: &App, inherited: &Inherited, terminal: Option<&Terminal>) -> u8 {
    let program = app.command.first().map_or("", String::as_str);
    let error = match execute(app, inherited, terminal) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    Event::AppNotStarted { program, why: &error.to_string() }.emit();
    if error.kind() == io::ErrorKind::NotFound { Exit::NotFound.code() } else { Exit::CannotExecute.code() }
}

fn execute(app: &App, inherited: &Inherited, terminal: Option<&Terminal>) -> io::Result<Infallible> {
    prepare(app, inherited, terminal)?;
    let arguments = app.command.iter().map(|argument| c_string(OsStr::new(argument))).collect::<io::Result<Vec<_>>>()?;
    let environment = environment(env::vars_os(), app.user.as_ref()).collect::<io::Result<Vec<_>>>()?;
    let program = arguments.first().ok_or(io::ErrorKind::NotFound)?;
    Err(process::exec(program, &arguments, &environment).into())
}

fn prepare(app: &App, inherited: &Inherited, terminal: Option<&Terminal>) -> io::Result<()> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    if terminal.is_some() {
        // TTOU is blocked still, so the call is allowed from the background.
        tcsetpgrp(io::stdin(), getpid())?;
    }
    if let Some(identity) = app.user.as_ref().filter(|identity| identity.owner.uid != Uid::effective().as_raw()) {
        let groups: Vec<_> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        setgroups(&groups)?;
        setgid(Gid::from_raw(identity.owner.gid))?;
        setuid(Uid::from_raw(identity.owner.uid))?;
    }
    inherited.restore()
}

/// The application's environment: baofs' own, less the agent's credentials, with `HOME`, `USER` and `LOGNAME` of its user.
fn environment(own: impl Iterator<Item = (OsString, OsString)>, user: Option<&Identity>) -> impl Iterator<Item = io::Result<CString>> {
    let set = user.map_or_else(Vec::new, |user| {
        let name = OsString::from(&user.name);
        vec![("HOME".into(), user.home.clone().into_os_string()), ("USER".into(), name.clone()), ("LOGNAME".into(), name)]
    });
    let replaced: Vec<OsString> = set.iter().map(|(key, _): &(OsString, OsString)| key.clone()).collect();
    own.filter(move |(key, _)| !is_credential(key) && !replaced.contains(key)).chain(set).map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        c_string(&key)
    })
}

/// Whether the variable is one of OpenBao's that may hold a credential: every one that is not known to be harmless.
fn is_credential(key: &OsStr) -> bool {
    let key = key.to_string_lossy();
    let name = key.strip_prefix("BAO_").or_else(|| key.strip_prefix("VAULT_"));
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
        let own = own.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
        environment(own, user).map(|v| v.expect("no zero byte").into_string().expect("text")).collect()
    }

    #[test]
    fn credentials_stay_and_the_rest_goes_on() {
        let own =
            [("BAO_TOKEN", "s"), ("VAULT_TOKEN", "s"), ("BAO_SECRET_ID", "s"), ("BAO_ADDR", "a"), ("BAOFS_MOUNT", "m"), ("PATH", "p")];
        assert_eq!(built(&own, None), ["BAO_ADDR=a", "BAOFS_MOUNT=m", "PATH=p"]);
    }

    #[test]
    fn the_users_home_replaces_the_agents() {
        let owner = Owner { uid: 1000, gid: 1000 };
        let user = Identity { owner, groups: vec![1000], home: "/home/app".into(), name: "app".into() };
        assert_eq!(built(&[("HOME", "/root"), ("A", "b")], Some(&user)), ["A=b", "HOME=/home/app", "USER=app", "LOGNAME=app"]);
    }
}
