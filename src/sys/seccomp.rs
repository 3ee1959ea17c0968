//! Filters of system calls (`seccomp(2)`): rules are translated to a BPF program and installed.
//! Invariant: a program covers the calls of every architecture that this kernel accepts, not only
//! of the native architecture.
//!
//! On `x86_64` a program may make calls in three ways: natively, as `x32` (the native architecture
//! with [`X32`] in the number) and as `i386` (`int 0x80`, with other numbers). On `aarch64` a
//! program may also be 32-bit `arm`.

use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The bit that distinguishes an `x32` call from a native call of `x86_64`; no bit elsewhere.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;
#[cfg(not(target_arch = "x86_64"))]
const X32: u32 = 0;

/// `AUDIT_ARCH_*` of the native calls (`linux/audit.h`).
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const NATIVE: u32 = 0xc000_00f3;

/// `AUDIT_ARCH_*` of the 32-bit calls that the same kernel takes.
#[cfg(target_arch = "x86_64")]
const COMPAT: Option<u32> = Some(0x4000_0003);
#[cfg(target_arch = "aarch64")]
const COMPAT: Option<u32> = Some(0x4000_0028);
#[cfg(target_arch = "riscv64")]
const COMPAT: Option<u32> = None;

/// The number of calls to compare without a further search.
const LEAF: usize = 8;

/// Offsets in `struct seccomp_data` (`linux/seccomp.h`).
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// A system call, identified by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The native number, as in `libc::SYS_*`; `None` if this architecture lacks the call.
    pub native: Option<u32>,
    /// The number of the 32-bit call: `i386` on `x86_64`, `arm` on `aarch64`; `None` without such
    /// a call.
    compat: Option<u32>,
}

impl Call {
    /// A call by the native number alone (`libc::SYS_*`), for filters with [`Others::Answer`].
    pub const fn native(number: libc::c_long) -> Self {
        Self {
            native: Some(word(number)),
            compat: None,
        }
    }

    /// A call by the native number and the numbers in `i386` and `arm`, for filters with
    /// [`Others::SameRules`].
    pub const fn with_compat(native: libc::c_long, i386: u32, arm: u32) -> Self {
        Self {
            native: Some(word(native)),
            compat: Some(if cfg!(target_arch = "x86_64") {
                i386
            } else {
                arm
            }),
        }
    }

    /// A call of Linux 5.1 or later, with the same number on all architectures.
    pub const fn unified(number: u32) -> Self {
        Self {
            native: Some(number),
            compat: Some(number),
        }
    }

    /// A call that only `i386` has.
    pub const fn of_i386(number: u32) -> Self {
        Self {
            native: None,
            compat: if cfg!(target_arch = "x86_64") {
                Some(number)
            } else {
                None
            },
        }
    }

    /// Whether the kernel and the filters of the calling thread know the native call: `false` for
    /// the answer `ENOSYS`. The call is made, with all bits of all arguments set: only for calls
    /// without any effect then, because of unknown flags or a descriptor of -1.
    pub fn is_known(self) -> bool {
        let Some(number) = self.native else {
            return false;
        };
        let all = -1 as libc::c_long;
        // SAFETY: the caller chose a call that refuses the arguments; no argument is a pointer to
        // memory.
        let result =
            unsafe { libc::syscall(libc::c_long::from(number), all, all, all, all, all, all) };
        result != -1 || Errno::last() != Errno::ENOSYS
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of calls are small and positive"
)]
const fn word(number: libc::c_long) -> u32 {
    number as u32
}

/// The filter's answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel executes the call, unless an earlier filter refuses.
    Allow,
    /// The call fails with this error.
    Errno(Errno),
    /// The process is killed; no handler of SIGSYS runs.
    KillProcess,
}

impl Answer {
    /// `SECCOMP_RET_*`.
    fn value(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Errno(errno) => {
                let data = errno as u32 & libc::SECCOMP_RET_DATA;
                libc::SECCOMP_RET_ERRNO | data
            }
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// A test of the arguments of a call. Only the low 32 bits of an argument are tested: enough for
/// flags, families and commands, which the kernel takes as 32-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// No test.
    Always,
    /// Whether argument `argument` (0 to 5) has any bit of `mask`.
    AnyBit {
        /// The index of the argument.
        argument: u8,
        /// The bits.
        mask: u32,
    },
    /// Whether argument `argument` (0 to 5) is `value`.
    Equal {
        /// The index of the argument.
        argument: u8,
        /// The number.
        value: u32,
    },
}

/// A line of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The call.
    pub call: Call,
    /// The condition of the rule.
    pub test: Test,
    /// The answer if the condition holds.
    pub answer: Answer,
}

