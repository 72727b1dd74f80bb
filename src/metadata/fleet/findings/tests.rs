use super::*;
use crate::digest::{ArtifactId, IdentityId, KeyId};
use crate::identity::{NodeId, PrivateKey};
use crate::protocol::fleet::{ArtifactDocument, IdentityDocument};
use crate::protocol::report::tests::report;
use crate::protocol::report::{PolicyInForce, Problem, Text, Warmth};

const NOW: UnixMillis = UnixMillis(1_000_000_000);
const YEAR: u64 = 365 * 24 * 3600 * 1000;

fn id(seed: u8) -> NodeId {
    PrivateKey::from_seed(seed).node_id()
}

/// A node that is well.
fn node(seed: u8) -> NodeDocument {
    let mut report = report();
    report.name = Text::cut(&format!("n{seed}"));
    report.problems.clear();
    report.disk.free = 1 << 40;
    report.policy = Some(PolicyInForce { version: 5, expires_at: UnixMillis(NOW.0 + YEAR) });
    NodeDocument {
        id: id(seed),
        state: Standing::Ready,
        seen_at: NOW,
        endpoint: None,
        region: Text::default(),
        zone: Text::default(),
        rack: Text::default(),
        skew_ms: Some(20),
        report: Some(report),
    }
}

fn fleet(change: impl FnOnce(&mut [NodeDocument])) -> Fleet {
    let mut nodes: Vec<NodeDocument> = (1..=3).map(node).collect();
    change(&mut nodes);
    Fleet { nodes, ..Fleet::default() }
}

/// Severity, kind and nodes of all findings.
fn found(fleet: &Fleet) -> Vec<(Severity, FindingKind, String)> {
    let found = findings(fleet, NOW);
    assert!(found.iter().all(|one| !one.what.is_empty() && !one.why.is_empty() && !one.way_out.is_empty()));
    found.into_iter().map(|one| (one.severity, one.kind, one.nodes.join(" "))).collect()
}

fn of_one(change: impl FnOnce(&mut NodeReport)) -> Vec<(Severity, FindingKind, String)> {
    found(&fleet(|nodes| change(nodes[1].report.as_mut().unwrap())))
}

fn on_n2(severity: Severity, kind: FindingKind) -> Vec<(Severity, FindingKind, String)> {
    vec![(severity, kind, "n2".to_owned())]
}

#[test]
fn a_fleet_that_is_well_has_no_findings() {
    assert_eq!(found(&fleet(|_| ())), []);
    assert_eq!(found(&Fleet::default()), []);
}

#[test]
fn clocks_are_judged_by_what_signatures_allow_for() {
    let skewed = |skew| found(&fleet(|nodes| nodes[1].skew_ms = Some(skew)));
    assert_eq!(skewed(59_000), []);
    assert_eq!(skewed(-61_000), [(Severity::Warning, FindingKind::Clock, "n2 (-61 s)".to_owned())]);
    assert_eq!(skewed(301_000), [(Severity::Error, FindingKind::Clock, "n2 (+301 s)".to_owned())]);
    assert_eq!(skewed(i64::MIN)[0].0, Severity::Error);
}

#[test]
fn policies_that_are_missing_over_ending_and_old_are_told() {
    let policy = |policy| of_one(move |report| report.policy = policy);
    let of = |version, expires| Some(PolicyInForce { version, expires_at: UnixMillis(expires) });
    assert_eq!(policy(None), on_n2(Severity::Error, FindingKind::Policy));
    assert_eq!(policy(of(5, NOW.0)), on_n2(Severity::Error, FindingKind::Policy));
    assert_eq!(policy(of(5, NOW.0 + 3_600_000)), on_n2(Severity::Warning, FindingKind::Policy));
    assert_eq!(policy(of(4, NOW.0 + YEAR)), on_n2(Severity::Warning, FindingKind::Policy));
    assert_eq!(policy(of(6, NOW.0 + YEAR)), [(Severity::Warning, FindingKind::Policy, "n1 n3".to_owned())]);
}

