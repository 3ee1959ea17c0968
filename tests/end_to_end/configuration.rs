//! The configuration as a user meets it: the examples, the golden messages of broken ones, and what
//! wins over what.

use baofs::cli::HELP;
use baofs::config::plan::{
    Action, AfterReading, Content, Empty, Fallback, Hook, Level, Method, NewPrivileges, OnHup,
    Plan, Scheme, Seccomp, Stale, Swap, Verify,
};
use baofs::config::{self, Loaded, Overrides, Problems, defaults};
use baofs::names::HookId;
use nix::sys::signal::Signal;
use proptest::prelude::*;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const AUTH: &str = r#"
auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
"#;

/// Loads `files` from a directory of their own.
fn load_with(
    files: &[(&str, &str)],
    overrides: Overrides,
    env: &[(&str, &str)],
) -> Result<Loaded, Problems> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("written");
    }
    let env: HashMap<_, _> = env.iter().copied().collect();
    let overrides = Overrides {
        config: vec![dir.path().to_owned()],
        ..overrides
    };
    config::load(&overrides, &|name| {
        env.get(name).map(|text| (*text).to_owned())
    })
}

/// The plan of `text` with a login before it.
fn plan(text: &str) -> Plan {
    plan_with(text, Overrides::default(), &[])
}

fn plan_with(text: &str, overrides: Overrides, env: &[(&str, &str)]) -> Plan {
    let loaded = load_with(&[("a.hcl", &format!("{AUTH}\n{text}"))], overrides, env);
    loaded
        .unwrap_or_else(|problems| panic!("{text}: {problems}"))
        .plan
}

/// The messages of `text` with a login before it, or of its plan's warnings.
fn said(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    let loaded = load_with(
        &[("a.hcl", &format!("{AUTH}\n{text}"))],
        Overrides::default(),
        env,
    );
    let problems = loaded.map_or_else(|problems| problems.0, |loaded| loaded.warnings);
    problems
        .into_iter()
        .map(|problem| problem.message)
        .collect()
}

const SECRET: &str = "secret \"x\" {\n path = \"p\"\n field = \"f\"\n}\n";

#[test]
fn examples_are_parsed() {
    let mut count = 0;
    for entry in fs::read_dir("config").expect("config/ exists") {
        let path = entry.expect("entry").path();
        let overrides = Overrides {
            config: vec![path.clone()],
            ..Overrides::default()
        };
        let loaded = config::load(&overrides, &|_| None)
            .unwrap_or_else(|problems| panic!("{}: {problems}", path.display()));
        assert!(
            loaded.warnings.is_empty(),
            "{}: {:?}",
            path.display(),
            loaded.warnings
        );
        count += 1;
    }
    assert!(count >= 4);
}

#[test]
fn help_and_readme_repeat_the_defaults() {
    let readme = fs::read_to_string("README.md").expect("README.md");
    let minutes = |time: Duration| format!("`{}m`", time.as_secs() / 60);
    for (text, default) in [
        (HELP, format!("default: {}]", defaults::CONFIG)),
        (HELP, format!("default: {}]", defaults::MOUNT)),
        (HELP, format!("default: {:?}]", defaults::WAIT)),
        (&readme, format!("`{}`", defaults::CONFIG)),
        (&readme, format!("`{}`", defaults::MOUNT)),
        (&readme, format!("`{}`", defaults::LOGIN)),
        (&readme, format!("{:04o}", defaults::MODE)),
        (&readme, format!("{:04o}", defaults::DIR_MODE)),
        (&readme, format!("`{:?}`", defaults::WAIT)),
        (&readme, format!("`{:?}`", defaults::STOP_TIMEOUT)),
        (&readme, format!("`{:?}`", defaults::COMMAND_TIMEOUT)),
        (&readme, minutes(defaults::CRASH_LOOP_TIMEOUT)),
        (&readme, minutes(defaults::REFRESH)),
    ] {
        assert!(text.contains(&default), "{default}");
    }
}

