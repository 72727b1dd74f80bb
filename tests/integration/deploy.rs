//! The examples in `deploy/` are what the program reads and how it is called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Parser;
use toml::{Table, Value};
use warmd::caches::{Directories, Environment};
use warmd::cli::Cli;
use warmd::config::{self, AgentFile, ConfigError, ConfigFile, MetadataConfig};
use warmd::serve::serving::ServeConfig;

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
fn loads_whole<T: ConfigFile>(name: &str) {
    let text = std::fs::read_to_string(example(name)).unwrap();
    let loaded: T = config::load(Some(&example(name)), config::settings([], [], &[])).unwrap();
    let arrived: Table = config::render(&loaded).parse().unwrap();
    let set: Table = text.parse().unwrap();
    let missing: Vec<String> = keys(&set).difference(&keys(&arrived)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new(), "{name} sets keys that have no effect");

    let spoilt = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(spoilt.path(), format!("{text}\nmisspelt = 1\n")).unwrap();
    let refused = config::load::<T>(Some(spoilt.path()), config::settings([], [], &[])).err();
    assert!(matches!(&refused, Some(ConfigError::Wrong(_))), "{name}: {refused:?}");
    assert!(refused.unwrap().to_string().contains("misspelt"));
}

#[test]
fn the_examples_of_agents_are_loaded_and_a_misspelt_key_in_them_is_refused() {
    loads_whole::<AgentFile>("agent.toml");
    loads_whole::<AgentFile>("all-in-one.toml");
}

#[test]
fn the_example_of_a_metadata_server_is_loaded_and_a_misspelt_key_in_it_is_refused() {
    loads_whole::<MetadataConfig>("metadata.toml");
}

#[test]
fn the_example_of_a_server_is_loaded_and_a_misspelt_key_in_it_is_refused() {
    loads_whole::<ServeConfig>("serve.toml");
}

/// What of `warmd` an example runs, word by word: commands stand on one line.
fn commands(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(example(name)).unwrap();
    let command = |line: &str| {
        let line = line.trim();
        if let Some(words) = line.strip_prefix("command: ") {
            return Some(serde_json::from_str(words).unwrap());
        }
        let words = line.strip_prefix("ExecStart=")?;
        Some(words.split(' ').map(str::to_owned).collect())
    };
    let commands = text.lines().filter_map(command);
    commands.filter(|words: &Vec<String>| words[0].ends_with("/warmd")).collect()
}

#[test]
fn the_examples_of_pods_and_units_run_commands_that_there_are() {
    for (name, expected) in [
        ("pod-exec.yaml", &["exec"][..]),
        ("pod-serve.yaml", &["serve"]),
        ("pod-all-in-one.yaml", &["agent"]),
        ("pod-hooks.yaml", &["warm", "publish"]),
        ("vllm.service", &["exec"]),
    ] {
        let commands = commands(name);
        let subcommands: Vec<&str> = commands.iter().map(|words| words[1].as_str()).collect();
        assert_eq!(subcommands, expected, "{name}");
        for words in &commands {
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{name}: {words:?}: {error}");
            }
        }
    }
}

#[test]
fn a_pod_without_exec_is_given_the_directories_that_exec_would_set() {
    let text = std::fs::read_to_string(example("pod-hooks.yaml")).unwrap();
    let data = text.split_once("\ndata:\n").unwrap().1.split_once("\n---\n").unwrap().0;
    let mut set: BTreeMap<&str, &str> = data.lines().map(|line| line.trim().split_once(": ").unwrap()).collect();
    let root = set.remove("WARMD_CACHE_ROOT").unwrap();
    let chosen = Directories::choose(Some(Path::new(root)), &Environment::default()).unwrap();
    let chosen: BTreeMap<&str, &str> = chosen.changes().iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(set, chosen);
}
