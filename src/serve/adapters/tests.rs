//! The whole on one node, with a fleet and an engine made of memory. Time is the test's own.

mod callers;
mod fakes;
mod troubles;

use super::*;
use crate::adapters::{Engine as Limits, Policy, Settings};
use crate::proxy::{Caller, Lease, Models, Resolution, Route};
use fakes::{Engine, Fleet};

struct Node {
    root: tempfile::TempDir,
    fleet: Arc<Fleet>,
    engine: Arc<Engine>,
    epoch: watch::Sender<Option<u64>>,
    adapters: Arc<Adapters>,
}

fn caller() -> Caller {
    Caller::at_socket("t".parse().unwrap(), 0)
}

fn alias(text: &str) -> Alias {
    text.parse().unwrap()
}

fn start(
    root: &std::path::Path,
    fleet: &Arc<Fleet>,
    engine: &Arc<Engine>,
    epoch: &watch::Sender<Option<u64>>,
    config: AdaptersConfig,
    access: Arc<dyn Access>,
) -> Adapters {
    let disk = Disk::open(&root.join("adapters")).unwrap();
    let base = vec!["acme/tiny-llama-0.1b".parse().unwrap()];
    let settings = Settings { policy: Policy::default(), engine: Limits::default(), base, weights: None };
    let preparer = Preparer::new(AdapterRoot::open(&disk.prepared()).unwrap(), settings).unwrap();
    let card = ModelCard {
        id: "tiny".to_owned(),
        owned_by: "acme".to_owned(),
        created: 1,
        parent: None,
        max_model_len: Some(128),
        state: None,
    };
    let parts = Parts {
        config,
        preparer: Arc::new(preparer),
        disk: Arc::new(disk),
        source: fleet.clone(),
        registry: engine.clone(),
        epoch: epoch.subscribe(),
        base: vec![card],
        access,
        metrics: Metrics::register(&mut crate::telemetry::Registry::default(), 2),
    };
    Adapters::start(parts).unwrap()
}

impl Node {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut AdaptersConfig)) -> Self {
        Self::guarded(change, Arc::new(Everybody))
    }

    fn guarded(change: impl FnOnce(&mut AdaptersConfig), access: Arc<dyn Access>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (fleet, engine, epoch) = (Fleet::new(), Arc::new(Engine::default()), watch::Sender::new(Some(1)));
        let mut config = AdaptersConfig::default();
        change(&mut config);
        let adapters = Arc::new(start(root.path(), &fleet, &engine, &epoch, config, access));
        Self { root, fleet, engine, epoch, adapters }
    }

    async fn wait_as(&self, tenant: &str, model: &str) -> Resolution {
        let who = Caller::at_socket(tenant.parse().unwrap(), 0);
        self.adapters.wait(model, &who, Instant::now() + Duration::from_secs(3600)).await
    }

    async fn resolve(&self, model: &str) -> Resolution {
        self.adapters.resolve(model, &caller()).await
    }

    async fn wait(&self, model: &str) -> Resolution {
        self.adapters.wait(model, &caller(), Instant::now() + Duration::from_secs(3600)).await
    }

    /// What the engine calls it, once it is ready.
    async fn ready(&self, model: &str) -> (String, Lease) {
        served(self.wait(model).await)
    }

    async fn refusal(&self, model: &str) -> (u16, String) {
        match self.wait(model).await {
            Resolution::Refused { status, reason } => (status.as_u16(), reason),
            other => panic!("{other:?}"),
        }
    }

    fn state(&self, alias: &str) -> State {
        self.status(alias).state
    }

    fn status(&self, alias: &str) -> AdapterStatus {
        self.adapters.status().into_iter().find(|status| status.alias.as_str() == alias).unwrap()
    }

    fn directories(&self) -> usize {
        self.adapters.shared.loader.preparer.root().list().unwrap().len()
    }

    /// The engine starts again and has nothing.
    fn restart_engine(&self, epoch: u64) {
        self.engine.loaded.lock().unwrap().clear();
        self.epoch.send_replace(Some(epoch));
    }
}

