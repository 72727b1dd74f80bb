//! The GPUs of a node.

use serde::{Deserialize, Serialize};

use super::{NAME, Text, convert};
use crate::protocol::ProtocolError;
use crate::protocol::metadata::pb;

/// A GPU, as its driver tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As the driver counts.
    pub index: u8,
    pub name: Text<NAME>,
    /// Of the time, how much of it something ran. `None`: its driver does not tell.
    pub utilization: Option<Percent>,
    /// `None`: its driver does not tell.
    pub memory: Option<GpuMemory>,
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemory {
    pub used: u64,
    pub total: u64,
}

/// 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Percent(u8);

impl Percent {
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// 0 to 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} %", self.0)
    }
}

impl From<Percent> for u8 {
    fn from(percent: Percent) -> Self {
        percent.0
    }
}

/// The number is above 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no percentage: expected 0 to 100")]
pub struct NotPercent(u8);

impl TryFrom<u8> for Percent {
    type Error = NotPercent;
    fn try_from(percent: u8) -> Result<Self, NotPercent> {
        Self::new(percent).ok_or(NotPercent(percent))
    }
}

impl Gpu {
    /// The same one, whatever it does.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.index, &self.name) == (other.index, &other.name)
    }
}

impl TryFrom<pb::Gpu> for Gpu {
    type Error = ProtocolError;
    fn try_from(gpu: pb::Gpu) -> Result<Self, ProtocolError> {
        let percent = |told: u32| {
            let percent = u8::try_from(told).ok().and_then(Percent::new);
            percent.ok_or(ProtocolError::Invalid("utilization"))
        };
        Ok(Self {
            index: u8::try_from(gpu.index).map_err(|_| ProtocolError::Invalid("index"))?,
            name: convert::text(gpu.name, "name")?,
            utilization: gpu.utilization.map(percent).transpose()?,
            memory: (gpu.memory_total > 0).then_some(GpuMemory { used: gpu.memory_used, total: gpu.memory_total }),
        })
    }
}

impl From<&Gpu> for pb::Gpu {
    fn from(gpu: &Gpu) -> Self {
        let memory = gpu.memory.unwrap_or(GpuMemory { used: 0, total: 0 });
        Self {
            index: gpu.index.into(),
            name: gpu.name.to_string(),
            utilization: gpu.utilization.map(|percent| u8::from(percent).into()),
            memory_used: memory.used,
            memory_total: memory.total,
        }
    }
}
