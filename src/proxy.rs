//! The proxy in front of an engine: OpenAI's routes, and nothing else of it.
//!
//! A [`Server`] takes connections and hands requests to a [`Proxy`]. That reads a request's body, asks [`Models`] where the
//! model is and [`Admission`] whether the caller may, sends the engine a request of its own making, and hands its answer on
//! as it comes. An adapter is called one way by clients and another by the engine; both see their own name. The engine may
//! change at any time: a watch says where it is.

pub mod access;
mod admission;
mod alarm;
mod answer;
pub mod auth;
mod body;
mod config;
mod forward;
mod framing;
mod gather;
mod intake;
mod json;
pub mod limits;
mod metrics;
mod models;
mod pace;
pub mod pause;
mod request;
mod rewrite;
mod route;
mod server;
mod serving;
mod slots;
mod socket;
mod trace;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use forward::Forward;
use intake::Intake;
use slots::Slots;

pub use crate::engine::{Address, Secret};
pub use access::Access;
pub use admission::{Admission, Asking, Everybody, Permit};
pub use answer::Answer;
pub use auth::Caller;
pub use config::{Config, Loading};
pub use metrics::Metrics;
pub use models::{AdapterSlots, BoxFuture, Capabilities, Lease, ModelCard, Models, Resolution, Route};
pub use request::MAX_MODEL_NAME;
pub use route::Endpoint;
pub use server::Server;
pub use upstream::Upstream;

/// What all requests share.
pub struct Proxy {
    config: Config,
    upstream: watch::Receiver<Option<Upstream>>,
    models: Arc<dyn Models>,
    admission: Arc<dyn Admission>,
    metrics: Arc<Metrics>,
    forward: Forward,
    intake: Intake,
    requests: Arc<Slots>,
    waiting: Arc<Semaphore>,
    /// Cancelled when the end has begun.
    draining: CancellationToken,
}

impl Proxy {
    /// `upstream` is `None` while the engine is not ready, and while it drains.
    pub fn new(
        config: Config,
        upstream: watch::Receiver<Option<Upstream>>,
        models: Arc<dyn Models>,
        admission: Arc<dyn Admission>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let metrics = Arc::new(metrics);
        Arc::new(Self {
            forward: Forward::new(&config, metrics.clone()),
            intake: Intake::new(&config),
            requests: Slots::new(config.max_requests),
            waiting: Arc::new(Semaphore::new(config.max_waiting)),
            draining: CancellationToken::new(),
            config,
            upstream,
            models,
            admission,
            metrics,
        })
    }

    /// The median time between tokens of streams since the last call; none if there were too few to tell.
    pub fn take_pace(&self) -> Option<Duration> {
        self.metrics.pace.take()
    }

    /// Zero while there is no request that the engine may be working on.
    pub fn in_flight(&self) -> watch::Receiver<usize> {
        self.requests.watch()
    }
}
