//! Raw to `Plan`. Invariant: every problem is collected, none stops the search for the next; only
//! this makes a `Plan`.

use super::keys::{self, Block};
use super::plan::{
    AfterReading, App, Auth, Content, Empty, Fallback, File, Filesystem, Hook, Level, Link, Log,
    LogFormat,
};
use super::plan::{
    Method, NewPrivileges, OnHup, Plan, Query, Scheme, Seccomp, Server, Stale, Swap, Tls, Verify,
};
use super::problem::{At, Findings, SourceFile};
use super::raw::{Node, Pair};
use super::section::{Section, labelled};
use super::value;
use super::{Overrides, hooks, users};
use crate::names::{FileName, HookId, Owner, QueryId, SecretPath};
use crate::sys::file::read_regular;
use crate::template::{ParseError, Read, Template};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Where the server is when nobody says.
const ADDRESS: &str = "https://127.0.0.1:8200";
/// Where files are served when nobody says.
pub const MOUNT: &str = "/app/secrets";
/// The most that the file of a template may hold, in bytes.
const TEMPLATE: usize = 1 << 20;
/// How often to read again when nobody says; `lease` has the same default.
const REFRESH: Duration = Duration::from_mins(5);

/// Settings that a flag or the environment may overrule: key, flag, variables. The first variable
/// that is set counts; set but empty means not given.
const SETTINGS: &[(&str, &str, &[&str])] = &[
    ("address", "", &["BAO_ADDR", "VAULT_ADDR"]),
    ("ca_cert", "", &["BAO_CACERT", "VAULT_CACERT"]),
    ("ca_path", "", &["BAO_CAPATH", "VAULT_CAPATH"]),
    ("client_cert", "", &["BAO_CLIENT_CERT", "VAULT_CLIENT_CERT"]),
    ("client_key", "", &["BAO_CLIENT_KEY", "VAULT_CLIENT_KEY"]),
    ("fallback", "--fallback", &["BAOFS_FALLBACK"]),
    ("namespace", "", &["BAO_NAMESPACE", "VAULT_NAMESPACE"]),
    ("path", "--mount", &["BAOFS_MOUNT"]),
    (
        "tls_server_name",
        "",
        &["BAO_TLS_SERVER_NAME", "VAULT_TLS_SERVER_NAME"],
    ),
    (
        "tls_skip_verify",
        "",
        &["BAO_SKIP_VERIFY", "VAULT_SKIP_VERIFY"],
    ),
    ("user", "--user", &["BAOFS_USER"]),
    ("wait", "--wait", &["BAOFS_WAIT"]),
];

/// What everything is checked against, and what was found.
struct Check<'a> {
    report: &'a Findings,
    overrides: &'a Overrides,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// One per file, in order: the last word counts.
    roots: Vec<Section<'a>>,
    mount: PathBuf,
    /// Owner, mode and refresh of what does not say.
    owner: Owner,
    mode: u32,
    refresh: Option<Duration>,
    /// What is done when a file changed that does not say.
    on_change: Option<HookId>,
    queries: Vec<Query>,
    /// The index in `queries` of each path and version.
    reads: HashMap<(SecretPath, Option<u32>), usize>,
    files: Vec<File>,
    /// The index in `files` of each name.
    names: HashMap<FileName, usize>,
    hooks: Vec<Hook>,
    links: Vec<Link>,
}

/// A setting, by what name it was given, and where: not in a file for a flag or a variable.
struct Given<'a> {
    text: String,
    name: &'static str,
    at: Option<At<'a>>,
}

