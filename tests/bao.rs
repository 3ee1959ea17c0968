//! The client against the stand-in: what works, and each trap that it must not fall into.

#[path = "standin/mod.rs"]
mod standin;

use baofs::bao::{Client, Limits, SetupError, Token};
use baofs::config::plan::{Address, AfterReading, Auth, Method, Query, Scheme, Server, Tls, Verify};
use baofs::lease::source::{Cause, Engine, Failure, Reply, Source, TokenGrant};
use baofs::names::{LeaseId, SecretPath};
use serde_json::{Value, json};
use standin::{DatabaseRole, Fault, Role, Standin};
use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

/// A stand-in, a client of it, and the files that the client reads.
struct World {
    server: Standin,
    files: tempfile::TempDir,
    settings: Server,
    auth: Auth,
}

impl World {
    fn over(server: Standin, scheme: Scheme, tls: Tls) -> Self {
        let allow = ["secret/data/*", "kv/*", "database/creds/*"].map(str::to_owned).to_vec();
        server.state().add_role(Role { allow, ..Role::default() });
        let files = tempfile::tempdir().expect("a directory");
        fs::write(files.path().join("role_id"), "role\n").expect("write");
        fs::write(files.path().join("secret_id"), " secret\n").expect("write");
        let address = Address { scheme, host: "127.0.0.1".to_owned(), port: server.address().port(), prefix: String::new() };
        let settings = Server { address, tls, namespace: None, retry_max: Duration::from_secs(1) };
        let method = Method::AppRole {
            role_id_file: files.path().join("role_id"),
            secret_id_file: Some(files.path().join("secret_id")),
            after_reading: AfterReading::Keep,
        };
        let auth = Auth { mount_path: "auth/approle".to_owned(), namespace: None, method };
        Self { server, files, settings, auth }
    }

    fn new() -> Self {
        Self::over(Standin::start(), Scheme::Http, Tls::default())
    }

    fn client(&self) -> Client {
        Client::new(&self.settings, &self.auth).expect("a client").with_limits(limits())
    }

    fn secret_id_file(&self) -> std::path::PathBuf {
        self.files.path().join("secret_id")
    }

    fn remove_after_reading(&mut self) {
        let Method::AppRole { after_reading, .. } = &mut self.auth.method;
        *after_reading = AfterReading::Remove;
    }
}

fn limits() -> Limits {
    Limits { connect: Duration::from_secs(1), total: Duration::from_millis(500), body: 64 << 10 }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn query(path: &str) -> Query {
    Query { path: SecretPath::new(path).expect("a path"), version: None, refresh: None }
}

fn login(client: &Client) -> (Token, TokenGrant) {
    run(client.login()).expect("a login")
}

fn read(client: &Client, token: &Token, path: &str) -> Result<Reply, Failure> {
    run(client.read(token, &query(path)))
}

#[test]
fn a_life() {
    let world = World::new();
    let version = world.server.state().put("secret/app", json!({ "user": "u", "n": 1 }));
    let role = DatabaseRole { ttl: Duration::from_secs(60), max_ttl: Duration::from_secs(90), renewable: true };
    world.server.state().database_role("app", role);
    let client = world.client();
    let (token, grant) = login(&client);
    assert_eq!(grant, TokenGrant { ttl: Some(Duration::from_secs(3600)), renewable: true });
    let reply = read(&client, &token, "secret/app").expect("a reply");
    assert_eq!(reply.fields["user"], "u");
    assert!(matches!(reply.engine, Engine::Kv2 { version: got, .. } if got == version as u64));
    let lease = read(&client, &token, "database/creds/app").expect("a reply").lease.expect("a lease");
    assert_eq!((lease.ttl, lease.renewable), (Duration::from_secs(60), true));
    let renewed = run(client.renew(&token, &lease.id, Duration::from_secs(300))).expect("renewed");
    assert!(renewed.ttl >= Duration::from_secs(88) && renewed.ttl <= Duration::from_secs(90), "{renewed:?}");
    assert_eq!(run(client.renew_token(&token)).expect("renewed").ttl, Some(Duration::from_secs(3600)));
    assert!(run(client.look_up_token(&token)).expect("alive").ttl.is_some());
    run(client.revoke_token(&token)).expect("revoked");
    assert_eq!(world.server.state().live(), (0, 0));
    assert_eq!(run(client.look_up_token(&token)).expect_err("dead").cause, Cause::Denied);
}
