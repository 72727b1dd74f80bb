//! Questions to the registry. Replies are bounded in offers, in holders and in bytes.

use std::time::Duration;

use rand::Rng;

use super::Registry;
use super::nodes::Node;
use super::sample::{sample, weight};
use super::table::{Entry, Holding};
use crate::identity::NodeId;
use crate::protocol::metadata::{
    Closeness, Found, HolderInfo, Locality, Lookup, MAX_HOLDERS, MAX_OFFERS, MAX_PAGE, Offer, Page, PageRequest,
    PageToken, in_turn,
};

/// Holders of each artifact unless the caller wants another number.
pub(super) const DEFAULT_HOLDERS: usize = 8;

/// Artifacts in a page unless the caller wants another number.
const DEFAULT_PAGE: usize = 100;

/// Bytes of a reply, roughly: half of the largest message, since the estimate is not exact.
pub(super) const REPLY_BYTES: usize = 2 * 1024 * 1024;

/// Slots that one page looks at: a rare family must not cost a walk through everything.
const PAGE_SLOTS: u32 = 20_000;

impl Registry {
    /// Who can be asked for the artifacts of these identities. Artifacts without a holder that can be asked are left out.
    pub fn lookup<R: Rng + ?Sized>(&self, lookup: &Lookup, now: Duration, rng: &mut R) -> Found {
        let want = lookup.want.map_or(DEFAULT_HOLDERS, |want| (want as usize).min(MAX_HOLDERS));
        let per_identity = MAX_OFFERS / lookup.identities.len().max(1);
        let mut found = Found { server_epoch: self.server_epoch, offers: Vec::new(), truncated: false };
        let mut bytes = 0;
        for identity in &lookup.identities {
            // Nobody's inventions push aside what others hold.
            let alone = |(_, entry): &(usize, &Entry)| match entry.holders.as_slice() {
                [one] => Some(one.node),
                _ => None,
            };
            let entries = in_turn(self.table.of_identity(*identity).enumerate(), alone);
            let offers = entries.into_iter().filter_map(|(at, entry)| {
                let holders =
                    self.choose(entry, want, &lookup.near, now, rng, |node| !lookup.exclude.contains(&node.id));
                (!holders.is_empty()).then(|| (at, self.offer(entry, &holders)))
            });
            let mut chosen = Vec::new();
            for (count, (at, offer)) in offers.enumerate() {
                bytes += size(&offer);
                if count >= per_identity || bytes > REPLY_BYTES {
                    found.truncated = true;
                    break;
                }
                chosen.push((at, offer));
            }
            // Newest first, as they are kept.
            chosen.sort_by_key(|(at, _)| *at);
            found.offers.extend(chosen.into_iter().map(|(_, offer)| offer));
        }
        found
    }

    /// A page of all artifacts, in an order that stays the same while they live. Each comes with a few of its holders.
    pub fn list<R: Rng + ?Sized>(&self, request: &PageRequest, now: Duration, rng: &mut R) -> Page {
        let size_limit = request.size.map_or(DEFAULT_PAGE, |size| size as usize).clamp(1, MAX_PAGE);
        let first = request.after.map_or(0, |token| token.0.saturating_add(1));
        let end = self.table.entries_end();
        let last = end.min(first.saturating_add(PAGE_SLOTS));
        let (mut offers, mut bytes, mut next) = (Vec::new(), 0, None);
        for slot in first..last {
            let Some(entry) = self.table.entry(slot) else { continue };
            let is_other = request.family.as_ref().is_some_and(|family| *family != entry.summary.family)
                || request.subject.as_ref().is_some_and(|subject| **subject != *entry.summary.subject);
            if is_other {
                continue;
            }
            let holders = self.choose(entry, DEFAULT_HOLDERS, &Locality::default(), now, rng, |_| true);
            let offer = self.offer(entry, &holders);
            bytes += size(&offer);
            offers.push(offer);
            if offers.len() >= size_limit || bytes > REPLY_BYTES {
                next = Some(slot);
                break;
            }
        }
        let next = next.or_else(|| last.checked_sub(1)).filter(|at| at + 1 < end).map(PageToken);
        let nodes = u32::try_from(self.counts(now).live_nodes()).unwrap_or(u32::MAX);
        Page { server_epoch: self.server_epoch, offers, next, nodes }
    }

