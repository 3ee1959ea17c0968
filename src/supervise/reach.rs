//! Where `fetch` may find the files that it reads while it runs, as directories. Invariant: no rule
//! is made for `/`.
//!
//! A rule of Landlock holds for an inode. Credentials are replaced by rename, and where they are
//! links (Kubernetes: `role_id` to `..data/role_id`, `..data` to a directory that changes) a link
//! is: so the rule is made for the directory in which that happens.

use crate::sys::file::is_mounted;
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// How many links a path may lead through, as in the kernel (`path_resolution(7)`).
const LINKS: usize = 40;

/// What must be readable so that a file is, now and after it was replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Directories (or files that nobody can rename); none is a link.
    pub(super) places: BTreeSet<PathBuf>,
    /// Why the file will not be readable for ever, in words.
    pub(super) weakness: Option<&'static str>,
}

/// Where `file` lies, and where each of the links to it does that leads to a neighbour.
///
/// A file that is a mount of its own (Docker's secrets, `/etc/hosts` in a container) is a place
/// itself: nobody can rename what is mounted. Of a path that does not exist yet the part that
/// exists counts.
pub(super) fn of(file: &Path) -> Reach {
    let Walk {
        real,
        links,
        missing,
    } = walk(file);
    let mut reach = Reach::default();
    reach.places.extend(
        links
            .into_iter()
            .filter(|dir| !is_root(dir) && real.starts_with(dir)),
    );
    let (in_root, is_mount) = (real.parent().is_none_or(is_root), is_mounted(&real));
    if missing && is_root(&real) {
        reach.weakness = Some("it does not exist yet, and no directory above it does but `/`");
    } else if missing {
        reach.places.insert(real);
    } else if real.is_dir() {
        reach.weakness = Some("it is a directory");
    } else if in_root || is_mount {
        reach.weakness =
            (!is_mount).then_some("it lies in `/`: it can be read until it is replaced");
        reach.places.insert(real);
    } else {
        reach.places.extend(real.parent().map(Path::to_owned));
    }
    reach
}

/// The directory that the name of `file` is removed from; `None` where that is `/`, or does not
/// exist.
pub(super) fn directory_of(file: &Path) -> Option<PathBuf> {
    let Walk { real, missing, .. } = walk(file.parent()?);
    (!missing && !is_root(&real)).then_some(real)
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

/// A path as the kernel resolves it.
struct Walk {
    /// Where it ends; if it does not exist, the last directory on the way.
    real: PathBuf,
    /// The directories of the links on the way.
    links: Vec<PathBuf>,
    /// Whether it does not exist, or cannot be followed.
    missing: bool,
}

fn walk(path: &Path) -> Walk {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut left: VecDeque<OsString> = names(&path).collect();
    let mut walk = Walk {
        real: PathBuf::from("/"),
        links: vec![],
        missing: false,
    };
    while let Some(name) = left.pop_front() {
        if name == ".." {
            walk.real.pop();
            continue;
        }
        let next = walk.real.join(&name);
        match step(&next) {
            Ok(None) => walk.real = next,
            Ok(Some(target)) if walk.links.len() < LINKS => {
                walk.links.push(walk.real.clone());
                if target.is_absolute() {
                    walk.real = PathBuf::from("/");
                }
                for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(name);
                }
            }
            Ok(Some(_)) | Err(_) => {
                walk.missing = true;
                return walk;
            }
        }
    }
    walk
}

/// The components of a path that lead somewhere.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
}

/// Where a link leads; `None` for what is none.
fn step(path: &Path) -> io::Result<Option<PathBuf>> {
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
    fn the_directory_of_the_file_and_of_each_link_that_may_change() {
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
            // A directory that is replaced by a link, and one that is a link to somewhere else.
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
            // What is to come.
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
    fn the_root_is_no_place() {
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
