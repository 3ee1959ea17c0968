//! The only HTTP and the only token: `Client` implements `Source`. Invariants: only this module
//! knows OpenBao's wire format; a request goes to the configured server alone (no redirect is
//! followed), is bounded in time and size, and is never repeated here; an error carries the
//! server's error texts, never the data of a response.

mod approle;
mod kv;
mod response;
mod tls;
mod transport;

pub use tls::SetupError;
pub use transport::Limits;

use crate::config::plan::{Auth, Method, Query, Server, Verify};
use crate::exit::Exit;
use crate::lease::source::{Cause, Failure, Lease, Reply, Source, TokenGrant};
use crate::names::{LeaseId, SecretPath};
use crate::observe::Incident;
use approle::AppRole;
use http::header::{HeaderName, HeaderValue};
use kv::{Route, SecretMount};
use response::{AuthInfo, BaoOperation, Envelope, MountInfo, Response};
use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use transport::Transport;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
use vaultrs::api::token::requests::{
    LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest,
};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// A listener may require this header, so that a browser cannot be tricked into a request.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// A server and a way to log in to it.
pub struct Client {
    transport: Transport,
    login: AppRole,
    /// Namespace of every request but the login.
    namespace: Option<HeaderValue>,
    /// Namespace of the login.
    login_namespace: Option<HeaderValue>,
    /// The mounts found under the current token.
    mounts: Mutex<Vec<SecretMount>>,
    /// Held during the lookup of a mount, so that concurrent reads share one lookup.
    looking: tokio::sync::Mutex<()>,
    /// Addresses of the server that refused a login since the last successful login: the next login
    /// goes to another address, if there is another. Each node counts refused logins by itself, and
    /// a standby may not know a new `secret_id` yet.
    refusing: Mutex<Vec<SocketAddr>>,
}

/// Saved for a successor process: the credentials of the last logins, and the mounts.
#[derive(Serialize, Deserialize)]
pub struct ClientExport {
    login: approle::AppRoleExport,
    mounts: Vec<SecretMount>,
}

/// A token as a header value. All requests share one buffer. Text that no header can carry is
/// refused.
pub struct ClientToken(HeaderValue);

impl ClientToken {
    /// Makes a token of the server's text, if a header can carry the text.
    fn new(text: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(text)
            .ok()
            .filter(|value| !value.is_empty())?;
        value.set_sensitive(true);
        Some(Self(value))
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
        let Method::AppRole {
            role_id_file,
            secret_id_file,
            after_reading,
        } = &auth.method;
        let transport = Transport::new(&server.address, &server.tls)?;
        if server.tls.verify == Verify::Skip {
            let server = &server.address.host;
            Incident::TlsUnverified { server }.emit(&"`tls_skip_verify` is set");
        }
        Ok(Self {
            transport,
            login: AppRole::new(
                &auth.mount_path,
                role_id_file.clone(),
                secret_id_file.clone(),
                *after_reading,
            ),
            namespace: header(server.namespace.as_deref())?,
            login_namespace: header(auth.namespace.as_deref().or(server.namespace.as_deref()))?,
            mounts: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            refusing: Mutex::default(),
        })
    }

