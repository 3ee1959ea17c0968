//! The walls of a container for the application and the commands. A runtime computes them for the
//! whole container: because baofs needs `SYS_ADMIN` to mount, Docker's default seccomp profile
//! admits more system calls to every process, and AppArmor has to be off. Invariant: the
//! application is refused what it is refused in a container without `SYS_ADMIN`; nothing that
//! such a container admits is taken away, and nothing at all where no runtime has put up a filter.

use crate::config::plan::Seccomp;
use crate::sys::caps::{self, Capability};
use crate::sys::seccomp::{self, Answer, Call, Filter, Others, Rule, Test};
use nix::errno::Errno;
use std::fs;
use std::io;
use std::path::Path;

/// What Docker's default profile answers to a call that it does not admit.
const REFUSED: Answer = Answer::Errno(Errno::EPERM);

/// `CLONE_NEW*` of mounts, cgroups, host names, IPC, users, processes and the network.
const NAMESPACES: u32 = 0x7e02_0000;

/// What the profile admits because of `SYS_ADMIN` alone (moby `profiles/seccomp/default_linux.go`,
/// July 2026). `name_to_handle_at` is not among them: Docker 25 and later admit it to everybody,
/// earlier ones refuse it.
const OF_SYS_ADMIN: &[Call] = &[
    Call::with_compat(libc::SYS_fanotify_init, 338, 367),
    Call::unified(431), // fsconfig
    Call::unified(432), // fsmount
    Call::unified(430), // fsopen
    Call::unified(433), // fspick
    Call::with_compat(libc::SYS_lookup_dcookie, 253, 249),
    Call::with_compat(libc::SYS_mount, 21, 21),
    Call::unified(442), // mount_setattr
    Call::unified(429), // move_mount
    Call::unified(428), // open_tree
    Call::with_compat(libc::SYS_quotactl, 131, 131),
    Call::with_compat(libc::SYS_setdomainname, 121, 121),
    Call::with_compat(libc::SYS_sethostname, 74, 74),
    Call::with_compat(libc::SYS_setns, 346, 375),
    Call::of_i386(22), // umount, with one argument
    Call::with_compat(libc::SYS_umount2, 52, 52),
    Call::with_compat(libc::SYS_unshare, 310, 337),
];

/// The same, where the kernel and the container's filter know them. A runtime answers `ENOSYS` to a
/// call that is newer than its profile, which tells a program to do without; so does the
/// application's container then.
const OF_LATER_PROFILES: &[Call] = &[
    Call::unified(443), // quotactl_fd
    Call::unified(459), // lsm_get_self_attr
    Call::unified(460), // lsm_set_self_attr
    Call::unified(461), // lsm_list_modules
    Call::unified(467), // open_tree_attr, in no profile yet
];

/// Calls that another capability admits as well.
const OF_EITHER: &[(Call, Capability)] = &[
    (Call::with_compat(libc::SYS_bpf, 357, 386), Capability::Bpf),
    (
        Call::with_compat(libc::SYS_perf_event_open, 336, 364),
        Capability::Perfmon,
    ),
    (
        Call::with_compat(libc::SYS_syslog, 103, 103),
        Capability::Syslog,
    ),
];

/// `clone` admits no new namespace. `clone3` has its flags in memory, where no filter sees them: it
/// does not exist then, and programs use `clone`.
const CLONES: [Rule; 2] = [
    Rule {
        call: Call::with_compat(libc::SYS_clone, 120, 120),
        test: Test::AnyBit {
            argument: 0,
            mask: NAMESPACES,
        },
        answer: REFUSED,
    },
    Rule::always(Call::unified(435), Answer::Errno(Errno::ENOSYS)),
];

/// Puts the walls up in the calling process, a child that is about to execute a program: while it
/// has `SYS_ADMIN` still, without which a filter takes `no_new_privs`. `notice` hears why
/// `AppArmor` does not confine the program.
///
/// # Errors
/// When the filter cannot be installed; the message has the remedy.
pub(super) fn put_up(seccomp: Seccomp, notice: impl FnOnce(&io::Error)) -> io::Result<()> {
    if seccomp == Seccomp::Inherited || !seccomp::is_active() || !caps::has(Capability::SysAdmin)? {
        return Ok(());
    }
    let rules = rules(caps::is_bounding, Call::is_known);
    let filter = Filter {
        rules: &rules,
        otherwise: Answer::Allow,
        others: Others::SameRules,
    };
    filter.install().map_err(|error| {
        let hint = "to do without, set `seccomp` in `app` to `inherit`";
        io::Error::new(
            error.kind(),
            format!("the filter of its system calls cannot be installed: {error}; hint: {hint}"),
        )
    })?;
    if let Err(error) = request_apparmor(Path::new("/")) {
        notice(&error);
    }
    Ok(())
}

