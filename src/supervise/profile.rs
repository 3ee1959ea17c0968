//! The restrictions of a container without `SYS_ADMIN`, for the application and the commands. baofs
//! needs `SYS_ADMIN` to mount, and a runtime decides for the whole container: with `SYS_ADMIN`,
//! Docker's default seccomp profile admits more system calls to every process, and AppArmor must be
//! off. Invariant: the application can do the same as in a container without `SYS_ADMIN`, no more and
//! no less. Without a filter of the runtime nothing is restricted.

use crate::config::plan::Seccomp;
use crate::sys::caps::{self, Capability};
use crate::sys::seccomp::{self, Answer, Call, Filter, Others, Rule, Test};
use nix::errno::Errno;
use std::fs;
use std::io;
use std::path::Path;

/// The answer of Docker's default profile to a refused call.
const REFUSED: Answer = Answer::Errno(Errno::EPERM);

/// `CLONE_NEW*` of mounts, cgroups, host names, IPC, users, processes and the network.
pub(super) const NAMESPACES: u32 = 0x7e02_0000;

/// Calls admitted by the profile only with `SYS_ADMIN` (moby `profiles/seccomp/default_linux.go`,
/// July 2026). `name_to_handle_at` is missing: Docker 25 and later always admit the call, earlier
/// versions never.
const SYS_ADMIN_CALLS: &[Call] = &[
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

/// Calls of newer kernels, also admitted only with `SYS_ADMIN`. A call is refused only if the kernel
/// and the container's filter know the call: a runtime answers `ENOSYS` to calls newer than the
/// profile, and the answer must stay `ENOSYS`.
const NEWER_CALLS: &[Call] = &[
    Call::unified(443), // quotactl_fd
    Call::unified(459), // lsm_get_self_attr
    Call::unified(460), // lsm_set_self_attr
    Call::unified(461), // lsm_list_modules
    Call::unified(467), // open_tree_attr, in no profile yet
];

/// Calls admitted with `SYS_ADMIN` or another capability.
const SHARED_CALLS: &[(Call, Capability)] = &[
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

/// `clone` may not make a namespace. A filter cannot read the flags of `clone3` from memory, so
/// `clone3` fails with `ENOSYS` and programs use `clone`.
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

/// Restricts the calling process, a child with `SYS_ADMIN` shortly before it executes a program
/// (without `SYS_ADMIN`, a filter requires `no_new_privs`). `notice` is called with the reason when
/// `AppArmor` does not confine the program.
///
/// # Errors
/// When the filter cannot be installed; the message has a hint.
pub(super) fn restrict(seccomp: Seccomp, notice: impl FnOnce(&io::Error)) -> io::Result<()> {
    if seccomp == Seccomp::Inherited || !seccomp::is_active() {
        return Ok(());
    }
    if !caps::has(Capability::SysAdmin)? {
        return Ok(());
    }
    let filter = Filter {
        rules: &rules(caps::is_bounding, Call::is_known),
        otherwise: Answer::Allow,
        others: Others::SameRules,
    };
    filter.install().map_err(|error| {
        io::Error::other(format!(
            "the filter of its system calls cannot be installed: {error}; \
             hint: to do without, set `seccomp` in `app` to `inherit`"
        ))
    })?;
    if let Err(error) = request_apparmor(Path::new("/")) {
        notice(&error);
    }
    Ok(())
}

/// The deny list for a container with the capabilities `granted`, where kernel and filter know the
/// calls `knows`.
fn rules(granted: impl Fn(Capability) -> bool, knows: impl Fn(Call) -> bool) -> Vec<Rule> {
    let mut refused = SYS_ADMIN_CALLS.to_vec();
    for call in NEWER_CALLS {
        if knows(*call) {
            refused.push(*call);
        }
    }
    for (call, capability) in SHARED_CALLS {
        if !granted(*capability) {
            refused.push(*call);
        }
    }
    let refused = refused.into_iter().map(|call| Rule::always(call, REFUSED));
    refused.chain(CLONES).collect()
}

/// Requests Docker's AppArmor profile for the next `execve(2)`, if AppArmor is on in an
/// unconfined Docker container (mounting requires unconfined). `root` is `/`, except in tests.
fn request_apparmor(root: &Path) -> io::Result<()> {
    let enabled = root.join("sys/module/apparmor/parameters/enabled");
    let enabled = fs::read_to_string(enabled).unwrap_or_default();
    if enabled.trim() != "Y" || !root.join(".dockerenv").exists() {
        return Ok(());
    }
    // Linux 5.1 added the first directory. The second belongs to the first security module.
    let own = ["proc/self/attr/apparmor", "proc/self/attr"]
        .map(|path| root.join(path))
        .into_iter()
        .find(|path| path.join("exec").exists())
        .ok_or(io::ErrorKind::NotFound)?;
    let current = fs::read_to_string(own.join("current"))?;
    if current.trim_end_matches(['\0', '\n']) == "unconfined" {
        fs::write(own.join("exec"), "exec docker-default")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Tests the choice of rules; `tests/containers` compares the answers of a real filter.
    #[test]
    fn a_call_admitted_by_another_capability_stays_admitted() {
        let all =
            |granted: &[Capability]| rules(|capability| granted.contains(&capability), |_| true);
        let refuses = |rules: &[Rule], call: Call| {
            rules
                .iter()
                .any(|rule| rule.call == call && rule.answer == REFUSED)
        };
        for (call, capability) in SHARED_CALLS {
            assert!(refuses(&all(&[]), *call), "{call:?}");
            assert!(!refuses(&all(&[*capability]), *call), "{call:?}");
        }
        let old = rules(|_| false, |_| false);
        assert!(
            NEWER_CALLS
                .iter()
                .all(|call| refuses(&all(&[]), *call) && !refuses(&old, *call))
        );
        assert!(SYS_ADMIN_CALLS.iter().all(|call| refuses(&old, *call)));
        let calls: HashSet<_> = all(&[])
            .iter()
            .map(|rule| format!("{:?}", rule.call))
            .collect();
        assert_eq!(calls.len(), all(&[]).len(), "each call stands once");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn no_call_has_a_number_of_its_own_in_x32() {
        // Native numbers of the calls with other numbers in x32: linux/arch/x86/entry/syscalls/syscall_64.tbl, 512 to 547.
        const RENUMBERED: &[libc::c_long] = &[
            13, 15, 16, 19, 20, 45, 46, 47, 54, 55, 59, 101, 127, 128, 129, 131, 206, 209, 222,
            244, 246, 247, 273, 274, 278, 279, 295, 296, 297, 299, 307, 310, 311, 322, 327, 328,
        ];
        let renumbered: Vec<_> = RENUMBERED
            .iter()
            .map(|number| Call::native(*number).native)
            .collect();
        let all = rules(|_| false, |_| true);
        let wrong: Vec<_> = all
            .iter()
            .filter(|rule| rule.call.native.is_some() && renumbered.contains(&rule.call.native))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Whether the profile was requested, on a host with the files.
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
    fn apparmor_is_requested_only_in_an_unconfined_docker_container() {
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
