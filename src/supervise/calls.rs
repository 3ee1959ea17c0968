//! The system calls that the roles may make. Invariants: what is not listed is not made; no role
//! can start a process, execute a program, make memory executable, trace, mount, or reach a socket
//! of another kind than its work needs.
//!
//! A call that is not listed gets `ENOSYS`, as on a kernel that does not have it: the C library and
//! the standard library then take another way, which no other error makes them do. A listed call
//! with an argument that is refused gets `EPERM`.

use crate::sys::seccomp::{Answer, Call, Filter, Others, Rule, Test};
use nix::errno::Errno;
use std::io;

/// Which list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// Of `fetch` that announces on FUSE.
    FetchOnFuse,
    /// Of `fetch` that writes a tmpfs.
    FetchOnTmpfs,
    /// Of `serve`.
    Serve,
}

impl List {
    /// Makes the list hold for the calling thread and all that it starts, for ever. `no_new_privs`
    /// must be set.
    ///
    /// # Errors
    /// As [`Filter::install`].
    pub(super) fn enforce(self) -> io::Result<()> {
        let rules = self.rules();
        Filter {
            rules: &rules,
            otherwise: UNKNOWN,
            others: Others::Answer(UNKNOWN),
        }
        .install()
    }

    fn rules(self) -> Vec<Rule> {
        let parts: &[(&[libc::c_long], &[Rule])] = match self {
            Self::FetchOnFuse => &[(EVERYBODY, GUARDED), (FETCH, NETWORK)],
            Self::FetchOnTmpfs => &[(EVERYBODY, GUARDED), (FETCH, NETWORK), (TMPFS, &[LEASE])],
            Self::Serve => &[(EVERYBODY, GUARDED), (SERVE, &[PAIR])],
        };
        let plain = |calls: &[libc::c_long]| {
            calls
                .iter()
                .map(|call| Rule::always(Call::native(*call), Answer::Allow))
                .collect::<Vec<_>>()
        };
        parts
            .iter()
            .flat_map(|(calls, guarded)| guarded.iter().copied().chain(plain(calls)))
            .collect()
    }
}

const UNKNOWN: Answer = Answer::Errno(Errno::ENOSYS);
const REFUSED: Answer = Answer::Errno(Errno::EPERM);

/// Memory, threads, time, signals, what is open.
const EVERYBODY: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Files by name, which Landlock narrows, the network, and waiting for many of them.
const FETCH: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_clock_getres,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_renameat2,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    // riscv64 has `renameat2` alone.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Directories, owners and modes. Landlock denies no change of owner or mode, so that no other list
/// has these calls.
const TMPFS: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_getdents64,
    libc::SYS_getgroups,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
];

/// The device takes the place of a socket: `fuse::session`.
const SERVE: &[libc::c_long] = &[libc::SYS_dup3];

/// Argument `argument` of `call` must be `value`.
const fn only(call: libc::c_long, argument: u8, value: libc::c_int) -> Rule {
    Rule {
        call: Call::native(call),
        test: Test::Equal {
            argument,
            value: value.cast_unsigned(),
        },
        answer: Answer::Allow,
    }
}

/// Argument `argument` of `call` must not have a bit of `mask`; whether it is allowed then, later
/// rules say.
const fn never(call: libc::c_long, argument: u8, mask: libc::c_int) -> Rule {
    Rule {
        call: Call::native(call),
        test: Test::AnyBit {
            argument,
            mask: mask.cast_unsigned(),
        },
        answer: REFUSED,
    }
}

const fn always(call: libc::c_long) -> Rule {
    Rule::always(Call::native(call), Answer::Allow)
}

const fn refused(call: libc::c_long) -> Rule {
    Rule::always(Call::native(call), REFUSED)
}

