//! The parsed tree to a `Plan`. Invariant: a problem never ends the check, so one run reports all
//! problems; no other module makes a `Plan`.

use super::defaults;
use super::keys::{self, Block};
use super::plan::{
    AfterReading, App, Auth, Content, Empty, Fallback, File, Filesystem, Hook, Level, Link, Log,
    LogFormat,
};
use super::plan::{
    Method, NewPrivileges, OnHup, Plan, Query, Scheme, Seccomp, Server, Stale, Swap, Tls, Verify,
};
use super::problem::{At, Findings, Location, SourceFile};
use super::raw::{Node, Pair};
use super::section::{Section, labelled};
use super::value;
use super::{Overrides, hooks, users};
use crate::names::{FileName, HookId, Owner, QueryId, SecretPath};
use crate::sys::file::read_regular;
use crate::template::{ParseError, Read, Template};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// The size limit of a template's file in bytes.
const TEMPLATE_LIMIT: usize = 1 << 20;

/// Settings that the environment overrides: the key, and the variables in order. The first variable
/// that is set counts, and an empty variable counts as not given.
const VARIABLES: &[(&str, &str)] = &[
    ("address", "BAO_ADDR VAULT_ADDR"),
    ("ca_cert", "BAO_CACERT VAULT_CACERT"),
    ("ca_path", "BAO_CAPATH VAULT_CAPATH"),
    ("client_cert", "BAO_CLIENT_CERT VAULT_CLIENT_CERT"),
    ("client_key", "BAO_CLIENT_KEY VAULT_CLIENT_KEY"),
    ("fallback", "BAOFS_FALLBACK"),
    ("namespace", "BAO_NAMESPACE VAULT_NAMESPACE"),
    ("path", "BAOFS_MOUNT"),
    (
        "tls_server_name",
        "BAO_TLS_SERVER_NAME VAULT_TLS_SERVER_NAME",
    ),
    ("tls_skip_verify", "BAO_SKIP_VERIFY VAULT_SKIP_VERIFY"),
    ("user", "BAOFS_USER"),
    ("wait", "BAOFS_WAIT"),
];

/// The input of the check, and the plan so far.
struct Check<'a> {
    report: &'a Findings,
    overrides: &'a Overrides,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// The top levels of the files in order. The last file that has a setting counts.
    roots: Vec<Section<'a>>,
    mount: PathBuf,
    /// The owner of a file without `user` and `group`.
    owner: Owner,
    /// The permission bits of a file without `mode`.
    mode: u32,
    /// The refresh interval of templates.
    refresh: Option<Duration>,
    /// The hook of a file without `on_change`.
    on_change: Option<HookId>,
    queries: Vec<Query>,
    /// The index in `queries` of each read.
    reads: HashMap<Read, usize>,
    files: Vec<File>,
    /// The index in `files` of each name.
    names: HashMap<FileName, usize>,
    hooks: Vec<Hook>,
    links: Vec<Link>,
}

/// A setting as typed.
struct Given<'a> {
    text: String,
    /// The flag, the variable or the key.
    name: &'static str,
    /// The position in a file; `None` for a flag or a variable.
    at: Option<At<'a>>,
}

/// Checks all files together. `whole` is false if a file could not be read or parsed; then missing
/// blocks are not reported. The plan is meaningless if `report` has an error afterwards.
pub(super) fn check<'a>(
    trees: &'a [Node<'a>],
    whole: bool,
    overrides: &'a Overrides,
    env: &'a dyn Fn(&str) -> Option<String>,
    report: &'a Findings,
) -> Plan {
    let check = Check {
        report,
        overrides,
        env,
        roots: trees
            .iter()
            .map(|tree| Section::open(Some(tree), &keys::ROOT, report))
            .collect(),
        mount: PathBuf::new(),
        owner: Owner::of_process(),
        mode: defaults::MODE,
        refresh: None,
        on_change: None,
        queries: Vec::new(),
        reads: HashMap::new(),
        files: Vec::new(),
        names: HashMap::new(),
        hooks: Vec::new(),
        links: Vec::new(),
    };
    check.plan(whole)
}

