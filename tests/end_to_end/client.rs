//! The client against the stand-in: what works, and each trap that it must not fall into.

use crate::rig::standin::{DatabaseRole, Fault, Role, Standin};
use baofs::bao::{Client, ClientToken, Limits, SetupError};
use baofs::config::plan::{Address, AfterReading, Auth, Method, Scheme, Server, Tls, Verify};
use baofs::lease::source::{Cause, Engine, Failure, Reply, Source, TokenGrant};
use baofs::names::{LeaseId, SecretPath};
use baofs::template::Read;
use serde_json::json;
use std::fs;
use std::future::Future;
use std::io::{Read as _, Write};
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
        let allow = ["secret/data/*", "kv/*", "database/creds/*"]
            .map(str::to_owned)
            .to_vec();
        server.state().add_role(Role {
            allow,
            ..Role::default()
        });
        let files = tempfile::tempdir().expect("a directory");
        fs::write(files.path().join("role_id"), "role\n").expect("write");
        fs::write(files.path().join("secret_id"), " secret\n").expect("write");
        let address = Address {
            scheme,
            host: "127.0.0.1".to_owned(),
            port: server.address().port(),
            prefix: String::new(),
        };
        let settings = Server {
            address,
            tls,
            namespace: None,
            retry_max: Duration::from_secs(1),
        };
        let method = Method::AppRole {
            role_id_file: files.path().join("role_id"),
            secret_id_file: Some(files.path().join("secret_id")),
            after_reading: AfterReading::Keep,
        };
        let auth = Auth {
            mount_path: "auth/approle".to_owned(),
            namespace: None,
            method,
        };
        Self {
            server,
            files,
            settings,
            auth,
        }
    }

    fn new() -> Self {
        Self::over(Standin::start(), Scheme::Http, Tls::default())
    }

    fn client(&self) -> Client {
        Client::new(&self.settings, &self.auth)
            .expect("a client")
            .with_limits(limits())
    }

    fn secret_id_file(&self) -> std::path::PathBuf {
        self.files.path().join("secret_id")
    }

    fn remove_after_reading(&mut self) {
        match &mut self.auth.method {
            Method::AppRole { after_reading, .. } => *after_reading = AfterReading::Remove,
        }
    }
}

fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(1),
        total: Duration::from_millis(500),
        secret: 64 << 10,
        other: 4 << 10,
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn query(path: &str) -> Read {
    Read {
        path: SecretPath::new(path).expect("a path"),
        version: None,
    }
}

fn login(client: &Client) -> (ClientToken, TokenGrant) {
    run(client.login()).expect("a login")
}

fn read(client: &Client, token: &ClientToken, path: &str) -> Result<Reply, Failure> {
    run(client.read(token, &query(path)))
}

#[test]
fn a_life() {
    let world = World::new();
    let version = world
        .server
        .state()
        .put("secret/app", json!({ "user": "u", "n": 1 }));
    let role = DatabaseRole {
        ttl: Duration::from_mins(1),
        max_ttl: Duration::from_secs(90),
        renewable: true,
    };
    world.server.state().database_role("app", role);
    let client = world.client();
    let (token, grant) = login(&client);
    assert_eq!(
        grant,
        TokenGrant {
            ttl: Some(Duration::from_hours(1)),
            renewable: true
        }
    );
    let reply = read(&client, &token, "secret/app").expect("a reply");
    assert_eq!(reply.fields["user"], "u");
    assert!(matches!(reply.engine, Engine::Kv2 { version: got, .. } if got == version as u64));
    let lease = read(&client, &token, "database/creds/app")
        .expect("a reply")
        .lease()
        .expect("a lease");
    assert_eq!((lease.ttl, lease.renewable), (Duration::from_mins(1), true));
    let renewed = run(client.renew(&token, &lease.id, Duration::from_mins(5))).expect("renewed");
    assert!(
        renewed.ttl >= Duration::from_secs(88) && renewed.ttl <= Duration::from_secs(90),
        "{renewed:?}"
    );
    assert_eq!(
        run(client.renew_token(&token)).expect("renewed").ttl,
        Some(Duration::from_hours(1))
    );
    assert!(
        run(client.look_up_token(&token))
            .expect("alive")
            .ttl
            .is_some()
    );
    run(client.revoke_token(&token)).expect("revoked");
    assert_eq!(world.server.live(), (0, 0));
    assert_eq!(
        run(client.look_up_token(&token)).expect_err("dead").cause,
        Cause::Denied
    );
}

