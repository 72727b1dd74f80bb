//! Documents of trust at a server: kept if they can be verified, whatever is behind it, and the same at all servers that
//! share a store.

use bytes::Bytes;

use super::shared::Redis;
use super::*;
use crate::identity::trust::{Documents, Known, PolicyRole, ROOT_TYPE, Role, Root};
use crate::identity::{Envelope, POLICY_TYPE, UnixTime};

fn root(version: u64) -> Envelope {
    let role = Role { keys: vec![PrivateKey::from_seed(1).public()], threshold: 1 };
    let policy = PolicyRole { keys: vec![PrivateKey::from_seed(2).public()], threshold: 1, least: 1 };
    let expires = UnixTime::from_seconds(4_000_000_000);
    let root = Root { version, expires, root: role, policy, freshness: None };
    Envelope::sign(ROOT_TYPE, root.to_toml().unwrap().into(), &[&PrivateKey::from_seed(1)])
}

fn policy(version: u64, key: u8) -> Documents {
    let text = Bytes::from(format!("version = {version}\nexpires = \"2050-01-01T00:00:00Z\"\n"));
    let policy = Envelope::sign(POLICY_TYPE, text, &[&PrivateKey::from_seed(key)]);
    Documents { policy: Some(policy), ..Documents::default() }
}

async fn server(cluster: &Cluster, store: Store) -> Server {
    let config = Config { store, trust: Some(root(1)), ..Config::new("127.0.0.1:0".parse().unwrap()) };
    Server::bind(config, &cluster.node(SERVER), &mut Metrics::default()).await.unwrap()
}

async fn stamp(client: &Client, sequence: u64) -> u64 {
    client.announce(&ready(2, sequence, Vec::new())).await.unwrap().trust
}

fn refused(result: Result<Known, ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Refused { words, .. } => words.to_string(),
        other => panic!("{other}"),
    }
}

async fn documents_are_kept_if_they_can_be_verified(store: Store) {
    let cluster = Cluster::new(1);
    let server = server(&cluster, store).await;
    let client = cluster.client(2, &server);
    let before = stamp(&client, 1).await;
    assert_ne!(before, 0);
    let known = client.put_trust(&policy(3, 2)).await.unwrap();
    assert_eq!(known, Known { root: 1, policy: 3, issued: 0 });
    assert_ne!(stamp(&client, 2).await, before, "the next heartbeat tells");
    assert!(refused(client.put_trust(&policy(4, 1)).await).contains("0 valid signatures"));
    assert!(refused(client.put_trust(&policy(2, 2)).await).contains("older than version 3"));
    client.put_trust(&Documents { roots: vec![root(2)], ..policy(4, 2) }).await.unwrap();
    let handed = client.trust(Known { root: 1, ..Known::default() }).await.unwrap();
    assert_eq!(handed, Documents { roots: vec![root(2)], ..policy(4, 2) });
    assert!(client.trust(Known { root: 2, policy: 4, issued: 0 }).await.unwrap().is_empty());
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_server_keeps_what_it_can_verify_whatever_is_behind_it() {
    documents_are_kept_if_they_can_be_verified(Store::Memory).await;
    let dir = tempfile::tempdir().unwrap();
    documents_are_kept_if_they_can_be_verified(Store::File(dir.path().to_owned())).await;
    if let Some(redis) = Redis::start().await {
        documents_are_kept_if_they_can_be_verified(redis.store(Drift::Abort)).await;
    }
}

#[tokio::test]
async fn a_server_without_a_root_document_keeps_nothing() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let client = cluster.client(2, &server);
    assert!(refused(client.put_trust(&policy(1, 2)).await).contains("trust.root"));
    assert_eq!(stamp(&client, 1).await, 0);
    assert!(client.trust(Known::default()).await.unwrap().is_empty());
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_server_with_a_file_has_its_documents_after_a_restart() {
    let (cluster, dir) = (Cluster::new(1), tempfile::tempdir().unwrap());
    let store = || Store::File(dir.path().to_owned());
    let first = server(&cluster, store()).await;
    cluster.client(2, &first).put_trust(&policy(3, 2)).await.unwrap();
    first.shutdown(PATIENCE).await;
    let second = server(&cluster, store()).await;
    let client = cluster.client(2, &second);
    assert_eq!(client.trust(Known { root: 1, ..Known::default() }).await.unwrap(), policy(3, 2));
    assert!(client.put_trust(&policy(2, 2)).await.is_err());
    second.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn what_one_server_was_handed_the_others_hand_out_and_a_lost_store_gets_it_back() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let (a, b) = (server(&cluster, redis.store(Drift::Abort)).await, server(&cluster, redis.store(Drift::Abort)).await);
    let (at_a, at_b) = (cluster.client(2, &a), cluster.client(3, &b));
    at_a.put_trust(&policy(1, 2)).await.unwrap();
    // Each is handed another one at the same time: the newer one stays.
    let (two, three) = (policy(2, 2), policy(3, 2));
    let (_, newer) = tokio::join!(at_a.put_trust(&two), at_b.put_trust(&three));
    newer.unwrap();
    for client in [&at_a, &at_b] {
        until_policy(client, 3).await;
    }
    redis.empty();
    let late = server(&cluster, redis.store(Drift::Abort)).await;
    until_policy(&cluster.client(4, &late), 3).await;
    assert!(redis.ask(&["HSET", "{warmd}:trust", "stamp", "1", "documents", "nonsense"]).starts_with('0'));
    let last = server(&cluster, redis.store(Drift::Abort)).await;
    until_policy(&cluster.client(5, &last), 3).await;
    for server in [a, b, late, last] {
        server.shutdown(PATIENCE).await;
    }
}

async fn until_policy(client: &Client, version: u64) {
    let expected = policy(version, 2).policy;
    let has = async {
        while client.trust(Known { root: 1, ..Known::default() }).await.map(|found| found.policy).ok()
            != Some(expected.clone())
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, has).await.unwrap();
}
