//! The proof that a directory is in memory, as a pure function of files of `/proc`. Invariant: only
//! this module makes a `MemoryBacked`, and only for a tmpfs that has a size limit and whose pages
//! reach no swap (or may reach a swap because of `--allow-swap`).

use super::refusal::RefusalCause;
use crate::config::plan::Swap;
use crate::names::SwapExposure;
use crate::sys::mounts::{Mount, mounts, unescape};
use std::path::Path;

/// The witness that the bytes of a directory stay in memory.
#[derive(Debug)]
pub struct MemoryBacked {
    /// The reason why a swap cannot be excluded, if `Swap::Allow` permits a swap.
    pub(super) swap: Option<SwapExposure>,
    /// Whether later checks look for a swap. False for `noswap` (no swap can reach the pages) and
    /// for `Swap::Allow`.
    watched: bool,
}

impl MemoryBacked {
    /// Repeats the check for a swap, because the machine may turn a swap on at any time. Returns
    /// the reason why a swap cannot be excluded any more.
    pub(super) fn look_again(
        &self,
        read: &dyn Fn(&Path) -> Option<String>,
    ) -> Option<SwapExposure> {
        if self.watched { swap_reach(read) } else { None }
    }
}

/// Checks the filesystem of a directory by its mount, `None` for a mount that the kernel does not
/// list.
///
/// `denied` is the error of the attempt to mount a tmpfs. `read` returns the text of a file of
/// `/proc` or `/sys`, or `None` for a missing file.
///
/// # Errors
/// The first failed check.
pub(super) fn prove(
    mount: Option<Mount<'_>>,
    swap: Swap,
    denied: &str,
    read: &dyn Fn(&Path) -> Option<String>,
) -> Result<MemoryBacked, RefusalCause> {
    let not_memory = |kind| RefusalCause::NotMemory {
        kind,
        denied: denied.to_owned(),
    };
    let Some(mount) = mount else {
        return Err(not_memory(None));
    };
    match mount.kind {
        "tmpfs" => {}
        "ramfs" => return Err(RefusalCause::Unlimited("a ramfs has no limit")),
        other => return Err(not_memory(Some(other.to_owned()))),
    }
    // The kernel shows no size for the default (half of the memory), and size=0 for no limit.
    if mount.has_option("size=0k") {
        return Err(RefusalCause::Unlimited("the tmpfs is mounted with size=0"));
    }
    let noswap = mount.has_option("noswap");
    let reach = if noswap { None } else { swap_reach(read) };
    match (reach, swap) {
        (Some(why), Swap::Refuse) => Err(RefusalCause::Swappable(why)),
        (reach, Swap::Refuse | Swap::Allow) => Ok(MemoryBacked {
            swap: reach,
            watched: !noswap && swap == Swap::Refuse,
        }),
    }
}

/// The kind of filesystem under a directory, which tells whether another agent may serve there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DirectoryKind {
    /// A tmpfs that an agent mounted at exactly this path.
    OfAgent,
    /// Any other tmpfs: an agent may write there.
    Tmpfs,
    /// No tmpfs: no agent writes there.
    Other,
}

impl DirectoryKind {
    /// The kind of the directory `path`, which is on `mount`.
    pub(super) fn of(mount: Option<Mount<'_>>, path: &Path) -> Self {
        match mount {
            Some(mount) if mount.kind != "tmpfs" => Self::Other,
            Some(mount) if mount.is_of_agent() && unescape(mount.point) == path => Self::OfAgent,
            Some(_) => Self::Tmpfs,
            None => Self::Other,
        }
    }
}

