//! `AppRole` credentials: read from files, kept in memory for the next login. Invariant: the file
//! of the `secret_id` is removed only after a login with that `secret_id` succeeded and the
//! credentials are checkpointed. After a first try without a server, the container can be started
//! again.

use crate::config::plan::AfterReading;
use crate::observe::Incident;
use crate::sys::file::{ReadError, read_regular};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The largest credential file, in bytes.
pub(super) const LIMIT: usize = 64 << 10;

/// The method's settings, and the credentials that were read so far.
pub(super) struct AppRole {
    /// The mount without `auth/`.
    pub(super) mount: String,
    role_id_file: PathBuf,
    secret_id_file: Option<PathBuf>,
    after_reading: AfterReading,
    seen: Mutex<Seen>,
}

/// The credentials that are needed after their files changed or were removed.
#[derive(Default)]
struct Seen {
    /// Used by the last successful login; needed once the files are removed.
    known: Option<Credentials>,
    /// Used by the last login, successful or not; `None` if no file could be used.
    shown: Option<Credentials>,
    /// New credentials that the last check for changes found.
    fresh: Option<Credentials>,
}

/// The credentials of one login.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) role_id: SecretString,
    pub(super) secret_id: Option<SecretString>,
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.texts() == other.texts()
    }
}

impl Credentials {
    fn texts(&self) -> (&str, Option<&str>) {
        (
            self.role_id.expose_secret(),
            self.secret_id.as_ref().map(ExposeSecret::expose_secret),
        )
    }
}

/// Saved for a successor process: role ids and secret ids.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct AppRoleExport {
    known: Option<(String, Option<String>)>,
    shown: Option<(String, Option<String>)>,
}

/// A credential file that cannot be used.
#[derive(Debug)]
pub(super) enum FileError {
    /// The file cannot be read.
    Read(PathBuf, ReadError),
    /// The file is not UTF-8 text.
    NotText(PathBuf),
    /// The file is empty.
    Empty(PathBuf),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => write!(f, "{} {error}", path.display()),
            Self::NotText(path) => write!(f, "{} is not UTF-8 text", path.display()),
            Self::Empty(path) => write!(f, "{} is empty", path.display()),
        }
    }
}

impl AppRole {
    pub(super) fn new(
        mount: &str,
        role_id_file: PathBuf,
        secret_id_file: Option<PathBuf>,
        after_reading: AfterReading,
    ) -> Self {
        let mount = mount.trim_matches('/');
        let mount = mount.strip_prefix("auth/").unwrap_or(mount).to_owned();
        Self {
            mount,
            role_id_file,
            secret_id_file,
            after_reading,
            seen: Mutex::default(),
        }
    }

    /// The credentials for a login: from the files, else those of the last successful login.
    pub(super) fn credentials(&self) -> Result<Credentials, FileError> {
        let read = self.read();
        let mut seen = self.seen();
        let credentials = read.or_else(|error| seen.known.clone().ok_or(error));
        (seen.shown, seen.fresh) = (credentials.as_ref().ok().cloned(), None);
        credentials
    }

    /// Whether the files hold other credentials than the last login used. A file may be half
    /// written: new credentials count when two consecutive calls find the same.
    pub(super) fn changed(&self) -> bool {
        let mut seen = self.seen();
        let now = self
            .read()
            .ok()
            .filter(|now| seen.shown.as_ref() != Some(now));
        let settled = now.is_some() && seen.fresh == now;
        seen.fresh = now;
        settled
    }

    /// A login with `credentials` succeeded.
    pub(super) fn worked(&self, credentials: Credentials) {
        self.seen().known = Some(credentials);
    }

    /// Whether a login succeeded, in this process or in a predecessor.
    pub(super) fn is_known(&self) -> bool {
        self.seen().known.is_some()
    }

    /// The credentials for the checkpoint.
    pub(super) fn export(&self) -> AppRoleExport {
        let texts = |credentials: &Credentials| {
            let (role_id, secret_id) = credentials.texts();
            (role_id.to_owned(), secret_id.map(str::to_owned))
        };
        let seen = self.seen();
        AppRoleExport {
            known: seen.known.as_ref().map(texts),
            shown: seen.shown.as_ref().map(texts),
        }
    }

    /// Takes the credentials from the checkpoint of a predecessor.
    pub(super) fn import(&self, kept: AppRoleExport) {
        let credentials = |(role_id, secret_id): (String, Option<String>)| Credentials {
            role_id: role_id.into(),
            secret_id: secret_id.map(Into::into),
        };
        *self.seen() = Seen {
            known: kept.known.map(credentials),
            shown: kept.shown.map(credentials),
            fresh: None,
        };
    }

    /// Removes the file of the `secret_id`, if the removal is configured.
    pub(super) fn remove_file(&self) {
        let Some(path) = self
            .secret_id_file
            .as_ref()
            .filter(|_| self.after_reading == AfterReading::Remove)
        else {
            return;
        };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Incident::SecretIdNotRemoved { path }.emit(&error);
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<Credentials, FileError> {
        let role_id = read(&self.role_id_file)?;
        let secret_id = self.secret_id_file.as_deref().map(read).transpose()?;
        Ok(Credentials { role_id, secret_id })
    }
}

/// One credential, without surrounding white space.
fn read(path: &Path) -> Result<SecretString, FileError> {
    let bytes =
        read_regular(path, LIMIT).map_err(|error| FileError::Read(path.to_owned(), error))?;
    match std::str::from_utf8(&bytes).map(str::trim) {
        Err(_) => Err(FileError::NotText(path.to_owned())),
        Ok("") => Err(FileError::Empty(path.to_owned())),
        Ok(id) => Ok(SecretString::from(id)),
    }
}
