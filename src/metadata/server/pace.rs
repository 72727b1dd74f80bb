//! The pace of a request's body: until all of it is there, its request has a place that others want.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::Request;
use tonic::server::NamedService;

/// A body has so long, and longer by what it takes at the slowest pace that a link may have.
const PATIENCE: Duration = Duration::from_secs(2);
const SLOWEST_BYTES_PER_SECOND: u64 = 256 * 1024;

/// A service whose requests have bodies that come.
#[derive(Debug, Clone)]
pub(in crate::metadata) struct Paced<S>(pub(in crate::metadata) S);

impl<S: NamedService> NamedService for Paced<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Paced<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(request.map(|body| Body::new(PacedBody::new(body))))
    }
}

struct PacedBody {
    body: Body,
    begun: Instant,
    received: u64,
    /// While nothing comes.
    wait: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    fn new(body: Body) -> Self {
        Self { body, begun: Instant::now(), received: 0, wait: None }
    }
}

impl hyper::body::Body for PacedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                self.received += data.len() as u64;
            }
            self.wait = None;
            return Poll::Ready(frame);
        }
        let due = self.begun + PATIENCE + Duration::from_secs(self.received / SLOWEST_BYTES_PER_SECOND);
        let wait = self.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        ready!(wait.as_mut().poll(cx));
        Poll::Ready(Some(Err(Status::deadline_exceeded("the request came too slowly"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    /// How much comes, and after how many seconds it ends, of a body with so many bytes in each second.
    async fn received(bytes: usize, seconds: u32) -> (Result<usize, tonic::Code>, u64) {
        let pieces = futures_util::stream::unfold(0, move |second| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let frame = Frame::data(Bytes::from(vec![0; bytes]));
            (second < seconds).then_some((Ok::<_, Status>(frame), second + 1))
        });
        let begun = Instant::now();
        let collected = PacedBody::new(Body::new(StreamBody::new(pieces))).collect().await;
        let collected = collected.map(|all| all.to_bytes().len()).map_err(|status| status.code());
        (collected, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up_and_a_large_one_is_waited_for() {
        assert_eq!(received(1, 100).await, (Err(tonic::Code::DeadlineExceeded), 2));
        let pace = 2 * SLOWEST_BYTES_PER_SECOND as usize;
        assert_eq!(received(pace, 6).await, (Ok(6 * pace), 7));
    }
}
