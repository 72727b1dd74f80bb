//! What is wrong with a fleet, by its documents: each finding says what, where, why it matters, and what to do. Pure.

mod near;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::identity::UnixTime;
use crate::protocol::fleet::{Fleet, NodeDocument, Standing};
use crate::protocol::report::{NodeReport, ProblemKind, UnixMillis};

/// From here on a clock is worth a look. Signed documents are judged with a leeway of [`UnixTime::LEEWAY`].
const SKEW: Duration = Duration::from_secs(60);

/// A policy that expires within this time is told of.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// A disk with less free than this part and these bytes is nearly full.
const FREE_PART: u64 = 20;
const FREE_BYTES: u64 = 20 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work.
    Error,
    /// Something works worse than it could, or will not for long.
    Warning,
    /// Good to know.
    Note,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    Policy,
    Clock,
    Disk,
    UdpBlocked,
    Mtu,
    Buffers,
    ColdStart,
    NearMiss,
    Names,
    Versions,
    Gone,
    Silent,
    Reported,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub kind: FindingKind,
    pub what: String,
    /// Names of nodes, in order.
    pub nodes: Vec<String>,
    pub why: String,
    pub way_out: String,
}

/// A node that can be asked, and what it has told.
type Known<'f> = (&'f NodeDocument, &'f NodeReport);

/// Everything that is wrong, the worst first.
pub fn findings(fleet: &Fleet, now: UnixMillis) -> Vec<Finding> {
    let live: Vec<&NodeDocument> = fleet.nodes.iter().filter(|node| node.state != Standing::Stale).collect();
    let known: Vec<Known<'_>> = live.iter().filter_map(|node| Some((*node, node.report.as_ref()?))).collect();
    let mut found = Vec::new();
    found.extend(clocks(&live));
    found.extend(policies(&known, now));
    found.extend(network(&known));
    found.extend(disks(&known));
    found.extend(starts(&known));
    found.extend(near::misses(fleet));
    found.extend(names(&live));
    found.extend(versions(&known));
    found.extend(absent(fleet, &live));
    found.extend(reported(&known));
    found.sort_by_key(|finding| (finding.severity, finding.kind));
    found
}

/// `None` where it concerns nobody.
fn finding(
    (severity, kind): (Severity, FindingKind),
    nodes: Vec<String>,
    what: impl Into<String>,
    why: &str,
    way_out: &str,
) -> Option<Finding> {
    let (why, way_out) = (why.to_owned(), way_out.to_owned());
    (!nodes.is_empty()).then(|| Finding { severity, kind, what: what.into(), nodes: sorted(nodes), why, way_out })
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}

fn called<'f>(nodes: impl IntoIterator<Item = &'f NodeDocument>) -> Vec<String> {
    nodes.into_iter().map(NodeDocument::called).collect()
}

