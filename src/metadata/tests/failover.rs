//! One name, several servers.

use tokio::net::TcpListener;

use super::*;

/// Servers on one port of different loopback addresses, as behind one name.
async fn named(cluster: &Cluster) -> (Vec<Server>, Vec<SocketAddr>) {
    loop {
        let first = cluster.server_at("127.0.0.1:0".parse().unwrap(), None).await;
        let second = SocketAddr::from(([127, 0, 0, 2], first.addr().port()));
        if let Ok(free) = TcpListener::bind(second).await {
            drop(free);
            let second = cluster.server_at(second, None).await;
            let addrs = vec![first.addr(), second.addr()];
            return (vec![first, second], addrs);
        }
    }
}

fn of_name(cluster: &Cluster, means: Vec<SocketAddr>) -> Client {
    let name = ServerAddr::new(Some(key(SERVER)), means[0]);
    Client::of_name(name, means, PATIENCE, &cluster.node(2))
}

/// Tells the servers apart: each has an epoch of its own.
async fn epoch(client: &Client) -> u64 {
    client.list(&PageRequest::default()).await.unwrap().server_epoch.0
}

#[tokio::test]
async fn of_a_name_with_several_addresses_the_next_is_asked_when_one_is_gone() {
    let cluster = Cluster::new(1);
    let (servers, addrs) = named(&cluster).await;
    let client = of_name(&cluster, addrs.clone());
    let first = epoch(&client).await;
    for _ in 0..5 {
        assert_eq!(epoch(&client).await, first, "it stays where it was served");
    }
    let [one, other] = <[Server; 2]>::try_from(servers).unwrap();
    let direct = cluster.client(3, &one);
    let (served, idle) = if epoch(&direct).await == first { (one, other) } else { (other, one) };
    served.shutdown(Duration::ZERO).await;
    let second = epoch(&client).await;
    assert_ne!(second, first);
    idle.shutdown(Duration::ZERO).await;
    assert!(matches!(client.list(&PageRequest::default()).await, Err(ClientError::Unavailable { .. })));
}

#[tokio::test]
async fn an_address_that_never_answers_costs_only_its_share_of_the_deadline() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let means = vec![silent.local_addr().unwrap(), server.addr()];
    let name = ServerAddr::new(Some(key(SERVER)), server.addr());
    for _ in 0..4 {
        let short = Duration::from_secs(6);
        let client = Client::of_name(name.clone(), means.clone(), short, &cluster.node(2));
        client.list(&PageRequest::default()).await.unwrap();
    }
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn calls_that_lose_their_server_together_are_all_answered_by_the_next() {
    let cluster = Cluster::new(1);
    let (servers, addrs) = named(&cluster).await;
    let client = of_name(&cluster, addrs);
    let first = epoch(&client).await;
    let [one, other] = <[Server; 2]>::try_from(servers).unwrap();
    let direct = cluster.client(3, &one);
    let (served, idle) = if epoch(&direct).await == first { (one, other) } else { (other, one) };
    let calls = async {
        // Some of these are under way when the server ends.
        for _ in 0..20 {
            futures_util::future::join_all((0..16).map(|_| epoch(&client))).await;
        }
    };
    tokio::join!(calls, served.shutdown(Duration::ZERO));
    assert_ne!(epoch(&client).await, first);
    idle.shutdown(PATIENCE).await;
}
