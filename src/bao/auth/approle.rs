//! `AppRole`: a `role_id` and a `secret_id`, each in a file.

use super::{Credentials, FileError, read_text};
use std::path::Path;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;

/// Reads the `role_id`, and the `secret_id` unless the role needs none.
pub(super) fn read(
    role_id_file: &Path,
    secret_id_file: Option<&Path>,
) -> Result<Credentials, FileError> {
    let mut texts = vec![read_text(role_id_file)?];
    if let Some(file) = secret_id_file {
        texts.push(read_text(file)?);
    }
    Ok(Credentials(texts))
}

/// The login at `mount`.
pub(super) fn login(mount: &str, Credentials(texts): &Credentials) -> LoginWithApproleRequest {
    let mut texts = texts.iter().map(|text| text.to_string());
    LoginWithApproleRequest {
        mount: mount.to_owned(),
        role_id: texts.next().unwrap_or_default(),
        secret_id: texts.next().unwrap_or_default(),
    }
}
