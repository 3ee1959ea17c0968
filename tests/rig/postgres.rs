//! PostgreSQL of the distribution, in a directory of its own. Invariant: over TCP everybody needs a
//! password; without one only the superuser enters, over a socket in a directory that is the
//! `postgres` user's alone.

use super::process::{Kept, outcome, run};
use super::{program, wait_until};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// The user that the server runs as: it refuses to run as root.
const USER: &str = "postgres";
/// The role that OpenBao makes roles with.
pub(crate) const ADMIN: (&str, &str) = ("bao_admin", "admin-of-the-tests");

/// Who enters how, from wherever.
const ADMISSION: &str = "local all all trust\nhost all all all scram-sha-256\n";

/// A running database server.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// On the address that it was given.
    pub(crate) port: u16,
    /// The server; ends with this value.
    _server: Kept,
    /// Data and socket.
    dir: TempDir,
}

fn tool(name: &str) -> PathBuf {
    program(name, &[&format!("/usr/lib/postgresql/*/bin/{name}")])
}

impl Postgres {
    /// Makes a cluster and starts its server, which listens on this address, and on 127.0.0.1 in
    /// any case.
    pub(crate) fn start(listen: Ipv4Addr) -> Self {
        let dir = tempfile::tempdir().expect("a directory for PostgreSQL");
        let user = nix::unistd::User::from_name(USER).expect("the user table can be read");
        let user =
            user.expect("PostgreSQL's user is missing: run `./test --prepare` once (as root)");
        nix::unistd::chown(dir.path(), Some(user.uid), Some(user.gid))
            .expect("root gives the directory away: run the tests as root");
        let (data, who) = (
            dir.path().join("data"),
            ["--reuid", USER, "--regid", USER, "--init-groups"],
        );
        let auth = [
            "--no-sync",
            "--locale=C",
            "--encoding=UTF8",
            "-U",
            USER,
            "-D",
        ];
        run(Command::new("setpriv")
            .args(who)
            .arg(tool("initdb"))
            .args(auth)
            .arg(&data)
            .current_dir("/"));
        std::fs::write(data.join("pg_hba.conf"), ADMISSION).expect("the cluster is ours");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let server = Kept::start(&who, |command| {
            command.arg(tool("postgres")).arg("-D").arg(&data).args([
                "-p",
                &port.to_string(),
                "-c",
                "fsync=off",
            ]);
            // It is killed in the end: shared memory outside of its directory would stay.
            command.args(["-c", "dynamic_shared_memory_type=mmap"]);
            command
                .arg("-c")
                .arg(format!("listen_addresses={listen}"))
                .arg("-k")
                .arg(dir.path())
                .current_dir("/");
        });
        let postgres = Self {
            port,
            _server: server,
            dir,
        };
        wait_until("PostgreSQL answers", || {
            outcome(&mut postgres.psql("select 1"))
                .status
                .success()
                .then_some(())
        });
        postgres.sql(&format!(
            "create role {} superuser login password '{}'",
            ADMIN.0, ADMIN.1
        ));
        postgres
    }

    fn psql(&self, sql: &str) -> Command {
        let mut command = Command::new(tool("psql"));
        command.arg("-h").arg(self.dir.path()).args([
            "-p",
            &self.port.to_string(),
            "-U",
            USER,
            "-XAtc",
            sql,
        ]);
        command
    }

    /// Runs `sql` as the superuser and returns the rows.
    pub(crate) fn sql(&self, sql: &str) -> String {
        run(&mut self.psql(sql))
    }

    /// Whether `user` may log in over TCP with `password`.
    pub(crate) fn admits(&self, user: &str, password: &str) -> bool {
        let target = format!(
            "host=127.0.0.1 port={} dbname=postgres user={user}",
            self.port
        );
        let output = outcome(
            Command::new(tool("psql"))
                .args(["-XAtc", "select current_user", &target])
                .env("PGPASSWORD", password),
        );
        output.status.success() && String::from_utf8_lossy(&output.stdout).trim_end() == user
    }

    /// Whether a role of that name exists.
    pub(crate) fn has_role(&self, user: &str) -> bool {
        self.sql(&format!(
            "select count(*) from pg_roles where rolname = '{user}'"
        )) == "1"
    }
}
