//! What the stand-in knows, and the rules by which it answers.

use super::answer::Answer;
use super::server::Fault;
use baofs::clock::{Clock, Jitter, Moment, RealClock};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the `default` policy allows, as far as it is answered here.
const DEFAULT_POLICY: [&str; 5] = [
    "auth/token/lookup-self",
    "auth/token/renew-self",
    "auth/token/revoke-self",
    "sys/leases/renew",
    "sys/leases/lookup",
];

/// After so many refused logins a role is locked out (`user_lockout_threshold`); here for ever.
const LOCKOUT_THRESHOLD: u32 = 5;

/// An `AppRole`.
#[derive(Clone, Debug)]
#[allow(clippy::struct_field_names, reason = "the server's own word for it")]
pub struct Role {
    pub role_id: String,
    pub secret_id: String,
    /// How many logins the `secret_id` is good for; 0: any number.
    pub secret_id_uses: u32,
    /// How many logins were refused for their `secret_id` since the last good one: the fifth locks
    /// the role.
    pub refused: u32,
    /// Paths that its tokens may read, besides the `default` policy: exact, or with `*` at the
    /// end.
    pub allow: Vec<String>,
    pub token_ttl: Duration,
    pub token_max_ttl: Duration,
}

impl Default for Role {
    /// `role`, `secret`, any number of logins, nothing allowed, one hour and one day.
    fn default() -> Self {
        let hour = Duration::from_hours(1);
        let (role_id, secret_id) = ("role".to_owned(), "secret".to_owned());
        Self {
            role_id,
            secret_id,
            secret_id_uses: 0,
            refused: 0,
            allow: Vec::new(),
            token_ttl: hour,
            token_max_ttl: hour * 24,
        }
    }
}

/// A role of the database engine.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseRole {
    pub ttl: Duration,
    pub max_ttl: Duration,
    pub renewable: bool,
}

/// One request as it came, with the clock's moment.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without `/v1/`, with the query.
    pub path: String,
    pub at: Moment,
    /// The namespace's header.
    pub namespace: Option<String>,
    /// The token shown.
    pub token: Option<String>,
}

/// A version of a KV version 2 secret.
struct Version {
    /// `None` once destroyed.
    data: Option<Value>,
    created: String,
    deletion_time: String,
}

struct Token {
    role: usize,
    issued: Moment,
    expires: Moment,
}

struct Lease {
    token: String,
    /// User and password, as long as the database knows them.
    credential: (String, String),
    role: DatabaseRole,
    issued: Moment,
    expires: Moment,
}

/// All of it.
pub struct State {
    clock: RealClock,
    roles: Vec<Role>,
    mounts: BTreeMap<String, (&'static str, Option<&'static str>)>,
    versioned: BTreeMap<String, Vec<Version>>,
    plain: BTreeMap<String, Value>,
    database: BTreeMap<String, DatabaseRole>,
    tokens: BTreeMap<String, Token>,
    leases: BTreeMap<String, Lease>,
    /// Every request so far, in order.
    pub requests: Vec<Request>,
    /// Whether it is sealed.
    pub sealed: bool,
    /// What goes wrong where; the first that fits counts.
    faults: Vec<(String, Fault)>,
    /// What it puts before `/v1`, as behind a gateway.
    pub prefix: String,
}

impl State {
    pub(super) fn new() -> Self {
        let mounts = [
            ("secret/", ("kv", Some("2"))),
            ("kv/", ("kv", Some("1"))),
            ("database/", ("database", None)),
        ];
        Self {
            clock: RealClock,
            roles: Vec::new(),
            mounts: mounts
                .into_iter()
                .map(|(path, kind)| (path.to_owned(), kind))
                .collect(),
            versioned: BTreeMap::new(),
            plain: BTreeMap::new(),
            database: BTreeMap::new(),
            tokens: BTreeMap::new(),
            leases: BTreeMap::new(),
            requests: Vec::new(),
            sealed: false,
            faults: Vec::new(),
            prefix: String::new(),
        }
    }

    /// Adds a role at `auth/approle`.
    pub fn add_role(&mut self, role: Role) {
        self.roles.push(role);
    }

    /// The role added first, to change: its next login and its present tokens follow it.
    pub fn role(&mut self) -> &mut Role {
        self.roles.first_mut().expect("a role was added")
    }

    /// Mounts KV version 1 or 2 at `path`.
    pub fn mount_kv(&mut self, path: &str, version: &'static str) {
        self.mounts.insert(
            format!("{}/", path.trim_matches('/')),
            ("kv", Some(version)),
        );
    }

