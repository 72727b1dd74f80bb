//! What is in `deploy/` is what the program reads and how it is called, and so are the commands of the documents.
//! `.ci/deploy` checks with the tools of others what this cannot.

mod manifests;
mod shell;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;
use toml::{Table, Value};
use warmd::caches::{Directories, Environment};
use warmd::cli::Cli;
use warmd::config::{self, AgentFile, ConfigError, ConfigFile, MetadataConfig};
use warmd::identity::PrivateKey;
use warmd::serve::serving::ServeConfig;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// Files below a directory of `deploy/` whose names end so.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut directories) = (Vec::new(), vec![deploy().join(directory)]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => found.extend(path.extension().is_some_and(|end| end == extension).then_some(path)),
            }
        }
    }
    found.sort();
    found
}

/// `section.key` of everything that a table sets.
fn keys(table: &Table) -> BTreeSet<String> {
    let inner = |name: &str, value: &Value| match value {
        Value::Table(section) => section.keys().map(|key| format!("{name}.{key}")).collect(),
        _ => vec![name.to_owned()],
    };
    table.iter().flat_map(|(name, value)| inner(name, value)).collect()
}

/// Loads the file and compares what it sets with what arrived; then spoils it and expects a refusal.
fn loads_whole<T: ConfigFile>(file: &Path) {
    let (text, name) = (std::fs::read_to_string(file).unwrap(), file.display());
    let loaded: T = config::load(Some(file), config::settings([], [], &[])).unwrap();
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
fn configurations_are_loaded_and_a_misspelt_key_in_them_is_refused() {
    let files = [files("kustomize", "toml"), files("systemd", "toml")].concat();
    assert_eq!(files.len(), 6, "{files:?}");
    for file in files {
        match file.file_name().and_then(|name| name.to_str()) {
            Some("agent.toml" | "all-in-one.toml") => loads_whole::<AgentFile>(&file),
            Some("metadata.toml") => loads_whole::<MetadataConfig>(&file),
            Some("serve.toml") => loads_whole::<ServeConfig>(&file),
            _ => panic!("whose is {}?", file.display()),
        }
    }
}

#[test]
fn units_run_commands_that_there_are() {
    for (unit, subcommand) in
        [("warmd-agent.service", "agent"), ("warmd-metadata.service", "metadata"), ("vllm.service", "exec")]
    {
        let text = std::fs::read_to_string(deploy().join("systemd").join(unit)).unwrap();
        let command = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        assert_eq!(words[..2], ["/usr/bin/warmd", subcommand], "{unit}");
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{unit}: {error}");
        }
    }
}

#[test]
fn a_pod_without_exec_is_given_the_directories_that_exec_would_set() {
    let text = std::fs::read_to_string(deploy().join("kustomize/overlays/hook-init/caches.env")).unwrap();
    let mut set: BTreeMap<&str, &str> = text.lines().map(|line| line.split_once('=').unwrap()).collect();
    let root = set.remove("WARMD_CACHE_ROOT").unwrap();
    let chosen = Directories::choose(Some(Path::new(root)), &Environment::default()).unwrap();
    let chosen: BTreeMap<&str, &str> = chosen.changes().iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(set, chosen);
}

/// What of warmd a command runs: itself, in a loop, or in a container.
fn of_warmd(mut words: &[String]) -> Option<Vec<String>> {
    while let [first, rest @ ..] = words
        && (first == "do" || first == "sudo" || first.contains('='))
    {
        words = rest;
    }
    if words.first()? == "kubectl" {
        let at = words.iter().position(|word| word == "--")?;
        words = &words[at + 1..];
    }
    let words = words.iter().filter(|word| *word != "..." && *word != "[...]");
    Some(words.cloned().collect::<Vec<_>>()).filter(|words| words.first().is_some_and(|word| word == "warmd"))
}

fn documents() -> [PathBuf; 3] {
    [deploy().with_file_name("README.md"), deploy().join("README.md"), deploy().join("guide.md")]
}

/// A text may leave out what a command needs, and has words for values; it names no command and no flag that is not there.
#[test]
fn commands_in_the_midst_of_a_text_are_ones_that_there_are() {
    let mut found = 0;
    for document in documents() {
        for span in shell::inline(&std::fs::read_to_string(&document).unwrap()) {
            let words = span.split(' ').filter(|word| *word != "...");
            let error = Cli::try_parse_from(words).err().map(|error| (error.kind(), error.to_string()));
            if let Some((ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument, error)) = error {
                panic!("{}: `{span}`: {error}", document.display());
            }
            found += 1;
        }
    }
    assert!(found >= 60, "only {found} commands were found");
}

#[test]
fn the_commands_of_the_documents_are_ones_that_there_are() {
    let key = PrivateKey::generate().unwrap().public().to_string();
    // What readers are to put in; of these, clap looks at the form.
    let put_in = |word: &String| match word.as_str() {
        "KEY" | "NEW_KEY" => key.clone(),
        "N" => "7".to_owned(),
        word => word.replace("$ID", &"ab".repeat(32)).replace("=KEY", &format!("={key}")),
    };
    let mut found = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for line in shell::typed(&text) {
            let commands = shell::commands(&line, &|_| key.clone());
            for words in commands.iter().filter_map(|words| of_warmd(words)) {
                let words: Vec<String> = words.iter().map(put_in).collect();
                if let Err(error) = Cli::try_parse_from(&words) {
                    panic!("{}: {line}\n{words:?}: {error}", document.display());
                }
                found += 1;
            }
        }
    }
    assert!(found >= 60, "only {found} commands were found");
}
