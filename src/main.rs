//! The binary: runs the library with an allocator that wipes freed memory.

use baofs::memory::alloc::Wiping;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

fn main() -> ExitCode {
    ExitCode::from(baofs::cli::run(std::env::args_os()))
}
