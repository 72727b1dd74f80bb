//! The models of this server: the engine's own at once, adapters as soon as there is an engine to judge them by.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::config::Preparation;
use super::ownership::Ownership;
use crate::adapters::{self, AdapterRoot, BaseModel, BaseWeights, PrepareError, Preparer, Settings};
use crate::engine::arguments::{Limits, Model};
use crate::engine::lora::{Card, LoraError};
use crate::engine::quirks::Quirks;
use crate::identity::UnixTime;
use crate::proxy::{Access, BoxFuture, Caller, Capabilities, ModelCard, Models, Resolution, Route};
use crate::serve::Say;
use crate::serve::adapters::{Adapters, AdaptersConfig, Disk, DiskError, Metrics, Parts, Registry, Source, StartError};

/// Adapters did not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error("the base model's name `{0}` is none that an adapter could be for")]
    Base(String),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Engine(#[from] LoraError),
    #[error("a thread panicked")]
    Thread,
}

/// Whether there are adapters.
#[derive(Clone)]
enum Phase {
    /// Nobody knows yet: no engine has served, or one of another kind has just begun to.
    Waiting,
    Off,
    On(Arc<Adapters>),
}

impl Phase {
    fn adapters(&self) -> Option<Arc<Adapters>> {
        match self {
            Self::On(adapters) => Some(adapters.clone()),
            Self::Waiting | Self::Off => None,
        }
    }
}

/// What clients can ask for.
pub(in crate::serve) struct Catalogue {
    base: RwLock<Vec<ModelCard>>,
    phase: watch::Sender<Phase>,
    /// When to come again while nobody knows.
    retry_after: Duration,
    /// The base model as the engine was given it.
    template: Option<String>,
}

impl Catalogue {
    pub(super) fn new(model: Option<&Model>, retry_after: Duration) -> Self {
        let names = model.map(|model| model.names.clone()).unwrap_or_default();
        let base = names.into_iter().map(|name| card(name, None)).collect();
        let template = model.map(|model| model.path.clone());
        Self { base: RwLock::new(base), phase: watch::Sender::new(Phase::Waiting), retry_after, template }
    }

    /// The engine's own list.
    pub(super) fn base(&self, cards: Vec<Card>) {
        let own = cards.into_iter().filter(|card| card.parent.is_none());
        let own: Vec<ModelCard> = own.map(|own| card(own.id, own.max_model_len)).collect();
        if !own.is_empty() {
            *self.base.write().unwrap_or_else(PoisonError::into_inner) = own;
        }
    }

    pub(super) fn names(&self) -> Vec<ModelCard> {
        self.base.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn begin(&self, adapters: Adapters) {
        self.phase.send_replace(Phase::On(Arc::new(adapters)));
    }

    pub(super) fn without_adapters(&self) {
        self.phase.send_replace(Phase::Off);
    }

    pub(in crate::serve) fn adapters(&self) -> Option<Arc<Adapters>> {
        self.phase.borrow().adapters()
    }

    /// Adapters that the engine has; `None` while nobody knows.
    pub(super) fn registered(&self) -> Option<u32> {
        match &*self.phase.borrow() {
            Phase::Waiting => None,
            Phase::Off => Some(0),
            Phase::On(adapters) => u32::try_from(adapters.capacity().used).ok(),
        }
    }

    /// Leaves nothing but the base models, for good.
    pub(super) fn take(&self) -> Option<Arc<Adapters>> {
        self.replace(Phase::Off)
    }

    /// Until adapters begin again, nobody knows what there is.
    pub(super) fn interrupt(&self) -> Option<Arc<Adapters>> {
        self.replace(Phase::Waiting)
    }

    fn replace(&self, phase: Phase) -> Option<Arc<Adapters>> {
        self.phase.send_replace(phase).adapters()
    }

    fn own(&self, model: &str) -> bool {
        self.base.read().unwrap_or_else(PoisonError::into_inner).iter().any(|card| card.id == model)
    }
}

fn card(id: String, max_model_len: Option<u64>) -> ModelCard {
    let created = UnixTime::now().seconds();
    ModelCard { id, owned_by: "vllm".to_owned(), created, parent: None, max_model_len, state: None }
}

impl Models for Catalogue {
    fn knows(&self, model: &str, caller: &Caller) -> bool {
        self.own(model) || self.adapters().is_none_or(|adapters| adapters.knows(model, caller))
    }