impl<'a> Check<'a> {
    fn plan(mut self, whole: bool) -> Plan {
        let app = self.app();
        if let Some(user) = &app.user {
            self.owner = user.owner;
        }
        let filesystem = self.filesystem();
        let auto_auth = self.section("auto_auth", &keys::AUTO_AUTH);
        if whole && self.last(|root| root.get("auto_auth")).is_none() {
            self.report.error(
                None,
                "no login is configured: the block `auto_auth` is missing",
                "write `auto_auth { method \"approle\" { ... } }`",
            );
        }
        let method = self
            .method(auto_auth)
            .unwrap_or_else(|| Section::open(None, &keys::METHOD, self.report));
        let (server, auth) = self.server_and_auth(method);
        self.refresh = self
            .section("template_config", &keys::TEMPLATE_CONFIG)
            .parsed("static_secret_render_interval", value::interval);
        self.secrets();
        self.templates();
        self.sinks(auto_auth);
        if whole && self.files.is_empty() && !self.report.has_errors() {
            self.report.error(
                None,
                "no file is configured",
                "add a block `secret`, `template` or `sink`",
            );
        }
        let pid_file = self.last(|root| root.text("pid_file"));
        Plan {
            server,
            auth,
            filesystem,
            app,
            log: self.log(),
            pid_file: pid_file.map(|(path, _)| path.into()),
            queries: self.queries,
            files: self.files,
            hooks: self.hooks,
            links: self.links,
        }
    }

