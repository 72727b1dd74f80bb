//! The file of `warmd agent`. In a pod that is everything in one it also has what `warmd serve` would be told: `[engine]`
//! what stands on its command line, `[serve]` what stands in its file.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

use crate::agent::AgentConfig;
use crate::serve::serving::ServeConfig;
use crate::web::WebSection;

/// The configuration file of `warmd agent`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AgentFile {
    #[serde(flatten)]
    pub agent: AgentConfig,
    /// Present in a pod that is everything in one.
    #[serde(flatten)]
    pub served: Option<ServedEngine>,
    /// The page of this node.
    pub web: WebSection,
}

/// An engine that the agent's own process starts and serves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServedEngine {
    pub engine: EngineSection,
    /// Its `log` is the agent's, and cannot be said here.
    #[serde(serialize_with = "without_log")]
    pub serve: ServeConfig,
}

/// `[engine]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSection {
    /// Program and arguments, such as `["vllm", "serve", "MODEL"]`.
    pub command: Vec<String>,
    /// Directory below which all caches are, unless the environment says where. Absent: vLLM's own.
    pub cache_root: Option<PathBuf>,
    /// Python interpreter that runs the engine. Absent: the one that the command names.
    pub python: Option<PathBuf>,
    /// Digest of the image that this runs in.
    pub image_digest: Option<String>,
    /// Time for everything before the engine. 30 s.
    #[serde(with = "humantime_serde")]
    pub budget: Duration,
    /// Bytes that stay free on the file systems of caches and adapters. 1 GiB.
    pub reserve_bytes: u64,
    /// Whether what the engine adds to its caches is published. True.
    pub publish: bool,
    /// It is, once nothing was written to the caches for this long. 5 s.
    #[serde(with = "humantime_serde")]
    pub quiet: Duration,
}

impl Default for EngineSection {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            cache_root: None,
            python: None,
            image_digest: None,
            budget: Duration::from_secs(30),
            reserve_bytes: 1 << 30,
            publish: true,
            quiet: Duration::from_secs(5),
        }
    }
}

const ENGINE: &str = "engine";
const SERVE: &str = "serve";
const LOG: &str = "log";
const WEB: &str = "web";

impl<'de> Deserialize<'de> for AgentFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut file = Table::deserialize(deserializer)?;
        let (engine, serve) = (file.remove(ENGINE), file.remove(SERVE));
        let web = file.remove(WEB).map(|web| section(WEB, web)).transpose()?.unwrap_or_default();
        let agent = Value::Table(file).try_into().map_err(|error| D::Error::custom(plain(&error)))?;
        let served = match (engine, serve) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(D::Error::custom("[serve] without an engine: say its `command` in [engine]"));
            }
            (Some(engine), serve) => {
                let (engine, serve) = (section(ENGINE, engine)?, serve.unwrap_or_else(|| Value::Table(Table::new())));
                Some(ServedEngine::new(engine, serve)?)
            }
        };
        Ok(Self { agent, served, web })
    }
}

impl ServedEngine {
    fn new<E: Error>(engine: EngineSection, serve: Value) -> Result<Self, E> {
        if engine.command.is_empty() {
            return Err(E::custom("[engine]: say the `command`, such as [\"vllm\", \"serve\", \"MODEL\"]"));
        }
        if serve.get(LOG).is_some() {
            return Err(E::custom("[serve]: there is one log in a process: say how it is in [log]"));
        }
        Ok(Self { engine, serve: section(SERVE, serve)? })
    }
}

fn section<T: DeserializeOwned, E: Error>(name: &str, value: Value) -> Result<T, E> {
    value.try_into().map_err(|error| E::custom(format!("[{name}]: {}", plain(&error))))
}

/// On one line, as part of another error.
fn plain(error: &toml::de::Error) -> String {
    error.to_string().trim().replace('\n', " ")
}

fn without_log<S: Serializer>(serve: &ServeConfig, serializer: S) -> Result<S::Ok, S::Error> {
    let mut table = Table::try_from(serve).map_err(S::Error::custom)?;
    table.remove(LOG);
    Value::Table(table).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, ConfigError};

    fn with(text: &str, variables: &[(&str, &str)]) -> Result<AgentFile, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        config::load(Some(file.path()), variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    const ALL_IN_ONE: &str = "state_dir = \"/s\"\n[engine]\ncommand = [\"vllm\", \"serve\", \"m\"]\n\
                              [serve]\nlisten = \"0.0.0.0:80\"\n[serve.engine.adapters]\nmax_loras = 2\n";

    #[test]
    fn an_agent_alone_has_no_engine_and_all_in_one_has_what_serve_is_told() {
        let alone = with("state_dir = \"/s\"\n", &[]).unwrap();
        assert_eq!((alone.agent.state_dir.to_str(), alone.served), (Some("/s"), None));
        let file = with(ALL_IN_ONE, &[]).unwrap();
        let ServedEngine { engine, serve } = file.served.unwrap();
        assert_eq!((engine.command.len(), engine.budget), (3, EngineSection::default().budget));
        assert_eq!(serve.listen, Some(([0, 0, 0, 0], 80).into()));
        assert_eq!(serve.engine.adapters.unwrap().max_loras, 2);
        assert_eq!(file.agent, alone.agent);
    }

    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        for text in ["", ALL_IN_ONE] {
            let file = with(text, &[]).unwrap();
            let shown = config::render(&file);
            assert_eq!(with(&shown, &[]).unwrap(), file, "{shown}");
        }
    }

    #[test]
    fn sections_that_the_file_has_are_overridden_by_the_environment() {
        let file = with(ALL_IN_ONE, &[("WARMD_ENGINE_BUDGET", "1m"), ("WARMD_SERVE_DRAIN_DEADLINE", "9s")]).unwrap();
        let served = file.served.unwrap();
        assert_eq!((served.engine.budget.as_secs(), served.serve.drain_deadline.as_secs()), (60, 9));
    }

    #[test]
    fn what_has_no_effect_or_no_meaning_is_refused_with_the_way_out() {
        let table = [
            ("[serve]\nlisten = \"0.0.0.0:80\"\n".to_owned(), "`command` in [engine]"),
            ("[engine]\nbudget = \"1s\"\n".to_owned(), "`command`"),
            (format!("{ALL_IN_ONE}[serve.log]\nlevel = \"info\"\n"), "in [log]"),
            (format!("{ALL_IN_ONE}[serve.metrics]\nlissen = \"x\"\n"), "lissen"),
            ("lissen = 1\n".to_owned(), "lissen"),
            ("[web]\nlissen = 1\n".to_owned(), "[web]: unknown field `lissen`"),
            ("[engine]\ncommand = [\"v\"]\nlissen = 1\n".to_owned(), "[engine]: unknown field `lissen`"),
        ];
        for (text, expected) in table {
            let refused = with(&text, &[]).unwrap_err();
            assert!(matches!(refused, ConfigError::Content { .. }));
            let told = refused.to_string();
            assert!(told.contains(expected), "{text}: {told}");
        }
    }
}
