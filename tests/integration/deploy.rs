//! The example configurations in `deploy/` are what the program reads.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use warmd::agent::AgentConfig;
use warmd::config::{self, ConfigError, MetadataConfig};

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// `section.key` of everything that a table sets.
fn keys(table: &Table) -> BTreeSet<String> {
    let inner = |name: &str, value: &Value| match value {
        Value::Table(section) => section.keys().map(|key| format!("{name}.{key}")).collect(),
        _ => vec![name.to_owned()],
    };
    table.iter().flat_map(|(name, value)| inner(name, value)).collect()
}

/// Loads the example and compares what it sets with what arrived; then spoils it and expects a refusal.
fn loads_whole<T: DeserializeOwned + Serialize + Default>(name: &str) {
    let text = std::fs::read_to_string(example(name)).unwrap();
    let loaded: T = config::load(Some(&example(name)), []).unwrap();
    let arrived: Table = config::render(&loaded).parse().unwrap();
    let set: Table = text.parse().unwrap();
    let missing: Vec<String> = keys(&set).difference(&keys(&arrived)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new(), "{name} sets keys that have no effect");

    let spoilt = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(spoilt.path(), format!("{text}\nmisspelt = 1\n")).unwrap();
    let refused = config::load::<T>(Some(spoilt.path()), []).err();
    assert!(matches!(&refused, Some(ConfigError::Content { .. })), "{name}: {refused:?}");
    assert!(refused.unwrap().to_string().contains("misspelt"));
}

#[test]
fn the_example_of_an_agent_is_loaded_and_a_misspelt_key_in_it_is_refused() {
    loads_whole::<AgentConfig>("agent.toml");
}

#[test]
fn the_example_of_a_metadata_server_is_loaded_and_a_misspelt_key_in_it_is_refused() {
    loads_whole::<MetadataConfig>("metadata.toml");
}
