//! The command line: argv -> `Command` -> exit code. Invariant: it only splits words; what they
//! mean is `config`'s.

use crate::config::{self, Overrides, Problems};
use crate::exit::{Exit, Refused};
use crate::health::{self, Probe, Strictness, Verdict};
use crate::observe::{self, Incident};
use crate::shown::ShownLine;
use crate::status::{self, Now};
use crate::supervise;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

/// What `--help` prints.
pub const HELP: &str = "\
baofs serves the secrets of an OpenBao server as files from locked memory, and supervises the application that reads them.

Usage:
  baofs run [OPTIONS] -- COMMAND [ARGS...]   serve, start COMMAND when its secrets are there, stop in order
  baofs mount [OPTIONS]                      serve only, in the foreground
  baofs check [OPTIONS] [-- COMMAND...]      validate the configuration and show the plan; needs no server
  baofs health [--mount PATH] [--http URL | --tcp HOST:PORT] [--strict]
                                             whether agent, secrets and application are well; for HEALTHCHECK
  baofs status [--mount PATH] [--json]       agent, login and secrets as a table, or as JSON

Options (a flag wins over the environment, the environment over the file):
  --config PATH           configuration, HCL or JSON, a file or a directory; may be repeated   BAOFS_CONFIG
                          [default: /etc/bao/agent-config.hcl]
  --mount PATH            where the files are served                                           BAOFS_MOUNT
                          [default: /app/secrets]
  --fallback tmpfs|none   what to do where FUSE is refused [default: none]                     BAOFS_FALLBACK
  --allow-swap            accept a tmpfs whose pages may reach a swap
  --user USER[:GROUP]     whom the application runs as                                         BAOFS_USER
  --wait DURATION         how long to wait for the first secrets [default: 30s]                BAOFS_WAIT

Options of health and status:
  --mount PATH            where the files are served                                           BAOFS_MOUNT
                          [default: the only mount of baofs, else /app/secrets]
  --http URL              the application is to answer a GET of http://HOST[:PORT]/PATH with 2xx or 3xx
  --tcp HOST:PORT         the application is to accept a connection
  --strict                trouble is a failure even while everything is served
  --json                  the agent's report as JSON

  -h, --help              this text
  -V, --version           the version

OpenBao's own variables are read too: BAO_ADDR, BAO_CACERT, BAO_CAPATH, BAO_CLIENT_CERT, BAO_CLIENT_KEY,
BAO_TLS_SERVER_NAME, BAO_SKIP_VERIFY, BAO_NAMESPACE, and their VAULT_ twins.
";

/// What was asked for.
#[derive(Debug, PartialEq)]
enum Command {
    /// Serve and supervise.
    Run(Overrides),
    /// Serve only.
    Mount(Overrides),
    /// Validate and show.
    Check(Overrides),
    /// Say whether all is well.
    Health {
        /// `--mount`.
        mount: Option<PathBuf>,
        /// `--http` or `--tcp`.
        probe: Option<Probe>,
        /// `--strict`.
        strictness: Strictness,
    },
    /// Show what the agent reports.
    Status {
        /// `--mount`.
        mount: Option<PathBuf>,
        /// `--json`.
        json: bool,
    },
    /// Print this and end.
    Print(String),
}

/// Every command.
const COMMANDS: &str = "run, mount, check, health and status";

/// Runs the program with `arguments` (the program's name first) and gives the code that the process
/// is to end with.
///
/// The process must have one thread only: it forks.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    match parse(arguments) {
        Ok(Command::Print(text)) => print(&text),
        Ok(Command::Health {
            mount,
            probe,
            strictness,
        }) => health(mount, probe.as_ref(), strictness),
        Ok(Command::Status { mount, json }) => status(mount, json),
        Ok(Command::Check(overrides)) => check(&overrides),
        Ok(Command::Run(overrides)) => serve(&overrides, ServeMode::Run),
        Ok(Command::Mount(overrides)) => serve(&overrides, ServeMode::Mount),
        Err(message) => misused(&message),
    }
}

fn misused(message: &str) -> u8 {
    let hint = "`baofs --help` shows the commands and flags";
    refuse(&Refused::new(
        Exit::Usage,
        format_args!("{message}\nhint: {hint}"),
    ))
}

