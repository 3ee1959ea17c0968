//! The stand-in keeps the real server's contract: the same requests go to both, and the answers are
//! compared. Invariant: one script, `Script::run`, asks both; it never asks which one it talks to.

use crate::rig::bao::Bao;
use crate::rig::http;
use crate::rig::server::{CALM, Server, Tenant};
use crate::rig::standin::State;
use crate::rig::wait_until;
use serde_json::{Value, json};

/// The tenant of both servers, so that paths and errors are the same word for word.
const NAME: &str = "contract";
/// What the tenant may read besides its own paths, to get past the policy to the engine's own
/// answer.
const ALLOWED: [&str; 4] = [
    "kv/contract/*",
    "secret/contract/*",
    "nowhere/*",
    "database/creds/no-such-role",
];
/// Keys that both must have but whose values no client reads: what whoever made a mount wrote,
/// hints to a person, and the policies' names, which the stand-in has not.
const UNREAD: [&str; 4] = ["description", "warnings", "policies", "token_policies"];

#[test]
fn the_stand_in_answers_as_the_real_server_does() {
    let (real, standin) = (
        Script::run(Tenant::real(NAME, CALM)),
        Script::run(Tenant::standin(NAME, CALM)),
    );
    assert_eq!(real.len(), standin.len(), "a script has one length");
    let differences: Vec<String> = real
        .iter()
        .zip(&standin)
        .filter(|(real, standin)| real != standin)
        .map(|((case, real), (_, standin))| {
            format!("{case}\n  real:     {real}\n  stand-in: {standin}\n")
        })
        .collect();
    assert!(
        differences.is_empty(),
        "{} of {} answers differ:\n{}",
        differences.len(),
        real.len(),
        differences.concat()
    );
}

