//! What the agent leaves outside the mount while it runs: its pid file and the links to sinks.
//! Invariants: nothing that another user planted is followed, opened, overwritten or removed; a
//! sink's path leads to the served file or the agent does not start; each name is reached through
//! its directory, which is held from before the mount to the end.

use crate::config::plan::Plan;
use crate::exit::{Exit, Refused};
use crate::observe::Incident;
use crate::sys::process;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Uid, UnlinkatFlags, geteuid, symlinkat, unlinkat};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The run files, made or to be made; `remove` takes away those that were made.
#[derive(Debug, Default)]
pub struct RunFiles {
    pid_file: Option<PidFile>,
    links: Vec<SinkLink>,
    /// Users whose files and links are not foreign: root, the agent's and the application's.
    trusted: Vec<u32>,
}

/// The pid file.
#[derive(Debug)]
struct PidFile {
    spot: Spot,
    /// The file itself, once it was written. While it is open, no other file gets its inode
    /// number.
    file: Option<File>,
}

/// The link to a sink.
#[derive(Debug)]
struct SinkLink {
    spot: Spot,
    /// Where it points.
    target: PathBuf,
    /// What was made, or found as an earlier run had made it.
    made: Option<FileIdentity>,
}

/// A name in a directory.
#[derive(Debug)]
struct Spot {
    /// The path as configured, for messages.
    path: PathBuf,
    /// Its directory, held: whoever replaces the directory cannot lead a later removal elsewhere.
    dir: OwnedFd,
    name: OsString,
}

/// Which file or link a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    kind: SFlag,
}

impl FileIdentity {
    fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            kind: SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT,
        }
    }
}

impl RunFiles {
    /// Opens the directories of what `plan` asks for. To be called before the mount, so that no
    /// path leads into it. A directory that cannot be opened is one warning.
    pub fn open(plan: &Plan) -> Self {
        let app = plan.app.user.as_ref().map(|user| user.owner.uid);
        let trusted = [0, geteuid().as_raw()].into_iter().chain(app).collect();
        let pid_file = plan
            .pid_file
            .as_ref()
            .and_then(|path| match Spot::open(path) {
                Ok(spot) => Some(PidFile { spot, file: None }),
                Err(error) => {
                    Incident::PidFileNotWritten { path }.emit(&error);
                    None
                }
            });
        let links = plan.links.iter().filter_map(|link| {
            let target = plan.filesystem.path.join(link.name.as_str());
            match Spot::open(&link.path) {
                Ok(spot) => Some(SinkLink {
                    spot,
                    target,
                    made: None,
                }),
                Err(error) => {
                    Incident::LinkNotMade { path: &link.path }.emit(&error);
                    None
                }
            }
        });
        Self {
            pid_file,
            links: links.collect(),
            trusted,
        }
    }

    /// Writes the pid file and makes the links, with one warning for each that cannot be made.
    ///
    /// # Errors
    /// When something foreign lies at the path of a link: the application would read what another
    /// user gives it.
    pub fn make(&mut self) -> Result<(), Refused> {
        if let Some(pid_file) = &mut self.pid_file {
            let allowed = foreign_step(&pid_file.spot.path, &self.trusted)
                .map_or(Ok(()), |step| Err(io::Error::other(step)));
            match allowed.and_then(|()| write_pid(&pid_file.spot)) {
                Ok(file) => pid_file.file = Some(file),
                Err(error) => Incident::PidFileNotWritten {
                    path: &pid_file.spot.path,
                }
                .emit(&error),
            }
        }
        for link in &mut self.links {
            if let Some(step) = foreign_step(&link.spot.path, &self.trusted) {
                return Err(taken(&link.spot.path, &step));
            }
            match link.make(&self.trusted)? {
                Ok(made) => {
                    link.made = Some(made);
                    warn_of_replacement(&link.spot, &self.trusted);
                }
                Err(errno) => Incident::LinkNotMade {
                    path: &link.spot.path,
                }
                .emit(&errno.desc()),
            }
        }
        Ok(())
    }

