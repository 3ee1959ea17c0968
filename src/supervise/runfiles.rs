//! The files of the agent outside the mount: the pid file and the links to sinks. Invariants: a file
//! planted by another user is never followed, opened, overwritten or removed; the path of a sink
//! leads to the served file or the agent does not start; each file is reached through a directory
//! descriptor, held from before the mount to the end.

use crate::config::plan::Plan;
use crate::exit::{Exit, Refused};
use crate::observe::Incident;
use crate::sys::process;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Uid, UnlinkatFlags, geteuid, symlinkat, unlinkat, write};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The run files of the configuration.
#[derive(Debug, Default)]
pub struct RunFiles {
    files: Vec<RunFile>,
    /// Users whose files and directories are accepted: root, the agent's and the application's.
    trusted: Vec<u32>,
}

/// The pid file or the link to a sink.
#[derive(Debug)]
struct RunFile {
    /// The path as configured, for messages.
    path: PathBuf,
    /// The directory of the path. Replacing the directory does not redirect a later removal.
    dir: OwnedFd,
    name: OsString,
    /// The target of a link; `None` for the pid file.
    target: Option<PathBuf>,
    /// The file or link, once made or adopted from an earlier run. While the descriptor is open, no
    /// other file gets the same inode number.
    made: Option<OwnedFd>,
}

/// The reason why a run file was not made.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    /// Another user controls the path.
    #[error("{0}")]
    Foreign(String),
    #[error("{}", .0.desc())]
    System(#[from] Errno),
}

impl RunFiles {
    /// Opens the directories of the run files of `plan`, and warns of each failure. Must be called
    /// before the mount, so that no path leads into the mount.
    pub fn open(plan: &Plan) -> Self {
        let mut trusted = vec![0, geteuid().as_raw()];
        if let Some(user) = &plan.app.user {
            trusted.push(user.owner.uid);
        }
        let pid_file = plan.pid_file.iter().map(|path| (path, None));
        let links = plan.links.iter().map(|link| {
            let target = plan.filesystem.path.join(link.name.as_str());
            (&link.path, Some(target))
        });
        let mut files = vec![];
        for (path, target) in pid_file.chain(links) {
            match RunFile::open(path, target) {
                Ok(file) => files.push(file),
                Err(errno) => {
                    let why = errno.desc();
                    Incident::RunFileNotMade { path }.emit(&why);
                }
            }
        }
        Self { files, trusted }
    }

    /// Writes the pid file and makes the links, and warns of each failure.
    ///
    /// # Errors
    /// When another user controls the path of a link: the application would read a file of the other
    /// user.
    pub fn make(&mut self) -> Result<(), Refused> {
        for file in &mut self.files {
            match file.make(&self.trusted) {
                Ok(made) => {
                    file.made = Some(made);
                    file.warn_if_replaceable(&self.trusted);
                }
                Err(MakeError::Foreign(what)) if file.target.is_some() => {
                    return Err(taken(&file.path, &what));
                }
                Err(error) => {
                    let path = &file.path;
                    Incident::RunFileNotMade { path }.emit(&error);
                }
            }
        }
        Ok(())
    }

    /// The open descriptors, which no child needs.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![];
        for file in &self.files {
            all.push(file.dir.as_fd());
            all.extend(file.made.iter().map(AsFd::as_fd));
        }
        all
    }

    /// Removes each run file, unless the file was replaced.
    pub fn remove(&self) {
        for file in &self.files {
            if let Err(errno) = file.remove() {
                let path = &file.path;
                Incident::RunFileNotRemoved { path }.emit(&errno.desc());
            }
        }
    }
}

