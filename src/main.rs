//! The binary: the library's entry behind an allocator that wipes what it frees.

use baofs::memory::alloc::Wiping;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

fn main() -> ExitCode {
    ExitCode::from(baofs::cli::run(std::env::args_os()))
}
