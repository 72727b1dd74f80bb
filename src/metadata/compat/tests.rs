//! A client made from the same messages drives the service over loopback, with a clock of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::Registry;
use prost::Message;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use pb::p2p_service_client::P2pServiceClient;

/// Long enough for a slow machine: nothing waits so long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);
const BEGIN: u64 = 1_700_000_000;

/// A service at a time that only the test moves.
struct Stage {
    service: Compatibility,
    client: P2pServiceClient<Channel>,
    seconds: Arc<AtomicU64>,
    metrics: Registry,
}

impl Stage {
    async fn new(config: CompatibilityConfig) -> Self {
        let seconds = Arc::new(AtomicU64::new(BEGIN));
        let time = seconds.clone();
        let clock = Clock::new(move || Duration::from_secs(time.load(Ordering::SeqCst)));
        let mut metrics = Registry::default();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0)).try_into().unwrap();
        let config = CompatibilityConfig { listen, ..config };
        let service = Compatibility::bind_with(&config, clock, &mut metrics).await.unwrap();
        let client = P2pServiceClient::connect(format!("http://{}", service.addr())).await.unwrap();
        Self { service, client, seconds, metrics }
    }

    fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }

    async fn publish(&mut self, worker_id: &str, worker: &pb::WorkerMetadata) -> pb::PublishMetadataResponse {
        let request = pb::PublishMetadataRequest {
            identity: Some(identity()),
            worker: Some(worker.encode_to_vec().into()),
            worker_id: worker_id.to_owned(),
            ..Default::default()
        };
        self.client.publish_metadata(request).await.unwrap().into_inner()
    }

    async fn beat(&mut self, worker_id: &str, status: pb::SourceStatus) -> bool {
        let request = pb::UpdateStatusRequest {
            mx_source_id: SOURCE.to_owned(),
            worker_rank: 3,
            status: status.into(),
            worker_id: worker_id.to_owned(),
            source_load: Some(0.25),
        };
        self.client.update_status(request).await.unwrap().into_inner().success
    }

    /// Workers that a client would take weights from.
    async fn ready(&mut self) -> Vec<pb::SourceInstanceRef> {
        let request = pb::ListSourcesRequest {
            identity: Some(identity()),
            status_filter: Some(pb::SourceStatus::Ready.into()),
            ..Default::default()
        };
        self.client.list_sources(request).await.unwrap().into_inner().instances
    }

    async fn get(&mut self, worker_id: &str) -> pb::GetMetadataResponse {
        let request = pb::GetMetadataRequest { mx_source_id: SOURCE.to_owned(), worker_id: worker_id.to_owned() };
        self.client.get_metadata(request).await.unwrap().into_inner()
    }
}

const SOURCE: &str = "5a5f555570065064";

fn identity() -> pb::SourceIdentity {
    pb::SourceIdentity {
        mx_version: "0.5.0".to_owned(),
        model_name: "deepseek-ai/DeepSeek-V3".to_owned(),
        backend_framework: pb::BackendFramework::Vllm.into(),
        tensor_parallel_size: 8,
        pipeline_parallel_size: 1,
        dtype: "bfloat16".to_owned(),
        ..Default::default()
    }
}