fn print(text: &str) -> u8 {
    // Nobody reads a closed pipe; that is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Exit::Ok.code()
}

/// Says whether all is well, on standard output: there `docker inspect` finds it.
fn health(mount: Option<PathBuf>, probe: Option<&Probe>, strictness: Strictness) -> u8 {
    let judge = |bytes: Vec<u8>| {
        let report = health::parse(&bytes)?;
        let answer = probe.map_or(Ok(()), Probe::run);
        Ok(health::judge(&report, Now::real(), answer, strictness))
    };
    match report(mount)
        .and_then(judge)
        .unwrap_or_else(|cause| Verdict::Unhealthy(vec![cause]))
    {
        Verdict::Healthy => print("healthy\n"),
        Verdict::Degraded(causes) => print(&lines("degraded", &causes)),
        Verdict::Unhealthy(causes) => {
            print(&lines("unhealthy", &causes));
            Exit::Unhealthy.code()
        }
    }
}

/// Each cause on a line of its own. A cause may repeat what the application answered, or the name
/// of a mount.
fn lines(word: &str, causes: &[String]) -> String {
    let causes: Vec<_> = causes
        .iter()
        .map(|cause| ShownLine::from(cause.as_str()).to_string())
        .collect();
    format!("{word}: {}\n", causes.join(&format!("\n{word}: ")))
}

/// Prints the report, parsed and written anew: whoever made the file decides nothing but what the
/// report says.
fn status(mount: Option<PathBuf>, json: bool) -> u8 {
    let text = |bytes: Vec<u8>| {
        let report = health::parse(&bytes)?;
        let json = json.then(|| {
            serde_json::to_string(&report)
                .map(|text| text + "\n")
                .map_err(|error| error.to_string())
        });
        json.unwrap_or_else(|| Ok(status::table(&report, Now::real())))
    };
    match report(mount).and_then(text) {
        Ok(text) => print(&text),
        Err(cause) => refuse(&Refused::new(Exit::Unhealthy, ShownLine::from(cause))),
    }
}

