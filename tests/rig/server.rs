//! One face for both servers, so that one test body runs over the real OpenBao and the stand-in.
//! Invariant: tests share a server, never a role: a `Tenant` has a login, a policy of exactly its
//! own paths, and a database role of its own.

use super::bao::Bao;
use super::postgres::{ADMIN, Postgres};
use super::standin::{DatabaseRole, Role, Standin};
use super::{World, wait_until};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// OpenBao with PostgreSQL.
    Real,
    /// `tests/standin/`.
    Standin,
}

/// What one test body runs over: how files are served, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    /// How files are served.
    pub(crate) world: World,
    /// From where.
    pub(crate) which: Which,
}

impl Scene {
    /// A tenant for this scene's test `name`.
    pub(crate) fn tenant(self, name: &str, lives: Lives) -> Tenant {
        let name = format!("{name}-{:?}-{:?}", self.world, self.which).to_lowercase();
        match self.which {
            Which::Real => Tenant::real(&name, lives),
            Which::Standin => Tenant::standin(&name, lives),
        }
    }
}

/// The real thing: OpenBao with `PostgreSQL` behind its database engine.
#[derive(Debug)]
pub(crate) struct Real {
    /// The server.
    pub(crate) bao: Bao,
    /// Its database.
    pub(crate) postgres: Postgres,
}

/// How a tenant's tokens and leases live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lives {
    /// Of a token, in seconds; renewable.
    pub(crate) token: u32,
    /// Of a database lease, in seconds; renewable.
    pub(crate) lease: u32,
    /// Of a database lease at most, in seconds.
    pub(crate) lease_max: u32,
}

/// Long enough that nothing ends within a test.
pub(crate) const CALM: Lives = Lives {
    token: 3600,
    lease: 1800,
    lease_max: 3600,
};

/// Where a tenant lives. The stand-in is its alone.
#[derive(Clone)]
pub(crate) enum Server {
    /// OpenBao, shared with others.
    Real(Arc<Real>),
    /// `tests/standin/`.
    Standin(Arc<Standin>),
}

/// One login at a server with its own secrets.
#[derive(Clone)]
pub(crate) struct Tenant {
    /// Where it lives.
    pub(crate) server: Server,
    /// Its name: of its role, policy, database role, and of its folder in the KV store.
    pub(crate) name: String,
    /// For its `role_id` file.
    pub(crate) role_id: String,
    /// For its `secret_id` file.
    pub(crate) secret_id: String,
}

impl Real {
    /// The one that tests share: started by the first, ended with the last.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Real>> = Mutex::new(Weak::new());
        let mut shared = SHARED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let real = Arc::new(Self::start(Ipv4Addr::LOCALHOST));
            *shared = Arc::downgrade(&real);
            real
        })
    }

    /// Both servers, knowing each other, listening on this address (0.0.0.0 for containers).
    pub(crate) fn start(listen: Ipv4Addr) -> Self {
        let (bao, postgres) = (Bao::start(listen), Postgres::start(listen));
        bao.api("POST", "sys/auth/approle", json!({ "type": "approle" }));
        bao.api("POST", "sys/mounts/database", json!({ "type": "database" }));
        let url = format!(
            "postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/postgres?sslmode=disable",
            postgres.port
        );
        let connection = json!({ "plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "connection_url": url,
            "username": ADMIN.0, "password": ADMIN.1 });
        bao.api("POST", "database/config/postgres", connection);
        // The KV engine of a new server is not ready at once.
        wait_until("the KV engine takes values", || {
            let answer = bao.try_api(
                "POST",
                "secret/data/first",
                Some(&json!({ "data": { "a": "b" } })),
            );
            answer.filter(|answer| answer.status == 200)
        });
        Self { bao, postgres }
    }

    /// A new tenant; `database_role` is its own name unless a test needs a certain one.
    pub(crate) fn tenant(
        self: &Arc<Self>,
        name: &str,
        database_role: &str,
        lives: Lives,
    ) -> Tenant {
        let paths = [
            format!("database/creds/{database_role}"),
            format!("secret/data/{name}/*"),
        ];
        let policy = paths
            .map(|path| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n"))
            .concat();
        self.bao.api(
            "POST",
            &format!("sys/policies/acl/{name}"),
            json!({ "policy": policy }),
        );
        let statement =
            "create role \"{{name}}\" login password '{{password}}' valid until '{{expiration}}'";
        let role = json!({ "db_name": "postgres", "creation_statements": [statement],
            "default_ttl": lives.lease, "max_ttl": lives.lease_max });
        self.bao
            .api("POST", &format!("database/roles/{database_role}"), role);
        let role = format!("auth/approle/role/{name}");
        self.bao.api("POST", &role, json!({ "token_policies": [name], "token_ttl": lives.token, "token_max_ttl": lives.token * 10 }));
        let text = |answer: &Value, key: &str| {
            answer["data"][key]
                .as_str()
                .expect("the role has it")
                .to_owned()
        };
        let role_id = text(
            &self.bao.api("GET", &format!("{role}/role-id"), Value::Null),
            "role_id",
        );
        let secret_id = text(
            &self
                .bao
                .api("POST", &format!("{role}/secret-id"), json!({})),
            "secret_id",
        );
        Tenant {
            server: Server::Real(Arc::clone(self)),
            name: name.to_owned(),
            role_id,
            secret_id,
        }
    }
}

