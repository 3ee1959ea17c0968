//! The only HTTP and the only token: `Client` implements `Source`. Invariants: only this module
//! knows OpenBao's wire format; a request goes to the configured server alone (no redirect is
//! followed), is bounded in time and size, and is never repeated here; an error carries the
//! server's error texts, never the data of a response.

mod auth;
mod kv;
mod response;
mod tls;
mod transport;

pub use tls::SetupError;
pub use transport::Limits;

use crate::config::plan::{Auth, Server, Verify};
use crate::exit::Exit;
use crate::lease::source::{Cause, Failure, Lease, Ownership, Reply, Source, TokenGrant};
use crate::names::{LeaseId, SecretPath};
use crate::observe::Incident;
use crate::template::Read;
use auth::Login;
use http::Request;
use http::header::{HeaderName, HeaderValue};
use kv::{Route, SecretMount};
use response::{BaoOperation, Response, TokenInfo};
use rustify::endpoint::Endpoint;
use rustify::enums::RequestMethod;
use rustify::errors::ClientError;
use rustify::http::build_request;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use transport::{Transport, TransportError};
use vaultrs::api::token::requests::{
    LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest,
};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

type BuiltRequest = Result<Request<Vec<u8>>, ClientError>;

/// A server and a login to the server.
pub struct Client {
    transport: Transport,
    login: Login,
    /// Namespace of every request but the login.
    namespace: Option<HeaderValue>,
    /// Namespace of the login.
    login_namespace: Option<HeaderValue>,
    /// The mounts found under the current token.
    mounts: RefCell<Vec<SecretMount>>,
    /// Held during the lookup of a mount, so that concurrent reads share one lookup.
    looking: tokio::sync::Mutex<()>,
    /// Addresses of the server that refused a login since the last successful login: the next login
    /// goes to another address, if there is another. Each node counts refused logins apart, and
    /// a standby may not know a new `secret_id` yet.
    refusing: RefCell<Vec<SocketAddr>>,
}

/// Saved for a successor process: the credentials of the last logins, and the mounts.
#[derive(Serialize, Deserialize)]
pub struct ClientExport {
    login: auth::Seen,
    mounts: Vec<SecretMount>,
}

/// A token as a header value, which Debug does not print. All requests share one buffer. Text that
/// no header can carry is refused.
pub struct ClientToken {
    value: HeaderValue,
    ownership: Ownership,
}

impl ClientToken {
    /// Makes a token of the server's text, if a header can carry the text.
    fn new(text: &str, ownership: Ownership) -> Option<Self> {
        let mut value = HeaderValue::from_str(text).ok()?;
        if value.is_empty() {
            return None;
        }
        value.set_sensitive(true);
        Some(Self { value, ownership })
    }
}

impl fmt::Debug for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientToken(..)")
    }
}

impl Client {
    /// Reads the files that TLS needs; sends nothing.
    ///
    /// # Errors
    /// When a file cannot be used, or when no certificate authority is known for the server.
    pub fn new(server: &Server, auth: &Auth) -> Result<Self, SetupError> {
        let transport = Transport::new(&server.address, &server.tls)?;
        if server.tls.verify == Verify::Skip {
            let server = &server.address.host;
            Incident::TlsUnverified { server }.emit(&"`tls_skip_verify` is set");
        }
        let of_server = server.namespace.as_deref();
        let of_login = auth.namespace.as_deref().or(of_server);
        Ok(Self {
            transport,
            login: Login::new(auth),
            namespace: header(of_server)?,
            login_namespace: header(of_login)?,
            mounts: RefCell::default(),
            looking: tokio::sync::Mutex::default(),
            refusing: RefCell::default(),
        })
    }