    /// The descriptors that are held, which no child needs.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let of_pid = self
            .pid_file
            .iter()
            .flat_map(|it| [Some(it.spot.dir.as_fd()), it.file.as_ref().map(AsFd::as_fd)])
            .flatten();
        of_pid
            .chain(self.links.iter().map(|link| link.spot.dir.as_fd()))
            .collect()
    }

    /// Removes what was made and is still there. Opens and reads nothing: what lies at a path now
    /// may be a FIFO or a device.
    pub fn remove(&self) {
        let pid_file = self
            .pid_file
            .iter()
            .filter_map(|it| Some((&it.spot, FileIdentity::of(&fstat(it.file.as_ref()?).ok()?))));
        let links = self
            .links
            .iter()
            .filter_map(|link| Some((&link.spot, link.made?)));
        for (spot, made) in pid_file.chain(links) {
            if let Err(errno) = spot.remove(made) {
                Incident::RunFileNotRemoved { path: &spot.path }.emit(&errno.desc());
            }
        }
    }
}

impl Spot {
    fn open(path: &Path) -> io::Result<Self> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        let held = open(
            dir,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            path: path.to_owned(),
            dir: held,
            name: name.to_owned(),
        })
    }

    /// What the name leads to now; a link is not followed.
    fn look(&self) -> nix::Result<FileStat> {
        fstatat(
            &self.dir,
            self.name.as_os_str(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
    }

    /// Removes the name if it still leads to `made`. Supervise may have given up its right over the
    /// files of others (`DAC_OVERRIDE`) since it was made: in a directory of another user it
    /// acts as that user.
    fn remove(&self, made: FileIdentity) -> nix::Result<()> {
        let owner = fstat(&self.dir).map_or_else(|_| geteuid(), |dir| Uid::from_raw(dir.st_uid));
        process::as_user(owner, || match self.look() {
            Ok(stat) if FileIdentity::of(&stat) == made => {
                unlinkat(&self.dir, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
            }
            // Replaced or removed: what lies there now is somebody else's.
            Ok(_) | Err(_) => Ok(()),
        })
    }
}

impl SinkLink {
    /// Makes the link. An equal one of an earlier run will do; anything else in its place is the
    /// outer error, and the inner one says why the system does not make it.
    fn make(&self, trusted: &[u32]) -> Result<nix::Result<FileIdentity>, Refused> {
        let Spot { path, dir, name } = &self.spot;
        let made = match symlinkat(&self.target, dir, name.as_os_str()) {
            Ok(()) => self.spot.look(),
            Err(Errno::EEXIST) => {
                let stat = match self.spot.look() {
                    Ok(stat) => stat,
                    Err(errno) => return Ok(Err(errno)),
                };
                let points_there =
                    readlinkat(dir, name.as_os_str()).is_ok_and(|found| found == self.target);
                if !points_there || !trusted.contains(&stat.st_uid) {
                    return Err(taken(path, &describe(&stat)));
                }
                Ok(stat)
            }
            Err(errno) => Err(errno),
        };
        Ok(made.map(|stat| FileIdentity::of(&stat)))
    }
}

/// What lies at a path, in words.
fn describe(stat: &FileStat) -> String {
    let kind = match FileIdentity::of(stat).kind {
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFREG => "a file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a FIFO",
        _ => "a special file",
    };
    format!("{kind} of uid {} lies there", stat.st_uid)
}

fn taken(path: &Path, what: &str) -> Refused {
    let why = "the application would read what it holds instead of the token";
    let hint = "remove it, or give the sink another `path`; in a directory that only root may write nobody can plant one";
    Refused::new(
        Exit::Config,
        format_args!(
            "the link to a sink cannot be made at {}: {what}, and {why}\nhint: {hint}",
            path.display()
        ),
    )
}

/// Says when another user may replace the link at any time, because its directory is that user's,
/// or everybody's without a sticky bit. Some administrator made the directory so, which is no
/// attack and no refusal.
fn warn_of_replacement(spot: &Spot, trusted: &[u32]) {
    let Ok(dir) = fstat(&spot.dir) else { return };
    let by = match dir.st_mode & 0o1002 {
        0o0002 => "everybody".to_owned(),
        _ if trusted.contains(&dir.st_uid) => return,
        _ => format!("uid {}", dir.st_uid),
    };
    let path = &spot.path;
    Incident::LinkReplaceable { path }.emit(&format_args!("{by} may write its directory"));
}

/// The first directory or link on the way to `path` that another user put into a directory which
/// everybody may write: its owner can replace what lies below.
fn foreign_step(path: &Path, trusted: &[u32]) -> Option<String> {
    let mut steps: Vec<&Path> = path.ancestors().skip(1).collect();
    steps.reverse();
    let is_shared =
        |dir: &Path| std::fs::metadata(dir).is_ok_and(|found| found.mode() & 0o002 != 0);
    steps.windows(2).find_map(|pair| {
        let step = std::fs::symlink_metadata(pair[1]).ok()?;
        let foreign = !trusted.contains(&step.uid()) && is_shared(pair[0]);
        foreign.then(|| {
            format!(
                "{}, which leads there, belongs to uid {}",
                pair[1].display(),
                step.uid()
            )
        })
    })
}

/// Writes beside and renames: a link that somebody planted at the path is replaced, not followed.
/// The result is the file.
fn write_pid(spot: &Spot) -> io::Result<File> {
    let (dir, pid) = (&spot.dir, std::process::id());
    let mut beside = spot.name.clone();
    beside.push(format!(".{pid}"));
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let create = || {
        openat(
            dir,
            beside.as_os_str(),
            flags,
            Mode::from_bits_truncate(0o644),
        )
    };
    let discard = || unlinkat(dir, beside.as_os_str(), UnlinkatFlags::NoRemoveDir);
    // PID 1 of the container before this one may have been killed halfway.
    let file = create().or_else(|errno| {
        if errno == Errno::EEXIST {
            discard().and_then(|()| create())
        } else {
            Err(errno)
        }
    })?;
    let mut file = File::from(file);
    let done = writeln!(file, "{pid}").and_then(|()| {
        Ok(renameat(
            dir,
            beside.as_os_str(),
            dir,
            spot.name.as_os_str(),
        )?)
    });
    if done.is_err() {
        let _ = discard();
    }
    done.map(|()| file)
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let spot = |name: &str| Spot::open(&dir.path().join(name)).expect("the directory is there");
        let pid_file = Some(PidFile {
            spot: spot("pid"),
            file: None,
        });
        let links = vec![SinkLink {
            spot: spot("token"),
            target: TARGET.into(),
            made: None,
        }];
        let trusted = vec![0, geteuid().as_raw()];
        (
            dir,
            RunFiles {
                pid_file,
                links,
                trusted,
            },
        )
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
    fn what_was_made_is_removed_and_a_link_of_an_earlier_run_is_adopted() {
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

    /// Puts something into the way of a link.
    type Plant = fn(&Path);

    #[test]
    fn whatever_else_lies_at_a_links_path_is_refused_and_stays() {
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
            let before = FileIdentity::of(&run_files.links[0].spot.look().expect("it is there"));
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
            assert_eq!(
                FileIdentity::of(&run_files.links[0].spot.look().expect("it stays")),
                before
            );
        }
    }

    #[test]
    fn a_directory_that_a_stranger_made_where_everybody_may_write_is_refused() {
        let (dir, mut run_files) = run_files();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).expect("a directory");
        run_files.links[0].spot = Spot::open(&inner.join("token")).expect("it is there");
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
    fn what_replaced_the_traces_stays_unopened() {
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
                // Moved and not removed: a freed inode number is given again at once.
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