/// The reason why a swap cannot be excluded for pages of this process.
fn swap_reach(read: &dyn Fn(&Path) -> Option<String>) -> Option<SwapExposure> {
    let Some(swaps) = read(Path::new("/proc/swaps")) else {
        return Some(SwapExposure::Unknown);
    };
    let mut rows = swaps.lines().skip(1);
    if rows.all(|row| row.trim().is_empty()) {
        return None;
    }
    let text = |file: &str| read(Path::new(file)).unwrap_or_default();
    let mountinfo = text("/proc/self/mountinfo");
    let cgroups = text("/proc/self/cgroup");
    if is_swap_forbidden(&mountinfo, &cgroups, read) {
        return None;
    }
    let is_v1 = cgroups.lines().any(|line| {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        controllers.split(',').any(|name| name == "memory")
    });
    Some(if is_v1 {
        SwapExposure::CgroupV1
    } else {
        SwapExposure::Reachable
    })
}

/// Whether `memory.swap.max` is 0 for our cgroup (v2) or an ancestor that is mounted here: a limit
/// of v2 holds for all descendants.
fn is_swap_forbidden(
    mountinfo: &str,
    cgroups: &str,
    read: &dyn Fn(&Path) -> Option<String>,
) -> bool {
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    // A path with `..` is outside of our cgroup namespace, so not mounted here.
    let Some(own) = own.filter(|own| !own.contains("/..")) else {
        return false;
    };
    for mount in mounts(mountinfo).filter(|mount| mount.kind == "cgroup2") {
        let root = unescape(mount.root);
        let Ok(below) = Path::new(own).strip_prefix(root) else {
            continue;
        };
        let point = unescape(mount.point);
        for dir in below.ancestors() {
            let file = point.join(dir).join("memory.swap.max");
            let limit = read(&file);
            if limit.unwrap_or_default().trim() == "0" {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
    const SWAP: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-1                               partition\t8388604\t0\t-2\n";
    const V2: &str = "29 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot";
    const V2_HOST: &str =
        "29 23 0:26 /system.slice/docker-1f.scope /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw";
    const V2_SPACE: &str = "29 23 0:26 / /mnt/c\\040g\\134 rw - cgroup2 cgroup rw";
    const HYBRID: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    const V1_CGROUP: &str = "4:memory:/docker/1f\n1:name=systemd:/docker/1f\n0::/\n";

    /// The exposure to an allowed swap, or the refusal.
    type Verdict = Result<Option<SwapExposure>, RefusalCause>;

    /// Compares texts, because some causes hold an `io::Error`, which has no `PartialEq`.
    fn assert_same(found: &Verdict, expected: &Verdict, row: &str) {
        assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{row}");
    }

    /// The mount with this device number.
    fn on<'a>(device: &str, mountinfo: &'a str) -> Option<Mount<'a>> {
        mounts(mountinfo).find(|mount| mount.device == device)
    }

    /// Device 0:63 with the rest of its mountinfo line, another line, `/proc/swaps`,
    /// `/proc/self/cgroup`, further files.
    fn verdict(
        mount: &str,
        other: &str,
        swaps: Option<&str>,
        cgroup: &str,
        files: &[(&str, &str)],
        swap: Swap,
    ) -> Verdict {
        let root = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        let mountinfo = format!("{root}\n{mount}\n{other}\n");
        let read = |path: &Path| match path.to_str() {
            Some("/proc/self/mountinfo") => Some(mountinfo.clone()),
            Some("/proc/swaps") => swaps.map(str::to_owned),
            Some("/proc/self/cgroup") => Some(cgroup.to_owned()),
            _ => files
                .iter()
                .find(|(name, _)| Path::new(name) == path)
                .map(|(_, text)| (*text).to_owned()),
        };
        prove(on("0:63", &mountinfo), swap, "denied", &read).map(|memory| memory.swap)
    }

    #[test]
    fn only_a_limited_tmpfs_is_memory() {
        let not_memory = |kind: Option<&str>| {
            Err(RefusalCause::NotMemory {
                kind: kind.map(str::to_owned),
                denied: "denied".to_owned(),
            })
        };
        let not = |kind: &str| not_memory(Some(kind));
        let table: &[(&str, Verdict)] = &[
            (
                "50 27 0:63 / /app/secrets rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,size=4096k,mode=755",
                Ok(None),
            ),
            // A subdirectory of a tmpfs, and a bind mount of a subdirectory.
            (
                "50 27 0:63 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw",
                Ok(None),
            ),
            (
                "50 27 0:63 /a\\040b /app/sec\\040rets rw master:9 - tmpfs tmpfs rw,size=20480k,uid=1000",
                Ok(None),
            ),
            (
                "50 27 0:63 / /x rw shared:1 master:2 propagate_from:3 - tmpfs with\\040space rw,size=4k",
                Ok(None),
            ),
            (
                "50 27 0:63 / /x rw - tmpfs tmpfs rw,size=0k",
                Err(RefusalCause::Unlimited("the tmpfs is mounted with size=0")),
            ),
            (
                "50 27 0:63 / /x rw - ramfs none rw",
                Err(RefusalCause::Unlimited("a ramfs has no limit")),
            ),
            (
                "50 27 0:63 / /x rw - devtmpfs devtmpfs rw,size=8k",
                not("devtmpfs"),
            ),
            (
                "50 27 0:63 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/tmpfs",
                not("overlay"),
            ),
            (
                "50 27 0:63 / /x rw - fuse.sshfs tmpfs rw,size=4k",
                not("fuse.sshfs"),
            ),
            // A line of another filesystem, a truncated line, no line.
            (
                "50 27 0:64 / /x rw - tmpfs tmpfs rw,size=4k",
                not_memory(None),
            ),
            ("50 27 0:63 / /x rw - tmpfs", not_memory(None)),
            ("", not_memory(None)),
        ];
        for (mount, expected) in table {
            assert_same(
                &verdict(mount, V2, Some(HEADER), "0::/\n", &[], Swap::Refuse),
                expected,
                mount,
            );
        }
    }

    #[test]
    fn a_swap_must_be_out_of_reach() {
        use SwapExposure::{CgroupV1, Reachable, Unknown};
        const OWN: &str = "/sys/fs/cgroup/memory.swap.max";
        const A: &str = "/sys/fs/cgroup/a/memory.swap.max";
        const AB: &str = "/sys/fs/cgroup/a/b/memory.swap.max";
        type Row<'a> = (
            &'a str,
            Option<&'a str>,
            &'a str,
            &'a [(&'a str, &'a str)],
            Option<SwapExposure>,
        );
        let table: &[Row<'_>] = &[
            (V2, Some(HEADER), "0::/\n", &[], None),
            (V2, Some(""), "0::/\n", &[], None),
            (V2, None, "0::/\n", &[(OWN, "0\n")], Some(Unknown)),
            (V2, Some(SWAP), "0::/\n", &[], Some(Reachable)),
            (V2, Some(SWAP), "0::/\n", &[(OWN, "max\n")], Some(Reachable)),
            (
                V2,
                Some(SWAP),
                "0::/\n",
                &[(OWN, "4096\n")],
                Some(Reachable),
            ),
            (V2, Some(SWAP), "0::/\n", &[(OWN, "0\n")], None),
            (V2, Some(SWAP), "0::/a/b\n", &[(AB, "0\n")], None),
            (
                V2,
                Some(SWAP),
                "0::/a/b\n",
                &[(AB, "max\n"), (A, "0\n")],
                None,
            ),
            (V2, Some(SWAP), "0::/a\n", &[(AB, "0\n")], Some(Reachable)),
            (
                V2,
                Some(SWAP),
                "0::/../a\n",
                &[(OWN, "0\n"), (A, "0\n")],
                Some(Reachable),
            ),
            (
                V2_HOST,
                Some(SWAP),
                "0::/system.slice/docker-1f.scope\n",
                &[(OWN, "0\n")],
                None,
            ),
            (
                V2_HOST,
                Some(SWAP),
                "0::/system.slice/docker-2e.scope\n",
                &[(OWN, "0\n")],
                Some(Reachable),
            ),
            (
                V2_SPACE,
                Some(SWAP),
                "0::/\n",
                &[("/mnt/c g\\/memory.swap.max", "0\n")],
                None,
            ),
            ("", Some(SWAP), "0::/\n", &[(OWN, "0\n")], Some(Reachable)),
            ("", Some(SWAP), "", &[], Some(Reachable)),
            // With v1, no limit is a proof.
            (HYBRID, Some(SWAP), V1_CGROUP, &[], Some(CgroupV1)),
            (HYBRID, Some(HEADER), V1_CGROUP, &[], None),
            (HYBRID, Some(SWAP), "7:cpu,memory:/\n", &[], Some(CgroupV1)),
        ];
        let mount = "50 27 0:63 / /app/secrets rw - tmpfs tmpfs rw,size=4096k";
        for (other, swaps, cgroup, files, expected) in table {
            let refused = verdict(mount, other, *swaps, cgroup, files, Swap::Refuse);
            let row = format!("{other} {swaps:?} {cgroup} {files:?}");
            assert_same(
                &refused,
                &expected.map_or(Ok(None), |why| Err(RefusalCause::Swappable(why))),
                &row,
            );
            // Allowed, and reported.
            assert_same(
                &verdict(mount, other, *swaps, cgroup, files, Swap::Allow),
                &Ok(*expected),
                &row,
            );
        }
        let noswap = "50 27 0:63 / /app/secrets rw - tmpfs tmpfs rw,size=4096k,mode=755,noswap";
        assert_same(
            &verdict(noswap, V2, Some(SWAP), "0::/\n", &[], Swap::Refuse),
            &Ok(None),
            noswap,
        );
        let elsewhere = "50 27 0:63 / /x rw,noswap - tmpfs noswap rw";
        assert_same(
            &verdict(elsewhere, V2, None, "", &[], Swap::Refuse),
            &Err(RefusalCause::Swappable(Unknown)),
            elsewhere,
        );
    }

    #[test]
    fn a_swap_that_is_turned_on_later_is_found_and_missed_again() {
        let mount = |options: &str| {
            format!("50 27 0:63 / /app/secrets rw - tmpfs tmpfs rw,size=4096k{options}\n")
        };
        // Options of the mount, the plan's setting, and the result of a later check with a swap.
        for (options, swap, found) in [
            ("", Swap::Refuse, Some(SwapExposure::Reachable)),
            ("", Swap::Allow, None),
            (",noswap", Swap::Refuse, None),
        ] {
            let reader = |swaps: &'static str| {
                let mountinfo = mount(options);
                move |path: &Path| match path.to_str() {
                    Some("/proc/self/mountinfo") => Some(mountinfo.clone()),
                    Some("/proc/swaps") => Some(swaps.to_owned()),
                    _ => None,
                }
            };
            let mountinfo = mount(options);
            let memory = prove(on("0:63", &mountinfo), swap, "denied", &reader(HEADER))
                .expect("no swap yet");
            let looks = [HEADER, SWAP, HEADER].map(|swaps| memory.look_again(&reader(swaps)));
            assert_eq!(looks, [None, found, None], "{options} {swap:?}");
        }
    }

    #[test]
    fn a_mount_of_an_agent_is_told_from_a_given_one() {
        let mountinfo = "50 27 0:63 / /a\\040b rw - tmpfs baofs rw,size=4k\n51 27 0:64 / /c rw - tmpfs tmpfs rw\n52 27 254:0 / /d rw - ext4 baofs rw\n";
        for (device, path, expected) in [
            ("0:63", "/a b", DirectoryKind::OfAgent),
            ("0:63", "/a b/c", DirectoryKind::Tmpfs),
            ("0:64", "/c", DirectoryKind::Tmpfs),
            ("254:0", "/d", DirectoryKind::Other),
            ("0:99", "/a b", DirectoryKind::Other),
        ] {
            assert_eq!(
                DirectoryKind::of(on(device, mountinfo), Path::new(path)),
                expected,
                "{device} {path}"
            );
        }
    }
}
