//! The command line: argv to a `Command` to an exit code. Invariant: the module only splits words;
//! `config` parses the values.

use crate::config::{self, Loaded, Overrides};
use crate::exit::{Exit, Refused};
use crate::health::{self, Probe, Strictness, Verdict};
use crate::observe::{self, Incident};
use crate::shown::ShownLine;
use crate::status::{self, Now, Report};
use crate::supervise;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

/// The output of `--help`.
pub const HELP: &str = "\
baofs serves the secrets of an OpenBao server as files from locked memory and supervises the application that reads them.

Usage:
  baofs run [OPTIONS] -- COMMAND [ARGS...]   serve the files, and run COMMAND once its secrets are available
  baofs mount [OPTIONS]                      serve the files without an application
  baofs check [OPTIONS] [-- COMMAND...]      validate the configuration and print the plan; needs no server
  baofs health [--mount PATH] [--http URL | --tcp HOST:PORT] [--strict]
                                             check the agent, its secrets and the application; for HEALTHCHECK
  baofs status [--mount PATH] [--json]       print the state of the agent, the login and the secrets

Options (a flag overrides the environment, which overrides the file):
  --config PATH           configuration file (HCL or JSON) or directory; can be repeated   [env: BAOFS_CONFIG]
                          [default: /etc/bao/agent-config.hcl]
  --mount PATH            directory of the files [default: /app/secrets]                   [env: BAOFS_MOUNT]
  --fallback tmpfs|none   filesystem to use if FUSE is refused [default: none]             [env: BAOFS_FALLBACK]
  --allow-swap            accept a tmpfs that may be swapped out
  --user USER[:GROUP]     user of the application                                          [env: BAOFS_USER]
  --wait DURATION         time limit for the first secrets [default: 30s]                  [env: BAOFS_WAIT]

Options of health and status:
  --mount PATH            directory of the files                                           [env: BAOFS_MOUNT]
                          [default: the only mount of baofs, else /app/secrets]
  --http URL              expect 2xx or 3xx from the application for GET http://HOST[:PORT]/PATH
  --tcp HOST:PORT         expect the application to accept a connection
  --strict                exit with 1 for a degraded agent, too
  --json                  print the report as JSON

  -h, --help              print this help
  -V, --version           print the version

OpenBao's own variables also apply: BAO_ADDR, BAO_CACERT, BAO_CAPATH, BAO_CLIENT_CERT, BAO_CLIENT_KEY,
BAO_TLS_SERVER_NAME, BAO_SKIP_VERIFY, BAO_NAMESPACE, and the same names with VAULT_.
";

/// A parsed command line.
#[derive(Debug, PartialEq)]
enum Command {
    /// Serve the files and supervise the application.
    Run(Overrides),
    /// Serve the files only.
    Mount(Overrides),
    /// Validate the configuration and print the plan.
    Check(Overrides),
    /// Judge the health.
    Health {
        /// `--mount`.
        mount: Option<PathBuf>,
        /// `--http` or `--tcp`.
        probe: Option<Probe>,
        /// `--strict`.
        strictness: Strictness,
    },
    /// Print the agent's report.
    Status {
        /// `--mount`.
        mount: Option<PathBuf>,
        /// `--json`.
        json: bool,
    },
    /// Print a text.
    Print(String),
}

/// The names of the commands, for messages.
const COMMANDS: &str = "`run`, `mount`, `check`, `health` or `status`";

/// Runs the program with `arguments` (the first is the program's name) and returns the exit code.
///
/// The process must have one thread only, because the program forks.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    match execute(arguments) {
        Ok(code) | Err(code) => code,
    }
}

/// Parses and runs the command. `Err` is the exit code after the command line or the configuration
/// was refused.
fn execute(arguments: impl IntoIterator<Item = OsString>) -> Result<u8, u8> {
    let code = match parse(arguments).map_err(|error| misused(&error.to_string()))? {
        Command::Print(text) => print(&text),
        Command::Health {
            mount,
            probe,
            strictness,
        } => health(mount, probe.as_ref(), strictness),
        Command::Status { mount, json } => status(mount, json),
        Command::Check(overrides) => {
            let loaded = load(&overrides)?;
            print(&config::show(&loaded.plan, &loaded.warnings))
        }
        Command::Run(overrides) => {
            let loaded = load(&overrides)?;
            if loaded.plan.app.command.is_empty() {
                let message = "`run` needs a command: after `--`, or as `app { command }`";
                return Err(misused(message));
            }
            serve(&loaded)
        }
        Command::Mount(overrides) => {
            let mut loaded = load(&overrides)?;
            loaded.plan.app.command.clear();
            serve(&loaded)
        }
    };
    Ok(code)
}

fn misused(message: &str) -> u8 {
    let hint = "`baofs --help` shows the commands and flags";
    refuse(&Refused::new(
        Exit::Usage,
        format_args!("{message}\nhint: {hint}"),
    ))
}

