use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::identity::{Admission, NodeCertificate, PrivateKey};

fn tls(seed: u8, admit: &[u8]) -> NodeTls {
    let key = PrivateKey::from_seed(seed);
    let allow: BTreeSet<NodeId> = admit.iter().map(|seed| PrivateKey::from_seed(*seed).node_id()).collect();
    let certificate = NodeCertificate::self_signed(&key).unwrap();
    NodeTls::new(key, certificate, Admission::new(None, Some(allow)).unwrap()).unwrap()
}

fn node(seed: u8) -> NodeId {
    PrivateKey::from_seed(seed).node_id()
}

fn endpoint(seed: u8, admit: &[u8]) -> Endpoint {
    endpoint_over(Carriers::Auto, seed, admit)
}

fn endpoint_over(carrier: Carriers, seed: u8, admit: &[u8]) -> Endpoint {
    let config = TransportConfig { listen: "127.0.0.1:0".parse().unwrap(), carrier, ..Default::default() };
    Endpoint::bind(&config, &tls(seed, admit)).unwrap()
}

const EACH: [Carriers; 2] = [Carriers::Quic, Carriers::Tcp];

async fn pair(carrier: Carriers) -> (Endpoint, Endpoint, Connection, Connection) {
    let (client, server) = (endpoint_over(carrier, 1, &[2]), endpoint_over(carrier, 2, &[1]));
    let addrs = [server.local_addr()];
    let accepted = async { server.accept().await.unwrap().handshake().await.unwrap() };
    let (dialled, accepted) = tokio::join!(client.connect(node(2), &addrs), accepted);
    (client, server, dialled.unwrap(), accepted)
}

#[tokio::test]
async fn bytes_cross_in_pieces_that_know_their_place() {
    for carrier in EACH {
        bytes_cross(carrier).await;
    }
}

async fn bytes_cross(carrier: Carriers) {
    let (_client, _server, dialled, accepted) = pair(carrier).await;
    assert_eq!((dialled.peer(), accepted.peer()), (node(2), node(1)));
    let content: Bytes = (0..3_000_000u32).map(|i| (i % 253) as u8).collect::<Vec<u8>>().into();
    let sent = content.clone();
    let serve = async move {
        let (mut send, mut recv) = accepted.accept().await.unwrap();
        let mut request = [0; 4];
        recv.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"pull");
        send.write(sent).await.unwrap();
        send.finish().unwrap();
        accepted
    };
    let pull = async move {
        let (mut send, mut recv) = dialled.open().await.unwrap();
        send.write(Bytes::from_static(b"pull")).await.unwrap();
        send.finish().unwrap();
        let mut got = vec![0; content.len()];
        let mut bytes = 0;
        while let Some((offset, piece)) = recv.read_piece().await.unwrap() {
            got[offset as usize..][..piece.len()].copy_from_slice(&piece);
            bytes += piece.len();
        }
        assert_eq!(bytes, content.len());
        assert!(got == content, "content differs");
        dialled
    };
    let (accepted, _dialled) = tokio::join!(serve, pull);
    let carried = accepted.carried();
    assert!(carried.sent > 3_000_000 && carried.received > 0, "{carried:?}");
    match accepted.carrier() {
        Carrier::Quic => assert!(accepted.stats().unwrap().mtu > 1452, "loopback carries more"),
        Carrier::Tcp => assert!(accepted.stats().is_none()),
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_looks_broken_not_complete() {
    for carrier in EACH {
        dropped_stream(carrier).await;
    }
}

async fn dropped_stream(carrier: Carriers) {
    let (_client, _server, dialled, accepted) = pair(carrier).await;
    let serve = async {
        let (mut send, _recv) = accepted.accept().await.unwrap();
        send.write(Bytes::from_static(b"half an ans")).await.unwrap();
    };
    let pull = async {
        let (mut send, mut recv) = dialled.open().await.unwrap();
        send.write(Bytes::from_static(b"pull")).await.unwrap();
        send.finish().unwrap();
        end_of(&mut recv).await
    };
    let ((), error) = tokio::join!(serve, pull);
    assert!(matches!(error, TransportError::Reset(StreamCode::Failed)), "{error}");
}

/// How a stream that must not end cleanly ended.
async fn end_of(recv: &mut RecvStream) -> TransportError {
    loop {
        match recv.read_piece().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended cleanly"),
            Err(error) => return error,
        }
    }
}

#[tokio::test]
async fn strangers_are_refused_in_both_directions() {
    for carrier in EACH {
        strangers(carrier).await;
    }
}

async fn strangers(carrier: Carriers) {
    let server = Arc::new(endpoint_over(carrier, 2, &[1]));
    let addrs = [server.local_addr()];
    let accepting = server.clone();
    let tasks = crate::lifecycle::Tasks::new();
    tasks.spawn("accept", async move {
        while let Some(incoming) = accepting.accept().await {
            // The stranger's handshake must fail here too.
            let _ = incoming.handshake().await;
        }
    });
    let pinned_elsewhere = endpoint_over(carrier, 1, &[2, 3]).connect(node(3), &addrs).await.unwrap_err();
    assert!(matches!(pinned_elsewhere, TransportError::Refused { .. }), "{pinned_elsewhere}");
    // TLS 1.3 clients finish first: a server's refusal shows at the first use of the connection.
    let stranger = endpoint_over(carrier, 9, &[2]);
    match stranger.connect(node(2), &addrs).await {
        Err(error) => assert!(matches!(error, TransportError::Refused { .. }), "{error}"),
        Ok(connection) => connection.closed().await,
    }
}

