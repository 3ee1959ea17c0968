//! The system calls allowed to the roles. Invariant: no role can start a process, execute a program,
//! make memory executable, trace, mount, or use a socket of a kind not needed for the role's work.
//!
//! An unlisted call fails with `ENOSYS`, as on an older kernel: only after `ENOSYS` do the C library
//! and the standard library use an older call instead. A listed call with a refused argument fails
//! with `EPERM`.

use super::profile::NAMESPACES;
use crate::sys::seccomp::{Answer, Call, Filter, Others, Rule, Test};
use nix::errno::Errno;
use std::io;

/// The list of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// For `fetch` with announcements on FUSE.
    FetchOnFuse,
    /// For `fetch` with a tmpfs.
    FetchOnTmpfs,
    /// For `serve`.
    Serve,
}

impl List {
    /// Restricts the calling thread and all later threads to the list, for ever. `no_new_privs` must
    /// be set.
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
        let (parts, mut rules): (&[&[libc::c_long]], _) = match self {
            Self::FetchOnFuse => {
                let rules = [GUARDED, NETWORK].concat();
                (&[COMMON, FETCH, OLD], rules)
            }
            Self::FetchOnTmpfs => {
                let rules = [GUARDED, NETWORK, &[LEASE]].concat();
                (&[COMMON, FETCH, OLD, TMPFS], rules)
            }
            Self::Serve => {
                let rules = [GUARDED, &[PAIR]].concat();
                (&[COMMON, SERVE], rules)
            }
        };
        rules.extend(parts.concat().into_iter().map(always));
        rules
    }
}

const UNKNOWN: Answer = Answer::Errno(Errno::ENOSYS);
const REFUSED: Answer = Answer::Errno(Errno::EPERM);

/// Memory, threads, time, signals and open files, for every role.
const COMMON: &[libc::c_long] = &[
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

/// Files by name (restricted by Landlock), the network, and polling.
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
    // riscv64 has only `renameat2`.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_renameat,
];

/// Older calls for the same purposes, only on `x86_64`.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// Directories, owners and modes. Landlock cannot restrict `chmod` and `chown`, so no other list has
/// both.
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

/// `fuse::session` replaces a socket by the device.
const SERVE: &[libc::c_long] = &[libc::SYS_dup3];

/// Allows `call` if argument `argument` is `value`.
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

/// Refuses `call` if argument `argument` has a bit of `mask`; else later rules decide.
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

/// Calls with tested arguments, for every role. No list has `clone3`, because a filter cannot read
/// the flags from memory; the C library uses `clone` instead.
const GUARDED: &[Rule] = &[
    never(libc::SYS_clone, 0, NAMESPACES.cast_signed()),
    Rule {
        answer: Answer::Allow,
        ..never(libc::SYS_clone, 0, libc::CLONE_THREAD)
    },
    refused(libc::SYS_clone),
    never(libc::SYS_mmap, 2, libc::PROT_EXEC),
    always(libc::SYS_mmap),
    never(libc::SYS_mprotect, 2, libc::PROT_EXEC),
    always(libc::SYS_mprotect),
    // Only the limits of the caller: lower limits could end another process of the user.
    only(libc::SYS_prlimit64, 0, 0),
    refused(libc::SYS_prlimit64),
    only(libc::SYS_prctl, 0, libc::PR_SET_NAME),
    refused(libc::SYS_prctl),
    // For `abort`. Landlock protects other processes from ABI 6 on.
    only(libc::SYS_tgkill, 2, libc::SIGABRT),
    refused(libc::SYS_tgkill),
    only(libc::SYS_tkill, 1, libc::SIGABRT),
    refused(libc::SYS_tkill),
    // Neither `F_SETOWN` nor `F_SETSIG`, which cause signals.
    only(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC),
    only(libc::SYS_fcntl, 1, libc::F_GETFD),
    only(libc::SYS_fcntl, 1, libc::F_SETFD),
    only(libc::SYS_fcntl, 1, libc::F_GETFL),
    only(libc::SYS_fcntl, 1, libc::F_SETFL),
    // TCP Fast Open connects without the check of Landlock.
    never(libc::SYS_sendto, 3, libc::MSG_FASTOPEN),
    always(libc::SYS_sendto),
];

/// TCP and UDP over IPv4 and IPv6: no unix, netlink or packet socket, and neither MPTCP nor SMC:
/// Landlock does not restrict the ports of the last two.
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

/// `tmpfs::remove` tests with a lease whether an unlinked file is still open.
const LEASE: Rule = only(libc::SYS_fcntl, 1, libc::F_SETLEASE);
/// `fuse::session` needs an unconnected pair of sockets.
const PAIR: Rule = only(libc::SYS_socketpair, 0, libc::AF_UNIX);

#[cfg(test)]
mod tests {
    use super::*;

    /// The first matching rule of a call decides, so a guarded call must not be listed before its
    /// guard, nor twice.
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
    fn no_list_has_a_call_for_taking_over_a_machine() {
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
