//! Raw to `Plan`. Invariant: every problem is collected, none stops the search for the next; only this makes a `Plan`.

use super::plan::{AfterReading, App, Auth, Content, Empty, Fallback, File, Filesystem, Identity, Level, Link, Log, LogFormat};
use super::plan::{Method, Plan, Query, Server, Swap, Tls, Verify};
use super::problem::{At, Report, Source};
use super::raw::{Node, Value};
use super::schema::{self, Section};
use super::value::{self, Bad};
use super::{Overrides, users};
use crate::names::{FileName, Owner, QueryId, SecretPath};
use crate::template::{Read, Template};
use nix::sys::signal::Signal;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Where the server is when nobody says.
const ADDRESS: &str = "https://127.0.0.1:8200";
/// Where files are served when nobody says.
const MOUNT: &str = "/app/secrets";
/// How often to read again when nobody says; `lease` has the same default.
const REFRESH: Duration = Duration::from_secs(300);

/// What everything is checked against, and what was found.
struct Check<'a> {
    report: &'a Report,
    overrides: &'a Overrides,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// One per file, in order: the last word counts.
    roots: Vec<Section<'a>>,
    mount: PathBuf,
    /// Owner and mode of files that do not say.
    owner: Owner,
    mode: u32,
    refresh: Option<Duration>,
    queries: Vec<Query>,
    files: Vec<File>,
    links: Vec<Link>,
}

/// A setting and where it came from.
#[derive(Clone, Copy)]
enum From<'a> {
    Flag(&'static str),
    Env(&'static str),
    File(At<'a>),
    Default,
}

/// Checks all files together. Meaningless when `report` holds an error afterwards.
pub(super) fn check<'a>(
    trees: &'a [Node<'a>],
    overrides: &'a Overrides,
    env: &'a dyn Fn(&str) -> Option<String>,
    report: &'a Report,
) -> Plan {
    let roots = trees.iter().filter_map(|tree| Section::open(tree, &schema::ROOT, report)).collect();
    let owner = users::current();
    let (mount, mode) = (PathBuf::new(), 0o400);
    let (queries, files, links) = (Vec::new(), Vec::new(), Vec::new());
    Check { report, overrides, env, roots, mount, owner, mode, refresh: None, queries, files, links }.plan()
}

impl<'a> Check<'a> {
    fn plan(mut self) -> Plan {
        let app = self.app();
        self.owner = app.user.as_ref().map_or(self.owner, |user| user.owner);
        let filesystem = self.filesystem();
        let vault = self.section("vault", &schema::VAULT);
        let auto_auth = self.section("auto_auth", &schema::AUTO_AUTH);
        let method = auto_auth.and_then(|auto_auth| self.method(auto_auth));
        let (auth, retry_max) = self.auth(method);
        let server = self.server(vault, auth.namespace.clone(), retry_max);
        let auth = Auth { namespace: auth.namespace.filter(|_| self.env_var("NAMESPACE").is_none()), ..auth };
        let pid_file = self.last(|root| root.text("pid_file")).map(|(path, _)| PathBuf::from(path));
        let log = self.log();
        let config = self.section("template_config", &schema::TEMPLATE_CONFIG);
        self.refresh = config.and_then(|config| config.parsed("static_secret_render_interval", value::interval));
        self.secrets();
        self.templates();
        self.sinks(auto_auth);
        if self.files.is_empty() && !self.report.has_errors() {
            self.report.error_anywhere("there is nothing to serve", "write a `secret`, a `template` or a `sink`");
        }
        let Self { queries, files, links, .. } = self;
        Plan { server, auth, filesystem, queries, files, links, app, log, pid_file }
    }

