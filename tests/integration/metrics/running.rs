//! A fleet with every role, each with its `/metrics`, that has done a bit of everything.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use warmd::identity::{Policy, PrivateKey, TrustConfig};
use warmd::serve::warm::{Job, Verdict};
use warmd::telemetry::MetricsServer;

use crate::exec::{Pod, engine};
use crate::harness::cluster::{Node, identity};
use crate::harness::served::{Adapter, Fleet, Served};
use crate::harness::{gpu, tree};

pub(super) struct Running {
    fleet: Fleet,
    served: Served,
    server: MetricsServer,
    stranger: Node,
}

impl Running {
    pub(super) async fn start() -> Self {
        let fleet = Fleet::start().await;
        // What one start makes, the other one finds.
        Pod::new(&fleet.cluster, "trainer").run(&engine(), "vllm-aot 59af47c66413: published").await;
        Pod::new(&fleet.cluster, "pod").run(&engine(), "warmd: ready after").await;
        let registry = fleet.cluster.server_metrics.clone();
        let server = MetricsServer::bind(([127, 0, 0, 1], 0).into(), registry).await.unwrap();
        let mut config = fleet.config();
        config.metrics.listen = Some(([127, 0, 0, 1], 0).into());
        let served = fleet.serve(config, "").await;
        // A node with GPUs, whose policy trusts nobody of this fleet.
        let mut config = fleet.cluster.config("stranger");
        let policy = fleet.cluster.path("other.toml");
        let text = std::fs::read_to_string(fleet.cluster.policy_path()).unwrap();
        let other = PrivateKey::generate().unwrap().public().to_string();
        let text = text.replace(&fleet.cluster.signer.to_string(), &other);
        Policy::parse(&text).unwrap();
        std::fs::write(&policy, text).unwrap();
        config.trust = TrustConfig { policy: Some(policy), ..Default::default() };
        config.gpu.program = Some(gpu::program_in(fleet.cluster.dir.path()));
        let stranger = fleet.cluster.agent_with(config).await;
        Self { fleet, served, server, stranger }
    }

    /// Addresses by the name of the job that scrapes them.
    pub(super) fn targets(&self) -> Vec<(&'static str, SocketAddr)> {
        let agents = [self.fleet.trainer.as_ref().unwrap(), self.fleet.agent.as_ref().unwrap(), &self.stranger];
        let agents = agents.into_iter().map(|node| ("warmd-agent", node.agent.metrics_addr().unwrap()));
        let serve = self.served.serving.metrics_addr().unwrap();
        agents.chain([("warmd-metadata", self.server.addr()), ("warmd-serve", serve)]).collect()
    }

    /// A transfer, a miss, a refused manifest, a damaged chunk, an adapter, requests for it and for the base model.
    pub(super) async fn work(&self) {
        let (trainer, pod) = (self.fleet.trainer.as_ref().unwrap(), self.fleet.agent.as_ref().unwrap());
        tree::write(&self.fleet.cluster.path("source"), &tree::sample());
        let published = identity(&[("torch", "2.13.0")]);
        trainer.publish(&self.fleet.cluster.path("source"), &published, "").await.unwrap();
        let report = pod.warm(self.fleet.cluster.job(published.clone(), "cache")).await;
        assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
        let missed = pod.warm(self.fleet.cluster.job(identity(&[("torch", "0")]), "missed")).await;
        assert!(matches!(missed.verdict, Verdict::Nothing { .. }), "{missed:?}");
        let refused = self.stranger.warm(self.fleet.cluster.job(published, "refused")).await;
        assert!(matches!(refused.verdict, Verdict::Nothing { .. }), "{refused:?}");
        self.be_cheated().await;
        self.fleet.publish(Adapter::new("sql", 1)).await;
        for model in ["base", "sql"] {
            assert_eq!(self.served.complete_once_ready(model).await.status, 200);
        }
        let mut stream = self.served.stream("sql", 20).await;
        while stream.piece().await.unwrap().is_some() {}
        assert_eq!(self.served.complete_as(None, &json!({"model": "nobodys", "prompt": "p"})).await.status, 404);
    }

    /// A holder whose disk has changed what it holds.
    async fn be_cheated(&self) {
        let (trainer, pod) = (self.fleet.trainer.as_ref().unwrap(), self.fleet.agent.as_ref().unwrap());
        let chunks = self.fleet.cluster.path("trainer").join("store/chunks");
        let before = tree::read(&chunks);
        tree::write(&self.fleet.cluster.path("damaged"), &[("f".to_owned(), (false, tree::noise(7, 10_000)))].into());
        let published = identity(&[("torch", "damaged")]);
        trainer.publish(&self.fleet.cluster.path("damaged"), &published, "").await.unwrap();
        for (name, (_, mut bytes)) in tree::read(&chunks).into_iter().filter(|(name, _)| !before.contains_key(name)) {
            bytes[17] ^= 1;
            std::fs::remove_file(chunks.join(&name)).unwrap();
            std::fs::write(chunks.join(name), bytes).unwrap();
        }
        let job = Job { budget: Duration::from_secs(5), ..self.fleet.cluster.job(published, "cheated") };
        let cheated = pod.warm(job).await;
        assert!(matches!(cheated.verdict, Verdict::Nothing { .. }), "{cheated:?}");
        assert!(!pod.scrape().await.contains("warmd_transfer_bad_chunks_total 0"), "it was noticed");
    }

    pub(super) async fn stop(mut self) {
        self.served.shutdown().await;
        self.stranger.stop().await;
        self.fleet.end_agents().await;
        self.server.shutdown(Duration::from_secs(5)).await;
    }
}