#[test]
fn broken_configurations_have_their_own_messages() {
    let mut names: Vec<PathBuf> = fs::read_dir("tests/golden/config")
        .expect("golden files")
        .map(|e| e.expect("entry").path())
        .collect();
    names.retain(|path| {
        path.extension()
            .is_some_and(|ext| ext == "hcl" || ext == "json")
    });
    names.sort();
    assert!(names.len() >= 15, "fifteen broken configurations at least");
    let mut wrong = Vec::new();
    for path in names {
        let overrides = Overrides {
            config: vec![path.clone()],
            ..Overrides::default()
        };
        let actual = match config::load(&overrides, &|_| None) {
            Ok(_) => panic!("{} is not broken", path.display()),
            Err(problems) => format!("{problems}\n"),
        };
        let expected = path.with_extension("expected");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &actual).expect("written");
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        if actual != expected {
            wrong.push(format!(
                "{}:\n--- expected\n{expected}--- actual\n{actual}",
                path.display()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nUPDATE_GOLDEN=1 writes them anew",
        wrong.join("\n")
    );
}

#[test]
fn the_agent_configuration_of_today() {
    let overrides = Overrides {
        config: vec!["config/agent-config.hcl".into()],
        ..Overrides::default()
    };
    let env = |name: &str| (name == "BAO_ADDR").then(|| "http://127.0.0.1:8200".to_owned());
    let Loaded { plan, warnings } = config::load(&overrides, &env).expect("a good configuration");
    assert!(warnings.is_empty());
    assert_eq!(
        (plan.server.address.scheme, plan.server.address.port),
        (Scheme::Http, 8200)
    );
    assert_eq!(plan.auth.mount_path, "auth/approle");
    let Method::AppRole { after_reading, .. } = plan.auth.method;
    assert_eq!(after_reading, AfterReading::Keep);
    let names: Vec<_> = plan
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.mode))
        .collect();
    assert_eq!(names, [("db_password", 0o400), ("bao-token", 0o400)]);
    assert!(
        matches!(&plan.files[0].content, Content::Template(_))
            && matches!(&plan.files[1].content, Content::Token)
    );
    assert_eq!(
        (plan.links[0].path.as_path(), plan.links[0].name.as_str()),
        (Path::new("/tmp/bao-token"), "bao-token")
    );
    assert_eq!(
        plan.queries[0].read.path.as_str(),
        "database/creds/my-app-role"
    );
    assert_eq!(
        plan.pid_file.as_deref(),
        Some(Path::new("/var/run/bao-agent.pid"))
    );
    assert_eq!(plan.files[0].origin, "config/agent-config.hcl:20");
}

#[test]
fn hcl_and_json_give_one_plan() {
    let hcl = plan(
        "secret \"tls.crt\" {\n path = \"a\"\n field = \"tls.crt\"\n mode = 0440\n}\nfilesystem {\n size = \"4m\"\n}",
    );
    let json = r#"{"auto_auth": [{"method": [{"approle": [{"config": {"role_id_file_path": "\/r"}}]}]}],
        "secret": [{"tls.crt": {"path": "a", "field": "tls.crt", "mode": "0440"}}], "filesystem": {"size": 4194304}}"#;
    let json = load_with(&[("a.json", json)], Overrides::default(), &[])
        .expect("good")
        .plan;
    for plan in [&hcl, &json] {
        let file = &plan.files[0];
        assert_eq!(
            (
                file.name.as_str(),
                file.mode,
                file.empty,
                plan.filesystem.size
            ),
            ("tls.crt", 0o440, Empty::Refuse, Some(4 << 20))
        );
        let Method::AppRole {
            role_id_file,
            secret_id_file,
            after_reading,
        } = &plan.auth.method;
        assert_eq!(
            (role_id_file.as_path(), secret_id_file, *after_reading),
            (Path::new("/r"), &None, AfterReading::Remove)
        );
    }
}

#[test]
fn texts_are_literal() {
    let contents = |plan: &Plan| match &plan.files[0].content {
        Content::Template(template) => {
            String::from_utf8(template.execute(&|_| None).expect("text alone").to_vec())
                .expect("text")
        }
        Content::Field { .. } | Content::Json { .. } | Content::Token => {
            panic!("a template was meant")
        }
    };
    let template = |contents: &str| {
        format!("template {{\n  destination = \"/app/secrets/x\"\n  contents = {contents}\n}}\n")
    };
    for (typed, meant) in [
        (
            r#""${HOME:-/root} %{http_code} $${x} $$ { \" \u00e9""#,
            "${HOME:-/root} %{http_code} $${x} $$ { \" é",
        ),
        (
            "<<EOT\n  ${HOME:-/root} # \"no comment\"\n  EOTX\nEOT",
            "  ${HOME:-/root} # \"no comment\"\n  EOTX\n",
        ),
        ("<<-EOT\n    a\n      %{b}\n    EOT", "a\n  %{b}\n"),
    ] {
        assert_eq!(contents(&plan(&template(typed))), meant, "{typed}");
    }
    let json = r#"{"auto_auth":{"method":{"type":"approle","config":{"role_id_file_path":"/r"}}},
        "template":{"destination":"/app/secrets/x","contents":"\/ \ud83d\ude00 ${a:-b} \" \u0041\t<<EOT #"}}"#;
    assert_eq!(
        contents(
            &load_with(&[("a.json", json)], Overrides::default(), &[])
                .expect("good")
                .plan
        ),
        "/ 😀 ${a:-b} \" A\t<<EOT #"
    );
    let quoted = "\"template\" {\n \"destination\" = \"/app/secrets/x\"\n \"contents\" = \"a\"\n}";
    assert_eq!(contents(&plan(quoted)), "a");
}

