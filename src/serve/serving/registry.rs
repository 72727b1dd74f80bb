//! The engine's registry of adapters, as long as the engine is the same.

use std::path::Path;

use tokio::sync::{Mutex, watch};

use crate::adapters::ServedName;
use crate::engine::lora::{Client, Deadlines, Load, LoraError};
use crate::proxy::{BoxFuture, Upstream};
use crate::serve::adapters::{Registered, Registry, RegistryError};

pub(super) struct EngineRegistry {
    upstream: watch::Receiver<Option<Upstream>>,
    deadlines: Deadlines,
    client: Mutex<Option<(u64, Client)>>,
}

impl EngineRegistry {
    pub(super) fn new(upstream: watch::Receiver<Option<Upstream>>, deadlines: Deadlines) -> Self {
        Self { upstream, deadlines, client: Mutex::default() }
    }

    async fn client(&self, epoch: u64) -> Result<Client, RegistryError> {
        let upstream = self.upstream.borrow().clone().filter(|upstream| upstream.epoch == epoch);
        let upstream = upstream.ok_or(RegistryError::Unavailable)?;
        let mut kept = self.client.lock().await;
        if let Some((_, client)) = kept.as_ref().filter(|(of, _)| *of == epoch) {
            return Ok(client.clone());
        }
        let client = Client::open(upstream.address, upstream.key, self.deadlines).await.map_err(error)?;
        *kept = Some((epoch, client.clone()));
        Ok(client)
    }
}

fn error(error: LoraError) -> RegistryError {
    match error {
        LoraError::MissingFiles(_) => RegistryError::MissingFiles,
        LoraError::Unavailable { .. } => RegistryError::Unavailable,
        LoraError::Unknown { .. } => RegistryError::Unknown,
        other => RegistryError::Refused { reason: other.to_string() },
    }
}

impl Registry for EngineRegistry {
    fn load<'a>(
        &'a self,
        epoch: u64,
        name: &'a ServedName,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        Box::pin(async move {
            let (client, name) = (self.client(epoch).await?, name.to_string());
            if let Load::Loaded | Load::AlreadyLoaded = client.load(&name, directory).await.map_err(error)? {
                return Ok(());
            }
            // Another path under a name that only we give: what an earlier life of warmd left.
            client.unload(&name).await.map_err(error)?;
            match client.load(&name, directory).await.map_err(error)? {
                Load::Loaded | Load::AlreadyLoaded => Ok(()),
                Load::NameTaken { root } => {
                    let root = root.unwrap_or_else(|| "another adapter".to_owned());
                    Err(RegistryError::Refused { reason: format!("`{name}` is taken by {root}") })
                }
            }
        })
    }

    fn unload<'a>(&'a self, epoch: u64, name: &'a ServedName) -> BoxFuture<'a, Result<(), RegistryError>> {
        Box::pin(async move {
            let client = self.client(epoch).await?;
            client.unload(&name.to_string()).await.map(drop).map_err(error)
        })
    }

    fn list(&self, epoch: u64) -> BoxFuture<'_, Result<Vec<Registered>, RegistryError>> {
        Box::pin(async move {
            let cards = self.client(epoch).await?.list().await.map_err(error)?;
            let adapters = cards.into_iter().filter(|card| card.parent.is_some());
            let registered = |card: crate::engine::lora::Card| Registered {
                name: card.id,
                directory: card.root.unwrap_or_default().into(),
            };
            Ok(adapters.map(registered).collect())
        })
    }
}
