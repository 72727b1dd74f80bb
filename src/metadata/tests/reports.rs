//! A member that reports what it should not: over the real call, with a certificate that is good.

use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::hostile::careless;
use super::*;
use crate::protocol::fleet::{Fleet as Documents, NodeDocument};
use crate::protocol::metadata::{MAX_MESSAGE, pb};
use crate::protocol::report::NodeReport;
use crate::protocol::report::tests::report;

/// Bytes as they are, whatever the call takes.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}

async fn send(channel: &Channel, bytes: Vec<u8>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = "/warmd.v1.Metadata/Report".parse().unwrap();
    grpc.unary(tonic::Request::new(bytes), path, Raw).await.map(drop)
}

async fn documents(client: &Client) -> Vec<NodeDocument> {
    let mut fleet = Documents::default();
    for document in &client.fleet(None).await.unwrap().documents {
        fleet.add(document).unwrap();
    }
    fleet.nodes
}

/// A server with two nodes: a good one that has reported, and one that is up to something.
async fn two() -> (Cluster, Server, Client, Channel) {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let good = cluster.client(2, &server);
    good.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    good.report(&report()).await.unwrap();
    cluster.client(3, &server).announce(&ready(3, 1, Vec::new())).await.unwrap();
    let certificate = NodeCertificate::load(&cluster.dir.path().join("3.pem")).unwrap();
    let hostile = careless(server.addr(), Some((&certificate, 3)));
    (cluster, server, good, hostile)
}

fn spoilt(spoil: impl FnOnce(&mut pb::NodeReport)) -> Vec<u8> {
    let mut bad = pb::NodeReport::from(&report());
    spoil(&mut bad);
    bad.encode_to_vec()
}

#[tokio::test]
async fn a_report_that_is_too_large_too_deep_or_not_for_a_terminal_is_refused_and_nobody_else_notices() {
    let (_cluster, server, good, hostile) = two().await;
    let of = |fleet: Vec<NodeDocument>, seed| fleet.into_iter().find(|node| node.id == key(seed)).unwrap();
    // The start of a group of a field that there is not.
    let group = [0xbb, 0x3e];
    let problem = pb::NodeReport::from(&report()).problems[0].clone();
    let bad = [
        ("more than a message may have", vec![0; MAX_MESSAGE + 1]),
        ("more than a report may have", spoilt(|bad| bad.starts = vec![bad.starts[0].clone(); 400])),
        ("more problems than are kept", spoilt(|bad| bad.problems = vec![problem; 17])),
        ("a name without end", spoilt(|bad| bad.name = "n".repeat(65))),
        ("a terminal's commands", spoilt(|bad| bad.name = "a\u{1b}[2J".to_owned())),
        ("another line", spoilt(|bad| bad.problems[0].text = "all is well\nerror: b: broken".to_owned())),
        ("text from right to left", spoilt(|bad| bad.problems[0].way_out = "rm \u{202e}fr".to_owned())),
        ("groups in groups", group.repeat(20_000)),
        ("nonsense", vec![0xff; 100]),
    ];
    for (what, bytes) in bad {
        let refused = send(&hostile, bytes).await.expect_err(what);
        use Code::{DataLoss, Internal, InvalidArgument, OutOfRange};
        assert!(matches!(refused.code(), InvalidArgument | OutOfRange | Internal | DataLoss), "{what}: {refused:?}");
        assert!(refused.message().len() < 400 && !refused.message().contains('\u{1b}'), "{what}: {refused:?}");
        let fleet = documents(&good).await;
        assert_eq!(of(fleet.clone(), 3).report, None, "{what}");
        assert_eq!(of(fleet, 2).report, Some(report()), "{what}");
    }
    send(&hostile, spoilt(|_| ())).await.unwrap();
    assert_eq!(
        of(documents(&good).await, 3).report,
        Some(report()),
        "the same node is heard when it keeps to the rules"
    );
    server.shutdown(PATIENCE).await;
}

/// A report names no node: it is of whoever has the certificate.
#[tokio::test]
async fn a_node_that_calls_itself_like_another_changes_its_own_report_only() {
    let (_cluster, server, good, hostile) = two().await;
    send(&hostile, spoilt(|bad| bad.version = "9".to_owned())).await.unwrap();
    let version = |report: &Option<NodeReport>| report.as_ref().unwrap().version.to_string();
    let mut told: Vec<_> = documents(&good).await.iter().map(|node| (node.id, version(&node.report))).collect();
    told.sort_unstable();
    let mut expected = vec![(key(2), report().version.to_string()), (key(3), "9".to_owned())];
    expected.sort_unstable();
    assert_eq!(told, expected);
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_flood_of_reports_leaves_one_of_each_node_and_others_are_answered_meanwhile() {
    let (_cluster, server, good, hostile) = two().await;
    let largest = spoilt(|bad| {
        let room = |bad: &pb::NodeReport| bad.encoded_len() + bad.problems[0].encoded_len() < 16 * 1024;
        while bad.problems.len() < 16 && room(bad) {
            bad.problems.push(bad.problems[0].clone());
        }
    });
    let flood = async {
        let mut taken = 0;
        for _ in 0..3 {
            let together = (0..50).map(|_| send(&hostile, largest.clone()));
            taken += futures_util::future::join_all(together).await.into_iter().filter(Result::is_ok).count();
        }
        taken
    };
    let others = async {
        for _ in 0..20 {
            assert_eq!(good.lookup(&lookup(1)).await.unwrap().offers.len(), 1);
            good.report(&report()).await.unwrap();
        }
    };
    let (taken, ()) = tokio::join!(flood, others);
    let fleet = documents(&good).await;
    assert!(taken > 0 && fleet.len() == 2, "{taken} of 150 reports, {} nodes", fleet.len());
    let own = fleet.iter().find(|node| node.id == key(2)).unwrap();
    assert_eq!(own.report, Some(report()));
    server.shutdown(PATIENCE).await;
}
