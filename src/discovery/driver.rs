//! The task that owns the swarm. Everybody else talks to it through a bounded channel; it never waits for anybody.

mod addresses;
mod announce;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::core::ConnectedPoint;
use libp2p::futures::StreamExt;
use libp2p::kad::store::RecordStore;
use libp2p::request_response::{self as rr, OutboundRequestId};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{PeerId, Swarm, identify, kad, mdns};
use tokio::sync::{mpsc, oneshot};

use super::key::Shards;
use super::metrics::{Labels, Metrics, Outcome};
use super::network::{Behaviour, BehaviourEvent, KAD};
use super::peer::{dialable, multiaddr, node_of, peer_of};
use super::publish::Publishing;
use super::search::{Search, Step};
use super::{DiscoveryConfig, Shared};
use crate::identity::{NodeId, UnixTime};
use crate::protocol::metadata::{Holdings, Lookup, Offer, Question};
use addresses::{MAX_ADDRS, addrs};

/// Searches in progress. One more is refused.
const MAX_SEARCHES: usize = 64;

/// While the routing table grows, own records are published again to the nodes that are nearer now, but not for each.
const SETTLE: Duration = Duration::from_millis(250);

/// Old records go, and new neighbours are remembered.
const SWEEP: Duration = Duration::from_secs(10);

pub(super) enum Command {
    Look(Lookup, oneshot::Sender<Vec<Offer>>),
    /// Dial these.
    Meet(Vec<SocketAddr>),
}

struct Asker {
    search: Search,
    reply: oneshot::Sender<Vec<Offer>>,
}

/// A question that waits for its answer.
struct Ask {
    search: SearchId,
    node: NodeId,
    is_again: bool,
}

/// Numbers searches.
type SearchId = u64;

pub(super) struct Driver {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    node: NodeId,
    deadline: Duration,
    direct: usize,
    metrics: Metrics,
    searches: HashMap<SearchId, Asker>,
    next_search: SearchId,
    walks: HashMap<kad::QueryId, SearchId>,
    asks: HashMap<OutboundRequestId, Ask>,
    /// Addresses that connections of ours go to.
    dialled: HashMap<ConnectionId, SocketAddr>,
    publishing: Publishing,
    /// What the table was when the keys to publish were read from it.
    version: u64,
    /// Size of the routing table when everything was published anew.
    published_to: usize,
    /// When the keys are read again, which depend on the routing table, too.
    settle_due: Option<Instant>,
    sweep_due: Instant,
}