#[test]
fn kv_paths_versions_and_deletions() {
    let world = World::new();
    world
        .server
        .state()
        .put("secret/app", json!({ "v": "one" }));
    world
        .server
        .state()
        .put("secret/app", json!({ "v": "two" }));
    world.server.state().put(
        "secret/a b/100%?#é".replace(['?', '#'], "").as_str(),
        json!({ "v": "odd" }),
    );
    world
        .server
        .state()
        .put("kv/data/app", json!({ "v": "plain" }));
    let (client, (token, _)) = (world.client(), login(&world.client()));
    for (path, want) in [
        ("secret/app", "two"),
        ("secret/data/app", "two"),
        ("secret/a b/100%é", "odd"),
        ("kv/data/app", "plain"),
    ] {
        assert_eq!(
            read(&client, &token, path).expect(path).fields["v"],
            want,
            "{path}"
        );
    }
    let pinned = Read {
        version: Some(1),
        ..query("secret/app")
    };
    assert_eq!(
        run(client.read(&token, &pinned)).expect("version 1").fields["v"],
        "one"
    );
    let pinned = Read {
        version: Some(1),
        ..query("kv/data/app")
    };
    assert_eq!(
        run(client.read(&token, &pinned))
            .expect_err("no versions")
            .cause,
        Cause::NotFound
    );

    world
        .server
        .state()
        .delete("secret/app", "2999-01-01T00:00:00Z");
    assert_eq!(
        read(&client, &token, "secret/app")
            .expect("lives until then")
            .fields["v"],
        "two"
    );
    world
        .server
        .state()
        .delete("secret/app", "2020-01-01T00:00:00Z");
    let failure = read(&client, &token, "secret/app").expect_err("deleted");
    assert_eq!(
        failure.message,
        "reading secret/app: version 2 was deleted at 2020-01-01T00:00:00Z"
    );
    world.server.state().destroy("secret/app");
    let failure = read(&client, &token, "secret/app").expect_err("destroyed");
    assert_eq!(
        (failure.cause, failure.message.as_str()),
        (
            Cause::NotFound,
            "reading secret/app: version 2 was destroyed"
        )
    );
    let failure = read(&client, &token, "secret/none").expect_err("never there");
    assert_eq!(
        (failure.cause, failure.message.as_str()),
        (
            Cause::NotFound,
            "reading secret/none: nothing is there (404)"
        )
    );
}

#[test]
fn numbers_keep_their_digits() {
    let world = World::new();
    let text = r#"{"data":{"price":1.50,"big":123456789012345678901234567890,"small":1e-400}}"#;
    world.server.state().put("kv/app", json!({}));
    world
        .server
        .state()
        .set_fault("kv/", Fault::Text(text.to_owned()));
    let (client, (token, _)) = (world.client(), login(&world.client()));
    let fields = read(&client, &token, "kv/app").expect("a reply").fields;
    let shown: Vec<String> = fields.values().map(ToString::to_string).collect();
    assert_eq!(shown, ["123456789012345678901234567890", "1.50", "1e-400"]);
}

