//! What a node tells of itself with its heartbeats, for operators. Soft state and a hint: nothing is decided by it.
//!
//! The JSON form is what the web page and `--json` show: times in Unix milliseconds, sizes in bytes, durations in seconds.
//! No number in it can be NaN, every text is a [`Text`], every list has a bound, and [`NodeReport::bounded`] makes the whole
//! fit [`MAX_REPORT`].

mod convert;
mod gpu;
pub(crate) mod seconds;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::artifact::Family;
use crate::digest::ArtifactId;
use crate::identity::NodeId;
pub use gpu::{Gpu, GpuMemory, NotPercent, Percent};
pub use text::{InvalidText, Text};

/// Encoded bytes of a report.
pub const MAX_REPORT: usize = 16 * 1024;
pub const MAX_STARTS: usize = 8;
/// Families of one start.
pub const MAX_START_FAMILIES: usize = 16;
pub const MAX_TRANSFERS: usize = 16;
/// Holders that are told of one transfer.
pub const MAX_TRANSFER_HOLDERS: usize = 8;
pub const MAX_PROBLEMS: usize = 16;
pub const MAX_GPUS: usize = 16;

/// Bytes of texts.
pub const NAME: usize = 64;
pub const VERSION: usize = 32;
pub const REASON: usize = 120;
pub const PROBLEM: usize = 160;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// By the wall clock.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(millis(since))
    }

    pub fn before(self, ago: Duration) -> Self {
        Self(self.0.saturating_sub(millis(ago)))
    }

    /// How long ago `self` is at `now`; nothing if it is yet to come.
    pub fn ago(self, now: Self) -> Duration {
        Duration::from_millis(now.0.saturating_sub(self.0))
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a node tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Of the host.
    pub name: Text<NAME>,
    pub version: Text<VERSION>,
    pub started_at: UnixMillis,
    /// The node's wall clock when the report was sent.
    pub clock: UnixMillis,
    pub discovery: Discovery,
    /// `None`: no peer is connected.
    pub carrier: Option<Carrier>,
    /// `None`: none has told anything lately.
    pub engine: Option<Engine>,
    pub disk: Disk,
    pub totals: Totals,
    pub policy: Option<PolicyInForce>,
    /// Newest last.
    pub starts: Vec<Start>,
    pub transfers: Vec<Transfer>,
    pub problems: Vec<Problem>,
    pub network: Network,
    /// By index. Empty: nobody tells of them.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
}

/// Who is asked for holders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discovery {
    Server,
    #[default]
    Hybrid,
    Serverless,
}

/// What connections to peers go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    Quic,
    Tcp,
    /// Some over the one, some over the other.
    Mixed,
}

/// The engine beside the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    pub state: EngineState,
    /// `None`: not known.
    pub adapters: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineState {
    Serving,
    /// Its last start did not come to an end, and nothing was heard of it since.
    Failed,
}

/// Bytes of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub used: u64,
    /// `None`: only the disk bounds it.
    pub limit: Option<u64>,
    pub free: u64,
}

/// Since the agent started. Encoded bytes of chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub received: u64,
    pub sent: u64,
    /// Families of starts that used what was there.
    pub hits: u64,
    /// And those that did not.
    pub misses: BTreeMap<MissReason, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissReason {
    NobodyHasIt,
    Quarantined,
    /// It was offered, and did not come.
    NotInstalled,
    /// It was there, and the engine made its own.
    NotUsed,
}

impl MissReason {
    pub const ALL: [Self; 4] = [Self::NobodyHasIt, Self::Quarantined, Self::NotInstalled, Self::NotUsed];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInForce {
    pub version: u64,
    pub expires_at: UnixMillis,
}

/// One start of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub at: UnixMillis,
    pub outcome: Warmth,
    pub end: End,
    /// From the start of the engine; `None` if it is not known, or never became ready.
    #[serde(rename = "ready_s", with = "seconds::option")]
    pub ready: Option<Duration>,
    #[serde(rename = "saved_s", with = "seconds")]
    pub saved: Duration,
    pub families: Vec<StartedFamily>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Warmth {
    /// All that was there was used, and nothing was made again.
    Warm,
    Partly,
    Cold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    Ready,
    Crashed,
    /// Ready without what had been installed.
    Clean,
    /// It was told to end, or was not ready in time.
    Unknown,
}

/// One kind of cache in one start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedFamily {
    pub family: Family,
    /// Artifacts that there were.
    pub offered: u32,
    /// Entries: those that came or were there, those that were used, and those that the engine made.
    pub installed: u32,
    pub used: u32,
    pub recompiled: u32,
    #[serde(rename = "saved_s", with = "seconds")]
    pub saved: Duration,
    /// Why something was made.
    #[serde(with = "text::option")]
    pub reason: Option<Text<REASON>>,
}

