use data_encoding::HEXLOWER;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::identity::PrivateKey;
use crate::protocol::ProtocolError;
use crate::protocol::metadata::pb;

fn node(seed: u8) -> NodeId {
    PrivateKey::from_seed(seed).node_id()
}

pub(crate) fn family(name: &str) -> StartedFamily {
    StartedFamily {
        family: name.parse().unwrap(),
        offered: 1,
        installed: 19,
        used: 19,
        recompiled: 0,
        saved: Duration::from_millis(12_500),
        reason: None,
    }
}

/// One of each.
pub(crate) fn report() -> NodeReport {
    let start = Start {
        at: UnixMillis(900),
        outcome: Warmth::Partly,
        end: End::Ready,
        ready: Some(Duration::from_millis(19_100)),
        saved: Duration::from_millis(12_500),
        families: vec![
            family("vllm-aot"),
            StartedFamily {
                used: 0,
                recompiled: 3,
                saved: Duration::ZERO,
                reason: Some(Text::cut("torch 2.14 here, 2.13 there")),
                ..family("triton")
            },
        ],
    };
    let mut transfer = Transfer::new(ArtifactId::from_array([7; 32]), "triton".parse().unwrap(), 400, 1_000, Some(100));
    transfer.holders = vec![TransferHolder { node: node(2), bytes: 400 }];
    NodeReport {
        name: Text::cut("gpu-a1"),
        version: Text::cut("0.1.0"),
        started_at: UnixMillis(100),
        clock: UnixMillis(1_000),
        discovery: Discovery::Hybrid,
        carrier: Some(Carrier::Quic),
        engine: Some(Engine { state: EngineState::Serving, adapters: Some(2) }),
        disk: Disk { used: 10, limit: Some(100), free: 50 },
        totals: Totals { received: 1, sent: 2, hits: 3, misses: [(MissReason::NobodyHasIt, 4)].into() },
        policy: Some(PolicyInForce { version: 5, expires_at: UnixMillis(2_000) }),
        starts: vec![start],
        transfers: vec![transfer],
        problems: vec![Problem {
            kind: ProblemKind::DiskFull,
            text: Text::cut("50 B are free"),
            way_out: Text::cut("raise it"),
        }],
        network: Network {
            quic: 1,
            mtu: Some(1_452),
            buffer_wanted: 8,
            receive_buffer: 8,
            send_buffer: 8,
            ..Default::default()
        },
        gpus: vec![gpu(0)],
    }
}

fn gpu(index: u8) -> Gpu {
    Gpu {
        index,
        name: Text::cut("NVIDIA H100 80GB HBM3"),
        utilization: Percent::new(35),
        memory: Some(GpuMemory { used: 61 << 30, total: 80 << 30 }),
    }
}

#[test]
fn what_goes_over_the_wire_comes_back_the_same() {
    assert_eq!(NodeReport::decode(&report().encode()), Ok(report()));
    assert_eq!(NodeReport::decode(&NodeReport::default().encode()), Ok(NodeReport::default()));
}

#[test]
fn the_wire_form_does_not_change() {
    let mut report = report();
    report.transfers.clear();
    report.starts[0].families.truncate(1);
    assert_eq!(HEXLOWER.encode(&report.encode()), include_str!("golden.hex").trim());
}

#[test]
fn the_json_form_is_the_one_that_pages_are_written_against() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(json["starts"][0]["outcome"], "partly");
    assert_eq!(json["starts"][0]["ready_s"], 19.1);
    assert_eq!(json["starts"][0]["families"][1]["reason"], "torch 2.14 here, 2.13 there");
    assert_eq!(json["starts"][0]["families"][0]["reason"], serde_json::Value::Null);
    assert_eq!(json["transfers"][0]["eta_s"], 6.0);
    assert_eq!(json["transfers"][0]["holders"][0]["bytes"], 400);
    assert_eq!(json["totals"]["misses"]["nobody-has-it"], 4);
    assert_eq!(json["engine"]["state"], "serving");
    let memory = serde_json::json!({"used": 61_u64 << 30, "total": 80_u64 << 30});
    assert_eq!((&json["gpus"][0]["utilization"], &json["gpus"][0]["memory"]), (&35.into(), &memory));
    assert_eq!((&json["carrier"], &json["discovery"]), (&"quic".into(), &"hybrid".into()));
    assert_eq!(
        (&json["problems"][0]["kind"], &json["problems"][0]["way_out"]),
        (&"disk-full".into(), &"raise it".into())
    );
    assert_eq!(serde_json::from_value::<NodeReport>(json).unwrap(), report());
}

fn refused(change: impl FnOnce(&mut pb::NodeReport)) -> ProtocolError {
    let mut message = pb::NodeReport::from(&report());
    change(&mut message);
    NodeReport::decode(&message.encode_to_vec()).unwrap_err()
}

