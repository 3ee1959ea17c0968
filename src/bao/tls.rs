//! Whom to trust and what to show. Invariant: the configured authorities replace the system's; an empty trust store is
//! an error of its own, never a connection that cannot work.

use crate::config::plan::{Tls, Verify};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a client cannot be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum SetupError {
    /// The system has no authorities, as in an image from scratch.
    NoTrustStore,
    /// `ca_cert` or `ca_path` cannot be read, or holds no authority.
    Authorities(PathBuf, String),
    /// `client_cert` or `client_key` is missing, or cannot be used.
    Identity(String),
    /// The name to verify the server by is no name.
    ServerName(String),
    /// The address cannot be written as one.
    Address(String),
    /// A namespace that no header can carry.
    Namespace,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTrustStore => f.write_str(
                "no certificate authority to trust the server by: this system has no CA bundle; \
                 hint: mount one and name it in `ca_cert`, or in the environment's SSL_CERT_FILE",
            ),
            Self::Authorities(path, why) => write!(f, "no certificate authority could be taken from {}: {why}", path.display()),
            Self::Identity(why) => write!(f, "the client certificate cannot be used: {why}"),
            Self::ServerName(name) => write!(f, "{name:?} is no name that a server's certificate can be verified by"),
            Self::Address(why) => write!(f, "the server's address cannot be used: {why}"),
            Self::Namespace => f.write_str("the namespace has a character that no header can carry"),
        }
    }
}

impl std::error::Error for SetupError {}

/// Reads the files and makes the settings of every connection.
pub(super) fn config(tls: &Tls) -> Result<Arc<ClientConfig>, SetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SetupError::Identity(error.to_string()))?;
    let builder = match tls.verify {
        Verify::Skip => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(schemes))),
        Verify::Full => with_roots(builder, tls)?,
    };
    let config = match identity(tls)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| SetupError::Identity(error.to_string()))?,
    };
    Ok(Arc::new(config))
}

/// The name that the server's certificate must have.
pub(super) fn server_name(tls: &Tls, host: &str) -> Result<ServerName<'static>, SetupError> {
    let name = tls.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned()).map_err(|_| SetupError::ServerName(name.to_owned()))
}

type Verified = ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn with_roots(builder: ConfigBuilder<ClientConfig, WantsVerifier>, tls: &Tls) -> Result<Verified, SetupError> {
    let found = match (&tls.ca_cert, &tls.ca_path) {
        (Some(file), _) => configured(file, load_certs_from_paths(Some(file), None))?,
        (None, Some(dir)) => configured(dir, load_certs_from_paths(None, Some(dir)))?,
        (None, None) => load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found);
    match (roots.is_empty(), &tls.ca_cert, &tls.ca_path) {
        (false, _, _) => Ok(builder.with_root_certificates(roots)),
        (true, Some(path), _) | (true, None, Some(path)) => {
            Err(SetupError::Authorities(path.clone(), "it holds no certificate that can be used".to_owned()))
        }
        (true, None, None) => Err(SetupError::NoTrustStore),
    }
}

/// The certificates of a configured place: each of its files must be readable.
fn configured(path: &Path, found: CertificateResult) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    match found.errors.first() {
        None => Ok(found.certs),
        Some(error) => Err(SetupError::Authorities(path.to_owned(), error.to_string())),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(tls: &Tls) -> Result<Option<Identity>, SetupError> {
    let (cert, key) = match (&tls.client_cert, &tls.client_key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => return Err(SetupError::Identity("`client_key` is missing".to_owned())),
        (None, Some(_)) => return Err(SetupError::Identity("`client_cert` is missing".to_owned())),
    };
    let broken = |path: &Path, error: &rustls::pki_types::pem::Error| SetupError::Identity(format!("{}: {error}", path.display()));
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(|e| broken(cert, &e))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| broken(key, &e))?;
    Ok(Some((chain, key)))
}

/// What a failed handshake means, and what to do.
pub(super) fn explain(error: &rustls::Error) -> String {
    use CertificateError as E;
    if matches!(error, rustls::Error::InvalidMessage(_)) {
        return "the server does not speak TLS; hint: is its address `http://`?".to_owned();
    }
    let rustls::Error::InvalidCertificate(why) = error else {
        return format!("the TLS handshake failed: {error}");
    };
    // A bad signature is an authority's that was made anew under its old name.
    if matches!(why, E::UnknownIssuer | E::BadSignature) {
        "the server's certificate is of an unknown issuer; hint: name its authority in `ca_cert`".to_owned()
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

/// Verifies nobody (`tls_skip_verify`), but still that the peer holds the key of what it shows.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
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
            (certificate(CertificateError::UnknownIssuer), "hint: name its authority in `ca_cert`"),
            (certificate(CertificateError::NotValidForName), "hint: set `tls_server_name`"),
            (certificate(CertificateError::Expired), "has expired"),
            (certificate(CertificateError::NotValidYet), "clock"),
            (certificate(CertificateError::Revoked), "is refused"),
            (rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "`http://`"),
            (rustls::Error::DecryptError, "handshake failed"),
        ] {
            let words = explain(&error);
            assert!(words.contains(want), "{words}");
        }
    }
}
