//! A weight client of ModelExpress points at `warmd metadata`. Its messages stand here by hand, as their numbers are on the
//! wire, and not as our own `.proto` says them.

use std::collections::HashMap;
use std::process::Stdio;

use prost::Message;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::harness::cluster::{Cluster, DEADLINE};

const READY: i32 = 2;
const STALE: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct Identity {
    #[prost(string, tag = "1")]
    mx_version: String,
    #[prost(string, tag = "3")]
    model_name: String,
    #[prost(int32, tag = "4")]
    backend_framework: i32,
    #[prost(uint32, tag = "5")]
    tensor_parallel_size: u32,
    #[prost(uint32, tag = "6")]
    pipeline_parallel_size: u32,
    #[prost(string, tag = "8")]
    dtype: String,
    #[prost(map = "string, string", tag = "10")]
    extra_parameters: HashMap<String, String>,
}

/// With a field of a version that is still to come.
#[derive(Clone, PartialEq, Message)]
struct Worker {
    #[prost(uint32, tag = "1")]
    worker_rank: u32,
    #[prost(string, tag = "10")]
    transfer_engine_session_id: String,
    #[prost(int32, tag = "4")]
    status: i32,
    #[prost(int64, tag = "5")]
    updated_at: i64,
    #[prost(string, tag = "8")]
    worker_grpc_endpoint: String,
    #[prost(string, tag = "9")]
    accelerator: String,
    #[prost(string, tag = "500")]
    of_tomorrow: String,
}

#[derive(Clone, PartialEq, Message)]
struct Publish {
    #[prost(message, optional, tag = "1")]
    identity: Option<Identity>,
    #[prost(message, optional, tag = "2")]
    worker: Option<Worker>,
    #[prost(string, tag = "3")]
    worker_id: String,
    #[prost(string, tag = "4")]
    pod_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Published {
    #[prost(bool, tag = "1")]
    success: bool,
    #[prost(string, tag = "3")]
    mx_source_id: String,
    #[prost(string, tag = "4")]
    worker_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, optional, tag = "1")]
    identity: Option<Identity>,
    #[prost(int32, optional, tag = "2")]
    status_filter: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    instances: Vec<Instance>,
}

