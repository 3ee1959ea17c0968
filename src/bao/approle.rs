//! `AppRole` credentials: read from files, kept in memory for the next login. Invariant: the file of the `secret_id` is
//! removed only after a login with it succeeded and a successor of this process would know it: a server that was away at the
//! first try leaves a container that can be started again.

use crate::config::plan::AfterReading;
use crate::observe::Event;
use secrecy::SecretString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// The method's settings and what was read so far.
pub(super) struct AppRole {
    /// The mount without `auth/`.
    pub(super) mount: String,
    role_id_file: PathBuf,
    secret_id_file: Option<PathBuf>,
    after_reading: AfterReading,
    /// What the last successful login used: for when the files are gone.
    known: Mutex<Option<Credentials>>,
}

/// What a login shows.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) role_id: SecretString,
    pub(super) secret_id: Option<SecretString>,
}

/// A credential file that cannot be used.
#[derive(Debug)]
pub(super) enum FileError {
    /// It cannot be read.
    Read(PathBuf, io::Error),
    /// There is nothing in it.
    Empty(PathBuf),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => write!(f, "{} cannot be read: {error}", path.display()),
            Self::Empty(path) => write!(f, "{} is empty", path.display()),
        }
    }
}

impl AppRole {
    pub(super) fn new(mount: &str, role_id_file: PathBuf, secret_id_file: Option<PathBuf>, after_reading: AfterReading) -> Self {
        let mount = mount.trim_matches('/');
        let mount = mount.strip_prefix("auth/").unwrap_or(mount).to_owned();
        Self { mount, role_id_file, secret_id_file, after_reading, known: Mutex::default() }
    }

    /// What the files hold now, else what worked before.
    pub(super) fn credentials(&self) -> Result<Credentials, FileError> {
        self.read().or_else(|error| self.known().ok_or(error))
    }

    /// What worked: of a login here, or of a predecessor's.
    pub(super) fn set_known(&self, credentials: Option<Credentials>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    /// What worked.
    pub(super) fn known(&self) -> Option<Credentials> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes the file of the `secret_id`, if that is configured.
    pub(super) fn remove_file(&self) {
        let Some(path) = self.secret_id_file.as_ref().filter(|_| self.after_reading == AfterReading::Remove) else { return };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let what = format!("{} could not be removed after reading: {}", path.display(), error.kind());
                Event::Skipped { what: &what }.emit();
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn read(&self) -> Result<Credentials, FileError> {
        let role_id = read(&self.role_id_file)?;
        let secret_id = self.secret_id_file.as_deref().map(read).transpose()?;
        Ok(Credentials { role_id, secret_id })
    }
}

/// One credential, without the white space around it.
fn read(path: &Path) -> Result<SecretString, FileError> {
    let text = fs::read_to_string(path).map(Zeroizing::new).map_err(|error| FileError::Read(path.to_owned(), error))?;
    match text.trim() {
        "" => Err(FileError::Empty(path.to_owned())),
        id => Ok(SecretString::from(id)),
    }
}
