//! What a running agent takes from another configuration.

use std::sync::{Arc, PoisonError, RwLock};

use super::trust::{Reread, Trust};
use super::{Agent, AgentConfig, AgentError, link};
use crate::identity::{NodeTls, Renewal};
use crate::local::Callers;
use crate::store::{Limits, Store};
use crate::transfer::ProvideConfig;

/// What changes with the configuration, beside what the agent needs anyway.
pub(super) struct Changeable {
    pub(super) tls: NodeTls,
    pub(super) trust: Arc<Trust>,
    pub(super) store: Store,
    /// Of both sockets.
    pub(super) callers: Vec<Callers>,
    pub(super) config: Effective,
}

/// The configuration in force.
pub(super) type Effective = Arc<RwLock<AgentConfig>>;

pub(super) fn now(config: &Effective) -> AgentConfig {
    config.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Every key at its value, for the local API.
pub(super) fn as_toml(config: &Effective) -> Result<String, tonic::Status> {
    toml::to_string(&now(config)).map_err(|error| tonic::Status::internal(error.to_string()))
}

/// A configuration that is in order, and what its files say: see [`Agent::read_again`].
pub struct Reloaded {
    config: AgentConfig,
    provide: ProvideConfig,
    renewal: Renewal,
    limits: Limits,
    policy: Reread,
}

impl Agent {
    /// Reads what `config` names, and changes nothing. Limits, callers, certificate, authority and policy may be others;
    /// everything else must be as it is.
    pub async fn read_again(&self, config: &AgentConfig) -> Result<Reloaded, AgentError> {
        let Changeable { tls, trust, store, .. } = &self.changeable;
        let provide = link::capped(config.provide.clone(), link::fastest)?;
        let renewal = tls.read_again(&config.node, &config.state_dir)?;
        let (trust, store, limits) = (trust.clone(), store.clone(), config.store.clone());
        let read = tokio::task::spawn_blocking(move || {
            let limits = store.limits_of(limits.max_bytes, limits.reserve_bytes)?;
            // The last: a version that was read once is remembered.
            Ok::<_, AgentError>((limits, trust.read_again()?))
        });
        let (limits, policy) = read.await.map_err(|_| AgentError::Thread)??;
        Ok(Reloaded { config: config.clone(), provide, renewal, limits, policy })
    }

    /// From now on.
    pub fn take(&self, reloaded: Reloaded) {
        let Changeable { tls, trust, store, callers, config } = &self.changeable;
        let Reloaded { config: new, provide, renewal, limits, policy } = reloaded;
        tls.take(renewal);
        trust.take(policy);
        store.set_limits(limits);
        self.provider.set_limits(provide.upload_slots, provide.max_rate);
        for callers in callers {
            if let Err(error) = callers.allow(&new.local) {
                tracing::warn!(%error, "the list of callers holds, but the socket's mode is as before");
            }
        }
        *config.write().unwrap_or_else(PoisonError::into_inner) = new;
    }
}
