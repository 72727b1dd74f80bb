//! What is remembered about an identity: that it is installed, or why it is not and when to try again.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::layout::{MARKERS, NEW_MARKER, marker_name};
use super::staging::Staging;
use super::{At, CacheRoot, InstallError, InstallLock};
use crate::artifact::Stamp;
use crate::digest::{ArtifactId, IdentityId};
use crate::durable;
use crate::identity::UnixTime;

/// Artifacts that a marker names at most; the newest stay.
const MAX_ARTIFACTS: usize = 256;

/// A marker with that many artifacts and the longest detail has fewer bytes.
const MAX_MARKER: u64 = 64 * 1024;

/// Bytes of a detail that are kept.
const MAX_DETAIL: usize = 1024;

const FIRST_TTL: Duration = Duration::from_secs(5);
const MAX_TTL: Duration = Duration::from_secs(60);

/// What a marker file says. JSON in a durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Marker {
    Installed(InstalledMarker),
    Negative(NegativeMarker),
}

/// These artifacts were verified and committed. On another boot than `boot` they are verified again before they are
/// trusted (I3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstalledMarker {
    pub artifacts: Vec<ArtifactId>,
    pub boot: BootId,
    pub scope: String,
}

/// Nothing was installed; nobody tries again while this [holds](NegativeMarker::holds).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NegativeMarker {
    pub class: NegativeClass,
    /// `None`: until the policy version changes.
    pub until: Option<UnixTime>,
    pub detail: String,
    /// Failures in a row.
    pub attempts: u32,
    pub policy_version: u64,
}

/// Why nothing was installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NegativeClass {
    /// Nobody has it.
    NoneFound,
    Transient,
    NoSpace,
    /// The trust policy refuses it.
    Untrusted,
    /// It cannot be installed here: the root, its file system, or the manifest's paths.
    Incompatible,
    /// The engine crashed with it on this node.
    Quarantined,
}

impl fmt::Display for NegativeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneFound => "none-found",
            Self::Transient => "transient",
            Self::NoSpace => "no-space",
            Self::Untrusted => "untrusted",
            Self::Incompatible => "incompatible",
            Self::Quarantined => "quarantined",
        })
    }
}

/// How long a failure is remembered: 5 s, doubling with each further attempt up to 60 s, less up to a fifth by `jitter`
/// (0 to 1), so that pods that failed together do not come back together. `None`: until the policy version changes.
pub fn negative_ttl(class: NegativeClass, attempts: u32, jitter: f64) -> Option<Duration> {
    if class == NegativeClass::Untrusted {
        return None;
    }
    let doublings = attempts.saturating_sub(1).min(8);
    let full = FIRST_TTL.saturating_mul(1 << doublings).min(MAX_TTL);
    let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
    Some(full.mul_f64(1.0 - jitter / 5.0))
}

impl NegativeMarker {
    /// False once it is time to try again. A marker from a clock far ahead of ours holds nobody up.
    pub fn holds(&self, now: UnixTime, policy_version: u64) -> bool {
        match self.until {
            None => self.policy_version == policy_version,
            Some(until) => now < until && until <= now.after(MAX_TTL),
        }
    }

    fn next(
        before: Option<&Self>,
        class: NegativeClass,
        detail: &str,
        now: UnixTime,
        policy_version: u64,
        jitter: f64,
    ) -> Self {
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        // Whole seconds, rounded up: a TTL of 4.2 s is not over after 4.
        let until = negative_ttl(class, attempts, jitter)
            .map(|ttl| now.after(Duration::from_secs(ttl.as_secs_f64().ceil() as u64)));
        let detail = detail.chars().scan(0, |len, c| {
            *len += c.len_utf8();
            (*len <= MAX_DETAIL).then_some(c)
        });
        Self { class, until, detail: detail.collect(), attempts, policy_version }
    }
}

impl InstalledMarker {
    /// Keeps what was installed before in the same scope on the same boot; newest last.
    pub(super) fn adding(artifact: ArtifactId, boot: BootId, scope: &str, before: Option<Marker>) -> Self {
        let mut artifacts = match before {
            Some(Marker::Installed(before)) if before.boot == boot && before.scope == scope => before.artifacts,
            _ => Vec::new(),
        };
        artifacts.retain(|known| *known != artifact);
        artifacts.push(artifact);
        let surplus = artifacts.len().saturating_sub(MAX_ARTIFACTS);
        artifacts.drain(..surplus);
        Self { artifacts, boot, scope: scope.to_owned() }
    }
}

impl Marker {
    pub(super) fn to_record(&self) -> String {
        // These types have no map keys or floats, so this cannot fail.
        durable::frame_record(&serde_json::to_string(self).unwrap_or_default())
    }

    /// `None` for anything torn, damaged, or of a later version: that is as if nothing were remembered.
    pub(super) fn from_record(record: &str) -> Option<Self> {
        serde_json::from_str(&durable::parse_record(record)?).ok()
    }
}