/// Checks all files together; `whole` is false when some could not be read or parsed, so that
/// nothing is missed for their sake. Meaningless when `report` holds an error afterwards.
pub(super) fn check<'a>(
    trees: &'a [Node<'a>],
    whole: bool,
    overrides: &'a Overrides,
    env: &'a dyn Fn(&str) -> Option<String>,
    report: &'a Findings,
) -> Plan {
    let roots = trees
        .iter()
        .filter_map(|tree| Section::open(tree, &keys::ROOT, report))
        .collect();
    let check = Check {
        report,
        overrides,
        env,
        roots,
        mount: PathBuf::new(),
        owner: users::current(),
        mode: 0o400,
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
        self.owner = app.user.as_ref().map_or(self.owner, |user| user.owner);
        let filesystem = self.filesystem();
        let auto_auth = self.section("auto_auth", &keys::AUTO_AUTH);
        if whole
            && self
                .roots
                .iter()
                .all(|root| root.get("auto_auth").is_none())
        {
            let hint = "write `auto_auth { method \"approle\" { ... } }`";
            self.report.error_anywhere(
                "no login is configured: the block `auto_auth` is missing",
                hint,
            );
        }
        let method = auto_auth.and_then(|auto_auth| self.method(auto_auth));
        let (server, auth) = self.server_and_auth(method);
        let config = self.section("template_config", &keys::TEMPLATE_CONFIG);
        self.refresh = config
            .and_then(|config| config.parsed("static_secret_render_interval", value::interval));
        self.secrets();
        self.templates();
        self.sinks(auto_auth);
        if whole && self.files.is_empty() && !self.report.has_errors() {
            self.report.error_anywhere(
                "no file is configured",
                "add a block `secret`, `template` or `sink`",
            );
        }
        let (log, pid_file) = (
            self.log(),
            self.last(|root| root.text("pid_file"))
                .map(|(path, _)| path.into()),
        );
        let Self {
            queries,
            files,
            hooks,
            links,
            ..
        } = self;
        Plan {
            server,
            auth,
            filesystem,
            queries,
            files,
            hooks,
            links,
            app,
            log,
            pid_file,
        }
    }

    /// The last file's word; every file's is looked at, so that every problem is found.
    fn last<T>(&self, read: impl Fn(&Section<'a>) -> Option<T>) -> Option<T> {
        self.roots
            .iter()
            .filter_map(read)
            .fold(None, |_, later| Some(later))
    }

    fn section(&self, key: &str, block: &'static Block) -> Option<Section<'a>> {
        self.last(|root| root.section(key, block))
    }

    /// A setting: flag, else environment, else file.
    fn setting(
        &self,
        section: Option<Section<'a>>,
        key: &'static str,
        flag: Option<&str>,
    ) -> Option<Given<'a>> {
        let (_, flag_name, variables) = SETTINGS.iter().find(|(known, _, _)| *known == key)?;
        // Read even if it does not count: what is wrong in a file is said.
        let in_file = section.and_then(|section| section.scalar(key));
        if let Some(text) = flag {
            return Some(Given {
                text: text.to_owned(),
                name: flag_name,
                at: None,
            });
        }
        let variable = variables.iter().find_map(|name| {
            Some(Given {
                text: (self.env)(name)?,
                name,
                at: None,
            })
        });
        let in_file = || {
            in_file.map(|(text, node)| Given {
                text: text.to_owned(),
                name: key,
                at: Some(node.at),
            })
        };
        variable
            .filter(|given| !given.text.is_empty())
            .or_else(in_file)
    }

    fn parsed<T>(
        &self,
        given: Option<Given<'a>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Given { text, name, at } = given?;
        let failed = |why| match at {
            Some(at) => self.report.error(at, format!("`{name}`: {why}"), ""),
            None => self.report.error_anywhere(format!("`{name}`: {why}"), ""),
        };
        parse(&text).map_err(failed).ok()
    }

    fn app(&mut self) -> App {
        let app = self.section("app", &keys::APP);
        self.on_change = app.and_then(|app| self.hook(app, hooks::on_change));
        let command = app
            .and_then(|app| app.get("command"))
            .map(|node| hooks::command(node, self.report));
        let gains = app.and_then(|app| app.flag("no_new_privs")) == Some(false);
        let wait = self.setting(app, "wait", self.overrides.wait.as_deref());
        App {
            command: self
                .overrides
                .command
                .clone()
                .or(command)
                .unwrap_or_default(),
            user: self.parsed(
                self.setting(app, "user", self.overrides.user.as_deref()),
                users::identity,
            ),
            wait: self
                .parsed(wait, value::positive)
                .unwrap_or(Duration::from_secs(30)),
            stop_signal: app
                .and_then(|app| app.parsed("stop_signal", value::signal))
                .unwrap_or(Signal::SIGTERM),
            stop_timeout: app
                .and_then(|app| app.parsed("stop_timeout", value::duration))
                .unwrap_or(Duration::from_secs(6)),
            crash_loop_timeout: app
                .and_then(|app| app.parsed("crash_loop_timeout", value::positive))
                .unwrap_or(Duration::from_mins(5)),
            on_hup: app
                .and_then(|app| app.parsed("on_hup", value::on_hup))
                .unwrap_or(OnHup::Both),
            new_privileges: if gains {
                NewPrivileges::Inherited
            } else {
                NewPrivileges::Never
            },
            seccomp: app
                .and_then(|app| app.parsed("seccomp", value::seccomp))
                .unwrap_or(Seccomp::Default),
        }
    }

    fn filesystem(&mut self) -> Filesystem {
        let section = self.section("filesystem", &keys::FILESYSTEM);
        let mount = self
            .overrides
            .mount
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        let path = self.setting(section, "path", mount.as_deref());
        self.mount = self
            .parsed(path, mount_point)
            .unwrap_or_else(|| MOUNT.into());
        let fallback = self.setting(section, "fallback", self.overrides.fallback.as_deref());
        if let Some(section) = section {
            self.owner = self.owner_of(section);
            self.mode = self.mode_of(section, "mode");
        }
        Filesystem {
            path: self.mount.clone(),
            fallback: self
                .parsed(fallback, value::fallback)
                .unwrap_or(Fallback::None),
            swap: if self.overrides.allow_swap {
                Swap::Allow
            } else {
                Swap::Refuse
            },
            size: section.and_then(|section| section.parsed("size", value::size)),
            dir_mode: section
                .and_then(|section| section.mode("dir_mode"))
                .unwrap_or(0o755)
                | 0o700,
        }
    }

    /// The owner that a block names by `user` and `group` (`bao` also by `uid` and `gid`), else the
    /// default.
    fn owner_of(&self, section: Section<'a>) -> Owner {
        let either = |name, number| {
            section
                .scalar(name)
                .or_else(|| section.scalar(number))
                .filter(|(text, _)| *text != "-1")
        };
        let (user, group) = (either("user", "uid"), either("group", "gid"));
        users::owner(
            user.map(|user| user.0),
            group.map(|group| group.0),
            self.owner,
        )
        .unwrap_or_else(|why| {
            self.report.error(
                user.or(group).map_or(section.at, |(_, node)| node.at),
                why,
                "",
            );
            self.owner
        })
    }

    fn mode_of(&self, section: Section<'a>, key: &str) -> u32 {
        let Some(mode) = section.mode(key) else {
            return self.mode;
        };
        if mode & 0o133 != 0 {
            let hint = "the mount is read-only and `noexec`; use 0400, 0440 or 0444";
            self.report.warn(
                Some(section.at(key)),
                format!("`{key}` allows group or others to write, or anyone to execute"),
                hint,
            );
        }
        mode
    }

    fn server_and_auth(&self, method: Option<Section<'a>>) -> (Server, Auth) {
        let vault = self.section("vault", &keys::VAULT);
        if let Some(vault) = vault {
            vault.section("retry", &keys::RETRY);
        }
        let address = self.parsed(self.setting(vault, "address", None), value::address);
        if address
            .as_ref()
            .is_some_and(|address| address.scheme == Scheme::Http && !is_loopback(&address.host))
        {
            self.report.warn(
                None,
                "the connection to the server is not encrypted",
                "every secret can be read on the network; use `https://`",
            );
        }
        let of_login = method
            .and_then(|method| method.text("namespace"))
            .map(|(text, _)| text.to_owned());
        let namespace = self.setting(vault, "namespace", None);
        let by_environment = namespace
            .as_ref()
            .is_some_and(|namespace| namespace.at.is_none());
        let server = Server {
            address: address
                .unwrap_or_else(|| value::address(ADDRESS).expect("the default is an address")),
            tls: self.tls(vault),
            namespace: namespace
                .map(|namespace| namespace.text)
                .or_else(|| of_login.clone()),
            retry_max: method
                .and_then(|method| method.parsed("max_backoff", value::positive))
                .unwrap_or(Duration::from_mins(1)),
        };
        let namespace = of_login.filter(|_| !by_environment);
        (
            server,
            Auth {
                mount_path: self.mount_path(method),
                namespace,
                method: approle(method),
            },
        )
    }

    fn tls(&self, vault: Option<Section<'a>>) -> Tls {
        let text = |key| self.setting(vault, key, None).map(|given| given.text);
        let path = |key| text(key).map(PathBuf::from);
        let skip =
            self.parsed(self.setting(vault, "tls_skip_verify", None), value::boolean) == Some(true);
        if skip {
            let hint = "anyone on the network path can read every secret; set `ca_cert` to the authority's certificate";
            self.report.warn(
                None,
                "the server's certificate is not verified (`tls_skip_verify`)",
                hint,
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
            self.report.error_anywhere(
                "`client_cert` and `client_key` must be set together: one is missing",
                "",
            );
        }
        tls
    }

    /// The login method, if it is one that we know.
    fn method(&self, auto_auth: Section<'a>) -> Option<Section<'a>> {
        auto_auth.lacks("method");
        let (kind, at, section) = labelled(auto_auth.get("method")?, &keys::METHOD, self.report)?;
        if kind != "approle" {
            self.report.error(
                at,
                format!("unsupported login method `{kind}`"),
                "use `approle`",
            );
            return None;
        }
        Some(section)
    }

    /// `auth/approle`: `bao agent` writes it with `auth/`, others without.
    fn mount_path(&self, method: Option<Section<'a>>) -> String {
        let Some((text, node)) = method.and_then(|method| method.text("mount_path")) else {
            return "auth/approle".to_owned();
        };
        let path = SecretPath::new(text).map_err(|why| self.report.error(node.at, why, ""));
        path.map_or_else(
            |()| String::new(),
            |path| format!("auth/{}", path.as_str().trim_start_matches("auth/")),
        )
    }

    fn log(&self) -> Log {
        let log = self.section("log", &keys::LOG);
        let level = log.and_then(|log| log.parsed("level", value::level));
        let format = log.and_then(|log| log.parsed("format", value::log_format));
        Log {
            level: level
                .or_else(|| self.last(|root| root.parsed("log_level", value::level)))
                .unwrap_or(Level::INFO),
            format: format
                .or_else(|| self.last(|root| root.parsed("log_format", value::log_format)))
                .unwrap_or(LogFormat::Text),
        }
    }

    fn secrets(&mut self) {
        let nodes: Vec<_> = self
            .roots
            .iter()
            .flat_map(|root| root.each("secret"))
            .collect();
        for node in nodes {
            let unnamed = |entry: &Pair<'_>| {
                entry.node.table().is_none() && keys::SECRET.all().any(|key| key == entry.key)
            };
            match node.table() {
                Some(entries) if !entries.iter().any(unnamed) => {
                    for entry in entries {
                        self.secret(entry);
                    }
                }
                Some(_) | None => {
                    self.report.error_of_shape(
                        node.at,
                        "invalid `secret`: expected a block with a name",
                        "write `secret \"FILE\" { ... }`",
                    );
                }
            }
        }
    }

    fn secret(&mut self, entry: &'a Pair<'a>) {
        let Some(section) = Section::open(&entry.node, &keys::SECRET, self.report) else {
            return;
        };
        let empty = if section.flag("allow_empty") == Some(true) {
            Empty::Allow
        } else {
            Empty::Refuse
        };
        let (content, name) = (
            self.secret_content(section),
            self.name(&entry.key, entry.at),
        );
        self.add(name, content, section, "mode", empty);
    }

    fn secret_content(&mut self, section: Section<'a>) -> Option<Content> {
        let refresh = section.parsed("refresh", value::interval);
        let version = section.parsed("version", value::version);
        let (field, format) = (section.text("field"), section.text("format"));
        let (path, node) = section.required("path")?;
        let path = SecretPath::new(path)
            .map_err(|why| self.report.error(node.at, why, ""))
            .ok()?;
        section.exactly_one(
            &["field", "format"],
            "write `field = \"NAME\"`, or `format = \"json\"` for all fields",
        );
        match (field, format) {
            (Some((field, _)), None) => Some(Content::Field {
                query: self.query(path, version, refresh),
                field: field.to_owned(),
            }),
            (None, Some(("json", _))) => Some(Content::Json {
                query: self.query(path, version, refresh),
            }),
            (None, Some((_, node))) => {
                self.report.error(
                    node.at,
                    "unsupported format",
                    "write `format = \"json\"`, or name one `field`",
                );
                None
            }
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// The read of `path`: one for all who ask for the same, as often as the most eager of them
    /// wants.
    fn query(
        &mut self,
        path: SecretPath,
        version: Option<u32>,
        refresh: Option<Duration>,
    ) -> QueryId {
        let queries = &mut self.queries;
        let index = *self
            .reads
            .entry((path, version))
            .or_insert_with_key(|(path, version)| {
                push(
                    queries,
                    Query {
                        path: path.clone(),
                        version: *version,
                        refresh,
                    },
                )
            });
        let query = &mut self.queries[index];
        if refresh.unwrap_or(REFRESH) < query.refresh.unwrap_or(REFRESH) {
            query.refresh = refresh;
        }
        QueryId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// A served name, which no file may have had before.
    fn name(&self, text: &str, at: At<'a>) -> Option<FileName> {
        let name = FileName::new(text)
            .map_err(|why| self.report.error(at, why, ""))
            .ok()?;
        let Some(earlier) = self.names.get(&name).map(|index| &self.files[*index]) else {
            return Some(name);
        };
        self.report.error(
            at,
            format!("duplicate file name `{name}`"),
            format!("the first file with this name is at {}", earlier.origin),
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
        let (owner, mode) = (self.owner_of(section), self.mode_of(section, mode));
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
                origin: section.at.origin(),
            });
        }
    }

    /// The hook that `read` finds in `section`; equal ones are one.
    fn hook(
        &mut self,
        section: Section<'a>,
        read: fn(Section<'_>, &Findings) -> Option<Hook>,
    ) -> Option<HookId> {
        let hook = read(section, self.report)?;
        let found = self.hooks.iter().position(|known| *known == hook);
        let index = found.unwrap_or_else(|| push(&mut self.hooks, hook));
        let many = |_| {
            self.report.error(
                section.at,
                "more than 65536 different `on_change` are not supported",
                "use the same `on_change` for several files",
            );
        };
        u16::try_from(index).map(HookId).map_err(many).ok()
    }

    fn templates(&mut self) {
        let nodes: Vec<_> = self
            .roots
            .iter()
            .flat_map(|root| root.each("template"))
            .collect();
        for node in nodes {
            let Some(section) = Section::open(node, &keys::TEMPLATE, self.report) else {
                continue;
            };
            let name = section
                .required("destination")
                .and_then(|(path, node)| self.destination(path, node.at));
            let template = self.template(section);
            let template = template.map(|template| {
                template.map_queries(|read| self.query(read.path, read.version, self.refresh))
            });
            self.add(
                name,
                template.map(Content::Template),
                section,
                "perms",
                Empty::Allow,
            );
        }
    }

    fn destination(&self, path: &str, at: At<'a>) -> Option<FileName> {
        if let Some(name) = inside(&self.mount, path) {
            return self.name(&name, at);
        }
        let mount = self.mount.display();
        let hint =
            format!("write `{mount}/NAME`, or set the mount with `filesystem.path` or `--mount`");
        self.report.error(
            at,
            format!("the destination is outside the mount {mount}"),
            hint,
        );
        None
    }

    fn template(&self, section: Section<'a>) -> Option<Template<Read>> {
        section.exactly_one(&["contents", "source"], "");
        if let Some((text, node)) = section.text("contents") {
            let heredoc = node.at.text().starts_with("<<");
            return Template::parse(text)
                .map_err(|e| self.no_template(&e, node.inside(e.at.offset, e.len), heredoc))
                .ok();
        }
        let (path, node) = section.text("source")?;
        let failed = |why: &dyn Display| {
            self.report
                .error(node.at, format!("the template file {why}"), "");
        };
        let text = read_regular(Path::new(path), TEMPLATE)
            .map_err(|error| failed(&error))
            .ok()?;
        let text = std::str::from_utf8(&text)
            .map_err(|_| failed(&"is not UTF-8 text"))
            .ok()?
            .to_owned();
        let source = SourceFile::new(path.to_owned(), text);
        let at = |e: &ParseError| At::new(&source, e.at.offset, e.at.offset + e.len);
        Template::parse(&source.text)
            .map_err(|e| self.no_template(&e, at(&e), true))
            .ok()
    }

    fn no_template(&self, error: &ParseError, at: At<'_>, own_lines: bool) {
        let (message, hint) = (error.problem.to_string(), error.problem.hint());
        if own_lines {
            self.report.error_in_text(at, message, hint);
        } else {
            self.report.error(at, message, hint);
        }
    }

    fn sinks(&mut self, auto_auth: Option<Section<'a>>) {
        let Some(auto_auth) = auto_auth else { return };
        for node in auto_auth.each("sink").chain(auto_auth.each("sinks")) {
            let Some((kind, at, section)) = labelled(node, &keys::SINK, self.report) else {
                continue;
            };
            if kind != "file" {
                self.report.error(
                    at,
                    "unsupported sink: only `file` is supported",
                    "write `sink \"file\" { config = { path = \"...\" } }`",
                );
            } else if let Some(config) = section.section("config", &keys::SINK_CONFIG) {
                self.sink(config);
            }
        }
    }

    /// A token file: served, and linked from its path if that is elsewhere.
    fn sink(&mut self, config: Section<'a>) {
        let Some((path, node)) = config.required("path") else {
            return;
        };
        if !Path::new(path).is_absolute() || path.ends_with('/') {
            self.report.error(
                node.at,
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

fn approle(method: Option<Section<'_>>) -> Method {
    let config = method.and_then(|method| method.section("config", &keys::APPROLE));
    let path = |given: Option<(&str, _)>| given.map(|(text, _)| PathBuf::from(text));
    let remove = config
        .and_then(|config| config.flag("remove_secret_id_file_after_reading"))
        .unwrap_or(true);
    Method::AppRole {
        role_id_file: path(config.and_then(|config| config.required("role_id_file_path")))
            .unwrap_or_default(),
        secret_id_file: path(config.and_then(|config| config.text("secret_id_file_path"))),
        after_reading: if remove {
            AfterReading::Remove
        } else {
            AfterReading::Keep
        },
    }
}

/// Adds `item` and gives its index.
fn push<T>(table: &mut Vec<T>, item: T) -> usize {
    table.push(item);
    table.len() - 1
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
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

/// What stands below `mount` in `path`; `None` for a path elsewhere.
fn inside(mount: &Path, path: &str) -> Option<String> {
    let rest: PathBuf = Path::new(path)
        .strip_prefix(mount)
        .ok()?
        .components()
        .collect();
    (!rest.components().any(|part| part == Component::ParentDir))
        .then(|| rest.to_string_lossy().into_owned())
}
