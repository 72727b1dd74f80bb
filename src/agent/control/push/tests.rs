use futures_util::stream;

use super::*;
use crate::agent::publish::tests::{Pod, begin, tree};
use crate::artifact::Draft;

const FILES: [(&str, &[u8]); 2] = [("a", b"one"), ("b", b"two")];

/// The messages of a whole push.
fn whole() -> (Vec<Request>, Draft) {
    let (chunks, draft) = tree(&FILES);
    let mut requests = vec![Request::Begin(begin(&draft)), Request::Reading(3)];
    requests.extend(chunks.into_iter().map(|chunk| Request::Chunk(chunk.into())));
    requests.push(Request::Seal(draft.encode().unwrap()));
    (requests, draft)
}

fn messages(requests: Vec<Request>) -> impl Stream<Item = Result<PushRequest, Status>> + Unpin {
    stream::iter(requests).map(|request| Ok(PushRequest { request: Some(request) }))
}

async fn refused(pod: &Pod, requests: impl Stream<Item = Result<PushRequest, Status>> + Unpin) -> PublishError {
    let (replies, _listening) = mpsc::channel(4);
    let error = receive(&pod.publisher, Grant::of_operator(0), requests, &replies).await.unwrap_err();
    assert!(pod.store.list().is_empty(), "an artifact in spite of {error}");
    error
}

#[tokio::test]
async fn a_push_is_begin_base_chunks_seal() {
    let pod = Pod::new();
    let (replies, mut listening) = mpsc::channel(4);
    let published = receive(&pod.publisher, Grant::of_operator(0), messages(whole().0), &replies).await.unwrap();
    assert_eq!((published.generation, published.files), (1, 2));
    let base = listening.recv().await.unwrap().unwrap().reply;
    assert!(matches!(base, Some(push_reply::Reply::Base(base)) if base.envelope.is_empty()));
    assert_eq!(pod.store.list().len(), 1);
}

#[tokio::test]
async fn messages_in_another_order_are_refused() {
    let pod = Pod::new();
    let (requests, draft) = whole();
    let twice = [vec![requests[0].clone()], requests.clone()].concat();
    let empty = stream::iter([Ok(PushRequest { request: None })]);
    for error in [
        refused(&pod, messages(requests[1..].to_vec())).await,
        refused(&pod, messages(vec![Request::Seal(draft.encode().unwrap())])).await,
        refused(&pod, messages(twice)).await,
        refused(&pod, empty).await,
    ] {
        assert!(matches!(error, PublishError::Push(PushError::Order)), "{error}");
    }
}

#[tokio::test]
async fn a_push_that_ends_early_leaves_no_artifact() {
    let pod = Pod::new();
    let (requests, _) = whole();
    for end in 0..requests.len() - 1 {
        let error = refused(&pod, messages(requests[..end].to_vec())).await;
        assert!(matches!(error, PublishError::Push(PushError::Gone)), "{error}");
    }
    let broken = messages(requests[..3].to_vec()).chain(stream::iter([Err(Status::cancelled("gone"))]));
    assert!(matches!(refused(&pod, broken).await, PublishError::Push(PushError::Gone)));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_says_nothing_any_more_is_given_up() {
    let pod = Pod::new();
    let (requests, _) = whole();
    for end in 0..requests.len() - 1 {
        let stalls = messages(requests[..end].to_vec()).chain(stream::pending());
        let error = refused(&pod, stalls).await;
        assert!(matches!(error, PublishError::Push(PushError::Stalled)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_only_says_that_it_is_busy_is_given_up_in_the_end() {
    let pod = Pod::new();
    let begin = messages(whole().0[..1].to_vec());
    let busy = stream::repeat(Request::Reading(1)).then(|request| async {
        tokio::time::sleep(STALL / 2).await;
        Ok(PushRequest { request: Some(request) })
    });
    let error = refused(&pod, begin.chain(Box::pin(busy))).await;
    assert!(matches!(error, PublishError::Push(PushError::Deadline)), "{error}");
}

#[tokio::test]
async fn a_caller_that_does_not_listen_is_left() {
    let pod = Pod::new();
    let (replies, listening) = mpsc::channel(4);
    drop(listening);
    let error = receive(&pod.publisher, Grant::of_operator(0), messages(whole().0), &replies).await.unwrap_err();
    assert!(matches!(error, PublishError::Push(PushError::Gone)));
}
