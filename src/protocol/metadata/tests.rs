use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use prost::Message;

use super::codec::check;
use super::*;
use crate::digest::{ArtifactId, ContentId, IdentityId, KeyId};
use crate::identity::{NodeId, PrivateKey, UnixTime};
use crate::protocol::ProtocolError;

fn node(seed: u8) -> NodeId {
    PrivateKey::from_seed(seed).node_id()
}

fn summary(seed: u8) -> Summary {
    Summary {
        artifact: ArtifactId::from_array([seed; 32]),
        identity: IdentityId::from_array([0x22; 32]),
        content: ContentId::from_array([0x33; 32]),
        family: "triton".parse().unwrap(),
        subject: "s".into(),
        generation: 2,
        created: UnixTime::from_seconds(3),
        size: 300,
        wire_size: 100,
        files: 4,
        chunks: 5,
        signer: KeyId::from_array([0x44; 32]),
        compile_ms: 0,
    }
}

fn announcement() -> Announcement {
    Announcement {
        node: node(1),
        epoch: Epoch(7),
        sequence: 8,
        state: NodeState::Ready,
        endpoints: Arc::from(["10.0.0.1:4433".parse().unwrap()]),
        load: Load { uploads: 1, upload_slots: 4 },
        locality: Arc::new(Locality { region: "r".to_owned(), zone: "z".to_owned(), rack: String::new() }),
        held: vec![Held { artifact: Arc::new(summary(0x11)), chunks_held: 5 }],
        full: true,
        server_epoch: Some(ServerEpoch(9)),
    }
}

fn found() -> Found {
    let holder = HolderInfo {
        node: node(1),
        endpoints: Arc::from(["[2001:db8::1]:4433".parse().unwrap()]),
        load: Load { uploads: 1, upload_slots: 4 },
        locality: Arc::default(),
        chunks_held: 5,
    };
    let offer = Offer { artifact: Arc::new(summary(0x11)), holders: vec![holder], holder_count: 3 };
    Found { server_epoch: ServerEpoch(9), offers: vec![offer], truncated: true }
}

#[test]
fn golden_bytes_of_an_announcement() {
    let key = HEXLOWER.encode(node(1).as_bytes());
    let expected = [
        format!("0a20{key}"),                        // 1 node
        "1007".to_owned(),                           // 2 epoch
        "1808".to_owned(),                           // 3 sequence
        "2002".to_owned(),                           // 4 state: READY
        "2a0d31302e302e302e313a34343333".to_owned(), // 5 endpoint "10.0.0.1:4433"
        "3204".to_owned() + "0801" + "1004",         // 6 load: uploads, upload_slots
        "3a06".to_owned() + "0a0172" + "12017a",     // 7 locality: region "r", zone "z"
        "42a501".to_owned(),                         // 8 artifact, 165 bytes
        "0aa001".to_owned(),                         // 8.1 summary, 160 bytes
        golden_summary(),
        "1005".to_owned(), // 8.2 chunks_held
        "4801".to_owned(), // 9 full
        "5009".to_owned(), // 10 server_epoch
    ];
    assert_eq!(HEXLOWER.encode(&announcement().encode()), expected.concat());
}

#[test]
fn golden_bytes_of_a_lookup_reply() {
    let key = HEXLOWER.encode(node(1).as_bytes());
    let expected = [
        "0809".to_owned(),   // 1 server_epoch
        "12e701".to_owned(), // 2 offer, 231 bytes
        "0aa001".to_owned(), // 2.1 summary, 160 bytes
        golden_summary(),
        "1240".to_owned(),                                           // 2.2 holder, 64 bytes
        format!("0a20{key}"),                                        // 2.2.1 node
        "1212".to_owned() + &HEXLOWER.encode(b"[2001:db8::1]:4433"), // 2.2.2 endpoint
        "1a04".to_owned() + "0801" + "1004",                         // 2.2.3 load
        "2200".to_owned(),                                           // 2.2.4 locality
        "2805".to_owned(),                                           // 2.2.5 chunks_held
        "1803".to_owned(),                                           // 2.3 holder_count
        "1801".to_owned(),                                           // 3 truncated
    ];
    assert_eq!(HEXLOWER.encode(&pb::LookupReply::from(found()).encode_to_vec()), expected.concat());
}

