//! A process that is made to do what somebody else wants, as one that was taken over: its own
//! thread makes the system calls, behind its own walls. For `x86_64`. Invariant: what is taken is
//! given back as it was.

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// Bytes of the page for arguments that are kept free before each of them.
const ROOM: u64 = 256;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The main thread of a process, stopped.
#[derive(Debug)]
pub(crate) struct Taken {
    pid: Pid,
    /// What it goes on with.
    before: libc::user_regs_struct,
    /// Where it waited: behind an instruction `syscall`.
    entry: u64,
    memory: File,
    /// A page of its own for arguments.
    page: u64,
}

/// An argument of a system call.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    /// A number.
    Number(i64),
    /// The address of these bytes.
    Bytes(Vec<u8>),
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<i32> for Argument {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for Argument {
    /// A C string.
    fn from(text: &str) -> Self {
        Self::Bytes([text.as_bytes(), b"\0"].concat())
    }
}

impl From<&[u8]> for Argument {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl Taken {
    /// Takes over a process that waits in a system call. The caller must be root.
    pub(crate) fn over(pid: Pid) -> Self {
        ptrace::attach(pid).expect("root may trace it");
        assert!(
            matches!(waitpid(pid, None), Ok(WaitStatus::Stopped(..))),
            "it stops"
        );
        let before = ptrace::getregs(pid).expect("it is stopped");
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .expect("root opens it");
        let mut taken = Self {
            pid,
            before,
            entry: before.rip - 2,
            memory,
            page: 0,
        };
        let mut found = [0; 2];
        taken
            .memory
            .read_exact_at(&mut found, taken.entry)
            .expect("its code can be read");
        assert_eq!(found, SYSCALL, "it waits in a system call");
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = taken.call(
            libc::SYS_mmap,
            &[
                0.into(),
                4096.into(),
                (libc::PROT_READ | libc::PROT_WRITE).into(),
                anonymous.into(),
                (-1).into(),
                0.into(),
            ],
        );
        taken.page = page.expect("a page can be had").cast_unsigned();
        taken
    }

    /// Makes it call; its result.
    pub(crate) fn call(
        &mut self,
        number: libc::c_long,
        arguments: &[Argument],
    ) -> Result<i64, Errno> {
        let mut words = [0; 6];
        for (at, (word, argument)) in (self.page..)
            .step_by(usize::try_from(ROOM).expect("it is small"))
            .zip(words.iter_mut().zip(arguments))
        {
            *word = match argument {
                Argument::Number(number) => number.cast_unsigned(),
                Argument::Bytes(bytes) => {
                    self.memory
                        .write_all_at(bytes, at)
                        .expect("its page is written");
                    at
                }
            };
        }
        let [rdi, rsi, rdx, r10, r8, r9] = words;
        // What it waits in is not begun anew now.
        let regs = libc::user_regs_struct {
            rax: number.cast_unsigned(),
            orig_rax: u64::MAX,
            rip: self.entry,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.before
        };
        ptrace::setregs(self.pid, regs).expect("it is stopped");
        ptrace::step(self.pid, None).expect("it is stopped");
        assert!(
            matches!(waitpid(self.pid, None), Ok(WaitStatus::Stopped(..))),
            "it stops again"
        );
        let result = ptrace::getregs(self.pid)
            .expect("it is stopped")
            .rax
            .cast_signed();
        match i32::try_from(-result) {
            Ok(errno @ 1..4096) => Err(Errno::from_raw(errno)),
            Ok(_) | Err(_) => Ok(result),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let page = self.page.cast_signed();
        let _ = self.call(libc::SYS_munmap, &[page.into(), 4096.into()]);
        let _ = ptrace::setregs(self.pid, self.before);
        let _ = ptrace::detach(self.pid, None);
    }
}
