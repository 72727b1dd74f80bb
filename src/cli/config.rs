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
    /// Print a file with every key at its default, and what each is for
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
            Self::Example { role } => output::line(example(role))?,
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

fn example(role: Role) -> &'static str {
    match role {
        Role::Agent => include_str!("config/agent.toml"),
        Role::Metadata => include_str!("config/metadata.toml"),
        Role::Serve => include_str!("config/serve.toml"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Debug;

    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use toml::{Table, Value};

    use super::*;

    /// With everything that stands behind `#` and is no prose.
    fn uncommented(text: &str) -> String {
        let is_key = |line: &str| {
            let name = line.split_once(" = ").map(|(name, _)| name);
            name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-".contains(&byte)))
        };
        let is_table = |line: &str| line.starts_with('[') && line.ends_with(']');
        let line = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if is_key(rest) || is_table(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }

    /// `section.key` of everything that there is.
    fn keys(table: &Table, prefix: &str) -> BTreeSet<String> {
        let of = |(name, value): (&String, &Value)| {
            let name = format!("{prefix}{name}");
            let inner = value.as_table().map(|inner| keys(inner, &format!("{name}."))).unwrap_or_default();
            inner.into_iter().chain([name]).collect::<Vec<_>>()
        };
        table.iter().flat_map(of).collect()
    }

    /// Its values are the defaults, its comments are what could be set, and it leaves nothing out.
    fn is_whole<T: DeserializeOwned + Serialize + Default + PartialEq + Debug>(role: Role) {
        let text = example(role);
        assert_eq!(toml::from_str::<T>(text).unwrap(), T::default(), "{role:?}");
        let all = uncommented(text);
        let set: T = toml::from_str(&all).unwrap_or_else(|error| panic!("{role:?}: {error}"));
        let shown: Table = config::render(&set).parse().unwrap();
        let default: Table = config::render(&T::default()).parse().unwrap();
        let said = keys(&all.parse().unwrap(), "");
        for (what, there_is) in [("default", keys(&default, "")), ("set", keys(&shown, ""))] {
            // Those are in an example of their own, or the same for each name.
            let is_here = |key: &&String| !key.starts_with("serve.") && !key.starts_with("limits.tenants.NAME.");
            let missing: Vec<&String> = there_is.difference(&said).filter(is_here).collect();
            assert!(missing.is_empty(), "{role:?}, {what}: {missing:?} are not in the example");
        }
    }

    #[test]
    fn examples_have_every_key_at_its_default_and_only_keys_that_there_are() {
        is_whole::<AgentFile>(Role::Agent);
        is_whole::<MetadataConfig>(Role::Metadata);
        is_whole::<ServeConfig>(Role::Serve);
    }
}