fn golden_summary() -> String {
    let digest = |byte: &str| byte.repeat(32);
    [
        "0a20".to_owned() + &digest("11"), // 1 artifact_id
        "1220".to_owned() + &digest("22"), // 2 identity
        "1a20".to_owned() + &digest("33"), // 3 content_id
        "2206747269746f6e".to_owned(),     // 4 family "triton"
        "2a0173".to_owned(),               // 5 subject "s"
        "3002".to_owned(),                 // 6 generation
        "3803".to_owned(),                 // 7 created_s
        "40ac02".to_owned(),               // 8 size 300
        "4864".to_owned(),                 // 9 wire_size 100
        "5004".to_owned(),                 // 10 files
        "5805".to_owned(),                 // 11 chunks
        "6220".to_owned() + &digest("44"), // 12 signer
    ]
    .concat()
}

#[test]
fn what_cannot_be_reached_from_another_machine_is_no_endpoint() {
    for bad in [
        "10.0.0.1",
        "10.0.0.1:0",
        "0.0.0.0:1",
        "[::]:1",
        "224.0.0.1:1",
        "[ff02::1]:1",
        "255.255.255.255:1",
        "169.254.169.254:80",
        "[fe80::1]:1",
        "[::ffff:169.254.169.254]:80",
        "host:1",
        "http://10.0.0.1:1",
        "",
    ] {
        assert_eq!(bad.parse::<Endpoint>(), Err(InvalidEndpoint), "{bad}");
    }
    let mapped: Endpoint = "[::ffff:127.0.0.1]:9".parse().unwrap();
    assert!(mapped.is_loopback());
    assert_eq!(mapped.to_string(), "127.0.0.1:9");
}

#[test]
fn closeness_needs_every_wider_place_to_be_the_same_and_known() {
    let place = |region: &str, zone: &str, rack: &str| Locality {
        region: region.to_owned(),
        zone: zone.to_owned(),
        rack: rack.to_owned(),
    };
    let here = place("r", "z", "k");
    assert_eq!(here.closeness(&place("r", "z", "k")), Closeness::SameRack);
    assert_eq!(here.closeness(&place("r", "z", "other")), Closeness::SameZone);
    assert_eq!(here.closeness(&place("r", "other", "k")), Closeness::SameRegion);
    assert_eq!(here.closeness(&place("other", "z", "k")), Closeness::Other);
    assert_eq!(Locality::default().closeness(&Locality::default()), Closeness::Other);
    assert_eq!(place("r", "z", "").closeness(&place("r", "z", "")), Closeness::SameZone);
}

#[test]
fn every_broken_field_of_an_announcement_is_named() {
    let good = || pb::AnnounceRequest::from(&announcement());
    type Break = fn(&mut pb::AnnounceRequest);
    let broken: [(&str, Break); 13] = [
        ("node", |a| a.node = Bytes::new()),
        ("node", |a| a.node = Bytes::from_static(&[0; 32])),
        ("node", |a| a.node = Bytes::from_static(b"short")),
        ("state", |a| a.state = 0),
        ("state", |a| a.state = 99),
        ("endpoints", |a| a.endpoints = vec!["nowhere".to_owned()]),
        ("endpoints", |a| a.endpoints = vec!["10.0.0.1:1".to_owned(); MAX_ENDPOINTS + 1]),
        ("region", |a| a.locality.as_mut().unwrap().region = "x".repeat(MAX_PLACE + 1)),
        ("artifacts", |a| a.artifacts.push(a.artifacts[0].clone())),
        ("artifact", |a| a.artifacts[0].artifact = None),
        ("chunks_held", |a| a.artifacts[0].chunks_held = 6),
        ("family", |a| a.artifacts[0].artifact.as_mut().unwrap().family = "No".to_owned()),
        ("subject", |a| a.artifacts[0].artifact.as_mut().unwrap().subject = "a\u{1b}[31m".to_owned()),
    ];
    assert!(Announcement::try_from(good()).is_ok());
    for (field, break_it) in broken {
        let mut message = good();
        break_it(&mut message);
        let error = Announcement::try_from(message).unwrap_err();
        assert!(error.to_string().contains(&format!("`{field}`")), "{field}: {error}");
    }
}

