//! `warmd doctor --fleet`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::ExitCode;

use bytes::Bytes;
use serde::Serialize;

use crate::cli::output;
use crate::digest::IdentityId;
use crate::local::{Client, FleetPart};
use crate::metadata::fleet::findings::{Finding, Severity, findings};
use crate::metadata::fleet::listed;
use crate::protocol::fleet::Fleet;
use crate::protocol::pb::{FamilyIdentity, NearbyRequest};
use crate::protocol::report::UnixMillis;

/// Families whose manifests are asked for; as many as one question may name.
const MAX_FAMILIES: usize = 64;

#[derive(Serialize)]
struct Examination {
    /// Why this is not the whole fleet; else empty.
    limited: String,
    nodes: usize,
    findings: Vec<Finding>,
}

pub(in crate::cli) async fn run(client: &Client, json: bool) -> anyhow::Result<ExitCode> {
    let mut fleet = client.fleet(FleetPart::All).await?;
    let missing = add_facts(client, &mut fleet).await;
    let found =
        Examination { findings: findings(&fleet, UnixMillis::now()), nodes: fleet.nodes.len(), limited: fleet.limited };
    if json {
        output::json(&found)?;
    } else {
        if let Err(error) = missing {
            output::note(format!("facts of identities are not known: {error}"));
        }
        page(&found).into_iter().try_for_each(output::line)?;
    }
    let is_wrong = found.findings.iter().any(|finding| finding.severity != Severity::Note);
    Ok(if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Manifests have the facts, and the agent gets them from holders: of families with more than one identity.
async fn add_facts(client: &Client, fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut identities: BTreeMap<String, usize> = BTreeMap::new();
    for identity in &fleet.identities {
        *identities.entry(identity.family.to_string()).or_default() += 1;
    }
    // An identity that nobody has: all others are told.
    let identity = Bytes::copy_from_slice(&[0; 32]);
    let several = identities.into_iter().filter(|(_, count)| *count > 1).take(MAX_FAMILIES);
    let families: Vec<FamilyIdentity> = several
        .map(|(family, _)| FamilyIdentity { family, identity: identity.clone(), subject: String::new() })
        .collect();
    if families.is_empty() {
        return Ok(());
    }
    let near = client.nearby(NearbyRequest { families, budget_ms: 0 }).await?;
    let told = near.artifacts.into_iter().filter(|artifact| artifact.failure.is_empty());
    let mut facts: HashMap<IdentityId, BTreeMap<String, String>> = told
        .filter_map(|artifact| Some((IdentityId::try_from(&artifact.identity[..]).ok()?, artifact.facts)))
        .map(|(identity, facts)| (identity, facts.into_iter().collect()))
        .collect();
    for identity in &mut fleet.identities {
        identity.facts = facts.remove(&identity.digest).or_else(|| identity.facts.take());
    }
    Ok(())
}

fn page(found: &Examination) -> Vec<String> {
    let mut lines = Vec::new();
    if !found.limited.is_empty() {
        lines.push(format!("note: {}", found.limited));
    }
    let mut told = HashSet::new();
    for finding in &found.findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        lines.push(format!("{severity}: {}: {}", listed(&finding.nodes), finding.what));
        // Once is enough where many findings have the same cause.
        if told.insert((&finding.why, &finding.way_out)) {
            lines.push(format!("  {}", finding.why));
            lines.push(format!("  -> {}", finding.way_out));
        }
    }
    if found.findings.is_empty() {
        let nodes = output::count(found.nodes as u64, "node");
        let seen = if found.limited.is_empty() { "" } else { " that can be seen from here" };
        lines.push(format!("{nodes}{seen}: nothing is wrong"));
    }
    lines.iter().map(|line| output::plain(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::fleet::findings::FindingKind;

    #[test]
    fn a_finding_says_what_where_why_and_what_to_do() {
        let finding = |severity, nodes: &[&str]| Finding {
            severity,
            kind: FindingKind::Clock,
            what: "clocks\u{1b}[2J differ".to_owned(),
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
            why: "because".to_owned(),
            way_out: "do that".to_owned(),
        };
        let many: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let findings = vec![finding(Severity::Error, &many), finding(Severity::Note, &["a"])];
        let found = Examination { limited: "not all".to_owned(), nodes: 3, findings };
        let expected = [
            "note: not all",
            "error: n0, n1, n2, n3, n4, n5 and 3 more: clocks?[2J differ",
            "  because",
            "  -> do that",
            "note: a: clocks?[2J differ",
        ];
        assert_eq!(page(&found), expected);
        let well = Examination { limited: String::new(), nodes: 3, findings: Vec::new() };
        assert_eq!(page(&well), ["3 nodes: nothing is wrong"]);
    }
}
