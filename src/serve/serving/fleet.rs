//! Adapters of the fleet, by way of the node's agent.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

use crate::adapters::{Alias, BaseModel, Release, release};
use crate::artifact::{Admitted, SignedManifest, SourceIdentity, SourceIdentityError};
use crate::digest::{ArtifactId, ContentId, IdentityId};
use crate::identity::{Policy, UnixTime};
use crate::install::Limits;
use crate::local::{Client, chain};
use crate::protocol::pb::{FamilyIdentity, FoundArtifact, NearbyArtifact, NearbyRequest};
use crate::proxy::BoxFuture;
use crate::serve::adapters::{
    Delivery, FetchError, Files, Foreign, LookError, Offer, Progress, Sighting, Signed, Source,
};
use crate::serve::trust::Trust;
use crate::serve::warm;

/// Artifacts whose identity is remembered until a fetch.
const MAX_SEEN: usize = 16 * 1024;

/// For one transfer, as the agent is told; whoever asks has a deadline of its own.
const BUDGET: Duration = Duration::from_secs(60 * 60);

/// For a question to the agent.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Fleet {
    socket: PathBuf,
    client: OnceCell<Client>,
    trust: Trust,
    limits: Limits,
    /// As it is looked up.
    base: BaseModel,
    seen: Mutex<HashMap<ArtifactId, (Alias, SourceIdentity)>>,
}

impl Fleet {
    pub(super) fn new(socket: PathBuf, trust: Trust, limits: Limits, base: BaseModel) -> Self {
        Self { socket, client: OnceCell::new(), trust, limits, base, seen: Mutex::default() }
    }

    async fn client(&self) -> Result<&Client, String> {
        let connect = async { Client::connect(&self.socket).await.map_err(|error| chain(&error)) };
        self.client.get_or_try_init(|| connect).await
    }

    fn policy(&self) -> Result<Arc<Policy>, FetchError> {
        self.trust.policy().map_err(FetchError::NotAdmitted)
    }

    /// And why there may be more, where no metadata server told.
    async fn found(&self, identities: &[IdentityId]) -> Result<(Vec<FoundArtifact>, Option<String>), String> {
        let client = self.client().await?;
        let asked = timeout(PATIENCE, client.find(identities)).await;
        let reply = asked.map_err(|_| "the agent does not answer".to_owned())?.map_err(|error| chain(&error))?;
        let failure = Some(reply.metadata_failure).filter(|failure| !failure.is_empty());
        Ok((reply.found, failure))
    }

    /// False, too, where there is no origin, or none that answers.
    async fn origin_has(&self, identity: &IdentityId, artifact: &ArtifactId) -> bool {
        let Ok(client) = self.client().await else { return false };
        matches!(timeout(PATIENCE, client.origin_has(identity, artifact)).await, Ok(Ok(true)))
    }

    async fn newest(&self, aliases: &[Alias]) -> Result<Vec<Sighting>, String> {
        let identities: Result<Vec<SourceIdentity>, SourceIdentityError> =
            aliases.iter().map(|alias| release::identity(&self.base, alias)).collect();
        let identities = identities.map_err(|error| error.to_string())?;
        let ids: Vec<IdentityId> = identities.iter().map(SourceIdentity::id).collect();
        let (found, failure) = self.found(&ids).await?;
        // That there is none is known only from a server.
        let none = failure.map_or(Ok(None), |failure| Err(LookError(failure)));
        let sightings = aliases.iter().zip(identities).map(|(alias, identity)| {
            let id = identity.id();
            let of_alias =
                found.iter().filter(|one| one.identity[..] == id.as_bytes()[..] && one.subject == alias.as_str());
            let newest = of_alias.max_by_key(|one| (one.created_s, one.generation));
            let Some(offer) = newest.and_then(offer) else { return none.clone() };
            self.saw(offer.artifact, alias.clone(), identity);
            Ok(Some(offer))
        });
        Ok(sightings.collect())
    }

    fn saw(&self, artifact: ArtifactId, alias: Alias, identity: SourceIdentity) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() > MAX_SEEN {
            seen.clear();
        }
        seen.insert(artifact, (alias, identity));
    }

    async fn others(&self, aliases: &[Alias]) -> Result<Vec<Option<Foreign>>, String> {
        let family = |alias: &Alias| {
            let identity = release::identity(&self.base, alias).map_err(|error| error.to_string())?.id();
            let (family, identity) = (release::FAMILY.to_owned(), bytes::Bytes::copy_from_slice(identity.as_bytes()));
            Ok::<_, String>(FamilyIdentity { family, identity, subject: alias.to_string() })
        };
        let families = aliases.iter().map(family).collect::<Result<Vec<_>, _>>()?;
        let client = self.client().await?;
        let asked = timeout(PATIENCE, client.nearby(NearbyRequest { families, budget_ms: 0 })).await;
        let near = asked.map_err(|_| "the agent does not answer".to_owned())?.map_err(|error| chain(&error))?.artifacts;
        // Newest first: of several base models, the one that somebody trained it for last.
        Ok(aliases.iter().map(|alias| near.iter().find_map(|one| foreign(one, alias, &self.base))).collect())
    }

    /// What was looked up as this artifact.
    fn looked_up(&self, artifact: &ArtifactId) -> Result<(Alias, SourceIdentity), FetchError> {
        let unavailable = || FetchError::Unavailable("it was not looked up before".to_owned());
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(artifact).cloned();
        seen.ok_or_else(unavailable)
    }

    fn wanted<'a>(&'a self, (alias, identity): &'a (Alias, SourceIdentity)) -> Result<warm::Wanted<'a>, FetchError> {
        Ok(warm::Wanted { identity, subject: alias.as_str(), policy: self.policy()?, budget: BUDGET })
    }

    /// Published since the look, it may be another one than was asked for: that one is asked for next.
    fn admitted(&self, admitted: &Admitted, looked_up: (Alias, SourceIdentity)) -> Result<Arc<Signed>, FetchError> {
        let signed = Arc::new(signed(admitted)?);
        let (alias, identity) = looked_up;
        self.saw(signed.artifact, alias, identity);
        Ok(signed)
    }

    async fn describe(&self, artifact: &ArtifactId) -> Result<Arc<Signed>, FetchError> {
        let looked_up = self.looked_up(artifact)?;
        let client = self.client().await.map_err(FetchError::Unavailable)?;
        let admitted = self.wanted(&looked_up)?.manifest(client).await?;
        self.admitted(&admitted, looked_up)
    }

    async fn deliver(&self, artifact: &ArtifactId) -> Result<Delivery, FetchError> {
        let looked_up = self.looked_up(artifact)?;
        let client = self.client().await.map_err(FetchError::Unavailable)?;
        let delivery = warm::Delivery::open(client, self.wanted(&looked_up)?).await?;
        let signed = self.admitted(delivery.admitted(), looked_up)?;
        Ok(Delivery { signed, files: Box::new(Incoming { delivery, limits: self.limits }) })
    }
}