    /// The last file's word; every file's is looked at, so that every problem is found.
    fn last<T>(&self, read: impl Fn(&Section<'a>) -> Option<T>) -> Option<T> {
        self.roots.iter().filter_map(read).last()
    }

    fn section(&self, key: &str, block: &'static schema::Block) -> Option<Section<'a>> {
        self.last(|root| root.section(key, block))
    }

    /// `BAO_name` or `VAULT_name`: the first counts even when it is empty, which means unset.
    fn env_var(&self, name: &'static str) -> Option<(String, &'static str)> {
        let (bao, vault) = ENV.iter().find(|(known, _, _)| *known == name).map(|(_, bao, vault)| (*bao, *vault))?;
        let found = (self.env)(bao).map(|text| (text, bao)).or_else(|| (self.env)(vault).map(|text| (text, vault)));
        found.filter(|(text, _)| !text.is_empty())
    }

    /// A setting of ours: flag, else environment, else file.
    fn ours(
        &self,
        flag: (Option<&str>, &'static str),
        env: &'static str,
        file: Option<(&'a str, &'a Node<'a>)>,
    ) -> Option<(String, From<'a>)> {
        let by_flag = flag.0.map(|text| (text.to_owned(), From::Flag(flag.1)));
        let by_env = || (self.env)(env).filter(|text| !text.is_empty()).map(|text| (text, From::Env(env)));
        by_flag.or_else(by_env).or_else(|| file.map(|(text, node)| (text.to_owned(), From::File(node.at))))
    }

    /// A setting that `bao` has too: environment, else file.
    fn shared(&self, name: &'static str, file: Option<(&'a str, &'a Node<'a>)>) -> Option<(String, From<'a>)> {
        let by_env = self.env_var(name).map(|(text, name)| (text, From::Env(name)));
        by_env.or_else(|| file.map(|(text, node)| (text.to_owned(), From::File(node.at))))
    }

    fn understood<T>(&self, given: Option<(String, From<'a>)>, parse: impl Fn(&str) -> Result<T, Bad>) -> Option<T> {
        let (text, from) = given?;
        parse(&text).map_err(|(why, hint)| self.error(from, why, hint)).ok()
    }

    fn error(&self, from: From<'a>, why: &str, hint: &str) {
        match from {
            From::File(at) => self.report.error(at, why, hint),
            From::Flag(name) | From::Env(name) => self.report.error_anywhere(format!("`{name}`: {why}"), hint),
            From::Default => self.report.error_anywhere(why, hint),
        }
    }

    fn app(&self) -> App {
        let app = self.section("app", &schema::APP);
        let get = |key: &str| app.and_then(|app| app.scalar(key));
        let user = self.ours((self.overrides.user.as_deref(), "--user"), "BAOFS_USER", get("user"));
        let wait = self.ours((self.overrides.wait.as_deref(), "--wait"), "BAOFS_WAIT", get("wait"));
        let on_change = app.and_then(|app| app.section("on_change", &schema::ON_CHANGE_BLOCK));
        let configured = app.and_then(|app| app.get("command")).map(|node| self.command(node));
        App {
            command: self.overrides.command.clone().or(configured).unwrap_or_default(),
            user: user.and_then(|user| self.identity(&user)),
            wait: self.understood(wait, value::positive).unwrap_or(Duration::from_secs(30)),
            stop_signal: app.and_then(|app| app.parsed("stop_signal", value::signal)).unwrap_or(Signal::SIGTERM),
            stop_timeout: app.and_then(|app| app.parsed("stop_timeout", value::duration)).unwrap_or(Duration::from_secs(6)),
            change_signal: on_change.and_then(|on_change| on_change.parsed("signal", value::signal)),
        }
    }

    fn identity(&self, (text, from): &(String, From<'a>)) -> Option<Identity> {
        users::identity(text).map_err(|(why, hint)| self.error(*from, &why, hint)).ok()
    }

    fn command(&self, node: &'a Node<'a>) -> Vec<String> {
        let text = |node: &Node<'_>| match &node.value {
            Value::Text(text) if !text.contains('\0') => Some(text.clone()),
            Value::Text(_) | Value::Number(_) | Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other => None,
        };
        let words: Option<Vec<String>> = match &node.value {
            Value::List(items) => items.iter().map(text).collect(),
            Value::Text(word) if !word.contains(char::is_whitespace) => Some(vec![word.clone()]),
            Value::Text(_) | Value::Number(_) | Value::Bool(_) | Value::Table(_) | Value::Other => None,
        };
        if let Some(words) = words.filter(|words| words.first().is_some_and(|word| !word.is_empty())) {
            return words;
        }
        self.report.error(
            node.at,
            "`command` is a list of texts",
            "write `[\"PROGRAM\", \"ARG\"]`; for a shell line `[\"sh\", \"-c\", \"LINE\"]`",
        );
        Vec::new()
    }

    fn filesystem(&mut self) -> Filesystem {
        let section = self.section("filesystem", &schema::FILESYSTEM);
        let get = |key: &str| section.and_then(|section| section.scalar(key));
        let mount = self.overrides.mount.as_ref().map(|path| path.to_string_lossy().into_owned());
        let path = self.ours((mount.as_deref(), "--mount"), "BAOFS_MOUNT", get("path")).unwrap_or((MOUNT.to_owned(), From::Default));
        self.mount = self.understood(Some(path), mount_point).unwrap_or_else(|| MOUNT.into());
        let fallback = self.ours((self.overrides.fallback.as_deref(), "--fallback"), "BAOFS_FALLBACK", get("fallback"));
        if let Some(section) = section {
            self.owner = self.owner_of(section);
            self.mode = self.mode_of(section, "mode");
        }
        Filesystem {
            path: self.mount.clone(),
            fallback: self.understood(fallback, value::fallback).unwrap_or(Fallback::None),
            swap: if self.overrides.allow_swap { Swap::Allow } else { Swap::Refuse },
            size: section.and_then(|section| section.parsed("size", value::size)),
            dir_mode: section.and_then(|section| section.mode("dir_mode")).unwrap_or(0o755),
        }
    }

    /// The owner that a block names by `user` and `group` (numbers also by `uid` and `gid`), else the default.
    fn owner_of(&self, section: Section<'a>) -> Owner {
        let either = |name, number| if section.get(name).is_some() { section.scalar(name) } else { section.scalar(number) };
        let (user, group) = (either("user", "uid"), either("group", "gid"));
        let text = |given: Option<(&'a str, _)>| given.map(|(text, _)| text).filter(|text| *text != "-1");
        let failed = |(why, hint): (String, &str)| self.report.error(user.or(group).map_or(section.at, |(_, node)| node.at), why, hint);
        users::owner(text(user), text(group), self.owner).map_err(failed).unwrap_or(self.owner)
    }

    fn mode_of(&self, section: Section<'a>, key: &str) -> u32 {
        let Some(mode) = section.mode(key) else { return self.mode };
        if mode & 0o333 != 0 {
            let at = section.get(key).map(|node| node.at);
            self.report.warn(
                at,
                format!("`{key}` allows writing or executing"),
                "the mount is read-only and `noexec`; 0400 or 0440 is meant",
            );
        }
        mode
    }

    fn server(&self, vault: Option<Section<'a>>, login_namespace: Option<String>, retry_max: Option<Duration>) -> Server {
        let get = |key: &str| vault.and_then(|vault| vault.text(key));
        let given = self.shared("ADDR", get("address")).unwrap_or((ADDRESS.to_owned(), From::Default));
        let address = self.understood(Some(given), value::address);
        if let Some(vault) = vault {
            vault.section("retry", &schema::RETRY);
        }
        Server {
            address: address.unwrap_or_else(|| value::address(ADDRESS).expect("the default is an address")),
            tls: self.tls(vault),
            namespace: self.shared("NAMESPACE", get("namespace")).map(|(text, _)| text).or(login_namespace),
            retry_max: retry_max.unwrap_or(Duration::from_secs(60)),
        }
    }

    fn tls(&self, vault: Option<Section<'a>>) -> Tls {
        let get = |key: &str| vault.and_then(|vault| vault.text(key));
        let path = |name, key| self.shared(name, get(key)).map(|(text, _)| PathBuf::from(text));
        let skip = self.shared("SKIP_VERIFY", vault.and_then(|vault| vault.scalar("tls_skip_verify")));
        let verify = if self.understood(skip, value::boolean) == Some(true) { Verify::Skip } else { Verify::Full };
        if verify == Verify::Skip {
            self.report.warn(
                None,
                "the server's certificate is not verified",
                "whoever stands in between can read every secret; use `ca_cert`",
            );
        }
        let (client_cert, client_key) = (path("CLIENT_CERT", "client_cert"), path("CLIENT_KEY", "client_key"));
        if client_cert.is_some() != client_key.is_some() {
            self.report.error_anywhere("`client_cert` and `client_key` belong together: one is missing", "");
        }
        Tls {
            ca_cert: path("CACERT", "ca_cert"),
            ca_path: path("CAPATH", "ca_path"),
            client_cert,
            client_key,
            server_name: self.shared("TLS_SERVER_NAME", get("tls_server_name")).map(|(text, _)| text),
            verify,
        }
    }

    /// The method's kind and its section.
    fn method(&self, auto_auth: Section<'a>) -> Option<(String, Section<'a>)> {
        let Some(node) = auto_auth.get("method") else {
            auto_auth.lacks("method");
            return None;
        };
        let (label, node) = schema::label(node, &schema::METHOD);
        let section = Section::open(node, &schema::METHOD, self.report)?;
        let kind = match label {
            Some(label) => label.key.clone(),
            None => section.required("type")?.0.to_owned(),
        };
        if kind != "approle" {
            self.report.error(
                label.map_or(section.at, |label| label.at),
                format!("the method `{kind}` is not supported yet"),
                "use `approle`",
            );
            return None;
        }
        Some((kind, section))
    }

    fn auth(&self, method: Option<(String, Section<'a>)>) -> (Auth, Option<Duration>) {
        if method.is_none() && self.section("auto_auth", &schema::AUTO_AUTH).is_none() {
            self.report.error_anywhere(
                "`auto_auth` is missing: baofs does not know how to log in",
                "write `auto_auth { method \"approle\" { ... } }`",
            );
        }
        let section = method.as_ref().map(|(_, section)| *section);
        let text = |key: &str| section.and_then(|section| section.text(key)).map(|(text, _)| text);
        let mount = text("mount_path").unwrap_or("auth/approle").trim_matches('/');
        let mount = if mount.starts_with("auth/") { mount.to_owned() } else { format!("auth/{mount}") };
        if let (Err(why), Some(section)) = (SecretPath::new(&mount), section) {
            self.report.error(section.get("mount_path").map_or(section.at, |node| node.at), why, "");
        }
        let retry_max = section.and_then(|section| section.parsed("max_backoff", value::positive));
        (Auth { mount_path: mount, namespace: text("namespace").map(str::to_owned), method: self.approle(section) }, retry_max)
    }

    fn approle(&self, method: Option<Section<'a>>) -> Method {
        let config = method.and_then(|method| {
            if method.get("config").is_none() {
                method.lacks("config");
            }
            method.section("config", &schema::APPROLE)
        });
        let path = |given: Option<(&str, _)>| given.map(|(text, _)| PathBuf::from(text));
        let remove = config.and_then(|config| config.flag("remove_secret_id_file_after_reading")).unwrap_or(true);
        Method::AppRole {
            role_id_file: path(config.and_then(|config| config.required("role_id_file_path"))).unwrap_or_default(),
            secret_id_file: path(config.and_then(|config| config.text("secret_id_file_path"))),
            after_reading: if remove { AfterReading::Remove } else { AfterReading::Keep },
        }
    }

    fn log(&self) -> Log {
        let log = self.section("log", &schema::LOG);
        let level = log.and_then(|log| log.parsed("level", value::level));
        let format = log.and_then(|log| log.parsed("format", value::log_format));
        Log {
            level: level.or_else(|| self.last(|root| root.parsed("log_level", value::level))).unwrap_or(Level::Info),
            format: format.or_else(|| self.last(|root| root.parsed("log_format", value::log_format))).unwrap_or(LogFormat::Text),
        }
    }

    fn secrets(&mut self) {
        let named = |node: &'a Node<'a>| match &node.value {
            Value::Table(entries) => entries.iter().collect(),
            Value::Text(_) | Value::Number(_) | Value::Bool(_) | Value::List(_) | Value::Other => {
                self.report.error_of_shape(node.at, "`secret` is a block with a name", "write `secret \"FILE\" { path = \"...\" }`");
                Vec::new()
            }
        };
        let all: Vec<_> = self.roots.iter().flat_map(|root| root.each("secret")).flat_map(named).collect();
        for entry in all {
            if schema::SECRET.keys.iter().any(|(key, _)| *key == entry.key) && !matches!(entry.node.value, Value::Table(_)) {
                self.report.error_at_key(entry.at, "this `secret` has no name", "write `secret \"FILE\" { ... }`");
                continue;
            }
            let Some(section) = Section::open(&entry.node, &schema::SECRET, self.report) else { continue };
            if let (Some(content), Some(name)) = (self.secret(section), self.name(&entry.key, entry.at)) {
                let empty = if section.flag("allow_empty") == Some(true) { Empty::Allow } else { Empty::Refuse };
                self.files.push(File {
                    name,
                    content,
                    owner: self.owner_of(section),
                    mode: self.mode_of(section, "mode"),
                    empty,
                    origin: entry.at.origin(),
                });
            }
        }
    }

    fn secret(&mut self, section: Section<'a>) -> Option<Content> {
        let refresh = section.parsed("refresh", value::interval);
        let version = section.parsed("version", value::version);
        let field = section.text("field");
        let format = section.text("format");
        let (path, node) = section.required("path")?;
        let path = SecretPath::new(path).map_err(|why| self.report.error(node.at, why, "")).ok()?;
        match (field, format) {
            (Some((field, _)), None) => Some(Content::Field { query: self.query(path, version, refresh), field: field.to_owned() }),
            (None, Some(("json", _))) => Some(Content::Json { query: self.query(path, version, refresh) }),
            (None, Some((_, node))) => {
                self.report.error(node.at, "this format is not supported yet", "write `format = \"json\"`, or name one `field`");
                None
            }
            (Some(_), Some((_, node))) => {
                self.report.error(node.at, "`field` and `format` exclude each other", "remove one of them");
                None
            }
            (None, None) if section.get("field").is_some() || section.get("format").is_some() => None,
            (None, None) => {
                self.report.error(
                    section.at,
                    "`secret` needs `field` or `format`",
                    "write `field = \"NAME\"`, or `format = \"json\"` for all fields",
                );
                None
            }
        }
    }

    /// The read of `path`: one for all who ask for the same, as often as the most eager of them wants.
    fn query(&mut self, path: SecretPath, version: Option<u32>, refresh: Option<Duration>) -> QueryId {
        let found = self.queries.iter().position(|query| query.path == path && query.version == version);
        let index = found.unwrap_or_else(|| {
            self.queries.push(Query { path, version, refresh });
            self.queries.len() - 1
        });
        let query = &mut self.queries[index];
        if refresh.unwrap_or(REFRESH) < query.refresh.unwrap_or(REFRESH) {
            query.refresh = refresh;
        }
        QueryId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// A served name, which no file may have had before.
    fn name(&self, text: &str, at: At<'a>) -> Option<FileName> {
        let name = FileName::new(text).map_err(|why| self.report.error(at, why, "")).ok()?;
        if let Some(earlier) = self.files.iter().find(|file| file.name == name) {
            self.report.error(at, format!("two files are named `{name}`"), format!("the other is at {}", earlier.origin));
            return None;
        }
        Some(name)
    }

    fn templates(&mut self) {
        let nodes: Vec<_> = self.roots.iter().flat_map(|root| root.each("template")).collect();
        for node in nodes {
            let Some(section) = Section::open(node, &schema::TEMPLATE, self.report) else { continue };
            let name = section.required("destination").and_then(|(path, node)| self.destination(path, node.at));
            if let (Some(template), Some(name)) = (self.template(section), name) {
                let content = Content::Template(template.map_queries(|read| self.query(read.path, read.version, self.refresh)));
                let (owner, mode) = (self.owner_of(section), self.mode_of(section, "perms"));
                self.files.push(File { name, content, owner, mode, empty: Empty::Allow, origin: section.at.origin() });
            }
        }
    }

    fn destination(&self, path: &str, at: At<'a>) -> Option<FileName> {
        match inside(&self.mount, path) {
            Some(name) => self.name(&name, at),
            None => {
                let mount = self.mount.display();
                self.report.error(
                    at,
                    format!("the destination lies outside the mount {mount}"),
                    format!("write `{mount}/NAME`, or set `filesystem.path`"),
                );
                None
            }
        }
    }

    fn template(&self, section: Section<'a>) -> Option<Template<Read>> {
        match (section.get("contents"), section.get("source")) {
            (Some(_), None) => {
                let (text, node) = section.text("contents")?;
                let failed = |at, len| (node.inside(at, len), node.at.text().starts_with("<<"));
                self.parse_template(text, failed)
            }
            (None, Some(_)) => {
                let (path, node) = section.text("source")?;
                let failed = |e| self.report.error(node.at, format!("the template cannot be read: {e}"), "");
                let source = Source { name: path.to_owned(), text: std::fs::read_to_string(path).map_err(failed).ok()? };
                self.parse_template(&source.text, |at, len| (At::new(&source, at, at + len), true))
            }
            (Some(_), Some(node)) => {
                self.report.error(node.at, "`contents` and `source` exclude each other", "remove one of them");
                None
            }
            (None, None) => {
                self.report.error(section.at, "`template` needs `contents` or `source`", "");
                None
            }
        }
    }

    fn parse_template<'s>(&self, text: &str, locate: impl Fn(usize, usize) -> (At<'s>, bool)) -> Option<Template<Read>> {
        let failed = |e: crate::template::ParseError| match locate(e.at.offset, e.len) {
            (at, true) => self.report.error_in_text(at, e.problem.to_string(), e.problem.hint()),
            (at, false) => self.report.error(at, e.problem.to_string(), e.problem.hint()),
        };
        Template::parse(text).map_err(failed).ok()
    }

    fn sinks(&mut self, auto_auth: Option<Section<'a>>) {
        let Some(auto_auth) = auto_auth else { return };
        for node in auto_auth.each("sink").chain(auto_auth.each("sinks")) {
            let (label, node) = schema::label(node, &schema::SINK);
            let Some(section) = Section::open(node, &schema::SINK, self.report) else { continue };
            let kind = label.map(|label| label.key.as_str()).or_else(|| section.required("type").map(|(kind, _)| kind));
            if kind.is_some_and(|kind| kind != "file") {
                self.report.error(section.at, "only the sink `file` is known", "write `sink \"file\" { config = { path = \"...\" } }`");
                continue;
            }
            if section.get("config").is_none() {
                section.lacks("config");
            }
            if let Some(config) = section.section("config", &schema::SINK_CONFIG) {
                self.sink(config, label.map_or(section.at, |label| label.at));
            }
        }
    }

    fn sink(&mut self, config: Section<'a>, at: At<'a>) {
        let (owner, mode) = (self.owner_of(config), self.mode_of(config, "mode"));
        let Some((path, node)) = config.required("path") else { return };
        if !Path::new(path).is_absolute() || path.ends_with('/') {
            self.report.error(node.at, "a sink's path is the absolute path of a file", "");
            return;
        }
        let inner = inside(&self.mount, path);
        let last = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(name) = self.name(inner.as_ref().unwrap_or(&last), node.at) else { return };
        if inner.is_none() {
            self.links.push(Link { path: path.into(), name: name.clone() });
        }
        self.files.push(File { name, content: Content::Token, owner, mode, empty: Empty::Refuse, origin: at.origin() });
    }
}

/// What `bao` reads from the environment, and the older names.
const ENV: &[(&str, &str, &str)] = &[
    ("ADDR", "BAO_ADDR", "VAULT_ADDR"),
    ("CACERT", "BAO_CACERT", "VAULT_CACERT"),
    ("CAPATH", "BAO_CAPATH", "VAULT_CAPATH"),
    ("CLIENT_CERT", "BAO_CLIENT_CERT", "VAULT_CLIENT_CERT"),
    ("CLIENT_KEY", "BAO_CLIENT_KEY", "VAULT_CLIENT_KEY"),
    ("NAMESPACE", "BAO_NAMESPACE", "VAULT_NAMESPACE"),
    ("SKIP_VERIFY", "BAO_SKIP_VERIFY", "VAULT_SKIP_VERIFY"),
    ("TLS_SERVER_NAME", "BAO_TLS_SERVER_NAME", "VAULT_TLS_SERVER_NAME"),
];

/// An absolute path below the root, without `..`.
fn mount_point(text: &str) -> Result<PathBuf, Bad> {
    let path: PathBuf = Path::new(text).components().collect();
    if !path.is_absolute() || path == Path::new("/") || path.components().any(|part| part == Component::ParentDir) {
        return Err(("the mount is an absolute path, not `/`, without `..`", "write it as `/app/secrets`"));
    }
    Ok(path)
}

/// What stands below `mount` in `path`; `None` for a path elsewhere.
fn inside(mount: &Path, path: &str) -> Option<String> {
    let path = Path::new(path);
    let rest: PathBuf = path.strip_prefix(mount).ok()?.components().collect();
    if rest.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    Some(rest.to_string_lossy().into_owned())
}
