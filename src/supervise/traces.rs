//! What the agent leaves outside the mount while it runs: its pid file and the links to sinks. Invariants: a trace that
//! cannot be made is one warning, never an error; only one's own are removed; none holds a secret.

use crate::config::plan::Plan;
use crate::observe::Event;
use crate::sys::process;
use nix::unistd::{Uid, geteuid};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// The traces that were made; `remove` takes them away.
#[derive(Debug, Default)]
pub struct Traces {
    pid_file: Option<PathBuf>,
    /// Each link and where it points.
    links: Vec<(PathBuf, PathBuf)>,
}

impl Traces {
    /// Makes them, warning once for each that cannot be made.
    #[must_use]
    pub fn make(plan: &Plan) -> Self {
        let mut traces = Self::default();
        if let Some(path) = &plan.pid_file {
            match write_pid(path) {
                Ok(()) => traces.pid_file = Some(path.clone()),
                Err(error) => skipped(&format!("the pid file {} cannot be written: {error}", path.display())),
            }
        }
        for link in &plan.links {
            let target = plan.filesystem.path.join(link.name.as_str());
            match make_link(&target, &link.path) {
                Ok(()) => traces.links.push((link.path.clone(), target)),
                Err(error) => skipped(&format!("the link {} to {} cannot be made: {error}", link.path.display(), target.display())),
            }
        }
        traces
    }

    /// Removes what is still one's own.
    pub fn remove(&self) {
        let own_pid = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if let Some(path) = &self.pid_file {
            remove_if(path, own_pid);
        }
        for (path, target) in &self.links {
            remove_if(path, |path| points_to(path, target));
        }
    }
}

/// Removes the file if it `is_own`. Supervise may have given up its right over the files of others (`DAC_OVERRIDE`) since it was
/// made: in a directory of another user it acts as that user.
fn remove_if(path: &Path, is_own: impl FnOnce(&Path) -> bool) {
    let found = path.ancestors().skip(1).find_map(|directory| fs::metadata(directory).ok());
    let owner = found.map_or_else(geteuid, |directory| Uid::from_raw(directory.uid()));
    process::as_user(owner, || {
        if is_own(path) {
            let _ = fs::remove_file(path);
        }
    });
}

fn skipped(what: &str) {
    Event::Skipped { what }.emit();
}

/// Writes beside and renames: a link that somebody planted at the path is replaced, not followed.
fn write_pid(path: &Path) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
    let done = writeln!(file, "{}", std::process::id()).and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    }
    done
}

/// A link of an earlier run that already points there will do.
fn make_link(target: &Path, path: &Path) -> io::Result<()> {
    match symlink(target, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && points_to(path, target) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(io::Error::new(error.kind(), "something else is in its way")),
        result => result,
    }
}

fn points_to(path: &Path, target: &Path) -> bool {
    fs::read_link(path).is_ok_and(|found| found == target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_once_kept_and_never_put_over_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let (target, path) = (Path::new("/app/secrets/token"), dir.path().join("token"));
        make_link(target, &path).expect("the first");
        make_link(target, &path).expect("the same again");
        assert!(make_link(Path::new("/elsewhere"), &path).is_err());
        let traces = Traces { pid_file: None, links: vec![(path.clone(), target.into())] };
        traces.remove();
        assert!(fs::symlink_metadata(&path).is_err(), "its own link is gone");
        fs::write(&path, "a user's file").expect("write");
        assert!(make_link(target, &path).is_err());
        traces.remove();
        assert!(path.exists(), "a file in the way stays");
    }

    #[test]
    fn the_pid_file_replaces_a_planted_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let (victim, path) = (dir.path().join("victim"), dir.path().join("pid"));
        fs::write(&victim, "whole").expect("write");
        symlink(&victim, &path).expect("plant");
        write_pid(&path).expect("written");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "whole");
        Traces { pid_file: Some(path.clone()), links: vec![] }.remove();
        assert!(!path.exists());
    }
}