    /// Replaces the default bounds of time and size.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.transport.limits = limits;
        self
    }

    /// Sends a request under `token`. A response without success is returned as a failure.
    async fn call<'a>(
        &self,
        request: BuiltRequest,
        operation: BaoOperation<'a>,
        token: &ClientToken,
    ) -> Result<Response<'a>, Failure> {
        let response = self.send(request, operation, Some(token)).await?;
        match response.cause() {
            None => Ok(response),
            Some(cause) => Err(response.failure(cause)),
        }
    }

    /// Sends a request under `token`, or a login, and returns a response of any status. After a
    /// refused login another address is asked first.
    async fn send<'a>(
        &self,
        request: BuiltRequest,
        operation: BaoOperation<'a>,
        token: Option<&ClientToken>,
    ) -> Result<Response<'a>, Failure> {
        let mut request = request.map_err(|_| {
            operation.failure(Cause::NotFound, "its path cannot be written as an address")
        })?;
        let headers = request.headers_mut();
        let (namespace, avoid) = match token {
            Some(token) => {
                headers.insert(TOKEN, token.value.clone());
                (&self.namespace, Vec::new())
            }
            None => (&self.login_namespace, self.refusing.borrow().clone()),
        };
        if let Some(namespace) = namespace {
            headers.insert(NAMESPACE, namespace.clone());
        }
        self.transport.send(request, operation, &avoid).await
    }

    /// The path to request for `path`. The server is asked once for each mount.
    async fn route(&self, token: &ClientToken, path: &SecretPath) -> Result<Route, Failure> {
        let _looking = self.looking.lock().await;
        if let Some(route) = self
            .mounts
            .borrow()
            .iter()
            .find_map(|mount| mount.route(path))
        {
            return Ok(route);
        }
        let request = self.get(&format!("sys/internal/ui/mounts/{path}"), None);
        let operation = BaoOperation::FindMount(path);
        let response = self.call(request, operation, token).await?;
        let info = response.data()?;
        let mount = SecretMount::new(path, &info);
        let mount = response.require(mount, "the server named another mount")?;
        let route = response.require(mount.route(path), "the path is the mount itself")?;
        self.mounts.borrow_mut().push(mount);
        Ok(route)
    }

    async fn read_within(&self, token: &ClientToken, read: &Read) -> Result<Reply, Failure> {
        let route = self.route(token, &read.path).await?;
        let operation = BaoOperation::Read(&read.path);
        if read.version.is_some() && !route.versioned {
            return Err(operation.failure(
                Cause::NotFound,
                "a version is asked for, but only KV version 2 keeps versions",
            ));
        }
        let query = read.version.map(|version| format!("version={version}"));
        let request = self.get(&route.path, query);
        let response = self.send(request, operation, Some(token)).await?;
        let Some(cause) = response.cause() else {
            return response.reply(route.versioned);
        };
        let gone = if route.versioned {
            response.gone()
        } else {
            None
        };
        Err(gone.unwrap_or_else(|| response.failure(cause)))
    }

    fn get(&self, path: &str, query: Option<String>) -> BuiltRequest {
        build_request(
            &self.transport.origin,
            path,
            RequestMethod::GET,
            query,
            None,
        )
    }
}

impl Source for Client {
    type Token = ClientToken;
    type Kept = ClientExport;

    async fn login(&self) -> Result<(ClientToken, TokenGrant), Failure> {
        let operation = BaoOperation::Login(&self.login.mount);
        let credentials = self
            .login
            .credentials()
            .map_err(|error| operation.failure(Cause::Login, &error.to_string()))?;
        let request = self.login.request(&credentials, &self.transport.origin);
        let response = self.send(request, operation, None).await?;
        if let Some(cause) = response.cause() {
            if cause.exit() == Exit::Login {
                let mut refusing = self.refusing.borrow_mut();
                if response.from.elsewhere {
                    refusing.push(response.from.address);
                } else {
                    refusing.clear();
                }
            }
            return Err(response.failure(cause));
        }
        let auth = response.auth()?;
        let token = ClientToken::new(&auth.client_token, self.login.ownership());
        let token = response.require(token, "the answer's token cannot be sent in a header")?;
        self.mounts.borrow_mut().clear();
        self.login.worked(credentials);
        self.refusing.borrow_mut().clear();
        Ok((token, auth.grant()))
    }

    fn credentials_changed(&self) -> bool {
        self.login.changed()
    }

