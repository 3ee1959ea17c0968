//! The walls of the roles: what a role that was taken over asks of the kernel in vain, and what
//! still works behind them.

use super::deaths::{replace, report};
use crate::rig::agent::{Agent, Setup};
use crate::rig::dns::Dns;
use crate::rig::process::status;
use crate::rig::server::{CALM, Scene, Server, Tenant};
use crate::rig::standin::Standin;
use crate::rig::taken::{Argument, Taken};
use crate::rig::{World, config, wait_until_or};
use baofs::shown::ShownName;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;

in_each_world!(
    a_fetch_that_was_taken_over_gets_nowhere,
    credentials_that_are_replaced_are_read,
    a_name_is_resolved_again,
    without_landlock_all_works_after_one_warning,
);

/// What is asked: in words, the call and its arguments, and the answer.
type Row = (&'static str, libc::c_long, Vec<Argument>, Errno);

/// `[1.into(), "x".into()]` as arguments.
macro_rules! args {
    ($($argument:expr),* $(,)?) => { vec![$(Argument::from($argument)),*] };
}

/// Ways out of a process. The arguments are such that nothing is done by a kernel that lets them
/// pass.
fn everywhere(app: i32) -> Vec<Row> {
    let readable = libc::PROT_READ | libc::PROT_EXEC;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let mut attr = [0_u8; 128];
    attr[4] = 128;
    vec![
        (
            "execute a program",
            libc::SYS_execve,
            args!["/nothing", 0, 0],
            Errno::ENOSYS,
        ),
        (
            "execute an open file",
            libc::SYS_execveat,
            args![-1, "/nothing", 0, 0, 0],
            Errno::ENOSYS,
        ),
        (
            "fork",
            libc::SYS_clone,
            args![libc::SIGCHLD | libc::CLONE_SIGHAND, 0, 0, 0, 0],
            Errno::EPERM,
        ),
        (
            "fork into a namespace",
            libc::SYS_clone,
            args![
                libc::CLONE_NEWUSER | libc::CLONE_FS | libc::CLONE_THREAD,
                0,
                0,
                0,
                0
            ],
            Errno::EPERM,
        ),
        (
            "fork with a struct",
            libc::SYS_clone3,
            args![0, 0],
            Errno::ENOSYS,
        ),
        (
            "make a user namespace",
            libc::SYS_unshare,
            args![libc::CLONE_NEWUSER],
            Errno::ENOSYS,
        ),
        (
            "enter a namespace",
            libc::SYS_setns,
            args![-1, 0],
            Errno::ENOSYS,
        ),
        (
            "mount",
            libc::SYS_mount,
            args!["x", "/nothing", "tmpfs", 0, 0],
            Errno::ENOSYS,
        ),
        (
            "mount anew",
            libc::SYS_fsopen,
            args!["tmpfs", 0],
            Errno::ENOSYS,
        ),
        (
            "trace",
            libc::SYS_ptrace,
            args![libc::PTRACE_ATTACH.cast_signed(), 1],
            Errno::ENOSYS,
        ),
        (
            "read another's memory",
            libc::SYS_process_vm_readv,
            args![1, 0, 0, 0, 0, 0],
            Errno::ENOSYS,
        ),
        (
            "write another's memory",
            libc::SYS_process_vm_writev,
            args![1, 0, 0, 0, 0, 0],
            Errno::ENOSYS,
        ),
        (
            "load a program into the kernel",
            libc::SYS_bpf,
            args![0, 0, 0],
            Errno::ENOSYS,
        ),
        (
            "load a module",
            libc::SYS_finit_module,
            args![-1, "", 0],
            Errno::ENOSYS,
        ),
        (
            "load a kernel",
            libc::SYS_kexec_load,
            args![0, 0, 0, 0],
            Errno::ENOSYS,
        ),
        (
            "use the keyring",
            libc::SYS_keyctl,
            args![0, -3, 0, 0, 0],
            Errno::ENOSYS,
        ),
        (
            "handle page faults",
            libc::SYS_userfaultfd,
            args![1],
            Errno::ENOSYS,
        ),
        (
            "observe the processor",
            libc::SYS_perf_event_open,
            args![&attr[..], 0, -1, -1, 0],
            Errno::ENOSYS,
        ),
        (
            "go around filters",
            libc::SYS_io_uring_setup,
            args![0, 0],
            Errno::ENOSYS,
        ),
        (
            "open by number",
            libc::SYS_open_by_handle_at,
            args![-1, 0, 0],
            Errno::ENOSYS,
        ),
        (
            "take a descriptor",
            libc::SYS_pidfd_open,
            args![1, 0],
            Errno::ENOSYS,
        ),
        (
            "make code",
            libc::SYS_mmap,
            args![0, 4096, readable, anonymous, -1, 0],
            Errno::EPERM,
        ),
        (
            "make memory code",
            libc::SYS_mprotect,
            args![0, 0, readable],
            Errno::EPERM,
        ),
        (
            "limit another",
            libc::SYS_prlimit64,
            args![app, 7, 0, 0],
            Errno::EPERM,
        ),
        (
            "become dumpable",
            libc::SYS_prctl,
            args![libc::PR_SET_DUMPABLE, 1, 0, 0, 0],
            Errno::EPERM,
        ),
        (
            "signal another",
            libc::SYS_kill,
            args![app, 0],
            Errno::ENOSYS,
        ),
        (
            "signal a thread",
            libc::SYS_tgkill,
            args![app, app, 0],
            Errno::EPERM,
        ),
        (
            "let input signal another",
            libc::SYS_fcntl,
            args![0, libc::F_SETOWN, app],
            Errno::ENOSYS,
        ),
        (
            "abort another",
            libc::SYS_tgkill,
            args![app, app, libc::SIGABRT],
            Errno::EPERM,
        ),
    ]
}

/// What only `fetch` has calls for.
fn of_fetch(world: World, socket: i64) -> Vec<Row> {
    let open = |path: &str, flags: libc::c_int| args![libc::AT_FDCWD, path, flags, 0o755];
    let make = libc::O_CREAT | libc::O_WRONLY;
    let (port, any) = (address(1), address(0));
    let rows: &[Row] = &[
        (
            "write beside the binary",
            libc::SYS_openat,
            open("/entry/evil", make),
            Errno::EACCES,
        ),
        (
            "append to a file",
            libc::SYS_openat,
            open("/etc/passwd", libc::O_WRONLY | libc::O_APPEND),
            Errno::EACCES,
        ),
        (
            "read a file",
            libc::SYS_openat,
            open("/etc/shadow", libc::O_RDONLY),
            Errno::EACCES,
        ),
        (
            "list a directory",
            libc::SYS_openat,
            open("/", libc::O_RDONLY | libc::O_DIRECTORY),
            Errno::EACCES,
        ),
        (
            "remove a file",
            libc::SYS_unlinkat,
            args![libc::AT_FDCWD, "/etc/passwd", 0],
            Errno::EACCES,
        ),
        (
            "rename a file",
            libc::SYS_renameat2,
            args![
                libc::AT_FDCWD,
                "/etc/passwd",
                libc::AT_FDCWD,
                "/etc/evil",
                0
            ],
            Errno::EACCES,
        ),
        (
            "write a credential",
            libc::SYS_openat,
            open("/etc/bao/role_id", libc::O_WRONLY),
            Errno::EACCES,
        ),
        (
            "remove a credential",
            libc::SYS_unlinkat,
            args![libc::AT_FDCWD, "/etc/bao/secret_id", 0],
            Errno::EACCES,
        ),
        (
            "write beside the mount",
            libc::SYS_openat,
            open("/app/evil", make),
            Errno::EACCES,
        ),
        (
            "write into memory that all share",
            libc::SYS_openat,
            open("/dev/shm/evil", make),
            Errno::EACCES,
        ),
        (
            "open the memory of PID 1",
            libc::SYS_openat,
            open("/proc/1/mem", libc::O_RDWR),
            Errno::EACCES,
        ),
        (
            "read what a process maps",
            libc::SYS_openat,
            open("/proc/self/maps", libc::O_RDONLY),
            Errno::EACCES,
        ),
        (
            "connect to another port",
            libc::SYS_connect,
            args![socket, &port[..], 16],
            Errno::EACCES,
        ),
        (
            "connect with the first bytes",
            libc::SYS_sendto,
            args![socket, "x", 1, libc::MSG_FASTOPEN, &port[..], 16],
            Errno::EPERM,
        ),
        (
            "take a port",
            libc::SYS_bind,
            args![socket, &any[..], 16],
            Errno::EACCES,
        ),
        ("listen", libc::SYS_listen, args![socket, 1], Errno::ENOSYS),
        (
            "speak to a service of this machine",
            libc::SYS_socket,
            args![libc::AF_UNIX, libc::SOCK_STREAM, 0],
            Errno::EPERM,
        ),
        (
            "speak to the kernel",
            libc::SYS_socket,
            args![libc::AF_NETLINK, libc::SOCK_RAW, 0],
            Errno::EPERM,
        ),
        (
            "speak to the host",
            libc::SYS_socket,
            args![libc::AF_VSOCK, libc::SOCK_STREAM, 0],
            Errno::EPERM,
        ),
        (
            "hide TCP",
            libc::SYS_socket,
            args![libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP],
            Errno::EPERM,
        ),
        (
            "have a pair",
            libc::SYS_socketpair,
            args![libc::AF_UNIX, libc::SOCK_STREAM, 0, 0],
            Errno::ENOSYS,
        ),
    ];
    let on_fuse: &[Row] = &[
        (
            "change a mode",
            libc::SYS_fchmodat,
            args![libc::AT_FDCWD, "/etc/passwd", 0o644],
            Errno::ENOSYS,
        ),
        (
            "give a file away",
            libc::SYS_fchownat,
            args![libc::AT_FDCWD, "/etc/passwd", 0, 0, 0],
            Errno::ENOSYS,
        ),
    ];
    [rows, if world == World::Fuse { on_fuse } else { &[] }].concat()
}

/// `struct sockaddr_in` of 127.0.0.1.
fn address(port: u16) -> Vec<u8> {
    let family = u16::try_from(libc::AF_INET)
        .expect("it is small")
        .to_ne_bytes();
    [&family[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

/// Asks for everything; what was answered otherwise.
fn ask(taken: &mut Taken, rows: Vec<Row>) -> Vec<String> {
    let answers = rows
        .into_iter()
        .map(|(what, call, arguments, wanted)| (what, wanted, taken.call(call, &arguments)));
    answers
        .filter(|(_, wanted, answer)| *answer != Err(*wanted))
        .map(|(what, _, answer)| format!("{what}: {answer:?}"))
        .collect()
}

/// The number that a process has in its own namespace.
fn inside(pid: Pid) -> i32 {
    let ids = status(pid, "NSpid").expect("it runs");
    ids.split_whitespace()
        .last()
        .and_then(|id| id.parse().ok())
        .expect("it has a number")
}

fn app(agent: &Agent) -> i32 {
    agent
        .processes()
        .into_iter()
        .find(|(_, name)| name == "sh")
        .map(|(pid, _)| inside(pid))
        .expect("the application runs")
}

fn start(world: World, name: &str) -> (Tenant, Agent) {
    let (tenant, setup) = Scene::of(world).usual(name);
    (tenant, setup.started())
}

/// It goes on, and so does its successor.
fn goes_on(tenant: &Tenant, agent: Agent, role: &str) {
    assert_eq!(agent.read("note"), "old");
    tenant.put("note", json!({ "text": "new" }));
    assert_eq!(agent.read_after("note", "old"), "new");
    replace(&agent, role, Signal::SIGKILL);
    tenant.put("note", json!({ "text": "newer" }));
    assert_eq!(agent.read_after("note", "new"), "newer");
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    tenant.assert_nothing_lives();
}

fn a_fetch_that_was_taken_over_gets_nowhere(world: World) {
    let (tenant, agent) = start(world, "walls-fetch");
    let app = app(&agent);
    let mut fetch = Taken::over(agent.role("fetch"));
    let socket = fetch
        .call(
            libc::SYS_socket,
            &[libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0.into()],
        )
        .expect("it needs sockets");
    let mut passed = ask(&mut fetch, of_fetch(world, socket));
    passed.extend(ask(&mut fetch, everywhere(app)));
    fetch
        .call(libc::SYS_close, &[socket.into()])
        .expect("it is its own");
    drop(fetch);
    assert!(passed.is_empty(), "{passed:#?}");
    goes_on(&tenant, agent, "fetch");
}

#[test]
fn a_serve_that_was_taken_over_gets_nowhere() {
    let (tenant, agent) = start(World::Fuse, "walls-serve");
    let app = app(&agent);
    let mut serve = Taken::over(agent.role("serve"));
    let mut rows = everywhere(app);
    rows.extend([
        (
            "open a file",
            libc::SYS_openat,
            args![libc::AT_FDCWD, "/etc/passwd", 0, 0],
            Errno::ENOSYS,
        ),
        (
            "open a file by its old name",
            libc::SYS_open,
            args!["/etc/passwd", 0, 0],
            Errno::ENOSYS,
        ),
        (
            "remove a file",
            libc::SYS_unlinkat,
            args![libc::AT_FDCWD, "/nothing", 0],
            Errno::ENOSYS,
        ),
        (
            "look at a file",
            libc::SYS_newfstatat,
            args![libc::AT_FDCWD, "/etc/passwd", 0, 0],
            Errno::ENOSYS,
        ),
        (
            "change a mode",
            libc::SYS_fchmodat,
            args![libc::AT_FDCWD, "/nothing", 0],
            Errno::ENOSYS,
        ),
        (
            "have a socket",
            libc::SYS_socket,
            args![libc::AF_INET, libc::SOCK_STREAM, 0],
            Errno::ENOSYS,
        ),
        (
            "have a socket of this machine",
            libc::SYS_socket,
            args![libc::AF_UNIX, libc::SOCK_STREAM, 0],
            Errno::ENOSYS,
        ),
        ("connect", libc::SYS_connect, args![-1, 0, 0], Errno::ENOSYS),
        (
            "change a device",
            libc::SYS_ioctl,
            args![0, libc::FIONBIO.cast_signed(), 0],
            Errno::ENOSYS,
        ),
    ]);
    let passed = ask(&mut serve, rows);
    drop(serve);
    assert!(passed.is_empty(), "{passed:#?}");
    goes_on(&tenant, agent, "serve");
}

#[test]
fn the_report_names_the_walls() {
    let (_tenant, agent) = start(World::Fuse, "walls-report");
    let walls = report(&agent).walls;
    for words in [&walls.fetch, &walls.serve] {
        assert_eq!(words[..2], ["capabilities", "seccomp"].map(ShownName::from));
        assert!(words[2].starts_with("landlock "), "{words:?}");
    }
    for role in ["fetch", "serve"] {
        let pid = agent.role(role);
        // Of all its threads.
        let tasks: Vec<_> = fs::read_dir(format!("/proc/{pid}/task"))
            .expect("it runs")
            .flatten()
            .collect();
        assert!(tasks.len() > 1, "{role} has threads");
        for task in tasks {
            let text = fs::read_to_string(task.path().join("status")).expect("it runs");
            assert!(text.contains("Seccomp_filters:\t1"), "{role}: {text}");
        }
        for stream in [0, 1] {
            let name = fs::read_link(format!("/proc/{pid}/fd/{stream}")).expect("it is open");
            assert_eq!(name.to_str(), Some("/dev/null"), "{role} {stream}");
        }
    }
    assert_eq!(agent.stop().code, 0);
}

/// The stand-in of a tenant.
fn standin(tenant: &Tenant) -> &Standin {
    match &tenant.server {
        Server::Standin(standin) => standin,
        Server::Real(_) => panic!("the tests here have stand-ins"),
    }
}

/// Takes the token away: the agent has to log in again, with what its files hold now.
fn assert_logs_in(tenant: &Tenant, agent: &Agent) {
    let before = tenant.logins();
    standin(tenant).state().revoke_tokens();
    wait_until_or(
        "it logs in again",
        || agent.log(),
        || (tenant.logins() == before + 1 && tenant.tokens() == 1).then_some(()),
    );
}

/// Where the credentials lie: as files, and as Kubernetes has them.
const PLACES: [(&str, &str); 2] = [
    (
        "/run/plain",
        "mkdir -p /run/plain; cp /etc/bao/*_id /run/plain",
    ),
    (
        "/run/links",
        "mkdir -p /run/links/..1; cp /etc/bao/*_id /run/links/..1; ln -s ..1 /run/links/..data
for it in role_id secret_id; do ln -s ..data/$it /run/links/$it; done",
    ),
];

fn credentials_that_are_replaced_are_read(world: World) {
    for (place, prepare) in PLACES {
        let tenant = Tenant::standin("walls-replaced", CALM);
        tenant.put("note", json!({ "text": "old" }));
        let template = |dir: &str| {
            format!(
                "template {{\n  source = \"{dir}/a.tpl\"\n  destination = \"/app/secrets/{}\"\n}}\n",
                dir.replace('/', "")
            )
        };
        let text = config::usual(&tenant).replace("/etc/bao/", &format!("{place}/"))
            + &template("/srv/one")
            + &template("/opt/two");
        let write = "for it in /srv/one /opt/two; do mkdir -p $it; echo constant > $it/a.tpl; done";
        let mounts = "mount -t tmpfs srv /srv; mount -t tmpfs opt /opt";
        let agent = Setup::new(world, &tenant, &text)
            .prepare(&format!("{mounts}; {write}; {prepare}"))
            .started();
        let dir = agent.path(place);
        // Twice: what was made after the start is replaced, too.
        for secret in ["second", "third"] {
            secret.clone_into(&mut standin(&tenant).state().role().secret_id);
            if place == "/run/plain" {
                fs::write(dir.join("next"), secret)
                    .and_then(|()| fs::rename(dir.join("next"), dir.join("secret_id")))
                    .expect("replaced");
            } else {
                let target = format!("..{secret}");
                fs::create_dir(dir.join(&target)).expect("a directory is made");
                fs::write(dir.join(&target).join("role_id"), &tenant.role_id).expect("written");
                fs::write(dir.join(&target).join("secret_id"), secret).expect("written");
                symlink(&target, dir.join("next"))
                    .and_then(|()| fs::rename(dir.join("next"), dir.join("..data")))
                    .expect("replaced");
            }
        }
        assert_logs_in(&tenant, &agent);
        assert_eq!(agent.read("srvone"), "constant\n");
        let end = agent.stop();
        assert_eq!(end.code, 0, "{}", end.stderr);
        tenant.assert_nothing_lives();
    }
}

fn a_name_is_resolved_again(world: World) {
    let tenant = Tenant::standin("walls-name", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let text = config::usual(&tenant).replace("127.0.0.1", "bao.test");
    let known =
        "echo '127.0.0.1 bao.test' >/etc/hosts; echo 'nameserver 127.0.0.1' >/etc/resolv.conf";
    // A link to the file of a daemon, as systemd has it.
    let linked = "mkdir -p /run/resolve; mv /etc/resolv.conf /run/resolve; ln -s /run/resolve/resolv.conf /etc/resolv.conf";
    let agent = Setup::new(world, &tenant, &text)
        .prepare(&format!("{known}; {linked}"))
        .started();
    // From now on only a name server knows it.
    let server = Ipv4Addr::new(127, 0, 77, if world == World::Fuse { 1 } else { 2 });
    let dns = Dns::start(server);
    for (path, text) in [
        ("/run/resolve/resolv.conf", format!("nameserver {server}\n")),
        ("/etc/hosts", String::new()),
    ] {
        let path = agent.path(path);
        let next = path.with_extension("next");
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, &path))
            .expect("replaced");
    }
    assert_logs_in(&tenant, &agent);
    assert!(dns.asked() > 0, "the name server was not asked");
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

fn without_landlock_all_works_after_one_warning(world: World) {
    let tenant = Tenant::standin("walls-old", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let agent = Setup::new(world, &tenant, &config::usual(&tenant))
        .without(libc::SYS_landlock_create_ruleset)
        .started();
    assert_eq!(
        report(&agent).walls.fetch,
        ["capabilities", "seccomp"].map(ShownName::from)
    );
    replace(&agent, "fetch", Signal::SIGKILL);
    tenant.put("note", json!({ "text": "new" }));
    assert_eq!(agent.read_after("note", "old"), "new");
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_eq!(
        end.stderr.matches("no Landlock").count(),
        1,
        "{}",
        end.stderr
    );
    tenant.assert_nothing_lives();
}

#[test]
fn an_authority_that_was_replaced_is_read_by_a_successor() {
    let tenant = Tenant::of(Standin::start_tls(&["bao.test"]), "walls-authority", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let tls = "vault {\n  ca_cert = \"/etc/bao/tls/ca.pem\"\n  tls_server_name = \"bao.test\"";
    let setup = Setup::new(
        World::Fuse,
        &tenant,
        &config::usual(&tenant).replacen("vault {", tls, 1),
    );
    let own = Standin::start_tls(&["bao.test"]);
    let setup = setup
        .file("ca.pem", standin(&tenant).authority())
        .file("other.pem", own.authority());
    let agent = setup
        .prepare("mkdir /etc/bao/tls; cp /etc/bao/ca.pem /etc/bao/tls")
        .started();
    let renamed = |from: &str| {
        fs::rename(agent.etc(from), agent.etc("tls").join("ca.pem")).expect("replaced");
    };
    renamed("other.pem");
    replace(&agent, "fetch", Signal::SIGKILL);
    wait_until_or(
        "the other authority is taken",
        || agent.log(),
        || agent.log().contains("unknown issuer").then_some(()),
    );
    renamed("ca.pem");
    replace(&agent, "fetch", Signal::SIGKILL);
    tenant.put("note", json!({ "text": "new" }));
    assert_eq!(agent.read_after("note", "old"), "new");
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

#[test]
fn credentials_may_come_later_and_into_a_new_directory() {
    let tenant = Tenant::standin("walls-later", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let text = config::usual(&tenant)
        .replace("/etc/bao/", "/run/later/on/")
        .replace("after_reading = false", "after_reading = true");
    let agent = Setup::new(World::Fuse, &tenant, &text).start();
    wait_until_or(
        "it is missed",
        || agent.log(),
        || agent.log().contains("cannot be read").then_some(()),
    );
    let dir = agent.path("/run/later/on");
    fs::create_dir_all(&dir).expect("made");
    for (name, id) in [
        ("secret_id", &tenant.secret_id),
        ("role_id", &tenant.role_id),
    ] {
        fs::write(dir.join(name), id).expect("written");
    }
    agent.wait_for_line("started");
    assert_eq!(agent.stop().code, 0);
    tenant.assert_nothing_lives();
}

/// No rule is made for `/`: the file itself may be read, and is not removed; one line says each.
#[test]
fn credentials_in_the_root_are_warned_of() {
    let tenant = Tenant::standin("walls-root", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let text = config::usual(&tenant)
        .replace("/etc/bao/", "/")
        .replace("after_reading = false", "after_reading = true");
    let agent = Setup::new(World::Fuse, &tenant, &text)
        .prepare("cp /etc/bao/*_id /")
        .started();
    assert!(agent.path("/secret_id").exists());
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    for line in [
        "path=/role_id why=\"the file is in `/`",
        "path=/secret_id why=\"the file is in `/`",
        "path=/secret_id why=\"the file cannot be removed",
        "could not be removed after reading path=/secret_id",
    ] {
        assert_eq!(
            end.stderr.matches(line).count(),
            1,
            "{line}: {}",
            end.stderr
        );
    }
}

#[test]
fn standard_streams_are_taken_where_there_is_no_null() {
    let tenant = Tenant::standin("walls-streams", CALM);
    tenant.put("note", json!({ "text": "old" }));
    let setup = Setup::new(World::Tmpfs, &tenant, &config::usual(&tenant))
        .script("echo started; exec sleep 1000");
    let agent = setup.prepare("umount /dev/null; rm /dev/null").started();
    let fetch = agent.role("fetch");
    for stream in [0, 1] {
        let name = fs::read_link(format!("/proc/{fetch}/fd/{stream}")).expect("it is open");
        assert!(
            name.to_string_lossy().starts_with("pipe:"),
            "{stream}: {}",
            name.display()
        );
    }
    let mine = fs::read_link(format!("/proc/{}/fd/1", agent.pid())).expect("it is open");
    assert_ne!(
        fs::read_link(format!("/proc/{fetch}/fd/1")).expect("it is open"),
        mine
    );
    assert_eq!(agent.stop().code, 143);
}