/// A case and the shape of its answer.
type Seen = (&'static str, Value);

/// One run of the cases against one server.
struct Script {
    tenant: Tenant,
    address: String,
    /// Of the last login.
    token: String,
    seen: Vec<Seen>,
}

impl Script {
    /// Asks everything.
    fn run(tenant: Tenant) -> Vec<Seen> {
        prepare(&tenant);
        let address = tenant.url().trim_start_matches("http://").to_owned();
        let mut script = Self {
            tenant,
            address,
            token: String::new(),
            seen: Vec::new(),
        };
        script.login();
        script.versioned();
        script.plain();
        script.mounts();
        script.leases();
        script.token();
        script.lockout();
        script.seen
    }

    fn login(&mut self) {
        let (role_id, secret_id) = (self.tenant.role_id.clone(), self.tenant.secret_id.clone());
        let wrong = "8f2c9a52-5d0e-4b0a-9d43-8c5e4a1f0b77";
        self.get("health", "sys/health");
        self.get("no token", "secret/data/contract/app");
        self.post(
            "login: wrong secret_id",
            "auth/approle/login",
            &json!({ "role_id": role_id, "secret_id": wrong }),
        );
        self.post(
            "login: wrong role_id",
            "auth/approle/login",
            &json!({ "role_id": wrong, "secret_id": secret_id }),
        );
        self.post(
            "login: no secret_id",
            "auth/approle/login",
            &json!({ "role_id": role_id }),
        );
        self.post(
            "login: no role_id",
            "auth/approle/login",
            &json!({ "secret_id": secret_id }),
        );
        self.post(
            "login: not mounted",
            "auth/nowhere/login",
            &json!({ "role_id": role_id, "secret_id": secret_id }),
        );
        self.log_in_again("login: good");
    }

    fn log_in_again(&mut self, case: &'static str) {
        let body = json!({ "role_id": self.tenant.role_id, "secret_id": self.tenant.secret_id });
        self.token.clear();
        let answer = self.post(case, "auth/approle/login", &body);
        answer["auth"]["client_token"]
            .as_str()
            .expect("a login gives a token")
            .clone_into(&mut self.token);
    }

    fn versioned(&mut self) {
        self.get("kv 2: newest", "secret/data/contract/app");
        self.get("kv 2: a version", "secret/data/contract/app?version=1");
        self.get("kv 2: version 0", "secret/data/contract/app?version=0");
        self.get(
            "kv 2: a version that never was",
            "secret/data/contract/app?version=9",
        );
        self.get("kv 2: missing", "secret/data/contract/none");
        self.get("kv 2: deleted", "secret/data/contract/deleted");
        self.get(
            "kv 2: older than the deleted",
            "secret/data/contract/deleted?version=1",
        );
        self.get("kv 2: destroyed", "secret/data/contract/destroyed");
        self.get("kv 2: to be deleted in time", "secret/data/contract/later");
        self.get("kv 2: without data/", "secret/contract/app");
        self.get("kv 2: denied", "secret/data/other/app");
        self.get("kv 2: metadata denied", "secret/metadata/contract/app");
    }

    fn plain(&mut self) {
        self.get("kv 1: there", "kv/contract/app");
        self.get("kv 1: missing", "kv/contract/none");
        self.get("kv 1: denied", "kv/other");
        self.get("no such mount", "nowhere/app");
        self.get("no such mount, denied", "elsewhere/app");
    }

    fn mounts(&mut self) {
        self.get(
            "mount of kv 2",
            "sys/internal/ui/mounts/secret/contract/app",
        );
        self.get(
            "mount of kv 2, of a path denied",
            "sys/internal/ui/mounts/secret/other",
        );
        self.get("mount of kv 1", "sys/internal/ui/mounts/kv/contract/app");
        self.get(
            "mount of a database",
            "sys/internal/ui/mounts/database/creds/contract",
        );
        self.get("mount denied", "sys/internal/ui/mounts/closed/app");
        self.get("mount unknown", "sys/internal/ui/mounts/elsewhere/app");
    }

    fn leases(&mut self) {
        let creds = self.get("creds", "database/creds/contract");
        let lease = creds["lease_id"]
            .as_str()
            .expect("credentials have a lease")
            .to_owned();
        self.get("creds: denied", "database/creds/other");
        self.get("creds: no such role", "database/creds/no-such-role");
        self.renew("lease: renew", &lease);
        self.post(
            "lease: renew for a time",
            "sys/leases/renew",
            &json!({ "lease_id": lease, "increment": 60 }),
        );
        self.post(
            "lease: renew beyond its end",
            "sys/leases/renew",
            &json!({ "lease_id": lease, "increment": 99_999 }),
        );
        self.renew("lease: unknown", "database/creds/contract/no-such-lease");
        self.renew("lease: of no mount", "elsewhere/no-such-lease");
        self.post("lease: none named", "sys/leases/renew", &json!({}));
        self.post(
            "revoke the token of the lease",
            "auth/token/revoke-self",
            &json!({}),
        );
        let tenant = self.tenant.clone();
        wait_until("the lease dies with its token", || {
            (tenant.leases() == 0).then_some(())
        });
        self.log_in_again("login: again");
        self.renew("lease: dead", &lease);
    }

    fn renew(&mut self, case: &'static str, lease: &str) {
        self.post(case, "sys/leases/renew", &json!({ "lease_id": lease }));
    }

    fn token(&mut self) {
        self.get("token: look up", "auth/token/lookup-self");
        self.post("token: renew", "auth/token/renew-self", &json!({}));
        self.post("token: revoke", "auth/token/revoke-self", &json!({}));
        self.get("revoked: look up", "auth/token/lookup-self");
        self.post("revoked: renew", "auth/token/renew-self", &json!({}));
        self.post("revoked: revoke", "auth/token/revoke-self", &json!({}));
        self.get("revoked: read", "secret/data/contract/app");
        self.get(
            "revoked: mount",
            "sys/internal/ui/mounts/secret/contract/app",
        );
    }

    /// The last: the role stays locked.
    fn lockout(&mut self) {
        let (role_id, good) = (self.tenant.role_id.clone(), self.tenant.secret_id.clone());
        self.token.clear();
        // An empty one does not count, and a good login ends the count.
        for case in [
            "", "wrong", "good", "wrong", "wrong", "", "wrong", "wrong", "good",
        ] {
            let secret_id = if case == "good" { &good } else { case };
            self.post(
                "login: counted",
                "auth/approle/login",
                &json!({ "role_id": role_id, "secret_id": secret_id }),
            );
        }
        for secret_id in ["wrong", "wrong", "wrong", "wrong", "wrong", "wrong", &good] {
            self.post(
                "login: locked out",
                "auth/approle/login",
                &json!({ "role_id": role_id, "secret_id": secret_id }),
            );
        }
    }

    fn get(&mut self, case: &'static str, path: &str) -> Value {
        self.ask(case, "GET", path, None)
    }

    fn post(&mut self, case: &'static str, path: &str, body: &Value) -> Value {
        self.ask(case, "POST", path, Some(body))
    }

    fn ask(&mut self, case: &'static str, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer = http::request(&self.address, method, path, &self.token, body)
            .expect("the server answers");
        self.seen.push((
            case,
            json!({ "status": answer.status, "body": shape(&answer.body) }),
        ));
        answer.body
    }
}

/// Gives the tenant what the script reads, by each server's own means.
fn prepare(tenant: &Tenant) {
    for key in ["app", "deleted", "deleted", "destroyed"] {
        tenant.put(key, json!({ "password": "a" }));
    }
    match &tenant.server {
        Server::Real(real) => prepare_real(&real.bao),
        Server::Standin(standin) => prepare_standin(&mut standin.state()),
    }
}

fn prepare_real(bao: &Bao) {
    let own = ["database/creds/contract", "secret/data/contract/*"];
    let rules: Vec<String> = own
        .iter()
        .chain(&ALLOWED)
        .map(|path| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n"))
        .collect();
    bao.api(
        "POST",
        &format!("sys/policies/acl/{NAME}"),
        json!({ "policy": rules.concat() }),
    );
    bao.api(
        "POST",
        "sys/mounts/kv",
        json!({ "type": "kv", "options": { "version": "1" } }),
    );
    bao.api(
        "POST",
        "sys/mounts/closed",
        json!({ "type": "kv", "options": { "version": "1" } }),
    );
    bao.api("POST", "kv/contract/app", json!({ "password": "a" }));
    bao.api("DELETE", "secret/data/contract/deleted", Value::Null);
    bao.api(
        "POST",
        "secret/destroy/contract/destroyed",
        json!({ "versions": [1] }),
    );
    bao.api(
        "POST",
        "secret/metadata/contract/later",
        json!({ "delete_version_after": "24h" }),
    );
    bao.api(
        "POST",
        "secret/data/contract/later",
        json!({ "data": { "password": "a" } }),
    );
}

fn prepare_standin(state: &mut State) {
    state.role().allow.extend(ALLOWED.map(str::to_owned));
    state.mount_kv("closed", "1");
    state.put("kv/contract/app", json!({ "password": "a" }));
    state.delete("secret/contract/deleted", "2020-01-01T00:00:00Z");
    state.destroy("secret/contract/destroyed");
    state.put("secret/contract/later", json!({ "password": "a" }));
    state.delete("secret/contract/later", "2999-01-01T00:00:00Z");
}

/// What a client can tell two answers apart by: keys at any depth, errors word for word, truth,
/// emptiness, kinds, small numbers (versions, states), and durations to the minute; not the random
/// and the times of day.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), field(key, value)))
            .collect(),
        Value::Array(_) => json!("a list"),
        Value::String(text) => json!(if text.is_empty() { "" } else { "text" }),
        Value::Number(number) => match number.as_u64() {
            Some(10..1_000_000) => json!(
                number
                    .as_u64()
                    .map(|seconds| format!("{} min", (seconds + 30) / 60))
            ),
            Some(0..10) => value.clone(),
            Some(1_000_000..) | None => json!("a number"),
        },
        Value::Bool(_) | Value::Null => value.clone(),
    }
}

fn field(key: &str, value: &Value) -> Value {
    match key {
        "errors" => value.clone(),
        unread if UNREAD.contains(&unread) => json!("not read"),
        _ => shape(value),
    }
}
