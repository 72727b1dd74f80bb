//! What one attempt installs at once: an install for each manifest that the agent sends.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::install::{self, Feed, InstallWork};
use super::{ArtifactReport, Attempt, Brought, Failure};
use crate::artifact::SignedManifest;
use crate::digest::ArtifactId;
use crate::identity::UnixTime;
use crate::install::{InstallLock, Installed, NegativeClass};
use crate::protocol::pb::WarmDone;
use crate::serve::quarantine::{LeftOut, Release};
use crate::telemetry::trace;

/// The installs of one attempt.
pub(super) struct Works<'a, 'b> {
    pub(super) attempt: &'a Attempt<'b>,
    pub(super) lock: &'a Arc<InstallLock>,
    pub(super) running: JoinSet<Result<(ArtifactId, Installed), Failure>>,
    /// Cancelled when no more chunks will come.
    pub(super) ends: HashMap<ArtifactId, CancellationToken>,
    pub(super) reports: Vec<Brought>,
    /// The first one; others may succeed all the same.
    pub(super) failure: Option<Failure>,
    pub(super) quarantined: Vec<LeftOut>,
}

impl Works<'_, '_> {
    /// Admits a manifest and installs its chunks as the agent gets them.
    pub(super) fn start(&mut self, envelope: Bytes) {
        let admitted = match SignedManifest::admit(envelope, &self.attempt.job.policy, UnixTime::now()) {
            Ok(admitted) => admitted,
            Err(error) => {
                self.failure.get_or_insert_with(|| error.into());
                return;
            }
        };
        let (job, manifest) = (self.attempt.job, admitted.manifest());
        let other = match &job.subject {
            _ if manifest.identity != job.identity => Some("identity"),
            Some(subject) if manifest.subject != *subject => Some("subject"),
            _ => None,
        };
        if let Some(other) = other {
            let detail = format!("artifact {} has another {other} than the one asked for", admitted.id().short());
            self.failure.get_or_insert(Failure { class: NegativeClass::Untrusted, detail });
            return;
        }
        let release = Release::of(&admitted);
        if let Some(quarantined) = self.attempt.job.quarantine.refuses(&release) {
            let left_out = LeftOut { release, reason: quarantined.to_string() };
            let detail = left_out.to_string();
            self.quarantined.push(left_out);
            self.failure.get_or_insert(Failure { class: NegativeClass::Quarantined, detail });
            return;
        }
        self.reports.push((admitted.clone(), ArtifactReport::of(&admitted)));
        let id = admitted.id();
        let work = InstallWork {
            root: self.attempt.root.clone(),
            signed_by: Some(admitted.keys().to_vec()),
            lock: self.lock.clone(),
            admitted: Arc::new(admitted),
            limits: self.attempt.job.limits,
            witness: self.attempt.job.witness.clone(),
        };
        let ended = CancellationToken::new();
        let feed = Feed::new(self.attempt.client.clone(), id, ended.clone());
        let span = tracing::debug_span!(target: trace::OPERATIONS, "install", artifact = %id);
        self.running.spawn(async move { Ok((id, install::run(work, feed).await?)) }.instrument(span));
        self.ends.insert(id, ended);
    }

    pub(super) fn done(&mut self, done: WarmDone) -> Result<(), Failure> {
        let failed = (!done.failure.is_empty())
            .then(|| Failure { class: class_named(&done.failure_class), detail: done.failure.clone() });
        let Ok(id) = ArtifactId::try_from(&done.artifact_id[..]) else {
            // Of the whole attempt.
            return failed.map_or(Ok(()), Err);
        };
        if let Some(failure) = failed {
            // Its install may have all that it needs by now; whatever it makes of that is told.
            if let Some(ended) = self.ends.remove(&id) {
                ended.cancel();
            }
            self.failure.get_or_insert(failure);
        } else if let Some((_, report)) = self.reports.iter_mut().find(|(admitted, _)| admitted.id() == id) {
            report.wire_bytes = done.wire_bytes;
            report.reused_bytes = done.reused_bytes;
            report.holders = done.holders;
        }
        Ok(())
    }
}

fn class_named(name: &str) -> NegativeClass {
    use NegativeClass::{Incompatible, NoSpace, NoneFound, Transient, Untrusted};
    let all = [NoneFound, Transient, NoSpace, Untrusted, Incompatible];
    all.into_iter().find(|class| class.to_string() == name).unwrap_or(Transient)
}
