//! The service, with a limit for each call: only two bring content, the others ask something.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use super::Control;
use crate::local::{MAX_MESSAGE, MAX_QUESTION};
use crate::protocol::pb::agent_server::{AgentServer, SERVICE_NAME};

/// Calls whose messages are as large as a chunk or a manifest.
const WITH_CONTENT: [&str; 2] = ["Push", "Import"];

#[derive(Clone)]
pub(in crate::agent) struct Calls {
    with_content: AgentServer<Control>,
    others: AgentServer<Control>,
}

impl Calls {
    pub(super) fn new(control: Control) -> Self {
        let control = Arc::new(control);
        let server = |most| {
            let server = AgentServer::from_arc(control.clone());
            server.max_decoding_message_size(most).max_encoding_message_size(MAX_MESSAGE)
        };
        Self { with_content: server(MAX_MESSAGE), others: server(MAX_QUESTION) }
    }
}

impl NamedService for Calls {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_listed = request.uri().path().rsplit('/').next().is_some_and(|call| WITH_CONTENT.contains(&call));
        if is_listed { self.with_content.call(request) } else { self.others.call(request) }
    }
}