    /// Writes a new version of a KV 2 secret (`secret/app`), or a KV 1 secret (`kv/app`); returns
    /// the version.
    pub fn put(&mut self, path: &str, data: Value) -> usize {
        let (mount, rest) = self.split(path).expect("a path in a mount");
        if self.mounts[&mount].1 == Some("1") {
            self.plain.insert(path.to_owned(), data);
            return 0;
        }
        let versions = self.versioned.entry(format!("{mount}{rest}")).or_default();
        versions.push(Version {
            data: Some(data),
            created: "2026-01-02T03:04:05.678901234Z".to_owned(),
            deletion_time: String::new(),
        });
        versions.len()
    }

    /// Sets the deletion time of the newest version: past (`2020-01-01T00:00:00Z`) is deleted,
    /// future lives.
    pub fn delete(&mut self, path: &str, time: &str) {
        let newest = self
            .versioned
            .get_mut(path)
            .and_then(|versions| versions.last_mut());
        time.clone_into(&mut newest.expect("a secret").deletion_time);
    }

    /// Undoes `delete`.
    pub fn undelete(&mut self, path: &str) {
        self.delete(path, "");
    }

    /// Destroys the newest version.
    pub fn destroy(&mut self, path: &str) {
        self.versioned
            .get_mut(path)
            .and_then(|versions| versions.last_mut())
            .expect("a secret")
            .data = None;
    }

    /// Adds or replaces `database/creds/NAME`.
    pub fn database_role(&mut self, name: &str, role: DatabaseRole) {
        self.database.insert(name.to_owned(), role);
    }

    /// Removes a role of the database engine.
    pub fn remove_database_role(&mut self, name: &str) {
        self.database.remove(name);
    }

    /// Revokes all tokens, and with them their leases.
    pub fn revoke_tokens(&mut self) {
        self.tokens.clear();
        self.sweep();
    }

    /// Revokes all leases; tokens live on.
    pub fn revoke_leases(&mut self) {
        self.leases.clear();
    }

    /// How many tokens and how many leases live.
    pub fn live(&mut self) -> (usize, usize) {
        self.sweep();
        (self.tokens.len(), self.leases.len())
    }

    /// The users whose leases live, with their passwords: whom the database would admit.
    pub fn live_credentials(&mut self) -> Vec<(String, String)> {
        self.sweep();
        self.leases
            .values()
            .map(|lease| lease.credential.clone())
            .collect()
    }

    /// Requests to paths that begin with `prefix` (without `/v1/`) meet this fault until cleared.
    /// The last set counts.
    pub fn set_fault(&mut self, prefix: &str, fault: Fault) {
        self.faults.insert(0, (prefix.to_owned(), fault));
    }

