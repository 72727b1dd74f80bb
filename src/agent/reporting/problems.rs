//! What is wrong with this node, as far as it can tell itself. Pure.

use crate::digest::ArtifactId;
use crate::identity::{CertificateState, RENEW};
use crate::protocol::report::{End, Network, NodeReport, Problem, ProblemKind, Text, Warmth};

/// What is known beside the report.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// As [`super::Trust::state`].
    pub(super) policy: &'static str,
    pub(super) certificate: CertificateState,
    pub(super) reaches_directory: bool,
    /// Why not, where it is known.
    pub(super) unreached: Option<String>,
    /// Artifacts that engines were started with and that are revoked since.
    pub(super) revoked: Vec<ArtifactId>,
    /// Bytes that stay free on the disk.
    pub(super) reserve: u64,
    pub(super) bad_chunks: u64,
    pub(super) bad_manifests: u64,
}

/// The worst first.
pub(super) fn problems(report: &NodeReport, seen: &Seen) -> Vec<Problem> {
    let node =
        [certificate(seen), revoked(seen), policy(seen), directory(seen), disk(report, seen), last_start(report)];
    let network = [udp(report), black_hole(&report.network), buffers(&report.network), peers(seen)];
    node.into_iter().chain(network).flatten().collect()
}

fn problem(kind: ProblemKind, text: impl AsRef<str>, way_out: &str) -> Option<Problem> {
    Some(Problem { kind, text: Text::cut(text.as_ref()), way_out: Text::cut(way_out) })
}

fn certificate(seen: &Seen) -> Option<Problem> {
    let text = match &seen.certificate {
        CertificateState::Good => return None,
        soon @ CertificateState::EndsSoon(_) => format!("its certificate {soon}"),
        bad @ CertificateState::Bad(_) => format!("no other node speaks with it: its certificate {bad}"),
    };
    problem(ProblemKind::Certificate, text, RENEW)
}

fn policy(seen: &Seen) -> Option<Problem> {
    match seen.policy {
        "none" => problem(
            ProblemKind::NoPolicy,
            "no trust policy: nothing is fetched",
            "set `trust.policy`, or `trust.root` and hand a policy to the metadata server: `warmd policy push`",
        ),
        state @ ("expired" | "unconfirmed") => problem(
            ProblemKind::PolicyExpired,
            format!("the trust policy is {state}: nothing is fetched"),
            "sign a newer one: `warmd policy sign`",
        ),
        _ => None,
    }
}

