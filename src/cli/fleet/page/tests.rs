use super::*;
use crate::digest::{ArtifactId, KeyId};
use crate::identity::PrivateKey;
use crate::protocol::fleet::{Backend, ServerDocument};
use crate::protocol::report::tests::report;
use crate::protocol::report::{Problem, ProblemKind, Text};

const NOW: UnixMillis = UnixMillis(1_000_000_000);

fn node(seed: u8, name: &str) -> NodeDocument {
    let mut report = report();
    report.name = Text::cut(name);
    report.started_at = UnixMillis(NOW.0 - 3 * 3_600_000);
    report.starts[0].at = UnixMillis(NOW.0 - 600_000);
    report.totals.received = 3 << 30;
    report.totals.sent = 1_234_567;
    report.disk.free = 900 << 30;
    report.transfers[0].artifact = ArtifactId::from_array([0xab; 32]);
    report.problems.clear();
    if seed != 2 {
        report.transfers.clear();
    }
    NodeDocument {
        id: PrivateKey::from_seed(seed).node_id(),
        state: Standing::Ready,
        seen_at: NOW,
        endpoint: Some(Text::cut("10.0.0.1:4433")),
        region: Text::default(),
        zone: Text::cut("a"),
        rack: Text::cut("r1"),
        skew_ms: Some(0),
        report: Some(report),
    }
}

fn fleet() -> Fleet {
    let server = ServerDocument {
        name: Text::cut("meta-0"),
        version: Text::cut("0.1.0"),
        cluster: Some(KeyId::from_array([1; 32])),
        epoch: Text::cut("00000000000000ff"),
        backend: Backend::Memory,
        started_at: UnixMillis(0),
        nodes: 3,
        ready: 3,
        draining: 0,
        artifacts: 12,
        identities: 4,
    };
    let mut ill = node(3, "gpu-a3");
    ill.report.as_mut().unwrap().problems = vec![Problem {
        kind: ProblemKind::SmallBuffers,
        text: Text::cut("the kernel gave UDP buffers of 212992 bytes, not 8388608: transfers lose packets"),
        way_out: Text::cut("raise `net.core.rmem_max` and `net.core.wmem_max`"),
    }];
    let silent = NodeDocument { report: None, state: Standing::Stale, ..node(4, "") };
    Fleet { server: Some(server), nodes: vec![node(1, "gpu-a1"), node(2, "gpu-a2"), ill, silent], ..Fleet::default() }
}

fn shown(view: View, at: usize, height: Option<usize>) -> Vec<String> {
    page(&fleet(), view, at, (80, height), NOW)
}

#[test]
fn the_fleet_has_problems_first_and_fits_80_columns() {
    let silent = PrivateKey::from_seed(4).node_id().short();
    let expected = [
        "meta-0: 3 nodes (3 ready, 0 draining), 12 artifacts of 4 identities",
        "! gpu-a3: the kernel gave UDP buffers of 212992 bytes, not 8388608: transfers lo",
        "NODE              STATE    WHERE     STARTS    SAVED RECEIVED     SENT     FREE",
        "gpu-a3            ready    a/r1      0/1/0      12 s  3.0 GiB  1.2 MiB  900 GiB",
        "gpu-a1            ready    a/r1      0/1/0      12 s  3.0 GiB  1.2 MiB  900 GiB",
        "gpu-a2            ready    a/r1      0/1/0      12 s  3.0 GiB  1.2 MiB  900 GiB",
        &format!("{silent:<17} stale    a/r1      -             -        -        -        -"),
        "gpu-a2: triton abababab 40 % of 1000 B, 100 B/s, 6.0 s left",
    ];
    assert_eq!(shown(View::Fleet, 0, None), expected);
}

