//! Groups of nodes whose caches would fit each other but for one fact.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, FindingKind, Severity};
use crate::identity::NodeId;
use crate::protocol::fleet::{Fleet, IdentityDocument};

/// Identities of one family that are compared with each other, newest first.
const COMPARED: usize = 64;

/// Another model is another thing, not a mistake.
const WANTED: [&str; 1] = ["model"];

/// Adapters of one base differ in nothing but their name.
const NAME: &str = "alias";

/// One fact in which identities of a family differ, and who has which value.
type Sides<'f> = BTreeMap<(&'f str, &'f str), BTreeMap<&'f str, BTreeSet<NodeId>>>;

pub(super) fn misses(fleet: &Fleet) -> Vec<Finding> {
    let mut by_family: BTreeMap<&str, Vec<&IdentityDocument>> = BTreeMap::new();
    for identity in fleet.identities.iter().filter(|identity| identity.facts.is_some()) {
        by_family.entry(identity.family.as_str()).or_default().push(identity);
    }
    let mut sides = Sides::new();
    for (family, mut identities) in by_family {
        identities.sort_by_key(|identity| std::cmp::Reverse(identity.artifacts.first().map(|artifact| artifact.at)));
        identities.truncate(COMPARED);
        for (at, one) in identities.iter().enumerate() {
            for other in &identities[at + 1..] {
                let Some((fact, here, there)) = only_difference(one, other) else { continue };
                let values = sides.entry((family, fact)).or_default();
                values.entry(here).or_default().extend(holders(one));
                values.entry(there).or_default().extend(holders(other));
            }
        }
    }
    let names: BTreeMap<NodeId, String> = fleet.nodes.iter().map(|node| (node.id, node.called())).collect();
    sides.into_iter().map(|((family, fact), values)| told(family, fact, &values, &names)).collect()
}

/// The fact and both values, if there is just one; what is missing is empty.
fn only_difference<'f>(one: &'f IdentityDocument, other: &'f IdentityDocument) -> Option<(&'f str, &'f str, &'f str)> {
    let (here, there) = (one.facts.as_ref()?, other.facts.as_ref()?);
    let value = |facts: &'f BTreeMap<String, String>, name: &str| facts.get(name).map_or("", String::as_str);
    let names: BTreeSet<&str> = here.keys().chain(there.keys()).map(String::as_str).collect();
    let mut differing = names.into_iter().filter(|name| here.get(*name) != there.get(*name));
    let fact = differing.next()?;
    (fact != NAME && differing.next().is_none()).then(|| (fact, value(here, fact), value(there, fact)))
}

fn holders(identity: &IdentityDocument) -> impl Iterator<Item = NodeId> {
    identity.artifacts.iter().flat_map(|artifact| artifact.holders.iter().chain(&artifact.partial)).copied()
}

fn told(
    family: &str,
    fact: &str,
    values: &BTreeMap<&str, BTreeSet<NodeId>>,
    names: &BTreeMap<NodeId, String>,
) -> Finding {
    let called = |node: &NodeId| names.get(node).cloned().unwrap_or_else(|| node.short());
    let side = |(value, nodes): (&&str, &BTreeSet<NodeId>)| {
        let value = if value.is_empty() { "absent" } else { value };
        let nodes: Vec<String> = nodes.iter().map(called).collect();
        format!("{value} on {}", super::super::listed(&nodes))
    };
    let sides: Vec<String> = values.iter().map(side).collect();
    let mut nodes: Vec<String> = values.values().flatten().map(called).collect::<BTreeSet<_>>().into_iter().collect();
    nodes.sort_unstable();
    Finding {
        severity: if WANTED.contains(&fact) { Severity::Note } else { Severity::Warning },
        kind: FindingKind::NearMiss,
        what: format!("{family} fits but for `{fact}`: {}", sides.join(", ")),
        nodes,
        why: "each group compiles for itself what the other has".to_owned(),
        way_out: "use one image, driver and configuration for nodes that run the same model".to_owned(),
    }
}
