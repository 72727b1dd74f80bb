//! One TOML file a role, overridden by the environment and the command line. Every part owns its section; here they are
//! read, merged and checked.
//!
//! `WARMD_SECTION_KEY` overrides `key` of `[section]`, `WARMD_KEY` a key outside of sections; a flag counts more than both.
//! A value is read as TOML, or as plain text if that fails. All that is wrong is told at once, with the place where it is
//! said: unknown keys and wrong values (`form`), and what cannot be meant (`rules`). What the machine lacks is not the
//! file's fault, and is looked for by [`surroundings`].

mod agent;
pub mod difference;
mod form;
mod metadata;
mod origin;
mod overrides;
mod problem;
pub mod reload;
mod rules;
pub mod surroundings;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use self::agent::{AgentFile, EngineSection, ServedEngine};
pub use self::form::Malformed;
pub use self::metadata::{MetadataConfig, ServerSection, ServerTrust};
pub use self::origin::{Origin, Origins};
pub use self::overrides::Setting;
pub use self::problem::{Problem, Problems, Severity};
use crate::agent::AgentConfig;
use crate::serve::serving::ServeConfig;
use crate::telemetry::TracingConfig;

/// A larger file is no configuration.
const MAX_FILE: u64 = 1024 * 1024;

/// The configuration cannot be used. `Display` names the file or variable, the key and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {path} (--config, WARMD_CONFIG): it must be there, and readable for this user", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than a configuration can be", path = .0.display())]
    TooLarge(PathBuf),
    #[error("{path}:{line}: this is no TOML: {message}", path = path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{0}")]
    Wrong(Problems),
}

/// What a role reads.
pub trait ConfigFile: DeserializeOwned + Serialize + Default {
    /// Removes from the table what a file of this role cannot have, and tells of it.
    fn malformed(table: &mut Table) -> Vec<Malformed> {
        form::take::<Self>(table)
    }

    /// What it cannot mean.
    fn contradictions(&self) -> Vec<Problem>;
}

impl ConfigFile for AgentConfig {
    fn contradictions(&self) -> Vec<Problem> {
        rules::agent(self)
    }
}

impl ConfigFile for MetadataConfig {
    fn contradictions(&self) -> Vec<Problem> {
        rules::metadata(self)
    }
}

impl ConfigFile for ServeConfig {
    fn contradictions(&self) -> Vec<Problem> {
        rules::serve(self)
    }
}

/// What commands that read no file take from the environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Environmental {
    pub tracing: TracingConfig,
}

impl ConfigFile for Environmental {
    fn contradictions(&self) -> Vec<Problem> {
        rules::tracing(&self.tracing)
    }
}

/// A configuration, and what said each of its values.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    pub config: T,
    pub origins: Origins,
}

/// Reads `path` (none: all defaults) and applies `settings`: of the environment, or flags.
pub fn load<T: ConfigFile>(
    path: Option<&Path>,
    settings: impl IntoIterator<Item = impl Into<Setting>>,
) -> Result<T, ConfigError> {
    read(path, settings).map(|loaded| loaded.config)
}

/// As [`load`], with what said each value.
pub fn read<T: ConfigFile>(
    path: Option<&Path>,
    settings: impl IntoIterator<Item = impl Into<Setting>>,
) -> Result<Loaded<T>, ConfigError> {
    let (mut table, mut origins) = path.map(origin::read).transpose()?.unwrap_or_default();
    overrides::apply::<T>(&mut table, &mut origins, settings.into_iter().map(Into::into));
    let malformed = T::malformed(&mut table);
    let known = |malformed: &Malformed| Problem::error(&[&malformed.key.join(".")], &malformed.text);
    let mut problems: Vec<Problem> = malformed.iter().map(known).collect();
    let config = Value::Table(table).try_into::<T>();
    if let Ok(config) = &config {
        // What is wrong has its default there, which the others need not go with.
        let is_wrong = |key: &String| {
            let wrong = malformed.iter().map(|one| one.key.join("."));
            wrong.into_iter().any(|wrong| wrong.starts_with(key.as_str()) || key.starts_with(&wrong))
        };
        problems.extend(config.contradictions().into_iter().filter(|problem| !problem.keys.iter().any(is_wrong)));
    }
    match config {
        Ok(config) if problems.is_empty() => Ok(Loaded { config, origins }),
        Err(error) if problems.is_empty() => {
            Err(ConfigError::Wrong(Problems(vec![Problem::error(&[], error.message())])))
        }
        _ => Err(ConfigError::Wrong(Problems(problems.into_iter().map(|one| one.placed(&origins)).collect()))),
    }
}

/// The environment, with flags over it. Names of `not_keys` are other flags' variables.
pub fn settings(
    environment: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = Setting>,
    not_keys: &[&str],
) -> Vec<Setting> {
    let variables = environment.into_iter().filter(|(name, _)| !not_keys.contains(&name.as_str()));
    variables.map(Setting::from).chain(flags).collect()
}

/// The configuration as a file with every key; what `warmd config show` prints.
pub fn render<T: Serialize>(config: &T) -> String {
    toml::to_string_pretty(config).unwrap_or_else(|error| format!("# {error}\n"))
}