impl Driver {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        shared: Arc<Shared>,
        node: NodeId,
        config: &DiscoveryConfig,
        metrics: Metrics,
    ) -> Self {
        Self {
            swarm,
            shared,
            node,
            deadline: config.deadline,
            direct: config.direct,
            metrics,
            searches: HashMap::new(),
            next_search: 0,
            walks: HashMap::new(),
            asks: HashMap::new(),
            dialled: HashMap::new(),
            publishing: Publishing::default(),
            version: 0,
            published_to: 0,
            settle_due: None,
            sweep_due: Instant::now() + SWEEP,
        }
    }

    /// Ends when nobody can send a command any more.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let shared = self.shared.clone();
        loop {
            let due = self.due().into();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = commands.recv() => match command {
                    Some(Command::Look(lookup, reply)) => self.look(&lookup, reply),
                    Some(Command::Meet(addrs)) => self.meet(addrs),
                    None => return,
                },
                () = shared.changed.notified() => self.announce(),
                () = tokio::time::sleep_until(due) => self.tick(Instant::now()),
            }
            self.publish(Instant::now());
        }
    }

    fn due(&self) -> Instant {
        let searches = self.searches.values().map(|asker| asker.search.due());
        searches.chain(self.settle_due).chain(self.publishing.due()).fold(self.sweep_due, Instant::min)
    }

    fn tick(&mut self, now: Instant) {
        let due: Vec<_> =
            self.searches.iter().filter(|(_, asker)| asker.search.due() <= now).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.advance(id, &[]));
        if self.settle_due.is_some_and(|due| due <= now) {
            self.settle_due = None;
            self.published_to = self.routing_table();
            self.announce();
            self.publishing.again(now);
            self.remember();
        }
        if self.sweep_due <= now {
            self.sweep_due = now + SWEEP;
            self.swarm.behaviour_mut().kad.store_mut().remove_expired(now);
            self.count_records();
            self.remember();
        }
    }

    fn look(&mut self, lookup: &Lookup, reply: oneshot::Sender<Vec<Offer>>) {
        if self.searches.len() >= MAX_SEARCHES {
            self.metrics.lookups.get_or_create(&Labels { outcome: Outcome::Refused }).inc();
            return;
        }
        let id = self.next_search;
        self.next_search += 1;
        let loopback = self.shared.table().is_loopback();
        let search = Search::new(self.node, lookup, loopback, self.direct, Instant::now() + self.deadline);
        self.searches.insert(id, Asker { search, reply });
        let known = self.known();
        self.advance(id, &known);
    }

    /// Does what a search wants next, until it waits or ends. One that begins has to know of `members`.
    fn advance(&mut self, id: SearchId, members: &[NodeId]) {
        let shards = Shards::for_table(self.routing_table());
        loop {
            let Some(asker) = self.searches.get_mut(&id) else { return };
            match asker.search.next(members, shards, Instant::now()) {
                Step::Ask(nodes) => self.ask(id, nodes),
                Step::Walk(keys) => {
                    for key in keys {
                        let walk = self.swarm.behaviour_mut().kad.get_providers(key.to_vec().into());
                        self.walks.insert(walk, id);
                    }
                }
                Step::Wait => return,
                Step::Done => return self.finish(id),
            }
        }
    }

    fn ask(&mut self, search: SearchId, nodes: Vec<NodeId>) {
        nodes.into_iter().for_each(|node| self.ask_one(Ask { search, node, is_again: false }));
    }

    fn ask_one(&mut self, ask: Ask) {
        let Some(asker) = self.searches.get_mut(&ask.search) else { return };
        match peer_of(&ask.node) {
            Some(peer) => {
                let question = asker.search.question().clone();
                self.asks.insert(self.swarm.behaviour_mut().exchange.send_request(&peer, question), ask);
            }
            None => asker.search.failed(&ask.node),
        }
    }

    fn finish(&mut self, id: SearchId) {
        let Some(Asker { search, reply }) = self.searches.remove(&id) else { return };
        let kad = &mut self.swarm.behaviour_mut().kad;
        self.walks.retain(|walk, of| {
            if *of == id
                && let Some(mut query) = kad.query_mut(walk)
            {
                query.finish();
            }
            *of != id
        });
        self.asks.retain(|_, ask| ask.search != id);
        let offers = search.finish();
        let outcome = if offers.is_empty() { Outcome::Nothing } else { Outcome::Found };
        self.metrics.lookups.get_or_create(&Labels { outcome }).inc();
        // Who asked may have gone.
        let _ = reply.send(offers);
    }

    fn meet(&mut self, addrs: Vec<SocketAddr>) {
        for addr in addrs.into_iter().take(MAX_ADDRS).filter_map(|addr| dialable(&multiaddr(addr))) {
            if !self.dialled.values().any(|dialled| *dialled == addr) {
                self.dial(DialOpts::unknown_peer_id().address(multiaddr(addr)).build());
            }
        }
    }

    fn dial(&mut self, opts: DialOpts) {
        if let Err(error) = self.swarm.dial(opts) {
            tracing::debug!(%error, "dial another agent");
        }
    }

    /// Nodes that were admitted: connected ones and those of the routing table.
    fn known(&mut self) -> Vec<NodeId> {
        let mut known: HashSet<PeerId> = self.swarm.connected_peers().copied().collect();
        for bucket in self.swarm.behaviour_mut().kad.kbuckets() {
            known.extend(bucket.iter().map(|entry| *entry.node.key.preimage()));
        }
        known.iter().filter_map(node_of).collect()
    }

    fn routing_table(&mut self) -> usize {
        self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Exchange(event)) => self.on_exchange(event),
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.on_identified(peer_id, &info);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, addr) in found.into_iter().take(MAX_ADDRS) {
                    if let Some(addr) = dialable(&addr) {
                        self.dial(DialOpts::peer_id(peer).addresses(vec![multiaddr(addr)]).build());
                    }
                }
            }
            SwarmEvent::ConnectionEstablished { connection_id, endpoint, .. } => {
                if let ConnectedPoint::Dialer { address, .. } = &endpoint
                    && let Some(addr) = dialable(address)
                {
                    self.dialled.insert(connection_id, addr);
                }
                self.count();
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.dialled.remove(&connection_id);
                self.count();
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                self.metrics.turned_away.inc();
                tracing::debug!(%error, from = %send_back_addr, "turned away");
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => tracing::debug!(%error, "another agent not reached"),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "discovery listener"),
            SwarmEvent::ListenerClosed { reason, .. } => tracing::error!(?reason, "discovery listener ended"),
            _ => {}
        }
    }

    fn count(&mut self) {
        let connected = self.swarm.connected_peers().count();
        self.metrics.connected.set(connected as i64);
        self.shared.connected.send_replace(connected);
    }

    fn count_records(&mut self) {
        self.metrics.records.set(self.swarm.behaviour_mut().kad.store_mut().len() as i64);
    }

    /// Where a node says that it is found: without this, nobody would know who only dials.
    fn on_identified(&mut self, peer: PeerId, info: &identify::Info) {
        if info.protocols.contains(&KAD) {
            addresses::believe(&mut self.swarm.behaviour_mut().kad, &peer, &info.listen_addrs);
        }
    }

    fn on_exchange(&mut self, event: rr::Event<Question, Holdings>) {
        match event {
            rr::Event::Message { message: rr::Message::Request { request, channel, .. }, .. } => {
                let answer = self.shared.table().answer(&request);
                // Who asked may have gone.
                let _ = self.swarm.behaviour_mut().exchange.send_response(channel, answer);
            }
            rr::Event::Message { message: rr::Message::Response { request_id, response }, .. } => {
                if let Some(ask) = self.asks.remove(&request_id) {
                    self.answered(&ask, Some(&response));
                }
            }
            rr::Event::OutboundFailure { request_id, error, .. } => {
                tracing::debug!(%error, "another agent gave no answer");
                match (self.asks.remove(&request_id), error) {
                    // Both sides end connections that are idle, and this may be one that the other has just ended.
                    (Some(ask), rr::OutboundFailure::ConnectionClosed | rr::OutboundFailure::Io(_))
                        if !ask.is_again =>
                    {
                        self.ask_one(Ask { is_again: true, ..ask });
                    }
                    (Some(ask), _) => self.answered(&ask, None),
                    (None, _) => {}
                }
            }
            rr::Event::InboundFailure { .. } | rr::Event::ResponseSent { .. } => {}
        }
    }

    fn answered(&mut self, ask: &Ask, holdings: Option<&Holdings>) {
        let Some(asker) = self.searches.get_mut(&ask.search) else { return };
        match holdings {
            Some(holdings) => asker.search.answered(ask.node, holdings, Instant::now(), UnixTime::now()),
            None => asker.search.failed(&ask.node),
        }
        self.advance(ask.search, &[]);
    }

    fn on_walk(&mut self, walk: kad::QueryId, result: kad::QueryResult, last: bool) {
        let Some(id) = self.walks.get(&walk).copied() else { return };
        if let kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })) = result
            && let Some(asker) = self.searches.get_mut(&id)
        {
            let ask = asker.search.named(providers.iter().filter_map(node_of));
            let is_news = !ask.is_empty();
            self.ask(id, ask);
            if !is_news {
                self.advance(id, &[]);
            }
        }
        if last {
            self.walks.remove(&walk);
            if let Some(asker) = self.searches.get_mut(&id) {
                asker.search.walk_ended();
            }
            self.advance(id, &[]);
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { result: kad::QueryResult::StartProviding(result), .. } => {
                let key = result.as_ref().map_or_else(|error| error.key(), |told| &told.key);
                if let Ok(key) = key.as_ref().try_into() {
                    self.publishing.ended(&key, result.is_ok(), Instant::now(), &mut rand::rng());
                }
            }
            kad::Event::OutboundQueryProgressed { id: walk, result, step, .. } => self.on_walk(walk, result, step.last),
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(mut record) } } => {
                record.addresses = addrs(&record.addresses).collect();
                if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
                    tracing::debug!(%error, "record of another agent not kept");
                }
                self.count_records();
            }
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => {
                let known = self.routing_table();
                self.metrics.known.set(known as i64);
                if known >= 2 * self.published_to {
                    self.settle_due.get_or_insert_with(|| Instant::now() + SETTLE);
                }
            }
            _ => {}
        }
    }
}