#[test]
fn a_mount_is_looked_up_once_and_its_failure_is_never_taken_as_version_1() {
    let world = World::new();
    world
        .server
        .state()
        .put("secret/app", json!({ "v": "one" }));
    let (client, (token, _)) = (world.client(), login(&world.client()));
    world
        .server
        .state()
        .set_fault("sys/internal", Fault::Status(500, None));
    assert_eq!(
        read(&client, &token, "secret/app")
            .expect_err("no mount")
            .cause,
        Cause::Unavailable
    );
    assert_eq!(
        world.server.count("secret/"),
        0,
        "nothing may be read at a guessed path"
    );
    world.server.state().clear_faults();
    let five = async {
        let query = query("secret/app");
        let one = || client.read(&token, &query);
        tokio::join!(one(), one(), one(), one(), one())
    };
    assert!(run(five).4.is_ok());
    let counts = [
        world.server.count("sys/internal"),
        world.server.count("secret/data/app"),
    ];
    assert_eq!(counts, [2, 5]);
    let denied = read(&client, &token, "nothing/here").expect_err("no such mount");
    assert_eq!(denied.cause, Cause::Denied);
    assert!(
        denied
            .message
            .starts_with("finding the mount of nothing/here: preflight capability check"),
        "{denied}"
    );
}

#[test]
fn each_fault_is_a_failure_of_its_own_class_in_time() {
    let world = World::new();
    world
        .server
        .state()
        .put("secret/app", json!({ "v": "hunter2" }));
    let (client, (token, _)) = (world.client(), login(&world.client()));
    for (fault, cause, words) in [
        (
            Fault::Close,
            Cause::Unreachable,
            "ended before the answer was whole",
        ),
        (Fault::Silence, Cause::Unreachable, "no answer within 500ms"),
        (
            Fault::Cut,
            Cause::Unreachable,
            "ended before the answer was whole",
        ),
        (
            Fault::Oversized(65 << 10),
            Cause::Malformed,
            "larger than 65536 bytes",
        ),
        (Fault::Status(429, Some(7)), Cause::RateLimited, "429"),
        (Fault::Status(503, None), Cause::Unavailable, "503"),
        (
            Fault::Text("{\"data\":{\"data\":\"hunter2\"}}".to_owned()),
            Cause::Malformed,
            "line 1, column 25",
        ),
        (
            Fault::Text("hunter2".to_owned()),
            Cause::Malformed,
            "line 1, column 1",
        ),
    ] {
        let retry_after = matches!(fault, Fault::Status(429, _)).then(|| Duration::from_secs(7));
        world.server.state().set_fault("secret/", fault);
        let failure = read(&client, &token, "secret/app").expect_err(words);
        assert_eq!(
            (failure.cause, failure.retry_after),
            (cause, retry_after),
            "{failure}"
        );
        assert!(
            failure.message.starts_with("reading secret/app: ") && failure.message.contains(words),
            "{failure}"
        );
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure}");
    }
    world.server.state().clear_faults();
    assert!(read(&client, &token, "secret/app").is_ok());
    world.server.state().sealed = true;
    let failure = read(&client, &token, "secret/app").expect_err("sealed");
    assert_eq!(
        failure.message,
        "reading secret/app: the server is sealed (503)"
    );
}

#[test]
fn a_redirect_is_not_followed_and_the_token_goes_nowhere() {
    let (world, other) = (World::new(), World::new());
    let (client, (token, _)) = (world.client(), login(&world.client()));
    let target = format!("http://user:pw@{}", other.server.address());
    for status in [301, 302, 303, 307, 308] {
        world.server.state().set_fault(
            "",
            Fault::Redirect(status, format!("{target}/v1/x?token=hunter2")),
        );
        let failure = run(client.look_up_token(&token)).expect_err("not followed");
        let want = format!(
            "looking up the token: the server redirects to {} ({status}), which",
            other.server.url()
        );
        assert!(
            failure.cause == Cause::Unreachable && failure.message.starts_with(&want),
            "{failure}"
        );
        assert!(
            !failure.message.contains("hunter2") && !failure.message.contains("pw"),
            "{failure}"
        );
    }
    assert_eq!(other.server.state().requests.len(), 0);
}

