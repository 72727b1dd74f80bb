//! The one call of an agent's local API that has no command: fetch into the store and install nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use tonic::client::Grpc;
use tonic::transport::{Endpoint, Uri};
use tonic_prost::ProstCodec;
use warmd::digest::IdentityId;

/// As warmd's own client has it.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;

// Of proto/agent.proto, the fields that are used here.

#[derive(Clone, PartialEq, prost::Message)]
struct WarmRequest {
    #[prost(bytes = "vec", tag = "1")]
    identity: Vec<u8>,
    #[prost(string, tag = "2")]
    family: String,
    #[prost(bool, tag = "5")]
    any_subject: bool,
    #[prost(uint64, tag = "4")]
    budget_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WarmEvent {
    #[prost(message, optional, tag = "4")]
    done: Option<WarmDone>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WarmDone {
    #[prost(uint64, tag = "2")]
    wire_bytes: u64,
    #[prost(string, tag = "5")]
    failure: String,
}

/// Returns when everything is verified and in the agent's store: the encoded bytes that crossed the network.
pub(crate) fn fetch(socket: &Path, identity: IdentityId, budget: Duration) -> Result<u64> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://agent")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW)
            .connect_with_connector(connector)
            .await?;
        let request = WarmRequest {
            identity: identity.as_bytes().to_vec(),
            family: "directory".to_owned(),
            any_subject: true,
            budget_ms: budget.as_millis() as u64,
        };
        let mut grpc = Grpc::new(channel);
        grpc.ready().await?;
        let codec: ProstCodec<WarmRequest, WarmEvent> = ProstCodec::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/warmd.v1.Agent/Warm");
        let mut events = grpc.server_streaming(tonic::Request::new(request), path, codec).await?.into_inner();
        let mut wire_bytes = None;
        while let Some(event) = events.message().await? {
            let Some(done) = event.done else { continue };
            if !done.failure.is_empty() {
                bail!("fetch: {}", done.failure);
            }
            wire_bytes = Some(wire_bytes.unwrap_or(0) + done.wire_bytes);
        }
        wire_bytes.context("the agent ended the call without a result")
    })
}
