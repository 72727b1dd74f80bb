//! What a pod tells its node's audit log. The log is the agent's: a pod that lies there lies about itself.

use std::time::Duration;

use tokio::time::timeout;

use super::admissions::Withdrawn;
use super::warm::{Job, Report, Verdict};
use crate::artifact::Admitted;
use crate::install::NegativeClass;
use crate::local::Client;
use crate::protocol::pb::AuditEvent;

/// Nothing waits longer for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// In one call.
const MAX_EVENTS: usize = 64;

/// Tells what there is to tell; an agent that does not take it is no reason to do anything else.
pub(super) async fn tell(client: &Client, mut events: Vec<AuditEvent>) {
    if events.is_empty() {
        return;
    }
    events.truncate(MAX_EVENTS);
    match timeout(PATIENCE, client.audit(events)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the audit log does not take it"),
        Err(_) => tracing::debug!("the audit log does not answer"),
    }
}

/// What came of an attempt.
pub(super) fn of_report(report: &Report, job: &Job) -> Vec<AuditEvent> {
    let rule = format!("policy {}", job.policy.version);
    let installed = report.admitted.iter().zip(&report.artifacts).filter(|(_, told)| told.installed > 0);
    let mut events: Vec<AuditEvent> = installed
        .map(|(admitted, told)| AuditEvent {
            result: format!("{} entries, {} there before", told.installed, told.existing),
            rule: rule.clone(),
            ..of_admitted("installed", admitted)
        })
        .collect();
    if let Verdict::Nothing { class: NegativeClass::Untrusted | NegativeClass::Quarantined, detail } = &report.verdict {
        let (action, family) = ("refused".to_owned(), job.identity.family().to_string());
        events.push(AuditEvent { action, family, rule, result: detail.clone(), ..AuditEvent::default() });
    }
    events
}

fn of_admitted(action: &str, admitted: &Admitted) -> AuditEvent {
    let manifest = admitted.manifest();
    AuditEvent {
        action: action.to_owned(),
        artifact: admitted.id().to_string(),
        family: manifest.identity.family().to_string(),
        subject: manifest.subject.clone(),
        from: admitted.signers().join(", "),
        ..AuditEvent::default()
    }
}

pub(super) fn of_withdrawn(withdrawn: &Withdrawn, policy: u64) -> AuditEvent {
    let Withdrawn { release, entries, reason } = withdrawn;
    AuditEvent {
        action: "withdrawn".to_owned(),
        artifact: release.artifact.to_string(),
        family: release.family.clone(),
        subject: release.subject.clone(),
        from: release.signers.join(", "),
        rule: format!("policy {policy}"),
        result: format!("{entries} entries: {reason}"),
    }
}
