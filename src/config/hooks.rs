//! What is done after a rotation: `on_change`, and what templates of `bao agent` have in its place.
//! Invariant: a hook does one thing; a command is a list of words, and only `bao agent`'s own keys
//! make a line for the shell of a text.

use super::keys;
use super::plan::{Action, Hook};
use super::problem::Findings;
use super::raw::{Node, Value};
use super::section::Section;
use super::value;
use std::time::Duration;

/// After what time a command is killed when nobody says; `bao agent` has the same default.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The `on_change` of the application or of a file.
pub(super) fn on_change(section: Section<'_>, report: &Findings) -> Option<Hook> {
    let on_change = section.section("on_change", &keys::ON_CHANGE)?;
    on_change.exactly_one(
        &["signal", "command", "restart"],
        "write `on_change = { signal = \"HUP\" }`",
    );
    hook(on_change, "timeout", command, report)
}

/// The hook of a file: its `on_change`, or what `bao agent` knows of a template: `exec` or
/// `command`.
pub(super) fn of_file(file: Section<'_>, report: &Findings) -> Option<Hook> {
    file.at_most_one(&["on_change", "command", "exec"]);
    if let Some(exec) = file.section("exec", &keys::EXEC) {
        exec.lacks("command");
        return hook(exec, "timeout", line, report);
    }
    file.get("command").map_or_else(
        || on_change(file, report),
        |_| hook(file, "command_timeout", line, report),
    )
}

/// What a table of keys allows of a hook; `read` makes words of its command.
fn hook(
    section: Section<'_>,
    timeout_key: &str,
    read: fn(&Node<'_>, &Findings) -> Vec<String>,
    report: &Findings,
) -> Option<Hook> {
    let (signal, restart) = (
        section.parsed("signal", value::signal),
        section.parsed("restart", value::truth),
    );
    let timeout = section.parsed(timeout_key, value::positive);
    let command = section.get("command").map(|node| read(node, report));
    if timeout.is_some() && command.is_none() {
        report.error(
            section.at(timeout_key),
            format!("`{timeout_key}` has no effect without `command`"),
            "",
        );
    }
    let (debounce, splay) = (
        section.parsed("debounce", value::duration),
        section.parsed("splay", value::duration),
    );
    let command = command.map(|command| Action::Command {
        command,
        timeout: timeout.unwrap_or(TIMEOUT),
    });
    let action = signal
        .map(Action::Signal)
        .or(command)
        .or(restart.map(|()| Action::Restart))?;
    Some(Hook {
        action,
        debounce: debounce.unwrap_or_default(),
        splay: splay.unwrap_or_default(),
    })
}

/// A list of texts, or one word: nobody has to guess how a line would be split. An error shows no
/// word: it may be a secret.
pub(super) fn command(node: &Node<'_>, report: &Findings) -> Vec<String> {
    let word = |node: &Node<'_>| match &node.value {
        Value::Text(text) if !text.contains('\0') => Some(text.clone()),
        Value::Text(_)
        | Value::Number(_)
        | Value::Bool(_)
        | Value::List(_)
        | Value::Table(_)
        | Value::Other => None,
    };
    let alone = node
        .scalar()
        .is_some_and(|text| text.contains(char::is_whitespace));
    let words: Option<Vec<String>> = node.items().iter().map(word).collect();
    words
        .filter(|words| !alone && words.first().is_some_and(|program| !program.is_empty()))
        .unwrap_or_else(|| {
            let hint =
                "write `[\"PROGRAM\", \"ARG\"]`; for a shell line `[\"sh\", \"-c\", \"LINE\"]`";
            report.error_of_shape(
                node.at,
                "invalid `command`: expected a list of strings",
                hint,
            );
            Vec::new()
        })
}

/// A command as `bao agent` reads it: one text with a blank in it, alone or in a list, is a line
/// for the shell.
fn line(node: &Node<'_>, report: &Findings) -> Vec<String> {
    match node.items() {
        [
            Node {
                value: Value::Text(line),
                ..
            },
        ] if line.trim().contains(char::is_whitespace) && !line.contains('\0') => {
            vec!["sh".to_owned(), "-c".to_owned(), line.clone()]
        }
        _ => command(node, report),
    }
}