impl Rule {
    /// A rule for `call` with any arguments.
    pub const fn always(call: Call, answer: Answer) -> Self {
        Self {
            call,
            test: Test::Always,
            answer,
        }
    }
}

/// The answer to calls of all architectures but the native architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// The rules hold for `x32` and the 32-bit architecture, too. An `x32` call is found by its
    /// native number, so the rules must not have a call with a number of `x32` alone (512 and
    /// above). Calls of an unknown architecture are answered `ENOSYS`.
    SameRules,
    /// The same answer to every call.
    Answer(Answer),
}

/// A filter: the first rule that applies answers.
#[derive(Clone, Debug)]
pub struct Filter<'a> {
    /// The rules, in order.
    pub rules: &'a [Rule],
    /// The answer to a call without a rule that applies.
    pub otherwise: Answer,
    /// The answer to a call of another architecture.
    pub others: Others,
}

impl Filter<'_> {
    /// Installs the filter for the calling thread and all its children and programs, for ever.
    /// Earlier filters stay: the strictest answer wins, and the last filter wins between two
    /// errors. The thread must have `SYS_ADMIN` or `no_new_privs`. The filter does not change
    /// speculation (`SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
    ///
    /// # Errors
    /// `EACCES` without `SYS_ADMIN` and `no_new_privs`; `ENOMEM` when all filters of the thread are
    /// too long together; the answer of an earlier filter to `seccomp(2)`.
    pub fn install(&self) -> io::Result<()> {
        let program = self.program();
        match set_filter(&program, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
            // The flag came with Linux 4.17.
            Err(Errno::EINVAL) => Ok(set_filter(&program, 0)?),
            result => Ok(result?),
        }
    }

    /// The BPF program: for each architecture a block of rules behind a test of the architecture.
    fn program(&self) -> Vec<libc::sock_filter> {
        let mut program = vec![load(ARCH_AT)];
        match self.others {
            Others::SameRules => {
                let both = |number| [number, number | X32];
                let native = |call: Call| call.native.into_iter().flat_map(both).collect();
                program.extend(self.block(NATIVE, &[], native));
                if let Some(arch) = COMPAT {
                    let compat = |call: Call| call.compat.into_iter().collect();
                    program.extend(self.block(arch, &[], compat));
                }
                program.push(answer(Answer::Errno(Errno::ENOSYS)));
            }
            Others::Answer(other) => {
                // `x32` calls have the native architecture.
                let is_x32 = jump(libc::BPF_JSET, X32, 0, 1);
                let x32 = [is_x32, answer(other)];
                let native = |call: Call| call.native.into_iter().collect();
                program.extend(self.block(NATIVE, &x32, native));
                program.push(answer(other));
            }
        }
        program
    }

    /// For calls of `arch`: executes `first` with the number in the accumulator, then answers the
    /// calls of all rules by their `numbers`, and all other calls with `otherwise`. Expects the
    /// architecture in the accumulator, and leaves it there for other calls.
    fn block(
        &self,
        arch: u32,
        first: &[libc::sock_filter],
        numbers: impl Fn(Call) -> BTreeSet<u32>,
    ) -> Vec<libc::sock_filter> {
        let mut calls: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
        for rule in self.rules {
            for number in numbers(rule.call) {
                calls.entry(number).or_default().push(rule);
            }
        }
        let mut body = vec![load(NUMBER_AT)];
        body.extend(first);
        let calls: Vec<_> = calls.into_iter().collect();
        body.extend(tree(&calls, self.otherwise));
        let is_arch = jump(libc::BPF_JEQ, arch, 1, 0);
        branch(is_arch, body)
    }
}

/// Whether the kernel has filters, and no filter forbids the installation of another filter
/// (`SECCOMP_GET_ACTION_AVAIL`, Linux 4.14).
pub fn is_available() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads `action`, which lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    result == 0
}

/// Whether a filter holds for the calling thread.
pub fn is_active() -> bool {
    // SAFETY: all arguments are numbers.
    let mode = unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) };
    // A kernel without filters answers EINVAL; any other refusal comes from a filter.
    let is_refused = mode == -1 && Errno::last() != Errno::EINVAL;
    mode == 2 || is_refused
}

/// Runs `body` if `test` skips an instruction, else the instructions after `body`.
fn branch(test: libc::sock_filter, body: Vec<libc::sock_filter>) -> Vec<libc::sock_filter> {
    // A conditional jump reaches 255 instructions, an unconditional jump all.
    let over = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let over = instruction(libc::BPF_JMP | libc::BPF_JA, over, 0, 0);
    [vec![test, over], body].concat()
}