#[test]
fn tokens_that_other_clients_stumble_over() {
    let world = World::new();
    let client = world.client();
    for (auth, want) in [
        (
            json!({ "client_token": "s.1", "policies": null, "lease_duration": 60, "renewable": true }),
            None,
        ),
        (json!({ "client_token": "s.1", "lease_duration": 0 }), None),
        (
            json!({ "client_token": "s.hunter2\n", "lease_duration": 60 }),
            Some("cannot be sent in a header"),
        ),
        (
            json!({ "client_token": "", "lease_duration": 60 }),
            Some("cannot be sent in a header"),
        ),
        (json!(null), Some("no token")),
    ] {
        world
            .server
            .state()
            .set_fault("auth/", Fault::Text(json!({ "auth": auth }).to_string()));
        match (run(client.login()), want) {
            (Ok((token, grant)), None) => {
                assert_eq!(
                    (client.expose(&token), grant.ttl.is_some()),
                    (&b"s.1"[..], grant.renewable)
                );
                assert_eq!(format!("{token:?}"), "ClientToken(..)");
            }
            (Err(failure), Some(want)) => {
                assert!(
                    failure.cause == Cause::Malformed && failure.message.contains(want),
                    "{failure}"
                );
                assert!(!failure.message.contains("hunter2"));
            }
            (result, want) => panic!("{result:?} {want:?}"),
        }
    }
}

#[test]
fn a_gateways_prefix_and_the_namespaces_arrive() {
    let mut world = World::new();
    world.server.state().prefix = "/bao".to_owned();
    world.settings.address.prefix = "/bao".to_owned();
    world.settings.namespace = Some("team".to_owned());
    world.auth.namespace = Some("login".to_owned());
    let (client, (token, _)) = (world.client(), login(&world.client()));
    run(client.renew_token(&token)).expect("renewed");
    let requests = world.server.state().requests.clone();
    let seen: Vec<_> = requests
        .iter()
        .map(|request| (request.path.as_str(), request.namespace.as_deref()))
        .collect();
    assert_eq!(
        seen,
        [
            ("auth/approle/login", Some("login")),
            ("auth/token/renew-self", Some("team"))
        ]
    );
    world.settings.namespace = Some("te\nam".to_owned());
    assert!(matches!(
        Client::new(&world.settings, &world.auth),
        Err(SetupError::Namespace)
    ));
}

#[test]
fn a_refused_login_and_a_lease_that_is_gone() {
    let world = World::new();
    let (client, (token, _)) = (world.client(), login(&world.client()));
    let lease = LeaseId::new("database/creds/app/gone").expect("an id");
    let failure = run(client.renew(&token, &lease, Duration::from_mins(1))).expect_err("gone");
    assert_eq!(
        (failure.cause, failure.message.as_str()),
        (Cause::NotFound, "renewing a lease: lease not found (400)")
    );
    fs::write(world.secret_id_file(), "hunter2").expect("write");
    let failure = run(client.login()).expect_err("refused");
    let want = "logging in at auth/approle: invalid role or secret ID (400): the secret_id is used up, expired, of another role, or \
                not known to this node yet; hint: a new one in its file is tried at once";
    assert_eq!(
        (failure.cause, failure.message.as_str()),
        (Cause::Rejected, want)
    );
    world.server.state().role().refused = 5;
    let failure = run(client.login()).expect_err("locked out");
    let want = "logging in at auth/approle: permission denied (403): the role is locked out";
    assert!(
        failure.cause == Cause::LockedOut { elsewhere: false } && failure.message.starts_with(want),
        "{failure}"
    );
    let failure = read(&client, &token, "secret/none").expect_err("never there");
    assert_eq!(failure.cause, Cause::NotFound);
    world.server.state().role().allow.clear();
    let failure = read(&client, &token, "secret/none").expect_err("denied");
    assert_eq!(
        (failure.cause, failure.message.as_str()),
        (
            Cause::Denied,
            "reading secret/none: permission denied (403)"
        )
    );
}

