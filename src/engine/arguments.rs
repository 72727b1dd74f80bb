//! From the command that a user would start an engine with to the one that runs behind warmd's proxy.
//!
//! The engine listens on a Unix socket in a directory of its own, because a key guards only some of its routes: those that
//! administer it are open to whoever connects. It asks for a key that is made for each launch all the same. What the user
//! gave counts before what the configuration says. Nothing is read or changed here.

mod adapters;
mod variables;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper::header::InvalidHeaderValue;
use serde::{Deserialize, Serialize};

pub use adapters::{Adapters, Limits};

use super::{Address, Command, Secret};
use crate::caches::launch::Engine;
use crate::caches::{Environment, Launch};

/// What a configuration says of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Absent, nothing is added for adapters.
    pub adapters: Option<Adapters>,
    /// As in `CUDA_VISIBLE_DEVICES`, for the engine only.
    pub devices: Option<String>,
    /// Plugins that an allow-list in `VLLM_PLUGINS` may not lack. Without such a list vLLM loads all that are installed.
    pub plugins: Vec<String>,
    /// Where an engine listens that is not vLLM: its options are not changed.
    pub address: Option<SocketAddr>,
}

/// What is to be run.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// As the user wrote it.
    pub command: &'a [String],
    /// Of the same command.
    pub launch: &'a Launch,
    /// What the engine would inherit.
    pub environment: &'a Environment,
    pub config: &'a Config,
    /// Where the engine is to listen: absolute, at most 107 bytes, in a directory that only this user enters. A file that
    /// is left there from before has to be gone: vLLM does not replace it.
    pub socket: &'a Path,
}

/// What is run. `Debug` shows neither words nor values: some are secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Arguments {
    pub command: Vec<String>,
    /// Changes of the environment, for the engine only; a key that is made for a launch is not among them.
    pub set: Vec<(String, String)>,
    pub unset: Vec<String>,
    /// Sentences for the user.
    pub notes: Vec<String>,
    /// Where the engine will listen.
    pub address: Address,
    pub key: Key,
    /// Where the user wants clients to connect.
    pub listen: Wish,
    /// Absent of an engine that is not vLLM.
    pub model: Option<Model>,
    /// What the engine holds of adapters; absent where it has none.
    pub limits: Option<Limits>,
}

/// What the engine will ask for. `Debug` does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// As the user's command says.
    Given(Secret),
    /// Another one for each launch, told to the engine by its environment.
    PerLaunch,
    /// It asks for none.
    None,
}

/// Where vLLM finds the key of [`Key::PerLaunch`].
pub const KEY_VARIABLE: &str = "VLLM_API_KEY";

impl Key {
    /// For one launch. Fails where the system has no random bits.
    pub fn for_launch(&self) -> io::Result<Option<Secret>> {
        match self {
            Self::Given(key) => Ok(Some(key.clone())),
            Self::PerLaunch => Secret::random().map(Some),
            Self::None => Ok(None),
        }
    }
}

/// `--host` and `--port` of the command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub host: Option<String>,
    pub port: Option<u16>,
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// A directory or a name on a hub, as given.
    pub path: String,
    /// What clients call it: one name at least, the first is the one that the engine answers with.
    pub names: Vec<String>,
}

/// The command cannot run behind a proxy, or not with adapters.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentsError {
    #[error("--uds {}: warmd puts the engine behind a socket of its own; leave it out, clients connect to the proxy", .0.display())]
    Uds(PathBuf),
    #[error("socket `{}`: a Unix socket has an absolute path of at most {MAX_SOCKET} bytes in UTF-8; give a shorter directory", .0.display())]
    Socket(PathBuf),
    #[error("--{option}: {reason}")]
    Unfit { option: &'static str, reason: &'static str },
    #[error("--{option} {value}: expected a number from 1 on")]
    Number { option: &'static str, value: String },
    #[error("--max-cpu-loras {cpu} is below --max-loras {gpu}: vLLM does not start so; raise the first")]
    Slots { gpu: u32, cpu: u32 },
    #[error("a largest rank of {0} for adapters: vLLM takes at most {max}", max = adapters::MAX_RANK)]
    Rank(u32),
    #[error("--api-server-count {0}: adapters are told to one API server only; leave it out, or turn adapters off")]
    ApiServers(String),
    #[error("--api-key: {0}")]
    Key(#[from] InvalidHeaderValue),
    #[error(
        "`{0}` is not vLLM, so it cannot be told where to listen: say where it does in `engine.address` of the configuration"
    )]
    Address(String),
}

/// What `sockaddr_un` holds without the byte that ends it, see unix(7).
const MAX_SOCKET: usize = 107;

