//! Taking files away without a trace. Invariants: content is overwritten only when nobody has it
//! open or mapped; nothing outside of the machinery's own names is touched; no link is followed.

use super::{DATA, DATA_NEXT, DATA_PREFIX, FILES};
use crate::names::STATE_DIRECTORY;
use crate::sys::file::lease_alone;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};
use nix::unistd::{UnlinkatFlags, fchownat, geteuid, unlinkat};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Removes everything that an agent made in `root`: generations, contents, links. What somebody
/// still has open is unlinked, not overwritten.
///
/// # Errors
/// What cannot be removed; the rest is gone.
pub(super) fn everything(root: BorrowedFd<'_>) -> nix::Result<()> {
    let mut result = Ok(());
    for (name, kind) in entries(root)? {
        let removed = match kind {
            Some(Type::Symlink) if is_link_of_ours(root, &name) => {
                unlinkat(root, name.as_str(), UnlinkatFlags::NoRemoveDir)
            }
            Some(Type::Directory) if is_directory_of_ours(&name) => tree(root, &name).map(drop),
            _ => Ok(()),
        };
        result = result.and(removed);
    }
    result
}

/// Removes directory `name` with all that is in it; the files that somebody still has open are
/// returned.
///
/// # Errors
/// What cannot be removed.
pub(super) fn tree(root: BorrowedFd<'_>, name: &str) -> nix::Result<Vec<File>> {
    let dir = open_dir(root, name)?;
    let mut held = Vec::new();
    for (entry, kind) in entries(dir.as_fd())? {
        held.extend(file(dir.as_fd(), &entry, kind)?);
    }
    unlinkat(root, name, UnlinkatFlags::RemoveDir)?;
    Ok(held)
}

/// Unlinks `name` and overwrites its content. If somebody has it open, it is returned for a later
/// `overwrite`.
///
/// # Errors
/// When it cannot be unlinked. One that cannot be opened for writing is unlinked all the same.
pub(super) fn file(
    dir: BorrowedFd<'_>,
    name: &str,
    kind: Option<Type>,
) -> nix::Result<Option<File>> {
    let content = if kind == Some(Type::File) && is_private(dir)? {
        open_own(dir, name).ok()
    } else {
        None
    };
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
    Ok(content.filter(|content| !overwrite(content)))
}

/// Overwrites an unlinked file, unless somebody else has it open or mapped; whether it is done
/// with.
pub(super) fn overwrite(file: &File) -> bool {
    match lease_alone(file.as_fd()) {
        Ok(true) => {
            let len = file.metadata().map_or(0, |meta| meta.len());
            let zeros = [0; 4096];
            for at in (0..len).step_by(zeros.len()) {
                let part = zeros
                    .len()
                    .min(usize::try_from(len - at).unwrap_or(zeros.len()));
                // A failure leaves bytes in memory that no name reaches: nothing more can be done.
                let _ = file.write_all_at(&zeros[..part], at);
            }
            true
        }
        Ok(false) => false,
        Err(_) => true,
    }
}

/// Opens a file for overwriting: it may belong to another user and be read-only, so it is made ours
/// first.
fn open_own(dir: BorrowedFd<'_>, name: &str) -> nix::Result<File> {
    // A lease is given to the file's owner. Without `CAP_CHOWN` the file is ours already, or the
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

/// Whether only we can put names into `dir`: else one might be a link to a file of somebody else.
fn is_private(dir: BorrowedFd<'_>) -> nix::Result<bool> {
    let stat = fstat(dir)?;
    Ok(stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o022 == 0)
}

fn is_directory_of_ours(name: &str) -> bool {
    let generation = name
        .strip_prefix("..")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    name == FILES || name == STATE_DIRECTORY || generation
}

fn is_link_of_ours(root: BorrowedFd<'_>, name: &str) -> bool {
    let to_data =
        || readlinkat(root, name).is_ok_and(|to| to.to_string_lossy().starts_with(DATA_PREFIX));
    name == DATA || name == DATA_NEXT || to_data()
}

/// Opens directory `name` of `root`; `.` gives `root` itself, readable.
pub(super) fn open_dir(root: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(root, name, flags, Mode::empty())
}

/// Names and kinds in `dir`, read whole before anything is removed. Names that are not UTF-8 are
/// not ours.
pub(super) fn entries(dir: BorrowedFd<'_>) -> nix::Result<Vec<(String, Option<Type>)>> {
    let mut dir = Dir::from_fd(open_dir(dir, ".")?)?;
    let mut found = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => found.push((name.to_owned(), entry.file_type())),
        }
    }
    Ok(found)
}

/// Whether `name` exists in `dir`, as whatever.
pub(super) fn exists(dir: BorrowedFd<'_>, name: &str) -> bool {
    nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) != Err(Errno::ENOENT)
}
