//! The main job in one command: an embedded stand-in for OpenBao, baofs, and an application whose
//! database password rotates. Ends by itself after two rotations, or on Ctrl-C, and leaves nothing
//! behind.

#[path = "../tests/standin/mod.rs"]
mod standin;

use baofs::exit::Exit;
use baofs::memory::alloc::Wiping;
use baofs::sys::process;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Uid, pipe};
use serde_json::json;
use standin::{DatabaseRole, Role, Standin};
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<ExitCode> {
    match env::args_os().nth(1) {
        Some(directory) => app(Path::new(&directory)).map(|()| ExitCode::SUCCESS),
        None => demonstrate(),
    }
}

/// Starts the stand-in and baofs, waits for the end of the application, and prints the tokens and
/// leases that are left at the server.
fn demonstrate() -> Result<ExitCode> {
    let directory = tempfile::Builder::new()
        .prefix("baofs-quickstart-")
        .tempdir_in(place())?;
    let mount = directory.path().join("secrets");
    fs::create_dir(&mount)?;
    let (go, went) = pipe()?;
    // The fork happens before the stand-in starts a thread: only a process with one thread may fork
    // baofs.
    let arguments = arguments(directory.path(), &mount)?;
    let pid = process::fork(&[went.as_fd()], || {
        drop(File::from(go).read(&mut [0; 1]));
        baofs::cli::run(arguments)
    })?;
    let standin = prepare(directory.path())?;
    println!(
        "OpenBao    a stand-in at {}, one database role (leases of 3 s), one KV v2 secret",
        standin.url()
    );
    println!("baofs      serves {}\n", mount.display());
    File::from(went).write_all(b"!")?;
    // Ctrl-C also reaches baofs, which stops in order; the process waits for the end of baofs.
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]).thread_block()?;
    let status = waitpid(pid, None)?;
    let (tokens, leases) = standin.state().live();
    println!("\nOpenBao    {tokens} tokens and {leases} leases left alive");
    println!(
        "baofs      {} is gone: {}",
        mount.display(),
        fs::read_dir(&mount)?.next().is_none()
    );
    Ok(if matches!(status, WaitStatus::Exited(_, 0)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Software.code())
    })
}

/// A directory for the mount. For users other than root the directory is on a tmpfs, in case baofs
/// falls back; root can mount a tmpfs anywhere.
fn place() -> PathBuf {
    let own = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let candidates = own.into_iter().chain([PathBuf::from("/dev/shm")]);
    let in_memory =
        |path: &PathBuf| statfs(path).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
    candidates
        .filter(|_| !Uid::effective().is_root())
        .find(in_memory)
        .unwrap_or_else(env::temp_dir)
}

fn arguments(directory: &Path, mount: &Path) -> Result<Vec<OsString>> {
    let (config, own) = (directory.join("config.hcl"), env::current_exe()?);
    let words: [OsString; 11] = [
        "baofs".into(),
        "run".into(),
        "--config".into(),
        config.into(),
        "--mount".into(),
        mount.into(),
        "--fallback=tmpfs".into(),
        // The secrets of the stand-in are not secret.
        "--allow-swap".into(),
        "--".into(),
        own.into(),
        mount.into(),
    ];
    Ok(words.into())
}

/// Starts the server with a role and secrets, and writes the credentials and the configuration.
fn prepare(directory: &Path) -> Result<Standin> {
    let standin = Standin::start();
    {
        let mut state = standin.state();
        let allow = vec![
            "database/creds/app".to_owned(),
            "secret/data/app".to_owned(),
        ];
        state.add_role(Role {
            allow,
            ..Role::default()
        });
        let (ttl, max_ttl) = (Duration::from_secs(3), Duration::from_secs(4));
        state.database_role(
            "app",
            DatabaseRole {
                ttl,
                max_ttl,
                renewable: true,
            },
        );
        state.put("secret/app", json!({ "api_key": "k-1234" }));
    }
    fs::write(directory.join("role_id"), "role")?;
    fs::write(directory.join("secret_id"), "secret")?;
    let (address, directory) = (standin.url(), directory.display().to_string());
    let config = format!(
        r#"
vault {{
  address = "{address}"
}}
auto_auth {{
  method "approle" {{
    config = {{
      role_id_file_path   = "{directory}/role_id"
      secret_id_file_path = "{directory}/secret_id"
    }}
  }}
}}
secret "db_user" {{
  path  = "database/creds/app"
  field = "username"
}}
secret "db_password" {{
  path  = "database/creds/app"
  field = "password"
}}
secret "api_key" {{
  path  = "secret/app"
  field = "api_key"
}}
log {{
  level = "warn"
}}
"#
    );
    fs::write(Path::new(&directory).join("config.hcl"), config)?;
    Ok(standin)
}

/// An application without any code for baofs: reads files and watches the directory.
fn app(directory: &Path) -> Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let wanted = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE;
    inotify.add_watch(directory, wanted)?;
    let mut known = credential(directory)?;
    println!("app        started with {known}");
    let mut rotations = 0;
    while rotations < 2 {
        for event in inotify.read_events()? {
            let name = event.name.unwrap_or_default();
            // baofs uses names that begin with `..` while it replaces files; programs wait for the other
            // names and for `..data`.
            if name == "..data" || !name.as_encoded_bytes().starts_with(b"..") {
                let events: Vec<_> = event.mask.iter_names().map(|(event, _)| event).collect();
                println!("app        inotify {} {}", events.join(" "), name.display());
            }
        }
        let now = credential(directory)?;
        if now != known {
            known = now;
            rotations += 1;
            println!("app        rotation {rotations}: {known}");
        }
    }
    Ok(())
}

fn credential(directory: &Path) -> Result<String> {
    let read = |name| fs::read_to_string(directory.join(name));
    Ok(format!(
        "user {} password {}",
        read("db_user")?,
        read("db_password")?
    ))
}
