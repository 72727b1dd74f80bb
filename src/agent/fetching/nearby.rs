//! What nearly fits: artifacts of a family under other identities, and the variants of this node's own. The directory
//! knows identities as digests only; the facts behind them are in the signed manifests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::{Failed, Fetching};
use crate::artifact::Family;
use crate::digest::{ArtifactId, IdentityId};
use crate::protocol::metadata::{Offer, PageRequest};
use crate::store::State;

/// Artifacts of other identities that are told of one family, and variants of the own identity.
const MAX_TOLD: usize = 8;

/// Pages of the directory's listing that are read for one family: in a larger one, not everything is seen.
const MAX_PAGES: usize = 4;
const PAGE: u32 = 1000;

/// Families listed at the same time, and manifests asked for at the same time.
const LISTINGS: usize = 4;
const MANIFESTS: usize = 8;

/// A family, and which identity of it this node has.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Wish {
    pub(in crate::agent) family: Family,
    pub(in crate::agent) identity: IdentityId,
    /// Nothing of other subjects is told.
    pub(in crate::agent) subject: Option<String>,
}

impl Wish {
    fn fits(&self, offer: &Offer) -> bool {
        let subject = self.subject.as_deref();
        offer.artifact.family == self.family && subject.is_none_or(|subject| *offer.artifact.subject == *subject)
    }
}

/// An artifact that is not what was wished for, or one variant of it.
#[derive(Debug)]
pub(in crate::agent) struct Near {
    pub(in crate::agent) offer: Offer,
    /// Of the same identity.
    pub(in crate::agent) artifacts: usize,
    pub(in crate::agent) described: Result<Described, Failed>,
}

/// What an admitted manifest says, without its files.
#[derive(Debug, Default)]
pub(in crate::agent) struct Described {
    pub(in crate::agent) facts: BTreeMap<String, String>,
    pub(in crate::agent) attributes: BTreeMap<String, String>,
    pub(in crate::agent) signers: Vec<String>,
}

impl Fetching {
    /// In the order of the wishes; and why the directory could not be asked.
    pub(in crate::agent) async fn nearby(&self, wishes: Vec<Wish>, budget: Duration) -> (Vec<Near>, Option<String>) {
        let ends = Instant::now() + budget;
        // A slow directory leaves time for the manifests of what this node itself has.
        let listed_by = Instant::now() + budget / 2;
        let listings = stream::iter(wishes).map(|wish| async move {
            let listed = timeout_at(listed_by, self.list(&wish)).await;
            let listed = listed.unwrap_or_else(|_| Err("metadata server: no answer in time".to_owned()));
            (wish, listed)
        });
        let listings: Vec<_> = listings.buffered(LISTINGS).collect().await;
        let (mut chosen, mut failure) = (Vec::new(), None);
        for (wish, listed) in listings {
            let listed = listed.unwrap_or_else(|reason| {
                failure = Some(reason);
                Vec::new()
            });
            chosen.extend(choose(&wish, self.offered_here(&wish), listed));
        }
        let near = stream::iter(chosen).map(|(offer, artifacts)| async move {
            let late = || Failed::new("transient", "its manifest did not come in time");
            let described = timeout_at(ends, self.describe(&offer)).await.unwrap_or_else(|_| Err(late()));
            Near { offer, artifacts, described }
        });
        (near.buffered(MANIFESTS).collect().await, failure)
    }

    /// What the directory has of a family and can be asked for.
    async fn list(&self, wish: &Wish) -> Result<Vec<Offer>, String> {
        let mut offers = Vec::new();
        let (family, subject) = (Some(wish.family.clone()), wish.subject.clone());
        let mut page = PageRequest { after: None, size: Some(PAGE), family, subject };
        for _ in 0..MAX_PAGES {
            let read = self.directory.list(&page).await.map_err(|error| error.to_string())?;
            offers.extend(read.offers);
            page.after = read.next;
            if page.after.is_none() {
                break;
            }
        }
        offers.iter_mut().for_each(|offer| offer.holders.retain(|holder| holder.node != self.node));
        offers.retain(|offer| wish.fits(offer) && !offer.holders.is_empty());
        Ok(offers)
    }

    fn offered_here(&self, wish: &Wish) -> Vec<Offer> {
        let mut identities = HashSet::new();
        let here = self.store.list().into_iter();
        let of_family = |artifact: &Arc<crate::store::Artifact>| {
            artifact.state() == State::Complete && *artifact.manifest().identity.family() == wish.family
        };
        identities.extend(here.filter(of_family).map(|artifact| artifact.identity()));
        let offers = identities.into_iter().flat_map(|identity| self.local_offers(identity));
        offers.filter(|offer| wish.fits(offer)).collect()
    }

