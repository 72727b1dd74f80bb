//! What begins with an engine that serves: its version decides what may be made of adapters.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::catalogue::{self, BeginError, Catalogue};
use super::config::ServeConfig;
use super::fleet::Fleet;
use super::registry::EngineRegistry;
use super::{Known, LAST};
use crate::engine::lora::{Client, Deadlines, LoraError};
use crate::engine::quirks::Quirks;
use crate::local::chain;
use crate::proxy::{Access, Upstream};
use crate::serve::Say;
use crate::serve::adapters::{Adapters, Disk, Metrics};

/// After a ready engine did not answer.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Begin {
    pub(super) config: ServeConfig,
    pub(super) known: Known,
    pub(super) state: PathBuf,
    pub(super) upstream: watch::Receiver<Option<Upstream>>,
    /// Of the engine that adapters are for, while it is ready.
    pub(super) epoch: watch::Sender<Option<u64>>,
    /// Once opened it is kept, and with it its lock.
    pub(super) disk: Option<Arc<Disk>>,
    pub(super) metrics: Metrics,
    pub(super) access: Arc<Access>,
    pub(super) say: Say,
}

impl Begin {
    /// Runs as long as there are engines. Each may be of another version than the one before: adapters hear of it only once
    /// they are what may be made for it.
    pub(super) async fn run(mut self, catalogue: Arc<Catalogue>) {
        let mut begun: Option<Quirks> = None;
        while let Some((epoch, asked)) = self.next(&catalogue).await {
            let fits = |now: &Quirks| begun.is_some_and(|begun| begun.follows_patterns == now.follows_patterns);
            if !asked.as_ref().is_ok_and(fits) {
                begun = self.begin(asked, &catalogue).await;
            }
            self.epoch.send_replace(Some(epoch));
            let is_another = |now: &Option<Upstream>| now.as_ref().is_none_or(|now| now.epoch != epoch);
            let is_over = self.upstream.wait_for(is_another).await.is_err();
            self.epoch.send_replace(None);
            if is_over {
                return;
            }
        }
    }

    fn deadlines(&self) -> Deadlines {
        Deadlines { load: self.config.adapters.register, ..Deadlines::default() }
    }

    /// The next engine that answers, and what its version is like; one that dies before is not the last. `None` if there
    /// will be no more.
    async fn next(&mut self, catalogue: &Catalogue) -> Option<(u64, Result<Quirks, LoraError>)> {
        loop {
            let engine = self.upstream.wait_for(Option::is_some).await.ok()?.clone();
            let Some(engine) = engine else { continue };
            let epoch = engine.epoch;
            match ask(engine, self.deadlines(), catalogue).await {
                Err(LoraError::Unavailable { .. } | LoraError::Unknown { .. }) => {}
                asked => return Some((epoch, asked)),
            }
            tokio::select! {
                _ = self.upstream.changed() => {}
                () = sleep(AGAIN) => {}
            }
        }
    }

    /// In the place of what there is. `None`, with the reason told, if there can be no adapters.
    async fn begin(&mut self, asked: Result<Quirks, LoraError>, catalogue: &Catalogue) -> Option<Quirks> {
        if let Some(before) = catalogue.interrupt() {
            (self.say)("adapters begin anew: they were prepared for another version of the engine");
            before.shutdown(LAST).await;
        }
        let begun = match asked {
            Ok(quirks) => self.adapters(quirks, catalogue).await.map(|adapters| (quirks, adapters)),
            Err(error) => Err(BeginError::Engine(error)),
        };
        match begun {
            Ok((quirks, Some(adapters))) => {
                catalogue.begin(adapters);
                Some(quirks)
            }
            Ok((quirks, None)) => {
                catalogue.without_adapters();
                Some(quirks)
            }
            Err(error) => {
                catalogue.without_adapters();
                (self.say)(&format!("adapters are off: {}", chain(&error)));
                None
            }
        }
    }

    async fn adapters(&mut self, quirks: Quirks, catalogue: &Catalogue) -> Result<Option<Adapters>, BeginError> {
        let Some(limits) = self.known.limits else { return Ok(None) };
        // Adapters on disk are judged by today's policy first of all.
        self.known.trust.refresh(&self.known.socket).await;
        let disk = match &self.disk {
            Some(disk) => disk.clone(),
            None => self.disk.insert(open(self.state.join("adapters")).await?).clone(),
        };
        let prepare = catalogue::Prepare {
            model: self.known.model.clone(),
            preparation: self.config.preparation.clone(),
            config: self.config.adapters.clone(),
            limits,
            quirks,
            disk,
            base: catalogue.names(),
            registry: Arc::new(EngineRegistry::new(self.upstream.clone(), self.deadlines())),
            epoch: self.epoch.subscribe(),
            metrics: self.metrics.clone(),
            access: self.access.clone(),
        };
        let Known { socket, trust, room, .. } = &self.known;
        let fleet = |base| Fleet::new(socket.clone(), trust.clone(), *room, base);
        catalogue::adapters(prepare, fleet, &self.say).await.map(Some)
    }
}

async fn open(directory: PathBuf) -> Result<Arc<Disk>, BeginError> {
    let opened = tokio::task::spawn_blocking(move || Disk::open(&directory)).await;
    Ok(Arc::new(opened.map_err(|_| BeginError::Thread)??))
}

/// What the engine's version is like; its own models are told to the catalogue.
async fn ask(engine: Upstream, deadlines: Deadlines, catalogue: &Catalogue) -> Result<Quirks, LoraError> {
    let engine = Client::open(engine.address, engine.key, deadlines).await?;
    catalogue.base(engine.list().await?);
    Ok(*engine.quirks())
}
