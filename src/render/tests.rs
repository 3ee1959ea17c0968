//! What files hold, as tables.

use super::*;
use crate::config::plan::{
    Address, AfterReading, App, Auth, Fallback, Filesystem, Level, Log, LogFormat, Method,
    NewPrivileges, Seccomp,
};
use crate::config::plan::{OnHup, Query, Scheme, Server, Stale, Swap, Tls};
use crate::names::Owner;
use crate::template::{Read, Template};
use proptest::prelude::*;
use serde_json::json;
use std::time::Duration;

/// A plan with `queries` and `files`, and nothing else that matters.
pub(crate) fn plan(queries: Vec<Query>, files: Vec<File>) -> Plan {
    let method = Method::AppRole {
        role_id_file: "/role".into(),
        secret_id_file: None,
        after_reading: AfterReading::Keep,
    };
    let address = Address {
        scheme: Scheme::Http,
        host: "localhost".to_owned(),
        port: 1,
        prefix: String::new(),
    };
    Plan {
        server: Server {
            address,
            tls: Tls::default(),
            namespace: None,
            retry_max: Duration::from_mins(1),
        },
        auth: Auth {
            mount_path: "auth/approle".to_owned(),
            namespace: None,
            method,
        },
        filesystem: Filesystem {
            path: "/app/secrets".into(),
            fallback: Fallback::None,
            swap: Swap::Refuse,
            size: None,
            dir_mode: 0o755,
        },
        queries,
        files,
        hooks: Vec::new(),
        links: Vec::new(),
        app: App {
            command: Vec::new(),
            user: None,
            wait: Duration::from_secs(30),
            stop_signal: nix::sys::signal::Signal::SIGTERM,
            stop_timeout: Duration::from_secs(6),
            crash_loop_timeout: Duration::from_mins(5),
            on_hup: OnHup::Both,
            new_privileges: NewPrivileges::Never,
            seccomp: Seccomp::Default,
        },
        log: Log {
            level: Level::INFO,
            format: LogFormat::Text,
        },
        pid_file: None,
    }
}

pub(crate) fn query(path: &str, refresh: Option<Duration>) -> Query {
    Query {
        read: Read {
            path: SecretPath::new(path).expect("a good path"),
            version: None,
        },
        refresh,
    }
}

pub(crate) fn file(name: &str, content: Content) -> File {
    let owner = Owner { uid: 0, gid: 0 };
    let name = FileName::new(name).expect("a good name");
    File {
        name,
        content,
        owner,
        mode: 0o400,
        empty: Empty::Refuse,
        on_change: None,
        stale: Stale::Degraded,
        origin: "test.hcl:1".to_owned(),
    }
}

pub(crate) fn field(query: u32, field: &str) -> Content {
    Content::Field {
        query: QueryId(query),
        field: field.to_owned(),
    }
}

/// A template whose reads are numbered by the digit that ends their path.
pub(crate) fn template(text: &str) -> Content {
    let mut number = |read: Read| QueryId(read.path.as_str()[1..].parse().expect("q and a digit"));
    Content::Template(
        Template::parse(text)
            .expect("a good template")
            .map_queries(&mut number),
    )
}

pub(crate) fn reply(fields: &Value) -> Reply {
    Reply {
        fields: fields.as_object().expect("an object").clone(),
        ..Reply::default()
    }
}

/// The replies to the queries in order, and a token.
fn given<'a>(replies: &'a [Option<Reply>], token: Option<&'a [u8]>) -> Values<'a> {
    let mut values = Values {
        token,
        ..Values::default()
    };
    for (query, reply) in (0..).map(QueryId).zip(replies) {
        if let Some(reply) = reply {
            values.replies.insert(query, reply);
        }
    }
    values
}

/// The content of one file over one reply, or the words of the error.
fn one(content: Content, empty: Empty, fields: &str) -> Result<String, String> {
    let plan = plan(
        vec![query("a/b", None)],
        vec![File {
            empty,
            ..file("f", content)
        }],
    );
    let fields: Value = serde_json::from_str(fields).expect("JSON");
    let replies = [Some(reply(&fields))];
    match render(&plan, [FileId(0)], &given(&replies, Some(b"s.token"))) {
        Ok(changes) => Ok(String::from_utf8(changes[0].1.to_vec()).expect("text")),
        Err(errors) => Err(errors.iter().map(RenderError::in_log).collect()),
    }
}