    fn expose<'a>(&self, token: &'a ClientToken) -> &'a [u8] {
        token.value.as_bytes()
    }

    fn token(&self, bytes: &[u8]) -> Option<ClientToken> {
        let text = std::str::from_utf8(bytes).ok()?;
        ClientToken::new(text, self.login.ownership())
    }

    fn export_credentials(&self) -> ClientExport {
        ClientExport {
            login: self.login.seen.borrow().clone(),
            mounts: self.mounts.borrow().clone(),
        }
    }

    fn import_credentials(&self, kept: ClientExport) {
        self.login.seen.replace(kept.login);
        self.mounts.replace(kept.mounts);
    }

    fn commit_credentials(&self) {
        self.login.remove_file();
    }

    async fn read(&self, token: &ClientToken, read: &Read) -> Result<Reply, Failure> {
        // Reads of the same mount wait for one lookup: the limit bounds the wait, too.
        let limit = self.transport.limits.total;
        let operation = BaoOperation::Read(&read.path);
        let late = |_| TransportError::Late(limit).failure(operation);
        let reading = self.read_within(token, read);
        let reply = tokio::time::timeout(limit, reading).await;
        reply.map_err(late).flatten()
    }

    async fn renew(
        &self,
        token: &ClientToken,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<Lease, Failure> {
        let body =
            serde_json::json!({ "lease_id": lease.as_str(), "increment": increment.as_secs() });
        let request = build_request(
            &self.transport.origin,
            "sys/leases/renew",
            RequestMethod::POST,
            None,
            Some(body.to_string().into_bytes()),
        );
        let response = self.call(request, BaoOperation::RenewLease, token).await?;
        response.lease()
    }

    async fn renew_token(&self, token: &ClientToken) -> Result<TokenGrant, Failure> {
        let request = RenewTokenSelfRequest { increment: None }.request(&self.transport.origin);
        let response = self.call(request, BaoOperation::RenewToken, token).await?;
        Ok(response.auth()?.grant())
    }

    async fn look_up_token(&self, token: &ClientToken) -> Result<TokenGrant, Failure> {
        let request = LookupTokenSelfRequest {}.request(&self.transport.origin);
        let response = self.call(request, BaoOperation::LookUpToken, token).await?;
        Ok(response.data::<TokenInfo>()?.grant())
    }

    async fn revoke_token(&self, token: &ClientToken) -> Result<Ownership, Failure> {
        if token.ownership == Ownership::Ours {
            let request = RevokeTokenSelfRequest {}.request(&self.transport.origin);
            self.call(request, BaoOperation::RevokeToken, token).await?;
        }
        Ok(token.ownership)
    }
}

/// A namespace as a header value.
fn header(namespace: Option<&str>) -> Result<Option<HeaderValue>, SetupError> {
    let value = namespace
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(HeaderValue::from_str);
    value.transpose().map_err(|_| SetupError::Namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::{Address, AfterReading, Method, Scheme, Tls};

    #[test]
    fn a_token_that_no_login_of_ours_made_is_never_revoked() {
        // Nothing listens there: a request that is sent fails.
        let address = Address {
            scheme: Scheme::Http,
            host: "127.0.0.1".to_owned(),
            port: 1,
            prefix: String::new(),
        };
        let server = Server {
            address,
            tls: Tls::default(),
            namespace: None,
            retry_max: Duration::from_secs(1),
        };
        let auth = Auth {
            mount_path: "auth/approle".to_owned(),
            namespace: None,
            method: Method::AppRole {
                role_id_file: "/nowhere".into(),
                secret_id_file: None,
                after_reading: AfterReading::Keep,
            },
        };
        let client = Client::new(&server, &auth).expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let revoke = |ownership| {
            let token = ClientToken::new("s.1", ownership).expect("a token");
            runtime.block_on(client.revoke_token(&token))
        };
        let sent = revoke(Ownership::Ours).expect_err("nothing listens there");
        assert_eq!(sent.cause, Cause::Unreachable);
        assert_eq!(revoke(Ownership::Foreign), Ok(Ownership::Foreign));
        let restored = client.token(b"s.1").expect("a token");
        assert_eq!(restored.ownership, Ownership::Ours);
    }
}