#[tokio::test]
async fn nobody_at_home_is_a_timeout_and_the_next_address_is_tried() {
    let (client, server) = (endpoint_over(Carriers::Quic, 1, &[2]), Arc::new(endpoint(2, &[1])));
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addrs = [silent.local_addr().unwrap(), server.local_addr()];
    let error = client.connect(node(2), &addrs[..1]).await.unwrap_err();
    assert!(matches!(error, TransportError::TimedOut(_)), "{error}");
    let accept = async { server.accept().await.unwrap().handshake().await.unwrap() };
    let (connection, _accepted) = tokio::join!(client.connect(node(2), &addrs), accept);
    assert_eq!(connection.unwrap().remote_address(), addrs[1]);
    assert!(matches!(client.connect(node(2), &[]).await, Err(TransportError::NoAddress(_))));
}

#[tokio::test]
async fn a_config_that_cannot_work_is_refused_by_name() {
    let config =
        |max_datagram| TransportConfig { max_datagram, listen: "127.0.0.1:0".parse().unwrap(), ..Default::default() };
    for wrong in [0, 1199, 6501, 65_000] {
        let error = Endpoint::bind(&config(wrong), &tls(1, &[])).map(drop).unwrap_err();
        assert!(error.to_string().contains("max_datagram"), "{error}");
    }
}

#[tokio::test]
async fn closing_tells_the_peer_why() {
    for carrier in EACH {
        let (_client, server, dialled, _accepted) = pair(carrier).await;
        server.close(StreamCode::Draining, Duration::from_secs(5)).await;
        dialled.closed().await;
        assert!(dialled.is_closed() && server.accept().await.is_none());
        let error = dialled.open().await.map(drop).unwrap_err();
        assert!(matches!(error, TransportError::Reset(StreamCode::Draining)), "{error}");
    }
}

#[tokio::test]
async fn a_peer_that_udp_does_not_reach_is_asked_over_tcp_and_the_next_time_at_once() {
    // Somebody else may have its number for UDP.
    let with_silence = || {
        let server = endpoint_over(Carriers::Tcp, 2, &[1]);
        let silent = std::net::UdpSocket::bind(server.local_addr()).ok()?;
        Some((server, silent))
    };
    let (client, (server, _silent)) = (endpoint(1, &[2]), (0..100).find_map(|_| with_silence()).unwrap());
    let addrs = [server.local_addr()];
    assert!(!client.choice().is_tcp(node(2), Instant::now()));
    for _ in 0..2 {
        let accepted = async { server.accept().await.unwrap().handshake().await.unwrap() };
        let (dialled, accepted) = tokio::join!(client.connect(node(2), &addrs), accepted);
        let dialled = dialled.unwrap();
        assert_eq!((dialled.carrier(), dialled.peer(), accepted.peer()), (Carrier::Tcp, node(2), node(1)));
        assert!(client.choice().is_tcp(node(2), Instant::now()));
    }
    server.close(StreamCode::Done, Duration::from_secs(5)).await;
    drop(server);
    assert!(client.connect(node(2), &addrs).await.is_err());
    assert!(!client.choice().is_tcp(node(2), Instant::now()), "UDP has its chance again");
}

#[tokio::test]
async fn a_tcp_connection_that_is_cut_never_looks_like_an_end() {
    let (client, server) = (endpoint_over(Carriers::Tcp, 1, &[2]), endpoint_over(Carriers::Tcp, 2, &[1]));
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addrs, behind) = ([relay.local_addr().unwrap()], server.local_addr());
    let (cut, tasks) = (Arc::new(tokio::sync::Notify::new()), crate::lifecycle::Tasks::new());
    let scissors = cut.clone();
    tasks.spawn("relay", async move {
        let (mut near, _) = relay.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(behind).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            () = scissors.notified() => {}
        }
    });
    let accepted = async { server.accept().await.unwrap().handshake().await.unwrap() };
    let (dialled, accepted) = tokio::join!(client.connect(node(2), &addrs), accepted);
    let dialled = dialled.unwrap();
    let (mut ask, mut answer) = dialled.open().await.unwrap();
    ask.write(Bytes::from_static(b"pull")).await.unwrap();
    ask.finish().unwrap();
    let (mut send, _recv) = accepted.accept().await.unwrap();
    send.write(Bytes::from_static(b"half an ans")).await.unwrap();
    let mut begun = [0; 4];
    answer.read_exact(&mut begun).await.unwrap();
    cut.notify_one();
    let error = end_of(&mut answer).await;
    assert!(matches!(error, TransportError::Lost(_)), "{error}");
    dialled.closed().await;
    accepted.closed().await;
}

#[tokio::test]
async fn a_puller_that_stops_resets_the_stream_of_the_holder() {
    for carrier in EACH {
        let (_client, _server, dialled, accepted) = pair(carrier).await;
        let (mut ask, mut answer) = dialled.open().await.unwrap();
        ask.write(Bytes::from_static(b"pull")).await.unwrap();
        ask.finish().unwrap();
        let (mut send, _recv) = accepted.accept().await.unwrap();
        send.write(Bytes::from_static(b"first")).await.unwrap();
        answer.read_exact(&mut [0; 5]).await.unwrap();
        answer.stop(StreamCode::Malformed);
        drop((ask, answer));
        let error = loop {
            if let Err(error) = send.write(vec![0; 100_000].into()).await {
                break error;
            }
        };
        assert!(matches!(error, TransportError::Reset(_)), "{error}");
    }
}
