//! The rig itself: what the other tests rely on, shown without baofs.

use crate::rig::agent::{MOUNT, Setup, USER};
use crate::rig::process::{run, status};
use crate::rig::server::{CALM, Real, Tenant};
use crate::rig::{bao, config};
use crate::rig::{http, wait_until};
use serde_json::json;

#[test]
fn a_tenant_sees_its_own_secrets_and_nothing_else() {
    let (tenant, other) = (
        Tenant::real("rig-own", CALM),
        Tenant::real("rig-other", CALM),
    );
    tenant.put("note", json!({ "text": "hello" }));
    other.put("note", json!({ "text": "not yours" }));
    let address = tenant.url().replace("http://", "");
    let ask = |method: &str, path: &str, token: &str, body| {
        http::request(&address, method, path, token, body).expect("OpenBao answers")
    };

    let login = json!({ "role_id": tenant.role_id, "secret_id": tenant.secret_id });
    let login = ask("POST", "auth/approle/login", "", Some(&login));
    let token = login.body["auth"]["client_token"]
        .as_str()
        .expect("a token");
    assert_eq!(
        ask("GET", &tenant.kv("note"), token, None).body["data"]["data"]["text"],
        "hello"
    );
    assert_eq!(ask("GET", &other.kv("note"), token, None).status, 403);
    assert_eq!(
        ask(
            "GET",
            &tenant.kv("note").replace("/data/", "/metadata/"),
            token,
            None
        )
        .status,
        403
    );

    let credential = ask("GET", &tenant.creds(), token, None).body;
    let word = |key: &str| {
        credential["data"][key]
            .as_str()
            .expect("a credential has it")
            .to_owned()
    };
    let (user, password) = (word("username"), word("password"));
    assert!(tenant.admits(&user, &password));
    assert!(!tenant.admits(&user, "wrong"));
    assert_eq!((tenant.tokens(), tenant.leases()), (1, 1));

    assert_eq!(
        ask("POST", "auth/token/revoke-self", token, None).status,
        204
    );
    wait_until("the lease is gone with its token", || {
        (tenant.leases() == 0 && !tenant.knows(&user)).then_some(())
    });
    assert_eq!(tenant.tokens(), 0);
    assert_eq!(tenant.reads(&tenant.creds()), 1);
}

#[test]
fn servers_end_with_the_last_test() {
    let real = Real::start(std::net::Ipv4Addr::LOCALHOST);
    let (bao, port) = (real.bao.address.clone(), real.postgres.port);
    drop(real);
    assert!(std::net::TcpStream::connect(bao).is_err());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_room_holds_the_incumbent_and_all_of_it_ends() {
    let tenant = Tenant::real("rig-room", CALM);
    for n in 0..8 {
        tenant.put(&format!("kv{n}"), json!({ "value": format!("value {n}") }));
    }
    let agent =
        Setup::incumbent(&bao::binary(), &tenant, &config::ten_files(&tenant, MOUNT)).start();
    assert_eq!(agent.read("kv7"), "value 7");
    assert!(tenant.admits(&agent.read("user"), &agent.read("password")));
    let path = format!("{MOUNT}/kv0");
    assert_eq!(
        run(&mut agent.enter(USER, &["cat", &path])),
        "value 0",
        "the incumbent's files are readable by all"
    );
    assert_eq!(run(&mut agent.enter(USER, &["id", "-u"])), USER.to_string());
    assert!(
        !std::path::Path::new(MOUNT).exists(),
        "the room's files are not the machine's"
    );
    let pid = agent.pid();
    drop(agent);
    wait_until("the agent is gone with its room", || {
        status(pid, "Name").is_none().then_some(())
    });
    assert_eq!(
        (tenant.tokens(), tenant.leases()),
        (1, 1),
        "the incumbent leaves both"
    );
}