#[test]
fn requests_over_their_limits_are_refused() {
    let ids =
        |n: usize| (0..n).map(|i| Bytes::copy_from_slice(IdentityId::of(&[i as u8]).as_bytes())).collect::<Vec<_>>();
    let watch = |n| Vec::<IdentityId>::try_from(pb::WatchRequest { identities: ids(n) });
    assert_eq!(watch(0), Err(ProtocolError::Missing("identities")));
    assert!(watch(MAX_IDENTITIES).is_ok());
    assert!(matches!(watch(MAX_IDENTITIES + 1), Err(ProtocolError::TooMany { .. })));
    let twice = pb::WatchRequest { identities: vec![ids(1)[0].clone(), ids(1)[0].clone()] };
    assert_eq!(Vec::<IdentityId>::try_from(twice), Err(ProtocolError::Invalid("identities")));
    let lookup = pb::LookupRequest { identities: ids(1), want: 65, ..Default::default() };
    assert!(matches!(Lookup::try_from(lookup), Err(ProtocolError::TooMany { field: "want", .. })));
    let list = pb::ListRequest { page_size: 1001, ..Default::default() };
    assert!(matches!(PageRequest::try_from(list), Err(ProtocolError::TooMany { field: "page_size", .. })));
    let list = pb::ListRequest { page_token: Bytes::from_static(b"12345"), ..Default::default() };
    assert_eq!(PageRequest::try_from(list), Err(ProtocolError::Invalid("page_token")));
}

#[test]
fn replies_without_a_server_epoch_or_with_endless_intervals_are_refused() {
    let reply = pb::AnnounceReply { server_epoch: 1, lease_ms: 30_000, heartbeat_ms: 10_000, ..Default::default() };
    assert!(AnnounceReply::try_from(reply).is_ok());
    for reply in [
        pb::AnnounceReply { server_epoch: 0, ..reply },
        pb::AnnounceReply { heartbeat_ms: 0, ..reply },
        pb::AnnounceReply { heartbeat_ms: u64::MAX, ..reply },
        pb::AnnounceReply { lease_ms: 0, ..reply },
    ] {
        assert!(AnnounceReply::try_from(reply).is_err(), "{reply:?}");
    }
    let mut lie = pb::LookupReply::from(found());
    lie.offers[0].holders[0].chunks_held = 6;
    assert_eq!(Found::try_from(lie), Err(ProtocolError::Invalid("chunks_held")));
}

/// Two bytes each on the wire, hundreds each in memory.
#[test]
fn millions_of_empty_elements_are_counted_before_they_are_decoded() {
    use super::codec::Shaped;
    let refused = |bytes: &[u8], shape| matches!(check(bytes, shape), Err(ProtocolError::TooMany { .. }));
    assert!(refused(&[0x42, 0].repeat(2_000_000), pb::AnnounceRequest::SHAPE));
    assert!(refused(&[0x12, 0].repeat(MAX_OFFERS + 1), pb::LookupReply::SHAPE));
    assert!(check(&[0x12, 0].repeat(MAX_OFFERS), pb::LookupReply::SHAPE).is_ok());
    let holders = pb::Offer { holders: vec![pb::Holder::default(); MAX_HOLDERS + 1], ..Default::default() };
    let reply = pb::LookupReply { offers: vec![holders.clone()], ..Default::default() };
    assert!(refused(&reply.encode_to_vec(), pb::LookupReply::SHAPE));
    let holder = pb::Holder { endpoints: vec![String::new(); MAX_ENDPOINTS + 1], ..Default::default() };
    let offer = pb::Offer { holders: vec![holder], ..Default::default() };
    let page = pb::ListReply { offers: vec![offer], ..Default::default() };
    assert!(refused(&page.encode_to_vec(), pb::ListReply::SHAPE));
    assert_eq!(check(&[0x12, 200], pb::LookupReply::SHAPE), Err(ProtocolError::Frame));
}

fn arb_summary() -> impl Strategy<Value = Arc<Summary>> {
    (
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
        "[a-z0-9-]{1,12}",
        "[a-zA-Z0-9/@:é]{0,20}",
        any::<(u64, u32, u64, u64, u32, u32)>(),
        0u32..200,
    )
        .prop_map(|(a, b, family, subject, (generation, created, size, wire_size, files, compile_ms), chunks)| {
            Arc::new(Summary {
                artifact: ArtifactId::from_array(a),
                identity: IdentityId::from_array(b),
                content: ContentId::from_array(a),
                family: family.parse().unwrap(),
                subject: subject.into(),
                generation,
                created: UnixTime::from_seconds(created.into()),
                size,
                wire_size,
                files,
                chunks,
                signer: KeyId::from_array(b),
                compile_ms,
            })
        })
}

