//! Reports as generated types, checked, and back.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;

use super::{
    Discovery, Disk, End, Engine, EngineState, Gpu, MAX_REPORT, MissReason, Network, NodeReport, PolicyInForce,
    Problem, ProblemKind, Start, StartedFamily, Text, Totals, Transfer, TransferHolder, UnixMillis, Warmth, millis,
};
use crate::artifact::Family;
use crate::protocol::ProtocolError;
use crate::protocol::metadata::{copy, decode, id, node, pb};

type Result<T> = std::result::Result<T, ProtocolError>;

/// Generated and domain variants of one enum. What this version does not know is refused.
macro_rules! same_variants {
    ($domain:ident, $generated:path, $field:literal, $($variant:ident),+) => {
        impl $domain {
            fn from_number(number: i32) -> Result<Self> {
                use $generated as Generated;
                match Generated::try_from(number) {
                    $(Ok(Generated::$variant) => Ok(Self::$variant),)+
                    Ok(Generated::Unspecified) => Err(ProtocolError::Missing($field)),
                    Err(_) => Err(ProtocolError::Invalid($field)),
                }
            }

            fn number(self) -> i32 {
                use $generated as Generated;
                match self {
                    $(Self::$variant => Generated::$variant as i32,)+
                }
            }
        }
    };
}

same_variants!(Discovery, pb::DiscoveryMode, "discovery", Server, Hybrid, Serverless);
same_variants!(Warmth, pb::engine_start::Warmth, "warmth", Warm, Partly, Cold);
same_variants!(End, pb::engine_start::End, "end", Ready, Crashed, Clean, Unknown);
same_variants!(MissReason, pb::MissReason, "reason", NobodyHasIt, Quarantined, NotInstalled, NotUsed);
same_variants!(EngineState, pb::engine::State, "state", Serving, Failed);
same_variants!(
    ProblemKind,
    pb::problem::Kind,
    "kind",
    NoPolicy,
    PolicyExpired,
    NoDirectory,
    DiskFull,
    SmallBuffers,
    BlackHole,
    UdpBlocked,
    BadPeers,
    EngineCrashed,
    ColdStart,
    Certificate,
    RevokedInUse
);

pub(super) fn text<const N: usize>(text: String, field: &'static str) -> Result<Text<N>> {
    if text.len() > N {
        return Err(ProtocolError::TooMany { field, limit: N });
    }
    Text::try_from(text).map_err(|_| ProtocolError::Invalid(field))
}

fn family(name: &str) -> Result<Family> {
    name.parse().map_err(|_| ProtocolError::Invalid("family"))
}

fn some(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

impl NodeReport {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        pb::NodeReport::from(self).encode_to_vec()
    }

    pub fn encoded_len(&self) -> usize {
        pb::NodeReport::from(self).encoded_len()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        decode::<pb::NodeReport>(bytes)?.try_into()
    }
}

impl TryFrom<pb::NodeReport> for NodeReport {
    type Error = ProtocolError;
    fn try_from(report: pb::NodeReport) -> Result<Self> {
        if report.encoded_len() > MAX_REPORT {
            return Err(ProtocolError::TooMany { field: "report", limit: MAX_REPORT });
        }
        let network = report.network.unwrap_or_default().try_into()?;
        Ok(Self {
            name: text(report.name, "name")?,
            version: text(report.version, "version")?,
            started_at: UnixMillis(report.started_ms),
            clock: UnixMillis(report.clock_ms),
            discovery: Discovery::from_number(report.discovery)?,
            carrier: Network::carrier(&network),
            engine: report.engine.map(Engine::try_from).transpose()?,
            disk: report.disk.unwrap_or_default().into(),
            totals: report.totals.unwrap_or_default().try_into()?,
            policy: report.policy.map(PolicyInForce::from),
            starts: report.starts.into_iter().map(Start::try_from).collect::<Result<_>>()?,
            transfers: report.transfers.into_iter().map(Transfer::try_from).collect::<Result<_>>()?,
            problems: report.problems.into_iter().map(Problem::try_from).collect::<Result<_>>()?,
            network,
            gpus: report.gpus.into_iter().map(Gpu::try_from).collect::<Result<_>>()?,
        })
    }
}

