//! What a role that was taken over can still ask of the kernel: Landlock says which files, ports
//! and processes it reaches, a filter which system calls it makes. Invariants: a role works behind
//! every wall that supervise found, or not at all; both stand before the role's first thread starts
//! and before the first byte from the network or the kernel's FUSE is read.

use super::calls::List;
use super::reach::{self, Reach};
use crate::config::plan::{AfterReading, Method, Plan};
use crate::fetch::WriteRoot;
use crate::names::Child;
use crate::observe::Event;
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

/// DNS over TCP, which a resolver takes for long answers. UDP is denied by no Landlock.
const DNS: u16 = 53;
/// What a resolver reads while it runs: that of musl, and that of glibc.
const OF_MUSL: &[&str] = &["/etc/hosts", "/etc/resolv.conf"];
const OF_GLIBC: &[&str] = &[
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
];

/// The walls that this kernel can build.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confinement {
    /// The ABI of Landlock; `None` where there is none.
    landlock: Option<u32>,
    /// Whether there are filters of system calls.
    seccomp: bool,
}

impl Confinement {
    /// Asks the kernel; says what is missing.
    pub(super) fn find() -> Self {
        let landlock = landlock::abi().and_then(|abi| Ruleset::new(abi).map(|_| abi));
        if let Err(why) = &landlock {
            Event::NoLandlock { why }.emit();
        }
        let seccomp = seccomp::is_available();
        if !seccomp {
            Event::NoSeccomp.emit();
        }
        Self {
            landlock: landlock.ok(),
            seccomp,
        }
    }

    /// The walls of `fetch`, which keeps `rights`, and of `serve` if there is one, for the report.
    pub(super) fn report(self, rights: &[Capability], roles: &[Child]) -> status::WallsReport {
        let of = |rights: &[Capability]| {
            let kept: Vec<_> = rights.iter().map(|right| right.name()).collect();
            let capabilities = if kept.is_empty() {
                "capabilities".to_owned()
            } else {
                format!("capabilities but {}", kept.join(", "))
            };
            let seccomp = self.seccomp.then(|| "seccomp".to_owned());
            let landlock = self.landlock.map(|abi| format!("landlock {abi}"));
            [Some(capabilities), seccomp, landlock]
                .into_iter()
                .flatten()
                .map(Into::into)
                .collect()
        };
        status::WallsReport {
            fetch: of(rights),
            serve: if roles.contains(&Child::Serve) {
                of(&[])
            } else {
                vec![]
            },
        }
    }

    /// Leaves nothing to `serve` but what it has open.
    ///
    /// # Errors
    /// Which wall cannot be built, and why.
    pub(super) fn around_serve(self) -> io::Result<()> {
        if let Some(abi) = self.landlock {
            Ruleset::new(abi)
                .and_then(Ruleset::restrict)
                .map_err(named("landlock"))?;
        }
        self.filter(List::Serve)
    }

    /// Leaves to `fetch` the files of its login and of the resolver, the server's port and DNS, and
    /// its directory. To be called once the files of TLS are read: nothing reads them again.
    ///
    /// # Errors
    /// Which wall cannot be built, and why.
    pub(super) fn around_fetch(self, plan: &Plan, root: &WriteRoot) -> io::Result<()> {
        if let Some(abi) = self.landlock {
            rules_of_fetch(abi, plan, root)
                .and_then(Ruleset::restrict)
                .map_err(named("landlock"))?;
        }
        self.filter(match root {
            WriteRoot::Mount(_) => List::FetchOnFuse,
            WriteRoot::Tmpfs(_) => List::FetchOnTmpfs,
        })
    }

    fn filter(self, list: List) -> io::Result<()> {
        if self.seccomp {
            list.enforce().map_err(named("seccomp"))
        } else {
            Ok(())
        }
    }
}

fn named(wall: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{wall}: {error}"))
}

fn rules_of_fetch(abi: u32, plan: &Plan, root: &WriteRoot) -> io::Result<Ruleset> {
    let rules = Ruleset::new(abi)?;
    let announce = FileRights::WRITE | FileRights::TRUNCATE | FileRights::MAKE | FileRights::REMOVE;
    let access = match root {
        WriteRoot::Mount(_) => announce,
        WriteRoot::Tmpfs(_) => {
            let files = announce | FileRights::READ | FileRights::MAKE_LINK;
            files | FileRights::LIST | FileRights::MAKE_DIR | FileRights::REMOVE_DIR
        }
    };
    rules.allow(root.as_fd(), access)?;
    rules.allow_connect(plan.server.address.port)?;
    allow_login(&rules, &plan.auth.method)?;
    // An address needs no resolver.
    if plan.server.address.host.parse::<IpAddr>().is_err() {
        for file in if cfg!(target_env = "musl") {
            OF_MUSL
        } else {
            OF_GLIBC
        } {
            allow_reading(&rules, Path::new(file))?;
        }
        rules.allow_connect(DNS)?;
    }
    Ok(rules)
}

fn allow_login(rules: &Ruleset, method: &Method) -> io::Result<()> {
    let Method::AppRole {
        role_id_file,
        secret_id_file,
        after_reading,
    } = method;
    for file in [Some(role_id_file), secret_id_file.as_ref()]
        .into_iter()
        .flatten()
    {
        if let Some(weakness) = allow_reading(rules, file)? {
            Event::WeakReach { file, weakness }.emit();
        }
    }
    let removed = secret_id_file
        .as_ref()
        .filter(|_| *after_reading == AfterReading::Remove);
    match removed.map(|file| (file, reach::directory_of(file))) {
        Some((_, Some(directory))) => allow(rules, &directory, FileRights::REMOVE),
        Some((file, None)) => {
            let weakness = "it cannot be removed after reading";
            Event::WeakReach { file, weakness }.emit();
            Ok(())
        }
        None => Ok(()),
    }
}

/// Allows `file` to be read, now and after it was replaced; what may prevent the latter.
fn allow_reading(rules: &Ruleset, file: &Path) -> io::Result<Option<&'static str>> {
    let Reach { places, weakness } = reach::of(file);
    for place in &places {
        allow(rules, place, FileRights::READ)?;
    }
    Ok(weakness)
}

fn allow(rules: &Ruleset, place: &Path, access: FileRights) -> io::Result<()> {
    match open(
        place,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) {
        Ok(at) => rules.allow(at.as_fd(), access),
        // It went since it was found. The login says so when it misses it.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
