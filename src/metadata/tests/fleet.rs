//! What a server tells of the fleet.

use super::*;
use crate::metadata::server::tests::bare_directory;
use crate::metadata::service::Directory;
use crate::protocol::fleet::{Fleet as Documents, FleetPage, Key, MAX_DOCUMENTS, Standing};
use crate::protocol::report::tests::report;
use crate::protocol::report::{NodeReport, UnixMillis};

async fn all(client: &Client) -> Documents {
    let (mut fleet, mut after) = (Documents::default(), None);
    loop {
        let page = client.fleet(after).await.unwrap();
        for document in &page.documents {
            fleet.add(document).unwrap();
            after = Some(document.key);
        }
        if !page.more {
            return fleet;
        }
    }
}

#[tokio::test]
async fn leases_reports_and_holdings_become_documents() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let (a, b) = (cluster.client(2, &server), cluster.client(3, &server));
    let refused = a.report(&report()).await.unwrap_err();
    assert!(refused.to_string().contains("announces first"), "{refused}");
    a.announce(&ready(2, 1, vec![held(1, 1, 4, 4), held(2, 1, 1, 4)])).await.unwrap();
    b.announce(&ready(3, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    let early = NodeReport { clock: UnixMillis(UnixMillis::now().0 - 90_000), ..report() };
    a.report(&early).await.unwrap();

    let fleet = all(&b).await;
    let told = fleet.server.unwrap();
    assert_eq!((told.nodes, told.ready, told.artifacts, told.identities), (2, 2, 2, 1));
    assert!(told.cluster.is_some() && told.started_at.0 > 0);
    let one = fleet.nodes.iter().find(|node| node.id == key(2)).unwrap();
    assert_eq!(one.report.as_ref(), Some(&early));
    assert_eq!((one.state, one.endpoint.as_ref().unwrap().as_str()), (Standing::Ready, "10.0.0.2:1"));
    assert!((-120_000..=-90_000).contains(&one.skew_ms.unwrap()), "{:?}", one.skew_ms);
    let other = fleet.nodes.iter().find(|node| node.id == key(3)).unwrap();
    assert_eq!((&other.report, other.skew_ms), (&None, None));
    let [newer, older] = &fleet.identities[0].artifacts[..] else { panic!("{:?}", fleet.identities) };
    assert_eq!((&newer.holders[..], &newer.partial[..]), (&[][..], &[key(2)][..]));
    assert_eq!((older.holders.len(), older.holder_count), (2, 2));
    let json: serde_json::Value = serde_json::from_slice(&server.fleet().documents()[1].json).unwrap();
    assert!(json["id"].is_string() && json["seen_at"].is_u64(), "{json}");
    assert!(server.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn only_what_changed_is_told_and_the_last_word_of_a_node_ends_its_offer() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let (client, fleet) = (cluster.client(2, &server), server.fleet());
    let first = fleet.changes(0);
    assert!(first.all && first.documents.len() == 1, "only the server itself: {first:?}");
    let mut versions = fleet.subscribe();
    client.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    versions.changed().await.unwrap();
    let second = fleet.changes(first.version);
    let mut keys: Vec<Key> = second.documents.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    assert_eq!(keys, [Key::Identity(identity(1)), Key::Node(key(2)), Key::Server]);
    client.announce(&ready(2, 2, vec![held(1, 1, 4, 4)])).await.unwrap();
    assert_eq!(fleet.changes(second.version).documents, [], "a heartbeat that says the same is no change");
    client.report(&report()).await.unwrap();
    let third = fleet.changes(second.version);
    assert_eq!(third.documents.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [Key::Node(key(2))]);
    client.announce(&Announcement { state: NodeState::Stale, ..ready(2, 3, Vec::new()) }).await.unwrap();
    let last = fleet.changes(third.version);
    let of = |wanted| last.documents.iter().find(|(key, _)| *key == wanted).unwrap().1.clone();
    assert_eq!(of(Key::Identity(identity(1))), None, "nobody has it any more");
    assert!(std::str::from_utf8(&of(Key::Node(key(2))).unwrap()).unwrap().contains("\"stale\""));
    assert!(server.shutdown(PATIENCE).await);
}

/// A fleet of so many nodes, each with one artifact of its own and a report.
fn crowd(nodes: u16) -> std::sync::Arc<Directory> {
    let directory = bare_directory();
    for _ in 0..nodes {
        let node = PrivateKey::generate().unwrap().node_id();
        let mut told = announcement(1, 1, 1, NodeState::Ready);
        told.node = node;
        directory.change(|registry, now| registry.announce(&told, now)).unwrap();
        directory.reports.set(node, crate::metadata::fleet::Told::new(&report(), UnixMillis(1)));
    }
    directory
}

#[test]
fn pages_are_bounded_and_together_they_are_everything() {
    let fleet = crate::metadata::fleet::Fleet(crowd(2_300));
    let (mut after, mut pages, mut count) = (None, 0, 0);
    loop {
        let FleetPage { documents, more } = fleet.page(after);
        assert!(documents.len() <= MAX_DOCUMENTS && documents.is_sorted_by_key(|document| document.key));
        assert!(after.is_none_or(|after| documents[0].key > after));
        (after, pages, count) = (documents.last().map(|document| document.key), pages + 1, count + documents.len());
        if !more {
            break;
        }
    }
    assert_eq!(count, 2_301);
    assert!(pages >= 3, "{pages} pages");
    assert_eq!(fleet.documents().len(), 2_301);
}

#[test]
fn a_lapsed_lease_is_stale_and_what_is_forgotten_is_gone() {
    let directory = crowd(1);
    let node = directory.read(|registry, _| registry.node_ids().next().unwrap());
    let fleet = crate::metadata::fleet::Fleet(directory.clone());
    let before = fleet.changes(0).version;
    let lease = directory.read(|registry, _| registry.config().lease);
    let now = directory.now();
    directory.change_at(now + lease, |registry, now| registry.expire(now));
    let changed = fleet.changes(before);
    assert!(changed.documents.iter().any(|(key, _)| *key == Key::Node(node)), "{changed:?}");
    let forget = directory.read(|registry, _| registry.config().forget);
    directory.change_at(now + lease + forget, |registry, now| registry.expire(now));
    let gone = fleet.changes(changed.version);
    assert!(gone.documents.contains(&(Key::Node(node), None)), "{gone:?}");
    assert_eq!(fleet.documents().len(), 1);
}
