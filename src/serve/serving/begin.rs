//! What begins with the first engine that serves: its version decides what may be made of adapters.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::Known;
use super::catalogue::{self, BeginError, Catalogue};
use super::config::ServeConfig;
use super::fleet::Fleet;
use super::registry::EngineRegistry;
use crate::engine::lora::{Client, Deadlines, LoraError};
use crate::engine::quirks::Quirks;
use crate::local::chain;
use crate::proxy::{Access, ModelCard, Upstream};
use crate::serve::Say;
use crate::serve::adapters::{Adapters, Metrics};

/// After a ready engine did not answer.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Begin {
    pub(super) config: ServeConfig,
    pub(super) known: Known,
    pub(super) state: PathBuf,
    pub(super) upstream: watch::Receiver<Option<Upstream>>,
    pub(super) epoch: watch::Receiver<Option<u64>>,
    pub(super) metrics: Metrics,
    pub(super) access: Arc<Access>,
    pub(super) say: Say,
}

impl Begin {
    /// Ends with adapters, or with the reason told why there are none.
    pub(super) async fn run(mut self, catalogue: Arc<Catalogue>) {
        let deadlines = Deadlines { load: self.config.adapters.register, ..Deadlines::default() };
        let say = self.say.clone();
        let begun = match self.quirks(deadlines, &catalogue).await {
            Ok(None) => return,
            Ok(Some(quirks)) => self.adapters(quirks, catalogue.names(), deadlines).await,
            Err(error) => Err(BeginError::Engine(error)),
        };
        match begun {
            Ok(Some(adapters)) => catalogue.begin(adapters),
            Ok(None) => catalogue.without_adapters(),
            Err(error) => {
                catalogue.without_adapters();
                say(&format!("adapters are off: {}", chain(&error)));
            }
        }
    }

    /// Of the first engine that answers; one that dies before is not the last. `None` if there will be no more.
    async fn quirks(&mut self, deadlines: Deadlines, catalogue: &Catalogue) -> Result<Option<Quirks>, LoraError> {
        loop {
            let Ok(engine) = self.upstream.wait_for(Option::is_some).await.map(|engine| (*engine).clone()) else {
                return Ok(None);
            };
            let Some(engine) = engine else { continue };
            match ask(engine, deadlines, catalogue).await {
                Err(LoraError::Unavailable { .. } | LoraError::Unknown { .. }) => {}
                asked => return asked.map(Some),
            }
            tokio::select! {
                _ = self.upstream.changed() => {}
                () = sleep(AGAIN) => {}
            }
        }
    }

    async fn adapters(
        self,
        quirks: Quirks,
        base: Vec<ModelCard>,
        deadlines: Deadlines,
    ) -> Result<Option<Adapters>, BeginError> {
        let Self { config, known, state, upstream, epoch, metrics, access, say } = self;
        let Some(limits) = known.limits else { return Ok(None) };
        let prepare = catalogue::Prepare {
            model: known.model,
            preparation: config.preparation,
            config: config.adapters,
            limits,
            quirks,
            directory: state.join("adapters"),
            base,
            registry: Arc::new(EngineRegistry::new(upstream, deadlines)),
            epoch,
            metrics,
            access,
        };
        catalogue::adapters(prepare, |base| Fleet::new(known.socket, known.policy, known.room, base), &say)
            .await
            .map(Some)
    }
}

/// What the engine's version is like; its own models are told to the catalogue.
async fn ask(engine: Upstream, deadlines: Deadlines, catalogue: &Catalogue) -> Result<Quirks, LoraError> {
    let engine = Client::open(engine.address, engine.key, deadlines).await?;
    catalogue.base(engine.list().await?);
    Ok(*engine.quirks())
}
