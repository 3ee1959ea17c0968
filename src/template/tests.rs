//! The language as tables of templates with what they render, and with what is refused where.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn object(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).expect("an object")
}

/// Renders with one plain secret `db` and one of KV v2, `kv`.
fn render(text: &str) -> Result<String, String> {
    let db = object(
        serde_json::from_str(r#"{"user":"u","n":10000000000000000000001,"t":true,"l":[1,{"a":"b"}],"z":null,"data":"d"}"#).expect("json"),
    );
    let (kv, metadata) = (
        object(json!({"k": {"x": "deep"}, "a": "v"})),
        object(json!({"version": 7})),
    );
    let template = Template::parse(text).map_err(|e| format!("{e}"))?;
    let lookup = |read: &Read| match read.path.as_str() {
        "db" => Some(SecretView::Plain(&db)),
        "kv" => Some(SecretView::Versioned {
            data: &kv,
            metadata: &metadata,
        }),
        _ => None,
    };
    let out = template.execute(&lookup).map_err(|e| e.to_string())?;
    Ok(String::from_utf8(out.to_vec()).expect("text"))
}

#[test]
fn renders() {
    for (text, expected) in [
        ("plain } {text}", "plain } {text}"),
        ("", ""),
        (r#"{{ with secret "db" }}{{ .Data.user }}{{ end }}"#, "u"),
        (r#"{{with secret "db"}}{{.Data.user}}{{end}}"#, "u"),
        (
            r"{{ with secret `db` }}{{ .Data.n }} {{ .Data.t }} {{ .Data.l }} {{ .Data.data }}{{ end }}",
            r#"10000000000000000000001 true [1,{"a":"b"}] d"#,
        ),
        (
            r#"{{ with secret "kv" }}{{ .Data.data.a }} {{ .Data.data.k.x }} {{ .Data.metadata.version }} {{ .Data.data.k }}{{ end }}"#,
            r#"v deep 7 {"x":"deep"}"#,
        ),
        (
            r#"{{ with secret "kv" }}{{ with secret "db" }}{{ .Data.user }}{{ end }}{{ .Data.data.a }}{{ end }}"#,
            "uv",
        ),
        ("a \n{{- /* note }} */ -}}\n b", "ab"),
        ("a {{/* note */}} b", "a  b"),
        ("a {{- \" \\\"}}\\n\" -}} b", "a \"}}\nb"),
        (
            "a {{- with secret \"db\" -}} \n{{ .Data.user }} {{- end }} b",
            "au b",
        ),
        (
            "{{ with secret \"db?version=3\" }}{{ .Data.user\n}}{{ end }}",
            "u",
        ),
    ] {
        assert_eq!(render(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn refuses() {
    for (text, expected) in [
        (
            "ab\ncé {{ range .x }}",
            "template:2:7: `range` is not supported",
        ),
        (
            "{{ range $k, $v := .Data }}{{ end }}",
            "template:1:4: `range` is not supported",
        ),
        ("{{", "template:1:1: missing `}}`"),
        (
            "{{ end }}",
            "template:1:4: `{{ end }}` without `{{ with }}`",
        ),
        ("{{ }}", "template:1:1: empty action"),
        (
            "{{ .Data.x }}",
            "template:1:4: a field outside of `with secret`",
        ),
        (
            "{{ with secret \"db\" }}",
            "template:1:4: missing `{{ end }}`",
        ),
        (
            "{{ with .Data }}{{ end }}",
            "template:1:4: unsupported `with`: only `with secret \"PATH\"` is supported",
        ),
        (
            "{{ with secret \"db\" \"a=b\" }}{{ end }}",
            "template:1:21: unexpected text: expected `}}`",
        ),
        (
            "{{ with secret \"db\" }}{{ .Data.x-y }}{{ end }}",
            "template:1:33: unexpected character '-'",
        ),
        (
            "{{ with secret \"db\" }}{{ .Data }}{{ end }}",
            "template:1:26: `.Data` is not supported",
        ),
        (
            "{{ with secret \"db\" }}{{ .LeaseID }}{{ end }}",
            "template:1:26: `.LeaseID` is not supported",
        ),
        (
            "{{ with secret \"db\" }}{{ .Data.x | toJSON }}{{ end }}",
            "template:1:34: `|` is not supported",
        ),
        (
            "{{ with secret \"a//b\" }}{{ end }}",
            "template:1:16: a secret's path cannot contain an empty, `.` or `..` segment",
        ),
        (
            "{{ with secret \"db?version=x\" }}{{ end }}",
            "template:1:16: invalid `?version=`: expected a whole number",
        ),
        ("{{ \"a\\q\" }}", "template:1:6: unknown escape sequence"),
        ("{{ \"a }}", "template:1:4: missing closing quote"),
        ("{{ `a }}", "template:1:4: missing closing quote"),
        ("{{/* a }}", "template:1:1: missing `*/}}`"),
        ("{{/* a */ b }}", "template:1:1: missing `*/}}`"),
        (
            "{{ secret \"db\" }}",
            "template:1:4: `secret` is supported only in `with secret \"PATH\"`",
        ),
        (
            "{{ (secret \"db\").Data.x }}",
            "template:1:4: `(` is not supported",
        ),
        ("{{ .Data.x -}", "template:1:12: unexpected character '-'"),
    ] {
        assert_eq!(render(text), Err(expected.to_owned()), "{text}");
    }
    let deep = "{{ with secret \"db\" }}".repeat(40) + &"{{ end }}".repeat(40);
    assert!(
        render(&deep)
            .expect_err("too deep")
            .contains("nested too deeply")
    );
}

#[test]
fn what_is_not_there_is_an_error_that_names_it() {
    for (text, expected) in [
        (
            "{{ with secret \"db\" }}{{ .Data.nope }}{{ end }}",
            "template:1:26: the secret has no field `.Data.nope`",
        ),
        (
            "{{ with secret \"db\" }}{{ .Data.user.x }}{{ end }}",
            "template:1:26: the secret has no field `.Data.user.x`",
        ),
        (
            "{{ with secret \"db\" }}{{ .Data.z }}{{ end }}",
            "template:1:26: the field `.Data.z` is null",
        ),
        (
            "{{ with secret \"kv\" }}{{ .Data.a }}{{ end }}",
            "template:1:26: the secret has no field `.Data.a`; hint: the secret is of KV v2; write `.Data.data.a`",
        ),
        (
            "{{ with secret \"kv\" }}{{ .Data.data }}{{ end }}",
            "template:1:26: the secret has no field `.Data.data`",
        ),
        (
            "{{ with secret \"other\" }}{{ .Data.a }}{{ end }}",
            "template:1:4: the secret of this `with` was not read",
        ),
    ] {
        assert_eq!(render(text), Err(expected.to_owned()), "{text}");
    }
}

#[test]
fn output_is_bounded() {
    let big = object(json!({"x": "y".repeat(MAX_OUTPUT), "l": ["z".repeat(MAX_OUTPUT)]}));
    for (text, fits) in [
        ("{{ .Data.x }}", true),
        ("{{ .Data.x }}+", false),
        ("{{ .Data.l }}", false),
    ] {
        let template = Template::parse(&format!("{{{{ with secret \"db\" }}}}{text}{{{{ end }}}}"))
            .expect("template");
        let result = template.execute(&|_| Some(SecretView::Plain(&big)));
        assert_eq!(result.is_ok(), fits, "{text}");
    }
}

#[test]
fn reads_are_listed_and_renamed() {
    let text = r#"{{ with secret "a" }}{{ with secret "b?version=2" }}{{ end }}{{ end }}{{ with secret "a" }}{{ end }}"#;
    let mut paths = Vec::new();
    let template = Template::parse(text)
        .expect("template")
        .map_queries(&mut |read| {
            paths.push((read.path.to_string(), read.version));
            paths.len()
        });
    assert_eq!(
        paths,
        [
            ("a".into(), None),
            ("b".into(), Some(2)),
            ("a".into(), None)
        ]
    );
    assert_eq!(template.queries(), [&1, &2, &3]);
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_inside_itself(text in "(\\{\\{|\\}\\}|-| |\n|with|secret|end|\"|`|/\\*|\\*/|\\.Data|\\.|x|é|\\\\|\\PC){0,24}") {
        if let Err(error) = Template::parse(&text) {
            prop_assert!(error.at.offset <= text.len() && text.is_char_boundary(error.at.offset));
            prop_assert!(error.len >= 1);
        }
    }

    #[test]
    fn text_without_actions_is_copied(text in "[^{]{0,40}") {
        prop_assert_eq!(render(&text), Ok(text));
    }
}