/// Changes with every boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootId(Box<str>);

impl BootId {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";

    pub fn current() -> Result<Self, InstallError> {
        let failed = |source| InstallError::Io { verb: "read", path: Self::FILE.into(), source };
        let text = std::fs::read_to_string(Self::FILE).map_err(failed)?;
        text.trim().parse().map_err(|_| failed(std::io::ErrorKind::InvalidData.into()))
    }
}

impl FromStr for BootId {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uuid = text.len() == 36 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        if uuid { Ok(Self(text.into())) } else { Err("not a boot id: expected a UUID in lower case") }
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for BootId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BootId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl CacheRoot {
    /// What is remembered about `identity`; a damaged record is logged and counts as nothing.
    pub fn marker(&self, identity: &IdentityId) -> Result<Option<Marker>, InstallError> {
        let name = marker_name(identity);
        let directory = self.control_path().join(MARKERS);
        let file = match self.markers.open_read(&name) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.at("open", &directory, &name)?,
        };
        let mut record = Vec::new();
        file.take(MAX_MARKER).read_to_end(&mut record).map_err(|source| {
            let path = directory.join(&name);
            InstallError::Io { verb: "read", path, source }
        })?;
        let marker = std::str::from_utf8(&record).ok().and_then(Marker::from_record);
        if marker.is_none() {
            tracing::warn!(%identity, "marker is damaged or of a later version: ignored");
        }
        Ok(marker)
    }

    /// Another value each time that a marker of `identity` was written; `None` without one.
    pub fn marker_written(&self, identity: &IdentityId) -> Option<Stamp> {
        let file = self.markers.open_read(&marker_name(identity)).ok()?;
        file.metadata().ok().map(|meta| Stamp::of(&meta))
    }

    /// Remembers a failure and returns what was written. Replaces no `installed` marker: what is installed stays so,
    /// whatever became of a further attempt.
    pub fn write_negative(
        &self,
        identity: &IdentityId,
        class: NegativeClass,
        detail: &str,
        now: UnixTime,
        policy_version: u64,
    ) -> Result<Marker, InstallError> {
        let before = match self.marker(identity)? {
            Some(installed @ Marker::Installed(_)) => return Ok(installed),
            Some(Marker::Negative(before)) => Some(before),
            None => None,
        };
        let jitter = rand::random();
        let marker =
            Marker::Negative(NegativeMarker::next(before.as_ref(), class, detail, now, policy_version, jitter));
        let staging = Staging::new(self)?;
        self.stage_marker(&staging, &marker)?;
        self.place_marker(&staging, identity)?;
        Ok(marker)
    }

    /// An artifact was taken away again. What else is installed of the identity stays so.
    pub fn forget(
        &self,
        _lock: &InstallLock,
        identity: &IdentityId,
        artifact: &ArtifactId,
    ) -> Result<(), InstallError> {
        let Some(Marker::Installed(mut marker)) = self.marker(identity)? else { return Ok(()) };
        marker.artifacts.retain(|known| known != artifact);
        if !marker.artifacts.is_empty() {
            let staging = Staging::new(self)?;
            self.stage_marker(&staging, &Marker::Installed(marker))?;
            return self.place_marker(&staging, identity);
        }
        let name = marker_name(identity);
        match self.markers.remove_file(&name) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed.at("remove", &self.control_path().join(MARKERS), &name),
        }
    }

    /// Forgets a failure: somebody announced the artifact. An `installed` marker stays. True if there was one to forget.
    pub fn clear_negative(&self, identity: &IdentityId) -> Result<bool, InstallError> {
        if !matches!(self.marker(identity)?, Some(Marker::Negative(_))) {
            return Ok(false);
        }
        let name = marker_name(identity);
        match self.markers.remove_file(&name) {
            Err(Errno::NOENT) => Ok(false),
            removed => removed.at("remove", &self.control_path().join(MARKERS), &name).map(|()| true),
        }
    }

    /// Written and synced, at no place yet.
    pub(super) fn stage_marker(&self, staging: &Staging<'_>, marker: &Marker) -> Result<(), InstallError> {
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = staging.dir.create(NEW_MARKER, mode).at("make", &staging.path(), NEW_MARKER)?;
        super::fault::point().at("write", &staging.path(), NEW_MARKER)?;
        file.write_all(marker.to_record().as_bytes()).and_then(|()| file.sync_all()).map_err(|source| {
            InstallError::io("write", staging.path(), Errno::from_io_error(&source).unwrap_or(Errno::IO))
        })
    }

    pub(super) fn place_marker(&self, staging: &Staging<'_>, identity: &IdentityId) -> Result<(), InstallError> {
        let control = self.control_path();
        staging.dir.rename_over(NEW_MARKER, &self.markers, &marker_name(identity)).at("place", &control, MARKERS)?;
        self.markers.sync().at("sync", &control, MARKERS)
    }
}
