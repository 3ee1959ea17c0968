//! Trust and client certificates. Invariant: the configured authorities replace the system's; an
//! empty trust store is refused at start, never found by a failing connection.

use super::auth::LIMIT;
use crate::config::plan::{Tls, Verify};
use crate::sys::file::read_regular;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_native_certs::load_native_certs;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The largest file of authorities, in bytes: the bundle of a system has 0.2 MiB.
const BUNDLE: usize = 1 << 20;
/// The largest sum of all files in a directory of authorities, in bytes.
const DIRECTORY: usize = 8 << 20;

/// The reasons for which a client cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The system has no authorities, as in an image from scratch.
    #[error(
        "no certificate authority to trust the server by: this system has no CA bundle; \
         hint: mount one and name it in `ca_cert`, or in the environment's SSL_CERT_FILE"
    )]
    NoTrustStore,
    /// `ca_cert` or `ca_path` cannot be read, or holds no authority.
    #[error("no certificate authority could be taken from {}: {why}", .0.display(), why = .1)]
    Authorities(PathBuf, String),
    /// `client_cert` or `client_key` is missing, or cannot be used.
    #[error("the client certificate cannot be used: {0}")]
    Identity(String),
    /// The name to verify the server by is invalid.
    #[error("{0:?} is no name that a server's certificate can be verified by")]
    ServerName(String),
    /// The address cannot be written as a URI.
    #[error("the server's address cannot be used: {0}")]
    Address(String),
    /// A namespace that no header can carry.
    #[error("the namespace has a character that no header can carry")]
    Namespace,
}

/// Reads the files and makes the settings of every connection.
pub(super) fn config(tls: &Tls) -> Result<Arc<ClientConfig>, SetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and TLS 1.3");
    let builder = match tls.verify {
        Verify::Skip => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerification(schemes))),
        Verify::Full => builder.with_root_certificates(roots(tls)?),
    };
    let mut config = match identity(tls).map_err(SetupError::Identity)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| SetupError::Identity(error.to_string()))?,
    };
    // A resumable session keeps secrets in memory: with TLS 1.2 the secret that deciphers the
    // whole connection.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name that the server's certificate must have.
pub(super) fn server_name(tls: &Tls, host: &str) -> Result<ServerName<'static>, SetupError> {
    let name = tls.server_name.as_deref().unwrap_or(host);
    let refused = |_| SetupError::ServerName(name.to_owned());
    ServerName::try_from(name.to_owned()).map_err(refused)
}

/// The authorities to verify the server by: the configured ones, else the system's.
fn roots(tls: &Tls) -> Result<RootCertStore, SetupError> {
    let (found, path) = match (&tls.ca_cert, &tls.ca_path) {
        (Some(file), _) => (authorities(file), file),
        (None, Some(dir)) => (authorities_in(dir), dir),
        (None, None) => return store(load_native_certs().certs).ok_or(SetupError::NoTrustStore),
    };
    let refused = |why: &str| SetupError::Authorities(path.clone(), why.to_owned());
    store(found.map_err(|why| refused(&why))?)
        .ok_or_else(|| refused("it holds no certificate that can be used"))
}

/// A store of the usable certificates, if there are any.
fn store(certificates: Certificates) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(certificates);
    (usable > 0).then_some(roots)
}

type Certificates = Vec<CertificateDer<'static>>;

/// The certificates of a PEM file.
fn authorities(file: &Path) -> Result<Certificates, String> {
    let bytes = read_regular(file, BUNDLE).map_err(|error| format!("it {error}"))?;
    certificates(&bytes)
}

/// The certificates of all regular files in a directory, through links, as `openssl rehash` makes
/// them: each must be readable.
fn authorities_in(dir: &Path) -> Result<Certificates, String> {
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let mut found = Vec::new();
    let mut size = 0;
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        // A link may point nowhere.
        if !fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let bytes = read(&path, BUNDLE)?;
        size += bytes.len();
        if size > DIRECTORY {
            return Err(format!(
                "its files are larger than {DIRECTORY} bytes together"
            ));
        }
        let in_file = |why| format!("{}: {why}", path.display());
        let of_file = certificates(&bytes).map_err(in_file)?;
        found.extend(of_file);
    }
    found.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    found.dedup();
    Ok(found)
}

fn read(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    read_regular(path, limit).map_err(|error| format!("{} {error}", path.display()))
}

fn certificates(pem: &[u8]) -> Result<Certificates, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

type Identity = (Certificates, PrivateKeyDer<'static>);

fn identity(tls: &Tls) -> Result<Option<Identity>, String> {
    let (cert, key) = match (&tls.client_cert, &tls.client_key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => return Err("`client_key` is missing".to_owned()),
        (None, Some(_)) => return Err("`client_cert` is missing".to_owned()),
    };
    let pem = read(cert, LIMIT)?;
    let in_file = |why| format!("{}: {why}", cert.display());
    let chain = certificates(&pem).map_err(in_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key, LIMIT)?)
        .map_err(|error| format!("{}: {error}", key.display()))?;
    Ok(Some((chain, key)))
}

/// Explains a failed handshake, with a hint.
pub(super) fn explain(error: &rustls::Error) -> String {
    use CertificateError as E;
    if matches!(error, rustls::Error::InvalidMessage(_)) {
        return "the server does not speak TLS; hint: is its address `http://`?".to_owned();
    }
    let rustls::Error::InvalidCertificate(why) = error else {
        return format!("the TLS handshake failed: {error}");
    };
    // A bad signature is typical of an authority that was made anew under the old name.
    if matches!(why, E::UnknownIssuer | E::BadSignature) {
        "the server's certificate is of an unknown issuer; hint: name its authority in `ca_cert`"
            .to_owned()
    } else if matches!(why, E::NotValidForName | E::NotValidForNameContext { .. }) {
        format!("the server's certificate is for another name ({why}); hint: set `tls_server_name`")
    } else if matches!(why, E::Expired | E::ExpiredContext { .. }) {
        "the server's certificate has expired".to_owned()
    } else if matches!(why, E::NotValidYet | E::NotValidYetContext { .. }) {
        "the server's certificate is not valid yet; hint: is this machine's clock right?".to_owned()
    } else {
        format!("the server's certificate is refused: {why}")
    }
}

/// Accepts any certificate (`tls_skip_verify`), but still verifies that the peer holds the key of
/// the certificate.
#[derive(Debug)]
struct NoVerification(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_certificate_is_named_with_its_remedy() {
        let certificate = rustls::Error::InvalidCertificate;
        for (error, want) in [
            (
                certificate(CertificateError::UnknownIssuer),
                "hint: name its authority in `ca_cert`",
            ),
            (
                certificate(CertificateError::NotValidForName),
                "hint: set `tls_server_name`",
            ),
            (certificate(CertificateError::Expired), "has expired"),
            (certificate(CertificateError::NotValidYet), "clock"),
            (certificate(CertificateError::Revoked), "is refused"),
            (
                rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
                "`http://`",
            ),
            (rustls::Error::DecryptError, "handshake failed"),
        ] {
            let words = explain(&error);
            assert!(words.contains(want), "{words}");
        }
    }
}