fn print(text: &str) -> u8 {
    // A closed pipe is no failure: the reader wants no more.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Exit::Ok.code()
}

/// Prints the verdict on standard output, where `docker inspect` finds the text.
fn health(mount: Option<PathBuf>, probe: Option<&Probe>, strictness: Strictness) -> u8 {
    let verdict = match report(mount) {
        Err(cause) => Verdict::Unhealthy(vec![cause]),
        Ok(report) => {
            let answer = probe.map_or(Ok(()), Probe::run);
            health::judge(&report, Now::real(), answer, strictness)
        }
    };
    match verdict {
        Verdict::Healthy => print("healthy\n"),
        Verdict::Degraded(causes) => print(&lines("degraded", causes)),
        Verdict::Unhealthy(causes) => {
            print(&lines("unhealthy", causes));
            Exit::Unhealthy.code()
        }
    }
}

/// A line for each cause. The causes are cleaned, because a cause can repeat an answer of the
/// application or the name of a mount.
fn lines(word: &str, causes: Vec<String>) -> String {
    let mut text = String::new();
    for cause in causes {
        text = format!("{text}{word}: {}\n", ShownLine::from(cause));
    }
    text
}

fn status(mount: Option<PathBuf>, json: bool) -> u8 {
    match status_text(mount, json) {
        Ok(text) => print(&text),
        Err(cause) => {
            let refused = Refused::new(Exit::Unhealthy, ShownLine::from(cause));
            refuse(&refused)
        }
    }
}

/// The report as a table or as JSON. The report is parsed and formatted again, so that the writer of
/// the file controls nothing but the values.
fn status_text(mount: Option<PathBuf>, json: bool) -> Result<String, String> {
    let report = report(mount)?;
    if !json {
        return Ok(status::table(&report, Now::real()));
    }
    let text = serde_json::to_string(&report).map_err(|error| error.to_string())?;
    Ok(text + "\n")
}

/// The report in the mount from the flag, else from the environment, else from the list of mounts.
fn report(mount: Option<PathBuf>) -> Result<Report, String> {
    let variable = std::env::var_os("BAOFS_MOUNT").filter(|path| !path.is_empty());
    let mount = mount.or(variable.map(PathBuf::from));
    let mount = health::mount(mount)?;
    let bytes = health::read(&mount)?;
    health::parse(&bytes)
}

/// Prints why the command was refused, and returns the exit code.
fn refuse(refused: &Refused) -> u8 {
    eprintln!("baofs: {refused}");
    refused.exit.code()
}

/// Loads the configuration, or prints the problems and returns the exit code.
fn load(overrides: &Overrides) -> Result<Loaded, u8> {
    let variable = |name: &str| std::env::var(name).ok();
    config::load(overrides, &variable).map_err(|problems| {
        eprintln!("{problems}");
        Exit::Config.code()
    })
}

fn serve(loaded: &Loaded) -> u8 {
    observe::init(loaded.plan.log);
    for warning in &loaded.warnings {
        Incident::ConfigWarning.emit(&warning.one_line());
    }
    supervise::run(&loaded.plan).unwrap_or_else(|refused| refuse(&refused))
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut parser = lexopt::Parser::from_iter(arguments);
    let name = match parser.next()? {
        Some(Short('h') | Long("help")) => return Ok(help()),
        Some(Short('V') | Long("version")) => {
            let version = concat!("baofs ", env!("CARGO_PKG_VERSION"), "\n");
            return Ok(Command::Print(version.into()));
        }
        Some(Value(name)) => name.string()?,
        Some(other) => {
            let other = other.unexpected();
            return Err(format!("{other} before the command: expected {COMMANDS}").into());
        }
        None => return Err(format!("missing command: expected {COMMANDS}").into()),
    };
    let command = match name.as_str() {
        "run" => Command::Run,
        "mount" => Command::Mount,
        "check" => Command::Check,
        "health" | "status" => return report_command(&name, &mut parser),
        _ => return Err(format!("unknown command `{name}`: expected {COMMANDS}").into()),
    };
    let Some(overrides) = options(&mut parser)? else {
        return Ok(help());
    };
    if name == "mount" && overrides.command.is_some() {
        return Err("`mount` takes no command; `run` does".into());
    }
    Ok(command(overrides))
}

fn help() -> Command {
    Command::Print(HELP.into())
}

