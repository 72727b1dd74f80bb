//! `warmd man`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Directory for warmd.1 and a page for each subcommand; created if it is not there
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let written = || {
            std::fs::create_dir_all(&self.dir)?;
            clap_mangen::generate_to(super::Cli::command(), &self.dir)
        };
        written().with_context(|| format!("write manual pages to {}", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subcommand_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        Man { dir: dir.path().join("man1") }.run().unwrap();
        for page in ["warmd.1", "warmd-exec.1", "warmd-keys-node.1", "warmd-policy-root-init.1"] {
            let text = std::fs::read_to_string(dir.path().join("man1").join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
        }
    }
}
