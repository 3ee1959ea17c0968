//! baofs serves the secrets of an `OpenBao` server as files from locked memory and supervises the
//! application. The page here is for developers; README is for users.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | secret | an entry of the configuration: the content of one file |
//! | query | one distinct read at the server; several files may share its answer |
//! | lease, token | as `OpenBao` names them; both *expire*, are *renewed* and *revoked*, and are replaced by a *successor* |
//! | version | the immutable bytes of one file under one node id |
//! | generation | the number of a publication; all files of one publication carry the number and become visible together (*flip*) |
//! | publish | make a generation visible; *announce*: send inotify events to watchers; *notify*: tell the application (signal, command, restart) |
//! | arena | the locked memory that the processes share |
//! | role | one of the agent's processes: supervise, fetch, serve |
//! | checkpoint | the state that the successor of a role resumes from, saved in the arena |
//! | in doubt | the sender of a request died before the answer came, so the effect of the request is unknown (as an in-doubt transaction) |
//! | backend | the filesystem that shows the files: FUSE or a tmpfs |
//!
//! # Three processes, one binary
//!
//! ```text
//! argv -- cli -- main --> supervise   PID 1, one thread: signals, every fork, the mounts, exit codes; reads no secret
//!                          | forks (no exec)
//!                          |-> fetch   OpenBao, leases, rendering; no /dev/fuse, no capability
//!                          |-> serve   answers the kernel from the arena; no network, never waits, no capability
//!                          |-> app     its own user, process group, clean environment, walls of a container without SYS_ADMIN
//!                          '-> guard   only outside a container: cleans up if supervise is killed; no secret, no input
//! ```
//!
//! The process that answers the kernel must not hang or die, so `serve` has no other task. The
//! process that parses network input must not be able to hurt `serve`. No process may touch a
//! filesystem that the same process answers, because a thread that waits for its own process cannot
//! be killed; so `fetch` announces the files that `serve` serves. On a tmpfs there is no `serve`.
//!
//! # A role may be taken over
//!
//! A forked role drops all capabilities and then restricts files and TCP ports (Landlock) and system
//! calls (seccomp), before the role starts a thread or reads untrusted input.
//! `supervise::walls` has the remaining rights as one table of directories and one of system calls.
//! A role starts with every restriction that the kernel supports, or not at all; the status report
//! names the restrictions.
//!
//! # A role may die
//!
//! Supervise forks a successor at once, and with a delay after repeated crashes
//! ([`supervise::restart`]). All state for a successor is in the arena. `serve` adopts the session
//! with the kernel under the same mount ([`fuse::session`]). `fetch` resumes schedule, tokens and
//! pending notifications from a checkpoint in the arena, which is saved before each request is sent.
//! If a request for a credential is in doubt, the token of the request is revoked, with the
//! credential, and replaced.
//!
//! A hanging role is killed and then handled as a dead role ([`supervise::watchdog`]). `fetch` must
//! answer a ping of supervise; `serve` waits only for the kernel, so supervise reads the operation
//! counters of `serve` in the arena instead. At the end supervise kills all roles and aborts the
//! mount before waiting for a process, and every wait has a time limit.
//!
//! # The way of the data
//!
//! ```text
//! config: text -> raw -> check -> Plan
//! OpenBao <- bao <- lease (when) ... replies -> render (all or nothing) -> fetch: publish
//!      FUSE:  snapshot::Publisher: bytes into the arena, one store flips every file of the change
//!             serve: arena -> snapshot::Reader -> fuse::tree -> fuse::adapter -> the kernel
//!             fuse::announce: create, rename, truncate, close on the private mount = real inotify events
//!      tmpfs: tmpfs::Writer: a new generation, one rename of `..data` flips every file of the change
//! then supervise notifies the application: signal, command or restart
//! ```
//!
//! # Layers
//!
//! A module uses only modules of lower layers (`tests/tidy.rs` checks the layers); `unsafe` is only
//! in `sys` and `memory`.
//!
//! | layer | module | task |
//! |---|---|---|
//! | 0 | [`sys`] | thin safe wrappers over libc |
//! | 0 | [`names`], [`clock`], [`exit`] | ids and checked names; time and chance as arguments; the table of exit codes |
//! | 0 | [`shown`] | foreign texts, cut and cleaned for logs, reports and terminals |
//! | 1 | [`memory`] | locked pages, the wiping allocator, processes that cannot be dumped |
//! | 1 | [`observe`] | one closed set of log events, written without blocking |
//! | 2 | [`template`] | the template language, pure |
//! | 3 | [`config`] | text to `Plan`; reports every problem with a position |
//! | 4 | [`snapshot`] | the arena, and versions of files in it: one publisher, many readers |
//! | 4 | [`lease`] | the schedule of requests, as a pure state machine |
//! | 4 | [`status`] | the report of `fetch` about login and secrets, and the report as a table |
//! | 4 | [`link`] | messages between supervise and a role |
//! | 5 | [`bao`] | the HTTP client; no other module has HTTP or the token |
//! | 5 | [`render`] | replies to bytes of files |
//! | 5 | [`fuse`] | mount, tree, kernel adapter, announcements |
//! | 5 | [`health`] | locates the report, probes the application, judges both |
//! | 5 | [`tmpfs`] | proves that a directory is memory, writes generations atomically, removes them |
//! | 6 | [`fetch`], [`serve`] | the roles: the client of the server, and the answers to the kernel |
//! | 7 | [`supervise`] | the parent: forks the roles, and their successors when they die |
//! | 8 | [`cli`] | argv to exit code |

#![cfg_attr(
    test,
    allow(
        clippy::too_many_lines,
        reason = "a test's table has as many lines as rows"
    )
)]

pub mod bao;
pub mod cli;
pub mod clock;
pub mod config;
pub mod exit;
pub mod fetch;
pub mod fuse;
pub mod health;
pub mod lease;
pub mod link;
pub mod memory;
pub mod names;
pub mod observe;
pub mod render;
pub mod serve;
pub mod shown;
pub mod snapshot;
pub mod status;
pub mod supervise;
pub mod sys;
pub mod template;
pub mod tmpfs;