fn served(resolution: Resolution) -> (String, Lease) {
    match resolution {
        Resolution::Ready(Route::Adapter { upstream_name, lease, .. }) => (upstream_name, lease),
        other => panic!("{other:?}"),
    }
}

/// Lets the test's time pass until it is so.
async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}");
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_adapter_is_loaded_when_somebody_asks_for_it() {
    let node = Node::new();
    let signed = node.fleet.publish("sql", 1, 0);
    let first = node.resolve("sql").await;
    assert!(matches!(first, Resolution::Loading { .. }), "{first:?}");
    let Resolution::Ready(Route::Adapter { upstream_name, shown_name, cache_salt, lease: _lease }) =
        node.wait("sql").await
    else {
        panic!("not ready")
    };
    let id = node.adapters.shared.loader.preparer.id(signed.release.content);
    assert_eq!((&*shown_name, upstream_name.split_once('@').unwrap().0), ("sql", "sql"));
    assert_eq!(cache_salt, Some(id.digest().to_string()));
    node.engine.serve(&upstream_name);
    let status = node.status("sql");
    assert_eq!((status.state, status.generation, status.versions.len()), (State::Ready, Some(1), 1));
    assert_eq!(status.versions[0].in_flight, 1);
    let capacity = node.adapters.capacity();
    assert_eq!((capacity.used, capacity.free), (1, 31));
    assert!(matches!(node.resolve("tiny").await, Resolution::Ready(Route::Base { .. })));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_and_who_leaves_takes_nothing_along() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    node.fleet.flows.send_replace(false);
    {
        let who = caller();
        let leaving = node.adapters.wait("sql", &who, Instant::now() + Duration::from_secs(60));
        tokio::pin!(leaving);
        tokio::select! {
            biased;
            resolution = &mut leaving => panic!("{resolution:?}"),
            () = eventually("it is not fetched", || node.adapters.status().iter().any(|one| one.state == State::Fetching)) => {}
        }
    }
    let late = node.adapters.wait("sql", &caller(), Instant::now() + Duration::from_secs(5)).await;
    assert!(matches!(&late, Resolution::Loading { state, .. } if state == "fetching"), "{late:?}");
    let who = caller();
    let deadline = Instant::now() + Duration::from_secs(600);
    let waiting = (0..100).map(|_| node.adapters.wait("sql", &who, deadline));
    let (resolutions, ()) = futures_util::future::join(futures_util::future::join_all(waiting), async {
        pass(3).await;
        node.fleet.flows.send_replace(true);
    })
    .await;
    assert_eq!(resolutions.into_iter().map(served).count(), 100);
    assert_eq!((node.fleet.opened(), node.engine.loads()), ((1, 1), 1));
}

