//! Nodes on loopback, artifacts to move between them, and a holder that answers as a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::watch;

use super::super::*;
use crate::artifact::{
    Admitted, Chunk, Codec, Draft, Family, File, Provenance, RelPath, SignedManifest, SourceIdentity,
};
use crate::digest::{ArtifactId, Digest};
use crate::identity::{Admission, NodeCertificate, NodeId, NodeTls, Policy, PrivateKey, TrustClass, UnixTime};
use crate::lifecycle::Tasks;
use crate::protocol::peer::{FRAME_HEAD, Request, Traced, body_len};
use crate::store::Store;
use crate::telemetry::Registry;
use crate::telemetry::trace::TraceParent;
use crate::transport::{Endpoint, SendStream, TransportConfig};

pub(in crate::transfer) const SIGNER: u8 = 200;

pub(in crate::transfer) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(seed)
}

pub(in crate::transfer) fn tls(seed: u8) -> NodeTls {
    let admit: BTreeSet<NodeId> = (1..20).map(|seed| key(seed).node_id()).collect();
    let certificate = NodeCertificate::self_signed(&key(seed)).unwrap();
    NodeTls::new(key(seed), certificate, Admission::new(None, Some(admit)).unwrap()).unwrap()
}

pub(in crate::transfer) fn endpoint(seed: u8) -> Arc<Endpoint> {
    let config = TransportConfig { listen: "127.0.0.1:0".parse().unwrap(), ..Default::default() };
    Arc::new(Endpoint::bind(&config, &tls(seed)).unwrap())
}

pub(in crate::transfer) struct Node {
    pub(in crate::transfer) store: Store,
    pub(in crate::transfer) endpoint: Arc<Endpoint>,
    pub(in crate::transfer) provider: Arc<Provider>,
    pub(in crate::transfer) fetcher: Fetcher,
    pub(in crate::transfer) metrics: Metrics,
    pub(in crate::transfer) allowed: Arc<AtomicBool>,
    pub(in crate::transfer) id: NodeId,
    pub(in crate::transfer) tasks: Arc<Tasks>,
    pub(in crate::transfer) _dir: tempfile::TempDir,
}

impl Node {
    pub(in crate::transfer) fn new(seed: u8) -> Self {
        Self::with(seed, ProvideConfig::default(), PlanConfig::default())
    }

    pub(in crate::transfer) fn with(seed: u8, provide: ProvideConfig, plan: PlanConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::default();
        let config =
            crate::store::Config { reserve_bytes: Some(0), ..crate::store::Config::new(dir.path().join("store")) };
        let store = Store::open(&config, crate::store::Metrics::register(&mut registry)).unwrap();
        let metrics = Metrics::register(&mut registry);
        let endpoint = endpoint(seed);
        let tasks = Arc::new(Tasks::new());
        let allowed = Arc::new(AtomicBool::new(true));
        let may_serve: MayServe = {
            let allowed = allowed.clone();
            Arc::new(move |_| allowed.load(Ordering::SeqCst))
        };
        let provider = Provider::new(store.clone(), provide, may_serve, metrics.clone());
        tasks.spawn("serve", provider.clone().serve(endpoint.clone(), tasks.clone()));
        let port = NonZeroU16::new(endpoint.local_addr().port());
        let connections = Arc::new(Connections::new(endpoint.clone(), metrics.clone(), tasks.child()));
        let fetcher = Fetcher::new(connections, store.clone(), plan, port, provider.wanted(), metrics.clone());
        Self { store, endpoint, provider, fetcher, metrics, allowed, id: key(seed).node_id(), tasks, _dir: dir }
    }

    pub(in crate::transfer) fn source(&self) -> Source {
        source(self.id, &self.endpoint)
    }

    /// Stores the artifact as if it had been published here.
    pub(in crate::transfer) fn hold(&self, artifact: &Artifact) {
        self.hold_part(artifact, |_| true);
    }

    pub(in crate::transfer) fn hold_part(&self, artifact: &Artifact, which: impl Fn(usize) -> bool) {
        let held = self.store.begin(artifact.admitted.clone()).unwrap();
        for (index, (chunk, content)) in artifact.chunks().enumerate() {
            if which(index) {
                self.store.put_chunk(&chunk.digest, content).unwrap();
            }
        }
        if held.has_all() {
            self.store.seal(&artifact.id()).unwrap();
        }
    }

    pub(in crate::transfer) fn bytes(&self, artifact: &Artifact, direction: Direction, holder: Holder) -> u64 {
        self.metrics.bytes(artifact.admitted.manifest().identity.family(), direction, holder).get()
    }

    pub(in crate::transfer) async fn fetch(
        &self,
        artifact: &Artifact,
        sources: Vec<Source>,
    ) -> Result<Fetched, FetchError> {
        self.fetch_within(artifact, sources, Duration::from_secs(60)).await
    }

    pub(in crate::transfer) async fn fetch_within(
        &self,
        artifact: &Artifact,
        sources: Vec<Source>,
        time: Duration,
    ) -> Result<Fetched, FetchError> {
        let find: Find = Arc::new(|| async { Vec::new() }.boxed());
        let (progress, _watching) = watch::channel(Progress::default());
        self.fetcher
            .fetch(
                artifact.admitted.clone(),
                sources,
                find,
                Instant::now() + time,
                TraceParent::unrecorded(),
                &progress,
            )
            .await
    }