/// The command `health` or `status` with the flags.
fn report_command(name: &str, parser: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    let health = name == "health";
    let mut mount = None;
    let mut http = None::<String>;
    let mut tcp = None::<String>;
    let mut strictness = Strictness::Tolerant;
    let mut json = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("mount") => once("mount", &mut mount, parser)?,
            Long("http") if health => once("http", &mut http, parser)?,
            Long("tcp") if health => once("tcp", &mut tcp, parser)?,
            Long("strict") if health => strictness = Strictness::Strict,
            Long("json") if !health => json = true,
            Short('h') | Long("help") => return Ok(help()),
            other @ (Short(_) | Long(_) | Value(_)) => return Err(other.unexpected()),
        }
    }
    if !health {
        return Ok(Command::Status { mount, json });
    }
    let probe = match (http, tcp) {
        (Some(_), Some(_)) => return Err("--http and --tcp cannot be used together".into()),
        (Some(url), None) => Some(Probe::http(&url)?),
        (None, Some(address)) => Some(Probe::tcp(&address)?),
        (None, None) => None,
    };
    Ok(Command::Health {
        mount,
        probe,
        strictness,
    })
}

/// The flags of `run`, `mount` or `check`, and the words of the application, which end the flags.
/// `None` for `--help`.
fn options(parser: &mut lexopt::Parser) -> Result<Option<Overrides>, lexopt::Error> {
    let mut overrides = Overrides::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => {
                let path = parser.value()?;
                overrides.config.push(path.into());
            }
            Long("mount") => once("mount", &mut overrides.mount, parser)?,
            Long("fallback") => once("fallback", &mut overrides.fallback, parser)?,
            Long("allow-swap") => overrides.allow_swap = true,
            Long("user") => once("user", &mut overrides.user, parser)?,
            Long("wait") => once("wait", &mut overrides.wait, parser)?,
            Short('h') | Long("help") => return Ok(None),
            Value(word) => {
                let mut words = vec![word.string()?];
                for word in parser.raw_args()? {
                    words.push(word.string()?);
                }
                overrides.command = Some(words);
            }
            other @ (Short(_) | Long(_)) => return Err(other.unexpected()),
        }
    }
    Ok(Some(overrides))
}

fn once<T: From<String>>(
    name: &str,
    slot: &mut Option<T>,
    parser: &mut lexopt::Parser,
) -> Result<(), lexopt::Error> {
    if slot.is_some() {
        return Err(format!("--{name} is given twice").into());
    }
    *slot = Some(parser.value()?.string()?.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(
            std::iter::once("baofs")
                .chain(line.split_whitespace())
                .map(OsString::from),
        )
        .map_err(|error| error.to_string())
    }

    #[test]
    fn words_become_commands() {
        let words = |w: &[&str]| Some(w.iter().map(ToString::to_string).collect());
        let run = Overrides {
            config: vec!["a".into(), "b".into()],
            user: Some("app".into()),
            wait: Some("2s".into()),
            command: words(&["env", "-i", "--user"]),
            ..Overrides::default()
        };
        assert_eq!(
            parsed("run --config a --config=b --user app --wait 2s -- env -i --user"),
            Ok(Command::Run(run))
        );
        let mount = Overrides {
            mount: Some("/m".into()),
            fallback: Some("tmpfs".into()),
            allow_swap: true,
            ..Overrides::default()
        };
        assert_eq!(
            parsed("mount --mount /m --fallback tmpfs --allow-swap"),
            Ok(Command::Mount(mount))
        );
        assert_eq!(parsed("check"), Ok(Command::Check(Overrides::default())));
        for line in ["run --help", "health -h", "status --json --help"] {
            assert_eq!(parsed(line), Ok(Command::Print(HELP.into())), "{line}");
        }
    }

    #[test]
    fn checks_and_their_words() {
        let health = |mount: Option<&str>, probe, strictness| {
            Ok(Command::Health {
                mount: mount.map(PathBuf::from),
                probe,
                strictness,
            })
        };
        assert_eq!(parsed("health"), health(None, None, Strictness::Tolerant));
        let http = Probe::http("http://[::1]:8080/x").ok();
        assert_eq!(
            parsed("health --strict --mount /m --http http://[::1]:8080/x"),
            health(Some("/m"), http, Strictness::Strict)
        );
        assert_eq!(
            parsed("health --tcp localhost:80"),
            health(None, Probe::tcp("localhost:80").ok(), Strictness::Tolerant)
        );
        assert_eq!(
            parsed("status"),
            Ok(Command::Status {
                mount: None,
                json: false
            })
        );
        assert_eq!(
            parsed("status --json --mount=/m"),
            Ok(Command::Status {
                mount: Some("/m".into()),
                json: true
            })
        );
    }

    #[test]
    fn bad_words_are_named() {
        for (line, part) in [
            ("", "missing command"),
            ("--mount", "before the command"),
            ("start", "unknown command `start`"),
            ("run --wait 1s --wait 2s", "--wait is given twice"),
            ("run --config", "missing argument"),
            ("run --what", "'--what'"),
            ("mount -- app", "takes no command"),
            ("health --tcp a:1 --http http://a/", "--http and --tcp"),
            ("health --tcp 1", "HOST:PORT"),
            ("health --http https://a/", "--tcp HOST:PORT"),
            ("health now", "\"now\""),
            ("health --json", "'--json'"),
            ("status --strict", "'--strict'"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
