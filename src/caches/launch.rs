//! The engine's command line: what it serves, where it listens, and a digest of what decides which code it compiles.
//!
//! No Python is needed, so the reading is by rules: those of vLLM 0.32 and of SGLang. Of any other command nothing is
//! known but its words.

mod config;
mod options;
mod sglang;
mod text;
mod variables;
mod vllm;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use options::{Options, Syntax, is_option};

use super::Environment;
use crate::digest::Digest;

/// A larger file is no configuration.
const MAX_CONFIG: u64 = 1024 * 1024;

/// Which engine a command starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Vllm,
    Sglang,
    Other,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Other => "other",
        }
    }
}

/// The command cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("no command: name the engine's after `--`, such as `-- vllm serve MODEL`")]
    Empty,
    #[error("read the engine's configuration file {path}: {source}", path = path.display())]
    Config { path: PathBuf, source: io::Error },
}

/// An engine's command line. `Debug` shows no values: some are secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    engine: Engine,
    options: Options,
    /// A configuration file that could not be understood, as its digest.
    opaque: Option<Digest>,
    notes: Vec<String>,
}

impl Launch {
    /// Reads the configuration file that the command names, too.
    pub fn parse(command: &[String]) -> Result<Self, LaunchError> {
        let (engine, words) = engine_of(command).ok_or(LaunchError::Empty)?;
        let syntax = match engine {
            Engine::Vllm => &vllm::SYNTAX,
            Engine::Sglang => &sglang::SYNTAX,
            Engine::Other => {
                let options = Options { positional: without_secrets(command), ..Options::default() };
                return Ok(Self { engine, options, opaque: None, notes: Vec::new() });
            }
        };
        let mut options = syntax.parse(words);
        // Of `vllm serve` the first positional argument is the model, unless `--model` is there.
        let positional = std::mem::take(&mut options.positional).into_iter().next();
        if let Some(model) = positional {
            options.named.entry("model".to_owned()).or_insert_with(|| vec![model]);
        }
        let mut launch = Self { engine, options, opaque: None, notes: Vec::new() };
        launch.read_config(syntax, words)?;
        Ok(launch)
    }

    fn read_config(&mut self, syntax: &Syntax, words: &[String]) -> Result<(), LaunchError> {
        let Some(path) = self.options.named.remove("config").and_then(|values| values.into_iter().next()) else {
            return Ok(());
        };
        if self.engine == Engine::Vllm && !words.iter().any(|word| word == "--config") {
            self.notes.push(format!("vLLM reads {path} only if it is given as two words: --config {path}"));
            return Ok(());
        }
        let path = PathBuf::from(path);
        let text = read_text(&path).map_err(|source| LaunchError::Config { path: path.clone(), source })?;
        match config::parse(&text) {
            Some(options) => {
                let named = options.named.into_iter().map(|(name, values)| (syntax.full_name(name), values));
                let options = Options { named: named.collect(), ..Options::default() };
                self.options = options.then(std::mem::take(&mut self.options));
            }
            None => {
                let path = path.display();
                self.notes.push(format!("{path} is more than names and values: its options are not seen, only hashed"));
                self.opaque = Some(Digest::of(text.as_bytes()));
            }
        }
        Ok(())
    }

    /// The command without the options of these full names, which may stand in it in any form, and with other words
    /// where options can stand. A configuration file that the command names is left as it is; options in the command count
    /// before those in it. Of another engine than vLLM and SGLang, the command is returned as it is.
    pub fn rewrite(command: &[String], without: &[&str], with: &[String]) -> Vec<String> {
        let Some((engine, words)) = engine_of(command) else { return command.to_vec() };
        let rewritten = match engine {
            Engine::Vllm => vllm::SYNTAX.rewrite(words, without, with),
            Engine::Sglang => sglang::SYNTAX.rewrite(words, without, with),
            Engine::Other => return command.to_vec(),
        };
        command[..command.len() - words.len()].iter().cloned().chain(rewritten).collect()
    }

    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// What could not be understood, as sentences for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// As typed: vLLM hashes the text.
    pub fn model(&self) -> Option<&str> {
        self.option("model")
    }

    pub fn revision(&self) -> Option<&str> {
        self.option("revision")
    }

    pub fn host(&self) -> Option<&str> {
        self.option("host")
    }

    /// `None` if it is not given, or is no port.
    pub fn port(&self) -> Option<u16> {
        self.option("port")?.parse().ok()
    }

    /// The Unix socket to listen on.
    pub fn uds(&self) -> Option<&Path> {
        self.option("uds").map(Path::new)
    }

    /// Ranks of one tensor-parallel group; 1 unless given.
    pub fn tensor_parallel(&self) -> u32 {
        self.size("tensor-parallel-size", "tp-size")
    }

    pub fn pipeline_parallel(&self) -> u32 {
        self.size("pipeline-parallel-size", "pp-size")
    }

    pub fn data_parallel(&self) -> u32 {
        self.size("data-parallel-size", "dp-size")
    }

    /// A node without an API server: nothing will listen.
    pub fn is_headless(&self) -> bool {
        self.has("headless")
    }

    /// Whether the API server speaks TLS.
    pub fn has_tls(&self) -> bool {
        self.option("ssl-certfile").is_some() || self.option("ssl-keyfile").is_some()
    }

