//! `warmd copy`: the image holds nothing but this program, so there is no `cp` for an init container to call.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::output;
use crate::durable;

#[derive(Debug, Args)]
pub(super) struct Copy {
    /// Directory that gets `warmd`; one of that name is replaced
    dir: PathBuf,
}

impl Copy {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let program = std::fs::read("/proc/self/exe").context("read this program")?;
        let path = self.dir.join("warmd");
        durable::replace(&path, &program, 0o755).with_context(|| format!("write {}", path.display()))?;
        output::line(path.display().to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_copy_is_this_program_and_can_be_run_by_everybody() {
        let dir = tempfile::tempdir().unwrap();
        Copy { dir: dir.path().to_owned() }.run().unwrap();
        let copy = dir.path().join("warmd");
        assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read("/proc/self/exe").unwrap());
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert!(Copy { dir: dir.path().join("none") }.run().is_err());
    }
}