/// The report in the mount that is given, named by the environment, or found.
fn report(mount: Option<PathBuf>) -> Result<Vec<u8>, String> {
    let named = || {
        std::env::var_os("BAOFS_MOUNT")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    health::read(&health::mount(mount.or_else(named))?)
}

/// Prints why the command cannot be carried out, and gives the code to end with.
fn refuse(refused: &Refused) -> u8 {
    eprintln!("baofs: {refused}");
    refused.exit.code()
}

/// Prints the problems of a configuration, each with its position.
fn reject(problems: &Problems) -> u8 {
    eprint!("{problems}");
    Exit::Config.code()
}

fn check(overrides: &Overrides) -> u8 {
    match config::load(overrides, &|name| std::env::var(name).ok()) {
        Ok(loaded) => print(&config::show(&loaded.plan, &loaded.warnings)),
        Err(problems) => reject(&problems),
    }
}

/// Whether an application is part of it.
#[derive(Clone, Copy, PartialEq)]
enum ServeMode {
    Run,
    Mount,
}

fn serve(overrides: &Overrides, job: ServeMode) -> u8 {
    let mut loaded = match config::load(overrides, &|name| std::env::var(name).ok()) {
        Ok(loaded) => loaded,
        Err(problems) => return reject(&problems),
    };
    let command = &mut loaded.plan.app.command;
    match job {
        ServeMode::Mount => command.clear(),
        ServeMode::Run if command.is_empty() => {
            return misused("`run` needs a command: after `--`, or as `app { command }`");
        }
        ServeMode::Run => {}
    }
    observe::init(loaded.plan.log);
    for warning in &loaded.warnings {
        Incident::ConfigWarning.emit(&warning.one_line());
    }
    supervise::run(&loaded.plan).unwrap_or_else(|refused| refuse(&refused))
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = lexopt::Parser::from_iter(arguments);
    let name = match parser.next().map_err(text)? {
        Some(Short('h') | Long("help")) => return Ok(help()),
        Some(Short('V') | Long("version")) => {
            return Ok(Command::Print(
                concat!("baofs ", env!("CARGO_PKG_VERSION"), "\n").into(),
            ));
        }
        Some(Value(name)) => name.string().map_err(text)?,
        Some(other) => {
            return Err(format!(
                "{} comes after a command: {COMMANDS}",
                text(other.unexpected())
            ));
        }
        None => return Err(format!("a command is missing: {COMMANDS}")),
    };
    let command = match name.as_str() {
        "run" => Command::Run,
        "mount" => Command::Mount,
        "check" => Command::Check,
        "health" | "status" => return Ok(check_words(&name, &mut parser)?.unwrap_or_else(help)),
        _ => return Err(format!("unknown command `{name}`; known are {COMMANDS}")),
    };
    let Some(overrides) = options(&mut parser)? else {
        return Ok(help());
    };
    match (command(overrides), name.as_str()) {
        (
            Command::Mount(Overrides {
                command: Some(_), ..
            }),
            _,
        ) => Err("`mount` takes no command; `run` does".into()),
        (command, _) => Ok(command),
    }
}

fn help() -> Command {
    Command::Print(HELP.into())
}

/// The flags of `health` or `status`; `None` when one of them was `--help`.
fn check_words(name: &str, parser: &mut lexopt::Parser) -> Result<Option<Command>, String> {
    let health = name == "health";
    let (mut mount, mut http, mut tcp) = (None, None::<String>, None::<String>);
    let (mut strictness, mut json) = (Strictness::Tolerant, false);
    while let Some(argument) = parser.next().map_err(text)? {
        match argument {
            Long("mount") => once("mount", &mut mount, parser)?,
            Long("http") if health => once("http", &mut http, parser)?,
            Long("tcp") if health => once("tcp", &mut tcp, parser)?,
            Long("strict") if health => strictness = Strictness::Strict,
            Long("json") if !health => json = true,
            Short('h') | Long("help") => return Ok(None),
            other @ (Short(_) | Long(_) | Value(_)) => return Err(text(other.unexpected())),
        }
    }
    if http.is_some() && tcp.is_some() {
        return Err("--http and --tcp are both given: one is enough".into());
    }
    let probe = http
        .map(|url| Probe::http(&url))
        .or_else(|| tcp.map(|address| Probe::tcp(&address)))
        .transpose()?;
    Ok(Some(if health {
        Command::Health {
            mount,
            probe,
            strictness,
        }
    } else {
        Command::Status { mount, json }
    }))
}

/// The flags of a command; `None` when one of them was `--help`.
fn options(parser: &mut lexopt::Parser) -> Result<Option<Overrides>, String> {
    let mut overrides = Overrides::default();
    while let Some(argument) = parser.next().map_err(text)? {
        match argument {
            Long("config") => overrides.config.push(parser.value().map_err(text)?.into()),
            Long("mount") => once("mount", &mut overrides.mount, parser)?,
            Long("fallback") => once("fallback", &mut overrides.fallback, parser)?,
            Long("allow-swap") => overrides.allow_swap = true,
            Long("user") => once("user", &mut overrides.user, parser)?,
            Long("wait") => once("wait", &mut overrides.wait, parser)?,
            Short('h') | Long("help") => return Ok(None),
            Value(word) => {
                return command_words(word, parser).map(|words| {
                    Some(Overrides {
                        command: Some(words),
                        ..overrides
                    })
                });
            }
            other @ (Short(_) | Long(_)) => return Err(text(other.unexpected())),
        }
    }
    Ok(Some(overrides))
}

fn once<T: From<String>>(
    name: &str,
    slot: &mut Option<T>,
    parser: &mut lexopt::Parser,
) -> Result<(), String> {
    let value = parser.value().and_then(ValueExt::string).map_err(text)?;
    if slot.replace(value.into()).is_some() {
        Err(format!("--{name} is given twice"))
    } else {
        Ok(())
    }
}

/// The application's words: all that follows, its own flags included.
fn command_words(first: OsString, parser: &mut lexopt::Parser) -> Result<Vec<String>, String> {
    let rest = parser.raw_args().map_err(text)?;
    std::iter::once(first)
        .chain(rest)
        .map(|word| word.string().map_err(text))
        .collect()
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "a function to map errors with"
)]
fn text(error: lexopt::Error) -> String {
    error.to_string()
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
            ("", "a command is missing"),
            ("--mount", "comes after a command"),
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