#[test]
fn a_node_has_its_problems_transfers_and_starts() {
    let holder = PrivateKey::from_seed(2).node_id().short();
    let id = PrivateKey::from_seed(2).node_id().to_string();
    let head: String = format!("gpu-a2 ready 10.0.0.1:4433 {id}").chars().take(80).collect();
    let expected = [
        head.as_str(),
        "warmd 0.1.0, up 3 h, policy version 5, discovery hybrid",
        "received 3.00 GiB, sent 1.18 MiB; store 10 B, 900.00 GiB free",
        "gpu 0     NVIDIA H100 80GB HBM3: 35 % used, 61.00 GiB of 80.00 GiB",
        "fetching  triton abababab 40 % of 1000 B, 100 B/s, 6.0 s left",
        &format!("          from {holder} 400 B"),
        "started   partly, 10 min ago: ready after 19 s, saved 12 s",
        "          triton: 3 compiled here: torch 2.14 here, 2.13 there",
    ];
    assert_eq!(shown(View::Node, 2, None), expected);
    assert_eq!(
        shown(View::Node, 0, None)[1..3],
        [
            "problem: the kernel gave UDP buffers of 212992 bytes, not 8388608: transfers los",
            "  raise `net.core.rmem_max` and `net.core.wmem_max`",
        ]
    );
}

#[test]
fn of_a_gpu_that_is_not_told_of_there_is_the_name() {
    let mut node = node(1, "gpu-a1");
    let gpus = &mut node.report.as_mut().unwrap().gpus;
    (gpus[0].utilization, gpus[0].memory) = (None, None);
    assert_eq!(activity(&node, NOW, 80)[0], "gpu 0     NVIDIA H100 80GB HBM3: not told what it does");
}

#[test]
fn on_a_small_screen_the_chosen_node_is_always_shown() {
    let mut fleet = fleet();
    fleet.nodes =
        (0..200).map(|n| NodeDocument { state: Standing::Ready, ..node(1, &format!("gpu-{n:03}")) }).collect();
    for at in [0, 5, 100, 199, 5_000] {
        let lines = page(&fleet, View::Fleet, at, (80, Some(24)), NOW);
        assert!(lines.len() <= 24 && lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
        let chosen = lines.iter().find(|line| line.ends_with('>')).unwrap();
        assert!(chosen.starts_with(&format!("gpu-{:03}", at.min(199))), "{chosen}");
        assert_eq!(lines.last().map(String::as_str), Some(HELP));
    }
    for (width, height) in [(1, 1), (10, 3), (500, 200)] {
        let lines = page(&fleet, View::Fleet, 7, (width, Some(height)), NOW);
        assert!(lines.len() <= height && lines.iter().all(|line| line.chars().count() <= width));
    }
}

#[test]
fn sizes_and_times_are_short() {
    assert_eq!([0, 1_023, 1_024, 10 << 20, u64::MAX].map(size), ["0 B", "1023 B", "1.0 KiB", "10 MiB", "16 EiB"]);
    let span = |seconds| span(Duration::from_secs(seconds));
    assert_eq!([0, 9, 119, 7_199, 172_799, 200_000].map(span), ["0 s", "9.0 s", "119 s", "119 min", "47 h", "2 days"]);
}

#[test]
fn nodes_of_one_name_are_told_apart_by_their_ids() {
    let mut fleet = fleet();
    fleet.nodes = vec![node(1, "vm"), node(2, "vm"), node(3, "gpu")];
    let called: Vec<String> = fleet.clone().told_apart().nodes.iter().map(NodeDocument::called).collect();
    let ids: Vec<String> = fleet.nodes.iter().map(|node| node.id.short()).collect();
    assert_eq!(called, [format!("vm~{}", ids[0]), format!("vm~{}", ids[1]), "gpu".to_owned()]);
    fleet.nodes = vec![node(1, &"é".repeat(32)), node(2, &"é".repeat(32))];
    let called: Vec<String> = fleet.told_apart().nodes.iter().map(NodeDocument::called).collect();
    assert!(called[0].ends_with(&ids[0]) && called[1].ends_with(&ids[1]), "a long name is cut for it: {called:?}");
}
