//! The only HTTP and the only token: `Client` implements `Source`. Invariants: nothing else knows
//! OpenBao's wire; a request goes to the configured server alone (no redirect is followed), is
//! bounded in time and size, and is never repeated here; an error carries the server's own words,
//! never an answer's data.

mod answer;
mod approle;
mod kv;
mod tls;
mod transport;

pub use tls::SetupError;
pub use transport::Limits;

use crate::config::plan::{Auth, Method, Query, Server, Verify};
use crate::exit::Exit;
use crate::lease::source::{Cause, Failure, Lease, Reply, Source, TokenGrant};
use crate::names::{LeaseId, SecretPath};
use crate::observe::Event;
use answer::{Answer, AuthInfo, Envelope, MountInfo, Task};
use approle::AppRole;
use http::header::{HeaderName, HeaderValue};
use kv::{Mount, Route};
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
/// Listeners may ask for it, so that a browser cannot be tricked into a request.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// A server and a way to log in to it.
pub struct Client {
    transport: Transport,
    login: AppRole,
    /// Namespace of every request but the login.
    namespace: Option<HeaderValue>,
    /// Namespace of the login.
    login_namespace: Option<HeaderValue>,
    /// The mounts seen under the present token.
    mounts: Mutex<Vec<Mount>>,
    /// Held during a look-up, so that reads side by side share one.
    looking: tokio::sync::Mutex<()>,
    /// Addresses of the server that refused a login since the last one that worked: the next is
    /// sent to another, if there is one. Each node has a count of refused logins of its own,
    /// and a standby may not know a new `secret_id` yet.
    refusing: Mutex<Vec<SocketAddr>>,
}

/// What a successor must know: the credentials of the last logins, and the mounts.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    login: approle::Kept,
    mounts: Vec<Mount>,
}

/// A token as a header: what no header can carry is no token. One buffer, shared by the requests
/// that show it.
pub struct Token(HeaderValue);

