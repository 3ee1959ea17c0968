//! The stand-in is held to the real server: the same requests, raw and through the client, must give the same statuses,
//! the same shapes of JSON and the same words at both.

#[allow(dead_code, reason = "the end-to-end tests use the rest of it")]
#[path = "rig/mod.rs"]
mod rig;

use baofs::bao::{Client, Token};
use baofs::config::plan::{Address, AfterReading, Auth, Method, Query, Scheme, Server, Tls};
use baofs::lease::source::{Engine, Failure, Reply, Source};
use baofs::names::{LeaseId, SecretPath};
use rig::http;
use rig::server::{CALM, Real};
use rig::standin::{DatabaseRole, Role, Standin};
use serde_json::{Value, json};
use std::fmt::Debug;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

/// A policy of exactly these paths, at both servers.
const ALLOWED: [&str; 3] = ["secret/data/contract/*", "kv/*", "database/creds/contract*"];

/// One server, prepared: KV 2 below `secret/contract/`, KV 1 in `kv/`, a database role `contract`.
struct World {
    /// `127.0.0.1:PORT`.
    address: String,
    role_id: String,
    secret_id: String,
    /// Ends with this value.
    _server: Either,
}

#[allow(dead_code, reason = "kept alive, not looked at")]
enum Either {
    Real(Arc<Real>),
    Standin(Box<Standin>),
}

fn standin() -> World {
    let server = Standin::start();
    let mut state = server.state();
    let hour = Duration::from_hours(1);
    let role = Role { allow: ALLOWED.map(str::to_owned).to_vec(), token_ttl: hour, token_max_ttl: 24 * hour, ..Role::default() };
    let (role_id, secret_id) = (role.role_id.clone(), role.secret_id.clone());
    state.add_role(role);
    state.database_role("contract", DatabaseRole { ttl: hour / 2, max_ttl: hour, renewable: true });
    for name in ["app", "gone", "destroyed", "later"] {
        state.put(&format!("secret/contract/{name}"), json!({ "user": "u", "n": 1 }));
    }
    state.put("secret/contract/app", json!({ "user": "u", "n": 2 }));
    state.put("kv/app", json!({ "user": "u" }));
    state.delete("secret/contract/gone", "2020-01-01T00:00:00Z");
    state.delete("secret/contract/later", "2999-01-01T00:00:00Z");
    state.destroy("secret/contract/destroyed");
    drop(state);
    World { address: server.address().to_string(), role_id, secret_id, _server: Either::Standin(Box::new(server)) }
}