impl RunFile {
    fn open(path: &Path, target: Option<PathBuf>) -> nix::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::EINVAL);
        };
        let parent = Path::new(".").join(parent);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            dir: open(&parent, flags, Mode::empty())?,
            name: name.to_owned(),
            target,
            made: None,
        })
    }

    fn make(&self, trusted: &[u32]) -> Result<OwnedFd, MakeError> {
        if let Some(step) = foreign_step(&self.path, trusted) {
            return Err(MakeError::Foreign(step));
        }
        match &self.target {
            Some(target) => self.link(target, trusted),
            None => Ok(self.write_pid()?),
        }
    }

    /// Makes the link, or accepts an equal link of an earlier run.
    fn link(&self, target: &Path, trusted: &[u32]) -> Result<OwnedFd, MakeError> {
        match symlinkat(target, &self.dir, self.name.as_os_str()) {
            Ok(()) => Ok(self.find()?),
            Err(Errno::EEXIST) => {
                let found = self.find()?;
                let stat = fstat(&found)?;
                let is_equal = readlinkat(&found, "").is_ok_and(|to| to == target);
                if is_equal && trusted.contains(&stat.st_uid) {
                    Ok(found)
                } else {
                    Err(MakeError::Foreign(describe(&stat)))
                }
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes a temporary file, then renames: a planted link is replaced, not followed.
    fn write_pid(&self) -> nix::Result<OwnedFd> {
        let dir = &self.dir;
        let pid = std::process::id();
        let mut temporary = self.name.clone();
        temporary.push(format!(".{pid}"));
        let temporary = temporary.as_os_str();
        let discard = || unlinkat(dir, temporary, UnlinkatFlags::NoRemoveDir);
        // An earlier PID 1 of the container may have been killed before the rename.
        let _ = discard();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(dir, temporary, flags, Mode::from_bits_truncate(0o644))?;
        write(&file, format!("{pid}\n").as_bytes())
            .and_then(|_| renameat(dir, temporary, dir, self.name.as_os_str()))
            .inspect_err(|_| _ = discard())?;
        Ok(file)
    }

    /// The file or link with the name now. `O_PATH` with `O_NOFOLLOW` opens no file and follows no
    /// link.
    fn find(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.dir, self.name.as_os_str(), flags, Mode::empty())
    }

    /// Warns when another user may replace the link: the owner of the directory, or every user if
    /// the directory is writable by all without a sticky bit. An administrator chose the directory,
    /// so the link is made nevertheless.
    fn warn_if_replaceable(&self, trusted: &[u32]) {
        if self.target.is_none() {
            return;
        }
        let Ok(dir) = fstat(&self.dir) else {
            return;
        };
        let by = if dir.st_mode & 0o1002 == 0o0002 {
            "everybody".to_owned()
        } else if trusted.contains(&dir.st_uid) {
            return;
        } else {
            format!("uid {}", dir.st_uid)
        };
        let path = &self.path;
        Incident::LinkReplaceable { path }.emit(&format_args!("{by} may write its directory"));
    }

    /// Removes the name if the file was not replaced, with the rights of the owner of the
    /// directory: supervise may have given up `DAC_OVERRIDE` since the start.
    fn remove(&self) -> nix::Result<()> {
        let Some(made) = &self.made else {
            return Ok(());
        };
        let owner = Uid::from_raw(fstat(&self.dir)?.st_uid);
        process::as_user(owner, || match self.find() {
            Ok(found) if identity(&found)? == identity(made)? => {
                unlinkat(&self.dir, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
            }
            // The name was removed, or belongs to another file now.
            Ok(_) | Err(_) => Ok(()),
        })
    }
}

/// Device, inode and type of a file.
fn identity(file: &OwnedFd) -> nix::Result<(u64, u64, SFlag)> {
    let stat = fstat(file)?;
    Ok((stat.st_dev, stat.st_ino, kind(&stat)))
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn describe(stat: &FileStat) -> String {
    let kind = match kind(stat) {
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFREG => "a file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a FIFO",
        _ => "a special file",
    };
    format!("{kind} of uid {} lies there", stat.st_uid)
}

fn taken(path: &Path, what: &str) -> Refused {
    let why = "the application would read that instead of the token";
    let hint = "remove it, or give the sink another `path`: in a directory that only root may write, no user can plant a file";
    Refused::new(
        Exit::Config,
        format_args!(
            "the link to a sink cannot be made at {}: {what}, and {why}\nhint: {hint}",
            path.display()
        ),
    )
}

/// The first directory or link above `path` put by an untrusted user into a directory writable by
/// everybody. The owner can replace everything below.
fn foreign_step(path: &Path, trusted: &[u32]) -> Option<String> {
    let mut steps: Vec<&Path> = path.ancestors().skip(1).collect();
    steps.reverse();
    for pair in steps.windows(2) {
        let dir = pair[0].metadata();
        let step = pair[1].symlink_metadata();
        let (Ok(dir), Ok(step)) = (dir, step) else {
            continue;
        };
        let is_open = dir.mode() & 0o002 != 0;
        let uid = step.uid();
        if is_open && !trusted.contains(&uid) {
            let path = pair[1].display();
            return Some(format!("{path}, which leads there, belongs to uid {uid}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::AtFlags;
    use nix::sys::stat::mknod;
    use nix::unistd::{Gid, fchownat, mkfifo};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    const TARGET: &str = "/app/secrets/token";
    const STRANGER: u32 = 4242;

    /// A directory with the run files `pid` and `token`, not made yet.
    fn run_files() -> (TempDir, RunFiles) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, target| {
            RunFile::open(&dir.path().join(name), target).expect("the directory is there")
        };
        let files = vec![file("pid", None), file("token", Some(TARGET.into()))];
        let trusted = vec![0, geteuid().as_raw()];
        (dir, RunFiles { files, trusted })
    }

    /// The file at the path of the link.
    fn found(run_files: &RunFiles) -> (u64, u64, SFlag) {
        identity(&run_files.files[1].find().expect("it is there")).expect("open")
    }

    fn give_away(path: &Path) {
        let (uid, gid) = (Uid::from_raw(STRANGER), Gid::from_raw(STRANGER));
        fchownat(
            nix::fcntl::AT_FDCWD,
            path,
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .expect("the tests run as root");
    }

    #[test]
    fn made_files_are_removed_and_a_link_of_an_earlier_run_is_adopted() {
        for earlier in [false, true] {
            let (dir, mut run_files) = run_files();
            let (pid, token) = (dir.path().join("pid"), dir.path().join("token"));
            if earlier {
                symlink(TARGET, &token).expect("an earlier run's link");
                fs::write(
                    dir.path().join(format!("pid.{}", std::process::id())),
                    "half",
                )
                .expect("an earlier run's half");
            }
            run_files.make().expect("nothing foreign");
            assert_eq!(
                fs::read_to_string(&pid).expect("the pid file"),
                format!("{}\n", std::process::id())
            );
            assert_eq!(fs::read_link(&token).expect("the link"), Path::new(TARGET));
            assert_eq!(
                fs::read_dir(dir.path()).expect("the directory").count(),
                2,
                "nothing else is left"
            );
            run_files.remove();
            assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0);
        }
    }

    /// Puts a file at the path of a link.
    type Plant = fn(&Path);

    #[test]
    fn any_other_file_at_the_path_of_a_link_is_refused_and_stays() {
        let table: [(&str, Plant); 7] = [
            ("a file of uid 0", |path| {
                fs::write(path, "planted").expect("a file");
            }),
            ("a file of uid 4242", |path| {
                fs::write(path, "planted").expect("a file");
                give_away(path);
            }),
            ("a symbolic link of uid 0", |path| {
                symlink("/elsewhere", path).expect("a link");
            }),
            ("a symbolic link of uid 4242", |path| {
                symlink(TARGET, path)
                    .expect("a link to the right place, which its owner may change");
                give_away(path);
            }),
            ("a directory of uid 0", |path| {
                fs::create_dir(path).expect("a directory");
            }),
            ("a FIFO of uid 0", |path| {
                mkfifo(path, Mode::S_IRWXU).expect("a FIFO");
            }),
            ("a special file of uid 0", |path| {
                mknod(path, SFlag::S_IFSOCK, Mode::S_IRWXU, 0).expect("a socket");
            }),
        ];
        for (what, plant) in table {
            let (dir, mut run_files) = run_files();
            let token = dir.path().join("token");
            plant(&token);
            let before = found(&run_files);
            let refused = run_files.make().expect_err(what);
            assert_eq!(refused.exit, Exit::Config);
            for part in [what, &token.display().to_string(), "hint: remove it"] {
                assert!(
                    refused.message.contains(part),
                    "{part}: {}",
                    refused.message
                );
            }
            run_files.remove();
            assert_eq!(found(&run_files), before);
        }
    }

    #[test]
    fn a_directory_that_a_stranger_made_where_everybody_may_write_is_refused() {
        let (dir, mut run_files) = run_files();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).expect("a directory");
        run_files.files[1] =
            RunFile::open(&inner.join("token"), Some(TARGET.into())).expect("it is there");
        give_away(&inner);
        run_files
            .make()
            .expect("where only root may write, somebody with rights gave it away");
        run_files.remove();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).expect("as /tmp");
        let refused = run_files.make().expect_err("a stranger's directory");
        assert!(
            refused
                .message
                .contains("inner, which leads there, belongs to uid 4242"),
            "{}",
            refused.message
        );
        run_files.trusted.push(STRANGER);
        run_files.make().expect("the application's own directory");
    }

    #[test]
    fn a_file_that_replaced_a_run_file_stays_unopened() {
        let table: [(&str, Plant); 5] = [
            ("a FIFO", |path| {
                mkfifo(path, Mode::S_IRWXU).expect("a FIFO");
            }),
            ("an endless device", |path| {
                symlink("/dev/zero", path).expect("a link");
            }),
            ("the right words in another file", |path| {
                fs::write(path, format!("{}\n", std::process::id())).expect("a file");
            }),
            ("a copy of the link", |path| {
                symlink(TARGET, path).expect("a link");
            }),
            ("a directory", |path| {
                fs::create_dir(path).expect("a directory");
            }),
        ];
        for (what, plant) in table {
            let (dir, mut run_files) = run_files();
            run_files.make().expect("nothing foreign");
            for name in ["pid", "token"] {
                // Moved and not removed, because a freed inode number is reused at once.
                fs::rename(
                    dir.path().join(name),
                    dir.path().join(format!("{name}.moved")),
                )
                .expect("it was made");
                plant(&dir.path().join(name));
            }
            run_files.remove();
            for name in ["pid", "token"] {
                assert!(
                    dir.path().join(name).symlink_metadata().is_ok(),
                    "{what} at {name} is somebody else's"
                );
            }
        }
    }

    #[test]
    fn a_replaced_directory_leads_no_removal_elsewhere() {
        let (dir, mut run_files) = run_files();
        run_files.make().expect("nothing foreign");
        let (aside, victims) = (
            tempfile::tempdir().expect("a directory"),
            tempfile::tempdir().expect("a directory"),
        );
        let inner = aside.path().join("inner");
        fs::rename(dir.path(), &inner).expect("both on one filesystem");
        for name in ["pid", "token"] {
            fs::hard_link(inner.join(name), victims.path().join(name)).expect("a hard link");
        }
        symlink(victims.path(), dir.path()).expect("the directory is replaced");
        run_files.remove();
        assert_eq!(
            fs::read_dir(victims.path()).expect("the directory").count(),
            2
        );
        assert_eq!(fs::read_dir(&inner).expect("the directory").count(), 0);
        fs::remove_file(dir.path()).expect("the link");
    }

    #[test]
    fn the_pid_file_replaces_a_planted_link() {
        let (dir, mut run_files) = run_files();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("pid"));
        fs::write(&victim, "whole").expect("write");
        symlink(&victim, &path).expect("plant");
        run_files
            .make()
            .expect("nothing foreign at the link's path");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "whole");
        run_files.remove();
        assert!(!path.exists());
    }
}
