//! Who holds what, as far as this node can learn it: from the metadata server, from the other agents, or from both, as
//! `discovery.mode` says. And what this node tells them.

mod mirror;
mod open;
mod reach;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::seq::IndexedRandom;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use self::mirror::Mirror;
pub(super) use self::open::open;
use crate::digest::ArtifactId;
use crate::discovery::{Discovery, DiscoveryError, Mode, beside};
use crate::metadata::{Announcer, Client, ClientError, TooManyArtifacts};
use crate::protocol::metadata::{Held, Load, Lookup, NodeState, Offer, Page, PageRequest};
use crate::telemetry::trace;

/// How often an agent that nobody is connected to asks the server for others, how many artifacts it has listed, and how
/// many of their holders it meets.
const INTRODUCTION: Duration = Duration::from_secs(30);
const LISTED: u32 = 64;
const MET: usize = 8;

/// Nobody could be asked, or nobody who should have been.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    #[error("metadata server: {0}")]
    Server(#[from] ClientError),
    #[error("metadata server: silent for two heartbeats, and no other agent has it")]
    Silent,
    #[error("other agents: {0}")]
    Agents(#[from] DiscoveryError),
    #[error("no other agent is connected; `discovery.bootstrap` says where there is one")]
    Alone,
    #[error("they need a metadata server, and `discovery.mode` is \"serverless\"")]
    Serverless,
}

/// The metadata server and this node's voice there.
struct Server {
    client: Client,
    announcer: Announcer,
}

/// At least one of the two is there.
pub(super) struct Directory {
    server: Option<Server>,
    agents: Option<Discovery>,
    mirror: Mirror,
    /// Why nobody takes what this node says.
    failure: Mutex<Option<String>>,
}

impl Directory {
    fn new(server: Option<Server>, agents: Option<Discovery>) -> Arc<Self> {
        Arc::new(Self { server, agents, mirror: Mirror::default(), failure: Mutex::default() })
    }

    pub(super) async fn lookup(&self, lookup: &Lookup) -> Result<Vec<Offer>, DirectoryError> {
        let failure = match (&self.server, &self.agents) {
            (Some(server), agents) => match self.ask_server(server, lookup, agents.is_some()).await {
                Err(failure) if agents.is_some() => failure,
                answer => return answer,
            },
            (None, Some(agents)) => {
                let offers = agents.lookup(lookup).await?;
                let alone = offers.is_empty() && agents.connected() == 0;
                return if alone { Err(DirectoryError::Alone) } else { Ok(offers) };
            }
            (None, None) => return Ok(Vec::new()),
        };
        let offers = self.ask_agents(lookup).await;
        if offers.is_empty() {
            return Err(failure);
        }
        tracing::info!(offers = offers.len(), %failure, "other agents were asked");
        Ok(offers)
    }

    /// A server that was silent for two heartbeats is not waited for when there are others to ask.
    async fn ask_server(
        &self,
        server: &Server,
        lookup: &Lookup,
        has_agents: bool,
    ) -> Result<Vec<Offer>, DirectoryError> {
        if has_agents && server.announcer.is_silent() {
            return Err(DirectoryError::Silent);
        }
        let span = tracing::debug_span!(target: trace::OPERATIONS, "lookup", identities = lookup.identities.len());
        let offers = server.client.lookup(lookup).instrument(span).await?.offers;
        if has_agents {
            self.mirror.keep(&lookup.identities, &offers, Instant::now());
            self.meet(&offers);
        }
        Ok(offers)
    }

    /// And what the server said before it fell silent.
    async fn ask_agents(&self, lookup: &Lookup) -> Vec<Offer> {
        let Some(agents) = &self.agents else { return Vec::new() };
        let mut offers = agents.lookup(lookup).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "other agents not asked");
            Vec::new()
        });
        merge(&mut offers, self.mirror.recall(&lookup.identities, Instant::now()));
        offers
    }

    /// What there is in all, page by page.
    pub(super) async fn list(&self, page: &PageRequest) -> Result<Page, DirectoryError> {
        let server = self.server.as_ref().ok_or(DirectoryError::Serverless)?;
        Ok(server.client.list(page).await?)
    }

    /// Agents listen for others where their peer endpoint is, so whoever is told of a holder knows an agent.
    fn meet(&self, offers: &[Offer]) {
        let Some(agents) = self.agents.as_ref().filter(|agents| agents.connected() < MET) else { return };
        let holders: Vec<_> = offers.iter().flat_map(|offer| &offer.holders).collect();
        let met = holders.sample(&mut rand::rng(), MET).filter_map(|holder| holder.endpoints.first());
        agents.meet(met.map(|endpoint| beside(endpoint.addr())).collect());
    }

    /// While nobody is connected, has the server say who else is there: then its silence finds this node among the others.
    pub(super) async fn get_introduced(self: Arc<Self>) {
        let (Some(server), Some(agents)) = (&self.server, &self.agents) else { return };
        let mut turns = tokio::time::interval(INTRODUCTION);
        let page = PageRequest { size: Some(LISTED), ..PageRequest::default() };
        loop {
            turns.tick().await;
            if agents.connected() == 0
                && let Ok(page) = server.client.list(&page).await
            {
                self.meet(&page.offers);
            }
        }
    }

    /// Where the fleet can be asked about, and told of this node.
    pub(super) fn server(&self) -> Option<Client> {
        self.server.as_ref().map(|server| server.client.clone())
    }

    /// Where documents of trust are to be had, and the news that there are others; only a server has them.
    pub(super) fn documents_of_trust(&self) -> Option<(Client, watch::Receiver<u64>)> {
        self.server.as_ref().map(|server| (server.client.clone(), server.announcer.trust()))
    }

    pub(super) fn hold(&self, held: Held) -> Result<(), TooManyArtifacts> {
        if let Some(agents) = &self.agents {
            agents.hold(held.clone());
        }
        self.server.as_ref().map_or(Ok(()), |server| server.announcer.hold(held))
    }

    pub(super) fn drop_artifact(&self, id: ArtifactId) {
        if let Some(server) = &self.server {
            server.announcer.drop_artifact(id);
        }
        if let Some(agents) = &self.agents {
            agents.drop_artifact(&id);
        }
    }

    pub(super) fn set_load(&self, load: Load) {
        if let Some(server) = &self.server {
            server.announcer.set_load(load);
        }
        if let Some(agents) = &self.agents {
            agents.set_load(load);
        }
    }

    pub(super) fn set_state(&self, state: NodeState) {
        if let Some(server) = &self.server {
            server.announcer.set_state(state);
        }
        if let Some(agents) = &self.agents {
            agents.set_state(state);
        }
    }

    /// Waits until a server has taken all that was said, or the DHT where there is no server; a silent server is not waited
    /// for where other agents can be asked.
    pub(super) async fn settled(&self, deadline: Duration) -> bool {
        match &self.server {
            Some(server) if self.agents.is_some() && server.announcer.is_silent() => false,
            Some(server) => server.announcer.settled(deadline).await,
            None => match &self.agents {
                Some(agents) => agents.published(deadline).await,
                None => true,
            },
        }
    }

    /// A metadata server takes what this node says.
    pub(super) fn is_connected(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.announcer.is_connected())
    }

    pub(super) fn mode(&self) -> Mode {
        match (&self.server, &self.agents) {
            (Some(_), None) => Mode::Server,
            (Some(_), Some(_)) => Mode::Hybrid,
            (None, _) => Mode::Serverless,
        }
    }

    pub(super) fn connected_agents(&self) -> usize {
        self.agents.as_ref().map_or(0, Discovery::connected)
    }

    /// Where other agents reach this one's discovery.
    pub(super) fn discovery_addr(&self) -> Option<std::net::SocketAddr> {
        self.agents.as_ref().map(Discovery::addr)
    }

    /// The last word.
    pub(super) async fn close(&self, deadline: Duration) {
        if let Some(agents) = &self.agents {
            agents.close(deadline / 2).await;
        }
        if let Some(server) = &self.server {
            server.announcer.close(deadline).await;
        }
    }
}

/// Holders of the same artifact together, the ones that are known first.
fn merge(offers: &mut Vec<Offer>, others: Vec<Offer>) {
    let mut at: HashMap<ArtifactId, usize> =
        offers.iter().enumerate().map(|(at, offer)| (offer.artifact.artifact, at)).collect();
    for other in others {
        let id = other.artifact.artifact;
        let Some(known) = at.get(&id).and_then(|at| offers.get_mut(*at)) else {
            at.insert(id, offers.len());
            offers.push(other);
            continue;
        };
        for holder in other.holders {
            if known.holders.iter().all(|known| known.node != holder.node) {
                known.holders.push(holder);
                known.holder_count = known.holder_count.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
