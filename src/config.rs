//! One TOML file a role, overridden by the environment. Every part owns its section; here they are read and merged.
//!
//! `WARMD_SECTION_KEY` overrides `key` of `[section]`, `WARMD_KEY` a key outside of sections. A value is read as TOML, or
//! as plain text if that fails. Unknown keys are refused with the place where they were found.

mod agent;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::identity::NodeConfig;
use crate::metadata::registry::Config as Limits;
use crate::metadata::{self, CompatibilityConfig, RedisConfig, Store};
use crate::telemetry::{LogConfig, MetricsSection};
use crate::web::WebSection;

pub use agent::{AgentFile, EngineSection, ServedEngine};

const PREFIX: &str = "WARMD_";

/// A larger file is no configuration.
const MAX_FILE: u64 = 1024 * 1024;

/// Environment names that belong to something else than the file.
const NOT_CONFIG: [&str; 10] = [
    "WARMD_BUDGET",
    "WARMD_CACHE_ROOT",
    "WARMD_CONFIG",
    "WARMD_FACTS_CACHE",
    "WARMD_FACTS_TIMEOUT",
    "WARMD_IMAGE_DIGEST",
    "WARMD_PYTHON",
    "WARMD_READY_TIMEOUT",
    "WARMD_READY_URL",
    "WARMD_SOCKET",
];

/// The configuration cannot be used. `Display` names the file or variable and the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than a configuration can be", path = .0.display())]
    TooLarge(PathBuf),
    #[error("{path}: {source}", path = path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{origin}: {source}")]
    Content { origin: String, source: Box<toml::de::Error> },
    #[error("{name}: `{section}` is not a section", name = name)]
    NoSection { name: String, section: String },
}

/// The configuration file of `warmd metadata`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetadataConfig {
    /// Keys and the server's database live here unless told otherwise.
    pub state_dir: PathBuf,
    /// Time from SIGTERM to the end, whatever is still going on.
    #[serde(with = "humantime_serde")]
    pub drain_deadline: Duration,
    pub node: NodeConfig,
    pub server: ServerSection,
    pub redis: RedisConfig,
    pub trust: ServerTrust,
    pub compatibility: CompatibilityConfig,
    pub web: WebSection,
    pub metrics: MetricsSection,
    pub log: LogConfig,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/warmd-metadata"),
            drain_deadline: Duration::from_secs(10),
            node: NodeConfig::default(),
            server: ServerSection::default(),
            redis: RedisConfig::default(),
            trust: ServerTrust::default(),
            compatibility: CompatibilityConfig::default(),
            web: WebSection::default(),
            metrics: MetricsSection::default(),
            log: LogConfig::default(),
        }
    }
}

impl MetadataConfig {
    pub fn server_config(&self) -> metadata::Config {
        let ServerSection { listen, data, heartbeat, lease, forget, max_nodes, max_connections, max_requests } =
            self.server.clone();
        let registry = Limits { heartbeat, lease, forget, max_nodes, ..Limits::default() };
        let store = match &self.redis.url {
            Some(url) => Store::Shared(url.clone(), self.redis.clone()),
            None => Store::File(data.unwrap_or_else(|| self.state_dir.clone())),
        };
        metadata::Config { store, registry, max_connections, max_requests, ..metadata::Config::new(listen) }
    }
}

/// `[trust]` of a metadata server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTrust {
    /// Signed root document. With it the server keeps the documents of trust that it can verify, and hands them out.
    pub root: Option<PathBuf>,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSection {
    /// TCP address that agents reach the server at.
    pub listen: SocketAddr,
    /// Directory of the database that bridges a restart. Absent: the state directory. Not used where a store is shared.
    pub data: Option<PathBuf>,
    /// How often nodes renew their leases.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long a node is offered without renewing.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long a node that is gone is remembered.
    #[serde(with = "humantime_serde")]
    pub forget: Duration,
    pub max_nodes: usize,
    pub max_connections: usize,
    /// Requests worked at together; more are told to come again.
    pub max_requests: usize,
}

impl Default for ServerSection {
    fn default() -> Self {
        let limits = Limits::default();
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4781));
        let metadata::Config { max_connections, max_requests, .. } = metadata::Config::new(listen);
        let Limits { heartbeat, lease, forget, max_nodes, .. } = limits;
        Self { listen, data: None, heartbeat, lease, forget, max_nodes, max_connections, max_requests }
    }
}

/// The environment, with command line flags in its form over it.
pub fn overridden(
    env: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    env.into_iter().chain(flags).collect()
}