fn those(known: &[Known<'_>], which: impl Fn(&NodeReport) -> bool) -> Vec<String> {
    called(known.iter().filter(|(_, report)| which(report)).map(|(node, _)| *node))
}

fn clocks(live: &[&NodeDocument]) -> Vec<Finding> {
    let off = |range: std::ops::Range<Duration>| {
        let is_off = |node: &&&NodeDocument| {
            node.skew_ms.is_some_and(|skew| range.contains(&Duration::from_millis(skew.unsigned_abs())))
        };
        let nodes: Vec<&NodeDocument> = live.iter().filter(is_off).copied().collect();
        let told = |node: &NodeDocument| format!("{} ({:+} s)", node.called(), node.skew_ms.unwrap_or(0) / 1000);
        nodes.into_iter().map(told).collect()
    };
    let way_out = "let them keep time by NTP";
    let wrong = finding(
        (Severity::Error, FindingKind::Clock),
        off(UnixTime::LEEWAY..Duration::MAX),
        "clocks differ from the metadata server's by more than signatures allow for",
        "manifests and policies that are good are refused there as expired or not yet valid",
        way_out,
    );
    let drifting = finding(
        (Severity::Warning, FindingKind::Clock),
        off(SKEW..UnixTime::LEEWAY),
        "clocks differ from the metadata server's",
        "after 5 minutes, manifests and policies that are good are refused",
        way_out,
    );
    wrong.into_iter().chain(drifting).collect()
}

fn policies(known: &[Known<'_>], now: UnixMillis) -> Vec<Finding> {
    let expires = |report: &NodeReport| report.policy.map(|policy| policy.expires_at);
    let soon = UnixMillis(now.0.saturating_add(SOON.as_millis() as u64));
    let newest = known.iter().filter_map(|(_, report)| report.policy).map(|policy| policy.version).max();
    let none = finding(
        (Severity::Error, FindingKind::Policy),
        those(known, |report| report.policy.is_none()),
        "no trust policy",
        "nothing is fetched there: every start is cold",
        "set `trust.policy`, or `trust.root` and hand a policy to the metadata server: `warmd policy push`",
    );
    let expired = finding(
        (Severity::Error, FindingKind::Policy),
        those(known, |report| expires(report).is_some_and(|at| at <= now)),
        "the trust policy has expired",
        "nothing is fetched there: every start is cold",
        "sign a newer one: `warmd policy sign`",
    );
    let expiring = finding(
        (Severity::Warning, FindingKind::Policy),
        those(known, |report| expires(report).is_some_and(|at| now < at && at <= soon)),
        "the trust policy expires within a week",
        "nothing is fetched any more from then on",
        "sign a newer one: `warmd policy sign`",
    );
    let older = finding(
        (Severity::Warning, FindingKind::Policy),
        those(known, |report| report.policy.is_some_and(|policy| Some(policy.version) < newest)),
        format!("a trust policy that is older than version {}, which others have", newest.unwrap_or(0)),
        "what was revoked since is still trusted there, and new signers are not",
        "see why it did not get there: `warmd policy status`, or the log of these nodes",
    );
    [none, expired, expiring, older].into_iter().flatten().collect()
}

fn network(known: &[Known<'_>]) -> Vec<Finding> {
    let blocked = finding(
        (Severity::Warning, FindingKind::UdpBlocked),
        those(known, |report| report.network.tcp > 0 && !report.network.tcp_only),
        "UDP does not get through: transfers go over TCP",
        "they take more of the CPU, and one lost packet holds up everything behind it",
        "let UDP through to the agents' port in firewalls and network policies",
    );
    let holes = finding(
        (Severity::Warning, FindingKind::Mtu),
        those(known, |report| report.network.black_holes > 0),
        "paths that lose large datagrams",
        "transfers stall until smaller ones are tried, again and again",
        "give all links on the way the same MTU, or lower `transport.max_datagram`",
    );
    let largest = known.iter().filter_map(|(_, report)| report.network.mtu).max();
    let small = finding(
        (Severity::Note, FindingKind::Mtu),
        those(known, |report| {
            report.network.black_holes == 0 && report.network.mtu.is_some() && report.network.mtu < largest
        }),
        format!("datagrams are smaller than the {} bytes of others", largest.unwrap_or(0)),
        "each gigabyte takes more packets and more of the CPU",
        "use jumbo frames everywhere or nowhere: look at the MTU of their interfaces",
    );
    let buffers = finding(
        (Severity::Warning, FindingKind::Buffers),
        those(known, |report| report.network.has_small_buffers()),
        "the kernel gave small UDP buffers",
        "transfers lose packets whenever the agent is not scheduled in time",
        "raise `net.core.rmem_max` and `net.core.wmem_max` to `transport.socket_buffer`",
    );
    [blocked, holes, small, buffers].into_iter().flatten().collect()
}

fn disks(known: &[Known<'_>]) -> Vec<Finding> {
    let is_full = |report: &NodeReport| report.problems.iter().any(|problem| problem.kind == ProblemKind::DiskFull);
    let is_nearly = |report: &NodeReport| {
        let disk = report.disk;
        disk.free < FREE_BYTES && disk.free < disk.used.saturating_add(disk.free) / FREE_PART
    };
    let full = finding(
        (Severity::Error, FindingKind::Disk),
        those(known, is_full),
        "the disk is full",
        "nothing more is fetched there",
        "make room, or lower `store.reserve_bytes`",
    );
    let nearly = finding(
        (Severity::Warning, FindingKind::Disk),
        those(known, |report| is_nearly(report) && !is_full(report)),
        "the disk is nearly full",
        "what is not in use is evicted, and soon nothing more is fetched",
        "make room, or bound the store: `store.max_bytes`",
    );
    [full, nearly].into_iter().flatten().collect()
}

fn starts(known: &[Known<'_>]) -> Vec<Finding> {
    let kinds = |kind| move |report: &NodeReport| report.problems.iter().any(|problem| problem.kind == kind);
    let cold = finding(
        (Severity::Warning, FindingKind::ColdStart),
        those(known, kinds(ProblemKind::ColdStart)),
        "the engine starts cold although others have caches for it",
        "it compiles what is there to be had",
        "`warmd doctor -- COMMAND` there tells what differs; `warmd status` shows the reason of each miss",
    );
    cold.into_iter().collect()
}

fn names(live: &[&NodeDocument]) -> Vec<Finding> {
    let mut by_name: BTreeMap<String, Vec<&NodeDocument>> = BTreeMap::new();
    for node in live.iter().filter(|node| node.report.as_ref().is_some_and(|report| !report.name.is_empty())) {
        by_name.entry(node.called()).or_default().push(node);
    }
    let twice = by_name.into_iter().filter(|(_, nodes)| nodes.len() > 1);
    let found = twice.filter_map(|(name, nodes)| {
        finding(
            (Severity::Warning, FindingKind::Names),
            nodes.iter().map(|node| node.id.short()).collect(),
            format!("{} nodes are called {name}", nodes.len()),
            "one host with two agents fetches and keeps everything twice; or an old state directory is in use",
            "run one agent a host; a copied machine needs a node key of its own",
        )
    });
    found.collect()
}

fn versions(known: &[Known<'_>]) -> Vec<Finding> {
    let mut by_version: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (node, report) in known {
        by_version.entry(report.version.as_str()).or_default().push(node.called());
    }
    let Some(most) = by_version.iter().max_by_key(|(_, nodes)| nodes.len()).map(|(version, _)| *version) else {
        return Vec::new();
    };
    let others = by_version.into_iter().filter(|(version, _)| *version != most);
    let found = others.filter_map(|(version, nodes)| {
        finding(
            (Severity::Note, FindingKind::Versions),
            nodes,
            format!("version {version}, where most have {most}"),
            "a newer version may know families and facts that an older one does not: they do not share these",
            "finish the update",
        )
    });
    found.collect()
}

fn absent(fleet: &Fleet, live: &[&NodeDocument]) -> Vec<Finding> {
    let gone = finding(
        (Severity::Note, FindingKind::Gone),
        called(fleet.nodes.iter().filter(|node| node.state == Standing::Stale)),
        "gone within the last hour",
        "what they hold is not offered",
        "nothing, if they were stopped; else look at these nodes and the network to them",
    );
    let silent = finding(
        (Severity::Note, FindingKind::Silent),
        called(live.iter().filter(|node| node.report.is_none()).copied()),
        "nothing is told of these nodes here",
        "they are of an older version, or report to another metadata server over the same store",
        "ask that server, or update them",
    );
    [gone, silent].into_iter().flatten().collect()
}

/// What nodes say themselves and nothing above says for all of them.
fn reported(known: &[Known<'_>]) -> Vec<Finding> {
    let told = known.iter().flat_map(|(node, report)| report.problems.iter().map(|problem| (*node, problem)));
    use ProblemKind::{BadPeers, Certificate, EngineCrashed, NoDirectory, RevokedInUse};
    let only_there = |kind| matches!(kind, NoDirectory | BadPeers | EngineCrashed | Certificate | RevokedInUse);
    let found = told.filter(|(_, problem)| only_there(problem.kind)).filter_map(|(node, problem)| {
        let which = (Severity::Warning, FindingKind::Reported);
        finding(which, vec![node.called()], problem.text.as_str(), "the node says so itself", problem.way_out.as_str())
    });
    found.collect()
}

#[cfg(test)]
mod tests;