    /// Replaces the default bounds of time and size.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.transport.limits = limits;
        self
    }

    /// One exchange. A response without success is returned as a failure.
    async fn call(
        &self,
        endpoint: &impl Endpoint,
        operation: &BaoOperation<'_>,
        token: Option<&ClientToken>,
    ) -> Result<Response, Failure> {
        let response = self.send(endpoint, operation, token).await?;
        match response.cause(operation) {
            None => Ok(response),
            Some(cause) => Err(response.failure(operation, cause)),
        }
    }

    /// One exchange, with any status.
    async fn send(
        &self,
        endpoint: &impl Endpoint,
        operation: &BaoOperation<'_>,
        token: Option<&ClientToken>,
    ) -> Result<Response, Failure> {
        self.send_avoiding(endpoint, operation, token, &[]).await
    }

    /// One exchange. The addresses in `avoid` are tried last.
    async fn send_avoiding(
        &self,
        endpoint: &impl Endpoint,
        operation: &BaoOperation<'_>,
        token: Option<&ClientToken>,
        avoid: &[SocketAddr],
    ) -> Result<Response, Failure> {
        let mut request = endpoint.request(self.transport.origin()).map_err(|_| {
            operation.failure(Cause::NotFound, "its path cannot be written as an address")
        })?;
        let headers = request.headers_mut();
        headers.insert(REQUEST, HeaderValue::from_static("true"));
        let namespace = if matches!(operation, BaoOperation::Login(_)) {
            &self.login_namespace
        } else {
            &self.namespace
        };
        if let Some(namespace) = namespace {
            headers.insert(NAMESPACE, namespace.clone());
        }
        if let Some(ClientToken(token)) = token {
            headers.insert(TOKEN, token.clone());
        }
        let limits = &self.transport.limits;
        let most = if matches!(operation, BaoOperation::Read(_)) {
            limits.secret
        } else {
            limits.other
        };
        self.transport
            .send(request, most, avoid)
            .await
            .map_err(|fault| operation.failure(fault.cause(), &fault.to_string()))
    }

    /// The failure of a login. After a refusal another address is asked next.
    fn refused(&self, response: &Response, operation: &BaoOperation<'_>, cause: Cause) -> Failure {
        let elsewhere = response.from.elsewhere;
        let cause = if matches!(cause, Cause::LockedOut { .. }) {
            Cause::LockedOut { elsewhere }
        } else {
            cause
        };
        if cause.exit() == Exit::Login {
            let mut refusing = self.refusing();
            if elsewhere {
                refusing.push(response.from.address);
            } else {
                refusing.clear();
            }
        }
        response.failure(operation, cause)
    }

    fn refusing(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path to request for `path`. The server is asked once for each mount.
    async fn route(&self, token: &ClientToken, path: &SecretPath) -> Result<Route, Failure> {
        let _looking = self.looking.lock().await;
        if let Some(route) = self.mounts().iter().find_map(|mount| mount.route(path)) {
            return Ok(route);
        }
        let operation = BaoOperation::FindMount(path);
        let endpoint = Logical::get(format!("sys/internal/ui/mounts/{path}"));
        let info: MountInfo = self
            .call(&endpoint, &operation, Some(token))
            .await?
            .data(&operation)?;
        let mount = SecretMount::new(path, &info)
            .ok_or_else(|| operation.failure(Cause::Malformed, "the server named another mount"))?;
        let route = mount
            .route(path)
            .ok_or_else(|| operation.failure(Cause::Malformed, "the path is the mount itself"))?;
        self.mounts().push(mount);
        Ok(route)
    }

    fn mounts(&self) -> MutexGuard<'_, Vec<SecretMount>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the token: the response describes the token afterwards.
    async fn grant(
        &self,
        endpoint: &impl Endpoint,
        operation: &BaoOperation<'_>,
        token: &ClientToken,
    ) -> Result<Envelope, Failure> {
        self.call(endpoint, operation, Some(token))
            .await?
            .parse(operation)
    }

    async fn read_within(&self, token: &ClientToken, query: &Query) -> Result<Reply, Failure> {
        let route = self.route(token, &query.path).await?;
        let operation = BaoOperation::Read(&query.path);
        if query.version.is_some() && !route.versioned {
            return Err(operation.failure(
                Cause::NotFound,
                "a version is asked for, but only KV version 2 keeps versions",
            ));
        }
        let mut endpoint = Logical::get(route.path);
        endpoint.query = query.version.map(|version| format!("version={version}"));
        let response = self.send(&endpoint, &operation, Some(token)).await?;
        match response.cause(&operation) {
            None => response.reply(&operation, route.versioned),
            Some(cause) if route.versioned => Err(response
                .gone(&operation)
                .unwrap_or_else(|| response.failure(&operation, cause))),
            Some(cause) => Err(response.failure(&operation, cause)),
        }
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
        let endpoint = LoginWithApproleRequest {
            mount: self.login.mount.clone(),
            role_id: credentials.role_id.expose_secret().to_owned(),
            secret_id: credentials
                .secret_id
                .as_ref()
                .map_or_else(String::new, |id| id.expose_secret().to_owned()),
        };
        let avoid = self.refusing().clone();
        let response = self
            .send_avoiding(&endpoint, &operation, None, &avoid)
            .await?;
        if let Some(cause) = response.cause(&operation) {
            return Err(self.refused(&response, &operation, cause));
        }
        let envelope: Envelope = response.parse(&operation)?;
        let auth = envelope
            .auth
            .ok_or_else(|| operation.failure(Cause::Malformed, "the answer has no token"))?;
        let token = ClientToken::new(&auth.client_token).ok_or_else(|| {
            operation.failure(
                Cause::Malformed,
                "the answer's token cannot be sent in a header",
            )
        })?;
        self.mounts().clear();
        self.login.worked(credentials);
        self.refusing().clear();
        Ok((token, auth.grant()))
    }

    fn credentials_changed(&self) -> bool {
        self.login.changed()
    }

    fn expose<'a>(&self, token: &'a ClientToken) -> &'a [u8] {
        token.0.as_bytes()
    }

    fn token(&self, bytes: &[u8]) -> Option<ClientToken> {
        ClientToken::new(std::str::from_utf8(bytes).ok()?)
    }

    fn export_credentials(&self) -> ClientExport {
        ClientExport {
            login: self.login.export(),
            mounts: self.mounts().clone(),
        }
    }

    fn import_credentials(&self, kept: ClientExport) {
        self.login.import(kept.login);
        *self.mounts() = kept.mounts;
    }

    fn commit_credentials(&self) {
        if self.login.is_known() {
            self.login.remove_file();
        }
    }

    async fn read(&self, token: &ClientToken, query: &Query) -> Result<Reply, Failure> {
        // Reads of one mount wait for one lookup: the limit bounds this wait, too.
        let limit = self.transport.limits.total;
        let late = || {
            BaoOperation::Read(&query.path)
                .failure(Cause::Unreachable, &format!("no answer within {limit:?}"))
        };
        tokio::time::timeout(limit, self.read_within(token, query))
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn renew(
        &self,
        token: &ClientToken,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<Lease, Failure> {
        let body =
            serde_json::json!({ "lease_id": lease.as_str(), "increment": increment.as_secs() });
        let endpoint = Logical::post("sys/leases/renew", body.to_string().into_bytes());
        let envelope: Envelope = self
            .call(&endpoint, &BaoOperation::RenewLease, Some(token))
            .await?
            .parse(&BaoOperation::RenewLease)?;
        envelope.lease().ok_or_else(|| {
            BaoOperation::RenewLease.failure(Cause::Malformed, "the answer has no lease")
        })
    }

    async fn renew_token(&self, token: &ClientToken) -> Result<TokenGrant, Failure> {
        let operation = BaoOperation::RenewToken;
        let envelope = self
            .grant(
                &RenewTokenSelfRequest { increment: None },
                &operation,
                token,
            )
            .await?;
        envelope.auth.as_ref().map(AuthInfo::grant).ok_or_else(|| {
            operation.failure(Cause::Malformed, "the answer says nothing of the token")
        })
    }

    async fn look_up_token(&self, token: &ClientToken) -> Result<TokenGrant, Failure> {
        let operation = BaoOperation::LookUpToken;
        let endpoint = LookupTokenSelfRequest {};
        Ok(self
            .call(&endpoint, &operation, Some(token))
            .await?
            .data::<response::TokenInfo>(&operation)?
            .grant())
    }

    async fn revoke_token(&self, token: &ClientToken) -> Result<(), Failure> {
        self.call(
            &RevokeTokenSelfRequest {},
            &BaoOperation::RevokeToken,
            Some(token),
        )
        .await
        .map(|_| ())
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

/// A request that vaultrs has no type for.
struct Logical {
    method: RequestMethod,
    path: String,
    query: Option<String>,
    body: Option<Vec<u8>>,
}

impl Logical {
    fn get(path: String) -> Self {
        Self {
            method: RequestMethod::GET,
            path,
            query: None,
            body: None,
        }
    }

    fn post(path: &str, body: Vec<u8>) -> Self {
        Self {
            method: RequestMethod::POST,
            path: path.to_owned(),
            query: None,
            body: Some(body),
        }
    }
}

impl Endpoint for Logical {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        self.method.clone()
    }

    fn query(&self) -> Result<Option<String>, ClientError> {
        Ok(self.query.clone())
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.body.clone())
    }
}
