//! The plan for people: what `baofs check` prints. Invariant: it is made of the plan alone, which
//! holds no secret.

use super::plan::{
    Action, AfterReading, Content, Fallback, File, Hook, Method, NewPrivileges, OnHup, Plan, Query,
    Scheme, Seccomp, Stale, Swap, Verify,
};
use super::problem::Problem;
use std::fmt;

/// The whole plan, then the warnings.
pub fn show(plan: &Plan, warnings: &[Problem]) -> String {
    warnings
        .iter()
        .fold(PlanText(plan).to_string(), |shown, warning| {
            shown + &warning.to_string() + "\n"
        })
}

/// What is shown.
struct PlanText<'a>(&'a Plan);

impl fmt::Display for PlanText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.0;
        write_server(f, plan)?;
        write_mount(f, plan)?;
        for file in &plan.files {
            write_file(f, plan, file)?;
        }
        let templates = || {
            plan.files
                .iter()
                .filter(|file| matches!(file.content, Content::Template(_)))
        };
        if templates().any(|file| file.mode == 0o400) {
            writeln!(
                f,
                "         0400 is the default of templates too: the 0644 of `bao agent` takes `perms`"
            )?;
        }
        let mut hooks = templates().filter_map(|file| file.on_change);
        if hooks.any(|id| matches!(plan.hooks[id.index()].action, Action::Command { .. })) {
            writeln!(
                f,
                "         a command runs after a change, not at the first rendering as with `bao agent`"
            )?;
        }
        for link in &plan.links {
            writeln!(
                f,
                "link     {} -> {}/{}",
                link.path.display(),
                plan.filesystem.path.display(),
                link.name
            )?;
        }
        write_app(f, plan)?;
        if let Some(path) = &plan.pid_file {
            writeln!(f, "pid file {}", path.display())?;
        }
        Ok(())
    }
}

fn write_server(out: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let address = &plan.server.address;
    let (scheme, tls) = match (address.scheme, plan.server.tls.verify) {
        (Scheme::Http, _) => ("http", ", not encrypted"),
        (Scheme::Https, Verify::Full) => ("https", ""),
        (Scheme::Https, Verify::Skip) => ("https", ", not verified"),
    };
    let host = if address.host.contains(':') {
        format!("[{}]", address.host)
    } else {
        address.host.clone()
    };
    write!(
        out,
        "server   {scheme}://{host}:{}{}{tls}",
        address.port, address.prefix
    )?;
    if let Some(namespace) = &plan.server.namespace {
        write!(out, ", namespace {namespace}")?;
    }
    let Method::AppRole {
        role_id_file,
        secret_id_file,
        after_reading,
    } = &plan.auth.method;
    write!(
        out,
        "\nlogin    {}: role_id from {}",
        plan.auth.mount_path,
        role_id_file.display()
    )?;
    if let Some(path) = secret_id_file {
        let then = if *after_reading == AfterReading::Keep {
            "kept"
        } else {
            "removed after the login"
        };
        write!(out, ", secret_id from {} ({then})", path.display())?;
    }
    writeln!(out)
}

fn write_mount(out: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let filesystem = &plan.filesystem;
    let fallback = match (filesystem.fallback, filesystem.swap) {
        (Fallback::None, _) => "no fallback: FUSE or nothing",
        (Fallback::Tmpfs, Swap::Refuse) => "fallback tmpfs that cannot reach a swap",
        (Fallback::Tmpfs, Swap::Allow) => "fallback tmpfs, which may reach a swap",
    };
    write!(
        out,
        "mount    {} {:04o}, {fallback}",
        filesystem.path.display(),
        filesystem.dir_mode
    )?;
    if let Some(size) = filesystem.size {
        write!(out, ", at most {size} bytes")?;
    }
    writeln!(out)?;
    match (filesystem.dir_mode & 0o001, filesystem.dir_mode & 0o004) {
        (0, _) => writeln!(
            out,
            "         others cannot reach any file by its name, not even their own, and cannot watch the directory"
        ),
        (_, 0) => writeln!(
            out,
            "         others cannot list the names or watch the directory; they reach a file whose name they know"
        ),
        _ => Ok(()),
    }
}

fn write_file(out: &mut fmt::Formatter<'_>, plan: &Plan, file: &File) -> fmt::Result {
    write!(
        out,
        "file     {} {:04o} {}:{} ",
        file.name, file.mode, file.owner.uid, file.owner.gid
    )?;
    match &file.content {
        Content::Field { query, field } => write!(
            out,
            "field {field} of {}",
            Reading(&plan.queries[query.index()])
        )?,
        Content::Json { query } => {
            write!(out, "JSON of {}", Reading(&plan.queries[query.index()]))?;
        }
        Content::Template(template) => {
            let reads: Vec<_> = template
                .queries()
                .iter()
                .map(|id| Reading(&plan.queries[id.index()]).to_string())
                .collect();
            write!(
                out,
                "template of {}",
                if reads.is_empty() {
                    "text alone".to_owned()
                } else {
                    reads.join(", ")
                }
            )?;
        }
        Content::Token => write!(out, "the agent's token")?,
    }
    if let Some(id) = file.on_change {
        write!(out, ", on change: {}", Doing(&plan.hooks[id.index()]))?;
    }
    if file.stale == Stale::Unhealthy {
        write!(out, ", unhealthy when past its life")?;
    }
    writeln!(out, " ({})", file.origin)
}

/// A hook in words; of a command the program alone.
struct Doing<'a>(&'a Hook);

impl fmt::Display for Doing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.action {
            Action::Signal(signal) => write!(f, "{}", signal.as_str().trim_start_matches("SIG"))?,
            Action::Command { command, .. } => {
                write!(f, "command {}", command.first().map_or("", String::as_str))?;
            }
            Action::Restart => write!(f, "restart")?,
        }
        let mut waits = [("debounce", self.0.debounce), ("splay", self.0.splay)]
            .into_iter()
            .filter(|(_, time)| !time.is_zero());
        waits.try_for_each(|(name, time)| write!(f, ", {name} {time:?}"))
    }
}

/// A read in words.
struct Reading<'a>(&'a Query);

impl fmt::Display for Reading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.read.path)?;
        if let Some(version) = self.0.read.version {
            write!(f, " version {version}")?;
        }
        self.0
            .refresh
            .map_or(Ok(()), |every| write!(f, " every {every:?}"))
    }
}

fn write_app(out: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let app = &plan.app;
    // Arguments may hold anything: the program alone is shown.
    let program = app
        .command
        .first()
        .map_or("given on the command line", String::as_str);
    write!(
        out,
        "app      {program}, waits {:?} for its secrets, stopped by {} then KILL after {:?}",
        app.wait,
        app.stop_signal.as_str().trim_start_matches("SIG"),
        app.stop_timeout
    )?;
    if let Some(user) = &app.user {
        write!(
            out,
            ", as {} ({}:{})",
            user.name, user.owner.uid, user.owner.gid
        )?;
    }
    let hup = match app.on_hup {
        OnHup::Both => "",
        OnHup::App => ", HUP for itself alone",
        OnHup::Refresh => ", HUP for the agent alone",
    };
    let rights = if app.new_privileges == NewPrivileges::Inherited {
        ", new privileges allowed"
    } else {
        ""
    };
    let filter = if app.seccomp == Seccomp::Inherited {
        ", under the container's seccomp filter alone"
    } else {
        ""
    };
    writeln!(out, "{hup}{rights}{filter}")
}
