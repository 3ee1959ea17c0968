//! baofs serves the secrets of an `OpenBao` server as files from locked memory and supervises the
//! application that reads them. This page is the plan of the house; README is for users.
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
//! The process that answers the kernel must not hang or die, so it does nothing else; the one that
//! parses the network must not be able to hurt it; and no process may touch a filesystem that it
//! answers itself (a thread that waits for its own process cannot be killed), so `fetch` announces
//! what `serve` answers. On a tmpfs there is no `serve`.
//!
//! # Any role may be taken over
//!
//! A forked role gives up its capabilities, then files, TCP ports, signals (Landlock) and system
//! calls (seccomp), before its first thread starts and its first hostile byte comes:
//! `supervise::walls` says what is left, as a table of directories and one of calls. A role works
//! behind all the walls that the kernel has, or not at all; the report names them.
//!
//! # Any role may die
//!
//! Supervise forks a successor at once ([`supervise::restart`] says when, if it happens again and
//! again). What a role needs to go on is not in the role: `serve` has no state but the arena, and
//! adopts the session with the kernel under the same mount ([`fuse::session`]); `fetch` finds its
//! schedule, its tokens and what it owes in a journal in the arena, written before each request is
//! sent. What an unheard answer may have minted dies with the token that it was minted under, which
//! is replaced.
//!
//! A role that hangs is killed, and so becomes one that died ([`supervise::watchdog`]). `fetch` has
//! to answer a question of supervise; `serve` waits for the kernel alone, so it is asked nothing:
//! it counts its operations in the arena. At the end all roles are killed and the mount is aborted
//! before anybody is waited for, and nobody is waited for without a bound.
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
//! then supervise is told, and tells the application: signal, command or restart
//! ```
//!
//! # Layers
//!
//! A module uses only modules of lower layers (`tests/tidy.rs` keeps that true); `unsafe` is only
//! in `sys` and `memory`.
//!
//! | layer | module | its one job |
//! |---|---|---|
//! | 0 | [`sys`] | thin safe wrappers over libc |
//! | 0 | [`names`], [`clock`], [`exit`] | words valid by construction; time and chance as arguments; every exit code once |
//! | 0 | [`shown`] | texts that others wrote, cut and cleaned for logs, reports and terminals |
//! | 1 | [`memory`] | the arena of locked pages, the wiping allocator, processes that cannot be dumped |
//! | 1 | [`observe`] | one closed set of events, written without ever blocking |
//! | 2 | [`template`] | the template language, pure |
//! | 3 | [`config`] | text to `Plan`, every problem at once with its position |
//! | 4 | [`snapshot`] | versions of files in the arena: one publisher, many readers |
//! | 4 | [`lease`] | when to ask the server for what: a pure machine |
//! | 4 | [`link`] | messages between supervise and a role |
//! | 5 | [`bao`] | the only HTTP, the only token |
//! | 5 | [`render`] | replies to bytes of files |
//! | 5 | [`fuse`] | mount, tree, kernel adapter, announcements |
//! | 5 | [`status`] | what `fetch` says of itself and its secrets, and the verdict of a health check |
//! | 5 | [`tmpfs`] | proof that it is memory, a generation written atomically, removal |
//! | 6 | [`fetch`], [`serve`] | the roles: one talks to the server, one answers the kernel |
//! | 7 | [`supervise`] | the parent: it forks the roles, again when they die, and so knows them |
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
