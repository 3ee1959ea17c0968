//! Configurations as a user would write them.

use super::server::Tenant;
use std::fmt::Write;

/// The server and the login, in the words that `bao agent` has.
pub(crate) fn login(url: &str) -> String {
    format!(
        r#"vault {{
  address = "{url}"
}}
auto_auth {{
  method "approle" {{
    config = {{
      role_id_file_path = "/etc/bao/role_id"
      secret_id_file_path = "/etc/bao/secret_id"
      remove_secret_id_file_after_reading = false
    }}
  }}
}}
"#
    )
}

/// One field of a secret as a file; a read without a lease is repeated every 100 ms.
pub(crate) fn field(file: &str, path: &str, field: &str) -> String {
    format!(
        "secret \"{file}\" {{\n  path = \"{path}\"\n  field = \"{field}\"\n  refresh = \"100ms\"\n}}\n"
    )
}

/// One field of a secret as a template of `bao agent`, written into `dir`.
pub(crate) fn template(dir: &str, file: &str, path: &str, field: &str) -> String {
    let contents = format!(r#"{{{{ with secret \"{path}\" }}}}{{{{ {field} }}}}{{{{ end }}}}"#);
    format!("template {{\n  destination = \"{dir}/{file}\"\n  contents = \"{contents}\"\n}}\n")
}

/// `user` and `password` from one database lease, and `note` from a KV v2 secret.
pub(crate) fn usual(tenant: &Tenant) -> String {
    let mut text = login(&tenant.url());
    text += &field("user", &tenant.creds(), "username");
    text += &field("password", &tenant.creds(), "password");
    text += &field("note", &tenant.kv("note"), "text");
    text
}

/// The job of the bench: ten files from one database lease and eight KV v2 secrets.
pub(crate) fn ten_files(tenant: &Tenant, dir: &str) -> String {
    let mut text = login(&tenant.url());
    text += &template(dir, "user", &tenant.creds(), ".Data.username");
    text += &template(dir, "password", &tenant.creds(), ".Data.password");
    for n in 0..8 {
        text += &template(
            dir,
            &format!("kv{n}"),
            &tenant.kv(&format!("kv{n}")),
            ".Data.data.value",
        );
    }
    let _ = writeln!(text, "pid_file = \"/var/run/bao-agent.pid\"");
    text
}
