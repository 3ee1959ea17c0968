//! Capabilities of the calling thread (`capabilities(7)`): queries, and giving capabilities up.

use nix::errno::Errno;
use std::io;

/// One capability that baofs may need, with its number in `linux/capability.h`.
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

    fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`: two 32-bit words of each set.
const VERSION_3: u32 = 0x2008_0522;
/// Room for every capability there may ever be in version 3.
const LAST: libc::c_ulong = 63;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

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
    let [low, high] = get()?;
    let effective = u64::from(low.effective) | (u64::from(high.effective) << 32);
    Ok(effective & capability.bit() != 0)
}

/// Whether `capability` is in the calling thread's bounding set, which a container runtime limits
/// to the capabilities of the container.
pub fn is_bounding(capability: Capability) -> bool {
    // SAFETY: all arguments are numbers; a number that the kernel does not know is EINVAL.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability as libc::c_ulong, 0, 0, 0) == 1 }
}

/// Gives up every capability but `keep`, for ever (with `no_new_privs`, which the caller sets). The
/// bounding set stays: a process that gains no right from a program does not need the set.
///
/// # Errors
/// When the kernel refuses to lower a set; no reason for a refusal is known.
pub fn keep_only(keep: &[Capability]) -> io::Result<()> {
    let kept = bits(keep);
    // SAFETY: all arguments are numbers.
    unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    set(words(kept).map(|kept| Data {
        effective: kept,
        permitted: kept,
        inheritable: 0,
    }))
}

/// Lowers the effective and the permitted set to what they have of `keep`. The inheritable and the
/// bounding set, which a program that is executed later inherits, stay as they are.
///
/// # Errors
/// As `has`.
pub fn lower_to(keep: &[Capability]) -> io::Result<()> {
    let (mut data, kept) = (get()?, words(bits(keep)));
    for (data, kept) in data.iter_mut().zip(kept) {
        data.effective &= kept;
        data.permitted &= kept;
    }
    set(data)
}

/// Takes `lost` from the bounding set: no program that is executed later can bring it back. Needs
/// `SETPCAP`; where that is missing the set stays as it is.
pub fn forbid(lost: &[Capability]) {
    let lost = bits(lost);
    for number in (0..=LAST).filter(|number| lost & (1 << number) != 0) {
        // SAFETY: all arguments are numbers; an unknown one is EINVAL, a forbidden one EPERM.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    }
}

/// Gives up `lost`, from all sets but the bounding one (see `forbid`); the kernel takes it from the
/// ambient set by itself.
///
/// # Errors
/// As `has`.
pub fn drop(lost: &[Capability]) -> io::Result<()> {
    let (mut data, lost) = (get()?, words(bits(lost)));
    for (data, lost) in data.iter_mut().zip(lost) {
        data.effective &= !lost;
        data.permitted &= !lost;
        data.inheritable &= !lost;
    }
    set(data)
}

fn bits(capabilities: &[Capability]) -> u64 {
    capabilities
        .iter()
        .fold(0, |bits, capability| bits | capability.bit())
}

fn words(bits: u64) -> [u32; 2] {
    [(bits & 0xffff_ffff) as u32, (bits >> 32) as u32]
}

fn get() -> io::Result<[Data; 2]> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: the header names version 3, for which the call writes two `Data`; both live through
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(data)
}

fn set(data: [Data; 2]) -> io::Result<()> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // SAFETY: the header names version 3, for which the call reads two `Data`; both live through
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    Errno::result(result)?;
    Ok(())
}