    /// Ends all faults.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    pub(super) fn fault(&self, path: &str) -> Option<Fault> {
        self.faults
            .iter()
            .find(|(prefix, _)| path.starts_with(prefix))
            .map(|(_, fault)| fault.clone())
    }

    pub(super) fn note(
        &mut self,
        method: &str,
        path: &str,
        namespace: Option<String>,
        token: Option<String>,
    ) {
        let at = self.clock.now();
        self.requests.push(Request {
            method: method.to_owned(),
            path: path.to_owned(),
            at,
            namespace,
            token,
        });
    }

    /// Answers one request.
    pub(super) fn answer(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Answer {
        self.sweep();
        if path == "sys/health" {
            return Answer::new(
                if self.sealed { 503 } else { 200 },
                &json!({
                    "cluster_id": "cluster", "cluster_name": "stand-in", "initialized": true, "replication_dr_mode": "disabled",
                    "replication_performance_mode": "disabled", "sealed": self.sealed, "server_time_utc": 1_767_323_045,
                    "standby": self.sealed, "version": "2",
                }),
            );
        }
        if self.sealed {
            return Answer::error(503, "Vault is sealed");
        }
        if path == "auth/approle/login" {
            return self.login(body);
        }
        let Some(token) = token.filter(|token| self.tokens.contains_key(*token)) else {
            return Answer::dead_token();
        };
        let token = token.to_owned();
        if let Some(below) = path.strip_prefix("sys/internal/ui/mounts/") {
            return self.find_mount(&token, below);
        }
        if !self.allowed(&token, path) {
            return Answer::denied();
        }
        match (method, path) {
            ("GET", "auth/token/lookup-self") => self.look_up(&token),
            ("POST" | "PUT", "auth/token/renew-self") => self.renew_token(&token),
            ("POST" | "PUT", "auth/token/revoke-self") => {
                self.tokens.remove(&token);
                self.sweep();
                Answer::empty()
            }
            ("POST" | "PUT", "sys/leases/renew") => self.renew_lease(body),
            ("GET", _) => self.read(&token, path, query),
            _ => Answer::error(405, "1 error occurred:\n\t* unsupported operation\n\n"),
        }
    }

    /// Lets go of what has expired. A lease dies with its token.
    fn sweep(&mut self) {
        let now = self.clock.now();
        self.tokens.retain(|_, token| token.expires > now);
        let tokens = &self.tokens;
        self.leases
            .retain(|_, lease| lease.expires > now && tokens.contains_key(&lease.token));
    }

    /// The mount of a path, and the rest.
    fn split(&self, path: &str) -> Option<(String, String)> {
        let mount = self
            .mounts
            .keys()
            .filter(|mount| path.starts_with(mount.as_str()))
            .max_by_key(|mount| mount.len())?;
        Some((mount.clone(), path[mount.len()..].to_owned()))
    }

    fn role_of(&self, token: &str) -> &Role {
        &self.roles[self.tokens[token].role]
    }

    fn allowed(&self, token: &str, path: &str) -> bool {
        DEFAULT_POLICY.contains(&path)
            || self
                .role_of(token)
                .allow
                .iter()
                .any(|rule| matches(rule, path))
    }

    fn login(&mut self, body: &Value) -> Answer {
        let (role_id, secret_id) = (
            body["role_id"].as_str().unwrap_or_default(),
            body["secret_id"].as_str().unwrap_or_default(),
        );
        if role_id.is_empty() {
            return Answer::error(500, "missing role_id");
        }
        let Some(index) = self.roles.iter().position(|role| role.role_id == role_id) else {
            return Answer::error(400, "invalid role or secret ID");
        };
        if secret_id.is_empty() {
            return Answer::error(400, "missing secret_id");
        }
        let role = &mut self.roles[index];
        if role.refused >= LOCKOUT_THRESHOLD {
            return Answer::dead_token();
        }
        if role.secret_id != secret_id {
            role.refused += 1;
            return Answer::error(400, "invalid role or secret ID");
        }
        role.refused = 0;
        if role.secret_id_uses == 1 {
            role.secret_id = uuid();
        }
        role.secret_id_uses = role.secret_id_uses.saturating_sub(1);
        let (now, ttl) = (self.clock.now(), role.token_ttl);
        let id = format!("s.{}", random(24));
        self.tokens.insert(
            id.clone(),
            Token {
                role: index,
                issued: now,
                expires: now.plus(ttl),
            },
        );
        Answer::auth(&auth(&id, ttl))
    }

    fn renew_token(&mut self, id: &str) -> Answer {
        let now = self.clock.now();
        let (ttl, max) = (self.role_of(id).token_ttl, self.role_of(id).token_max_ttl);
        let token = self.tokens.get_mut(id).expect("the token was checked");
        token.expires = now.plus(ttl).min(token.issued.plus(max));
        Answer::auth(&auth(id, token.expires.since(now)))
    }

    fn look_up(&self, id: &str) -> Answer {
        let (token, role) = (&self.tokens[id], self.role_of(id));
        Answer::data(&json!({
            "accessor": "accessor", "creation_time": 1_767_323_045, "creation_ttl": role.token_ttl.as_secs(), "display_name": "approle",
            "entity_id": "entity", "expire_time": "2026-01-02T03:04:05Z", "explicit_max_ttl": 0, "id": id,
            "issue_time": "2026-01-02T03:04:05Z", "meta": { "role_name": "app" }, "num_uses": 0, "orphan": true,
            "path": "auth/approle/login", "policies": ["app", "default"], "renewable": true,
            "ttl": token.expires.since(self.clock.now()).as_secs(), "type": "service",
        }))
    }

    /// As the real server: whoever may reach anything in a mount may see the mount.
    fn find_mount(&self, token: &str, path: &str) -> Answer {
        let rules = &self.role_of(token).allow;
        let found = self.split(&format!("{path}/"));
        let Some((mount, _)) = found.filter(|(mount, _)| {
            rules
                .iter()
                .any(|rule| rule.starts_with(mount) || matches(rule, mount))
        }) else {
            let words = format!(
                "preflight capability check returned 403, please ensure client's policies grant access to path \"{path}/\""
            );
            return Answer::error(403, &words);
        };
        let (kind, version) = self.mounts[&mount];
        let options = version.map_or(json!({}), |version| json!({ "version": version }));
        let mut data = json!({
            "accessor": format!("{kind}_1"), "config": { "default_lease_ttl": 0, "force_no_cache": false, "max_lease_ttl": 0 },
            "description": "", "external_entropy_access": false, "local": false,
            "options": options, "path": mount, "plugin_version": "", "running_plugin_version": "v0", "running_sha256": "",
            "seal_wrap": false, "type": kind, "uuid": uuid(),
        });
        if kind == "kv" {
            data["deprecation_status"] = json!("supported");
        }
        Answer::data(&data)
    }

    fn read(&mut self, token: &str, path: &str, query: &str) -> Answer {
        let Some((mount, rest)) = self.split(path) else {
            return Answer::error(
                404,
                &format!("no handler for route \"{path}\". route entry not found."),
            );
        };
        match self.mounts[&mount] {
            ("database", _) => self.credentials(token, &rest),
            (_, Some("1")) => self.plain.get(path).map_or_else(
                || Answer::error(404, ""),
                |data| Answer::lease("", 2_764_800, false, data),
            ),
            _ => self.version(&mount, &rest, query),
        }
    }

    fn version(&self, mount: &str, rest: &str, query: &str) -> Answer {
        let Some(name) = rest.strip_prefix("data/") else {
            return Answer::data_with_status(404, &Value::Null);
        };
        let Some(versions) = self.versioned.get(&format!("{mount}{name}")) else {
            return Answer::error(404, "");
        };
        let wanted = query
            .strip_prefix("version=")
            .and_then(|number| number.parse().ok())
            .filter(|number| *number > 0);
        let number = wanted.unwrap_or(versions.len());
        let Some(version) = versions.get(number - 1) else {
            return Answer::error(404, "");
        };
        let metadata = json!({
            "created_time": version.created, "custom_metadata": null, "deletion_time": version.deletion_time,
            "destroyed": version.data.is_none(), "version": number,
        });
        // Times are compared as text: both are of one form, and a test's are decades away.
        let deleted = !version.deletion_time.is_empty() && version.deletion_time.as_str() < "2026";
        match &version.data {
            Some(data) if !deleted => Answer::data(&json!({ "data": data, "metadata": metadata })),
            _ => Answer::data_with_status(404, &json!({ "data": null, "metadata": metadata })),
        }
    }

    fn credentials(&mut self, token: &str, rest: &str) -> Answer {
        let Some(name) = rest.strip_prefix("creds/") else {
            return Answer::error(404, "");
        };
        let Some(role) = self.database.get(name).copied() else {
            return Answer::error(400, &format!("unknown role: {name}"));
        };
        let (now, id) = (
            self.clock.now(),
            format!("database/creds/{name}/{}", random(24)),
        );
        let expires = now.plus(role.ttl.min(role.max_ttl));
        let (user, password) = (
            format!("v-approle-{name}-{}", random(20)),
            format!("{}-{}", random(12), random(6)),
        );
        let data = json!({ "password": password, "username": user });
        self.leases.insert(
            id.clone(),
            Lease {
                token: token.to_owned(),
                credential: (user, password),
                role,
                issued: now,
                expires,
            },
        );
        Answer::lease(
            &id,
            role.ttl.min(role.max_ttl).as_secs(),
            role.renewable,
            &data,
        )
    }

    fn renew_lease(&mut self, body: &Value) -> Answer {
        let now = self.clock.now();
        let id = body["lease_id"].as_str().unwrap_or_default();
        if id.is_empty() {
            return Answer::error(400, "lease_id must be specified");
        }
        let Some(lease) = self.leases.get_mut(id) else {
            return Answer::error(400, "lease not found");
        };
        if !lease.role.renewable {
            return Answer::error(400, "lease is not renewable");
        }
        let wish = body["increment"]
            .as_u64()
            .filter(|seconds| *seconds > 0)
            .map_or(lease.role.ttl, Duration::from_secs);
        lease.expires = now.plus(wish).min(lease.issued.plus(lease.role.max_ttl));
        Answer::lease(id, lease.expires.since(now).as_secs(), true, &Value::Null)
    }
}