    async fn describe(&self, offer: &Offer) -> Result<Described, Failed> {
        let id = offer.artifact.artifact;
        let admitted = match self.store.get(&id) {
            Some(artifact) => self.readmit(&artifact).await?,
            None => self.manifest(id, self.sources(&offer.holders, offer.artifact.chunks)).await?.0,
        };
        let manifest = admitted.manifest();
        if manifest.identity.id() != offer.artifact.identity || *manifest.identity.family() != offer.artifact.family {
            return Err(Failed::new("untrusted", "its manifest is of another identity than announced"));
        }
        Ok(Described {
            facts: manifest.identity.facts().clone(),
            attributes: manifest.attributes.clone(),
            signers: admitted.signers().to_vec(),
        })
    }
}

/// The newest artifact of each other identity and of each subject of the own one, newest first; with each, how many of its
/// identity there are. An own artifact without a subject is no variant: it is what was wished for.
fn choose(wish: &Wish, here: Vec<Offer>, listed: Vec<Offer>) -> Vec<(Offer, usize)> {
    let mut offers: HashMap<ArtifactId, Offer> = HashMap::new();
    // What others hold, too, keeps the count of all holders.
    for offer in listed.into_iter().chain(here) {
        offers.entry(offer.artifact.artifact).or_insert(offer);
    }
    let mut offers: Vec<Offer> = offers.into_values().collect();
    offers.sort_by_key(|offer| {
        let artifact = &offer.artifact;
        std::cmp::Reverse((artifact.created, artifact.generation, artifact.artifact))
    });
    let mut artifacts: HashMap<IdentityId, usize> = HashMap::new();
    offers.iter().for_each(|offer| *artifacts.entry(offer.artifact.identity).or_default() += 1);
    let mut seen = HashSet::new();
    let (mut variants, mut others) = (0, 0);
    offers.retain(|offer| {
        let own = offer.artifact.identity == wish.identity;
        let subject = own.then(|| offer.artifact.subject.clone());
        if subject.as_deref() == Some("") || !seen.insert((offer.artifact.identity, subject)) {
            return false;
        }
        let told = if own { &mut variants } else { &mut others };
        *told += 1;
        *told <= MAX_TOLD
    });
    let counted = |offer: Offer| {
        let count = artifacts.get(&offer.artifact.identity).copied().unwrap_or(1);
        (offer, count)
    };
    offers.into_iter().map(counted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ContentId, KeyId};
    use crate::identity::UnixTime;
    use crate::protocol::metadata::Summary;

    fn offer(identity: u8, subject: &str, created: u64) -> Offer {
        let artifact = Summary {
            artifact: ArtifactId::of(format!("{identity} {subject} {created}").as_bytes()),
            identity: IdentityId::of(&[identity]),
            content: ContentId::of(&[identity]),
            family: "vllm-aot".parse().unwrap(),
            subject: subject.into(),
            generation: 1,
            created: UnixTime::from_seconds(created),
            size: 1,
            wire_size: 1,
            files: 1,
            chunks: 1,
            signer: KeyId::of(b"signer"),
            compile_ms: 0,
        };
        Offer { artifact: Arc::new(artifact), holders: Vec::new(), holder_count: 1 }
    }

    fn chosen(here: Vec<Offer>, listed: Vec<Offer>) -> Vec<(u64, usize)> {
        let wish = Wish { family: "vllm-aot".parse().unwrap(), identity: IdentityId::of(&[1]), subject: None };
        let chosen = choose(&wish, here, listed).into_iter();
        chosen.map(|(offer, artifacts)| (offer.artifact.created.seconds(), artifacts)).collect()
    }

    #[test]
    fn the_newest_of_each_other_identity_and_of_each_own_subject_is_told() {
        let listed = vec![offer(1, "a", 10), offer(1, "a", 20), offer(1, "b", 15), offer(2, "x", 5), offer(2, "y", 30)];
        assert_eq!(chosen(vec![offer(2, "y", 30), offer(3, "", 1)], listed), [(30, 2), (20, 3), (15, 3), (1, 1)]);
    }

    #[test]
    fn an_own_artifact_without_a_subject_is_no_near_miss() {
        assert_eq!(chosen(vec![offer(1, "", 10)], vec![offer(1, "", 20)]), []);
    }

    #[test]
    fn a_family_with_very_many_identities_is_told_in_part() {
        let listed = (1..100).flat_map(|n| [offer(n, "s", n.into()), offer(1, &n.to_string(), n.into())]);
        let told = chosen(Vec::new(), listed.collect());
        assert_eq!(told.len(), 2 * MAX_TOLD);
        assert_eq!(told[0].0, 99);
    }
}