#[test]
fn odd_but_usual_syntax() {
    let comments = "# \" { <<EOT\n// \" ${x\n/* \" {\n*/\n";
    for text in [
        format!("\u{feff}{comments}{AUTH}{SECRET}"),
        format!("{AUTH}{SECRET}").replace('\n', "\r\n"),
        format!("{AUTH}{SECRET}").replace("config = { ", "config {\n").replace("\"/r\" }", "\"/r\"\n}"),
        format!("{AUTH}{SECRET}{comments}"),
        format!("{AUTH}template {{\n destination = \"/app/secrets/x\"\n contents = <<-EOT\n  a ${{b}}\n  EOT\n}}\n").replace('\n', "\r\n"),
        format!(
            "\u{feff} \n{}",
            r#"{"auto_auth": {"sink": [{"file": {"config": {"path": "/t"}}}], "method": [{"type": "approle", "config": {"role_id_file_path": "/r"}}]}}"#
        ),
    ] {
        let loaded = load_with(&[("a.hcl", &text)], Overrides::default(), &[]);
        assert_eq!(loaded.unwrap_or_else(|problems| panic!("{text}\n{problems}")).plan.files.len(), 1);
    }
    for (text, message) in [
        ("a = \"\u{1}\"", "control characters are not allowed"),
        (r#"{"a": "\u0001"}"#, "control characters are not allowed"),
        (r#"{"a": "\b"}"#, "control characters are not allowed"),
        (
            r#"{"a": "\ud800"}"#,
            "syntax error: invalid unicode 4-digit hex code; unexpected token",
        ),
        (
            r#"{"secret": {"a": {}, "a": {}}}"#,
            "syntax error: invalid object item; expected unique object key; found redefined object key",
        ),
    ] {
        let problems =
            load_with(&[("a.hcl", text)], Overrides::default(), &[]).expect_err("refused");
        assert_eq!(problems.0[0].message, message, "{text}");
    }
}

#[test]
fn flag_environment_file_default() {
    let text = format!(
        "{SECRET}filesystem {{\n path = \"/f\"\n fallback = \"none\"\n}}\napp {{\n wait = \"1s\"\n command = \"true\"\n}}"
    );
    let env = [
        ("BAOFS_MOUNT", "/e"),
        ("BAOFS_WAIT", "2s"),
        ("BAOFS_FALLBACK", "tmpfs"),
        ("BAOFS_USER", "7:8"),
    ];
    let flags = || Overrides {
        mount: Some("/g/".into()),
        wait: Some("3".into()),
        fallback: Some("none".into()),
        user: Some("9:9".into()),
        command: Some(vec!["a".into(), "b c".into()]),
        allow_swap: true,
        ..Overrides::default()
    };
    let view = |plan: &Plan| {
        (
            plan.filesystem.path.display().to_string(),
            plan.app.wait.as_secs(),
            plan.filesystem.fallback,
        )
    };
    let default = plan(SECRET);
    assert_eq!(view(&default), ("/app/secrets".into(), 30, Fallback::None));
    assert_eq!(
        (
            default.app.stop_signal,
            default.app.stop_timeout,
            default.hooks.len()
        ),
        (Signal::SIGTERM, Duration::from_secs(6), 0)
    );
    assert_eq!(
        (
            default.filesystem.swap,
            default.filesystem.dir_mode,
            default.log.level
        ),
        (Swap::Refuse, 0o755, Level::INFO)
    );
    assert_eq!(view(&plan(&text)), ("/f".into(), 1, Fallback::None));
    let by_env = plan_with(&text, Overrides::default(), &env);
    assert_eq!(view(&by_env), ("/e".into(), 2, Fallback::Tmpfs));
    assert_eq!(
        (
            by_env.files[0].owner.uid,
            by_env.files[0].owner.gid,
            by_env.app.command
        ),
        (7, 8, vec!["true".to_owned()])
    );
    let wrong = Overrides {
        wait: Some("soon".into()),
        user: Some("no such user".into()),
        ..Overrides::default()
    };
    let problems =
        load_with(&[("a.hcl", &format!("{AUTH}{text}"))], wrong, &[]).expect_err("both are wrong");
    let messages: Vec<_> = problems
        .0
        .iter()
        .map(|problem| problem.message.as_str())
        .collect();
    assert_eq!(
        messages,
        [
            "`--user`: unknown user `no such user`: expected a name in /etc/passwd or a number",
            "`--wait`: invalid duration `soon`: expected a number and a unit, such as `30s`"
        ]
    );
    let by_flag = plan_with(&text, flags(), &env);
    assert_eq!(view(&by_flag), ("/g".into(), 3, Fallback::None));
    assert_eq!(
        (
            by_flag.app.command,
            by_flag.files[0].owner.uid,
            by_flag.filesystem.swap
        ),
        (vec!["a".to_owned(), "b c".into()], 9, Swap::Allow)
    );
}

#[test]
fn the_servers_environment() {
    let text = format!(
        "{SECRET}vault {{\n address = \"https://file:1\"\n tls_skip_verify = true\n namespace = \"file\"\n}}"
    );
    let with = |env: &[(&str, &str)]| plan_with(&text, Overrides::default(), env).server;
    assert_eq!(
        (with(&[]).address.host.as_str(), with(&[]).tls.verify),
        ("file", Verify::Skip)
    );
    assert_eq!(
        with(&[("VAULT_ADDR", "https://old"), ("BAO_ADDR", "https://new")])
            .address
            .host,
        "new"
    );
    assert_eq!(with(&[("VAULT_ADDR", "https://old")]).address.host, "old");
    assert_eq!(
        with(&[("VAULT_ADDR", "https://old"), ("BAO_ADDR", "")])
            .address
            .host,
        "file"
    );
    for (text, verify) in [
        ("false", Verify::Full),
        ("0", Verify::Full),
        ("1", Verify::Skip),
        ("true", Verify::Skip),
    ] {
        assert_eq!(
            with(&[("BAO_SKIP_VERIFY", text)]).tls.verify,
            verify,
            "{text}"
        );
    }
    let server = with(&[
        ("BAO_NAMESPACE", "n"),
        ("BAO_CACERT", "/c"),
        ("BAO_CAPATH", "/d"),
        ("BAO_TLS_SERVER_NAME", "s"),
        ("BAO_CLIENT_CERT", "/e"),
        ("VAULT_CLIENT_KEY", "/k"),
    ]);
    assert_eq!(
        (
            server.namespace.as_deref(),
            server.tls.server_name.as_deref()
        ),
        (Some("n"), Some("s"))
    );
    assert_eq!(
        (server.tls.ca_cert, server.tls.ca_path),
        (Some("/c".into()), Some("/d".into()))
    );
    assert_eq!(
        (server.tls.client_cert, server.tls.client_key),
        (Some("/e".into()), Some("/k".into()))
    );
    for (name, value, message) in [
        (
            "BAO_SKIP_VERIFY",
            "maybe",
            "`BAO_SKIP_VERIFY`: invalid boolean `maybe`: expected `true` or `false`",
        ),
        (
            "VAULT_ADDR",
            "user:hunter2@host",
            "`VAULT_ADDR`: invalid address: the scheme is missing; expected a URL such as `https://HOST:8200`",
        ),
        (
            "BAO_ADDR",
            "https://user:hunter2@host",
            "`BAO_ADDR`: invalid address: a user or a password is not allowed; expected a URL such as `https://HOST:8200`",
        ),
        (
            "BAOFS_WAIT",
            "soon",
            "`BAOFS_WAIT`: invalid duration `soon`: expected a number and a unit, such as `30s`",
        ),
        (
            "BAOFS_FALLBACK",
            "disk",
            "`BAOFS_FALLBACK`: invalid fallback `disk`: expected `tmpfs` or `none`",
        ),
        (
            "BAOFS_MOUNT",
            "secrets",
            "`BAOFS_MOUNT`: invalid mount: expected an absolute path without `..`, such as `/app/secrets`",
        ),
        (
            "BAO_CLIENT_CERT",
            "/c",
            "`client_cert` and `client_key` must be set together: one is missing",
        ),
    ] {
        assert_eq!(said(SECRET, &[(name, value)]), [message], "{name}");
    }
}

#[test]
fn one_read_for_all_who_ask_the_same() {
    let secret = |name: &str, rest: &str| {
        format!("secret \"{name}\" {{\n path = \"p\"\n field = \"f\"\n {rest}\n}}\n")
    };
    let template = "template {\n destination = \"/app/secrets/t\"\n contents = \"{{ with secret `p` }}{{ end }}{{ with secret `p?version=2` }}{{ end }}\"\n}\n";
    let text = secret("a", "refresh = \"10m\"")
        + &secret("b", "refresh = \"30s\"")
        + &secret("c", "version = 2")
        + template;
    let plan = plan(&text);
    let queries: Vec<_> = plan
        .queries
        .iter()
        .map(|q| (q.read.path.as_str(), q.read.version, q.refresh))
        .collect();
    assert_eq!(
        queries,
        [
            ("p", None, Some(Duration::from_secs(30))),
            ("p", Some(2), None)
        ]
    );
    let slow = plan_with(
        &(secret("a", "refresh = \"10m\"") + &secret("b", "")),
        Overrides::default(),
        &[],
    );
    assert_eq!(
        slow.queries[0].refresh, None,
        "the default is more eager than ten minutes"
    );
    let config =
        format!("template_config {{\n static_secret_render_interval = \"15s\"\n}}\n{template}");
    assert_eq!(
        plan_with(&config, Overrides::default(), &[]).queries[0].refresh,
        Some(Duration::from_secs(15))
    );
}

#[test]
fn owners_and_modes() {
    let text =
        "filesystem {\n user = \"11:12\"\n mode = \"0440\"\n}\napp {\n user = \"21:22\"\n}\n";
    let blocks = "secret \"b\" {\n path = \"p\"\n format = \"json\"\n user = 31\n group = 32\n mode = 0444\n}\n\
        template {\n destination = \"/app/secrets/c\"\n contents = \"x\"\n perms = \"0644\"\n uid = 41\n gid = 42\n}\n";
    let of = |plan: Plan| {
        plan.files
            .iter()
            .map(|f| (f.owner.uid, f.owner.gid, f.mode))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of(plan(&format!("{text}{SECRET}{blocks}"))),
        [(11, 12, 0o440), (31, 32, 0o444), (41, 42, 0o644)]
    );
    assert_eq!(
        of(plan(&format!("app {{\n user = \"21:22\"\n}}\n{SECRET}"))),
        [(21, 22, 0o400)]
    );
    let sink = "sink \"file\" {\n config = {\n path = \"/app/secrets/t\"\n uid = -1\n gid = 5\n mode = 0440\n }\n }\n}\n";
    let sink = AUTH.trim_end().trim_end_matches('}').to_owned() + sink + text;
    let sink = load_with(&[("a.hcl", &sink)], Overrides::default(), &[])
        .expect("good")
        .plan;
    assert!(sink.links.is_empty(), "it is inside");
    assert_eq!(of(sink), [(11, 5, 0o440)]);
    assert_eq!(
        said(&format!("{text}{SECRET}{blocks}"), &[]),
        [""; 0],
        "an owner's write bit is usual, and harmless"
    );
    let open = blocks.replace("0644", "0755");
    assert_eq!(
        said(&format!("{text}{SECRET}{open}"), &[]),
        ["`perms` allows group or others to write, or anyone to execute"]
    );
}

fn signal(signal: Signal) -> Action {
    Action::Signal(signal)
}

fn command(words: &[&str], seconds: u64) -> Action {
    Action::Command {
        command: words.iter().map(|&word| word.into()).collect(),
        timeout: Duration::from_secs(seconds),
    }
}

#[test]
fn a_hook_does_one_thing() {
    let cases = [
        ("signal = \"usr1\"", signal(Signal::SIGUSR1), 0, 0),
        (
            "signal = \"HUP\"\n debounce = \"1s\"\n splay = 30",
            signal(Signal::SIGHUP),
            1,
            30,
        ),
        ("command = \"/reload\"", command(&["/reload"], 30), 0, 0),
        (
            "command = [\"reload\", \"a b\", \"\"]\n timeout = \"1m\"\n splay = \"5s\"",
            command(&["reload", "a b", ""], 60),
            0,
            5,
        ),
        ("restart = true\n debounce = \"0s\"", Action::Restart, 0, 0),
    ];
    for (text, action, debounce, splay) in cases {
        let plan = plan(&format!("{SECRET}app {{\n on_change {{\n {text}\n }}\n}}"));
        let (debounce, splay) = (Duration::from_secs(debounce), Duration::from_secs(splay));
        assert_eq!(
            (plan.hooks.as_slice(), plan.files[0].on_change),
            (
                [Hook {
                    action,
                    debounce,
                    splay
                }]
                .as_slice(),
                Some(HookId(0))
            ),
            "{text}"
        );
    }
}

#[test]
fn equal_hooks_are_one_and_a_files_own_comes_first() {
    let secret = |name: &str, rest: &str| {
        format!("secret \"{name}\" {{\n path = \"p\"\n field = \"f\"\n {rest}\n}}\n")
    };
    let text = secret("a", "")
        + &secret("b", "on_change = { signal = \"HUP\" }")
        + &secret("c", "on_change = { restart = true }")
        + &secret("d", "on_change = { signal = \"HUP\", splay = \"1s\" }")
        + "template {\n destination = \"/app/secrets/e\"\n contents = \"x\"\n on_change = { restart = true }\n}\n";
    let hooks = |plan: &Plan| {
        plan.files
            .iter()
            .map(|file| file.on_change.map(HookId::index))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        hooks(&plan(&text)),
        [None, Some(0), Some(1), Some(2), Some(1)]
    );
    let told = plan(&format!(
        "app {{\n on_change = {{ signal = \"SIGHUP\", splay = 0 }}\n}}\n{text}"
    ));
    assert_eq!(
        (hooks(&told), told.hooks.len()),
        (vec![Some(0), Some(0), Some(1), Some(2), Some(1)], 3)
    );
    let sink = AUTH.trim_end().trim_end_matches('}').to_owned()
        + "sink \"file\" {\n config = { path = \"/t\" }\n}\n}\n";
    let sink = load_with(
        &[(
            "a.hcl",
            &(sink + "app {\n on_change = { restart = true }\n}"),
        )],
        Overrides::default(),
        &[],
    )
    .expect("good");
    assert_eq!(hooks(&sink.plan), [Some(0)], "a new token, too");
}

#[test]
fn commands_of_bao_agents_templates() {
    for (text, action, splay) in [
        (
            "command = \"pkill -HUP app || true\"",
            command(&["sh", "-c", "pkill -HUP app || true"], 30),
            0,
        ),
        (
            "command = \"/reload\"\n command_timeout = \"5s\"",
            command(&["/reload"], 5),
            0,
        ),
        (
            "command = [\"pkill -HUP app\"]",
            command(&["sh", "-c", "pkill -HUP app"], 30),
            0,
        ),
        (
            "command = [\"pkill\", \"-HUP\", \"my app\"]",
            command(&["pkill", "-HUP", "my app"], 30),
            0,
        ),
        (
            "exec {\n command = [\"a\", \"b\"]\n timeout = \"1m\"\n splay = \"2s\"\n}",
            command(&["a", "b"], 60),
            2,
        ),
        (
            "exec = { command = \"a b\", enabled = true, kill_timeout = \"1s\" }",
            command(&["sh", "-c", "a b"], 30),
            0,
        ),
    ] {
        let text = format!(
            "template {{\n destination = \"/app/secrets/x\"\n contents = \"x\"\n {text}\n}}\n"
        );
        let plan = plan(&format!(
            "{text}app {{\n on_change = {{ signal = \"HUP\" }}\n}}"
        ));
        let hook = Hook {
            action,
            debounce: Duration::ZERO,
            splay: Duration::from_secs(splay),
        };
        assert_eq!(
            (plan.hooks.get(1), plan.files[0].on_change),
            (Some(&hook), Some(HookId(1))),
            "{text}"
        );
    }
    let quiet = "template {\n destination = \"/app/secrets/x\"\n contents = \"x\"\n command_timeout = \"5s\"\n}\n";
    assert_eq!(
        (said(quiet, &[]), plan(quiet).hooks.len()),
        (vec![], 0),
        "a time of nothing changes nothing"
    );
}

#[test]
fn what_the_application_may_and_hup_does() {
    let of = |text: &str| plan(&format!("{SECRET}app {{\n {text}\n}}")).app;
    for (text, on_hup) in [
        ("", OnHup::Both),
        ("both", OnHup::Both),
        ("app", OnHup::App),
        ("refresh", OnHup::Refresh),
    ] {
        let text = if text.is_empty() {
            String::new()
        } else {
            format!("on_hup = \"{text}\"")
        };
        assert_eq!(of(&text).on_hup, on_hup, "{text}");
    }
    for (text, meant) in [
        ("", NewPrivileges::Never),
        ("no_new_privs = true", NewPrivileges::Never),
        ("no_new_privs = false", NewPrivileges::Inherited),
    ] {
        assert_eq!(of(text).new_privileges, meant, "{text}");
    }
    for (text, meant) in [
        ("", Seccomp::Default),
        ("seccomp = \"default\"", Seccomp::Default),
        ("seccomp = \"inherit\"", Seccomp::Inherited),
    ] {
        assert_eq!(of(text).seccomp, meant, "{text}");
    }
    let template = "template {\n destination = \"/app/secrets/t\"\n contents = \"x\"\n stale = \"unhealthy\"\n}\n";
    let plan = plan(&format!(
        "{SECRET}{}{template}",
        SECRET
            .replace("\"x\"", "\"y\"")
            .replace('}', " stale = \"degraded\"\n}")
    ));
    let stale: Vec<_> = plan.files.iter().map(|file| file.stale).collect();
    assert_eq!(stale, [Stale::Degraded, Stale::Degraded, Stale::Unhealthy]);
}

#[test]
fn several_files_are_one_configuration() {
    let one = format!(
        "{AUTH}{SECRET}vault {{\n address = \"https://one\"\n namespace = \"n\"\n}}\nlog_level = \"debug\"\n"
    );
    let two = "secret \"y\" {\n path = \"q\"\n format = \"json\"\n}\nvault {\n address = \"https://two\"\n}\n";
    let plan = load_with(
        &[
            ("a.hcl", &one),
            ("b.hcl", two),
            ("c.txt", "no"),
            (".d.hcl", "no"),
            ("e.hcl~", "no"),
        ],
        Overrides::default(),
        &[],
    )
    .expect("good")
    .plan;
    assert_eq!(plan.files.len(), 2);
    assert_eq!(
        (
            plan.server.address.host.as_str(),
            plan.server.namespace,
            plan.log.level
        ),
        ("two", None, Level::DEBUG),
        "a block wins whole"
    );
    let twice = load_with(
        &[("a.hcl", &one), ("b.hcl", SECRET)],
        Overrides::default(),
        &[],
    )
    .expect_err("one name twice");
    assert_eq!(twice.0[0].message, "duplicate file name `x`");
    let broken = load_with(
        &[("a.hcl", "vault {\n"), ("b.json", "{\"a\": }")],
        Overrides::default(),
        &[],
    )
    .expect_err("both are broken");
    assert_eq!(broken.0.len(), 2, "{broken}");
    let half = load_with(
        &[("a.hcl", "vault {\n"), ("b.hcl", "log {\n levl = 1\n}")],
        Overrides::default(),
        &[],
    )
    .expect_err("one is broken");
    assert_eq!(
        half.0[1].message, "unknown key `levl` in `log`",
        "the other file is checked all the same"
    );
    assert_eq!(half.0.len(), 2, "{half}");
}

#[test]
fn missing_files_are_named() {
    for (paths, env, message) in [
        (
            vec!["/nonexistent/a.hcl".into()],
            None,
            "cannot read /nonexistent/a.hcl: No such file or directory (os error 2)",
        ),
        (
            vec![],
            Some("/nonexistent/b.hcl"),
            "cannot read /nonexistent/b.hcl: No such file or directory (os error 2)",
        ),
        (
            vec!["tests/golden".into()],
            None,
            "cannot read tests/golden: the directory has no `*.hcl` or `*.json` file",
        ),
    ] {
        let overrides = Overrides {
            config: paths,
            ..Overrides::default()
        };
        let problems = config::load(&overrides, &|name| {
            env.filter(|_| name == "BAOFS_CONFIG").map(str::to_owned)
        })
        .expect_err("missing");
        assert_eq!(
            problems
                .0
                .iter()
                .map(|p| p.message.as_str())
                .collect::<Vec<_>>(),
            [message]
        );
    }
}

#[test]
fn what_is_dangerous_is_said() {
    for (address, verify, messages) in [
        ("http://127.0.0.1:8200", false, vec![]),
        ("http://[::1]:8200", false, vec![]),
        (
            "https://bao",
            true,
            vec!["the server's certificate is not verified (`tls_skip_verify`)"],
        ),
        (
            "http://bao:8200",
            false,
            vec!["the connection to the server is not encrypted"],
        ),
    ] {
        assert_eq!(
            said(
                &format!(
                    "{SECRET}vault {{\n address = \"{address}\"\n tls_skip_verify = {verify}\n}}"
                ),
                &[]
            ),
            messages
        );
    }
}

#[test]
fn what_bao_agent_knows_and_changes_nothing_is_accepted() {
    let quiet = "disable_mlock = true\nexit_after_auth = false\nlog_format = \"standard\"\n";
    assert_eq!(said(&format!("{SECRET}{quiet}"), &[]), [""; 0]);
    let ignored = "cache {\n use_auto_auth_token = true\n}\nlog_file = \"/x\"\ntemplate_config {\n exit_on_retry_failure = true\n}\n";
    let effects = [
        "`cache` has no effect",
        "`log_file` has no effect",
        "`exit_on_retry_failure` has no effect",
    ];
    assert_eq!(said(&format!("{SECRET}{ignored}"), &[]), effects);
}

#[test]
fn no_message_shows_a_credential() {
    for text in [
        "vault {\n token = \"hunter2\"\n}",
        "secret = \"hunter2\"",
        "token = \"hunter2\" }",
        "vault {\n token = \"hunter2\\q\"\n}",
        "vault = \"hunter2\"",
        "auto_auth {\n method \"approle\" {\n config = { secret_id = \"hunter2\", role_id_file_path = 5 }\n }\n}",
    ] {
        let problems = load_with(&[("a.hcl", text)], Overrides::default(), &[])
            .expect_err("broken")
            .to_string();
        assert!(!problems.contains("hunter2"), "{problems}");
    }
    for json in [
        r#"{"secret": {"x": {"path": "p", "token": "hunter2"}}, "app": {"on_change": {"token": "hunter2"}}}"#,
        r#"{"app": {"on_change": {"command": "x --password hunter2", "signal": "HUP", "restart": true}}}"#,
        r#"{"app": {"command": "x --password hunter2"}, "auto_auth": {"method": {"approle": {"config": {"secret_id": "hunter2"}}}}}"#,
    ] {
        let problems = load_with(&[("a.json", json)], Overrides::default(), &[])
            .expect_err("broken")
            .to_string();
        assert!(!problems.contains("hunter2"), "{problems}");
    }
    let json = r#"{"vault": {"token": "hunter2", "address": 5}, "secret": {"x": {"path": "a//b", "token": "hunter2"}}}"#;
    for json in [
        json.to_owned(),
        json.replace("5}", "5"),
        json.replace("hunter2", "hunter2\\q"),
    ] {
        let problems = load_with(&[("a.json", &json)], Overrides::default(), &[])
            .expect_err("broken")
            .to_string();
        assert!(!problems.contains("hunter2"), "{problems}");
    }
}

#[test]
fn check_shows_the_plan() {
    let overrides = Overrides {
        config: vec!["config/native.hcl".into()],
        user: Some("0:0".into()),
        ..Overrides::default()
    };
    let Loaded { plan, warnings } = config::load(&overrides, &|_| None).expect("good");
    let expected = fs::read_to_string("tests/golden/config/show.txt").unwrap_or_default();
    let actual = config::show(&plan, &warnings);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write("tests/golden/config/show.txt", &actual).expect("written");
    }
    assert_eq!(actual, expected, "UPDATE_GOLDEN=1 writes it anew");
    let text = "app {\n command = [\"/s\", \"hunter2\"]\n on_hup = \"refresh\"\n no_new_privs = false\n seccomp = \"inherit\"\n}\n\
        template {\n destination = \"/app/secrets/t\"\n contents = \"x\"\n stale = \"unhealthy\"\n perms = 0440\n\
        on_change = { command = [\"/usr/bin/x\", \"hunter2\"], debounce = \"1s\", splay = \"5s\" }\n}\n";
    let shown = config::show(
        &plan_with(&format!("{text}{SECRET}"), Overrides::default(), &[]),
        &[],
    );
    for words in [
        "template without a secret, on change: command /usr/bin/x, debounce 1s, splay 5s, unhealthy when past its life (",
        "\n         a command runs after a change, not at the first rendering as with `bao agent`\n",
        "KILL after 6s, HUP only to the agent, new privileges allowed, only the container's seccomp filter\n",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(
        !shown.contains("hunter2") && shown.matches("on change").count() == 1,
        "{shown}"
    );
    for (dir_mode, words) in [
        ("0755", ""),
        ("0751", "others cannot list"),
        ("0750", "others cannot open"),
        ("0700", "others cannot open"),
    ] {
        let shown = config::show(
            &plan_with(
                &format!("{SECRET}filesystem {{\n dir_mode = {dir_mode}\n}}"),
                Overrides::default(),
                &[],
            ),
            &[],
        );
        assert_eq!(shown.contains("others"), !words.is_empty(), "{shown}");
        assert!(shown.contains(words), "{shown}");
    }
}

const PIECES: &str = r#"(vault|secret|template|auto_auth|method|sink|config|path|"x"|"a\\"b"|"\$\{|%\{|<<EOT|<<-EOT|EOT|\n|\n| |\{|\}|\[|\]|=|,|:|0400|true|null|#|//|/\*|\*/|\\u[0-9a-d]{4}|é|"|\PC){0,40}"#;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_text_is_too_strange(text in PIECES, json in any::<bool>()) {
        let text = if json { format!("{{{text}") } else { text };
        let loaded = load_with(&[("a.hcl", &text)], Overrides::default(), &[]);
        let problems = loaded.err().map(|problems| problems.to_string());
        prop_assert!(problems.is_some_and(|text| text.contains("error")));
    }

    #[test]
    fn a_templates_problem_is_shown_where_it_stands(before in "[ a-zé$%{\\n\\t\\\\\"]{0,12}", json in any::<bool>()) {
        prop_assume!(!before.contains("{{") && !before.ends_with('{'));
        let text = serde_json::to_string(&format!("{before}{{{{range}}}}")).expect("text");
        let (name, file) = if json {
            ("a.json", format!("{{\"auto_auth\":{{\"method\":{{\"type\":\"approle\",\"config\":{{\"role_id_file_path\":\"/r\"}}}}}},\n\"template\":{{\"destination\":\"/app/secrets/x\",\"contents\":{text}}}}}"))
        } else {
            ("a.hcl", format!("{AUTH}template {{\n destination = \"/app/secrets/x\"\n contents = {text}\n}}\n"))
        };
        let problems = load_with(&[(name, &file)], Overrides::default(), &[]).expect_err("refused").to_string();
        let lines: Vec<&str> = problems.lines().collect();
        prop_assert!(lines[0].ends_with("error: `range` is not supported"), "{}", problems);
        let column = lines[2].chars().position(|c| c == '^').expect("a caret");
        prop_assert_eq!(lines[1].chars().skip(column).take(5).collect::<String>(), "range", "{}", problems);
    }
}
