//! The output of `baofs check`. Invariant: the output is made from the plan alone, and a plan has no
//! secret.

use super::defaults;
use super::plan::{
    Action, AfterReading, Content, Fallback, File, Hook, Method, NewPrivileges, OnHup, Plan, Query,
    Scheme, Seccomp, Stale, Swap, Verify,
};
use super::problem::Problem;
use std::fmt;

/// The whole plan, then the warnings.
pub fn show(plan: &Plan, warnings: &[Problem]) -> String {
    fmt::from_fn(|f| {
        write_server(f, plan)?;
        write_mount(f, plan)?;
        for file in &plan.files {
            write_file(f, plan, file)?;
        }
        write_differences(f, plan)?;
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
        for warning in warnings {
            writeln!(f, "{warning}")?;
        }
        Ok(())
    })
    .to_string()
}

/// The differences to `bao agent` that apply to the templates of the plan.
fn write_differences(out: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let mut has_default_mode = false;
    let mut has_command = false;
    for file in &plan.files {
        if !matches!(file.content, Content::Template(_)) {
            continue;
        }
        has_default_mode |= file.mode == defaults::MODE;
        if let Some(id) = file.on_change {
            let hook = &plan.hooks[id.index()];
            has_command |= matches!(hook.action, Action::Command { .. });
        }
    }
    if has_default_mode {
        writeln!(
            out,
            "         the default mode of a template is 0400; for the 0644 of `bao agent` set `perms`"
        )?;
    }
    if has_command {
        writeln!(
            out,
            "         a command runs after a change, not at the first rendering as with `bao agent`"
        )?;
    }
    Ok(())
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
        (Fallback::None, _) => "FUSE without a fallback",
        (Fallback::Tmpfs, Swap::Refuse) => "FUSE, or a tmpfs that cannot be swapped out",
        (Fallback::Tmpfs, Swap::Allow) => "FUSE, or a tmpfs that may be swapped out",
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
            "         others cannot open any file, not even their own, and cannot watch the directory"
        ),
        (_, 0) => writeln!(
            out,
            "         others cannot list or watch the directory; they can open a file by its name"
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
        Content::Field { query, field } => {
            let query = &plan.queries[query.index()];
            write!(out, "field {field} of {query}")?;
        }
        Content::Json { query } => {
            let query = &plan.queries[query.index()];
            write!(out, "JSON of {query}")?;
        }
        Content::Template(template) => {
            let mut separator = "template of ";
            for id in template.queries() {
                write!(out, "{separator}{}", plan.queries[id.index()])?;
                separator = ", ";
            }
            if template.queries().is_empty() {
                write!(out, "template without a secret")?;
            }
        }
        Content::Token => write!(out, "the agent's token")?,
    }
    if let Some(id) = file.on_change {
        write!(out, ", on change: {}", plan.hooks[id.index()])?;
    }
    if file.stale == Stale::Unhealthy {
        write!(out, ", unhealthy when past its life")?;
    }
    writeln!(out, " ({})", file.origin)
}

/// A hook in words. Of a command only the program is shown, because an argument may be a secret.
impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hook {
            action,
            debounce,
            splay,
        } = self;
        match action {
            Action::Signal(signal) => {
                let name = signal.as_str().trim_start_matches("SIG");
                write!(f, "{name}")?;
            }
            Action::Command { command, .. } => write!(f, "command {}", command[0])?,
            Action::Restart => write!(f, "restart")?,
        }
        if !debounce.is_zero() {
            write!(f, ", debounce {debounce:?}")?;
        }
        if !splay.is_zero() {
            write!(f, ", splay {splay:?}")?;
        }
        Ok(())
    }
}

/// A query in words.
impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.read.path)?;
        if let Some(version) = self.read.version {
            write!(f, " version {version}")?;
        }
        if let Some(refresh) = self.refresh {
            write!(f, " every {refresh:?}")?;
        }
        Ok(())
    }
}

fn write_app(out: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let app = &plan.app;
    let program = match app.command.first() {
        Some(program) => program,
        None => "given on the command line",
    };
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
        OnHup::App => ", HUP only to the application",
        OnHup::Refresh => ", HUP only to the agent",
    };
    let rights = if app.new_privileges == NewPrivileges::Inherited {
        ", new privileges allowed"
    } else {
        ""
    };
    let filter = if app.seccomp == Seccomp::Inherited {
        ", only the container's seccomp filter"
    } else {
        ""
    };
    writeln!(out, "{hup}{rights}{filter}")
}