fn arb_endpoints() -> impl Strategy<Value = Arc<[Endpoint]>> {
    let v4 = (1u8..=126, any::<u8>(), 1u16..).prop_map(|(a, b, port)| format!("{a}.0.{b}.7:{port}").parse().unwrap());
    let v6 = (any::<u16>(), 1u16..).prop_map(|(a, port)| format!("[2001:db8::{a:x}]:{port}").parse().unwrap());
    prop::collection::vec(prop_oneof![v4, v6], 0..=MAX_ENDPOINTS).prop_map(Arc::from)
}

fn arb_locality() -> impl Strategy<Value = Arc<Locality>> {
    ("[a-z]{0,8}", "[a-z]{0,8}", "[a-z]{0,8}")
        .prop_map(|(region, zone, rack)| Arc::new(Locality { region, zone, rack }))
}

prop_compose! {
    fn arb_announcement()(
        seed: u8, numbers: (u64, u64, u32, u32, u64), full: bool,
        state in prop::sample::select(vec![
            NodeState::Initializing, NodeState::Ready, NodeState::Draining, NodeState::Stale,
        ]),
        endpoints in arb_endpoints(), locality in arb_locality(),
        artifacts in prop::collection::btree_map(any::<[u8; 32]>(), arb_summary(), 0..4),
    ) -> Announcement {
        let (epoch, sequence, uploads, upload_slots, server) = numbers;
        let held = artifacts.into_values().map(|artifact| Held { chunks_held: artifact.chunks / 2, artifact }).collect();
        Announcement {
            node: node(seed), epoch: Epoch(epoch), sequence, state, endpoints,
            load: Load { uploads, upload_slots }, locality, held, full,
            server_epoch: (server != 0).then_some(ServerEpoch(server)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn announcements_round_trip(announcement in arb_announcement()) {
        prop_assert_eq!(Announcement::decode(&announcement.encode()).unwrap(), announcement);
    }

    #[test]
    fn replies_round_trip(
        summary in arb_summary(), endpoints in arb_endpoints(), locality in arb_locality(),
        epoch in 1u64.., count: u32, truncated: bool, seed: u8,
    ) {
        let holder = HolderInfo {
            node: node(seed), endpoints, load: Load::default(), locality, chunks_held: summary.chunks / 2,
        };
        let offer = Offer { artifact: summary, holders: vec![holder], holder_count: count };
        let found = Found { server_epoch: ServerEpoch(epoch), offers: vec![offer.clone()], truncated };
        let bytes = pb::LookupReply::from(found.clone()).encode_to_vec();
        prop_assert_eq!(Found::try_from(pb::LookupReply::decode(bytes.as_slice()).unwrap()).unwrap(), found);
        let page = Page {
            server_epoch: ServerEpoch(epoch), offers: vec![offer], next: Some(PageToken(count)), nodes: count,
        };
        prop_assert_eq!(Page::try_from(pb::ListReply::from(page.clone())).unwrap(), page);
    }

    #[test]
    fn lookups_and_events_round_trip(a: [u8; 32], b: [u8; 32], seed: u8, want in 0u32..=64, near in arb_locality()) {
        let lookup = Lookup {
            identities: vec![IdentityId::from_array(a)], want: (want != 0).then_some(want),
            near: near.as_ref().clone(), exclude: vec![node(seed)],
        };
        prop_assert_eq!(Lookup::try_from(pb::LookupRequest::from(&lookup)).unwrap(), lookup);
        let (identity, artifact, node) = (IdentityId::from_array(a), ArtifactId::from_array(b), node(seed));
        for kind in [
            WatchKind::HolderAdded { identity, artifact, node },
            WatchKind::HolderGone { identity, artifact, node },
            WatchKind::Lagged,
        ] {
            let event = WatchEvent { server_epoch: ServerEpoch(1), kind };
            prop_assert_eq!(WatchEvent::try_from(pb::WatchEvent::from(event)).unwrap(), event);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Announcement::decode(&bytes);
        let _ = Held::decode(&bytes);
    }
}
