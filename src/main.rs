//! Parses the command line and runs one role.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = warmd::cli::Cli::parse();
    match warmd::cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            warmd::cli::report(&error);
            ExitCode::FAILURE
        }
    }
}