/// The number of a call, and the rules for the call.
type Numbered<'a> = (u32, Vec<&'a Rule>);

/// Searches by halves. The kernel compiles the program at the installation and runs it for each
/// number, to remember the calls that are always allowed: a list of 70 rules took 100 us of the
/// start of a role.
fn tree(calls: &[Numbered<'_>], otherwise: Answer) -> Vec<libc::sock_filter> {
    if calls.len() <= LEAF {
        return leaf(calls, otherwise);
    }
    let (low, high) = calls.split_at(calls.len() / 2);
    let is_high = jump(libc::BPF_JGE, high[0].0, 0, 1);
    let mut both = branch(is_high, tree(low, otherwise));
    both.extend(tree(high, otherwise));
    both
}

/// Compares the number with each call in order.
fn leaf(calls: &[Numbered<'_>], otherwise: Answer) -> Vec<libc::sock_filter> {
    let mut leaf = vec![];
    for (number, rules) in calls {
        let body = body(rules, otherwise);
        let len = u8::try_from(body.len()).expect("a call has few rules");
        leaf.push(jump(libc::BPF_JEQ, *number, 0, len));
        leaf.extend(body);
    }
    leaf.push(answer(otherwise));
    leaf
}

/// The rules of a call, in order.
fn body(rules: &[&Rule], otherwise: Answer) -> Vec<libc::sock_filter> {
    let mut body = vec![];
    let mut loaded = None;
    for rule in rules {
        let (argument, test) = match rule.test {
            Test::Always => {
                body.push(answer(rule.answer));
                return body;
            }
            Test::AnyBit { argument, mask } => {
                let test = jump(libc::BPF_JSET, mask, 0, 1);
                (argument, test)
            }
            Test::Equal { argument, value } => {
                let test = jump(libc::BPF_JEQ, value, 0, 1);
                (argument, test)
            }
        };
        if loaded.replace(argument) != Some(argument) {
            let low = if cfg!(target_endian = "big") { 4 } else { 0 };
            let at = ARGUMENTS_AT + u32::from(argument) * 8 + low;
            body.push(load(at));
        }
        body.extend([test, answer(rule.answer)]);
    }
    body.push(answer(otherwise));
    body
}

/// `seccomp(2)`.
fn set_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> nix::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let header = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the header names `len` instructions, which live through the call; the kernel only
    // reads the instructions.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const header,
        )
    };
    Errno::result(result).map(drop)
}

fn load(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0)
}

/// Compares the accumulator with `value`; skips `yes` or `no` instructions.
fn jump(test: u32, value: u32, yes: u8, no: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | test | libc::BPF_K, value, yes, no)
}