    fn resolve<'a>(&'a self, model: &'a str, caller: &'a Caller) -> BoxFuture<'a, Resolution> {
        Box::pin(async move {
            if self.own(model) {
                return Resolution::Ready(Route::Base { upstream_name: model.to_owned() });
            }
            let phase = self.phase.borrow().clone();
            match phase {
                Phase::On(adapters) => adapters.resolve(model, caller).await,
                Phase::Off => Resolution::Unknown,
                Phase::Waiting => Resolution::Loading { state: "starting".to_owned(), retry_after: self.retry_after },
            }
        })
    }

    fn wait<'a>(&'a self, model: &'a str, caller: &'a Caller, deadline: Instant) -> BoxFuture<'a, Resolution> {
        Box::pin(async move {
            let mut phase = self.phase.subscribe();
            loop {
                // Too late is told by `resolve`.
                let known = timeout_at(deadline, phase.wait_for(|phase| !matches!(phase, Phase::Waiting))).await;
                let adapters = known.ok().and_then(|known| known.ok()?.adapters()).filter(|_| !self.own(model));
                let Some(adapters) = adapters else { return self.resolve(model, caller).await };
                tokio::select! {
                    resolution = adapters.wait(model, caller, deadline) => return resolution,
                    // Others take the place of these.
                    _ = phase.changed() => {}
                }
            }
        })
    }

    fn list<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Vec<ModelCard>> {
        Box::pin(async move {
            match self.adapters() {
                Some(adapters) => adapters.list(caller).await,
                None => self.names(),
            }
        })
    }

    fn capabilities(&self) -> Capabilities {
        let base = self.names().into_iter().map(|card| card.id).collect();
        let adapters = self.adapters().and_then(|adapters| adapters.capabilities().adapters);
        Capabilities { base, template_model_id: self.template.clone(), adapters }
    }

    fn not_found(&self, upstream_name: &str, epoch: u64) {
        if let Some(adapters) = self.adapters() {
            adapters.not_found(upstream_name, epoch);
        }
    }
}

/// What decides what is made of adapters.
pub(super) struct Prepare {
    pub(super) model: Option<Model>,
    pub(super) preparation: Preparation,
    pub(super) config: AdaptersConfig,
    pub(super) limits: Limits,
    pub(super) quirks: Quirks,
    pub(super) disk: Arc<Disk>,
    pub(super) base: Vec<ModelCard>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) epoch: watch::Receiver<Option<u64>>,
    pub(super) metrics: Metrics,
    pub(super) access: Arc<Access>,
}

/// `source` is made for the base model's name.
pub(super) async fn adapters<S: Source>(
    prepare: Prepare,
    source: impl FnOnce(BaseModel) -> S,
    say: &Say,
) -> Result<Adapters, BeginError> {
    let (names, weights) = base_models(&prepare, say)?;
    let Some(first) = names.first().cloned() else { return Err(BeginError::Base(String::new())) };
    let source = Arc::new(source(first));
    let starting = tokio::task::spawn_blocking(move || {
        let root = AdapterRoot::open(&prepare.disk.prepared())?;
        let engine = adapters::Engine {
            max_lora_rank: prepare.limits.max_lora_rank,
            follows_patterns: prepare.quirks.follows_patterns,
            ..adapters::Engine::default()
        };
        let weights = weights.map(|path| BaseWeights::open(&path)).transpose().map_err(PrepareError::Base)?;
        let settings = Settings { policy: prepare.preparation.policy.clone(), engine, base: names, weights };
        let preparer = Arc::new(Preparer::new(root, settings)?);
        let config = AdaptersConfig { max_cpu_loras: prepare.limits.max_cpu_loras as usize, ..prepare.config.clone() };
        let access = Arc::new(Ownership(prepare.access));
        let Prepare { disk, base, registry, epoch, metrics, .. } = prepare;
        let parts = Parts { config, preparer, disk, source, registry, epoch, base, access, metrics };
        Ok::<_, BeginError>(Adapters::start(parts)?)
    });
    starting.await.map_err(|_| BeginError::Thread)?
}