/// One artifact on its way to the node. Encoded bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub artifact: ArtifactId,
    pub family: Family,
    pub done: u64,
    pub total: u64,
    /// Bytes a second; `None` if it is not known yet.
    pub rate: Option<u64>,
    #[serde(rename = "eta_s", with = "seconds::option")]
    pub eta: Option<Duration>,
    /// Those that sent most first.
    pub holders: Vec<TransferHolder>,
}

impl Transfer {
    pub fn new(artifact: ArtifactId, family: Family, done: u64, total: u64, rate: Option<u64>) -> Self {
        let rate = rate.filter(|rate| *rate > 0);
        let eta = rate.map(|rate| Duration::from_secs(total.saturating_sub(done).div_ceil(rate)));
        Self { artifact, family, done, total, rate, eta, holders: Vec::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferHolder {
    pub node: NodeId,
    pub bytes: u64,
}

/// What a node sees of its network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Open connections to peers.
    pub quic: u32,
    pub tcp: u32,
    /// The node was told to do without UDP.
    pub tcp_only: bool,
    /// UDP payload bytes of the connection seen last; `None` before the first.
    pub mtu: Option<u32>,
    /// Paths on which large datagrams got lost.
    pub black_holes: u64,
    /// Bytes of UDP socket buffers: asked for, and given.
    pub buffer_wanted: u64,
    pub receive_buffer: u64,
    pub send_buffer: u64,
}

impl Network {
    pub fn carrier(&self) -> Option<Carrier> {
        match (self.quic, self.tcp) {
            (0, 0) => None,
            (_, 0) => Some(Carrier::Quic),
            (0, _) => Some(Carrier::Tcp),
            _ => Some(Carrier::Mixed),
        }
    }

    /// The kernel gave less than half of what was asked for. 0 was asked for where there is no UDP socket.
    pub fn has_small_buffers(&self) -> bool {
        self.receive_buffer.min(self.send_buffer) < self.buffer_wanted / 2
    }
}

/// What is wrong, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub kind: ProblemKind,
    pub text: Text<PROBLEM>,
    pub way_out: Text<PROBLEM>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    NoPolicy,
    PolicyExpired,
    /// Neither a metadata server nor other agents can be asked.
    NoDirectory,
    DiskFull,
    SmallBuffers,
    BlackHole,
    UdpBlocked,
    /// Peers sent bytes that do not match their digest, or manifests that are refused.
    BadPeers,
    EngineCrashed,
    ColdStart,
    /// The node's own: others refuse it, or soon will.
    Certificate,
    /// An engine was started with what is revoked since.
    RevokedInUse,
}

impl NodeReport {
    /// Cuts lists at their bounds, and leaves out the oldest starts until the whole fits [`MAX_REPORT`].
    pub fn bounded(mut self) -> Self {
        self.starts.drain(..self.starts.len().saturating_sub(MAX_STARTS));
        self.starts.iter_mut().for_each(|start| start.families.truncate(MAX_START_FAMILIES));
        self.transfers.truncate(MAX_TRANSFERS);
        for transfer in &mut self.transfers {
            transfer.holders.sort_by_key(|holder| (std::cmp::Reverse(holder.bytes), holder.node));
            transfer.holders.truncate(MAX_TRANSFER_HOLDERS);
        }
        self.problems.truncate(MAX_PROBLEMS);
        self.gpus.truncate(MAX_GPUS);
        while self.encoded_len() > MAX_REPORT && !self.starts.is_empty() {
            self.starts.remove(0);
        }
        self
    }

    /// Nothing is under way, and all else is the same but for when it was said, what others write to the disk, and what the
    /// GPUs do.
    pub fn adds_nothing_to(&self, before: &Self) -> bool {
        let disk = Disk { free: before.disk.free, ..self.disk };
        let has_same_gpus = self.gpus.len() == before.gpus.len()
            && self.gpus.iter().zip(&before.gpus).all(|(now, before)| now.is(before));
        let gpus = before.gpus.clone();
        has_same_gpus
            && self.transfers.is_empty()
            && Self { clock: before.clock, disk, gpus, ..self.clone() } == *before
    }
}

#[cfg(test)]
pub(crate) mod tests;