#[test]
fn what_hampers_the_network_is_told() {
    let network = |change: fn(&mut crate::protocol::report::Network)| of_one(|report| change(&mut report.network));
    assert_eq!(network(|network| network.tcp = 1), on_n2(Severity::Warning, FindingKind::UdpBlocked));
    assert_eq!(network(|network| (network.tcp, network.tcp_only) = (1, true)), []);
    assert_eq!(network(|network| network.black_holes = 1), on_n2(Severity::Warning, FindingKind::Mtu));
    assert_eq!(network(|network| network.mtu = Some(1_200)), on_n2(Severity::Note, FindingKind::Mtu));
    assert_eq!(network(|network| network.mtu = None), []);
    assert_eq!(network(|network| network.receive_buffer = 3), on_n2(Severity::Warning, FindingKind::Buffers));
}

#[test]
fn disks_starts_names_versions_and_absences_are_told() {
    assert_eq!(
        of_one(|report| report.disk = crate::protocol::report::Disk { used: 1 << 40, limit: None, free: 1 << 30 }),
        on_n2(Severity::Warning, FindingKind::Disk)
    );
    let problem = |kind| Problem { kind, text: Text::cut("it is so"), way_out: Text::cut("mend it") };
    assert_eq!(
        of_one(|report| report.problems = vec![problem(ProblemKind::DiskFull)]),
        on_n2(Severity::Error, FindingKind::Disk)
    );
    let cold = |report: &mut NodeReport| {
        report.starts[0].outcome = Warmth::Cold;
        report.problems = vec![problem(ProblemKind::ColdStart)];
    };
    assert_eq!(of_one(cold), on_n2(Severity::Warning, FindingKind::ColdStart));
    assert_eq!(
        of_one(|report| report.problems = vec![problem(ProblemKind::EngineCrashed)]),
        on_n2(Severity::Warning, FindingKind::Reported)
    );
    assert_eq!(of_one(|report| report.version = Text::cut("0.0.9")), on_n2(Severity::Note, FindingKind::Versions));
    let twice = of_one(|report| report.name = Text::cut("n1"));
    assert_eq!((twice[0].0, twice[0].1), (Severity::Warning, FindingKind::Names));
    assert_eq!(found(&fleet(|nodes| nodes[1].state = Standing::Stale)), on_n2(Severity::Note, FindingKind::Gone));
    let silent = found(&fleet(|nodes| nodes[1].report = None));
    assert_eq!(silent, [(Severity::Note, FindingKind::Silent, id(2).short())]);
}

fn identity(n: u8, facts: &[(&str, &str)], holder: u8) -> IdentityDocument {
    let artifact = ArtifactDocument {
        id: ArtifactId::from_array([n; 32]),
        subject: Text::default(),
        bytes: 1,
        signer: KeyId::from_array([1; 32]),
        at: NOW,
        holders: vec![id(holder)],
        partial: Vec::new(),
        holder_count: 1,
    };
    IdentityDocument {
        digest: IdentityId::from_array([n; 32]),
        family: "triton".parse().unwrap(),
        facts: Some(facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()),
        artifacts: vec![artifact],
    }
}

#[test]
fn groups_that_differ_in_one_fact_are_named_with_both_values() {
    let mut fleet = fleet(|_| ());
    fleet.identities = vec![
        identity(1, &[("torch", "2.13"), ("model", "m")], 1),
        identity(2, &[("torch", "2.14"), ("model", "m")], 2),
        identity(3, &[("torch", "2.15"), ("model", "other"), ("gpu", "x")], 3),
        IdentityDocument { facts: None, ..identity(4, &[], 3) },
    ];
    let found = findings(&fleet, NOW);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].what, "triton fits but for `torch`: 2.13 on n1, 2.14 on n2");
    assert_eq!((found[0].severity, found[0].nodes.join(" ")), (Severity::Warning, "n1 n2".to_owned()));
    fleet.identities.truncate(1);
    fleet.identities.push(identity(2, &[("torch", "2.13")], 2));
    assert_eq!(findings(&fleet, NOW)[0].what, "triton fits but for `model`: absent on n2, m on n1");
    assert_eq!(findings(&fleet, NOW)[0].severity, Severity::Note, "another model is no mistake");
    fleet.identities = vec![identity(1, &[("alias", "sql")], 1), identity(2, &[("alias", "chat")], 2)];
    assert_eq!(findings(&fleet, NOW), [], "adapters differ in their name");
}