fn offer(found: &FoundArtifact) -> Option<Offer> {
    Some(Offer {
        artifact: ArtifactId::try_from(&found.artifact_id[..]).ok()?,
        content: ContentId::try_from(&found.content_id[..]).ok(),
        generation: found.generation,
        created: UnixTime::from_seconds(found.created_s),
        size: found.size,
        holders: found.holders as usize,
    })
}

/// Of a manifest that the agent's policy has accepted.
fn foreign(told: &NearbyArtifact, alias: &Alias, served: &BaseModel) -> Option<Foreign> {
    let attribute = |name| told.attributes.get(name);
    let base: BaseModel = attribute(release::BASE_MODEL)?.parse().ok()?;
    let owner = attribute(release::OWNER).map(|owner| owner.parse()).transpose().ok()?;
    let is_it = told.subject == alias.as_str() && attribute(release::ALIAS)? == alias.as_str();
    (is_it && !base.matches(served)).then_some(Foreign { base, owner })
}

fn signed(admitted: &Admitted) -> Result<Signed, FetchError> {
    let manifest = admitted.manifest();
    let release = Release::read(manifest).map_err(|error| FetchError::NotAdmitted(error.to_string()))?;
    Ok(Signed {
        release,
        artifact: admitted.id(),
        generation: manifest.generation,
        created: manifest.created,
        size: manifest.files.iter().map(|file| file.size).sum(),
        signers: admitted.signers().to_vec(),
        keys: admitted.keys().to_vec(),
        envelope: admitted.envelope().clone(),
    })
}

impl From<warm::DeliveryError> for FetchError {
    fn from(error: warm::DeliveryError) -> Self {
        match error {
            warm::DeliveryError::NotAdmitted(why) => Self::NotAdmitted(why),
            warm::DeliveryError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

/// Files on their way from the agent.
struct Incoming {
    delivery: warm::Delivery,
    limits: Limits,
}

impl Files for Incoming {
    fn write<'a>(
        self: Box<Self>,
        into: &'a Path,
        progress: &'a watch::Sender<Progress>,
    ) -> BoxFuture<'a, Result<(), FetchError>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            let tell = |bytes, bytes_total| _ = progress.send_replace(Progress { bytes, bytes_total });
            Ok(self.delivery.write(into, self.limits, tell).await?)
        })
    }
}

impl Source for Fleet {
    fn look<'a>(&'a self, aliases: &'a [Alias]) -> BoxFuture<'a, Result<Vec<Sighting>, LookError>> {
        Box::pin(async move { self.newest(aliases).await.map_err(LookError) })
    }

    fn compare<'a>(&'a self, aliases: &'a [Alias]) -> BoxFuture<'a, Result<Vec<Option<Foreign>>, LookError>> {
        Box::pin(async move { self.others(aliases).await.map_err(LookError) })
    }

    fn manifest<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Arc<Signed>, FetchError>> {
        Box::pin(self.describe(artifact))
    }

    fn open<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Delivery, FetchError>> {
        Box::pin(self.deliver(artifact))
    }

    fn elsewhere<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(artifact).cloned();
            let Some((_, identity)) = seen else { return false };
            let (found, _) = self.found(&[identity.id()]).await.unwrap_or_default();
            let is_it = |one: &&FoundArtifact| one.artifact_id[..] == artifact.as_bytes()[..];
            let is_held = found.iter().find(is_it).is_some_and(|one| one.origin || one.holders > u32::from(one.here));
            is_held || self.origin_has(&identity.id(), artifact).await
        })
    }

    fn is_revoked(&self, signed: &Signed) -> bool {
        self.trust.known().is_ok_and(|policy| policy.is_revoked(&signed.artifact, &signed.keys))
    }

    fn readmit(&self, envelope: &[u8]) -> Result<Signed, FetchError> {
        let policy = self.policy()?;
        let admitted = SignedManifest::admit(bytes::Bytes::copy_from_slice(envelope), &policy, UnixTime::now());
        let signed = signed(&admitted.map_err(|error| FetchError::NotAdmitted(error.to_string()))?)?;
        // What was made of it may be of no use any more: its files can be had again without a look.
        if let Ok(identity) = release::identity(&self.base, &signed.release.alias) {
            self.saw(signed.artifact, signed.release.alias.clone(), identity);
        }
        Ok(signed)
    }
}