#[test]
fn the_secret_id_file_is_removed_only_after_it_worked() {
    let mut world = World::new();
    world.remove_after_reading();
    let (client, file) = (world.client(), world.secret_id_file());
    world.server.state().sealed = true;
    run(client.login()).expect_err("sealed");
    client.commit_credentials();
    assert!(
        file.exists(),
        "a login that failed must leave the file for the next start"
    );
    world.server.state().sealed = false;
    run(client.login()).expect("a login");
    assert!(
        file.exists(),
        "nor does it go before a successor would know it"
    );
    client.commit_credentials();
    assert!(!file.exists());
    run(client.login()).expect("a login from memory");
    fs::write(&file, "secret-2").expect("write");
    "secret-2".clone_into(&mut world.server.state().role().secret_id);
    run(client.login()).expect("a login with the new file");
    client.commit_credentials();
    fs::create_dir(&file).expect("a directory that no unlink removes");
    run(client.login()).expect("a login from memory again");
    client.commit_credentials();
    assert!(file.exists(), "what cannot be removed is a warning");
}

#[test]
fn changed_credentials_are_noticed_when_they_are_whole() {
    let world = World::new();
    let (client, file) = (world.client(), world.secret_id_file());
    let looks = |client: &Client| [client.credentials_changed(), client.credentials_changed()];
    assert_eq!(
        looks(&client),
        [false, true],
        "no login showed anything yet"
    );
    fs::write(&file, "wrong").expect("write");
    run(client.login()).expect_err("refused");
    assert_eq!(looks(&client), [false, false]);
    let replace = |text: &str| {
        fs::write(world.files.path().join("new"), text).expect("write");
        fs::rename(world.files.path().join("new"), &file).expect("rename");
    };
    replace(" wrong\n");
    assert_eq!(
        looks(&client),
        [false, false],
        "the same credential in another file"
    );
    fs::write(&file, "sec").expect("write");
    assert!(!client.credentials_changed(), "it may be half written");
    fs::write(&file, "secret").expect("write");
    assert_eq!(looks(&client), [false, true]);
    // What a predecessor showed is known, whether it worked or not.
    let successor = world.client();
    successor.import_credentials(client.export_credentials());
    fs::write(&file, "wrong").expect("write");
    assert_eq!(looks(&successor), [false, false]);
    fs::remove_file(&file).expect("remove");
    assert_eq!(
        looks(&client),
        [false, false],
        "a file that went is no new credential"
    );
    run(client.login()).expect_err("no file");
    fs::write(&file, "wrong").expect("write");
    assert_eq!(
        looks(&client),
        [false, true],
        "a file that came, whatever was refused before it went"
    );
    fs::write(&file, "secret").expect("write");
    run(client.login()).expect("a login");
    fs::remove_file(&file).expect("remove");
    run(client.login()).expect("a login from memory");
    assert_eq!(looks(&client), [false, false]);
    fs::write(world.files.path().join("role_id"), "another").expect("write");
    fs::write(&file, "secret").expect("write");
    assert_eq!(looks(&client), [false, true], "the role counts, too");
}

#[test]
fn credential_files_that_cannot_be_used_are_named() {
    let world = World::new();
    let file = world.secret_id_file();
    let large = vec![b'x'; 65_537];
    for (content, want) in [
        (Some(&b" \n"[..]), "is empty"),
        (Some(b"\xff"), "is not UTF-8 text"),
        (Some(&large), "is larger than 65536 bytes"),
        (
            None,
            "cannot be read: No such file or directory (os error 2)",
        ),
    ] {
        match content {
            Some(content) => fs::write(&file, content).expect("write"),
            None => fs::remove_file(&file).expect("remove"),
        }
        let failure = run(world.client().login()).expect_err(want);
        assert_eq!(
            failure.message,
            format!("logging in at auth/approle: {} {want}", file.display())
        );
        assert_eq!(failure.cause, Cause::Login);
    }
    for (target, want) in [
        ("/dev/zero", "is a device, not a regular file"),
        ("fifo", "is a FIFO, not a regular file"),
    ] {
        let _ = fs::remove_file(&file);
        match target {
            "fifo" => nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO"),
            target => std::os::unix::fs::symlink(target, &file).expect("a link"),
        }
        let failure = run(world.client().login()).expect_err(want);
        assert_eq!(
            failure.message,
            format!("logging in at auth/approle: {} {want}", file.display())
        );
    }
}