/// What a proxy cannot stand in front of.
const UNFIT: [(&str, &str); 5] = [
    ("headless", "this node serves no requests: start it with `warmd exec`"),
    ("grpc", "the proxy speaks HTTP: leave it out, or start the engine with `warmd exec`"),
    ("ssl-certfile", "the proxy and the engine speak over a private socket without TLS: leave it out"),
    ("ssl-keyfile", "the proxy and the engine speak over a private socket without TLS: leave it out"),
    ("data-parallel-multi-port-external-lb", "vLLM has no Unix socket then: start it with `warmd exec`"),
];

impl Arguments {
    pub fn new(given: Given<'_>) -> Result<Self, ArgumentsError> {
        match given.launch.engine() {
            Engine::Vllm => Self::of_vllm(given),
            Engine::Sglang | Engine::Other => Self::of_other(given),
        }
    }

    fn of_vllm(given: Given<'_>) -> Result<Self, ArgumentsError> {
        let Given { command, launch, environment, config, socket, .. } = given;
        if let Some(path) = launch.uds() {
            return Err(ArgumentsError::Uds(path.to_owned()));
        }
        if let Some((option, reason)) = UNFIT.into_iter().find(|(option, _)| launch.has(option)) {
            return Err(ArgumentsError::Unfit { option, reason });
        }
        let path = socket.to_str().filter(|path| socket.is_absolute() && path.len() <= MAX_SOCKET);
        let path = path.ok_or_else(|| ArgumentsError::Socket(socket.to_owned()))?;
        let mut notes = Vec::new();
        let mut words = vec!["--uds".to_owned(), path.to_owned()];
        let limits = adapters::add(launch, config.adapters.as_ref(), &mut words, &mut notes)?;
        let variables::Changes { set, unset } = variables::of_vllm(environment, config, limits.is_some(), &mut notes);
        let key = key(given, &mut notes)?;
        let command = Launch::rewrite(command, &["host", "port"], &words);
        let listen = Wish { host: launch.host().map(str::to_owned), port: launch.port() };
        let address = Address::Uds(socket.to_owned());
        let model = Model::of(launch);
        Ok(Self { command, set, unset, notes, address, key, listen, model, limits })
    }

    fn of_other(given: Given<'_>) -> Result<Self, ArgumentsError> {
        let Given { command, launch, config, .. } = given;
        let program = command.first().cloned().unwrap_or_default();
        let mut notes = Vec::new();
        if config.adapters.is_some() {
            notes.push(format!("adapters are off: how `{program}` is told of them is not known"));
        }
        let address = Address::Tcp(config.address.ok_or(ArgumentsError::Address(program))?);
        let variables::Changes { set, unset } = variables::of_other(config);
        let listen = Wish { host: launch.host().map(str::to_owned), port: launch.port() };
        let command = command.to_vec();
        Ok(Self { command, set, unset, notes, address, key: Key::None, listen, model: None, limits: None })
    }

    /// What the engine will see. Several of the changes are in the keys of vLLM's compile caches: what decides about those
    /// has to be read from here, and from [`Arguments::command`].
    pub fn environment(&self, inherited: &Environment) -> Environment {
        let mut environment = inherited.clone();
        self.unset.iter().for_each(|name| environment.unset(name));
        self.set.iter().for_each(|(name, value)| environment.set(name, value));
        environment
    }

    /// What is set for one launch, whose key this is.
    pub fn variables(&self, key: Option<&Secret>) -> Vec<(String, String)> {
        let told = key.filter(|_| self.key == Key::PerLaunch);
        let key = told.map(|key| (KEY_VARIABLE.to_owned(), key.reveal().into_owned()));
        self.set.iter().cloned().chain(key).collect()
    }

    pub fn command(&self) -> Command {
        let mut words = self.command.iter().map(Into::into);
        let program = words.next().unwrap_or_default();
        let (set, unset) = (self.set.clone(), self.unset.clone());
        Command { program, args: words.collect(), set, unset, directory: None }
    }
}

/// Of several keys in a command, any is good. vLLM passes over `VLLM_API_KEY` where there is `--api-key`.
fn key(given: Given<'_>, notes: &mut Vec<String>) -> Result<Key, ArgumentsError> {
    let own = given.launch.values("api-key").iter().find(|key| !key.is_empty());
    if let Some(own) = own {
        let note = "--api-key stands in the process table for everybody to read: leave it out, warmd makes a key for each start";
        notes.push(note.to_owned());
        return Ok(Key::Given(Secret::new(own)?));
    }
    if given.environment.get(KEY_VARIABLE).is_some() {
        notes.push("VLLM_API_KEY is not what clients need any more: the proxy decides who may come".to_owned());
    }
    Ok(Key::PerLaunch)
}

impl Model {
    fn of(launch: &Launch) -> Option<Self> {
        let path = launch.model()?.to_owned();
        let mut names = launch.values("served-model-name").to_vec();
        if names.is_empty() {
            names.push(path.clone());
        }
        Some(Self { path, names })
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set: Vec<&str> = self.set.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Arguments")
            .field("program", &self.command.first())
            .field("set", &set)
            .field("unset", &self.unset)
            .field("address", &self.address)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