impl Tenant {
    /// A tenant of the shared real server.
    pub(crate) fn real(name: &str, lives: Lives) -> Self {
        Real::shared().tenant(name, name, lives)
    }

    /// The tenant of a stand-in of its own.
    pub(crate) fn standin(name: &str, lives: Lives) -> Self {
        Self::of(Standin::start(), name, lives)
    }

    /// The tenant of this stand-in.
    pub(crate) fn of(standin: Standin, name: &str, lives: Lives) -> Self {
        let seconds = |number: u32| Duration::from_secs(number.into());
        let (role_id, secret_id) = (format!("role-id-of-{name}"), format!("secret-id-of-{name}"));
        let allow = vec![
            format!("database/creds/{name}"),
            format!("secret/data/{name}/*"),
        ];
        let (token_ttl, token_max_ttl) = (seconds(lives.token), seconds(lives.token) * 10);
        let role = Role {
            role_id: role_id.clone(),
            secret_id: secret_id.clone(),
            secret_id_uses: 0,
            refused: 0,
            allow,
            token_ttl,
            token_max_ttl,
        };
        standin.state().add_role(role);
        let database = DatabaseRole {
            ttl: seconds(lives.lease),
            max_ttl: seconds(lives.lease_max),
            renewable: true,
        };
        standin.state().database_role(name, database);
        Self {
            server: Server::Standin(Arc::new(standin)),
            name: name.to_owned(),
            role_id,
            secret_id,
        }
    }

    /// The server's address as a configuration has it.
    pub(crate) fn url(&self) -> String {
        match &self.server {
            Server::Real(real) => format!("http://{}", real.bao.address),
            Server::Standin(standin) => standin.url(),
        }
    }

    /// The path of its database credential.
    pub(crate) fn creds(&self) -> String {
        format!("database/creds/{}", self.name)
    }

    /// The path of its KV v2 secret `key`.
    pub(crate) fn kv(&self, key: &str) -> String {
        format!("secret/data/{}/{key}", self.name)
    }

    /// Writes a new version of its KV v2 secret `key`.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write the value in place"
    )]
    pub(crate) fn put(&self, key: &str, data: Value) {
        match &self.server {
            Server::Real(real) => {
                real.bao.api("POST", &self.kv(key), json!({ "data": data }));
            }
            Server::Standin(standin) => {
                standin
                    .state()
                    .put(&format!("secret/{}/{key}", self.name), data.clone());
            }
        }
    }

    /// Whether the database admits this user with this password.
    pub(crate) fn admits(&self, user: &str, password: &str) -> bool {
        match &self.server {
            Server::Real(real) => real.postgres.admits(user, password),
            Server::Standin(standin) => standin
                .state()
                .live_credentials()
                .iter()
                .any(|(u, p)| (u.as_str(), p.as_str()) == (user, password)),
        }
    }

    /// Whether the database knows this user.
    pub(crate) fn knows(&self, user: &str) -> bool {
        match &self.server {
            Server::Real(real) => real.postgres.has_role(user),
            Server::Standin(standin) => standin
                .state()
                .live_credentials()
                .iter()
                .any(|(u, _)| u == user),
        }
    }

    /// The users that the database has; of a real server those of all tenants.
    pub(crate) fn users(&self) -> Vec<String> {
        let all = "select rolname from pg_roles where rolname like 'v-approle-%'";
        match &self.server {
            Server::Real(real) => real.postgres.sql(all).lines().map(str::to_owned).collect(),
            Server::Standin(standin) => standin
                .state()
                .live_credentials()
                .into_iter()
                .map(|(user, _)| user)
                .collect(),
        }
    }

    /// How often it has read this path.
    pub(crate) fn reads(&self, path: &str) -> usize {
        match &self.server {
            Server::Real(real) => real
                .bao
                .requests(&self.name)
                .iter()
                .filter(|request| **request == format!("read {path}"))
                .count(),
            Server::Standin(standin) => standin
                .state()
                .requests
                .iter()
                .filter(|it| it.method == "GET" && it.path == path)
                .count(),
        }
    }

    /// How often it has logged in.
    pub(crate) fn logins(&self) -> usize {
        let login = "auth/approle/login";
        match &self.server {
            Server::Real(real) => real
                .bao
                .requests(&self.name)
                .iter()
                .filter(|request| request.ends_with(login))
                .count(),
            Server::Standin(standin) => standin
                .state()
                .requests
                .iter()
                .filter(|it| it.path == login)
                .count(),
        }
    }

    /// How many of its logins were refused.
    pub(crate) fn refused_logins(&self) -> usize {
        match &self.server {
            Server::Real(real) => real.bao.refused_logins(&self.role_id),
            Server::Standin(standin) => standin.state().role().refused as usize,
        }
    }

    /// How many of its tokens live.
    pub(crate) fn tokens(&self) -> usize {
        match &self.server {
            Server::Real(real) => real.bao.tokens(&self.name),
            Server::Standin(standin) => standin.state().live().0,
        }
    }

    /// Asserts that no token lives, and that no lease does once the server has worked off the
    /// revocation.
    pub(crate) fn assert_nothing_lives(&self) {
        assert_eq!(self.tokens(), 0, "tokens");
        wait_until("the leases are gone with their token", || {
            (self.leases() == 0).then_some(())
        });
    }

    /// How many leases of its database role live.
    pub(crate) fn leases(&self) -> usize {
        match &self.server {
            Server::Real(real) => real.bao.leases(&self.name).len(),
            Server::Standin(standin) => standin.state().live().1,
        }
    }
}
