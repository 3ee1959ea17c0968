//! The kernel's list of mounts (`proc_pid_mountinfo(5)`), parsed, and questions about the mount of
//! a directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The source of every mount of baofs, by which a health check finds the mount.
pub const SOURCE: &str = "baofs";

/// The needed fields of a line of `/proc/self/mountinfo`.
#[derive(Clone, Copy, Debug)]
pub struct Mount<'a> {
    /// The number of the mount.
    pub id: &'a str,
    /// The number of the parent mount.
    pub parent: &'a str,
    /// `major:minor`, as `stat` gives for the files of the mount.
    pub device: &'a str,
    /// The mounted directory of the filesystem; escaped.
    pub root: &'a str,
    /// The mount point; escaped.
    pub point: &'a str,
    /// Whether mounts on this mount appear in other mount namespaces, too (`mount_namespaces(7)`,
    /// `MS_SHARED`).
    pub is_shared: bool,
    /// The type of the filesystem.
    pub kind: &'a str,
    /// The source, a word chosen by the mounting process.
    pub source: &'a str,
    /// The options of the superblock.
    pub options: &'a str,
}

impl Mount<'_> {
    /// Whether the options contain the word `option`.
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|o| o == option)
    }

    /// Whether an agent of baofs mounted the filesystem, judged by type and source.
    pub fn is_of_agent(&self) -> bool {
        self.source == SOURCE && matches!(self.kind, "fuse" | "tmpfs")
    }
}

/// The mounts, in the order of the text; invalid lines are left out.
pub fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, superblock) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let mut superblock = superblock.split(' ');
        Some(Mount {
            id: mount.next()?,
            parent: mount.next()?,
            device: mount.next()?,
            root: mount.next()?,
            point: mount.next()?,
            // The optional fields follow the mount's options.
            is_shared: mount.skip(1).any(|field| field.starts_with("shared:")),
            kind: superblock.next()?,
            source: superblock.next()?,
            options: superblock.next()?,
        })
    })
}

/// The text of `/proc/self/mountinfo`, for `mounts`.
///
/// # Errors
/// Without `/proc`.
pub fn mountinfo() -> io::Result<String> {
    fs::read_to_string("/proc/self/mountinfo")
}

/// The mount of an open file; `None` for a detached mount. Sends no request to the filesystem, so
/// works with a dead server.
///
/// # Errors
/// Same as `mountinfo`.
pub fn mount_of<'a>(file: BorrowedFd<'_>, mountinfo: &'a str) -> io::Result<Option<Mount<'a>>> {
    let number = file.as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(str::trim);
    Ok(mounts(mountinfo).find(|mount| Some(mount.id) == id))
}

/// Whether the mount with the root directory `root` lies on top of another agent's mount and hides
/// the agent. The kernel attaches one mount at a time: if two agents mount at one path at the same
/// moment, exactly one agent finds the other's mount beneath.
///
/// # Errors
/// Same as `mountinfo`.
pub fn hides_agent(root: BorrowedFd<'_>) -> io::Result<bool> {
    let mountinfo = mountinfo()?;
    let Some(own) = mount_of(root, &mountinfo)? else {
        return Ok(false);
    };
    Ok(mounts(&mountinfo).any(|mount| mount.id == own.parent && mount.is_of_agent()))
}

/// The state of a directory before a filesystem is mounted over the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The number of names that the mount hides; 0 for a directory that cannot be read.
    pub entries: usize,
    /// The canonical path, if the configured path leads through a link.
    pub behind_link: Option<PathBuf>,
    /// Whether the mount will appear in other mount namespaces, too.
    pub is_shared: bool,
}

impl Ground {
    /// Examines the directory at `path`.
    pub fn survey(path: &Path) -> Self {
        Self {
            entries: fs::read_dir(path).map_or(0, Iterator::count),
            behind_link: fs::canonicalize(path).ok().filter(|own| own != path),
            is_shared: is_on_shared(path).unwrap_or(false),
        }
    }
}

fn is_on_shared(path: &Path) -> io::Result<bool> {
    let dir = File::open(path)?;
    let mountinfo = mountinfo()?;
    let mount = mount_of(dir.as_fd(), &mountinfo)?;
    Ok(matches!(mount, Some(mount) if mount.is_shared))
}

/// A path without the kernel's escapes for space, tab, newline and backslash (`\040` and so on).
pub fn unescape(text: &str) -> PathBuf {
    let plain = text
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n");
    PathBuf::from(plain.replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_with_and_without_optional_fields() {
        let text = "36 35 98:0 / /app/my\\040secrets ro,nosuid master:1 shared:7 - fuse baofs rw,user_id=0\n\
                    37 36 0:40 /sub /x rw - tmpfs shared:1 rw,size=4k,noswap\nno mount\n38 1 0:41 / /y rw - tmpfs\n";
        let [first, second] = mounts(text).collect::<Vec<_>>()[..] else {
            panic!("two mounts")
        };
        assert_eq!(
            (first.id, first.parent, first.device, first.kind),
            ("36", "35", "98:0", "fuse")
        );
        assert_eq!(unescape(first.point), Path::new("/app/my secrets"));
        assert!(first.is_shared && first.is_of_agent());
        assert!(!second.is_shared && !second.is_of_agent() && second.has_option("noswap"));
        assert_eq!((second.root, second.parent), ("/sub", "36"));
    }

    #[test]
    fn a_file_is_on_the_mount_that_its_path_leads_to() {
        let (proc, root) = (
            fs::File::open("/proc").expect("/proc"),
            fs::File::open("/").expect("/"),
        );
        let text = mountinfo().expect("/proc");
        let kind = |file: &fs::File| {
            mount_of(file.as_fd(), &text)
                .expect("/proc")
                .map(|mount| mount.kind)
        };
        assert_eq!(kind(&proc), Some("proc"));
        assert_ne!(kind(&root), Some("proc"));
        assert!(!hides_agent(root.as_fd()).expect("/proc"));
    }

    #[test]
    fn ground_is_surveyed() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = dir.path().canonicalize().expect("it is there");
        assert_eq!(
            (
                Ground::survey(&own).entries,
                Ground::survey(&own).behind_link
            ),
            (0, None)
        );
        fs::create_dir_all(own.join("a/b/c")).expect("made");
        std::os::unix::fs::symlink("a", own.join("link")).expect("made");
        let ground = Ground::survey(&own.join("link/b"));
        assert_eq!(
            (ground.entries, ground.behind_link),
            (1, Some(own.join("a/b")))
        );
        assert_eq!(
            Ground::survey(&own.join("none")),
            Ground {
                entries: 0,
                behind_link: None,
                is_shared: false
            }
        );
    }
}
