//! What the proxy asks of those who know the models.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::Instant;

use super::auth::Caller;
use super::limits::Limited;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Held for as long as something is in use; dropping it says that it is not any more.
pub type Lease = Box<dyn Any + Send>;

/// Where requests for a model go.
pub enum Route {
    Base {
        upstream_name: String,
    },
    Adapter {
        /// What the engine calls it.
        upstream_name: String,
        /// What clients call it.
        shown_name: String,
        /// Keeps apart what the engine remembers of prompts: hex digits, such as those of the adapter's digest.
        cache_salt: Option<String>,
        /// Held until the answer has ended: the adapter is in use.
        lease: Lease,
    },
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base { upstream_name } => f.debug_struct("Base").field("upstream_name", upstream_name).finish(),
            Self::Adapter { upstream_name, shown_name, .. } => {
                let mut adapter = f.debug_struct("Adapter");
                adapter.field("upstream_name", upstream_name).field("shown_name", shown_name).finish_non_exhaustive()
            }
        }
    }
}

/// What there is to say about a model that somebody asked for.
#[derive(Debug)]
pub enum Resolution {
    Ready(Route),
    /// `state`: a word such as `fetching`.
    Loading {
        state: String,
        retry_after: Duration,
    },
    Unknown,
    /// There is such an adapter, and not for this server: both are names of base models.
    OtherBase {
        made_for: String,
        served: String,
    },
    /// Of this caller there is too much.
    Limited(Limited),
    /// With the status of an error; `reason` goes to the client.
    Refused {
        status: StatusCode,
        reason: String,
    },
}

/// One line of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ModelCard {
    pub id: String,
    pub owned_by: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Of an adapter: its base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u64>,
    /// A word such as `ready`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// What this server can do, for those who choose among servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Capabilities {
    /// Names of the base model.
    pub base: Vec<String>,
    /// Where its chat template comes from: a directory or a name on a hub.
    pub template_model_id: Option<String>,
    /// Absent where there are no adapters.
    pub adapters: Option<AdapterSlots>,
}

/// Adapters that the engine keeps in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct AdapterSlots {
    pub slots: usize,
    pub used: usize,
    pub free: usize,
}

/// Whoever knows the models. A name is whatever a client sent, up to [`MAX_MODEL_NAME`](super::MAX_MODEL_NAME) bytes
/// without control characters: look it up, and never make a path of it. A future that is dropped was not wanted any more.
pub trait Models: Send + Sync {
    /// Whether what `caller` may hear of `model` is known here, so that [`Models::resolve`] asks nobody else.
    fn knows(&self, model: &str, caller: &Caller) -> bool;

    /// Answers at once; work that it starts is its own.
    fn resolve<'a>(&'a self, model: &'a str, caller: &'a Caller) -> BoxFuture<'a, Resolution>;

    /// As [`Models::resolve`], but while the model is loading, answers only when that has changed or at `deadline`.
    fn wait<'a>(&'a self, model: &'a str, caller: &'a Caller, deadline: Instant) -> BoxFuture<'a, Resolution>;

    /// What `caller` may see.
    fn list<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Vec<ModelCard>>;

    fn capabilities(&self) -> Capabilities;

    /// The engine of `epoch` says that it does not know `upstream_name`, for which a route was given. A
    /// [`Models::wait`] follows.
    fn not_found(&self, upstream_name: &str, epoch: u64);
}