/// Names that adapters may say, the model's own first; and its weights, where they are on this node.
fn base_models(prepare: &Prepare, say: &Say) -> Result<(Vec<BaseModel>, Option<PathBuf>), BeginError> {
    let path = prepare.model.as_ref().map(|model| model.path.clone());
    let served = prepare.base.iter().map(|card| card.id.clone());
    let texts: Vec<String> = path.iter().cloned().chain(served).collect();
    let mut names = prepare.preparation.base.clone();
    for text in texts {
        names.push(text.parse().map_err(|_| BeginError::Base(text))?);
    }
    names.dedup();
    let directory = path.map(PathBuf::from).filter(|path| has_weights(path));
    let weights = prepare.preparation.weights.clone().or(directory);
    if weights.is_none() && prepare.preparation.policy.needs_base() {
        say("[preparation] dora = \"svd\" needs the base model's weights: say where they are in `preparation.weights`");
    }
    Ok((names, weights))
}

fn has_weights(path: &Path) -> bool {
    path.is_absolute() && BaseWeights::open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::auth::AnonymousConfig;

    const RETRY: Duration = Duration::from_secs(7);

    fn catalogue() -> Catalogue {
        let model = Model { path: "/models/tiny".to_owned(), names: vec!["tiny".to_owned()] };
        Catalogue::new(Some(&model), RETRY)
    }

    fn caller() -> Caller {
        Caller::anonymous(&AnonymousConfig::default())
    }

    fn is_unknown(resolution: &Resolution) -> bool {
        matches!(resolution, Resolution::Unknown)
    }

    #[tokio::test]
    async fn until_an_engine_has_served_nobody_knows_whether_there_is_an_adapter() {
        let catalogue = catalogue();
        let told = catalogue.resolve("sql", &caller()).await;
        assert!(matches!(told, Resolution::Loading { retry_after: RETRY, .. }));
        assert!(matches!(catalogue.resolve("tiny", &caller()).await, Resolution::Ready(Route::Base { .. })));
        assert!(catalogue.knows("sql", &caller()), "it costs no look-up");
        assert_eq!(catalogue.registered(), None);
        catalogue.without_adapters();
        assert_eq!(catalogue.registered(), Some(0));
        assert!(is_unknown(&catalogue.resolve("sql", &caller()).await));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_an_adapter_waits_for_the_first_engine_too() {
        let (catalogue, caller) = (catalogue(), caller());
        let waiting = catalogue.wait("sql", &caller, Instant::now() + Duration::from_secs(60));
        let (told, ()) = tokio::join!(waiting, async { catalogue.without_adapters() });
        assert!(is_unknown(&told));
        let catalogue = self::catalogue();
        let told = catalogue.wait("sql", &caller, Instant::now() + Duration::from_secs(60)).await;
        assert!(matches!(told, Resolution::Loading { .. }), "after the deadline");
    }

    #[test]
    fn the_engines_own_list_counts_and_an_empty_one_does_not() {
        let catalogue = catalogue();
        let cards = |json: &str| -> Vec<Card> { serde_json::from_str(json).unwrap() };
        catalogue.base(cards("[]"));
        assert_eq!(catalogue.names()[0].id, "tiny");
        catalogue.base(cards(r#"[{"id":"big","max_model_len":4096},{"id":"a@1","parent":"big"}]"#));
        let names = catalogue.names();
        assert_eq!((names.len(), names[0].id.as_str(), names[0].max_model_len), (1, "big", Some(4096)));
    }
}
