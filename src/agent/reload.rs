//! What a running agent takes from another configuration.

use std::sync::{Arc, PoisonError, RwLock};

use super::trust::Trust;
use super::{Agent, AgentConfig, AgentError, link};
use crate::identity::NodeTls;
use crate::store::Store;

/// What changes with the configuration, beside what the agent needs anyway.
pub(super) struct Changeable {
    pub(super) tls: NodeTls,
    pub(super) trust: Arc<Trust>,
    pub(super) store: Store,
    pub(super) config: Effective,
}

/// The configuration in force.
pub(super) type Effective = Arc<RwLock<AgentConfig>>;

/// Every key at its value, for the local API.
pub(super) fn as_toml(config: &Effective) -> Result<String, tonic::Status> {
    let config = config.read().unwrap_or_else(PoisonError::into_inner);
    toml::to_string(&*config).map_err(|error| tonic::Status::internal(error.to_string()))
}

impl Agent {
    /// Takes limits, and reads certificate and policy again; everything else of `config` must be as it is. On an error the
    /// limits are as before.
    pub async fn reload(&self, config: &AgentConfig) -> Result<(), AgentError> {
        let Changeable { tls, trust, store, .. } = &self.changeable;
        let provide = link::capped(config.provide.clone(), link::fastest)?;
        tls.renew(&config.node, &config.state_dir)?;
        let (trust, store, limits) = (trust.clone(), store.clone(), config.store.clone());
        let read = tokio::task::spawn_blocking(move || {
            trust.reload()?;
            Ok::<_, AgentError>(store.set_limits(limits.max_bytes, limits.reserve_bytes)?)
        });
        read.await.map_err(|_| AgentError::Thread)??;
        self.provider.set_limits(provide.upload_slots, provide.max_rate);
        *self.changeable.config.write().unwrap_or_else(PoisonError::into_inner) = config.clone();
        Ok(())
    }
}
