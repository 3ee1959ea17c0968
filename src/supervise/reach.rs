//! The directories of the files read by a running `fetch`. Invariant: no rule is made for `/`.
//!
//! A Landlock rule holds for an inode, and credentials are replaced by a rename of the file or of a
//! link to the file (Kubernetes: `role_id` links to `..data/role_id`, and `..data` to a new directory
//! after each change). So the rule is made for the directory in which the rename takes place.

use crate::sys::file::is_mounted;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The limit of links in a path, as in the kernel (`path_resolution(7)`).
const LINKS: usize = 40;

/// The rules for reading a file, now and after a replacement.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Directories, mounted files, or files in `/`; never a link.
    pub(super) places: BTreeSet<PathBuf>,
    /// The reason why the file may become unreadable.
    pub(super) weakness: Option<&'static str>,
}

/// The directory of `file`, and of each link on the way to a neighbour of the link.
///
/// For a mounted file (Docker's secrets, `/etc/hosts` in a container) the place is the file, because
/// nobody can rename a mount point. For a missing path, the place is the last existing directory on
/// the way.
pub(super) fn of(file: &Path) -> Reach {
    let Walk {
        real,
        links,
        missing,
    } = walk(file);
    let mut places: BTreeSet<_> = links
        .into_iter()
        .filter(|dir| !is_root(dir) && real.starts_with(dir))
        .collect();
    let mut weakness = None;
    if missing && is_root(&real) {
        weakness = Some("neither the file nor a directory above it exists, except `/`");
    } else if real.is_dir() && !missing {
        weakness = Some("the path is a directory");
    } else if missing || is_mounted(&real) {
        places.insert(real);
    } else {
        match real.parent() {
            Some(dir) if !is_root(dir) => places.insert(dir.to_owned()),
            _ => {
                weakness = Some("the file is in `/`: a file that replaces it cannot be read");
                places.insert(real)
            }
        };
    }
    Reach { places, weakness }
}

/// The directory of the name `file`; `None` for `/` or a missing directory.
pub(super) fn directory_of(file: &Path) -> Option<PathBuf> {
    let Walk { real, missing, .. } = walk(file.parent()?);
    if missing || is_root(&real) {
        None
    } else {
        Some(real)
    }
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

/// A path, resolved as by the kernel.
struct Walk {
    /// The path without links, or the last existing directory on the way.
    real: PathBuf,
    /// The directories of the links on the way.
    links: Vec<PathBuf>,
    /// Whether the path does not exist, or cannot be followed.
    missing: bool,
}

fn walk(path: &Path) -> Walk {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // The last component comes first.
    let mut left: Vec<_> = names(&path).rev().collect();
    let mut walk = Walk {
        real: PathBuf::from("/"),
        links: vec![],
        missing: false,
    };
    while let Some(name) = left.pop() {
        if name == ".." {
            walk.real.pop();
            continue;
        }
        let next = walk.real.join(&name);
        match target(&next) {
            Ok(None) => walk.real = next,
            Ok(Some(target)) if walk.links.len() < LINKS => {
                walk.links.push(walk.real.clone());
                if target.is_absolute() {
                    walk.real = PathBuf::from("/");
                }
                left.extend(names(&target).rev());
            }
            Ok(Some(_)) | Err(_) => {
                walk.missing = true;
                return walk;
            }
        }
    }
    walk
}

/// The components of a path without the root and `.`.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
}

/// The target of a link; `None` for another file.
fn target(path: &Path) -> io::Result<Option<PathBuf>> {
    if fs::symlink_metadata(path)?.is_symlink() {
        fs::read_link(path).map(Some)
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Files `FILE`, links `LINK -> TARGET`, below a directory.
    fn tree(entries: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for entry in entries {
            let (name, target) = entry
                .split_once(" -> ")
                .map_or((*entry, None), |(name, target)| (name, Some(target)));
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("directories are made");
            match target {
                Some(target) => symlink(
                    target.replace("ROOT", &dir.path().display().to_string()),
                    path,
                )
                .expect("a link is made"),
                None => fs::write(path, "").expect("a file is written"),
            }
        }
        dir
    }

    #[test]
    fn places_are_the_directories_of_the_file_and_of_changeable_links() {
        let table: &[(&[&str], &str, &[&str])] = &[
            (&["a/role_id"], "a/role_id", &["a"]),
            (&["a/b/role_id"], "a/./b/../b/role_id", &["a/b"]),
            // Kubernetes.
            (
                &[
                    "a/role_id -> ..data/role_id",
                    "a/..data -> ..1",
                    "a/..1/role_id",
                ],
                "a/role_id",
                &["a", "a/..1"],
            ),
            (
                &[
                    "a/role_id -> ..data/role_id",
                    "a/..data -> ..1",
                    "a/..1/role_id",
                ],
                "a/..data/role_id",
                &["a", "a/..1"],
            ),
            // A link in place of a directory, beside the target and elsewhere.
            (
                &["a/now -> v1", "a/v1/x/role_id"],
                "a/now/x/role_id",
                &["a", "a/v1/x"],
            ),
            (
                &["var/run -> ROOT/run", "run/role_id"],
                "var/run/role_id",
                &["run"],
            ),
            (
                &[
                    "a/role_id -> ROOT/b/now/role_id",
                    "b/now -> v1",
                    "b/v1/role_id",
                ],
                "a/role_id",
                &["b", "b/v1"],
            ),
            // Missing files and directories.
            (&["a/x"], "a/role_id", &["a"]),
            (&["a/x"], "a/b/c/role_id", &["a"]),
            (
                &["a/role_id -> ..data/role_id", "a/..data -> ..1"],
                "a/role_id",
                &["a"],
            ),
            (&["a/role_id -> role_id"], "a/role_id", &["a"]),
        ];
        for (entries, path, expected) in table {
            let dir = tree(entries);
            let root = dir.path().canonicalize().expect("it exists");
            let reach = of(&root.join(path));
            let expected: BTreeSet<_> = expected.iter().map(|place| root.join(place)).collect();
            assert_eq!(
                reach,
                Reach {
                    places: expected,
                    weakness: None
                },
                "{entries:?}: {path}"
            );
        }
    }

    #[test]
    fn the_root_is_never_a_place() {
        for path in [
            "/proc/nothing-here",
            "/nothing-here/at/all",
            "/",
            "/../..",
            "/proc/self/root",
            "/etc",
        ] {
            assert!(
                !of(Path::new(path)).places.contains(Path::new("/")),
                "{path}"
            );
        }
        for path in ["/nothing-here/at/all", "/", "/etc", "/proc/self/root"] {
            let reach = of(Path::new(path));
            assert!(
                reach.places.is_empty() && reach.weakness.is_some(),
                "{path}: {reach:?}"
            );
        }
        assert_eq!(directory_of(Path::new("/role_id")), None);
        assert_eq!(directory_of(Path::new("/nothing-here/role_id")), None);
        let dir = tree(&["a/role_id -> ../b/role_id", "b/role_id"]);
        let root = dir.path().canonicalize().expect("it exists");
        assert_eq!(directory_of(&root.join("a/role_id")), Some(root.join("a")));
    }
}