    /// The first value of an option by its full name, without dashes in front: the one given last, on the command line
    /// before the configuration file.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.values(name).first().map(String::as_str)
    }

    /// All values of an option, by its full name.
    pub fn values(&self, name: &str) -> &[String] {
        self.options.values(name)
    }

    /// Whether an option is given, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.options.named.contains_key(name)
    }

    fn size(&self, vllm: &str, sglang: &str) -> u32 {
        let given = self.option(if self.engine == Engine::Sglang { sglang } else { vllm });
        given.and_then(|size| size.parse().ok()).unwrap_or(1)
    }

    /// Equal where equal code is compiled, as far as it can be told without Python: over the image, if its digest is
    /// known, the GPU's product name (see [`super::name_of_gpu`]), the command line without the options that are in no
    /// key, and the variables that are in one. No secret goes into it.
    pub fn digest(&self, image: Option<&str>, gpu: Option<&str>, environment: &Environment) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("warmd 2026 launch");
        let mut put = |fields: &[&str]| {
            hasher.update(&(fields.len() as u64).to_le_bytes());
            for field in fields {
                hasher.update(&(field.len() as u64).to_le_bytes());
                hasher.update(field.as_bytes());
            }
        };
        let opaque = self.opaque.map_or_else(String::new, |digest| digest.to_string());
        put(&[self.engine.name(), image.unwrap_or(""), gpu.unwrap_or(""), &opaque]);
        put(&self.options.positional.iter().map(String::as_str).collect::<Vec<_>>());
        for (name, values) in self.options.named.iter().filter(|(name, _)| !self.is_ignored(name)) {
            let values: Vec<String> = values.iter().map(|value| canonical(value)).collect();
            put(&["option", name]);
            put(&values.iter().map(String::as_str).collect::<Vec<_>>());
        }
        for (name, value) in variables::hashed(environment) {
            put(&["variable", name, value]);
        }
        Digest::from_array(*hasher.finalize().as_bytes())
    }

    /// What of [`Launch::digest`] people can read: options by their full names and variables, with the values that count.
    /// Secrets are left out, of long values only a digest is told. Nothing is known of other engines' words, so nothing of
    /// them is told.
    pub fn canonical(&self, environment: &Environment) -> BTreeMap<String, String> {
        if self.engine == Engine::Other {
            return BTreeMap::new();
        }
        let named = self.options.named.iter().filter(|(name, _)| !self.is_ignored(name));
        let options = named.map(|(name, values)| {
            let values: Vec<String> = values.iter().map(|value| text::shown(&canonical(value))).collect();
            let value = if values.is_empty() { "given".to_owned() } else { values.join(" ") };
            (format!("--{name}"), text::shown(&value))
        });
        let variables = variables::hashed(environment).map(|(name, value)| (name.to_owned(), text::shown(value)));
        let opaque = self.opaque.map(|digest| ("--config".to_owned(), digest.to_string()));
        options
            .chain(variables)
            .chain(opaque)
            .filter(|(name, _)| !text::is_secret(name) && !name.chars().any(char::is_control))
            .collect()
    }

    fn is_ignored(&self, name: &str) -> bool {
        let ignored = match self.engine {
            Engine::Vllm => vllm::SYNTAX.is_ignored(name),
            Engine::Sglang => sglang::SYNTAX.is_ignored(name),
            Engine::Other => false,
        };
        ignored || variables::is_secret(name)
    }
}

/// The engine and its arguments; `None` for no command at all.
fn engine_of(command: &[String]) -> Option<(Engine, &[String])> {
    let (program, mut rest) = command.split_first()?;
    let mut name = file_name(program);
    if name.starts_with("python") || name.starts_with("pypy") {
        let (module, after) = started_by_python(rest).unwrap_or(("", &[]));
        match module {
            "vllm.entrypoints.openai.api_server" => return Some((Engine::Vllm, after)),
            "sglang.launch_server" => return Some((Engine::Sglang, after)),
            _ => (name, rest) = (file_name(module), after),
        }
    }
    Some(match (name, rest.split_first()) {
        ("vllm" | "vllm.entrypoints.cli.main", Some((command, rest))) if command == "serve" => (Engine::Vllm, rest),
        ("sglang" | "sglang.cli.main", Some((command, rest))) if command == "serve" => (Engine::Sglang, rest),
        _ => (Engine::Other, command),
    })
}

/// The module or script that `python` runs, and its arguments.
fn started_by_python(arguments: &[String]) -> Option<(&str, &[String])> {
    let (word, rest) = arguments.split_first()?;
    match word.as_str() {
        "-m" => rest.split_first().map(|(module, rest)| (module.as_str(), rest)),
        "-c" => None,
        "-W" | "-X" => started_by_python(rest.get(1..)?),
        option if option.starts_with('-') => started_by_python(rest),
        script => Some((script, rest)),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The words of a command of which nothing is known, without what names like `--api-key` and `API_KEY=` say.
fn without_secrets(command: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = command.iter().peekable();
    while let Some(word) = words.next() {
        let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        let secret = variables::is_secret(name) && (value.is_some() || is_option(word));
        kept.push(if secret { name.to_owned() } else { word.clone() });
        if secret && value.is_none() {
            words.next_if(|word| !is_option(word));
        }
    }
    kept
}

/// Objects in JSON are equal whatever the order of their keys.
fn canonical(value: &str) -> String {
    let object = Some(value).filter(|value| value.starts_with('{')).and_then(|value| serde_json::from_str(value).ok());
    object.map_or_else(|| value.to_owned(), |object: serde_json::Value| object.to_string())
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_CONFIG + 1).read_to_string(&mut text)? as u64;
    if read > MAX_CONFIG { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

#[cfg(test)]
mod tests;