/// Whether a policy's path covers this one.
fn matches(rule: &str, path: &str) -> bool {
    rule.strip_suffix('*')
        .map_or(rule == path, |prefix| path.starts_with(prefix))
}

fn auth(token: &str, ttl: Duration) -> Value {
    json!({
        "client_token": token, "accessor": "accessor", "policies": ["app", "default"], "token_policies": ["app", "default"],
        "metadata": { "role_name": "app" }, "lease_duration": ttl.as_secs(), "renewable": true, "entity_id": "entity",
        "token_type": "service", "orphan": true, "mfa_requirement": null, "num_uses": 0,
    })
}

/// That many random letters and digits.
fn random(length: usize) -> String {
    thread_local!(static JITTER: RefCell<Jitter> = RefCell::new(Jitter::new()));
    let one = |_| {
        JITTER.with_borrow_mut(|jitter| {
            char::from(
                b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                    [index(jitter.unit())],
            )
        })
    };
    (0..length).map(one).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a unit is in 0..1"
)]
fn index(unit: f64) -> usize {
    (unit * 62.0) as usize
}

/// Something of a UUID's form.
pub(super) fn uuid() -> String {
    [8, 4, 4, 4, 12].map(random).join("-")
}

/// An object from pairs, for `State::put`.
#[must_use]
pub fn object(pairs: &[(&str, &str)]) -> Value {
    Value::Object(
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect::<Map<_, _>>(),
    )
}