fn real() -> World {
    let real = Real::shared();
    let tenant = real.tenant("contract", "contract", CALM);
    let api = |method, path: &str, body| real.bao.api(method, path, body);
    let policy = ALLOWED.map(|path| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n")).concat();
    api("POST", "sys/policies/acl/contract", json!({ "policy": policy }));
    api("POST", "sys/mounts/kv", json!({ "type": "kv", "options": { "version": "1" } }));
    for name in ["app", "gone", "destroyed"] {
        api("POST", &format!("secret/data/contract/{name}"), json!({ "data": { "user": "u", "n": 1 } }));
    }
    api("POST", "secret/data/contract/app", json!({ "data": { "user": "u", "n": 2 } }));
    api("POST", "secret/metadata/contract/later", json!({ "delete_version_after": "1h" }));
    api("POST", "secret/data/contract/later", json!({ "data": { "user": "u", "n": 1 } }));
    api("DELETE", "secret/data/contract/gone", Value::Null);
    api("PUT", "secret/destroy/contract/destroyed", json!({ "versions": [1] }));
    api("POST", "kv/app", json!({ "user": "u" }));
    World { address: real.bao.address.clone(), role_id: tenant.role_id, secret_id: tenant.secret_id, _server: Either::Real(real) }
}

/// One observation: what was asked, and what there was to see of the answer.
type Seen = (String, String);

#[test]
fn the_stand_in_answers_as_the_real_server_does() {
    let (standin, real) = (standin(), real());
    let (at_standin, at_real) = (raw(&standin), raw(&real));
    compare(&at_standin, &at_real);
    let (at_standin, at_real) = (through_client(&standin), through_client(&real));
    compare(&at_standin, &at_real);
}

fn compare(standin: &[Seen], real: &[Seen]) {
    assert_eq!(standin.len(), real.len());
    let different = standin.iter().zip(real).filter(|(standin, real)| standin != real);
    let lines = different.map(|((what, standin), (_, real))| format!("{what}\n  stand-in: {standin}\n  real:     {real}\n"));
    assert_eq!(lines.collect::<String>(), "", "left: what differs");
}

/// Status, key set and words of each answer.
fn raw(world: &World) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut ask = |method: &str, path: &str, token: &str, body: Option<Value>| {
        let answer = http::request(&world.address, method, path, token, body.as_ref()).expect("an answer");
        seen.push((format!("{method} {path}"), format!("{} {}", answer.status, shape(&answer.body))));
        answer.body
    };
    let login = |role_id: &str, secret_id: &str| Some(json!({ "role_id": role_id, "secret_id": secret_id }));
    for (role_id, secret_id) in [("nobody", "wrong"), (&*world.role_id, "wrong"), (&*world.role_id, ""), ("", "")] {
        ask("POST", "auth/approle/login", "", login(role_id, secret_id));
    }
    let token = ask("POST", "auth/approle/login", "", login(&world.role_id, &world.secret_id));
    let token = token["auth"]["client_token"].as_str().expect("a token").to_owned();
    for path in PATHS {
        ask("GET", path, &token, None);
    }
    ask("GET", "secret/data/contract/app", "", None);
    ask("GET", "secret/data/contract/app", "s.nobodys", None);
    ask("POST", "auth/token/renew-self", &token, None);
    let lease = ask("GET", "database/creds/contract", &token, None);
    for id in [lease["lease_id"].clone(), json!("database/creds/contract/unknown"), json!("")] {
        ask("POST", "sys/leases/renew", &token, Some(json!({ "lease_id": id, "increment": 60 })));
    }
    ask("POST", "auth/token/revoke-self", &token, None);
    for (method, path) in [
        ("GET", "auth/token/lookup-self"),
        ("POST", "auth/token/renew-self"),
        ("POST", "auth/token/revoke-self"),
        ("GET", "secret/data/contract/app"),
        ("GET", "sys/internal/ui/mounts/secret/contract/app"),
    ] {
        ask(method, path, &token, None);
    }
    seen
}

/// What is read raw with a live token.
const PATHS: [&str; 19] = [
    "secret/data/contract/app",
    "secret/data/contract/app?version=1",
    "secret/data/contract/app?version=9",
    "secret/data/contract/none",
    "secret/data/contract/gone",
    "secret/data/contract/destroyed",
    "secret/data/contract/later",
    "secret/contract/app",
    "secret/data/other",
    "secret/metadata/contract/app",
    "kv/app",
    "kv/none",
    "nowhere/x",
    "database/creds/contract-unknown",
    "sys/internal/ui/mounts/secret/contract/app",
    "sys/internal/ui/mounts/kv/app",
    "sys/internal/ui/mounts/database/creds/contract",
    "sys/internal/ui/mounts/nowhere/x",
    "auth/token/lookup-self",
];

/// Keys and kinds of a JSON value; of an error its words; of what the client decides on, the value.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| match key.as_str() {
                "errors" | "renewable" | "version" | "type" | "destroyed" | "path" => format!("{key}={value}"),
                _ => format!("{key}:{}", shape(value)),
            };
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(" "))
        }
        Value::Array(_) => "array".to_owned(),
        Value::String(_) => "text".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Null => "null".to_owned(),
    }
}