/// The deny list of a container that has `granted` capabilities besides, and whose filter `knows`
/// calls.
fn rules(granted: impl Fn(Capability) -> bool, knows: impl Fn(Call) -> bool) -> Vec<Rule> {
    let later = OF_LATER_PROFILES
        .iter()
        .copied()
        .filter(|call| knows(*call));
    let either = OF_EITHER
        .iter()
        .filter(|(_, capability)| !granted(*capability))
        .map(|(call, _)| *call);
    let refused = OF_SYS_ADMIN.iter().copied().chain(later).chain(either);
    refused
        .map(|call| Rule::always(call, REFUSED))
        .chain(CLONES)
        .collect()
}

/// Asks for Docker's AppArmor profile at the next `execve(2)`, where AppArmor is on and a Docker
/// container is unconfined (as mounting takes it). `root` is `/`, but in tests.
fn request_apparmor(root: &Path) -> io::Result<()> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let is_on = read("sys/module/apparmor/parameters/enabled").trim() == "Y";
    if !is_on || !root.join(".dockerenv").exists() {
        return Ok(());
    }
    // The directory of its own came with Linux 5.1: the other belongs to the first security module.
    let attributes = ["proc/self/attr/apparmor", "proc/self/attr"].map(|path| root.join(path));
    let own = attributes
        .iter()
        .find(|path| path.join("exec").exists())
        .ok_or(io::ErrorKind::NotFound)?;
    if fs::read_to_string(own.join("current"))?.trim_end_matches(['\0', '\n']) != "unconfined" {
        return Ok(());
    }
    fs::write(own.join("exec"), "exec docker-default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The answers of a real filter are compared in `tests/containers`; here what depends on the
    /// container.
    #[test]
    fn what_another_capability_admits_stays_admitted() {
        let all =
            |granted: &[Capability]| rules(|capability| granted.contains(&capability), |_| true);
        let refuses = |rules: &[Rule], call: Call| {
            rules
                .iter()
                .any(|rule| rule.call == call && rule.answer == REFUSED)
        };
        for (call, capability) in OF_EITHER {
            assert!(refuses(&all(&[]), *call), "{call:?}");
            assert!(!refuses(&all(&[*capability]), *call), "{call:?}");
        }
        let old = rules(|_| false, |_| false);
        assert!(
            OF_LATER_PROFILES
                .iter()
                .all(|call| refuses(&all(&[]), *call) && !refuses(&old, *call))
        );
        assert!(OF_SYS_ADMIN.iter().all(|call| refuses(&old, *call)));
        let calls: HashSet<_> = all(&[])
            .iter()
            .map(|rule| format!("{:?}", rule.call))
            .collect();
        assert_eq!(calls.len(), all(&[]).len(), "each call stands once");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn no_call_has_a_number_of_its_own_in_x32() {
        // Native numbers of those: linux/arch/x86/entry/syscalls/syscall_64.tbl, 512 to 547.
        const RENUMBERED: &[libc::c_long] = &[
            13, 15, 16, 19, 20, 45, 46, 47, 54, 55, 59, 101, 127, 128, 129, 131, 206, 209, 222,
            244, 246, 247, 273, 274, 278, 279, 295, 296, 297, 299, 307, 310, 311, 322, 327, 328,
        ];
        let renumbered: Vec<_> = RENUMBERED
            .iter()
            .map(|number| Call::native(*number).number())
            .collect();
        let all = rules(|_| false, |_| true);
        let wrong: Vec<_> = all
            .iter()
            .filter(|rule| rule.call.number().is_some() && renumbered.contains(&rule.call.number()))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Whether the profile was asked for, on a host with these files.
    fn requested(
        enabled: &str,
        docker: bool,
        current: Option<(&str, &str)>,
    ) -> Result<bool, io::ErrorKind> {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        };
        if !enabled.is_empty() {
            write("sys/module/apparmor/parameters/enabled", enabled);
        }
        if docker {
            write(".dockerenv", "");
        }
        let exec = current.map(|(directory, label)| {
            write(&format!("{directory}/current"), label);
            write(&format!("{directory}/exec"), "");
            root.path().join(directory).join("exec")
        });
        request_apparmor(root.path()).map_err(|error| error.kind())?;
        Ok(exec.is_some_and(|exec| {
            fs::read_to_string(exec).expect("it is there") == "exec docker-default"
        }))
    }

    #[test]
    fn apparmor_is_asked_in_an_unconfined_docker_container_alone() {
        let (new, old) = ("proc/self/attr/apparmor", "proc/self/attr");
        assert_eq!(
            requested("Y\n", true, Some((new, "unconfined\n"))),
            Ok(true)
        );
        assert_eq!(
            requested("Y\n", true, Some((old, "unconfined\0"))),
            Ok(true)
        );
        assert_eq!(
            requested("Y\n", true, Some((new, "docker-default (enforce)\n"))),
            Ok(false)
        );
        assert_eq!(
            requested("Y\n", false, Some((new, "unconfined\n"))),
            Ok(false),
            "another runtime has other profiles"
        );
        assert_eq!(
            requested("N\n", true, Some((new, "unconfined\n"))),
            Ok(false)
        );
        assert_eq!(requested("", true, None), Ok(false));
        assert_eq!(requested("Y\n", true, None), Err(io::ErrorKind::NotFound));
    }
}