#[tokio::test(start_paused = true)]
async fn a_new_version_takes_over_at_once_and_the_old_one_goes_when_nobody_uses_it() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    let (old, lease) = node.ready("sql").await;
    node.fleet.publish("sql", 2, 1);
    let mut new = old.clone();
    for _ in 0..1000 {
        // At every moment there is one that is ready, and it is in the engine.
        let (name, _lease) = served(node.resolve("sql").await);
        node.engine.serve(&name);
        assert!(name != old || new == old, "the old one came back");
        new = name;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(new, old);
    assert_eq!(node.engine.names().len(), 2);
    node.engine.serve(&old);
    assert_eq!(node.status("sql").versions.iter().map(|version| version.in_flight).sum::<usize>(), 1);
    drop(lease);
    eventually("the old one is still registered", || node.engine.names() == [new.clone()]).await;
    assert_eq!(node.directories(), 2);
    pass(30).await;
    assert_eq!(node.directories(), 2, "the grace is not over");
    eventually("its files are still there", || node.directories() == 1).await;
    node.engine.serve(&new);
    assert_eq!(node.engine.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_weights_signed_anew_are_neither_fetched_nor_loaded_again() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    let (name, _lease) = node.ready("sql").await;
    node.fleet.publish("sql", 2, 0);
    eventually("the new one is not noticed", || node.status("sql").generation == Some(2)).await;
    assert_eq!(served(node.resolve("sql").await).0, name);
    assert_eq!(node.engine.loads(), 1);
    assert_eq!(node.directories(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_nobody_asks_for_leaves_if_somebody_else_has_it() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    node.fleet.publish("chat", 1, 1);
    drop(node.ready("sql").await);
    node.adapters.pin(&alias("chat"), true).unwrap();
    drop(node.ready("chat").await);
    pass(2 * 3600).await;
    assert_eq!((node.state("sql"), node.directories()), (State::Ready, 2), "nobody else has it");
    node.fleet.is_elsewhere(true);
    eventually("it is still here", || node.directories() == 1).await;
    assert_eq!((node.state("sql"), node.state("chat")), (State::Offloaded, State::Ready));
    assert_eq!(node.engine.names().len(), 1);
    drop(node.ready("sql").await);
    assert_eq!(node.fleet.opened().1, 3);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_unloads_stays_away_until_it_is_loaded() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    let (name, lease) = node.ready("sql").await;
    node.adapters.unload(&alias("sql")).unwrap();
    assert_eq!(node.refusal("sql").await.0, 404);
    pass(60).await;
    node.engine.serve(&name);
    drop(lease);
    eventually("it is still registered", || node.engine.names().is_empty()).await;
    node.fleet.publish("sql", 2, 1);
    pass(60).await;
    assert_eq!((node.refusal("sql").await.0, node.engine.loads()), (404, 1));
    node.adapters.load(&alias("sql")).unwrap();
    eventually("it is not back", || node.state("sql") == State::Ready).await;
    assert_eq!(node.adapters.unload(&alias("none")), Err(OrderError::Unknown));
}

#[tokio::test(start_paused = true)]
async fn the_file_says_what_is_loaded_before_anybody_asks() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("adapters.toml");
    let node = Node::with(|config| config.desired = Some(path.clone()));
    node.fleet.publish("sql", 1, 0);
    let chat = node.fleet.publish("chat", 1, 1);
    pass(10).await;
    assert_eq!(node.adapters.status(), []);
    std::fs::write(&path, "[[adapter]]\nalias = \"sql\"\npreload = true\n").unwrap();
    eventually("it is not loaded", || node.engine.loads() == 1).await;
    assert!(!node.status("sql").pinned);
    let digest = chat.release.content;
    std::fs::write(&path, format!("[[adapter]]\nalias = \"chat\"\npin = true\ndigest = \"{digest}\"\n")).unwrap();
    eventually("it is not loaded", || node.engine.loads() == 2).await;
    assert!(node.status("chat").pinned);
    node.fleet.publish("chat", 2, 2);
    pass(60).await;
    assert_eq!(node.status("chat").generation, Some(1), "another content than the wanted one is served");
}

#[tokio::test(start_paused = true)]
async fn a_new_start_has_what_the_last_one_had_without_the_network() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    node.fleet.publish("chat", 1, 1);
    let (name, lease) = node.ready("sql").await;
    drop(lease);
    drop(node.ready("chat").await);
    node.adapters.unload(&alias("chat")).unwrap();
    let Node { root, fleet, engine, epoch, adapters } = node;
    let adapters = Arc::into_inner(adapters).unwrap();
    assert!(adapters.shutdown(Duration::from_secs(5)).await);
    drop(adapters);
    fleet.is_down(true);
    engine.loaded.lock().unwrap().clear();
    let adapters = start(root.path(), &fleet, &engine, &epoch, AdaptersConfig::default(), Arc::new(Everybody));
    let node = Node { root, fleet, engine, epoch, adapters: Arc::new(adapters) };
    assert_eq!(node.ready("sql").await.0, name);
    assert_eq!(node.fleet.opened().1, 2);
    assert_eq!(node.refusal("chat").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_published_between_the_look_and_the_load_is_served_and_nothing_failed() {
    let node = Node::new();
    let old = node.fleet.publish("sql", 1, 0);
    let new = node.fleet.publish("sql", 2, 1);
    node.fleet.last_comes_late();
    let (_name, _lease) = node.ready("sql").await;
    let status = node.status("sql");
    assert_eq!((status.artifact, status.failure), (Some(new.artifact), None), "not {}", old.artifact);
}
