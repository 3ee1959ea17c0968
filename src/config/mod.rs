//! Configuration: text -> raw -> `Plan`, all problems at once, each with its position. Invariant:
//! only `check` makes a `Plan`.

mod check;
mod hooks;
mod keys;
pub mod plan;
mod problem;
mod raw;
mod section;
mod show;
mod users;
mod value;

pub use check::MOUNT as DEFAULT_MOUNT;
pub use problem::{Problem, Problems, Severity};
pub use show::show;

use plan::Plan;
use problem::{Findings, SourceFile};
use std::path::{Path, PathBuf};

/// Where the configuration is when nobody says.
pub const DEFAULT_PATH: &str = "/etc/bao/agent-config.hcl";

/// What the command line gave; each wins over the environment and the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`, each a file or a directory; empty: `BAOFS_CONFIG` (separated by `:`), else
    /// `DEFAULT_PATH`.
    pub config: Vec<PathBuf>,
    /// `--mount`.
    pub mount: Option<PathBuf>,
    /// `--fallback`, as typed.
    pub fallback: Option<String>,
    /// `--allow-swap`.
    pub allow_swap: bool,
    /// `--user`, as typed.
    pub user: Option<String>,
    /// `--wait`, as typed.
    pub wait: Option<String>,
    /// What stands behind `--`.
    pub command: Option<Vec<String>>,
}

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// What to do.
    pub plan: Plan,
    /// What should be said, sorted by file and line.
    pub warnings: Vec<Problem>,
}

/// Reads and checks the whole configuration; `env` gives a variable of the environment.
///
/// # Errors
/// Every problem of all files, of the environment and of the flags.
pub fn load(
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    let report = Findings::default();
    let sources = sources(overrides, env, &report);
    let readable = !report.has_errors();
    let trees: Vec<_> = sources
        .iter()
        .filter_map(|source| raw::parse(source, &report))
        .collect();
    let plan = check::check(
        &trees,
        readable && trees.len() == sources.len(),
        overrides,
        env,
        &report,
    );
    report.finish().map(|warnings| Loaded { plan, warnings })
}

/// All files that are meant, in order, as far as they can be read.
fn sources(
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
    report: &Findings,
) -> Vec<SourceFile> {
    let named = env("BAOFS_CONFIG").filter(|text| !text.is_empty());
    let paths = match (overrides.config.is_empty(), &named) {
        (false, _) => overrides.config.clone(),
        (true, Some(text)) => text.split(':').map(PathBuf::from).collect(),
        (true, None) => vec![PathBuf::from(DEFAULT_PATH)],
    };
    let hint = if overrides.config.is_empty() && named.is_none() {
        "name the configuration with `--config PATH` or `BAOFS_CONFIG`"
    } else {
        ""
    };
    let failed = |path: &Path, why: &std::io::Error| {
        report.error_anywhere(format!("cannot read {}: {why}", path.display()), hint);
    };
    let files = paths.into_iter().filter_map(|path| {
        let files = directory(&path).map_err(|why| failed(&path, &why)).ok()?;
        if files.is_empty() {
            report.error_anywhere(
                format!(
                    "the directory {} has no `*.hcl` or `*.json` file",
                    path.display()
                ),
                "",
            );
        }
        Some(files)
    });
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path)
            .map_err(|why| failed(&path, &why))
            .ok()?;
        Some(SourceFile::new(path.display().to_string(), text))
    };
    files.flatten().filter_map(read).collect()
}

/// The configuration files of a directory, sorted; a file stands for itself.
fn directory(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = std::fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| {
        let hidden = file
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden
            && file.is_file()
            && file
                .extension()
                .is_some_and(|ext| ext == "hcl" || ext == "json")
    });
    files.sort();
    Ok(files)
}
