//! Removal of files without a trace. Invariants: a content is overwritten only when no process has
//! the file open or mapped; only names of the agent are touched; no link is followed.

use super::{DATA, DATA_NEXT, DATA_PREFIX, FILES, generation_of};
use crate::names::STATE_DIRECTORY;
use crate::sys::file::lease_alone;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, fchownat, geteuid, unlinkat};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Removes all generations, contents and links of an agent in `root`. Files that another process
/// has open are unlinked and not overwritten.
///
/// # Errors
/// The last failure; everything else is removed.
pub(super) fn everything(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut result = Ok(());
    for (name, kind) in entries(root)? {
        let removed = match kind {
            Some(Type::Symlink) if is_link_of_ours(root, &name) => {
                unlinkat(root, name.as_str(), UnlinkatFlags::NoRemoveDir).map_err(io::Error::from)
            }
            Some(Type::Directory) if is_directory_of_ours(&name) => tree(root, &name),
            _ => Ok(()),
        };
        if removed.is_err() {
            result = removed;
        }
    }
    result
}

/// Removes directory `name` with all files in it, as `everything` does.
///
/// # Errors
/// The first failure.
pub(super) fn tree(root: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    contents(root, name)?;
    Ok(unlinkat(root, name, UnlinkatFlags::RemoveDir)?)
}

/// Removes all files in directory `name`, as `everything` does.
///
/// # Errors
/// The first failure.
pub(super) fn contents(root: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let dir = open_dir(root, name)?;
    for (entry, kind) in entries(dir.as_fd())? {
        file(dir.as_fd(), &entry, kind)?;
    }
    Ok(())
}

/// Unlinks `name` and overwrites the content. Returns a file that another process has open, for a
/// later `overwrite`.
///
/// # Errors
/// When the file cannot be unlinked. A file that cannot be opened for writing is only unlinked.
pub(super) fn file(
    dir: BorrowedFd<'_>,
    name: &str,
    kind: Option<Type>,
) -> io::Result<Option<File>> {
    let content = match kind {
        Some(Type::File) if is_private(dir)? => open_own(dir, name).ok(),
        _ => None,
    };
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
    Ok(content.filter(|content| !overwrite(content)))
}

/// Overwrites an unlinked file. Returns `false` if another process has the file open or mapped:
/// then the call must be repeated later.
pub(super) fn overwrite(mut file: &File) -> bool {
    match lease_alone(file.as_fd()) {
        Ok(false) => return false,
        Ok(true) => {
            let len = file.metadata().map_or(0, |meta| meta.len());
            let mut zeros = io::repeat(0).take(len);
            // After a failure the bytes stay in memory under no name: there is no other remedy.
            let _ = io::copy(&mut zeros, &mut file);
        }
        Err(_) => {}
    }
    true
}

/// Opens a file for overwriting. The file may belong to another user and be read-only, so owner and
/// mode are changed first.
fn open_own(dir: BorrowedFd<'_>, name: &str) -> nix::Result<File> {
    // Only the owner of a file gets a lease. Without `CAP_CHOWN` the file is ours already, or the
    // next call fails.
    let _ = fchownat(
        dir,
        name,
        Some(geteuid()),
        None,
        AtFlags::AT_SYMLINK_NOFOLLOW,
    );
    fchmodat(
        dir,
        name,
        Mode::S_IRUSR | Mode::S_IWUSR,
        FchmodatFlags::FollowSymlink,
    )?;
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty()).map(File::from)
}

/// Whether only this user can create names in `dir`. In another directory a name could be a link to
/// a file of somebody else.
fn is_private(dir: BorrowedFd<'_>) -> nix::Result<bool> {
    let stat = fstat(dir)?;
    let is_ours = stat.st_uid == geteuid().as_raw();
    Ok(is_ours && stat.st_mode & 0o022 == 0)
}

fn is_directory_of_ours(name: &str) -> bool {
    name == FILES || name == STATE_DIRECTORY || generation_of(name).is_some()
}

fn is_link_of_ours(root: BorrowedFd<'_>, name: &str) -> bool {
    if name == DATA || name == DATA_NEXT {
        return true;
    }
    let Ok(to) = readlinkat(root, name) else {
        return false;
    };
    to.to_string_lossy().starts_with(DATA_PREFIX)
}

/// Opens directory `name` of `root` for reading; `.` is `root` itself.
pub(super) fn open_dir(root: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(root, name, flags, Mode::empty())
}

/// The names and kinds in `dir`, all read before the first removal, without names that are not
/// UTF-8: the agent makes no such names.
pub(super) fn entries(dir: BorrowedFd<'_>) -> nix::Result<Vec<(String, Option<Type>)>> {
    let mut dir = Dir::from_fd(open_dir(dir, ".")?)?;
    let mut found = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => {
                let kind = entry.file_type();
                found.push((name.to_owned(), kind));
            }
        }
    }
    Ok(found)
}

/// Whether `name` exists in `dir`, as any kind of file.
pub(super) fn exists(dir: BorrowedFd<'_>, name: &str) -> bool {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) != Err(Errno::ENOENT)
}