impl From<&NodeReport> for pb::NodeReport {
    fn from(report: &NodeReport) -> Self {
        Self {
            name: report.name.to_string(),
            version: report.version.to_string(),
            started_ms: report.started_at.0,
            clock_ms: report.clock.0,
            discovery: report.discovery.number(),
            starts: report.starts.iter().map(Into::into).collect(),
            transfers: report.transfers.iter().map(Into::into).collect(),
            problems: report.problems.iter().map(Into::into).collect(),
            totals: Some((&report.totals).into()),
            disk: Some(report.disk.into()),
            engine: report.engine.map(Into::into),
            network: Some(report.network.into()),
            policy: report.policy.map(Into::into),
            gpus: report.gpus.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::EngineStart> for Start {
    type Error = ProtocolError;
    fn try_from(start: pb::EngineStart) -> Result<Self> {
        let families = start.families.into_iter().map(StartedFamily::try_from).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            at: UnixMillis(start.at_ms),
            outcome: Warmth::from_number(start.warmth)?,
            end: End::from_number(start.end)?,
            ready: some(start.ready_ms).map(Duration::from_millis),
            saved: saved(&families),
            families,
        })
    }
}

/// By all families of a start together.
fn saved(families: &[StartedFamily]) -> Duration {
    families.iter().fold(Duration::ZERO, |sum, family| sum.saturating_add(family.saved))
}

impl From<&Start> for pb::EngineStart {
    fn from(start: &Start) -> Self {
        Self {
            at_ms: start.at.0,
            warmth: start.outcome.number(),
            end: start.end.number(),
            ready_ms: start.ready.map_or(0, millis),
            families: start.families.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::StartedFamily> for StartedFamily {
    type Error = ProtocolError;
    fn try_from(started: pb::StartedFamily) -> Result<Self> {
        Ok(Self {
            family: family(&started.family)?,
            offered: started.offered,
            installed: started.installed,
            used: started.used,
            recompiled: started.recompiled,
            saved: Duration::from_millis(started.saved_ms),
            reason: Some(text(started.reason, "reason")?).filter(|reason| !reason.is_empty()),
        })
    }
}

impl From<&StartedFamily> for pb::StartedFamily {
    fn from(started: &StartedFamily) -> Self {
        Self {
            family: started.family.to_string(),
            offered: started.offered,
            installed: started.installed,
            used: started.used,
            recompiled: started.recompiled,
            saved_ms: millis(started.saved),
            reason: started.reason.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::Transfer> for Transfer {
    type Error = ProtocolError;
    fn try_from(transfer: pb::Transfer) -> Result<Self> {
        let holder = |holder: &pb::TransferHolder| {
            Ok(TransferHolder { node: node(&holder.node, "holders")?, bytes: holder.bytes })
        };
        let holders = transfer.holders.iter().map(holder).collect::<Result<_>>()?;
        let artifact = id(&transfer.artifact_id, "artifact_id")?;
        let (done, total, rate) = (transfer.done, transfer.total, some(transfer.rate));
        Ok(Self { holders, ..Self::new(artifact, family(&transfer.family)?, done, total, rate) })
    }
}

impl From<&Transfer> for pb::Transfer {
    fn from(transfer: &Transfer) -> Self {
        let holder =
            |holder: &TransferHolder| pb::TransferHolder { node: copy(holder.node.as_bytes()), bytes: holder.bytes };
        Self {
            artifact_id: copy(transfer.artifact.as_bytes()),
            family: transfer.family.to_string(),
            done: transfer.done,
            total: transfer.total,
            rate: transfer.rate.unwrap_or(0),
            holders: transfer.holders.iter().map(holder).collect(),
        }
    }
}

impl TryFrom<pb::Problem> for Problem {
    type Error = ProtocolError;
    fn try_from(problem: pb::Problem) -> Result<Self> {
        Ok(Self {
            kind: ProblemKind::from_number(problem.kind)?,
            text: text(problem.text, "text")?,
            way_out: text(problem.way_out, "way_out")?,
        })
    }
}

impl From<&Problem> for pb::Problem {
    fn from(problem: &Problem) -> Self {
        Self { kind: problem.kind.number(), text: problem.text.to_string(), way_out: problem.way_out.to_string() }
    }
}

impl TryFrom<pb::Totals> for Totals {
    type Error = ProtocolError;
    fn try_from(totals: pb::Totals) -> Result<Self> {
        let mut misses = BTreeMap::new();
        for miss in totals.misses {
            if misses.insert(MissReason::from_number(miss.reason)?, miss.count).is_some() {
                return Err(ProtocolError::Invalid("misses"));
            }
        }
        Ok(Self { received: totals.received, sent: totals.sent, hits: totals.hits, misses })
    }
}

impl From<&Totals> for pb::Totals {
    fn from(totals: &Totals) -> Self {
        let misses = totals.misses.iter().map(|(reason, count)| pb::Misses { reason: reason.number(), count: *count });
        Self { received: totals.received, sent: totals.sent, hits: totals.hits, misses: misses.collect() }
    }
}

impl From<pb::Disk> for Disk {
    fn from(disk: pb::Disk) -> Self {
        Self { used: disk.used, limit: some(disk.limit), free: disk.free }
    }
}

impl From<Disk> for pb::Disk {
    fn from(disk: Disk) -> Self {
        Self { used: disk.used, limit: disk.limit.unwrap_or(0), free: disk.free }
    }
}

impl TryFrom<pb::Engine> for Engine {
    type Error = ProtocolError;
    fn try_from(engine: pb::Engine) -> Result<Self> {
        Ok(Self { state: EngineState::from_number(engine.state)?, adapters: engine.adapters })
    }
}

impl From<Engine> for pb::Engine {
    fn from(engine: Engine) -> Self {
        Self { state: engine.state.number(), adapters: engine.adapters }
    }
}

impl TryFrom<pb::Network> for Network {
    type Error = ProtocolError;
    fn try_from(network: pb::Network) -> Result<Self> {
        if network.mtu > u32::from(u16::MAX) {
            return Err(ProtocolError::Invalid("mtu"));
        }
        Ok(Self {
            quic: network.quic,
            tcp: network.tcp,
            tcp_only: network.tcp_only,
            mtu: (network.mtu != 0).then_some(network.mtu),
            black_holes: network.black_holes,
            buffer_wanted: network.buffer_wanted,
            receive_buffer: network.receive_buffer,
            send_buffer: network.send_buffer,
        })
    }
}

impl From<Network> for pb::Network {
    fn from(network: Network) -> Self {
        Self {
            quic: network.quic,
            tcp: network.tcp,
            tcp_only: network.tcp_only,
            mtu: network.mtu.unwrap_or(0),
            black_holes: network.black_holes,
            buffer_wanted: network.buffer_wanted,
            receive_buffer: network.receive_buffer,
            send_buffer: network.send_buffer,
        }
    }
}

impl From<pb::PolicyInForce> for PolicyInForce {
    fn from(policy: pb::PolicyInForce) -> Self {
        Self { version: policy.version, expires_at: UnixMillis(policy.expires_ms) }
    }
}

impl From<PolicyInForce> for pb::PolicyInForce {
    fn from(policy: PolicyInForce) -> Self {
        Self { version: policy.version, expires_ms: policy.expires_at.0 }
    }
}
