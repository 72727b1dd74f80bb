//! What agents said, put together. One that lies can make a search longer; it cannot push aside what others hold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::digest::{ArtifactId, IdentityId};
use crate::identity::{NodeId, UnixTime};
use crate::protocol::metadata::{Held, HolderInfo, Holdings, Locality, MAX_AHEAD, MAX_HOLDERS, Offer, Summary};

/// Artifacts of one identity, and of one subject of it, that one node is believed to hold.
const MAX_OF_IDENTITY: usize = 64;
const MAX_OF_SUBJECT: usize = 3;

#[derive(Debug)]
pub(super) struct Found {
    near: Locality,
    /// Whether this node is reached under addresses of its machine only; else nobody else is.
    loopback: bool,
    holders: HashMap<IdentityId, HashSet<NodeId>>,
    /// Who holds an artifact, and what they say of it, which should be the same.
    artifacts: HashMap<ArtifactId, Vec<(Arc<Summary>, HolderInfo)>>,
}

impl Found {
    pub(super) fn new(identities: impl Iterator<Item = IdentityId>, near: Locality, loopback: bool) -> Self {
        let holders = identities.map(|identity| (identity, HashSet::new())).collect();
        Self { near, loopback, holders, artifacts: HashMap::new() }
    }

    /// Nodes that hold something of it.
    pub(super) fn holders(&self, identity: &IdentityId) -> usize {
        self.holders.get(identity).map_or(0, HashSet::len)
    }

    /// What a node says for the first time.
    pub(super) fn add(&mut self, node: NodeId, holdings: &Holdings, date: UnixTime) {
        let reachable = self.loopback || !holdings.endpoints.iter().any(|endpoint| endpoint.is_loopback());
        if holdings.endpoints.is_empty() || !reachable {
            return;
        }
        let latest = date.after(MAX_AHEAD);
        let mut counts: HashMap<(IdentityId, Option<Arc<str>>), usize> = HashMap::new();
        let mut within = |identity, subject, limit| {
            let count = counts.entry((identity, subject)).or_default();
            *count += 1;
            *count <= limit
        };
        for Held { artifact, chunks_held } in &holdings.held {
            let Some(holders) = self.holders.get_mut(&artifact.identity) else { continue };
            if artifact.created > latest
                || !within(artifact.identity, Some(artifact.subject.clone()), MAX_OF_SUBJECT)
                || !within(artifact.identity, None, MAX_OF_IDENTITY)
            {
                continue;
            }
            let holder = HolderInfo {
                node,
                endpoints: holdings.endpoints.clone(),
                load: holdings.load,
                locality: holdings.locality.clone(),
                chunks_held: *chunks_held,
            };
            let told = self.artifacts.entry(artifact.artifact).or_default();
            if told.iter().all(|(_, known)| known.node != node) {
                holders.insert(node);
                told.push((artifact.clone(), holder));
            }
        }
    }

    /// Of each artifact up to `want` holders, near and idle ones first.
    pub(super) fn into_offers(self, want: usize) -> Vec<Offer> {
        let Self { near, artifacts, .. } = self;
        let offer = |told: Vec<(Arc<Summary>, HolderInfo)>| {
            let artifact = most(&told)?;
            let mut holders: Vec<HolderInfo> = told.into_iter().map(|(_, holder)| holder).collect();
            let holder_count = u32::try_from(holders.len()).unwrap_or(u32::MAX);
            holders.sort_by_key(|holder| {
                (near.closeness(&holder.locality), std::cmp::Reverse(holder.load.free_slots()), holder.node)
            });
            holders.truncate(want.min(MAX_HOLDERS));
            Some(Offer { artifact, holders, holder_count })
        };
        artifacts.into_values().filter_map(offer).collect()
    }
}

/// What most of them say.
fn most(told: &[(Arc<Summary>, HolderInfo)]) -> Option<Arc<Summary>> {
    let mut counts: HashMap<&Summary, usize> = HashMap::new();
    told.iter().for_each(|(summary, _)| *counts.entry(summary.as_ref()).or_default() += 1);
    told.iter().max_by_key(|(summary, _)| counts.get(summary.as_ref())).map(|(summary, _)| summary.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::samples::{held, holdings, node};
    use crate::protocol::metadata::Load;

    fn date() -> UnixTime {
        UnixTime::from_seconds(1_000_000)
    }

    fn found() -> Found {
        Found::new([IdentityId::from_array([7; 32])].into_iter(), Locality::default(), true)
    }

    #[test]
    fn holders_of_one_artifact_are_put_together_idle_ones_first() {
        let mut found = found();
        let mut busy = holdings(vec![held(1, 7, 10)]);
        busy.load = Load { uploads: 9, upload_slots: 10 };
        let mut idle = holdings(vec![held(1, 7, 10), held(2, 7, 5)]);
        idle.load = Load { uploads: 0, upload_slots: 10 };
        found.add(node(1), &busy, date());
        found.add(node(2), &idle, date());
        assert_eq!(found.holders(&IdentityId::from_array([7; 32])), 2);
        let mut offers = found.into_offers(16);
        offers.sort_by_key(|offer| offer.artifact.artifact);
        let nodes: Vec<_> = offers[0].holders.iter().map(|holder| holder.node).collect();
        assert_eq!((offers.len(), offers[0].holder_count, nodes), (2, 2, vec![node(2), node(1)]));
    }

    #[test]
    fn a_liar_does_not_change_what_others_say_of_an_artifact() {
        let mut found = found();
        let mut lie = held(1, 7, 10);
        Arc::make_mut(&mut lie.artifact).generation = 99;
        found.add(node(1), &holdings(vec![lie]), date());
        found.add(node(2), &holdings(vec![held(1, 7, 10)]), date());
        found.add(node(3), &holdings(vec![held(1, 7, 10)]), date());
        let offers = found.into_offers(16);
        assert_eq!((offers[0].artifact.generation, offers[0].holders.len()), (1, 3));
    }

    #[test]
    fn one_node_has_few_artifacts_of_a_subject_and_none_of_tomorrow_or_of_other_identities() {
        let mut found = found();
        let mut lies: Vec<Held> = (1..100).map(|n| held(n, 7, n.into())).collect();
        lies.push(held(101, 8, 10));
        found.add(node(1), &holdings(lies), date());
        found.add(node(2), &holdings(vec![held(102, 7, date().after(MAX_AHEAD * 2).seconds())]), date());
        assert_eq!(found.into_offers(16).len(), MAX_OF_SUBJECT);
    }

    #[test]
    fn a_node_elsewhere_has_no_business_with_our_loopback() {
        let mut found = Found::new([IdentityId::from_array([7; 32])].into_iter(), Locality::default(), false);
        found.add(node(1), &holdings(vec![held(1, 7, 10)]), date());
        assert!(found.into_offers(16).is_empty());
    }
}