impl Token {
    /// Takes the server's text, if a header can carry it.
    fn new(text: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(text)
            .ok()
            .filter(|value| !value.is_empty())?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Client {
    /// Reads the files that TLS needs; sends nothing.
    ///
    /// # Errors
    /// When they cannot be used, or when there is nothing to trust the server by.
    pub fn new(server: &Server, auth: &Auth) -> Result<Self, SetupError> {
        let Method::AppRole {
            role_id_file,
            secret_id_file,
            after_reading,
        } = &auth.method;
        let transport = Transport::new(&server.address, &server.tls)?;
        if server.tls.verify == Verify::Skip {
            Event::Unverified {
                server: &server.address.host,
            }
            .emit();
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
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.transport.limits = limits;
        self
    }

    /// One exchange. An answer that is no success comes back as a failure.
    async fn call(
        &self,
        endpoint: &impl Endpoint,
        task: &Task<'_>,
        token: Option<&Token>,
    ) -> Result<Answer, Failure> {
        let answer = self.send(endpoint, task, token).await?;
        match answer.cause(task) {
            None => Ok(answer),
            Some(cause) => Err(answer.failure(task, cause)),
        }
    }

    /// One exchange, whatever the status.
    async fn send(
        &self,
        endpoint: &impl Endpoint,
        task: &Task<'_>,
        token: Option<&Token>,
    ) -> Result<Answer, Failure> {
        self.send_avoiding(endpoint, task, token, &[]).await
    }

    /// One exchange; the addresses to avoid are tried last.
    async fn send_avoiding(
        &self,
        endpoint: &impl Endpoint,
        task: &Task<'_>,
        token: Option<&Token>,
        avoid: &[SocketAddr],
    ) -> Result<Answer, Failure> {
        let mut request = endpoint.request(self.transport.origin()).map_err(|_| {
            task.failure(Cause::NotFound, "its path cannot be written as an address")
        })?;
        let headers = request.headers_mut();
        headers.insert(REQUEST, HeaderValue::from_static("true"));
        let namespace = if matches!(task, Task::Login(_)) {
            &self.login_namespace
        } else {
            &self.namespace
        };
        if let Some(namespace) = namespace {
            headers.insert(NAMESPACE, namespace.clone());
        }
        if let Some(Token(token)) = token {
            headers.insert(TOKEN, token.clone());
        }
        let limits = &self.transport.limits;
        let most = if matches!(task, Task::Read(_)) {
            limits.secret
        } else {
            limits.other
        };
        self.transport
            .send(request, most, avoid)
            .await
            .map_err(|fault| task.failure(fault.cause(), &fault.to_string()))
    }

    /// The failure of a login; where it was refused, another address is asked next.
    fn refused(&self, answer: &Answer, task: &Task<'_>, cause: Cause) -> Failure {
        let elsewhere = answer.from.elsewhere;
        let cause = if matches!(cause, Cause::LockedOut { .. }) {
            Cause::LockedOut { elsewhere }
        } else {
            cause
        };
        if cause.exit() == Exit::Login {
            let mut refusing = self.refusing();
            if elsewhere {
                refusing.push(answer.from.address);
            } else {
                refusing.clear();
            }
        }
        answer.failure(task, cause)
    }

    fn refusing(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `path` really is: decided once for each mount by the server's own word.
    async fn route(&self, token: &Token, path: &SecretPath) -> Result<Route, Failure> {
        let _looking = self.looking.lock().await;
        if let Some(route) = self.mounts().iter().find_map(|mount| mount.route(path)) {
            return Ok(route);
        }
        let task = Task::FindMount(path);
        let endpoint = Logical::get(format!("sys/internal/ui/mounts/{path}"));
        let info: MountInfo = self
            .call(&endpoint, &task, Some(token))
            .await?
            .data(&task)?;
        let mount = Mount::new(path, &info)
            .ok_or_else(|| task.failure(Cause::Malformed, "the server named another mount"))?;
        let route = mount
            .route(path)
            .ok_or_else(|| task.failure(Cause::Malformed, "the path is the mount itself"))?;
        self.mounts().push(mount);
        Ok(route)
    }

    fn mounts(&self) -> MutexGuard<'_, Vec<Mount>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews or looks up: what the server says of the token afterwards.
    async fn grant(
        &self,
        endpoint: &impl Endpoint,
        task: &Task<'_>,
        token: &Token,
    ) -> Result<Envelope, Failure> {
        self.call(endpoint, task, Some(token)).await?.parse(task)
    }

    async fn read_within(&self, token: &Token, query: &Query) -> Result<Reply, Failure> {
        let route = self.route(token, &query.path).await?;
        let task = Task::Read(&query.path);
        if query.version.is_some() && !route.versioned {
            return Err(task.failure(
                Cause::NotFound,
                "a version is asked for, but only KV version 2 keeps versions",
            ));
        }
        let mut endpoint = Logical::get(route.path);
        endpoint.query = query.version.map(|version| format!("version={version}"));
        let answer = self.send(&endpoint, &task, Some(token)).await?;
        match answer.cause(&task) {
            None => answer.reply(&task, route.versioned),
            Some(cause) if route.versioned => Err(answer
                .gone(&task)
                .unwrap_or_else(|| answer.failure(&task, cause))),
            Some(cause) => Err(answer.failure(&task, cause)),
        }
    }
}

impl Source for Client {
    type Token = Token;
    type Kept = Kept;

    async fn login(&self) -> Result<(Token, TokenGrant), Failure> {
        let task = Task::Login(&self.login.mount);
        let credentials = self
            .login
            .credentials()
            .map_err(|error| task.failure(Cause::Login, &error.to_string()))?;
        let endpoint = LoginWithApproleRequest {
            mount: self.login.mount.clone(),
            role_id: credentials.role_id.expose_secret().to_owned(),
            secret_id: credentials
                .secret_id
                .as_ref()
                .map_or_else(String::new, |id| id.expose_secret().to_owned()),
        };
        let avoid = self.refusing().clone();
        let answer = self.send_avoiding(&endpoint, &task, None, &avoid).await?;
        if let Some(cause) = answer.cause(&task) {
            return Err(self.refused(&answer, &task, cause));
        }
        let envelope: Envelope = answer.parse(&task)?;
        let auth = envelope
            .auth
            .ok_or_else(|| task.failure(Cause::Malformed, "the answer has no token"))?;
        let token = Token::new(&auth.client_token).ok_or_else(|| {
            task.failure(
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

    fn expose<'a>(&self, token: &'a Token) -> &'a [u8] {
        token.0.as_bytes()
    }

    fn token(&self, bytes: &[u8]) -> Option<Token> {
        Token::new(std::str::from_utf8(bytes).ok()?)
    }

    fn keep(&self) -> Kept {
        Kept {
            login: self.login.keep(),
            mounts: self.mounts().clone(),
        }
    }

    fn restore(&self, kept: Kept) {
        self.login.restore(kept.login);
        *self.mounts() = kept.mounts;
    }

    fn settle(&self) {
        if self.login.is_known() {
            self.login.remove_file();
        }
    }

    async fn read(&self, token: &Token, query: &Query) -> Result<Reply, Failure> {
        // Reads of one mount wait for one look-up: that wait is bounded as well.
        let limit = self.transport.limits.total;
        let late = || {
            Task::Read(&query.path)
                .failure(Cause::Unreachable, &format!("no answer within {limit:?}"))
        };
        tokio::time::timeout(limit, self.read_within(token, query))
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn renew(
        &self,
        token: &Token,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<Lease, Failure> {
        let body =
            serde_json::json!({ "lease_id": lease.as_str(), "increment": increment.as_secs() });
        let endpoint = Logical::post("sys/leases/renew", body.to_string().into_bytes());
        let envelope: Envelope = self
            .call(&endpoint, &Task::RenewLease, Some(token))
            .await?
            .parse(&Task::RenewLease)?;
        envelope
            .lease()
            .ok_or_else(|| Task::RenewLease.failure(Cause::Malformed, "the answer has no lease"))
    }

    async fn renew_token(&self, token: &Token) -> Result<TokenGrant, Failure> {
        let task = Task::RenewToken;
        let envelope = self
            .grant(&RenewTokenSelfRequest { increment: None }, &task, token)
            .await?;
        envelope
            .auth
            .as_ref()
            .map(AuthInfo::grant)
            .ok_or_else(|| task.failure(Cause::Malformed, "the answer says nothing of the token"))
    }

    async fn look_up_token(&self, token: &Token) -> Result<TokenGrant, Failure> {
        let task = Task::LookUpToken;
        let endpoint = LookupTokenSelfRequest {};
        Ok(self
            .call(&endpoint, &task, Some(token))
            .await?
            .data::<answer::TokenInfo>(&task)?
            .grant())
    }

    async fn revoke_token(&self, token: &Token) -> Result<(), Failure> {
        self.call(&RevokeTokenSelfRequest {}, &Task::RevokeToken, Some(token))
            .await
            .map(|_| ())
    }
}

/// A namespace as a header.
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