/// All `CLONE_NEW*`.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// `clone3` is in no list, because its flags lie in memory that no filter sees: the C library then
/// takes `clone`.
const GUARDED: &[Rule] = &[
    never(libc::SYS_clone, 0, NAMESPACES),
    Rule {
        call: Call::native(libc::SYS_clone),
        test: Test::AnyBit {
            argument: 0,
            mask: libc::CLONE_THREAD.cast_unsigned(),
        },
        answer: Answer::Allow,
    },
    refused(libc::SYS_clone),
    never(libc::SYS_mmap, 2, libc::PROT_EXEC),
    always(libc::SYS_mmap),
    never(libc::SYS_mprotect, 2, libc::PROT_EXEC),
    always(libc::SYS_mprotect),
    // Limits of this process; of another one of the same user they could end it.
    only(libc::SYS_prlimit64, 0, 0),
    refused(libc::SYS_prlimit64),
    only(libc::SYS_prctl, 0, libc::PR_SET_NAME),
    refused(libc::SYS_prctl),
    // `abort`: of another process Landlock protects, from ABI 6 on.
    only(libc::SYS_tgkill, 2, libc::SIGABRT),
    refused(libc::SYS_tgkill),
    only(libc::SYS_tkill, 1, libc::SIGABRT),
    refused(libc::SYS_tkill),
    // Not `F_SETOWN` and `F_SETSIG`, which send signals.
    only(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC),
    only(libc::SYS_fcntl, 1, libc::F_GETFD),
    only(libc::SYS_fcntl, 1, libc::F_SETFD),
    only(libc::SYS_fcntl, 1, libc::F_GETFL),
    only(libc::SYS_fcntl, 1, libc::F_SETFL),
    // A connection that is opened by its first bytes passes Landlock by.
    never(libc::SYS_sendto, 3, libc::MSG_FASTOPEN),
    always(libc::SYS_sendto),
];

/// TCP and UDP over IPv4 and IPv6: no unix, netlink or packet socket, and no protocol beside TCP,
/// such as MPTCP and SMC, whose ports Landlock does not know.
const NETWORK: &[Rule] = &[
    never(
        libc::SYS_socket,
        2,
        !(libc::IPPROTO_TCP | libc::IPPROTO_UDP),
    ),
    never(
        libc::SYS_socket,
        1,
        0xf & !(libc::SOCK_STREAM | libc::SOCK_DGRAM),
    ),
    only(libc::SYS_socket, 0, libc::AF_INET),
    only(libc::SYS_socket, 0, libc::AF_INET6),
    refused(libc::SYS_socket),
    never(libc::SYS_sendmsg, 2, libc::MSG_FASTOPEN),
    always(libc::SYS_sendmsg),
    never(libc::SYS_sendmmsg, 3, libc::MSG_FASTOPEN),
    always(libc::SYS_sendmmsg),
    only(libc::SYS_ioctl, 1, FIONBIO),
    refused(libc::SYS_ioctl),
];

#[allow(clippy::cast_possible_truncation, reason = "the number is 0x5421")]
const FIONBIO: libc::c_int = libc::FIONBIO as libc::c_int;

/// Whether an unlinked file is open elsewhere: `tmpfs::remove`.
const LEASE: Rule = only(libc::SYS_fcntl, 1, libc::F_SETLEASE);
/// A pair that reaches nobody: `fuse::session`.
const PAIR: Rule = only(libc::SYS_socketpair, 0, libc::AF_UNIX);

#[cfg(test)]
mod tests {
    use super::*;

    /// The first rule of a call decides, so a call that is guarded must not be listed before, nor
    /// twice.
    #[test]
    fn no_list_undoes_a_guard() {
        for list in [List::FetchOnFuse, List::FetchOnTmpfs, List::Serve] {
            let rules = list.rules();
            for (index, rule) in rules.iter().enumerate() {
                let earlier = rules[..index]
                    .iter()
                    .find(|earlier| earlier.call == rule.call && earlier.test == Test::Always);
                let is_lease = rule.test == LEASE.test;
                assert!(
                    earlier.is_none() || is_lease,
                    "{list:?}: {rule:?} comes after {earlier:?}"
                );
            }
        }
    }

    #[test]
    fn what_takes_over_a_machine_is_in_no_list() {
        let evil = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_fsopen,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_kill,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_listen,
            libc::SYS_seccomp,
        ];
        for list in [List::FetchOnFuse, List::FetchOnTmpfs, List::Serve] {
            for call in evil.map(Call::native) {
                assert!(
                    list.rules().iter().all(|rule| rule.call != call),
                    "{list:?}: {call:?}"
                );
            }
        }
        let no_socket = |call| {
            List::Serve
                .rules()
                .iter()
                .all(|rule| rule.call != Call::native(call))
        };
        assert!(
            [libc::SYS_socket, libc::SYS_connect, libc::SYS_openat]
                .into_iter()
                .all(no_socket)
        );
    }
}
