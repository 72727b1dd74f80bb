//! `warmd config`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use super::output;
use crate::config::{self, AgentFile, MetadataConfig};
use crate::serve::serving::ServeConfig;

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Check a file and the environment without starting anything
    Check {
        role: Role,
        /// Configuration file; absent: defaults and environment
        file: Option<PathBuf>,
    },
    /// Print the configuration that would be used
    Show { role: Role, file: Option<PathBuf> },
    /// Print a file with every key at its default
    Example { role: Role },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Role {
    Agent,
    Metadata,
    Serve,
}

impl Config {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check { role, file } => {
                render(role, file)?;
                output::line("ok")?;
            }
            Self::Show { role, file } => output::line(render(role, file)?)?,
            Self::Example { role: Role::Agent } => output::line(config::render(&AgentConfig::default()))?,
            Self::Example { role: Role::Metadata } => output::line(config::render(&MetadataConfig::default()))?,
            Self::Example { role: Role::Serve } => output::line(config::render(&ServeConfig::default()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn render(role: Role, file: Option<PathBuf>) -> anyhow::Result<String> {
    let file = file.as_deref();
    Ok(match role {
        Role::Agent => config::render(&config::load::<AgentFile>(file, std::env::vars())?),
        Role::Metadata => config::render(&config::load::<MetadataConfig>(file, std::env::vars())?),
        Role::Serve => config::render(&config::load::<ServeConfig>(file, std::env::vars())?),
    })
}
