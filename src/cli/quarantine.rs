//! `warmd quarantine`: what is not installed on this node, because engines crashed with it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::chosen::Chosen;
use super::output;
use crate::caches::{Directories, Environment};
use crate::serve::quarantine::{self, Quarantined};

#[derive(Debug, Subcommand)]
pub(super) enum Quarantine {
    /// Artifacts in quarantine, and why
    Ls(Ls),
    /// Let an artifact be installed again, from a minute on
    Clear(Clear),
}

#[derive(Debug, Args)]
pub(super) struct Root {
    /// Directory below which the caches are, as given to `warmd exec`; absent: vLLM's own
    #[arg(long, env = "WARMD_CACHE_ROOT", value_name = "DIR")]
    cache_root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    root: Root,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Clear {
    #[command(flatten)]
    root: Root,
    /// The artifact, by its id or the beginning of it
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    artifact: Option<Chosen>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl Quarantine {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Ls(command) => command.run(),
            Self::Clear(command) => command.run(),
        }
    }
}

impl Root {
    fn path(&self) -> anyhow::Result<PathBuf> {
        let chosen = Directories::choose(self.cache_root.as_deref(), &Environment::of_this_process());
        Ok(chosen.context("--cache-root")?.root().to_owned())
    }
}

impl Ls {
    fn run(self) -> anyhow::Result<ExitCode> {
        let quarantine = quarantine::Quarantine::load(&self.root.path()?)?;
        if self.json {
            output::json(&quarantine.list())?;
            return Ok(ExitCode::SUCCESS);
        }
        let head = ["ARTIFACT", "FAMILY", "SUBJECT", "GEN", "SIGNER", "SINCE", "REASON"];
        let rows = std::iter::once(head.map(str::to_owned).to_vec()).chain(quarantine.list().iter().map(row));
        output::table(&rows.collect::<Vec<_>>())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn row(quarantined: &Quarantined) -> Vec<String> {
    let release = &quarantined.release;
    vec![
        release.artifact.to_string(),
        release.family.clone(),
        if release.subject.is_empty() { "-".to_owned() } else { release.subject.clone() },
        release.generation.to_string(),
        release.signers.join(", "),
        quarantined.since.to_string(),
        quarantined.reason.clone(),
    ]
}

impl Clear {
    fn run(self) -> anyhow::Result<ExitCode> {
        let root = self.root.path()?;
        let artifact = match &self.artifact {
            Some(artifact) => {
                let quarantine = quarantine::Quarantine::load(&root)?;
                let here = quarantine.list().iter().map(|quarantined| quarantined.release.artifact);
                Some(artifact.among(here, &format!("`warmd quarantine ls --cache-root {}`", root.display()))?)
            }
            None => None,
        };
        let cleared = quarantine::Quarantine::clear(&root, artifact.as_ref())?;
        if let (true, Some(artifact)) = (cleared.is_empty(), &artifact) {
            anyhow::bail!("artifact {artifact} is not in quarantine below {}", root.display());
        }
        for Quarantined { release, .. } in &cleared {
            output::line(format!("{} ({}) may be installed again", release.artifact, release.family))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