    /// The result of `read` for the last file that has one. `read` checks every file, so that every
    /// problem is reported.
    fn last<T>(&self, read: impl Fn(&Section<'a>) -> Option<T>) -> Option<T> {
        let mut last = None;
        for root in &self.roots {
            last = read(root).or(last);
        }
        last
    }

    /// The block `key` of the last file that has the block. Every file's block is checked.
    fn section(&self, key: &str, block: &'static Block) -> Section<'a> {
        let section = self.last(|root| {
            root.get(key)?;
            Some(root.section(key, block))
        });
        section.unwrap_or_else(|| Section::open(None, block, self.report))
    }

    /// Every value of a repeated `key` of all files.
    fn each(&self, key: &str) -> Vec<&'a Node<'a>> {
        self.roots.iter().flat_map(|root| root.each(key)).collect()
    }

    /// A setting from a flag, else from the environment, else from `section`.
    fn given(&self, section: Section<'a>, key: &'static str) -> Option<Given<'a>> {
        // Read in any case, so that a problem in a file is reported.
        let in_file = section.scalar(key).map(|(text, node)| Given {
            text: text.to_owned(),
            name: key,
            at: Some(node.at),
        });
        let (name, flag) = match key {
            "fallback" => ("--fallback", &self.overrides.fallback),
            "path" => ("--mount", &self.overrides.mount),
            "user" => ("--user", &self.overrides.user),
            "wait" => ("--wait", &self.overrides.wait),
            _ => ("", &None),
        };
        let given = |text, name| Given {
            text,
            name,
            at: None,
        };
        let flag = flag.clone().map(|text| given(text, name));
        let (_, variables) = VARIABLES.iter().find(|(known, _)| *known == key)?;
        let variable = keys::keys(variables).find_map(|name| {
            let text = (self.env)(name)?;
            Some(given(text, name))
        });
        flag.or(variable.filter(|given| !given.text.is_empty()))
            .or(in_file)
    }

    /// A setting as `parse` understands the text.
    fn setting<T>(
        &self,
        section: Section<'a>,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Given { text, name, at } = self.given(section, key)?;
        let parsed = parse(&text).map_err(|why| format!("`{name}`: {why}"));
        self.report.accept(at, parsed)
    }

    fn app(&mut self) -> App {
        let app = self.section("app", &keys::APP);
        self.on_change = self.hook(app, hooks::on_change);
        let command = app
            .get("command")
            .map(|node| hooks::command(node, self.report));
        App {
            command: self
                .overrides
                .command
                .clone()
                .or(command)
                .unwrap_or_default(),
            user: self.setting(app, "user", users::identity),
            wait: self
                .setting(app, "wait", value::positive)
                .unwrap_or(defaults::WAIT),
            stop_signal: app
                .parsed("stop_signal", value::signal)
                .unwrap_or(defaults::STOP_SIGNAL),
            stop_timeout: app
                .parsed("stop_timeout", value::duration)
                .unwrap_or(defaults::STOP_TIMEOUT),
            crash_loop_timeout: app
                .parsed("crash_loop_timeout", value::positive)
                .unwrap_or(defaults::CRASH_LOOP_TIMEOUT),
            on_hup: app.parsed("on_hup", value::on_hup).unwrap_or(OnHup::Both),
            new_privileges: if app.flag("no_new_privs") == Some(false) {
                NewPrivileges::Inherited
            } else {
                NewPrivileges::Never
            },
            seccomp: app
                .parsed("seccomp", value::seccomp)
                .unwrap_or(Seccomp::Default),
        }
    }

    fn filesystem(&mut self) -> Filesystem {
        let section = self.section("filesystem", &keys::FILESYSTEM);
        self.mount = self
            .setting(section, "path", mount_point)
            .unwrap_or_else(|| defaults::MOUNT.into());
        self.owner = self.owner_of(section);
        self.mode = self.mode_of(section, "mode");
        let dir_mode = section.mode("dir_mode").unwrap_or(defaults::DIR_MODE);
        Filesystem {
            path: self.mount.clone(),
            fallback: self
                .setting(section, "fallback", value::fallback)
                .unwrap_or(Fallback::None),
            swap: if self.overrides.allow_swap {
                Swap::Allow
            } else {
                Swap::Refuse
            },
            size: section.parsed("size", value::size),
            dir_mode: dir_mode | 0o700,
        }
    }

    /// The owner from the keys `user` and `group` (in a template also `uid` and `gid`, where -1 is
    /// no owner), else the default.
    fn owner_of(&self, section: Section<'a>) -> Owner {
        let id = |name, number| {
            section
                .scalar(name)
                .or(section.scalar(number))
                .filter(|(text, _)| *text != "-1")
        };
        let user = id("user", "uid");
        let group = id("group", "gid");
        let at = user.or(group).map(|(_, node)| node.at);
        let owner = users::owner(
            user.map(|(text, _)| text),
            group.map(|(text, _)| text),
            self.owner,
        );
        self.report.accept(at, owner).unwrap_or(self.owner)
    }

    fn mode_of(&self, section: Section<'a>, key: &str) -> u32 {
        let Some(mode) = section.mode(key) else {
            return self.mode;
        };
        if mode & 0o133 != 0 {
            self.report.warn(
                section.get(key).map(|node| node.at.key()),
                format!("`{key}` allows group or others to write, or anyone to execute"),
                "the mount is read-only and `noexec`; use 0400, 0440 or 0444",
            );
        }
        mode
    }

    fn server_and_auth(&self, method: Section<'a>) -> (Server, Auth) {
        let vault = self.section("vault", &keys::VAULT);
        vault.section("retry", &keys::RETRY);
        let address = self
            .setting(vault, "address", value::address)
            .unwrap_or_else(|| {
                value::address(defaults::ADDRESS).expect("the default is an address")
            });
        if address.scheme == Scheme::Http && !is_loopback(&address.host) {
            self.report.warn(
                None,
                "the connection to the server is not encrypted",
                "every secret can be read on the network; use `https://`",
            );
        }
        let of_login = method.text("namespace").map(|(text, _)| text.to_owned());
        let namespace = self.given(vault, "namespace");
        let by_environment = matches!(&namespace, Some(given) if given.at.is_none());
        let server = Server {
            address,
            tls: self.tls(vault),
            namespace: namespace
                .map(|given| given.text)
                .or_else(|| of_login.clone()),
            retry_max: method
                .parsed("max_backoff", value::positive)
                .unwrap_or(defaults::RETRY_MAX),
        };
        let auth = Auth {
            mount_path: self.mount_path(method),
            namespace: of_login.filter(|_| !by_environment),
            method: approle(method.section("config", &keys::APPROLE)),
        };
        (server, auth)
    }

    fn tls(&self, vault: Section<'a>) -> Tls {
        let text = |key| self.given(vault, key).map(|given| given.text);
        let path = |key| text(key).map(PathBuf::from);
        let skip = self.setting(vault, "tls_skip_verify", value::boolean) == Some(true);
        if skip {
            self.report.warn(
                None,
                "the server's certificate is not verified (`tls_skip_verify`)",
                "anyone on the network path can read every secret; set `ca_cert` to the authority's certificate",
            );
        }
        let tls = Tls {
            ca_cert: path("ca_cert"),
            ca_path: path("ca_path"),
            client_cert: path("client_cert"),
            client_key: path("client_key"),
            server_name: text("tls_server_name"),
            verify: if skip { Verify::Skip } else { Verify::Full },
        };
        if tls.client_cert.is_some() != tls.client_key.is_some() {
            self.report.error(
                None,
                "`client_cert` and `client_key` must be set together: one is missing",
                "",
            );
        }
        tls
    }

    /// The block of the login method; `None` for an unsupported method.
    fn method(&self, auto_auth: Section<'a>) -> Option<Section<'a>> {
        let node = auto_auth.require("method")?;
        let (kind, at, section) = labelled(node, &keys::METHOD, self.report)?;
        if kind == "approle" {
            return Some(section);
        }
        self.report.error(
            at.value(),
            format!("unsupported login method `{kind}`"),
            "use `approle`",
        );
        None
    }

    /// The mount of the login method with `auth/`. `bao agent` writes `auth/`, other tools do not.
    fn mount_path(&self, method: Section<'a>) -> String {
        let Some((text, node)) = method.text("mount_path") else {
            return defaults::LOGIN.to_owned();
        };
        match self.report.accept(node.at, SecretPath::new(text)) {
            Some(path) => {
                let path = path.as_str().trim_start_matches("auth/");
                format!("auth/{path}")
            }
            None => String::new(),
        }
    }

    fn log(&self) -> Log {
        let log = self.section("log", &keys::LOG);
        Log {
            level: log
                .parsed("level", value::level)
                .or(self.last(|root| root.parsed("log_level", value::level)))
                .unwrap_or(Level::INFO),
            format: log
                .parsed("format", value::log_format)
                .or(self.last(|root| root.parsed("log_format", value::log_format)))
                .unwrap_or(LogFormat::Text),
        }
    }

    fn secrets(&mut self) {
        let unnamed = |entry: &Pair<'_>| {
            let is_known = keys::SECRET.all().any(|key| key == entry.key);
            entry.node.table().is_none() && is_known
        };
        for node in self.each("secret") {
            match node.table() {
                Some(entries) if !entries.iter().any(unnamed) => {
                    for entry in entries {
                        self.secret(entry);
                    }
                }
                _ => {
                    self.report.error(
                        node.at.shape(),
                        "invalid `secret`: expected a block with a name",
                        "write `secret \"FILE\" { ... }`",
                    );
                }
            }
        }
    }

    fn secret(&mut self, entry: &'a Pair<'a>) {
        let section = Section::open(Some(&entry.node), &keys::SECRET, self.report);
        let empty = if section.flag("allow_empty") == Some(true) {
            Empty::Allow
        } else {
            Empty::Refuse
        };
        let content = self.secret_content(section);
        let name = self.name(&entry.key, entry.at);
        self.add(name, content, section, "mode", empty);
    }

    fn secret_content(&mut self, section: Section<'a>) -> Option<Content> {
        let refresh = section.parsed("refresh", value::interval);
        let version = section.parsed("version", value::version);
        let field = section.text("field");
        let format = section.text("format");
        let (path, node) = section.required("path")?;
        let path = self.report.accept(node.at, SecretPath::new(path))?;
        section.exactly_one(
            &["field", "format"],
            "write `field = \"NAME\"`, or `format = \"json\"` for all fields",
        );
        let query = self.query(Read { path, version }, refresh);
        match (field, format) {
            (Some((field, _)), None) => Some(Content::Field {
                query,
                field: field.to_owned(),
            }),
            (None, Some(("json", _))) => Some(Content::Json { query }),
            (None, Some((_, node))) => {
                self.report.error(
                    node.at.value(),
                    "unsupported format",
                    "write `format = \"json\"`, or name one `field`",
                );
                None
            }
            _ => None,
        }
    }

    /// The query for `read`. Files with an equal read share the query; the shortest refresh interval
    /// counts.
    fn query(&mut self, read: Read, refresh: Option<Duration>) -> QueryId {
        let next = self.queries.len();
        let index = *self.reads.entry(read.clone()).or_insert(next);
        if index == next {
            self.queries.push(Query { read, refresh });
        }
        let query = &mut self.queries[index];
        if refresh.unwrap_or(defaults::REFRESH) < query.refresh.unwrap_or(defaults::REFRESH) {
            query.refresh = refresh;
        }
        QueryId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// The name of a new file; reports a bad name and the name of an earlier file.
    fn name(&self, text: &str, at: At<'a>) -> Option<FileName> {
        let name = self.report.accept(at, FileName::new(text))?;
        let Some(index) = self.names.get(&name) else {
            return Some(name);
        };
        self.report.error(
            at.value(),
            format!("duplicate file name `{name}`"),
            format!(
                "the first file with this name is at {}",
                self.files[*index].origin
            ),
        );
        None
    }

    fn add(
        &mut self,
        name: Option<FileName>,
        content: Option<Content>,
        section: Section<'a>,
        mode: &str,
        empty: Empty,
    ) {
        let owner = self.owner_of(section);
        let mode = self.mode_of(section, mode);
        let on_change = self.hook(section, hooks::of_file).or(self.on_change);
        let stale = section
            .parsed("stale", value::stale)
            .unwrap_or(Stale::Degraded);
        if let (Some(name), Some(content)) = (name, content) {
            self.names.insert(name.clone(), self.files.len());
            self.files.push(File {
                name,
                content,
                owner,
                mode,
                empty,
                on_change,
                stale,
                origin: section.at.map(At::origin).unwrap_or_default(),
            });
        }
    }

    /// The hook that `read` finds in `section`. Equal hooks share one id.
    fn hook(
        &mut self,
        section: Section<'a>,
        read: fn(Section<'_>) -> Option<Hook>,
    ) -> Option<HookId> {
        let hook = read(section)?;
        let found = self.hooks.iter().position(|known| *known == hook);
        let index = found.unwrap_or(self.hooks.len());
        if found.is_none() {
            self.hooks.push(hook);
        }
        let Ok(index) = u16::try_from(index) else {
            self.report.error(
                section.at.map(At::value),
                "more than 65536 different `on_change` are not supported",
                "use the same `on_change` for several files",
            );
            return None;
        };
        Some(HookId(index))
    }

    fn templates(&mut self) {
        for node in self.each("template") {
            let section = Section::open(Some(node), &keys::TEMPLATE, self.report);
            let name = section
                .required("destination")
                .and_then(|(path, node)| self.destination(path, node.at));
            let content = self.template(section).map(|template| {
                Content::Template(template.map_queries(&mut |read| self.query(read, self.refresh)))
            });
            self.add(name, content, section, "perms", Empty::Allow);
        }
    }

    fn destination(&self, path: &str, at: At<'a>) -> Option<FileName> {
        if let Some(name) = inside(&self.mount, path) {
            return self.name(&name, at);
        }
        let mount = self.mount.display();
        self.report.error(
            at.value(),
            format!("the destination is outside the mount {mount}"),
            format!("write `{mount}/NAME`, or set the mount with `filesystem.path` or `--mount`"),
        );
        None
    }

    fn template(&self, section: Section<'a>) -> Option<Template<Read>> {
        section.exactly_one(&["contents", "source"], "");
        if let Some((text, node)) = section.text("contents") {
            return self.parse_template(text, |error| {
                let at = node.inside(error.at.offset, error.len);
                // The lines of a heredoc belong to the template alone.
                if node.at.text().starts_with("<<") {
                    at.template()
                } else {
                    at.value()
                }
            });
        }
        let (path, node) = section.text("source")?;
        let text = self.report.accept(node.at, template_file(path))?;
        let source = SourceFile::new(path.to_owned(), text);
        self.parse_template(&source.text, |error| {
            let start = error.at.offset;
            At::new(&source, start, start + error.len).template()
        })
    }

    /// Parses a template; `locate` gives the location of an error.
    fn parse_template(
        &self,
        text: &str,
        locate: impl Fn(&ParseError) -> Location,
    ) -> Option<Template<Read>> {
        let parsed = Template::parse(text).inspect_err(|error| {
            let message = error.problem.to_string();
            let hint = error.problem.hint();
            self.report.error(locate(error), message, hint);
        });
        parsed.ok()
    }

    fn sinks(&mut self, auto_auth: Section<'a>) {
        for node in [auto_auth.each("sink"), auto_auth.each("sinks")].concat() {
            match labelled(node, &keys::SINK, self.report) {
                Some(("file", _, section)) => {
                    self.sink(section.section("config", &keys::SINK_CONFIG));
                }
                Some((_, at, _)) => self.report.error(
                    at.value(),
                    "unsupported sink: only `file` is supported",
                    "write `sink \"file\" { config = { path = \"...\" } }`",
                ),
                None => {}
            }
        }
    }

    /// Adds a file with the token, and a link for a path outside of the mount.
    fn sink(&mut self, config: Section<'a>) {
        let Some((path, node)) = config.required("path") else {
            return;
        };
        if !Path::new(path).is_absolute() || path.ends_with('/') {
            self.report.error(
                node.at.value(),
                "invalid path of a sink: expected the absolute path of a file",
                "",
            );
            return;
        }
        let inner = inside(&self.mount, path);
        let last = Path::new(path)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let name = self.name(inner.as_ref().unwrap_or(&last), node.at);
        if let (None, Some(name)) = (inner, name.clone()) {
            self.links.push(Link {
                path: path.into(),
                name,
            });
        }
        self.add(name, Some(Content::Token), config, "mode", Empty::Refuse);
    }
}

fn approle(config: Section<'_>) -> Method {
    let remove = config.flag("remove_secret_id_file_after_reading");
    let path = |(text, _): (&str, _)| PathBuf::from(text);
    Method::AppRole {
        role_id_file: config
            .required("role_id_file_path")
            .map(path)
            .unwrap_or_default(),
        secret_id_file: config.text("secret_id_file_path").map(path),
        after_reading: if remove == Some(false) {
            AfterReading::Keep
        } else {
            AfterReading::Remove
        },
    }
}

/// The text of a template's file.
fn template_file(path: &str) -> Result<String, String> {
    let bytes = read_regular(Path::new(path), TEMPLATE_LIMIT)
        .map_err(|error| format!("the template file {error}"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "the template file is not UTF-8 text")?;
    Ok(text.to_owned())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// An absolute path below the root, without `..`.
fn mount_point(text: &str) -> Result<PathBuf, String> {
    let path: PathBuf = Path::new(text).components().collect();
    if !path.is_absolute()
        || path == Path::new("/")
        || path.components().any(|part| part == Component::ParentDir)
    {
        return Err(
            "invalid mount: expected an absolute path without `..`, such as `/app/secrets`".into(),
        );
    }
    Ok(path)
}

/// The part of `path` below `mount`; `None` for a path outside of the mount.
fn inside(mount: &Path, path: &str) -> Option<String> {
    let rest: PathBuf = Path::new(path)
        .strip_prefix(mount)
        .ok()?
        .components()
        .collect();
    if rest.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    Some(rest.to_string_lossy().into_owned())
}