    pub(in crate::transfer) fn has_all_of(&self, artifact: &Artifact) -> bool {
        let same = |(chunk, content): (&Chunk, &[u8])| self.store.read_chunk(chunk).is_ok_and(|bytes| bytes == content);
        artifact.chunks().all(same)
    }
}

pub(in crate::transfer) fn source(node: NodeId, endpoint: &Endpoint) -> Source {
    Source { node, addrs: vec![endpoint.local_addr()], locality: Locality::Other, holds: Holds::All }
}

/// Raw chunks of noise, one file each.
pub(in crate::transfer) struct Artifact {
    pub(in crate::transfer) admitted: Admitted,
    pub(in crate::transfer) contents: Vec<Vec<u8>>,
}

impl Artifact {
    pub(in crate::transfer) fn new(chunks: usize, len: usize) -> Self {
        let contents: Vec<Vec<u8>> = (0..chunks)
            .map(|n| {
                let mut content = vec![0; len];
                blake3::Hasher::new().update(&n.to_be_bytes()).finalize_xof().fill(&mut content);
                content
            })
            .collect();
        let path = |n: usize| RelPath::new(&format!("{n:06}")).unwrap();
        let size = len as u32;
        let files = contents.iter().enumerate().map(|(n, content)| File {
            path: path(n),
            executable: false,
            mtime_ns: 0,
            size: len as u64,
            digest: Digest::of(content),
            offset: (n * len) as u64,
        });
        let chunk = |content: &Vec<u8>| Chunk {
            digest: Digest::of(content),
            encoded_len: size,
            decoded_len: size,
            codec: Codec::Raw,
        };
        let draft = Draft {
            identity: SourceIdentity::new(Family::directory(), BTreeMap::new()).unwrap(),
            class: TrustClass::Data,
            subject: String::new(),
            generation: 1,
            created: UnixTime::from_seconds(1_800_000_000),
            expires: None,
            provenance: Provenance::default(),
            files: files.collect(),
            chunks: contents.iter().map(chunk).collect(),
            entries: (0..chunks).map(path).collect(),
            attributes: BTreeMap::new(),
        };
        let signed = SignedManifest::sign(draft, &key(SIGNER)).unwrap();
        let policy = Policy::parse(&format!(
            "version = 1\nexpires = \"2050-01-01T00:00:00Z\"\n[[signer]]\nname = \"s\"\nkey = \"{}\"\n\
             families = [\"*\"]\nclass = \"data\"\n",
            key(SIGNER).public()
        ))
        .unwrap();
        let now = UnixTime::from_seconds(1_800_000_000);
        let admitted = SignedManifest::admit(signed.envelope().clone(), &policy, now).unwrap();
        Self { admitted, contents }
    }

    pub(in crate::transfer) fn id(&self) -> ArtifactId {
        self.admitted.id()
    }

    pub(in crate::transfer) fn chunks(&self) -> impl Iterator<Item = (&Chunk, &[u8])> {
        self.admitted.manifest().chunks.iter().zip(self.contents.iter().map(Vec::as_slice))
    }

    pub(in crate::transfer) fn bytes(&self) -> u64 {
        self.admitted.manifest().wire_size()
    }
}

/// A peer that answers every request for chunks by `answer`; it counts them.
pub(in crate::transfer) struct Hostile {
    pub(in crate::transfer) endpoint: Arc<Endpoint>,
    pub(in crate::transfer) asked: Arc<AtomicU32>,
    pub(in crate::transfer) id: NodeId,
    pub(in crate::transfer) _tasks: Arc<Tasks>,
}

impl Hostile {
    pub(in crate::transfer) fn new<F>(
        seed: u8,
        answer: impl Fn(Vec<u32>, SendStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let endpoint = endpoint(seed);
        let asked = Arc::new(AtomicU32::new(0));
        let tasks = Arc::new(Tasks::new());
        let (answer, accepting, counting, owner) = (Arc::new(answer), endpoint.clone(), asked.clone(), tasks.clone());
        tasks.spawn("hostile", async move {
            while let Some(incoming) = accepting.accept().await {
                let Ok(connection) = incoming.handshake().await else { continue };
                let (answer, counting, streams) = (answer.clone(), counting.clone(), owner.clone());
                owner.spawn("hostile connection", async move {
                    while let Ok((send, mut recv)) = connection.accept().await {
                        let mut head = [0; FRAME_HEAD];
                        recv.read_exact(&mut head).await.unwrap();
                        let mut body = vec![0; body_len(head).unwrap()];
                        recv.read_exact(&mut body).await.unwrap();
                        let request = Traced::decode(head, &body).unwrap().request;
                        if let Request::Chunks(_, indices) | Request::FreshChunks(_, indices) = request {
                            counting.fetch_add(1, Ordering::SeqCst);
                            streams.spawn("hostile answer", answer(indices, send));
                        }
                    }
                });
            }
        });
        Self { endpoint, asked, id: key(seed).node_id(), _tasks: tasks }
    }

    pub(in crate::transfer) fn source(&self) -> Source {
        source(self.id, &self.endpoint)
    }

    pub(in crate::transfer) fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

pub(in crate::transfer) async fn send(mut stream: SendStream, parts: Vec<Bytes>) {
    for part in parts {
        if stream.write(part).await.is_err() {
            return;
        }
    }
    // The puller may have stopped the stream already.
    let _ = stream.finish();
}
