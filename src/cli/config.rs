//! `warmd config`.

mod diff;
mod running;
mod shown;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{Socket, TRACING, output};
use crate::config::surroundings::{self, Scope};
use crate::config::{self, AgentFile, ConfigError, Environmental, MetadataConfig, Origins, Problem, Setting, Severity};
use crate::serve::serving::ServeConfig;

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Check a file, the environment, and what they need of this machine, without starting anything
    Check {
        role: Role,
        /// Configuration file; absent: defaults and environment
        file: Option<PathBuf>,
        /// Look at the file alone, and not for files, ports and the collector that it names
        #[arg(long)]
        file_only: bool,
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration that would be used
    Show {
        role: Role,
        file: Option<PathBuf>,
        /// And for each value what says it: a flag counts more than a variable, that more than the file, that more than the
        /// default
        #[arg(long)]
        origin: bool,
        #[arg(long)]
        json: bool,
    },
    /// Print a file with every key at its default, and what each is for
    Example { role: Role },
    /// What differs between two files, or between a file and the role that runs by it
    Diff {
        role: Role,
        a: PathBuf,
        /// Absent: the role that runs. An agent is asked over --socket, `serve` over the socket of its admin API, a metadata
        /// server over its page, as the file says where these are
        b: Option<PathBuf>,
        #[command(flatten)]
        socket: Socket,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Agent,
    Metadata,
    Serve,
    /// `warmd exec` and other commands of a pod: they read no file, and of the environment what traces need
    Hook,
}

/// A role's configuration without its type.
struct Read {
    table: toml::Table,
    text: String,
    origins: Origins,
    lacks: Vec<Problem>,
}

impl Config {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check { role, file, file_only, json } => return check(role, file.as_deref(), file_only, json).await,
            Self::Show { role, file, origin, json } => shown::print(&read(role, file.as_deref(), None)?, origin, json)?,
            Self::Example { role } => output::line(example(role))?,
            Self::Diff { role, a, b, socket, json } => return diff::run(role, &a, b.as_deref(), &socket, json).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// With what it lacks on this machine, if that is looked for.
fn read(role: Role, file: Option<&Path>, scope: Option<Scope>) -> Result<Read, ConfigError> {
    fn erased<T: config::ConfigFile>(
        file: Option<&Path>,
        settings: Vec<Setting>,
        lacks: impl FnOnce(&T) -> Vec<Problem>,
    ) -> Result<Read, ConfigError> {
        let config::Loaded { config, origins } = config::read::<T>(file, settings)?;
        let lacks = lacks(&config).into_iter().map(|problem| problem.placed(&origins)).collect();
        Ok(Read { table: config::table(&config), text: config::render(&config), origins, lacks })
    }
    let lacking = |look: &dyn Fn(Scope) -> Vec<Problem>| scope.map(look).unwrap_or_default();
    let settings = settings(role);
    match role {
        Role::Agent => {
            erased::<AgentFile>(file, settings, |config| lacking(&|scope| surroundings::agent(config, scope)))
        }
        Role::Metadata => {
            erased::<MetadataConfig>(file, settings, |config| lacking(&|scope| surroundings::metadata(config, scope)))
        }
        Role::Serve => {
            erased::<ServeConfig>(file, settings, |config| lacking(&|scope| surroundings::serve(config, scope)))
        }
        Role::Hook => {
            erased::<Environmental>(file, settings, |config| lacking(&|scope| surroundings::hook(config, scope)))
        }
    }
}

/// What the role takes from the environment.
fn settings(role: Role) -> Vec<Setting> {
    let variables = std::env::vars().filter(|(name, _)| role != Role::Hook || name.starts_with(TRACING));
    let not_keys = if role == Role::Serve { &super::serve::FLAGS[..] } else { &[] };
    config::settings(variables, [], not_keys)
}

/// Code 1 if something is wrong that a start would fail by.
async fn check(role: Role, file: Option<&Path>, file_only: bool, json: bool) -> anyhow::Result<ExitCode> {
    let problems = match read(role, file, (!file_only).then_some(Scope::All)) {
        Ok(Read { mut lacks, table, .. }) => {
            if role == Role::Agent {
                running::excuse(&mut lacks, &table).await;
            }
            lacks
        }
        Err(ConfigError::Wrong(problems)) => problems.0,
        Err(error) if !json => return Err(error.into()),
        Err(error) => {
            output::json(&json!({ "ok": false, "error": error.to_string(), "problems": [] }))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let is_ok = problems.iter().all(|problem| problem.severity != Severity::Error);
    if json {
        output::json(&json!({ "ok": is_ok, "problems": problems }))?;
    } else {
        for problem in &problems {
            let severity = match problem.severity {
                Severity::Note => "note: ",
                Severity::Warning => "warning: ",
                Severity::Error => "",
            };
            output::line(output::plain(&format!("{severity}{problem}")))?;
        }
        if is_ok {
            output::line("ok")?;
        }
    }
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn example(role: Role) -> &'static str {
    match role {
        Role::Agent => include_str!("config/agent.toml"),
        Role::Metadata => include_str!("config/metadata.toml"),
        Role::Serve => include_str!("config/serve.toml"),
        Role::Hook => include_str!("config/hook.toml"),
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
    fn every_key_of_an_example_says_what_it_is_for() {
        let is_prose = |line: &str| line.starts_with("# ") && uncommented(line).starts_with('#');
        for role in [Role::Agent, Role::Metadata, Role::Serve, Role::Hook] {
            let lines: Vec<&str> = example(role).lines().collect();
            for pair in lines.windows(2) {
                let bare = uncommented(pair[1]);
                let is_key = !bare.starts_with('#') && bare.contains(" = ");
                assert!(!is_key || is_prose(pair[0]), "{role:?}: `{}` has no word of what it is for", pair[1]);
            }
        }
    }

    #[test]
    fn examples_have_every_key_at_its_default_and_only_keys_that_there_are() {
        is_whole::<AgentFile>(Role::Agent);
        is_whole::<MetadataConfig>(Role::Metadata);
        is_whole::<ServeConfig>(Role::Serve);
        is_whole::<Environmental>(Role::Hook);
    }
}
