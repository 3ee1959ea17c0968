//! Capabilities of the calling thread (`capabilities(7)`): queries, and giving capabilities up.

use nix::errno::Errno;
use std::io;

/// A capability that baofs may need, with the number in `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Change a file's owner.
    Chown = 0,
    /// Signal processes of another user.
    Kill = 5,
    /// Change group ids.
    SetGid = 6,
    /// Change user ids.
    SetUid = 7,
    /// Lower the bounding set.
    SetPcap = 8,
    /// Mount.
    SysAdmin = 21,
    /// Read the kernel's log.
    Syslog = 34,
    /// Observe performance (Linux 5.8).
    Perfmon = 38,
    /// Load BPF programs (Linux 5.8).
    Bpf = 39,
}

impl Capability {
    /// The name for Docker's `--cap-add`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chown => "CHOWN",
            Self::Kill => "KILL",
            Self::SetGid => "SETGID",
            Self::SetUid => "SETUID",
            Self::SetPcap => "SETPCAP",
            Self::SysAdmin => "SYS_ADMIN",
            Self::Syslog => "SYSLOG",
            Self::Perfmon => "PERFMON",
            Self::Bpf => "BPF",
        }
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`: two 32-bit words of each set.
const VERSION_3: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`: the version, and 0 for the calling thread.
const HEADER: [u32; 2] = [VERSION_3, 0];

/// `struct __user_cap_data_struct`; the first of two holds the low words.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Whether the calling thread has `capability` in its effective set.
///
/// # Errors
/// When the kernel does not know version 3 of the call (before 2.6.26).
pub fn has(capability: Capability) -> io::Result<bool> {
    let number = capability as usize;
    let word = get()?[number / 32].effective;
    Ok(word >> (number % 32) & 1 == 1)
}

/// Whether `capability` is in the calling thread's bounding set, which a container runtime limits
/// to the capabilities of the container.
pub fn is_bounding(capability: Capability) -> bool {
    let number = capability as libc::c_ulong;
    // SAFETY: all arguments are numbers; an unknown number is EINVAL.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) == 1 }
}

/// Gives up every capability but `keep`, for ever (with `no_new_privs`, which the caller sets). The
/// bounding set stays, because a process with `no_new_privs` gains no right from a program.
///
/// # Errors
/// When the kernel refuses to lower a set; no reason for a refusal is known.
pub fn keep_only(keep: &[Capability]) -> io::Result<()> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    // SAFETY: all arguments are numbers.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0) };
    set(words(keep).map(|kept| Data {
        effective: kept,
        permitted: kept,
        inheritable: 0,
    }))
}

/// Removes all capabilities but `keep` from the effective and the permitted set. The inheritable
/// and the bounding set, which a program inherits on exec, stay unchanged.
///
/// # Errors
/// Same as `has`.
pub fn lower_to(keep: &[Capability]) -> io::Result<()> {
    let mut data = get()?;
    let kept = words(keep);
    for (data, kept) in data.iter_mut().zip(kept) {
        data.effective &= kept;
        data.permitted &= kept;
    }
    set(data)
}

/// Removes `lost` from the bounding set: no program on a later exec can bring a lost capability
/// back. Without `SETPCAP` the set stays unchanged.
pub fn forbid(lost: &[Capability]) {
    for capability in lost {
        let number = *capability as libc::c_ulong;
        // SAFETY: all arguments are numbers; an unknown number is EINVAL, a missing right EPERM.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    }
}

/// Removes `lost` from all sets but the bounding set (see `forbid`); the kernel then removes `lost`
/// from the ambient set, too.
///
/// # Errors
/// Same as `has`.
pub fn drop(lost: &[Capability]) -> io::Result<()> {
    let mut data = get()?;
    let lost = words(lost);
    for (data, lost) in data.iter_mut().zip(lost) {
        data.effective &= !lost;
        data.permitted &= !lost;
        data.inheritable &= !lost;
    }
    set(data)
}

/// The low and the high word of a set.
fn words(capabilities: &[Capability]) -> [u32; 2] {
    let mut words = [0; 2];
    for capability in capabilities {
        let number = *capability as usize;
        words[number / 32] |= 1 << (number % 32);
    }
    words
}

fn get() -> io::Result<[Data; 2]> {
    let mut header = HEADER;
    let mut data = [Data::default(); 2];
    // SAFETY: the header names version 3, for which the call writes two `Data`; both live through
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(data)
}

fn set(data: [Data; 2]) -> io::Result<()> {
    let mut header = HEADER;
    // SAFETY: the header names version 3, for which the call reads two `Data`; both live through
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) };
    Errno::result(result)?;
    Ok(())
}
