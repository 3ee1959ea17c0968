//! The list of mounts as the kernel gives it (`proc_pid_mountinfo(5)`), parsed.

use std::path::PathBuf;

/// The source that every mount of baofs shows there, by which a health check finds it.
pub const SOURCE: &str = "baofs";

/// What is used of a line of `/proc/self/mountinfo`.
#[derive(Clone, Copy, Debug)]
pub struct Mount<'a> {
    /// `major:minor`, as `stat` gives it for what is mounted.
    pub device: &'a str,
    /// The directory of the filesystem that is mounted; escaped.
    pub root: &'a str,
    /// Where it is mounted; escaped.
    pub point: &'a str,
    /// The filesystem's type.
    pub kind: &'a str,
    /// Where it comes from; a word that is up to who mounts.
    pub source: &'a str,
    /// The options of its superblock.
    pub options: &'a str,
}

impl Mount<'_> {
    /// Whether this is one of its options, word by word.
    #[must_use]
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|o| o == option)
    }
}

/// The mounts, in the order of the text; a line that is none is left out.
pub fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, superblock) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (device, root, point) = (mount.next()?, mount.next()?, mount.next()?);
        let mut superblock = superblock.split(' ');
        let (kind, source, options) = (superblock.next()?, superblock.next()?, superblock.next()?);
        Some(Mount { device, root, point, kind, source, options })
    })
}

/// Undoes the kernel's `\040` for a space, and its like for tab, newline and backslash.
#[must_use]
pub fn unescape(text: &str) -> PathBuf {
    let plain = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    PathBuf::from(plain.replace("\\134", "\\"))
}