/// The configuration as a table, every key at its effective value.
pub fn table<T: Serialize>(config: &T) -> Table {
    Table::try_from(config).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::overrides::is_service_link;
    use super::*;
    use crate::serve::serving::ServeConfig;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        state_dir: String,
        transport: Transport,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Transport {
        listen: String,
        dial_sockets: u32,
        peers: Vec<String>,
    }

    impl ConfigFile for Sample {
        fn contradictions(&self) -> Vec<Problem> {
            Vec::new()
        }
    }

    fn with(file: &str, env: &[(&str, &str)]) -> Result<Sample, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("warmd.toml");
        std::fs::write(&path, file).unwrap();
        load(Some(&path), env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_environment_wins_over_the_file_and_is_typed() {
        let env = [
            ("WARMD_TRANSPORT_LISTEN", "0.0.0.0:1"),
            ("WARMD_TRANSPORT_DIAL_SOCKETS", "4"),
            ("WARMD_TRANSPORT_PEERS", "[\"a\", \"b\"]"),
            ("WARMD_STATE_DIR", "/s"),
            ("HOME", "/root"),
        ];
        let sample = with("[transport]\nlisten = \"x\"\n", &env).unwrap();
        let transport = Transport { listen: "0.0.0.0:1".into(), dial_sockets: 4, peers: vec!["a".into(), "b".into()] };
        assert_eq!(sample, Sample { state_dir: "/s".into(), transport });
    }

    #[test]
    fn what_kubernetes_tells_of_a_service_of_our_name_is_no_configuration() {
        let links = [
            ("WARMD_METADATA_SERVICE_HOST", "10.0.0.1"),
            ("WARMD_METADATA_SERVICE_PORT", "4781"),
            ("WARMD_METADATA_SERVICE_PORT_GRPC", "4781"),
            ("WARMD_METADATA_PORT", "tcp://10.0.0.1:4781"),
            ("WARMD_METADATA_PORT_4781_TCP", "tcp://10.0.0.1:4781"),
            ("WARMD_METADATA_PORT_4781_TCP_PROTO", "tcp"),
            ("WARMD_METADATA_PORT_4781_TCP_ADDR", "10.0.0.1"),
            ("WARMD_METADATA_PORT_4781_UDP_PORT", "4781"),
        ];
        assert_eq!(with("", &links).unwrap(), with("", &[]).unwrap());
    }

    #[test]
    fn where_a_node_stands_may_come_from_labels_of_its_node() {
        let env =
            [("WARMD_LOCALITY_ZONE", "eu-1a"), ("WARMD_LOCALITY_RACK", "12"), ("WARMD_LOCALITY_REGION", "\"eu\"")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let locality = load::<crate::agent::AgentConfig>(None, env).unwrap().locality;
        assert_eq!((locality.region.as_str(), locality.zone.as_str(), locality.rack.as_str()), ("eu", "eu-1a", "12"));
    }

    #[test]
    fn no_key_looks_like_what_kubernetes_tells() {
        let served = ServedEngine { engine: EngineSection::default(), serve: ServeConfig::default() };
        let agent = AgentFile { served: Some(served), ..AgentFile::default() };
        for config in [render(&agent), render(&MetadataConfig::default())] {
            let keys = config.lines().filter_map(|line| line.split_once(" = "));
            for (key, _) in keys {
                assert!(!is_service_link(&format!("X_{}", key.to_uppercase())), "{key}");
            }
        }
    }

    #[test]
    fn misspelt_keys_are_refused_where_they_stand_with_the_one_that_was_meant() {
        let error = with("\n[transport]\nlissen = \"x\"\n", &[]).unwrap_err().to_string();
        assert!(error.ends_with("warmd.toml:3: transport.lissen: unknown key: did you mean `listen`?"), "{error}");
        let error = with("", &[("WARMD_TRANSPORT_LISSEN", "x")]).unwrap_err().to_string();
        assert_eq!(error, "WARMD_TRANSPORT_LISSEN: transport.lissen: unknown key: did you mean `listen`?");
        let error = with("", &[("WARMD_TRANSPORT_DIAL_SOCKETS", "many")]).unwrap_err().to_string();
        assert!(error.starts_with("WARMD_TRANSPORT_DIAL_SOCKETS: transport.dial_sockets: wrong type"), "{error}");
        assert!(matches!(with("[transport", &[]), Err(ConfigError::Syntax { line: 1, .. })));
        let none = load::<Sample>(Some(Path::new("/nonexistent/warmd.toml")), Vec::<Setting>::new());
        assert!(matches!(none, Err(ConfigError::Read { .. })));
    }

    #[test]
    fn a_flag_counts_more_than_a_variable_and_that_more_than_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("warmd.toml");
        std::fs::write(&path, "state_dir = \"file\"\n[transport]\nlisten = \"file\"\ndial_sockets = 2\n").unwrap();
        let env = ["WARMD_STATE_DIR", "WARMD_TRANSPORT_LISTEN"].map(|name| (name.to_owned(), "env".to_owned()));
        let flags = [Setting::text("--listen", "WARMD_TRANSPORT_LISTEN", "flag")];
        let Loaded { config, origins } = read::<Sample>(Some(&path), settings(env, flags, &[])).unwrap();
        assert_eq!((config.state_dir.as_str(), config.transport.listen.as_str()), ("env", "flag"));
        assert_eq!(origins.of("state_dir"), Origin::Variable("WARMD_STATE_DIR".to_owned()));
        assert_eq!(origins.of("transport.listen"), Origin::Flag("--listen".to_owned()));
        assert_eq!(origins.of("transport.dial_sockets"), Origin::File { path, line: 4 });
        assert_eq!(origins.of("transport.peers"), Origin::Default);
    }
}
