//! Configuration: text -> raw -> `Plan`, with all problems at once and the position of each problem.
//! Invariant: only `check` makes a `Plan`.

mod check;
pub mod defaults;
mod hooks;
mod keys;
pub mod plan;
mod problem;
mod raw;
mod section;
mod show;
mod users;
mod value;

pub use problem::{Problem, Problems, Severity};
pub use show::show;

use plan::Plan;
use problem::{Findings, SourceFile};
use std::io;
use std::path::{Path, PathBuf};

/// The flags of the command line. A flag overrides the environment and the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`, each a file or a directory; empty: `BAOFS_CONFIG` (separated by `:`), else
    /// `defaults::CONFIG`.
    pub config: Vec<PathBuf>,
    /// `--mount`, as typed.
    pub mount: Option<String>,
    /// `--fallback`, as typed.
    pub fallback: Option<String>,
    /// `--allow-swap`.
    pub allow_swap: bool,
    /// `--user`, as typed.
    pub user: Option<String>,
    /// `--wait`, as typed.
    pub wait: Option<String>,
    /// The words after `--`.
    pub command: Option<Vec<String>>,
}

/// A valid configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The plan.
    pub plan: Plan,
    /// The warnings, sorted by file and line.
    pub warnings: Vec<Problem>,
}

/// Reads and checks the whole configuration; `env` returns a variable of the environment.
///
/// # Errors
/// All problems of the files, the environment and the flags.
pub fn load(
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    let report = Findings::default();
    let sources = sources(overrides, env, &report);
    let readable = !report.has_errors();
    let mut trees = Vec::new();
    for source in &sources {
        trees.extend(raw::parse(source, &report));
    }
    let whole = readable && trees.len() == sources.len();
    let plan = check::check(&trees, whole, overrides, env, &report);
    report.finish().map(|warnings| Loaded { plan, warnings })
}

/// The configuration files that can be read, in order.
fn sources(
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
    report: &Findings,
) -> Vec<SourceFile> {
    let mut hint = "";
    let mut paths = overrides.config.clone();
    if paths.is_empty() {
        match env("BAOFS_CONFIG") {
            Some(list) if !list.is_empty() => {
                let listed = list.split(':').map(PathBuf::from);
                paths.extend(listed);
            }
            Some(_) | None => {
                hint = "name the configuration with `--config PATH` or `BAOFS_CONFIG`";
                paths.push(defaults::CONFIG.into());
            }
        }
    }
    let failed = |path: &Path, why: io::Error| {
        report.error(None, format!("cannot read {}: {why}", path.display()), hint);
    };
    let mut sources = Vec::new();
    for path in paths {
        let files = directory(&path).unwrap_or_else(|why| {
            failed(&path, why);
            Vec::new()
        });
        for file in files {
            match std::fs::read_to_string(&file) {
                Ok(text) => {
                    let name = file.display().to_string();
                    sources.push(SourceFile::new(name, text));
                }
                Err(why) => failed(&file, why),
            }
        }
    }
    sources
}

/// The configuration files of a directory, sorted and at least one; a path that is no directory is
/// the only file.
fn directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let file = entry.path();
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let hidden = name.starts_with(b".");
        let is_configuration = name.ends_with(b".hcl") || name.ends_with(b".json");
        if !hidden && is_configuration && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(io::Error::other(
            "the directory has no `*.hcl` or `*.json` file",
        ));
    }
    files.sort();
    Ok(files)
}