fn answer(answer: Answer) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, answer.value(), 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer of the kernel, by the kernel's rules for BPF programs (`bpf_prog_run` of
    /// `seccomp_data`). Panics if the kernel would refuse the program: for a jump out of the
    /// program, an unknown instruction, an end without an answer.
    fn run(filter: &Filter<'_>, arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [number, arch, 0, 0].map(u32::to_ne_bytes).concat();
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (program, mut at, mut accumulator) = (filter.program(), 0, 0);
        loop {
            let it = program[at];
            at += 1;
            let test = |holds: bool| usize::from(if holds { it.jt } else { it.jf });
            match u32::from(it.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    let from = it.k as usize;
                    accumulator =
                        u32::from_ne_bytes(data[from..from + 4].try_into().expect("four bytes"));
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += test(accumulator == it.k);
                }
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => {
                    at += test(accumulator >= it.k);
                }
                code if code == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => {
                    at += test(accumulator & it.k != 0);
                }
                code if code == libc::BPF_JMP | libc::BPF_JA => at += it.k as usize,
                code if code == libc::BPF_RET | libc::BPF_K => return it.k,
                code => panic!("unknown instruction {code:#x} at {}", at - 1),
            }
        }
    }

    const ONE: Call = Call::with_compat(1, 4, 5);
    const TWO: Call = Call::with_compat(2, 6, 7);
    const EPERM: Answer = Answer::Errno(Errno::EPERM);
    const RULES: &[Rule] = &[
        Rule {
            call: ONE,
            test: Test::AnyBit {
                argument: 1,
                mask: 0x30,
            },
            answer: EPERM,
        },
        Rule {
            call: TWO,
            test: Test::Equal {
                argument: 5,
                value: 8,
            },
            answer: Answer::Allow,
        },
        Rule::always(TWO, Answer::KillProcess),
    ];

    fn args(index: usize, value: u64) -> [u64; 6] {
        let mut all = [!0 << 32; 6];
        all[index] |= value;
        all
    }

    #[test]
    fn the_first_rule_that_applies_answers() {
        let filter = Filter {
            rules: RULES,
            otherwise: Answer::Allow,
            others: Others::Answer(Answer::KillProcess),
        };
        let table = [
            (1, args(1, 0x10), EPERM),
            (1, args(1, 0x2f), EPERM),
            (1, args(1, 0x4f), Answer::Allow),
            (1, args(0, 0x10), Answer::Allow),
            (2, args(5, 8), Answer::Allow),
            (2, args(5, 9), Answer::KillProcess),
            (0, args(0, 0), Answer::Allow),
            (3, args(0, 0), Answer::Allow),
        ];
        for (number, arguments, expected) in table {
            assert_eq!(
                run(&filter, NATIVE, number, arguments),
                expected.value(),
                "{number} {arguments:x?}"
            );
        }
        for arch in COMPAT.into_iter().chain([7]) {
            assert_eq!(
                run(&filter, arch, 0, args(0, 0)),
                Answer::KillProcess.value(),
                "architecture {arch:#x}"
            );
        }
    }

    #[test]
    fn other_architectures_may_have_the_same_rules() {
        let filter = Filter {
            rules: RULES,
            otherwise: Answer::Allow,
            others: Others::SameRules,
        };
        let mut table = vec![
            (NATIVE, 1, EPERM),
            (NATIVE, 4, Answer::Allow),
            (7, 1, Answer::Errno(Errno::ENOSYS)),
        ];
        if let Some(arch) = COMPAT {
            let number = ONE.compat.expect("it has one");
            table.extend([
                (arch, number, EPERM),
                (arch, 1, Answer::Allow),
                (arch, 99, Answer::Allow),
            ]);
        }
        for (arch, number, expected) in table {
            assert_eq!(
                run(&filter, arch, number, args(1, 0x30)),
                expected.value(),
                "{arch:#x} {number}"
            );
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn an_x32_call_is_none_of_the_native_ones() {
        let same = Filter {
            rules: RULES,
            otherwise: Answer::Allow,
            others: Others::SameRules,
        };
        let other = Filter {
            others: Others::Answer(EPERM),
            ..same.clone()
        };
        let table = [
            (&same, 1 | X32, args(1, 0x30), EPERM),
            (&same, 1 | X32, args(1, 0), Answer::Allow),
            (&same, 2 | X32, args(5, 9), Answer::KillProcess),
            (&same, 9 | X32, args(0, 0), Answer::Allow),
            (&other, 9 | X32, args(0, 0), EPERM),
            (&other, 2 | X32, args(5, 8), EPERM),
            (&other, 9, args(0, 0), Answer::Allow),
        ];
        for (filter, number, arguments, expected) in table {
            assert_eq!(
                run(filter, NATIVE, number, arguments),
                expected.value(),
                "{:?} {number:#x}",
                filter.others
            );
        }
    }

    #[test]
    fn a_long_filter_is_whole() {
        let rules: Vec<_> = (0..1000)
            .map(|number| Rule::always(Call::native(number), EPERM))
            .collect();
        let filter = Filter {
            rules: &rules,
            otherwise: Answer::Allow,
            others: Others::Answer(EPERM),
        };
        for number in 0..1000 {
            assert_eq!(run(&filter, NATIVE, number, [0; 6]), EPERM.value());
        }
        assert_eq!(run(&filter, NATIVE, 1000, [0; 6]), Answer::Allow.value());
        assert!(filter.program().len() < 4096, "BPF_MAXINSNS");
    }

    #[test]
    fn an_installed_filter_answers_the_thread() {
        let held = std::thread::spawn(|| {
            let rules = [Rule::always(
                Call::native(libc::SYS_getpriority),
                Answer::Errno(Errno::EXDEV),
            )];
            nix::sys::prctl::set_no_new_privs().expect("nothing forbids it");
            let filter = Filter {
                rules: &rules,
                otherwise: Answer::Allow,
                others: Others::Answer(Answer::KillProcess),
            };
            filter.install().expect("no_new_privs is enough");
            // SAFETY: all arguments are numbers.
            let result = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            (is_active(), result, Errno::last())
        });
        assert_eq!(
            held.join().expect("it was not killed"),
            (true, -1, Errno::EXDEV)
        );
    }
}
