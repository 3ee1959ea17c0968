//! The login: one source file for each method, and the credentials, which are read from files and
//! kept in memory for the next login. Invariants: no other module sends a login; a credential file
//! is removed only after a login with the credential succeeded and the credential is
//! checkpointed. After a first try without a server, the container can be started again.

mod approle;

use crate::config::plan::{Auth, Method};
use crate::lease::source::Ownership;
use crate::observe::Incident;
use crate::sys::file::{ReadError, read_regular};
use http::Request;
use rustify::endpoint::Endpoint;
use rustify::errors::ClientError;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The largest credential file, in bytes.
pub(super) const LIMIT: usize = 64 << 10;

/// A login method with settings, and the credentials read so far.
pub(super) struct Login {
    /// The mount without `auth/`.
    pub(super) mount: String,
    method: Method,
    pub(super) seen: RefCell<Seen>,
}

/// The credentials for use after the files changed or were removed; checkpointed for a successor.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Used by the last successful login; needed once the files are removed.
    known: Option<Credentials>,
    /// Used by the last login, successful or not; `None` if no file could be used.
    shown: Option<Credentials>,
    /// New credentials, found by the last check for changes.
    #[serde(skip)]
    fresh: Option<Credentials>,
}

/// The credentials of a login: the texts of the files, in the order of the method.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Credentials(Vec<Zeroizing<String>>);

/// A credential file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// The file cannot be read.
    #[error("{path} {why}", path = .0.display(), why = .1)]
    Read(PathBuf, ReadError),
    /// The file is not UTF-8 text.
    #[error("{} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// The file is empty.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
}

impl Login {
    pub(super) fn new(auth: &Auth) -> Self {
        let mount = auth.mount_path.trim_matches('/');
        Self {
            mount: mount.strip_prefix("auth/").unwrap_or(mount).to_owned(),
            method: auth.method.clone(),
            seen: RefCell::default(),
        }
    }

    fn read(&self) -> Result<Credentials, FileError> {
        match &self.method {
            Method::AppRole {
                role_id_file,
                secret_id_file,
                ..
            } => approle::read(role_id_file, secret_id_file.as_deref()),
        }
    }

    /// The request that logs in with `credentials` at the server `origin`.
    pub(super) fn request(
        &self,
        credentials: &Credentials,
        origin: &str,
    ) -> Result<Request<Vec<u8>>, ClientError> {
        match self.method {
            Method::AppRole { .. } => {
                let login = approle::login(&self.mount, credentials);
                login.request(origin)
            }
        }
    }

    /// The owner of the tokens of the method.
    pub(super) fn ownership(&self) -> Ownership {
        match self.method {
            Method::AppRole { .. } => Ownership::Ours,
        }
    }

    /// Removes the credential file that may be used once, if the removal is configured and a login
    /// succeeded, in this process or in a predecessor.
    pub(super) fn remove_file(&self) {
        if let Some(path) = self.method.removed_file()
            && self.seen.borrow().known.is_some()
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            Incident::SecretIdNotRemoved { path }.emit(&error);
        }
    }

    /// The credentials for a login: from the files, else from the last successful login.
    pub(super) fn credentials(&self) -> Result<Credentials, FileError> {
        let mut seen = self.seen.borrow_mut();
        let credentials = self.read().or_else(|error| seen.known.clone().ok_or(error));
        seen.shown = credentials.as_ref().ok().cloned();
        seen.fresh = None;
        credentials
    }

    /// Whether the files hold other credentials than the last login used. A file may be half
    /// written: new credentials count when two consecutive calls find the same.
    pub(super) fn changed(&self) -> bool {
        let mut seen = self.seen.borrow_mut();
        let found = self.read().ok();
        if found == seen.shown {
            seen.fresh = None;
            return false;
        }
        let settled = found.is_some() && seen.fresh == found;
        seen.fresh = found;
        settled
    }

    /// A login with `credentials` succeeded.
    pub(super) fn worked(&self, credentials: Credentials) {
        self.seen.borrow_mut().known = Some(credentials);
    }
}

/// A credential, without surrounding white space.
fn read_text(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let bytes =
        read_regular(path, LIMIT).map_err(|error| FileError::Read(path.to_owned(), error))?;
    match std::str::from_utf8(&bytes).map(str::trim) {
        Err(_) => Err(FileError::NotText(path.to_owned())),
        Ok("") => Err(FileError::Empty(path.to_owned())),
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
    }
}