/// A server without TLS that says this to everybody.
fn scripted(words: &'static [u8]) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.read(&mut [0; 4096]).expect("a request");
        stream.write_all(words).expect("an answer");
    });
    port
}

#[test]
fn the_wrong_server_is_recognised() {
    let mut world = World::new();
    let go = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    for (port, scheme, cause, words) in [
        (
            scripted(go),
            Scheme::Http,
            Cause::Unreachable,
            "the server speaks TLS",
        ),
        (
            scripted(b"SSH-2.0-OpenSSH_9.2\r\n"),
            Scheme::Http,
            Cause::Malformed,
            "not HTTP",
        ),
        (
            scripted(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            Scheme::Https,
            Cause::Unreachable,
            "does not speak TLS",
        ),
        (
            closed_port(),
            Scheme::Http,
            Cause::Unreachable,
            "connection refused",
        ),
    ] {
        world.settings.address.port = port;
        world.settings.address.scheme = scheme;
        world.settings.tls.verify = Verify::Skip;
        let failure = run(world.client().login()).expect_err(words);
        assert!(
            failure.cause == cause && failure.message.contains(words),
            "{failure}"
        );
    }
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port()
}

#[test]
fn tls_trusts_whom_it_is_told() {
    let mut world = World::over(
        Standin::start_tls(&["bao.test"]),
        Scheme::Https,
        Tls::default(),
    );
    let authority = world.files.path().join("ca").join("ca.pem");
    let own_dir = authority.parent().expect("a parent").to_owned();
    fs::create_dir(&own_dir).expect("a directory");
    fs::write(&authority, world.server.authority()).expect("write");
    let foreign = world.files.path().join("foreign.pem");
    fs::write(&foreign, Standin::start_tls(&["bao.test"]).authority()).expect("write");
    let named = || Some("bao.test".to_owned());
    let file = |path: &std::path::Path| Tls {
        ca_cert: Some(path.to_owned()),
        ..Tls::default()
    };
    for (tls, want) in [
        (
            Tls {
                server_name: named(),
                ..file(&authority)
            },
            None,
        ),
        (
            Tls {
                server_name: named(),
                ca_path: Some(own_dir),
                ..Tls::default()
            },
            None,
        ),
        (
            Tls {
                verify: Verify::Skip,
                ..Tls::default()
            },
            None,
        ),
        (
            Tls {
                server_name: named(),
                ..file(&foreign)
            },
            Some("unknown issuer"),
        ),
        (file(&authority), Some("another name")),
    ] {
        world.settings.tls = tls;
        match (run(world.client().login()), want) {
            (Ok(_), None) => {}
            (Err(failure), Some(want)) => assert!(
                failure.cause == Cause::Unreachable && failure.message.contains(want),
                "{failure}"
            ),
            (result, want) => panic!("{result:?} {want:?}"),
        }
    }
}

/// A server of this version of TLS for three connections; gives how many of its handshakes resumed
/// a session.
fn resumed(
    version: &'static rustls::SupportedProtocolVersion,
) -> (u16, std::thread::JoinHandle<usize>) {
    let own = rcgen::generate_simple_self_signed(["bao.test".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_protocol_versions(&[version])
    .expect("a version of ring")
    .with_no_client_auth()
    .with_single_cert(vec![own.cert.der().clone()], key.into())
    .expect("a certificate and its key");
    let (config, listener) = (
        std::sync::Arc::new(config),
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port"),
    );
    let port = listener.local_addr().expect("an address").port();
    let handshake = move |_| {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut session =
            rustls::ServerConnection::new(std::sync::Arc::clone(&config)).expect("a session");
        let mut tls = rustls::Stream::new(&mut session, &mut stream);
        let _ = tls.read(&mut [0; 4096]).expect("a request");
        tls.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            .expect("an answer");
        usize::from(session.handshake_kind() == Some(rustls::HandshakeKind::Resumed))
    };
    (
        port,
        std::thread::spawn(move || (0..3).map(handshake).sum()),
    )
}

#[test]
fn no_session_is_kept_to_be_resumed() {
    let mut world = World::new();
    (world.settings.address.scheme, world.settings.tls.verify) = (Scheme::Https, Verify::Skip);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (port, resumed) = resumed(version);
        world.settings.address.port = port;
        let client = world.client();
        for _ in 0..3 {
            assert_eq!(
                run(client.login()).expect_err("busy").cause,
                Cause::Unavailable
            );
        }
        assert_eq!(
            resumed.join().expect("it does not panic"),
            0,
            "{version:?}: a session's secrets were kept"
        );
    }
}

#[test]
fn tls_files_that_cannot_be_used_are_named() {
    let mut world = World::over(
        Standin::start_tls(&["bao.test"]),
        Scheme::Https,
        Tls::default(),
    );
    let (missing, empty) = (
        world.files.path().join("missing.pem"),
        world.secret_id_file(),
    );
    let directory = world.files.path().join("authorities");
    let bundle = directory.join("large.pem");
    fs::create_dir(&directory).expect("a directory");
    fs::write(&bundle, vec![b'\n'; (1 << 20) + 1]).expect("write");
    // What is no file is no authority: a FIFO is not waited for.
    nix::unistd::mkfifo(&directory.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    for (tls, want) in [
        (
            Tls {
                ca_cert: Some(missing.clone()),
                ..Tls::default()
            },
            "missing.pem",
        ),
        (
            Tls {
                ca_cert: Some(empty.clone()),
                ..Tls::default()
            },
            "holds no certificate",
        ),
        (
            Tls {
                ca_path: Some(missing.clone()),
                ..Tls::default()
            },
            "missing.pem",
        ),
        (
            Tls {
                ca_cert: Some("/dev/zero".into()),
                ..Tls::default()
            },
            "from /dev/zero: it is a device, not a regular file",
        ),
        (
            Tls {
                ca_cert: Some(bundle),
                ..Tls::default()
            },
            "it is larger than 1048576 bytes",
        ),
        (
            Tls {
                ca_path: Some(directory),
                ..Tls::default()
            },
            "large.pem is larger than 1048576 bytes",
        ),
        (
            Tls {
                verify: Verify::Skip,
                client_cert: Some("/dev/zero".into()),
                client_key: Some(empty.clone()),
                ..Tls::default()
            },
            "/dev/zero is a device",
        ),
        (
            Tls {
                verify: Verify::Skip,
                client_cert: Some(empty.clone()),
                client_key: Some("/dev/zero".into()),
                ..Tls::default()
            },
            "/dev/zero is a device",
        ),
        (
            Tls {
                verify: Verify::Skip,
                client_cert: Some(empty.clone()),
                ..Tls::default()
            },
            "`client_key` is missing",
        ),
        (
            Tls {
                verify: Verify::Skip,
                client_cert: Some(empty),
                client_key: Some(missing),
                ..Tls::default()
            },
            "cannot be used",
        ),
        (
            Tls {
                verify: Verify::Skip,
                server_name: Some("no name".to_owned()),
                ..Tls::default()
            },
            "\"no name\"",
        ),
    ] {
        world.settings.tls = tls;
        let error = Client::new(&world.settings, &world.auth)
            .err()
            .expect(want)
            .to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn an_image_without_authorities_is_told_so() {
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "--ignored", "client::without_authorities"])
        .env("SSL_CERT_FILE", empty.path())
        .env_remove("SSL_CERT_DIR")
        .output()
        .expect("this test runs");
    let words = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && words.contains("1 passed"),
        "{words}"
    );
}

#[test]
#[ignore = "run by the test above in an environment of its own"]
fn without_authorities() {
    let mut world = World::new();
    world.settings.address.scheme = Scheme::Https;
    let error = Client::new(&world.settings, &world.auth)
        .err()
        .expect("an error");
    assert!(
        matches!(error, SetupError::NoTrustStore) && error.to_string().contains("SSL_CERT_FILE"),
        "{error}"
    );
}
