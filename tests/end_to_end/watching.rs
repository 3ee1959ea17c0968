//! What the application's user sees: real events through the read-only mount, files of its own that
//! nobody else may read.

use crate::rig::agent::{Agent, MOUNT, USER};
use crate::rig::process::{Captured, Kept, outcome};
use crate::rig::server::{Scene, Tenant};
use crate::rig::{World, wait_until};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

in_each_world!(
    inotifywait_and_watchdog_see_a_rotation,
    files_are_the_users_alone
);

/// Prints each event, and the file's text after it.
const WATCHDOG: &str = "
import os, signal
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
class Print(FileSystemEventHandler):
    def on_any_event(self, event):
        names = [os.path.basename(path) for path in (event.src_path, getattr(event, 'dest_path', '')) if path]
        print(event.event_type, *names, flush=True)
        print('text', open('/app/secrets/note').read(), flush=True)
observer = Observer()
observer.schedule(Print(), '/app/secrets')
observer.start()
print('watching', flush=True)
signal.pause()
";

fn start(world: World, name: &str) -> (Tenant, Agent) {
    let (tenant, setup) = Scene::real(world).usual(name);
    let agent = setup
        .options(&["--user", &format!("{USER}:{USER}")])
        .started();
    (tenant, agent)
}

/// A watcher in the room as the application's user, and all that it prints.
fn watch(agent: &Agent, command: &[&str]) -> (Kept, Captured) {
    let words = [&["sh", "-c", "exec \"$@\" 2>&1", "sh"], command].concat();
    let enter = agent.enter(USER, &words);
    let mut watcher = Kept::start(&[], |it| {
        it.arg(enter.get_program())
            .args(enter.get_args())
            .stdout(Stdio::piped());
    });
    let output = watcher.child().stdout.take().expect("it was asked for");
    (watcher, Captured::of(output))
}

fn has(output: &Captured, line: &str) -> Option<()> {
    output
        .text()
        .lines()
        .any(|it| it.contains(line))
        .then_some(())
}

fn inotifywait_and_watchdog_see_a_rotation(world: World) {
    let (tenant, agent) = start(world, "watched");
    let (inotifywait, events) = watch(
        &agent,
        &["inotifywait", "--monitor", "--format", "%e %f", MOUNT],
    );
    wait_until("inotifywait watches", || {
        has(&events, "Watches established.")
    });
    let (python_process, python) = watch(&agent, &["/usr/bin/python3", "-c", WATCHDOG]);
    wait_until("watchdog watches", || has(&python, "watching"));

    tenant.put("note", json!({ "text": "new" }));
    let (event, moved) = match world {
        World::Fuse => ("MOVED_TO note", "note"),
        World::Tmpfs => ("MOVED_TO ..data", "..data"),
    };
    wait_until(&format!("inotifywait prints {event}"), || {
        has(&events, event)
    });
    wait_until("watchdog sees the rename", || {
        python
            .text()
            .lines()
            .any(|it| it.starts_with("moved") && it.ends_with(moved))
            .then_some(())
    });
    wait_until("the text read after the event is new", || {
        has(&python, "text new")
    });
    // Python may be in the middle of a line.
    let text = python.text();
    let (lines, _) = text.rsplit_once('\n').expect("a line was seen");
    let whole = |line: &str| matches!(line.strip_prefix("text "), None | Some("old" | "new"));
    assert!(lines.lines().all(whole), "{text}");
    drop((inotifywait, python_process));
    assert_eq!(agent.stop().code, 0);
}

fn files_are_the_users_alone(world: World) {
    let (_tenant, agent) = start(world, "owned");
    for name in ["user", "password", "note"] {
        let meta = std::fs::metadata(agent.path(MOUNT).join(name)).expect("it is served");
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (USER, USER, 0o400),
            "{name}"
        );
    }
    let path = format!("{MOUNT}/note");
    assert_eq!(
        outcome(&mut agent.enter(USER, &["cat", &path])).stdout,
        b"old"
    );
    assert!(
        !outcome(&mut agent.enter(USER + 1, &["cat", &path]))
            .status
            .success(),
        "another user can read it"
    );
    for change in [
        format!("echo x > {path}"),
        format!("rm {path}"),
        format!("touch {MOUNT}/new"),
        format!("mv {path} {MOUNT}/new"),
    ] {
        let refused = outcome(&mut agent.enter(USER, &["sh", "-c", &change]));
        assert!(!refused.status.success(), "`{change}` was allowed");
    }
    assert_eq!(agent.stop().code, 0);
}