#[test]
fn fields() {
    const REPLY: &str = r#"{ "password": "p\u00e4ss\n", "tls.crt": "exact", "tls": {"crt": "dotted", "key": "k", "a.b": {"c": 1}},
        "port": 5432, "big": 12345678901234567890123.4500, "on": true, "list": [1, "x"], "null": null, "empty": "" }"#;
    const TABLE: &[(&str, Result<&str, &str>)] = &[
        ("password", Ok("p\u{e4}ss\n")),
        ("tls.crt", Ok("exact")),
        ("tls.key", Ok("k")),
        ("tls.a.b.c", Ok("1")),
        ("port", Ok("5432")),
        ("big", Ok("12345678901234567890123.4500")),
        ("on", Ok("true")),
        ("list", Ok(r#"[1,"x"]"#)),
        ("tls", Ok(r#"{"a.b":{"c":1},"crt":"dotted","key":"k"}"#)),
        (
            "null",
            Err("rendering f (test.hcl:1) from a/b: the field `null` is null"),
        ),
        (
            "empty",
            Err(
                "rendering f (test.hcl:1) from a/b: the value is empty; hint: set allow_empty if that is meant",
            ),
        ),
        ("port.x", Err("the secret has no field `port.x`")),
        (
            "pasword",
            Err("the secret has no field `pasword`; hint: did you mean `password`?"),
        ),
        (
            "PASSWORD",
            Err("the secret has no field `PASSWORD`; hint: did you mean `password`?"),
        ),
        ("tls.", Err("no field `tls.`")),
    ];
    for (name, expected) in TABLE {
        match (one(field(0, name), Empty::Refuse, REPLY), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, *expected, "{name}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{name}: {found}"),
            (found, expected) => panic!("{name}: {found:?} instead of {expected:?}"),
        }
    }
    assert_eq!(
        one(field(0, "empty"), Empty::Allow, REPLY),
        Ok(String::new())
    );
}

#[test]
fn other_contents() {
    let json = || Content::Json { query: QueryId(0) };
    assert_eq!(
        one(
            json(),
            Empty::Refuse,
            r#"{ "b": 1.50, "a": {"z": null, "y": "\u00fc"} }"#
        ),
        Ok(r#"{"a":{"y":"ü","z":null},"b":1.50}"#.to_owned())
    );
    assert!(one(json(), Empty::Refuse, "{}").is_err_and(|error| error.contains("is empty")));
    assert_eq!(one(json(), Empty::Allow, "{}"), Ok("{}".to_owned()));
    assert_eq!(
        one(Content::Token, Empty::Refuse, "{}"),
        Ok("s.token".to_owned())
    );
    let text = r#"{{ with secret "q0" }}{{ .Data.user }}:{{ .Data.password }}{{ end }}"#;
    assert_eq!(
        one(
            template(text),
            Empty::Refuse,
            r#"{"user": "u", "password": "p"}"#
        ),
        Ok("u:p".to_owned())
    );
    let error =
        one(template(text), Empty::Refuse, r#"{"user": "u"}"#).expect_err("a field is missing");
    assert!(
        error.starts_with("rendering f (test.hcl:1): template:1:")
            && error.contains(".Data.password"),
        "{error}"
    );
}

#[test]
fn all_files_or_none_with_every_error() {
    let files = vec![
        file("good", field(0, "a")),
        file("bad", field(0, "b")),
        file("unread", field(1, "a")),
        file("token", Content::Token),
    ];
    let plan = plan(vec![query("q0", None), query("q1", None)], files);
    let replies = [Some(reply(&json!({"a": "secret-value"}))), None];
    let given = given(&replies, None);
    let errors = render(&plan, (0..4).map(FileId), &given).expect_err("three cannot be rendered");
    assert_eq!(
        errors.iter().map(|error| error.file).collect::<Vec<_>>(),
        [FileId(1), FileId(2), FileId(3)]
    );
    assert!(!format!("{errors:?}").contains("secret-value"));
    assert_eq!(
        render(&plan, [FileId(0)], &given)
            .expect("it can be rendered alone")
            .len(),
        1
    );
}

/// The error of a file whose field is missing among these.
fn missing(wanted: &str, names: impl IntoIterator<Item = String>) -> RenderError {
    let fields: Map<String, Value> = names.into_iter().map(|name| (name, json!("v"))).collect();
    let plan = plan(vec![query("a/b", None)], vec![file("f", field(0, wanted))]);
    let replies = [Some(reply(&Value::Object(fields)))];
    render(&plan, [FileId(0)], &given(&replies, None))
        .expect_err("it is missing")
        .remove(0)
}

#[test]
fn names_of_fields_neither_forge_nor_fill_the_log() {
    let error = missing("ab", ["a\u{1b}".to_owned()]);
    assert_eq!(
        error.in_log(),
        "rendering f (test.hcl:1) from a/b: the secret has no field `ab`; hint: did you mean `a\u{fffd}`?"
    );
    assert!(
        !error.to_string().contains("mean"),
        "the report names no other field: {error}"
    );
    let none = missing("ab", ["line\nforged".to_owned(), "another".to_owned()]);
    assert_eq!(none.in_log(), none.to_string());
    // 20,000 names that are all near to the configured one; and 20,000 long ones.
    for length in [20, 64, 200] {
        let wanted = "n".repeat(length);
        let many = missing(
            &wanted,
            (0..20_000).map(|n| format!("{n:05}{}", "n".repeat(length - 5))),
        );
        assert_eq!(
            many.in_log().contains("did you mean"),
            length <= 64,
            "{}",
            many.in_log()
        );
        assert!(format!("{many:?}").len() < 800, "{many:?}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~\u{e4}\n]{0,12}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let object = proptest::collection::btree_map("[a-c.]{0,3}", inner.clone(), 0..4);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            object.prop_map(|map| Value::Object(map.into_iter().collect()))
        ]
    })
}

proptest! {
    /// Whatever the server sends: no panic, an exact key wins, and no error repeats a value.
    #[test]
    fn any_reply_is_rendered_or_refused(fields in proptest::collection::btree_map("[a-c.]{0,3}", any_json(), 0..5), name in "[a-c.]{0,5}") {
        let fields: Map<String, Value> = fields.into_iter().collect();
        let expected = fields.get(&name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let found = one(field(0, &name), Empty::Refuse, &Value::Object(fields).to_string());
        if let Some(expected) = expected {
            prop_assert_eq!(found, Ok(expected));
        }
        let json = one(Content::Json { query: QueryId(0) }, Empty::Allow, r#"{"b":[1,{"d":2,"c":3}],"a":0}"#);
        prop_assert_eq!(json, Ok(r#"{"a":0,"b":[1,{"c":3,"d":2}]}"#.to_owned()));
    }
}
