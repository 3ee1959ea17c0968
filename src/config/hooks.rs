//! The actions after a rotation: `on_change`, and the keys `exec` and `command` of `bao agent`'s
//! templates. Invariant: a hook does one thing. A command is a list of words; only the keys of
//! `bao agent` turn a text into a line for the shell.

use super::defaults;
use super::keys;
use super::plan::{Action, Hook};
use super::problem::Findings;
use super::raw::{Node, Value};
use super::section::Section;
use super::value;

/// The `on_change` of the application or of a file.
pub(super) fn on_change(section: Section<'_>) -> Option<Hook> {
    let on_change = section.section("on_change", &keys::ON_CHANGE);
    on_change.exactly_one(
        &["signal", "command", "restart"],
        "write `on_change = { signal = \"HUP\" }`",
    );
    hook(on_change, "timeout", command)
}

/// The hook of a file: `on_change`, or `exec` or `command` in a template.
pub(super) fn of_file(file: Section<'_>) -> Option<Hook> {
    file.at_most_one(&["on_change", "command", "exec"]);
    if file.get("exec").is_some() {
        let exec = file.section("exec", &keys::EXEC);
        exec.require("command");
        hook(exec, "timeout", line)
    } else if file.get("command").is_some() {
        hook(file, "command_timeout", line)
    } else {
        on_change(file)
    }
}

/// The hook of a block; `read` turns the value of `command` into words.
fn hook(
    section: Section<'_>,
    timeout_key: &str,
    read: fn(&Node<'_>, &Findings) -> Vec<String>,
) -> Option<Hook> {
    let report = section.report;
    let signal = section.parsed("signal", value::signal);
    let restart = section.parsed("restart", value::truth);
    let timeout = section.parsed(timeout_key, value::positive);
    let command = section.get("command").map(|node| read(node, report));
    if let Some(node) = section.get(timeout_key)
        && command.is_none()
        && timeout.is_some()
    {
        report.error(
            node.at.value(),
            format!("`{timeout_key}` has no effect without `command`"),
            "",
        );
    }
    let debounce = section.parsed("debounce", value::duration);
    let splay = section.parsed("splay", value::duration);
    let action = match (signal, command, restart) {
        (Some(signal), _, _) => Action::Signal(signal),
        (None, Some(command), _) => Action::Command {
            command,
            timeout: timeout.unwrap_or(defaults::COMMAND_TIMEOUT),
        },
        (None, None, Some(())) => Action::Restart,
        (None, None, None) => return None,
    };
    Some(Hook {
        action,
        debounce: debounce.unwrap_or_default(),
        splay: splay.unwrap_or_default(),
    })
}

/// The words of a list of texts, or of a single text without a space, so that no line needs to be
/// split. An error shows no word, because a word may be a secret.
pub(super) fn command(node: &Node<'_>, report: &Findings) -> Vec<String> {
    let mut words = Vec::new();
    for item in node.items() {
        if let Value::Text(text) = &item.value
            && !text.contains('\0')
        {
            words.push(text.clone());
        }
    }
    let is_line = matches!(node.scalar(), Some(text) if text.contains(char::is_whitespace));
    let has_program = matches!(words.first(), Some(program) if !program.is_empty());
    if words.len() < node.items().len() || is_line || !has_program {
        report.error(
            node.at.shape(),
            "invalid `command`: expected a list of strings",
            "write `[\"PROGRAM\", \"ARG\"]`; for a shell line `[\"sh\", \"-c\", \"LINE\"]`",
        );
        words.clear();
    }
    words
}

/// The words of a command as `bao agent` reads commands: a single text with a space, alone or in a
/// list, is a line for the shell.
fn line(node: &Node<'_>, report: &Findings) -> Vec<String> {
    if let [item] = node.items()
        && let Value::Text(line) = &item.value
        && line.trim().contains(char::is_whitespace)
        && !line.contains('\0')
    {
        return ["sh", "-c", line].map(str::to_owned).to_vec();
    }
    command(node, report)
}
