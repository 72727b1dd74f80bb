//! The engine's LoRA surface: which adapters it knows, and what it makes of a new one.
//!
//! The engine's answers are text. [`Load`] and [`LoraError`] say what they mean in every version of [`Quirks`]. Whoever
//! gets [`LoraError::Unknown`] asks [`Client::list`]: the engine may have done what it was asked to.
//!
//! An adapter's files stay where they are until nobody asks for it any more: [`Unload`] only takes the name away, and the
//! engine reads the files again whenever it needs them.

mod answer;
mod request;

use std::path::{Path, PathBuf};

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

pub use request::Deadlines;

use self::answer::{Reply, Verdict};
use self::request::Endpoint;
use super::quirks::{BaseName, Quirks, Version};
use super::{Address, Secret};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";
const MODELS: &str = "/v1/models";
const VERSION: &str = "/version";
const HEALTH: &str = "/health";

/// One engine process. Another one knows nothing of what this one was told: open another client.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    quirks: Quirks,
}

/// A model or an adapter, as `/v1/models` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Card {
    /// What clients ask for.
    pub id: String,
    /// Where it was loaded from.
    pub root: Option<String>,
    /// The base model of an adapter; a base model has none.
    pub parent: Option<String>,
    /// Tokens; of base models only.
    pub max_model_len: Option<u64>,
}

/// How a load ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    Loaded,
    /// The name already stands for this very path.
    AlreadyLoaded,
    /// The name stands for something else: another path, or the base model.
    NameTaken {
        root: Option<String>,
    },
}

/// How an unload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unload {
    /// The name is gone. Requests that have begun go on, and read the files if they have to.
    Unloaded,
    NotLoaded,
}

/// What was asked for was not done, but for [`LoraError::Unknown`].
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// Nothing was asked.
    #[error("adapter path `{}` is not absolute, or not UTF-8: vLLM would take it for a name on a hub", .0.display())]
    Path(PathBuf),
    #[error("the engine does not see the adapter's files in {}: it needs the same mount as warmd", .0.display())]
    MissingFiles(PathBuf),
    /// The same load would be refused again.
    #[error("the engine refuses the adapter: {reason}")]
    Refused { reason: String },
    #[error("the engine has no routes for adapters: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")]
    RuntimeUpdatingOff,
    /// It does not listen, is at its end, or is another one; the same may work later.
    #[error("the engine at {address} cannot be asked: {reason}")]
    Unavailable { address: Address, reason: String },
    #[error("the engine at {address} was asked and has not said what became of it: {reason}")]
    Unknown { address: Address, reason: String },
}

#[derive(Serialize)]
struct LoadRequest<'a> {
    lora_name: &'a str,
    lora_path: &'a str,
}

#[derive(Serialize)]
struct UnloadRequest<'a> {
    lora_name: &'a str,
}

impl Client {
    /// Asks the engine for its version. A version that is not known yet is logged.
    pub async fn open(address: Address, key: Option<Secret>, deadlines: Deadlines) -> Result<Self, LoraError> {
        let endpoint = Endpoint { address, key, deadlines };
        let (quirks, note) = Quirks::of(&version(&endpoint).await?);
        if let Some(note) = note {
            tracing::warn!("{note}");
        }
        Ok(Self { endpoint, quirks })
    }

    pub fn quirks(&self) -> &Quirks {
        &self.quirks
    }

    /// Has the engine read the adapter and serve it as `name`. `path` is absolute, in the engine's mount namespace, and
    /// does not change for as long as the name is known or asked for. The engine serves nobody while it reads.
    pub async fn load(&self, name: &str, path: &Path) -> Result<Load, LoraError> {
        let text = path.to_str().filter(|_| path.is_absolute()).ok_or_else(|| LoraError::Path(path.to_owned()))?;
        if self.quirks.base_name == BaseName::Shadowed
            && let Some(base) = self.list().await?.into_iter().find(|card| card.id == name && card.parent.is_none())
        {
            return Ok(Load::NameTaken { root: base.root });
        }
        let body = LoadRequest { lora_name: name, lora_path: text };
        let reply = self.endpoint.change(LOAD, &body, self.endpoint.deadlines.load).await?;
        match reply.verdict(&self.quirks) {
            Verdict::Done => Ok(Load::Loaded),
            Verdict::InUse => self.in_use(name, text, reply).await,
            Verdict::MissingFiles => Err(LoraError::MissingFiles(path.to_owned())),
            Verdict::Refused(reason) => Err(LoraError::Refused { reason }),
            Verdict::NoRoute => Err(LoraError::RuntimeUpdatingOff),
            Verdict::Unavailable(reason) => Err(self.endpoint.unavailable(reason)),
        }
    }

    async fn in_use(&self, name: &str, path: &str, reply: Reply) -> Result<Load, LoraError> {
        match self.list().await?.into_iter().find(|card| card.id == name) {
            Some(card) if card.parent.is_some() && card.root.as_deref() == Some(path) => Ok(Load::AlreadyLoaded),
            Some(card) => Ok(Load::NameTaken { root: card.root }),
            // Somebody else has just unloaded it.
            None => Err(self.endpoint.unknown(reply.reason())),
        }
    }

    /// Takes the name away. The adapter's weights stay in the engine's memory until others need the room.
    pub async fn unload(&self, name: &str) -> Result<Unload, LoraError> {
        let body = UnloadRequest { lora_name: name };
        let reply = self.endpoint.change(UNLOAD, &body, self.endpoint.deadlines.ask).await?;
        match (reply.status, reply.verdict(&self.quirks)) {
            (_, Verdict::Done) => Ok(Unload::Unloaded),
            (_, Verdict::NoRoute) => Err(LoraError::RuntimeUpdatingOff),
            (StatusCode::NOT_FOUND, _) => Ok(Unload::NotLoaded),
            (_, Verdict::Unavailable(reason)) => Err(self.endpoint.unavailable(reason)),
            _ => Err(LoraError::Refused { reason: reply.reason() }),
        }
    }

    /// Base models and adapters, as the engine's front end knows them.
    pub async fn list(&self) -> Result<Vec<Card>, LoraError> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Card>,
        }
        Ok(self.endpoint.read::<Models>(MODELS).await?.data)
    }

    pub async fn version(&self) -> Result<Version, LoraError> {
        version(&self.endpoint).await
    }

    /// Whether it says that its engine core lives. It says so also while it drains.
    pub async fn healthy(&self) -> Result<(), LoraError> {
        self.endpoint.ask(HEALTH).await.map(drop)
    }
}

async fn version(endpoint: &Endpoint) -> Result<Version, LoraError> {
    #[derive(Deserialize)]
    struct Told {
        version: String,
    }
    Ok(Version::new(&endpoint.read::<Told>(VERSION).await?.version))
}