#[test]
fn hostile_reports_are_refused_whole() {
    let too_many = |field, limit| ProtocolError::TooMany { field, limit };
    assert_eq!(refused(|report| report.name = "x".repeat(1_000_000)), too_many("report", MAX_REPORT));
    assert_eq!(refused(|report| report.name = "x".repeat(65)), too_many("name", NAME));
    for text in ["\u{1b}[2J", "a\nb", "\u{202e}evil", "\u{200b}"] {
        assert_eq!(refused(|report| report.problems[0].text = text.to_owned()), ProtocolError::Invalid("text"));
    }
    assert_eq!(refused(|report| report.starts = vec![Default::default(); 9]), too_many("starts", MAX_STARTS));
    assert_eq!(refused(|report| report.transfers = vec![Default::default(); 17]), too_many("transfers", MAX_TRANSFERS));
    let families = |report: &mut pb::NodeReport| report.starts[0].families = vec![Default::default(); 17];
    assert_eq!(refused(families), too_many("families", MAX_START_FAMILIES));
    assert_eq!(refused(|report| report.gpus = vec![Default::default(); 17]), too_many("gpus", MAX_GPUS));
    assert_eq!(refused(|report| report.gpus[0].utilization = Some(101)), ProtocolError::Invalid("utilization"));
    assert_eq!(refused(|report| report.gpus[0].index = 256), ProtocolError::Invalid("index"));
    assert_eq!(refused(|report| report.discovery = 9), ProtocolError::Invalid("discovery"));
    assert_eq!(refused(|report| report.starts[0].warmth = 0), ProtocolError::Missing("warmth"));
    assert_eq!(
        refused(|report| report.network = Some(pb::Network { mtu: 1 << 20, ..Default::default() })),
        ProtocolError::Invalid("mtu")
    );
    let twice = |report: &mut pb::NodeReport| {
        let totals = report.totals.as_mut().unwrap();
        totals.misses.push(totals.misses[0]);
    };
    assert_eq!(refused(twice), ProtocolError::Invalid("misses"));
}

#[test]
fn a_gpu_that_is_not_told_of_has_no_numbers() {
    let silent = Gpu { utilization: None, memory: None, ..gpu(3) };
    let report = NodeReport { gpus: vec![silent], ..report() };
    assert_eq!(NodeReport::decode(&report.encode()), Ok(report.clone()));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["gpus"][0]["utilization"], &json["gpus"][0]["memory"]), (&().into(), &().into()));
    assert!(serde_json::from_str::<Percent>("101").unwrap_err().to_string().contains("0 to 100"));
}

#[test]
fn what_gpus_do_is_no_news_and_which_there_are_is() {
    let before = NodeReport { transfers: Vec::new(), ..report() };
    let mut now = before.clone();
    (now.gpus[0].utilization, now.gpus[0].memory) = (Percent::new(99), None);
    assert!(now.adds_nothing_to(&before));
    now.gpus.push(gpu(1));
    assert!(!now.adds_nothing_to(&before) && !before.adds_nothing_to(&now));
}

#[test]
fn times_and_rates_in_json_are_never_nan_and_a_stalled_transfer_has_no_end() {
    let stalled = Transfer::new(ArtifactId::from_array([1; 32]), "triton".parse().unwrap(), 1, 2, Some(0));
    assert_eq!((stalled.rate, stalled.eta), (None, None));
    let over = Transfer::new(ArtifactId::from_array([1; 32]), "triton".parse().unwrap(), 3, 2, Some(1));
    assert_eq!(over.eta, Some(Duration::ZERO));
    for wrong in ["-1", "1e400", "null", "\"x\""] {
        let json =
            serde_json::to_string(&report()).unwrap().replace("\"saved_s\":12.5", &format!("\"saved_s\":{wrong}"));
        assert!(serde_json::from_str::<NodeReport>(&json).is_err(), "{wrong}");
    }
}

#[test]
fn texts_are_cut_and_made_plain() {
    assert_eq!(Text::<8>::cut("a\u{1b}[31m\nred").as_str(), "a?[31m?r");
    assert_eq!(Text::<4>::cut("äöü").as_str(), "äö");
    assert_eq!(Text::<5>::cut("äöü").as_str(), "äö");
    assert!(Text::<4>::try_from("a\u{202e}".to_owned()).is_err());
}

fn any_report() -> impl Strategy<Value = NodeReport> {
    let started =
        (".*", any::<[u32; 4]>()).prop_map(|(reason, [offered, installed, used, recompiled])| StartedFamily {
            offered,
            installed,
            used,
            recompiled,
            saved: Duration::from_millis(u64::MAX),
            reason: Some(Text::cut(&reason)),
            ..family(&"f".repeat(64))
        });
    let start = proptest::collection::vec(started, 0..24).prop_map(|families| Start {
        at: UnixMillis(u64::MAX),
        families,
        ..report().starts[0].clone()
    });
    let transfer = (any::<[u64; 3]>(), 0..20usize).prop_map(|([done, total, rate], holders)| Transfer {
        holders: vec![TransferHolder { node: node(3), bytes: u64::MAX }; holders],
        ..Transfer::new(ArtifactId::from_array([9; 32]), "f".repeat(64).parse().unwrap(), done, total, Some(rate))
    });
    let problem = (".{0,200}", ".{0,200}").prop_map(|(text, way_out)| Problem {
        kind: ProblemKind::ColdStart,
        text: Text::cut(&text),
        way_out: Text::cut(&way_out),
    });
    let lists = (
        proptest::collection::vec(start, 0..12),
        proptest::collection::vec(transfer, 0..24),
        proptest::collection::vec(problem, 0..24),
        proptest::collection::vec(".{0,80}", 0..24),
    );
    lists.prop_map(|(starts, transfers, problems, names)| {
        let gpus = names.iter().map(|name| Gpu { name: Text::cut(name), ..gpu(u8::MAX) }).collect();
        NodeReport { starts, transfers, problems, gpus, ..report() }.bounded()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_report_of_anything_fits_and_is_taken(report in any_report()) {
        let bytes = report.encode();
        prop_assert!(bytes.len() <= MAX_REPORT, "{} bytes", bytes.len());
        let taken = NodeReport::decode(&bytes).unwrap();
        prop_assert_eq!(taken.transfers.len(), report.transfers.len());
        prop_assert_eq!(taken.problems, report.problems);
    }
}