#[derive(Clone, PartialEq, Message)]
struct Instance {
    #[prost(string, tag = "1")]
    mx_source_id: String,
    #[prost(string, tag = "2")]
    worker_id: String,
    #[prost(string, tag = "3")]
    model_name: String,
    #[prost(uint32, tag = "4")]
    worker_rank: u32,
    #[prost(string, tag = "5")]
    accelerator: String,
    #[prost(int64, tag = "6")]
    updated_at: i64,
    #[prost(uint64, optional, tag = "7")]
    training_step: Option<u64>,
    #[prost(string, optional, tag = "8")]
    layout_signature: Option<String>,
    #[prost(float, optional, tag = "10")]
    source_load: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct Get {
    #[prost(string, tag = "1")]
    mx_source_id: String,
    #[prost(string, tag = "2")]
    worker_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Got {
    #[prost(bool, tag = "1")]
    found: bool,
    #[prost(message, optional, tag = "2")]
    worker: Option<Worker>,
    #[prost(message, optional, tag = "5")]
    identity: Option<Identity>,
}

#[derive(Clone, PartialEq, Message)]
struct Update {
    #[prost(string, tag = "1")]
    mx_source_id: String,
    #[prost(uint32, tag = "2")]
    worker_rank: u32,
    #[prost(int32, tag = "3")]
    status: i32,
    #[prost(string, tag = "4")]
    worker_id: String,
    #[prost(float, optional, tag = "5")]
    source_load: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct Updated {
    #[prost(bool, tag = "1")]
    success: bool,
}

/// `warmd metadata` as a process; killed when dropped.
struct Process {
    child: Child,
    /// Kept open: a server that cannot write its log would be another test.
    log: Lines<BufReader<ChildStderr>>,
}

impl Process {
    fn start(cluster: &Cluster, flags: &[&str]) -> Self {
        let state = cluster.state_dir("metadata", &["localhost"]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_warmd"))
            .args(["metadata", "--listen", "127.0.0.1:0", "--state-dir"])
            .arg(state)
            .args(flags)
            .env("WARMD_LOG_LEVEL", "info")
            .env("WARMD_LOG_FORMAT", "json")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, log }
    }

    /// All lines up to the next one that says this.
    async fn until(&mut self, what: &str) -> Vec<String> {
        let lines = async {
            let mut seen = Vec::new();
            loop {
                let line = self.log.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended: {seen:?}"));
                seen.push(line);
                if seen.last().unwrap().contains(what) {
                    return seen;
                }
            }
        };
        timeout(DEADLINE, lines).await.unwrap()
    }

    /// SIGTERM, and the exit code.
    async fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap().code()
    }
}

struct Client(Grpc<Channel>);

impl Client {
    async fn call<T, U>(&mut self, method: &'static str, request: T) -> Result<U, Status>
    where
        T: Message + Send + Sync + 'static,
        U: Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/model_express.p2p.P2pService/{method}").parse().unwrap();
        let codec = tonic_prost::ProstCodec::<T, U>::default();
        let mut request = Request::new(request);
        // As clients of a server with access control send it: not looked at.
        request.metadata_mut().insert("authorization", "Bearer token".parse().unwrap());
        Ok(self.0.unary(request, path, codec).await?.into_inner())
    }
}

fn identity() -> Identity {
    Identity {
        mx_version: "0.8.0".to_owned(),
        model_name: "deepseek-ai/DeepSeek-V3".to_owned(),
        backend_framework: 1,
        tensor_parallel_size: 8,
        pipeline_parallel_size: 1,
        dtype: "bfloat16".to_owned(),
        extra_parameters: [("Foo", "a"), ("foo", "b")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

fn worker() -> Worker {
    Worker {
        worker_rank: 5,
        transfer_engine_session_id: "10.0.0.7:12345".to_owned(),
        status: 1,
        worker_grpc_endpoint: "10.0.0.7:6555".to_owned(),
        accelerator: "cuda".to_owned(),
        of_tomorrow: "kept".to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_weight_client_publishes_lists_and_fetches_at_a_metadata_server() {
    let cluster = Cluster::without_server();
    let mut server = Process::start(&cluster, &["--model-express", "127.0.0.1:0"]);
    let said = server.until("without authentication").await;
    let warning: serde_json::Value = serde_json::from_str(said.last().unwrap()).unwrap();
    assert_eq!(warning["level"], "WARN");
    let addr = warning["fields"]["addr"].as_str().unwrap_or_else(|| panic!("{warning}"));
    let channel = Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    let mut client = Client(Grpc::new(channel));

    let publish = Publish {
        identity: Some(identity()),
        worker: Some(worker()),
        worker_id: "0123abcd".to_owned(),
        pod_name: "vllm-0".to_owned(),
    };
    let published: Published = client.call("PublishMetadata", publish).await.unwrap();
    let (source, id) = ("f4eeab03e859b088".to_owned(), "0123abcd".to_owned());
    assert_eq!(published, Published { success: true, mx_source_id: source.clone(), worker_id: id.clone() });
    let list = List { identity: Some(identity()), status_filter: Some(READY) };
    let listed: Listed = client.call("ListSources", list.clone()).await.unwrap();
    assert_eq!(listed.instances, []);

    let beat = |status| Update {
        mx_source_id: source.clone(),
        worker_rank: 5,
        status,
        worker_id: id.clone(),
        source_load: Some(0.5),
    };
    let updated: Updated = client.call("UpdateStatus", beat(READY)).await.unwrap();
    assert!(updated.success);
    let listed: Listed = client.call("ListSources", list.clone()).await.unwrap();
    let updated_at = listed.instances[0].updated_at;
    assert!(updated_at > 1_700_000_000_000, "{updated_at}");
    let instance = Instance {
        mx_source_id: source.clone(),
        worker_id: id.clone(),
        model_name: "deepseek-ai/DeepSeek-V3".to_owned(),
        worker_rank: 5,
        accelerator: "cuda".to_owned(),
        updated_at,
        source_load: Some(0.5),
        ..Default::default()
    };
    assert_eq!(listed.instances, [instance]);
    let get = Get { mx_source_id: source.clone(), worker_id: id.clone() };
    let got: Got = client.call("GetMetadata", get).await.unwrap();
    let today = Worker { status: READY, updated_at, ..worker() };
    assert_eq!(got, Got { found: true, worker: Some(today), identity: Some(identity()) });

    let updated: Updated = client.call("UpdateStatus", beat(STALE)).await.unwrap();
    assert!(updated.success);
    let listed: Listed = client.call("ListSources", list).await.unwrap();
    assert_eq!(listed.instances, []);
    let other = client.call::<_, Listed>("ListModels", List::default()).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::Unimplemented);
    assert_eq!(server.terminate().await, Some(0));
}

#[tokio::test]
async fn nothing_is_served_in_plaintext_unless_asked_for_and_never_on_every_interface() {
    let cluster = Cluster::without_server();
    let mut server = Process::start(&cluster, &[]);
    let said = server.until("metadata server ready").await;
    assert!(said.iter().all(|line| !line.contains("plaintext")), "{said:?}");
    assert_eq!(server.terminate().await, Some(0));
    let mut refused = Process::start(&cluster, &["--model-express", "0.0.0.0:8001"]);
    refused.until("stands for every interface").await;
    assert_eq!(timeout(DEADLINE, refused.child.wait()).await.unwrap().unwrap().code(), Some(1));
}
