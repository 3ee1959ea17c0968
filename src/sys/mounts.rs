//! The list of mounts as the kernel gives it (`proc_pid_mountinfo(5)`), parsed, and what it says of
//! a directory.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The source of every mount of baofs, by which a health check finds the mount.
pub const SOURCE: &str = "baofs";

/// The fields of a line of `/proc/self/mountinfo` that are used.
#[derive(Clone, Copy, Debug)]
pub struct Mount<'a> {
    /// The number of the mount.
    pub id: &'a str,
    /// The number of the parent mount.
    pub parent: &'a str,
    /// `major:minor`, as `stat` gives for the files of the mount.
    pub device: &'a str,
    /// The directory of the filesystem that is mounted; escaped.
    pub root: &'a str,
    /// The mount point; escaped.
    pub point: &'a str,
    /// Whether what is mounted on it appears in other mount namespaces, too
    /// (`mount_namespaces(7)`, `MS_SHARED`).
    pub is_shared: bool,
    /// The type of the filesystem.
    pub kind: &'a str,
    /// The source, a word chosen by the process that mounts.
    pub source: &'a str,
    /// The options of the superblock.
    pub options: &'a str,
}

impl Mount<'_> {
    /// Whether the options contain this word.
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
        let (id, parent, device, root, point) = (
            mount.next()?,
            mount.next()?,
            mount.next()?,
            mount.next()?,
            mount.next()?,
        );
        // After the mount's options stand the optional fields.
        let is_shared = mount.skip(1).any(|field| field.starts_with("shared:"));
        let mut superblock = superblock.split(' ');
        let (kind, source, options) = (superblock.next()?, superblock.next()?, superblock.next()?);
        Some(Mount {
            id,
            parent,
            device,
            root,
            point,
            is_shared,
            kind,
            source,
            options,
        })
    })
}

/// The mounts of this process's namespace, for `mounts`.
///
/// # Errors
/// Without `/proc`.
pub fn mountinfo() -> io::Result<String> {
    fs::read_to_string("/proc/self/mountinfo")
}

/// The mount that an open file is on; `None` for a detached one. Asks nothing of the filesystem,
/// whose server may be dead.
///
/// # Errors
/// Without `/proc`.
pub fn mount_of<'a>(file: BorrowedFd<'_>, mountinfo: &'a str) -> io::Result<Option<Mount<'a>>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(str::trim);
    Ok(mounts(mountinfo).find(|mount| Some(mount.id) == id))
}

/// Whether the mount that `root` is the root of was attached on top of an agent's, which it hides.
/// The kernel attaches one mount at a time: of two agents that mount at one path at the same
/// moment, one and only one finds the other beneath.
///
/// # Errors
/// Without `/proc`.
pub fn hides_agent(root: BorrowedFd<'_>) -> io::Result<bool> {
    let mountinfo = mountinfo()?;
    let Some(own) = mount_of(root, &mountinfo)? else {
        return Ok(false);
    };
    Ok(mounts(&mountinfo).any(|mount| mount.id == own.parent && mount.is_of_agent()))
}

/// What a directory is before something is mounted over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    /// How many names are in it, which the mount hides; 0 when it cannot be read.
    pub entries: usize,
    /// Its own path, where a link is on the way to it.
    pub behind_link: Option<PathBuf>,
    /// Whether the mount appears in other mount namespaces, too.
    pub is_shared: bool,
}

impl Ground {
    /// Looks at the directory at `path`.
    pub fn survey(path: &Path) -> Self {
        let is_shared = || {
            let (dir, mountinfo) = (fs::File::open(path)?, mountinfo()?);
            let mount = mount_of(std::os::fd::AsFd::as_fd(&dir), &mountinfo)?;
            io::Result::Ok(mount.is_some_and(|mount| mount.is_shared))
        };
        Self {
            entries: fs::read_dir(path).map_or(0, Iterator::count),
            behind_link: fs::canonicalize(path).ok().filter(|own| own != path),
            is_shared: is_shared().unwrap_or(false),
        }
    }
}

/// Undoes the kernel's `\040` for a space, and its like for tab, newline and backslash.
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
    use std::os::fd::AsFd;

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
