use futures_util::FutureExt;

use super::*;
use crate::telemetry::trace::TraceParent;
use crate::transfer::Locality;
use crate::transfer::tests::peers::{Artifact, Node, key};

/// A driver of `node` that has begun nothing, with a directory that does not answer.
fn driver<'f>(node: &'f Node, artifact: &Artifact, progress: &'f watch::Sender<Progress>) -> Driver<'f> {
    let held = node.store.begin(artifact.admitted.clone()).unwrap();
    let (events, _) = mpsc::channel(1);
    let shared = node.fetcher.shared(artifact.id(), TraceParent::unrecorded(), events);
    Driver::new(&node.fetcher, held, shared, Arc::new(|| std::future::pending().boxed()), progress)
}

fn told(port: u16, holds: Holds) -> Source {
    let addrs = vec![([10, 0, 0, 2], port).into()];
    Source { node: key(2).node_id(), addrs, locality: Locality::Other, holds }
}

#[tokio::test]
async fn a_directory_that_does_not_answer_is_waited_for_and_not_woken_for() {
    let (node, artifact, progress) = (Node::new(1), Artifact::new(1, 10), watch::Sender::default());
    let mut driver = driver(&node, &artifact, &progress);
    let deadline = Instant::now() + Duration::from_secs(60);
    assert_eq!(driver.wake(deadline), driver.found_at + FIND_AGAIN.pause());
    driver.look_again();
    assert_eq!(driver.wake(deadline), deadline);
}

#[tokio::test]
async fn where_a_node_is_the_directory_says_and_hearsay_does_not_change_it() {
    let (node, artifact, progress) = (Node::new(1), Artifact::new(1, 10), watch::Sender::default());
    for holds in [Holds::Nothing, Holds::Part, Holds::All] {
        let mut driver = driver(&node, &artifact, &progress);
        let port = |driver: &Driver<'_>| driver.peers[&key(2).node_id()].addrs[0].port();
        driver.add_neighbour(told(1, Holds::Nothing), Instant::now());
        assert_eq!(port(&driver), 1);
        driver.add(told(2, holds));
        assert_eq!(port(&driver), 2, "{holds:?}");
        driver.add_neighbour(told(3, Holds::Nothing), Instant::now());
        assert_eq!(port(&driver), 2, "{holds:?}");
    }
}

#[tokio::test]
async fn those_who_lost_their_place_in_the_plan_are_forgotten() {
    let (node, artifact, progress) = (Node::new(1), Artifact::new(1, 10), watch::Sender::default());
    let mut driver = driver(&node, &artifact, &progress);
    driver.add(told(1, Holds::All));
    let peer = driver.peers[&key(2).node_id()].clone();
    driver.peers.extend((3..=u8::MAX).map(|seed| (key(seed).node_id(), peer.clone())));
    driver.add_neighbour(told(1, Holds::Nothing), Instant::now());
    assert_eq!(driver.peers.into_keys().collect::<Vec<_>>(), [key(2).node_id()]);
}