fn worker() -> pb::WorkerMetadata {
    let tensor = pb::TensorDescriptor { name: "layers.0".to_owned(), addr: 1 << 40, size: 4096, ..Default::default() };
    let tensors = pb::TensorSourceMetadata { tensors: vec![tensor] };
    pb::WorkerMetadata {
        worker_rank: 3,
        backend_metadata: Some(pb::worker_metadata::BackendMetadata::NixlMetadata(vec![7; 200_000].into())),
        status: pb::SourceStatus::Initializing.into(),
        accelerator: "cuda".to_owned(),
        topology: [("rack".to_owned(), "r3".to_owned())].into(),
        source_payload: Some(pb::worker_metadata::SourcePayload::TensorSource(tensors)),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_source_is_published_listed_fetched_kept_by_heartbeats_stale_after_90_s_and_gone_after_an_hour() {
    let mut stage = Stage::new(CompatibilityConfig::default()).await;
    let published = stage.publish("0123abcd", &worker()).await;
    assert!(published.success, "{}", published.message);
    assert_eq!((published.mx_source_id.as_str(), published.worker_id.as_str()), (SOURCE, "0123abcd"));
    assert_eq!(stage.ready().await, [], "nobody takes weights that are not there yet");

    stage.pass(30);
    assert!(stage.beat("0123abcd", pb::SourceStatus::Ready).await);
    let listed = pb::SourceInstanceRef {
        mx_source_id: SOURCE.to_owned(),
        worker_id: "0123abcd".to_owned(),
        model_name: "deepseek-ai/DeepSeek-V3".to_owned(),
        worker_rank: 3,
        accelerator: "cuda".to_owned(),
        updated_at: (BEGIN as i64 + 30) * 1000,
        topology: [("rack".to_owned(), "r3".to_owned())].into(),
        source_load: Some(0.25),
        ..Default::default()
    };
    assert_eq!(stage.ready().await, [listed]);
    let got = stage.get("0123abcd").await;
    assert_eq!((got.found, got.mx_source_id.as_str(), got.identity), (true, SOURCE, Some(identity())));
    let today = pb::WorkerMetadata { status: 2, updated_at: (BEGIN as i64 + 30) * 1000, ..worker() };
    assert_eq!(pb::WorkerMetadata::decode(got.worker.unwrap()), Ok(today));

    for _ in 0..4 {
        stage.pass(30);
        assert!(stage.beat("0123abcd", pb::SourceStatus::Ready).await);
    }
    stage.pass(90);
    assert_eq!(stage.ready().await.len(), 1);
    stage.pass(1);
    assert_eq!(stage.ready().await, []);
    let stale = pb::WorkerMetadata::decode(stage.get("0123abcd").await.worker.unwrap()).unwrap();
    assert_eq!(stale.status(), pb::SourceStatus::Stale);

    stage.pass(3_598);
    assert!(stage.get("0123abcd").await.found);
    stage.pass(1);
    let gone = stage.get("0123abcd").await;
    assert_eq!((gone.found, gone.worker, gone.worker_id.as_str()), (false, None, "0123abcd"));
    assert!(!stage.beat("0123abcd", pb::SourceStatus::Ready).await, "so that the worker publishes again");
    assert!(stage.publish("0123abcd", &worker()).await.success);
    assert!(stage.service.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn a_worker_whose_network_fails_is_not_offered_until_it_works_again() {
    let mut stage = Stage::new(CompatibilityConfig::default()).await;
    stage.publish("0123abcd", &pb::WorkerMetadata { status: 2, ..worker() }).await;
    assert_eq!(stage.ready().await.len(), 1);
    assert!(stage.beat("0123abcd", pb::SourceStatus::Stale).await);
    assert_eq!(stage.ready().await, []);
    assert!(stage.beat("0123abcd", pb::SourceStatus::Ready).await);
    assert_eq!(stage.ready().await.len(), 1);
    stage.service.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_replica_that_found_nothing_finds_the_first_one_once_that_is_ready() {
    let mut stage = Stage::new(CompatibilityConfig::default()).await;
    stage.publish("aaaaaaaa", &worker()).await;
    stage.publish("bbbbbbbb", &worker()).await;
    assert_eq!(stage.ready().await, []);
    stage.pass(600);
    assert!(stage.beat("aaaaaaaa", pb::SourceStatus::Ready).await, "also after a load that took ten minutes");
    let ready = stage.ready().await;
    assert_eq!(ready.iter().map(|listed| listed.worker_id.as_str()).collect::<Vec<_>>(), ["aaaaaaaa"]);
    stage.service.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn after_a_restart_heartbeats_are_refused_and_a_new_publication_brings_the_source_back() {
    let mut stage = Stage::new(CompatibilityConfig::default()).await;
    stage.publish("0123abcd", &pb::WorkerMetadata { status: 2, ..worker() }).await;
    stage.service.shutdown(PATIENCE).await;
    let gone = stage.client.list_sources(pb::ListSourcesRequest::default()).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "an outage is not an empty list: {gone}");

    let mut stage = Stage::new(CompatibilityConfig::default()).await;
    assert!(!stage.beat("0123abcd", pb::SourceStatus::Ready).await);
    assert!(!stage.beat("0123abcd", pb::SourceStatus::Ready).await);
    assert!(stage.publish("0123abcd", &worker()).await.success);
    assert!(stage.beat("0123abcd", pb::SourceStatus::Ready).await);
    assert_eq!(stage.ready().await.len(), 1);
    stage.service.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn what_is_incomplete_is_refused_in_the_reply_and_a_listing_by_status() {
    let mut stage = Stage::new(CompatibilityConfig::default()).await;
    let whole = pb::PublishMetadataRequest {
        identity: Some(identity()),
        worker: Some(Default::default()),
        worker_id: "0123abcd".to_owned(),
        ..Default::default()
    };
    let nameless = pb::SourceIdentity { model_name: String::new(), ..identity() };
    for (request, names) in [
        (pb::PublishMetadataRequest { identity: None, ..whole.clone() }, "identity"),
        (pb::PublishMetadataRequest { identity: Some(nameless.clone()), ..whole.clone() }, "model_name"),
        (pb::PublishMetadataRequest { worker: None, ..whole.clone() }, "worker"),
        (pb::PublishMetadataRequest { worker_id: String::new(), ..whole.clone() }, "worker_id"),
    ] {
        let reply = stage.client.publish_metadata(request).await.unwrap().into_inner();
        assert!(!reply.success && reply.message.contains(names), "{reply:?}");
        assert_eq!((reply.mx_source_id.as_str(), reply.worker_id.as_str()), ("", ""));
    }
    assert!(!stage.beat("", pb::SourceStatus::Ready).await);
    assert!(!stage.beat("0123abcd", pb::SourceStatus::Unknown).await);
    assert_eq!(stage.get("").await, pb::GetMetadataResponse::default());
    assert!(!stage.get("ffffffff").await.found);

    let all = stage.client.list_sources(pb::ListSourcesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.instances, [], "nothing of it was kept");
    for request in [
        pb::ListSourcesRequest { identity: Some(nameless), ..Default::default() },
        pb::ListSourcesRequest { status_filter: Some(17), ..Default::default() },
    ] {
        let refused = stage.client.list_sources(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    stage.service.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_kept_and_a_full_table_is_told() {
    let config = CompatibilityConfig { max_workers: 1, ..CompatibilityConfig::default() };
    let mut stage = Stage::new(config).await;
    let request = |identity, worker: &pb::WorkerMetadata| pb::PublishMetadataRequest {
        identity: Some(identity),
        worker: Some(worker.encode_to_vec().into()),
        worker_id: "0123abcd".to_owned(),
        ..Default::default()
    };
    let many = |n: usize| (0..n).map(|n| (n.to_string(), String::new())).collect();
    let large = pb::worker_metadata::BackendMetadata::NixlMetadata(vec![0; MAX_MESSAGE].into());
    for request in [
        request(pb::SourceIdentity { extra_parameters: many(65), ..identity() }, &worker()),
        request(identity(), &pb::WorkerMetadata { topology: many(17), ..worker() }),
        request(identity(), &pb::WorkerMetadata { backend_metadata: Some(large), ..worker() }),
    ] {
        stage.client.publish_metadata(request).await.unwrap_err();
    }
    assert!(stage.publish("0123abcd", &worker()).await.success);
    let full = stage.publish("4567cdef", &worker()).await;
    assert!(!full.success && full.message.contains("at most 1 workers"), "{full:?}");
    assert!(stage.publish("0123abcd", &worker()).await.success);
    stage.service.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_those_that_stay_do_not_hold_up_the_end() {
    let config = CompatibilityConfig { max_connections: 1, ..CompatibilityConfig::default() };
    let mut stage = Stage::new(config).await;
    assert!(stage.publish("0123abcd", &worker()).await.success);
    let mut second = P2pServiceClient::connect(format!("http://{}", stage.service.addr())).await;
    let refused = match &mut second {
        Ok(client) => client.list_sources(pb::ListSourcesRequest::default()).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    assert_eq!(stage.ready().await, []);
    assert!(stage.service.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn requests_and_workers_are_counted_without_their_names() {
    let mut stage = Stage::new(CompatibilityConfig::default()).await;
    assert!(stage.publish("0123abcd", &worker()).await.success);
    assert!(stage.beat("0123abcd", pb::SourceStatus::Ready).await);
    assert!(!stage.beat("ffffffff", pb::SourceStatus::Ready).await);
    stage.get("").await;
    stage.ready().await;
    assert!(stage.service.shutdown(PATIENCE).await);
    let text = crate::telemetry::encode(&stage.metrics);
    for line in [
        "warmd_model_express_requests_total{method=\"publish_metadata\",outcome=\"ok\"} 1",
        "warmd_model_express_requests_total{method=\"update_status\",outcome=\"unknown\"} 1",
        "warmd_model_express_requests_total{method=\"get_metadata\",outcome=\"invalid\"} 1",
        "warmd_model_express_requests_total{method=\"list_sources\",outcome=\"ok\"} 1",
        "warmd_model_express_workers{state=\"ready\"} 1",
        "warmd_model_express_connections 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("0123abcd") && !text.contains("DeepSeek"));
}

#[test]
fn whoever_finds_no_room_is_told_when_to_come_again() {
    let mut room = Room(Arc::new(Semaphore::new(1)));
    let first = room.call(Request::new(())).unwrap();
    let refused = room.call(Request::new(())).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    for key in ["retry-after-ms", "grpc-retry-pushback-ms"] {
        assert_eq!(refused.metadata().get(key).unwrap(), "200");
    }
    drop(first);
    assert!(room.call(Request::new(())).is_ok());
}
