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
use response::{BaoOperation, MountInfo, Response, TokenInfo};
use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use transport::Transport;
use vaultrs::api::token::requests::{
    LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest,
};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// A listener may require this header, so that a browser cannot be tricked into a request.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

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
    login: auth::LoginExport,
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
        Ok(Self {
            transport,
            login: Login::new(auth),
            namespace: header(server.namespace.as_deref())?,
            login_namespace: header(auth.namespace.as_deref().or(server.namespace.as_deref()))?,
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
    async fn call(
        &self,
        endpoint: &impl Endpoint,
        operation: BaoOperation<'_>,
        token: &ClientToken,
    ) -> Result<Response, Failure> {
        let response = self.send(endpoint, operation, token).await?;
        match response.cause(operation) {
            None => Ok(response),
            Some(cause) => Err(response.failure(operation, cause)),
        }
    }

    /// Sends a request under `token` and returns a response of any status.
    async fn send(
        &self,
        endpoint: &impl Endpoint,
        operation: BaoOperation<'_>,
        token: &ClientToken,
    ) -> Result<Response, Failure> {
        let request = endpoint.request(self.transport.origin());
        let mut request = request.map_err(|_| operation.no_address())?;
        let headers = request.headers_mut();
        headers.insert(TOKEN, token.value.clone());
        if let Some(namespace) = &self.namespace {
            headers.insert(NAMESPACE, namespace.clone());
        }
        self.exchange(request, operation, &[]).await
    }

    /// Sends a request. The addresses in `avoid` are tried last.
    async fn exchange(
        &self,
        mut request: Request<Vec<u8>>,
        operation: BaoOperation<'_>,
        avoid: &[SocketAddr],
    ) -> Result<Response, Failure> {
        let headers = request.headers_mut();
        headers.insert(REQUEST, HeaderValue::from_static("true"));
        let limits = &self.transport.limits;
        let most = if matches!(operation, BaoOperation::Read(_)) {
            limits.secret
        } else {
            limits.other
        };
        let response = self.transport.send(request, most, avoid).await;
        response.map_err(|error| operation.failure(error.cause(), &error.to_string()))
    }

    /// The failure of a login. After a refusal another address is asked next.
    fn refused(&self, response: &Response, operation: BaoOperation<'_>, cause: Cause) -> Failure {
        let elsewhere = response.from.elsewhere;
        let cause = if matches!(cause, Cause::LockedOut { .. }) {
            Cause::LockedOut { elsewhere }
        } else {
            cause
        };
        if cause.exit() == Exit::Login {
            let mut refusing = self.refusing.borrow_mut();
            if elsewhere {
                refusing.push(response.from.address);
            } else {
                refusing.clear();
            }
        }
        response.failure(operation, cause)
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
        let operation = BaoOperation::FindMount(path);
        let endpoint = Logical {
            path: format!("sys/internal/ui/mounts/{path}"),
            query: None,
            body: None,
        };
        let response = self.call(&endpoint, operation, token).await?;
        let info: MountInfo = response.data(operation)?;
        let mount = SecretMount::new(path, &info)
            .ok_or_else(|| operation.failure(Cause::Malformed, "the server named another mount"))?;
        let route = mount
            .route(path)
            .ok_or_else(|| operation.failure(Cause::Malformed, "the path is the mount itself"))?;
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
        let endpoint = Logical {
            path: route.path,
            query: read.version.map(|version| format!("version={version}")),
            body: None,
        };
        let response = self.send(&endpoint, operation, token).await?;
        match response.cause(operation) {
            None => response.reply(operation, route.versioned),
            Some(cause) if route.versioned => Err(response
                .gone(operation)
                .unwrap_or_else(|| response.failure(operation, cause))),
            Some(cause) => Err(response.failure(operation, cause)),
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
        let request = self.login.request(&credentials, self.transport.origin());
        let mut request = request.map_err(|_| operation.no_address())?;
        if let Some(namespace) = &self.login_namespace {
            request.headers_mut().insert(NAMESPACE, namespace.clone());
        }
        let avoid = self.refusing.borrow().clone();
        let response = self.exchange(request, operation, &avoid).await?;
        if let Some(cause) = response.cause(operation) {
            return Err(self.refused(&response, operation, cause));
        }
        let auth = response.auth(operation)?;
        let token = ClientToken::new(&auth.client_token, self.login.ownership());
        let token = token.ok_or_else(|| {
            let why = "the answer's token cannot be sent in a header";
            operation.failure(Cause::Malformed, why)
        })?;
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
        ClientToken::new(std::str::from_utf8(bytes).ok()?, self.login.ownership())
    }

    fn export_credentials(&self) -> ClientExport {
        ClientExport {
            login: self.login.export(),
            mounts: self.mounts.borrow().clone(),
        }
    }

    fn import_credentials(&self, kept: ClientExport) {
        self.login.import(kept.login);
        *self.mounts.borrow_mut() = kept.mounts;
    }

    fn commit_credentials(&self) {
        self.login.remove_file();
    }

    async fn read(&self, token: &ClientToken, read: &Read) -> Result<Reply, Failure> {
        // Reads of the same mount wait for one lookup: the limit bounds the wait, too.
        let limit = self.transport.limits.total;
        let late = || {
            BaoOperation::Read(&read.path)
                .failure(Cause::Unreachable, &format!("no answer within {limit:?}"))
        };
        tokio::time::timeout(limit, self.read_within(token, read))
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
        let endpoint = Logical {
            path: "sys/leases/renew".to_owned(),
            query: None,
            body: Some(body.to_string().into_bytes()),
        };
        let operation = BaoOperation::RenewLease;
        let response = self.call(&endpoint, operation, token).await?;
        response
            .lease(operation)?
            .ok_or_else(|| operation.failure(Cause::Malformed, "the answer has no lease"))
    }

    async fn renew_token(&self, token: &ClientToken) -> Result<TokenGrant, Failure> {
        let operation = BaoOperation::RenewToken;
        let endpoint = RenewTokenSelfRequest { increment: None };
        let response = self.call(&endpoint, operation, token).await?;
        Ok(response.auth(operation)?.grant())
    }

    async fn look_up_token(&self, token: &ClientToken) -> Result<TokenGrant, Failure> {
        let operation = BaoOperation::LookUpToken;
        let endpoint = LookupTokenSelfRequest {};
        let response = self.call(&endpoint, operation, token).await?;
        Ok(response.data::<TokenInfo>(operation)?.grant())
    }

    async fn revoke_token(&self, token: &ClientToken) -> Result<Ownership, Failure> {
        if token.ownership == Ownership::Ours {
            let endpoint = RevokeTokenSelfRequest {};
            let operation = BaoOperation::RevokeToken;
            self.call(&endpoint, operation, token).await?;
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

/// A request without a type in vaultrs: a POST if there is a body, else a GET.
struct Logical {
    path: String,
    query: Option<String>,
    body: Option<Vec<u8>>,
}

impl Endpoint for Logical {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        if self.body.is_some() {
            RequestMethod::POST
        } else {
            RequestMethod::GET
        }
    }

    fn query(&self) -> Result<Option<String>, ClientError> {
        Ok(self.query.clone())
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.body.clone())
    }
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