fn revoked(seen: &Seen) -> Option<Problem> {
    let first = seen.revoked.first()?.short();
    let and = match seen.revoked.len() {
        1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    problem(
        ProblemKind::RevokedInUse,
        format!("an engine was started with artifact {first}{and}, revoked since: it may still run that"),
        "restart the engine: what is revoked is taken away before it starts",
    )
}

fn directory(seen: &Seen) -> Option<Problem> {
    if seen.reaches_directory {
        return None;
    }
    let why = seen.unreached.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    problem(
        ProblemKind::NoDirectory,
        format!("no metadata server and no other agent answers{why}"),
        "look at `metadata.servers`, `discovery.bootstrap`, and the network between",
    )
}

fn disk(report: &NodeReport, seen: &Seen) -> Option<Problem> {
    let (free, reserve) = (report.disk.free, seen.reserve);
    if free > reserve {
        return None;
    }
    problem(
        ProblemKind::DiskFull,
        format!("{free} bytes are free, of which {reserve} stay free: nothing more is fetched"),
        "make room on the disk, or lower `store.reserve_bytes`",
    )
}

fn last_start(report: &NodeReport) -> Option<Problem> {
    let last = report.starts.last()?;
    if last.end == End::Crashed {
        let way_out = "see its log, and `warmd quarantine ls` for what is blamed";
        return problem(ProblemKind::EngineCrashed, "the last start of the engine crashed", way_out);
    }
    let could_be_warm = last.families.iter().any(|family| family.offered > 0);
    if last.outcome != Warmth::Cold || !could_be_warm {
        return None;
    }
    problem(
        ProblemKind::ColdStart,
        "the last start was cold although others have caches for it",
        "`warmd doctor -- COMMAND` tells what differs",
    )
}

fn udp(report: &NodeReport) -> Option<Problem> {
    if report.network.tcp == 0 || report.network.tcp_only {
        return None;
    }
    problem(
        ProblemKind::UdpBlocked,
        format!("{} connections go over TCP: UDP does not get through", report.network.tcp),
        "let UDP through to the agents' port: transfers over TCP take more of the CPU",
    )
}

fn black_hole(network: &Network) -> Option<Problem> {
    if network.black_holes == 0 {
        return None;
    }
    let (paths, mtu) = (network.black_holes, network.mtu.unwrap_or(0));
    problem(
        ProblemKind::BlackHole,
        format!("large datagrams got lost on {paths} paths; {mtu} bytes go through"),
        "give all links on the way the same MTU, or lower `transport.max_datagram`",
    )
}

fn buffers(network: &Network) -> Option<Problem> {
    if !network.has_small_buffers() {
        return None;
    }
    let (given, wanted) = (network.receive_buffer.min(network.send_buffer), network.buffer_wanted);
    problem(
        ProblemKind::SmallBuffers,
        format!("the kernel gave UDP buffers of {given} bytes, not {wanted}: transfers lose packets"),
        "raise `net.core.rmem_max` and `net.core.wmem_max`",
    )
}

fn peers(seen: &Seen) -> Option<Problem> {
    if seen.bad_chunks == 0 && seen.bad_manifests == 0 {
        return None;
    }
    problem(
        ProblemKind::BadPeers,
        format!("{} chunks did not match, {} manifests were refused", seen.bad_chunks, seen.bad_manifests),
        "the log names the peers that sent them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{NotAdmitted, UnixTime};
    use crate::protocol::report::tests::report;

    fn good() -> Seen {
        Seen {
            policy: "ok",
            certificate: CertificateState::Good,
            reaches_directory: true,
            unreached: None,
            revoked: Vec::new(),
            reserve: 10,
            bad_chunks: 0,
            bad_manifests: 0,
        }
    }

    fn kinds(report: &NodeReport, seen: &Seen) -> Vec<ProblemKind> {
        let found = problems(report, seen);
        assert!(found.iter().all(|one| one.text.as_str().len() < 160 && one.way_out.as_str().len() < 160));
        found.into_iter().map(|problem| problem.kind).collect()
    }

    #[test]
    fn a_node_that_is_well_has_no_problems() {
        assert_eq!(kinds(&report(), &good()), []);
        assert_eq!(kinds(&NodeReport { starts: Vec::new(), ..report() }, &good()), []);
    }

    #[test]
    fn each_trouble_is_named_the_worst_first() {
        let mut ill = report();
        ill.disk.free = 10;
        ill.network.tcp = 1;
        (ill.network.black_holes, ill.network.send_buffer) = (1, 3);
        ill.starts[0].end = End::Crashed;
        let foreign = CertificateState::Bad(NotAdmitted::Foreign);
        let seen = Seen { policy: "expired", certificate: foreign, reaches_directory: false, bad_chunks: 1, ..good() };
        use ProblemKind::{
            BadPeers, BlackHole, Certificate, DiskFull, EngineCrashed, NoDirectory, PolicyExpired, SmallBuffers,
            UdpBlocked,
        };
        let node = [Certificate, PolicyExpired, NoDirectory, DiskFull, EngineCrashed];
        let network = [UdpBlocked, BlackHole, SmallBuffers, BadPeers];
        assert_eq!(kinds(&ill, &seen), [&node[..], &network].concat());
        let ending = Seen { certificate: CertificateState::EndsSoon(UnixTime::from_seconds(0)), ..good() };
        assert_eq!(kinds(&report(), &ending), [Certificate]);
    }

    #[test]
    fn code_that_is_revoked_since_a_start_is_named_before_all_that_only_costs_time() {
        let revoked = vec![ArtifactId::of(b"bad"), ArtifactId::of(b"worse")];
        let seen = Seen { revoked, policy: "expired", ..good() };
        assert_eq!(kinds(&report(), &seen), [ProblemKind::RevokedInUse, ProblemKind::PolicyExpired]);
        let text = problems(&report(), &seen).remove(0).text;
        assert!(text.as_str().contains(&ArtifactId::of(b"bad").short()) && text.as_str().contains("and 1 more"));
    }

    #[test]
    fn why_nobody_answers_is_told_with_it() {
        let seen = Seen { reaches_directory: false, unreached: Some("connection refused".to_owned()), ..good() };
        let found = problems(&report(), &seen);
        assert_eq!(found[0].text.as_str(), "no metadata server and no other agent answers: connection refused");
    }

    #[test]
    fn tcp_that_was_asked_for_and_a_cold_start_that_nobody_could_help_are_no_problems() {
        let mut report = report();
        (report.network.tcp, report.network.tcp_only) = (1, true);
        report.starts[0].outcome = Warmth::Cold;
        report.starts[0].families.iter_mut().for_each(|family| family.offered = 0);
        assert_eq!(kinds(&report, &good()), []);
        report.starts[0].families[0].offered = 1;
        assert_eq!(kinds(&report, &good()), [ProblemKind::ColdStart]);
    }
}
