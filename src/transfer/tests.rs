//! Real endpoints on loopback, honest and hostile.

pub(super) mod peers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use tokio::sync::watch;

use super::*;
use crate::protocol::peer::{Answer, Busy, Reason, Request, Traced, chunk_head};
use crate::telemetry::trace::TraceParent;
use crate::transport::StreamCode;
use peers::{Artifact, Hostile, Node, endpoint, key, send, source};

fn quick() -> PlanConfig {
    let short = Duration::from_millis(300);
    PlanConfig { first_byte: short, progress: short, ..PlanConfig::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_comes_whole_from_one_holder_and_is_served_onward() {
    let (a, b, c) = (Node::new(1), Node::new(2), Node::new(3));
    let artifact = Artifact::new(20, 300_000);
    a.hold(&artifact);
    let fetched = b.fetch(&artifact, vec![a.source()]).await.unwrap();
    assert_eq!(fetched, Fetched { wire_bytes: artifact.bytes(), reused_bytes: 0, holders: 1 });
    assert!(b.has_all_of(&artifact));
    c.fetch(&artifact, vec![b.source()]).await.unwrap();
    assert!(c.has_all_of(&artifact));
    assert_eq!(a.bytes(&artifact, Direction::Sent, Holder::Peer), artifact.bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_holders_share_the_work_and_partial_ones_help() {
    let nodes: Vec<Node> = (1..5).map(Node::new).collect();
    let artifact = Artifact::new(120, 200_000);
    nodes[0].hold_part(&artifact, |index| index % 3 == 0);
    nodes[1].hold_part(&artifact, |index| index % 3 == 1);
    nodes[2].hold_part(&artifact, |index| index % 3 == 2);
    let partial = |node: &Node| Source { holds: Holds::Part, ..node.source() };
    let fetched = nodes[3].fetch(&artifact, nodes[..3].iter().map(partial).collect()).await.unwrap();
    assert_eq!(fetched.holders, 3);
    assert!(nodes[3].has_all_of(&artifact));
    assert!(nodes[..3].iter().all(|node| node.bytes(&artifact, Direction::Sent, Holder::Partial) > 0));
    let received = |holder| nodes[3].bytes(&artifact, Direction::Received, holder);
    assert_eq!((received(Holder::Peer), received(Holder::Partial)), (0, fetched.wire_bytes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_resumes_with_what_is_there() {
    let (a, b) = (Node::new(1), Node::new(2));
    let artifact = Artifact::new(10, 100_000);
    a.hold(&artifact);
    b.hold_part(&artifact, |index| index < 7);
    let fetched = b.fetch(&artifact, vec![a.source()]).await.unwrap();
    assert_eq!(fetched, Fetched { wire_bytes: 300_000, reused_bytes: 700_000, holders: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_lies_costs_its_chunk_and_itself() {
    let artifact = Arc::new(Artifact::new(30, 50_000));
    let lying = artifact.clone();
    let liar = Hostile::new(9, move |indices, stream| {
        let artifact = lying.clone();
        async move {
            let len = indices.len() as u64 * 50_000;
            let mut parts = vec![Answer::Chunks { len }.encode()];
            for index in indices {
                let mut content = artifact.contents[index as usize].clone();
                content[17] ^= 1;
                parts.push(Bytes::copy_from_slice(&chunk_head(index, 50_000)));
                parts.push(content.into());
            }
            send(stream, parts).await;
        }
    });
    let (honest, puller) = (Node::new(1), Node::new(2));
    honest.hold(&artifact);
    let alone = puller.fetch(&artifact, vec![liar.source()]).await.unwrap_err();
    assert!(matches!(alone, FetchError::NoHolder(_)), "{alone}");
    assert!(puller.metrics.bad_chunks.get() > 0);
    let asked = liar.asked();
    assert!(asked <= 8, "asked {asked} times: only what was in flight at the first lie");
    puller.fetch(&artifact, vec![liar.source(), honest.source()]).await.unwrap();
    assert!(puller.has_all_of(&artifact));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_wrong_lengths_and_wrong_indices_never_reach_the_store() {
    let artifact = Artifact::new(4, 1000);
    type Lie = fn(&[u32]) -> Vec<Bytes>;
    let lies: [Lie; 5] = [
        |_| vec![Bytes::from_static(&[0xff; 4000])],
        |_| vec![Answer::Chunks { len: 1 }.encode(), Bytes::from_static(b"x")],
        |indices| {
            vec![Answer::Chunks { len: indices.len() as u64 * 1000 }.encode(), vec![0; 1012 * indices.len()].into()]
        },
        |indices| {
            vec![
                Answer::Chunks { len: indices.len() as u64 * 1000 }.encode(),
                chunk_head(99, 1000).to_vec().into(),
                vec![7; 100_000].into(),
            ]
        },
        |_| vec![Answer::Manifest { len: 10 }.encode()],
    ];
    for (seed, lie) in (3..).zip(lies) {
        let hostile = Hostile::new(seed, move |indices, stream| send(stream, lie(&indices)));
        let puller = Node::new(2);
        let error = puller.fetch(&artifact, vec![hostile.source()]).await.unwrap_err();
        assert!(matches!(error, FetchError::NoHolder(_)), "{error}");
        assert!(artifact.chunks().all(|(chunk, _)| !puller.store.has_chunk(&chunk.digest)));
        assert!(hostile.asked() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_stalls_loses_its_chunks_to_another() {
    let artifact = Artifact::new(20, 50_000);
    let stalling = Hostile::new(9, |indices, mut stream| async move {
        let len = indices.len() as u64 * 50_000;
        stream.write(Answer::Chunks { len }.encode()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let (honest, puller) = (Node::new(1), Node::with(2, ProvideConfig::default(), quick()));
    honest.hold(&artifact);
    puller.fetch(&artifact, vec![stalling.source(), honest.source()]).await.unwrap();
    assert!(puller.has_all_of(&artifact));
    assert!(stalling.asked() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_at_a_time_is_too_slow_whatever_the_deadline_says_of_silence() {
    let artifact = Artifact::new(20, 50_000);
    let trickling = Hostile::new(9, |indices, mut stream| async move {
        let len = indices.len() as u64 * 50_000;
        stream.write(Answer::Chunks { len }.encode()).await.unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while stream.write(Bytes::from_static(b"x")).await.is_ok() {
            tick.tick().await;
        }
    });
    let (honest, puller) = (Node::new(1), Node::with(2, ProvideConfig::default(), quick()));
    honest.hold(&artifact);
    puller.fetch(&artifact, vec![trickling.source(), honest.source()]).await.unwrap();
    assert!(puller.has_all_of(&artifact));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_dies_half_way_costs_nothing_that_had_arrived() {
    let artifact = Artifact::new(60, 100_000);
    let (dying, other, puller) = (Node::new(1), Node::new(2), Node::new(3));
    dying.hold(&artifact);
    other.hold(&artifact);
    let killed = puller.metrics.received_chunks.clone();
    let endpoint = dying.endpoint.clone();
    let kill = async {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        while killed.get() < 10 {
            tick.tick().await;
        }
        endpoint.close(StreamCode::Failed, Duration::ZERO).await;
    };
    let (fetched, ()) = tokio::join!(puller.fetch(&artifact, vec![dying.source(), other.source()]), kill);
    let fetched = fetched.unwrap();
    assert!(puller.has_all_of(&artifact));
    assert_eq!(fetched.wire_bytes, artifact.bytes() + puller.metrics.duplicate_chunks.get() * 100_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_holders_are_asked_again_after_their_time() {
    let artifact = Arc::new(Artifact::new(4, 1000));
    let (serving, busy_answers) = (artifact.clone(), Arc::new(AtomicU32::new(0)));
    let counting = busy_answers.clone();
    let busy = Hostile::new(9, move |indices, stream| {
        let (artifact, first) = (serving.clone(), counting.fetch_add(1, Ordering::SeqCst) < 2);
        async move {
            if first {
                let busy = Busy { retry_after: Duration::from_millis(10), others: vec![] };
                return send(stream, vec![Answer::Busy(busy).encode()]).await;
            }
            let mut parts = vec![Answer::Chunks { len: indices.len() as u64 * 1000 }.encode()];
            for index in indices {
                parts.push(Bytes::copy_from_slice(&chunk_head(index, 1000)));
                parts.push(artifact.contents[index as usize].clone().into());
            }
            send(stream, parts).await;
        }
    });
    let puller = Node::new(2);
    puller.fetch(&artifact, vec![busy.source()]).await.unwrap();
    assert!(busy_answers.load(Ordering::SeqCst) > 2);
}

/// Far beyond what anything here takes.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_revoked_and_unknown_are_refused_with_the_reason() {
    let artifact = Artifact::new(2, 1000);
    let (holder, puller) = (Node::new(1), Node::new(2));
    assert!(puller.fetch(&artifact, vec![holder.source()]).await.is_err());
    // Counted once the answer is on its way.
    let refused = async |outcome| {
        let label = super::metrics::OutcomeLabel { outcome };
        while holder.metrics.requests.get_or_create(&label).get() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, refused(super::metrics::Outcome::NotFound)).await.unwrap();
    holder.hold(&artifact);
    holder.allowed.store(false, Ordering::SeqCst);
    assert!(puller.fetch(&artifact, vec![holder.source()]).await.is_err());
    tokio::time::timeout(SOON, refused(super::metrics::Outcome::Forbidden)).await.unwrap();
    holder.allowed.store(true, Ordering::SeqCst);
    holder.provider.drain();
    assert!(puller.fetch(&artifact, vec![holder.source()]).await.is_err());
    tokio::time::timeout(SOON, refused(super::metrics::Outcome::Draining)).await.unwrap();
    assert_eq!(Reason::Draining.to_string(), "the holder is draining");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_speaks_garbage_or_never_reads_does_not_hurt_the_holder() {
    let artifact = Artifact::new(8, 1_000_000);
    let holder = Node::with(1, ProvideConfig { upload_slots: 2, ..Default::default() }, PlanConfig::default());
    holder.hold(&artifact);
    let attacker = endpoint(9);
    let connection = attacker.connect(holder.id, &[holder.endpoint.local_addr()]).await.unwrap();
    let mut never_read = Vec::new();
    for n in 0..60u8 {
        let (mut send, recv) = connection.open().await.unwrap();
        let garbage = Bytes::from(vec![n; 64]);
        let request = Request::Chunks(artifact.id(), vec![0, 1, 2]);
        let request = Traced { request, port: None, traceparent: String::new() };
        send.write(if n % 2 == 0 { garbage } else { request.encode() }).await.unwrap();
        send.finish().unwrap();
        never_read.push((send, recv));
    }
    // The slots may be taken by the attacker for a while, but other requests are answered.
    let puller = Node::new(2);
    let envelope = watch::channel(None);
    let accept = |bytes: Bytes| -> BoxFuture<'_, bool> {
        envelope.0.send_replace(Some(bytes));
        future::ready(true).boxed()
    };
    puller.fetcher.manifest(artifact.id(), &[holder.source()], TraceParent::unrecorded(), &accept).await.unwrap();
    assert_eq!(envelope.1.borrow().as_ref(), Some(artifact.admitted.envelope()));
    connection.close(StreamCode::Done);
    puller.fetch(&artifact, vec![holder.source()]).await.unwrap();
    assert!(holder.tasks.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_has_few_connections_however_many_there_may_be() {
    let artifact = Artifact::new(8, 1000);
    let holder = Node::new(1);
    holder.hold(&artifact);
    let attacker = endpoint(9);
    let mut open = Vec::new();
    for _ in 0..9 {
        open.push(attacker.connect(holder.id, &[holder.endpoint.local_addr()]).await.unwrap());
    }
    // The last one is over the attacker's share.
    tokio::time::timeout(SOON, open[8].closed()).await.unwrap();
    assert!(!open[7].is_closed());
    let puller = Node::new(2);
    puller.fetch(&artifact, vec![holder.source()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_comes_from_the_first_holder_whose_answer_is_accepted() {
    let artifact = Artifact::new(1, 10);
    let (empty, holder, puller) = (Node::new(1), Node::new(2), Node::new(3));
    holder.hold(&artifact);
    let dead = Source { addrs: vec!["127.0.0.1:9".parse().unwrap()], ..source(key(8).node_id(), &empty.endpoint) };
    let sources = [dead, empty.source(), holder.source()];
    puller
        .fetcher
        .manifest(artifact.id(), &sources, TraceParent::unrecorded(), &|_| future::ready(true).boxed())
        .await
        .unwrap();
    let refused = puller
        .fetcher
        .manifest(artifact.id(), &[holder.source()], TraceParent::unrecorded(), &|_| future::ready(false).boxed())
        .await
        .unwrap_err();
    assert!(matches!(refused, FetchError::NoHolder(_)));
    assert_eq!(puller.metrics.bad_manifests.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_a_node_looks_for_itself_is_waited_for() {
    let artifact = Artifact::new(1, 10);
    let (relay, puller) = (Node::new(1), Node::new(2));
    let _wanting = relay.provider.wanted().begin(artifact.id(), Instant::now());
    let sources = [relay.source()];
    let asked =
        puller.fetcher.manifest(artifact.id(), &sources, TraceParent::unrecorded(), &|_| future::ready(true).boxed());
    let (found, ()) = tokio::join!(asked, async { relay.hold(&artifact) });
    found.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_given_up_is_not_wanted_any_more() {
    let artifact = Artifact::new(1, 10);
    let (asked, mut heard) = watch::channel(false);
    let silent = Hostile::new(9, move |_, _stream| {
        asked.send_replace(true);
        future::pending::<()>()
    });
    let puller = Node::new(2);
    let wanted = puller.provider.wanted();
    tokio::select! {
        fetched = puller.fetch(&artifact, vec![silent.source()]) => panic!("{fetched:?}"),
        asked = tokio::time::timeout(SOON, heard.wait_for(|asked| *asked)) => assert!(asked.is_ok()),
    }
    assert!(!wanted.comes_soon(&artifact.id(), Instant::now()));
}

#[tokio::test]
async fn other_limits_are_shown() {
    let node = Node::new(1);
    node.provider.set_limits(3, None);
    assert_eq!((node.provider.load().1, node.metrics.upload_slots.get()), (3, 3));
}