/// What the client makes of it.
fn through_client(world: &World) -> Vec<Seen> {
    let files = tempfile::tempdir().expect("a directory");
    let (role_id_file, secret_id_file) = (files.path().join("role_id"), files.path().join("secret_id"));
    fs::write(&role_id_file, &world.role_id).expect("write");
    fs::write(&secret_id_file, "wrong").expect("write");
    let (host, port) = world.address.split_once(':').expect("an address");
    let address = Address { scheme: Scheme::Http, host: host.to_owned(), port: port.parse().expect("a port"), prefix: String::new() };
    let server = Server { address, tls: Tls::default(), namespace: None, retry_max: Duration::from_secs(1) };
    let method = Method::AppRole { role_id_file, secret_id_file: Some(secret_id_file.clone()), after_reading: AfterReading::Keep };
    let client = Client::new(&server, &Auth { mount_path: "auth/approle".to_owned(), namespace: None, method }).expect("a client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let refused = client.login().await.map(|(_, grant)| grant);
        fs::write(&secret_id_file, &world.secret_id).expect("write");
        let (token, grant) = client.login().await.expect("a login");
        let mut seen = vec![told("wrong secret_id", &refused), told("login", &Ok(grant))];
        seen.extend(reads(&client, &token).await);
        seen.extend(lives(&client, &token).await);
        seen
    })
}

async fn reads(client: &Client, token: &Token) -> Vec<Seen> {
    let mut seen = Vec::new();
    for (path, version) in [
        ("secret/contract/app", None),
        ("secret/data/contract/app", None),
        ("secret/contract/app", Some(1)),
        ("secret/contract/app", Some(9)),
        ("secret/contract/none", None),
        ("secret/contract/gone", None),
        ("secret/contract/destroyed", None),
        ("secret/contract/later", None),
        ("secret/metadata/contract/app", None),
        ("secret/other", None),
        ("kv/app", None),
        ("kv/none", None),
        ("nowhere/x", None),
        ("database/creds/contract-unknown", None),
    ] {
        let query = Query { path: SecretPath::new(path).expect("a path"), version, refresh: None };
        let reply = client.read(token, &query).await.map(|reply| content(&reply));
        seen.push(told(path, &reply));
    }
    seen
}

/// The fields and the version; metadata holds times, and the lease an id.
fn content(reply: &Reply) -> String {
    let version = match &reply.engine {
        Engine::Kv2 { version, .. } => Some(version),
        Engine::Other => None,
    };
    let lease = reply.lease.as_ref().map(|lease| (lease.ttl, lease.renewable));
    format!("{} {version:?} {lease:?}", Value::Object(reply.fields.clone()))
}

/// Token and lease to their end.
async fn lives(client: &Client, token: &Token) -> Vec<Seen> {
    let query = Query { path: SecretPath::new("database/creds/contract").expect("a path"), version: None, refresh: None };
    let reply = client.read(token, &query).await.expect("credentials");
    let lease = reply.lease.expect("a lease");
    let unknown = LeaseId::new("database/creds/contract/unknown").expect("an id");
    let wish = Duration::from_mins(1);
    let renewed = client.renew(token, &lease.id, wish).await.map(|lease| (lease.ttl, lease.renewable));
    // The server counts whole seconds from the request on, the answer may be one short.
    let alive = client.look_up_token(token).await.map(|grant| (grant.renewable, grant.ttl.is_some_and(|ttl| ttl.as_secs() >= 3598)));
    vec![
        told("lease", &Ok((lease.ttl, lease.renewable))),
        told("fields", &Ok(reply.fields.keys().cloned().collect::<Vec<_>>())),
        told("renewed lease", &renewed),
        told("unknown lease", &client.renew(token, &unknown, wish).await.map(|_| ())),
        told("renewed token", &client.renew_token(token).await),
        told("alive", &alive),
        told("revoked", &client.revoke_token(token).await),
        told("dead", &client.look_up_token(token).await),
        told("renewal of the dead", &client.renew_token(token).await),
        told("read by the dead", &client.read(token, &query).await.map(|_| ())),
    ]
}

/// An outcome as text; of a deletion without its time.
fn told<T: Debug>(what: &str, outcome: &Result<T, Failure>) -> Seen {
    let text = format!("{outcome:?}");
    let text = text.split_once(" was deleted at ").map_or(text.clone(), |(before, _)| format!("{before} was deleted"));
    (what.to_owned(), text)
}
