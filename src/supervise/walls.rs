//! The restrictions of a role, in case an attacker takes the role over: Landlock limits files, ports
//! and processes, and a seccomp filter limits system calls. Invariant: a role works under every
//! restriction available in the kernel, or not at all. The restrictions hold before the role starts
//! a thread and before the role reads from the network or the kernel's FUSE device.

use super::calls::List;
use super::reach::{self, Reach};
use crate::config::plan::{Method, Plan};
use crate::fetch::WriteRoot;
use crate::names::Role;
use crate::observe::Incident;
use crate::status;
use crate::sys::caps::Capability;
use crate::sys::landlock::{self, FileRights, Ruleset};
use crate::sys::seccomp;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

/// DNS over TCP, which a resolver uses for long answers. Landlock does not restrict UDP.
const DNS: u16 = 53;
/// The files read by the C library's resolver at each lookup.
const RESOLVER_FILES: &[&str] = if cfg!(target_env = "musl") {
    &["/etc/hosts", "/etc/resolv.conf"]
} else {
    &[
        "/etc/gai.conf",
        "/etc/host.conf",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/etc/resolv.conf",
    ]
};

/// The restrictions supported by the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confinement {
    /// The ABI of Landlock; `None` without Landlock.
    landlock: Option<u32>,
    seccomp: bool,
}

impl Confinement {
    /// Asks the kernel, and warns of each unsupported restriction.
    pub(super) fn find() -> Self {
        let landlock = landlock::abi().and_then(|abi| {
            Ruleset::new(abi)?;
            Ok(abi)
        });
        if let Err(error) = &landlock {
            Incident::NoLandlock.emit(error);
        }
        let seccomp = seccomp::is_available();
        if !seccomp {
            let why = "the kernel has no filters, or a filter forbids another";
            Incident::NoSeccomp.emit(&why);
        }
        Self {
            landlock: landlock.ok(),
            seccomp,
        }
    }

    /// The restrictions of `fetch`, which keeps the capabilities `kept`, and of `serve` if `roles`
    /// contains `serve`.
    pub(super) fn report(self, kept: &[Capability], roles: &[Role]) -> status::WallsReport {
        let of = |kept: &[Capability]| {
            let kept: Vec<_> = kept.iter().map(|right| right.name()).collect();
            let mut all = vec![if kept.is_empty() {
                "capabilities".into()
            } else {
                format!("capabilities but {}", kept.join(", ")).into()
            }];
            if self.seccomp {
                all.push("seccomp".into());
            }
            if let Some(abi) = self.landlock {
                all.push(format!("landlock {abi}").into());
            }
            all
        };
        status::WallsReport {
            fetch: of(kept),
            serve: if roles.contains(&Role::Serve) {
                of(&[])
            } else {
                vec![]
            },
        }
    }

    /// Leaves `serve` only its open files.
    ///
    /// # Errors
    /// The failed restriction, and the reason.
    pub(super) fn confine_serve(self) -> io::Result<()> {
        self.restrict(Ruleset::new, List::Serve)
    }

    /// Leaves `fetch` the files of the login and of the resolver, the ports of the server and of
    /// DNS, and `root`. Must be called after the TLS files are read.
    ///
    /// # Errors
    /// The failed restriction, and the reason.
    pub(super) fn confine_fetch(self, plan: &Plan, root: &WriteRoot) -> io::Result<()> {
        let list = match root {
            WriteRoot::Mount(_) => List::FetchOnFuse,
            WriteRoot::Tmpfs(_) => List::FetchOnTmpfs,
        };
        self.restrict(|abi| rules_of_fetch(abi, plan, root), list)
    }

    fn restrict(
        self,
        rules: impl FnOnce(u32) -> io::Result<Ruleset>,
        list: List,
    ) -> io::Result<()> {
        if let Some(abi) = self.landlock {
            let restricted = rules(abi).and_then(Ruleset::restrict);
            restricted.map_err(named("landlock"))?;
        }
        if self.seccomp {
            list.enforce().map_err(named("seccomp"))?;
        }
        Ok(())
    }
}

fn named(restriction: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::other(format!("{restriction}: {error}"))
}

fn rules_of_fetch(abi: u32, plan: &Plan, root: &WriteRoot) -> io::Result<Ruleset> {
    let rules = Ruleset::new(abi)?;
    let files = FileRights::WRITE | FileRights::TRUNCATE | FileRights::MAKE | FileRights::REMOVE;
    let access = match root {
        WriteRoot::Mount(_) => files,
        WriteRoot::Tmpfs(_) => {
            let dirs = FileRights::LIST | FileRights::MAKE_DIR | FileRights::REMOVE_DIR;
            files | FileRights::READ | FileRights::MAKE_LINK | dirs
        }
    };
    rules.allow(root.as_fd(), access)?;
    rules.allow_connect(plan.server.address.port)?;
    allow_login(&rules, &plan.auth.method)?;
    // An IP address needs no resolver.
    if plan.server.address.host.parse::<IpAddr>().is_err() {
        for file in RESOLVER_FILES {
            allow_reading(&rules, Path::new(file))?;
        }
        rules.allow_connect(DNS)?;
    }
    Ok(rules)
}

fn allow_login(rules: &Ruleset, method: &Method) -> io::Result<()> {
    for path in method.credential_files() {
        if let Some(weakness) = allow_reading(rules, path)? {
            Incident::ReachLimited { path }.emit(&weakness);
        }
    }
    if let Some(path) = method.removed_file() {
        if let Some(directory) = reach::directory_of(path) {
            allow(rules, &directory, FileRights::REMOVE)?;
        } else {
            let weakness = "the file cannot be removed after reading";
            Incident::ReachLimited { path }.emit(&weakness);
        }
    }
    Ok(())
}

/// Allows `file` to be read, now and after a replacement. Returns a reason why the read may fail
/// later.
fn allow_reading(rules: &Ruleset, file: &Path) -> io::Result<Option<&'static str>> {
    let Reach { places, weakness } = reach::of(file);
    for place in &places {
        allow(rules, place, FileRights::READ)?;
    }
    Ok(weakness)
}

fn allow(rules: &Ruleset, place: &Path, access: FileRights) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match open(place, flags, Mode::empty()) {
        Ok(at) => rules.allow(at.as_fd(), access),
        // The place was removed since the walk: the login reports a missing file.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