/// Reads `path` (none: all defaults) and applies `env`.
pub fn load<T: DeserializeOwned + Serialize + Default>(
    path: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let mut table = path.map(read).transpose()?.unwrap_or_default();
    let file = path.map_or_else(|| "defaults".to_owned(), |path| path.display().to_string());
    // First the file alone, so that a mistake is reported where it is.
    let _: T = parse(table.clone(), &file)?;
    let known = known_to::<T>(&table);
    let is_config =
        |name: &str| name.starts_with(PREFIX) && !NOT_CONFIG.contains(&name) && !is_service_link(&name[PREFIX.len()..]);
    let mut variables: Vec<(String, String)> = env.into_iter().filter(|(name, _)| is_config(name)).collect();
    variables.sort();
    for (name, value) in &variables {
        set(&mut table, &known, name, value)?;
    }
    let origin = match variables.is_empty() {
        true => file,
        false => {
            let names: Vec<&str> = variables.iter().map(|(name, _)| name.as_str()).collect();
            format!("{file} with {}", names.join(", "))
        }
    };
    parse(table, &origin)
}

/// Kubernetes tells every pod of the services in its namespace: of one called `warmd-metadata` by names such as
/// `WARMD_METADATA_PORT_4781_TCP_ADDR` (kubernetes.io, "Service", environment variables).
fn is_service_link(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = |rest: &str| {
        let mut parts = rest.splitn(3, '_');
        let (number, protocol) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        is_number(number) && matches!(protocol, "TCP" | "UDP" | "SCTP")
    };
    name.ends_with("_PORT")
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| port(rest))
}

/// The configuration as a file with every key; what `warmd config show` prints.
pub fn render<T: Serialize>(config: &T) -> String {
    toml::to_string_pretty(config).unwrap_or_else(|error| format!("# {error}\n"))
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    if path.metadata().map_err(failed)?.len() > MAX_FILE {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    text.parse().map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })
}

fn parse<T: DeserializeOwned>(table: Table, origin: &str) -> Result<T, ConfigError> {
    Value::Table(table)
        .try_into()
        .map_err(|source| ConfigError::Content { origin: origin.to_owned(), source: Box::new(source) })
}

/// The default configuration, and the tables that only the file has.
fn known_to<T: Serialize + Default>(file: &Table) -> Table {
    let mut known = Table::try_from(T::default()).unwrap_or_default();
    for (name, value) in file.iter().filter(|(_, value)| value.is_table()) {
        known.entry(name.clone()).or_insert_with(|| value.clone());
    }
    known
}

fn set(table: &mut Table, known: &Table, name: &str, text: &str) -> Result<(), ConfigError> {
    let key = name[PREFIX.len()..].to_lowercase();
    // A key of its own may begin like a section: the longest section name wins.
    let sections = known.iter().filter(|(_, value)| value.is_table()).map(|(section, _)| section);
    let section =
        sections.filter(|section| key.starts_with(&format!("{section}_"))).max_by_key(|section| section.len());
    let before = match section {
        Some(section) => known[section].get(&key[section.len() + 1..]),
        None => known.get(&key),
    };
    let value = parse_value(text, before.is_some_and(Value::is_str));
    match section {
        Some(section) => {
            let inner = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else {
                return Err(ConfigError::NoSection { name: name.to_owned(), section: section.clone() });
            };
            inner.insert(key[section.len() + 1..].to_owned(), value);
        }
        None => {
            table.insert(key, value);
        }
    }
    Ok(())
}

/// Where a text is expected, a number is one: racks are called 12.
fn parse_value(text: &str, expects_text: bool) -> Value {
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    parsed.filter(|value| value.is_str() || !expects_text).unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

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
    fn misspelt_keys_are_refused_where_they_stand() {
        let error = with("[transport]\nlissen = \"x\"\n", &[]).unwrap_err().to_string();
        assert!(error.contains("warmd.toml") && error.contains("lissen"), "{error}");
        let error = with("", &[("WARMD_TRANSPORT_LISSEN", "x")]).unwrap_err().to_string();
        assert!(error.contains("WARMD_TRANSPORT_LISSEN") && error.contains("lissen"), "{error}");
        let error = with("", &[("WARMD_TRANSPORT_DIAL_SOCKETS", "many")]).unwrap_err().to_string();
        assert!(error.contains("WARMD_TRANSPORT_DIAL_SOCKETS"), "{error}");
        assert!(matches!(with("[transport", &[]), Err(ConfigError::Syntax { .. })));
        let none = load::<Sample>(Some(Path::new("/nonexistent/warmd.toml")), []);
        assert!(matches!(none, Err(ConfigError::Read { .. })));
    }
}
