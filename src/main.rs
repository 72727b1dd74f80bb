//! Parses the command line and runs one role.

use std::process::ExitCode;

/// Whole caches are read into short-lived buffers: the system's allocator gives their pages back and faults them in again.
/// Without transparent huge pages: a process that lives for 100 ms would clear 2 MiB wherever it touches a few bytes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = warmd::cli::parse();
    match warmd::cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            warmd::cli::report(&error);
            ExitCode::FAILURE
        }
    }
}
