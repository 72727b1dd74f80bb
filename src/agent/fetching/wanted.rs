//! Which of the artifacts that are offered are brought, and in which order they are tried. Anybody may offer anything.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use crate::digest::IdentityId;
use crate::protocol::metadata::{Offer, in_turn};

/// Subjects of one identity that are fetched.
const MAX_SUBJECTS: usize = 64;

/// One of the artifacts to bring: the candidates of one subject, best first.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Wanted {
    pub(in crate::agent) candidates: Vec<Offer>,
}

impl Wanted {
    /// Newest first, of equals the one that more nodes hold; but nodes take turns with what each of them offers alone.
    pub(super) fn new(candidates: Vec<Offer>) -> Self {
        // What is here and is offered by others too keeps the entry with the others.
        let mut merged: Vec<Offer> = Vec::new();
        for offer in in_order(candidates) {
            match merged.iter_mut().find(|other| other.artifact.artifact == offer.artifact.artifact) {
                Some(other) if other.holders.is_empty() => *other = offer,
                Some(_) => {}
                None => merged.push(offer),
            }
        }
        Self { candidates: merged }
    }

    pub(in crate::agent) fn holders(&self) -> usize {
        self.candidates.first().map_or(0, |offer| offer.holders.len())
    }
}

fn in_order(mut offers: Vec<Offer>) -> Vec<Offer> {
    offers.sort_by_key(|offer| {
        let artifact = &offer.artifact;
        std::cmp::Reverse((artifact.created, artifact.generation, offer.holder_count, artifact.artifact))
    });
    in_turn(offers, |offer| match offer.holders.as_slice() {
        [one] if offer.holder_count <= 1 => Some(one.node),
        _ => None,
    })
}

/// Candidates of each subject of an identity, whatever else was told. Of more subjects than are brought, nodes take turns
/// with those that each of them offers alone.
pub(super) fn by_subject(
    offers: impl IntoIterator<Item = Offer>,
    identity: IdentityId,
    subject: Option<&str>,
) -> Vec<Wanted> {
    let is_wanted = |offer: &Offer| {
        offer.artifact.identity == identity && subject.is_none_or(|subject| *offer.artifact.subject == *subject)
    };
    let mut by_subject: BTreeMap<Arc<str>, Vec<Offer>> = BTreeMap::new();
    for offer in in_order(offers.into_iter().filter(is_wanted).collect()) {
        let is_full = by_subject.len() >= MAX_SUBJECTS;
        match by_subject.entry(offer.artifact.subject.clone()) {
            Entry::Vacant(_) if is_full => {}
            Entry::Vacant(entry) => drop(entry.insert(vec![offer])),
            Entry::Occupied(mut entry) => entry.get_mut().push(offer),
        }
    }
    by_subject.into_values().map(Wanted::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::directory::tests::{identity, offer};
    use crate::digest::ArtifactId;
    use crate::identity::UnixTime;

    /// Of one node alone, of identity 1.
    fn alone(node: u8, artifact: u8, subject: &str, created: u64) -> Offer {
        let mut offer = offer(1, &[node]);
        let summary = Arc::make_mut(&mut offer.artifact);
        summary.artifact = ArtifactId::from_array([artifact; 32]);
        summary.created = UnixTime::from_seconds(created);
        summary.subject = subject.into();
        offer
    }

    #[test]
    fn what_one_node_invents_comes_in_turn_with_what_others_hold() {
        let mut offers: Vec<Offer> = (10..50).map(|n| alone(9, n, "model", 1000)).collect();
        offers.extend([alone(1, 1, "model", 20), alone(2, 2, "model", 30), alone(1, 3, "model", 10)]);
        let wanted = by_subject(offers, identity(1), Some("model")).remove(0);
        let artifact = |n: &u8| ArtifactId::from_array([*n; 32]);
        let order: Vec<_> = wanted.candidates.iter().map(|offer| offer.artifact.artifact).collect();
        assert_eq!(order[1..3], [2, 1].map(|n| artifact(&n)), "the newest of each honest node is second and third");
        assert_eq!(order[4], artifact(&3), "and what else one has comes in the next turn");
    }

    #[test]
    fn subjects_that_one_node_invents_leave_room_for_those_of_others() {
        let mut offers: Vec<Offer> = (0..200).map(|n| alone(9, n, &format!("a{n:03}"), 1000)).collect();
        offers.extend([alone(1, 201, "x", 20), alone(1, 202, "y", 10)]);
        let wanted = by_subject(offers, identity(1), None);
        let subjects: Vec<_> = wanted.iter().map(|one| one.candidates[0].artifact.subject.to_string()).collect();
        assert_eq!(subjects.len(), MAX_SUBJECTS);
        assert_eq!(subjects[MAX_SUBJECTS - 2..], ["x", "y"]);
    }
}