    fn choose<R: Rng + ?Sized>(
        &self,
        entry: &Entry,
        want: usize,
        near: &Locality,
        now: Duration,
        rng: &mut R,
        eligible: impl Fn(&Node) -> bool,
    ) -> Vec<Holding> {
        let chunks = entry.summary.chunks;
        let weigh = |holding: &Holding| {
            let node = self.nodes.get(holding.node).filter(|node| node.is_offered(now) && eligible(node))?;
            Some(weight(node.load, node.locality.closeness(near), holding.chunks, chunks))
        };
        let mut chosen = sample(&entry.holders, want, rng, weigh);
        let full = |holding: &Holding| holding.chunks >= chunks;
        // With partial holders only, chunks that none of them has could not be had.
        if !chosen.is_empty() && !chosen.iter().any(full) {
            let complete: Vec<_> = entry.holders.iter().filter(|holding| full(holding)).copied().collect();
            if let Some(one) = sample(&complete, 1, rng, weigh).first() {
                chosen.truncate(want.saturating_sub(1));
                chosen.push(*one);
            }
        }
        chosen
    }

    /// A node that does not have the artifact yet, and could serve it.
    pub(super) fn asker(&self, node: NodeId, now: Duration) -> Option<HolderInfo> {
        let node = self.serving(node, now)?;
        Some(HolderInfo {
            node: node.id,
            endpoints: node.endpoints.clone(),
            load: node.load,
            locality: node.locality.clone(),
            chunks_held: 0,
        })
    }

    pub(super) fn closeness_of_asker(&self, node: NodeId, near: &Locality, now: Duration) -> Option<Closeness> {
        Some(self.serving(node, now)?.locality.closeness(near))
    }

    fn serving(&self, node: NodeId, now: Duration) -> Option<&Node> {
        let node = self.nodes.get(*self.by_id.get(&node)?)?;
        let serves = node.is_offered(now) && node.load.upload_slots > 0 && !node.endpoints.is_empty();
        serves.then_some(node)
    }

    fn offer(&self, entry: &Entry, chosen: &[Holding]) -> Offer {
        let info = |holding: &Holding| {
            let node = self.nodes.get(holding.node)?;
            Some(HolderInfo {
                node: node.id,
                endpoints: node.endpoints.clone(),
                load: node.load,
                locality: node.locality.clone(),
                chunks_held: holding.chunks,
            })
        };
        Offer {
            artifact: entry.summary.clone(),
            holders: chosen.iter().filter_map(info).collect(),
            holder_count: u32::try_from(entry.holders.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Bytes on the wire, rather too many than too few.
pub(super) fn size(offer: &Offer) -> usize {
    let holder = |holder: &HolderInfo| {
        let place = &holder.locality;
        80 + 52 * holder.endpoints.len() + place.region.len() + place.zone.len() + place.rack.len()
    };
    let summary = 240 + offer.artifact.family.as_str().len() + offer.artifact.subject.len();
    summary + offer.holders.iter().map(holder).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::metadata::pb;
    use prost::Message;

    #[test]
    fn the_estimate_of_a_reply_is_not_below_its_size() {
        use crate::metadata::registry::tests::{held, node};
        let endpoint = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
        let holder = HolderInfo {
            node: node(1),
            endpoints: [endpoint; 8].into(),
            load: crate::protocol::metadata::Load { uploads: u32::MAX, upload_slots: u32::MAX },
            locality: Locality { region: "r".repeat(64), zone: "z".repeat(64), rack: "k".repeat(64) }.into(),
            chunks_held: 100_000,
        };
        let mut summary = held(1, 1, 100_000, 100_000).artifact.as_ref().clone();
        (summary.size, summary.wire_size, summary.generation) = (u64::MAX, u64::MAX, u64::MAX);
        let offer = Offer { artifact: summary.into(), holders: vec![holder; 64], holder_count: u32::MAX };
        assert!(size(&offer) >= pb::Offer::from(&offer).encoded_len() + 4);
    }
}
