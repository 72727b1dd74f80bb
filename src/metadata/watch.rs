//! Who waits for holders of which identities.
//!
//! Each watcher has a bounded buffer of its own: a slow one loses its oldest events, is told so, and holds up nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::broadcast::{self, error::RecvError};

use super::registry::Event;
use crate::digest::IdentityId;
use crate::identity::NodeId;
use crate::protocol::metadata::{ServerEpoch, WatchEvent, WatchKind};

/// Caps on watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caps {
    pub(super) per_caller: usize,
    pub(super) total: usize,
    /// Events that a watcher may be behind.
    pub(super) backlog: usize,
}

/// Too many watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WatchError {
    #[error("at most {0} watches a caller")]
    PerCaller(usize),
    #[error("at most {0} watches in all")]
    Total(usize),
    #[error("the server is shutting down")]
    Closed,
}

#[derive(Debug)]
struct Watcher {
    caller: NodeId,
    identities: Vec<IdentityId>,
    events: broadcast::Sender<WatchEvent>,
}

#[derive(Debug, Default)]
struct Inner {
    watchers: HashMap<u64, Watcher>,
    by_identity: HashMap<IdentityId, Vec<u64>>,
    by_caller: HashMap<NodeId, usize>,
    next: u64,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Watchers {
    caps: Caps,
    server_epoch: AtomicU64,
    open: Gauge,
    inner: Mutex<Inner>,
}

impl Watchers {
    pub(super) fn new(caps: Caps, server_epoch: ServerEpoch, open: Gauge) -> Self {
        Self { caps, server_epoch: AtomicU64::new(server_epoch.0), open, inner: Mutex::default() }
    }

    fn server_epoch(&self) -> ServerEpoch {
        ServerEpoch(self.server_epoch.load(Ordering::Relaxed))
    }

    /// The directory is another one: whoever watches must look up again.
    pub(super) fn begin_anew(&self, server_epoch: ServerEpoch) {
        self.server_epoch.store(server_epoch.0, Ordering::Relaxed);
        for watcher in self.lock().watchers.values() {
            // Fails only if the subscription is just being dropped.
            let _ = watcher.events.send(WatchEvent { server_epoch, kind: WatchKind::Lagged });
        }
    }

    pub(super) fn open(
        self: &Arc<Self>,
        caller: NodeId,
        identities: Vec<IdentityId>,
    ) -> Result<Subscription, WatchError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(WatchError::Closed);
        }
        if inner.watchers.len() >= self.caps.total {
            return Err(WatchError::Total(self.caps.total));
        }
        let of_caller = inner.by_caller.entry(caller).or_default();
        if *of_caller >= self.caps.per_caller {
            return Err(WatchError::PerCaller(self.caps.per_caller));
        }
        *of_caller += 1;
        let id = inner.next;
        inner.next += 1;
        for identity in &identities {
            inner.by_identity.entry(*identity).or_default().push(id);
        }
        let (events, receiver) = broadcast::channel(self.caps.backlog);
        inner.watchers.insert(id, Watcher { caller, identities, events });
        self.open.inc();
        Ok(Subscription { id, receiver, watchers: self.clone() })
    }

    /// Hands events to whoever watches their identity; never waits.
    pub(super) fn tell(&self, events: &[Event]) {
        let inner = self.lock();
        if inner.watchers.is_empty() {
            return;
        }
        for event in events {
            let Event { identity, artifact, node, added } = *event;
            let kind = if added {
                WatchKind::HolderAdded { identity, artifact, node }
            } else {
                WatchKind::HolderGone { identity, artifact, node }
            };
            for id in inner.by_identity.get(&identity).into_iter().flatten() {
                if let Some(watcher) = inner.watchers.get(id) {
                    // Fails only if the subscription is just being dropped.
                    let _ = watcher.events.send(WatchEvent { server_epoch: self.server_epoch(), kind });
                }
            }
        }
    }

    /// Ends all subscriptions, and lets no new one begin.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let ids: Vec<_> = inner.watchers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.remove(&mut inner, id));
    }

    fn remove(&self, inner: &mut Inner, id: u64) {
        let Some(watcher) = inner.watchers.remove(&id) else { return };
        self.open.dec();
        for identity in &watcher.identities {
            if let Some(ids) = inner.by_identity.get_mut(identity) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    inner.by_identity.remove(identity);
                }
            }
        }
        if let Some(count) = inner.by_caller.get_mut(&watcher.caller) {
            *count -= 1;
            if *count == 0 {
                inner.by_caller.remove(&watcher.caller);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watch; ends when dropped.
#[derive(Debug)]
pub(super) struct Subscription {
    id: u64,
    receiver: broadcast::Receiver<WatchEvent>,
    watchers: Arc<Watchers>,
}

impl Subscription {
    /// `None` when the server shuts down.
    pub(super) async fn next(&mut self) -> Option<WatchEvent> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(_)) => {
                Some(WatchEvent { server_epoch: self.watchers.server_epoch(), kind: WatchKind::Lagged })
            }
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.watchers.lock();
        self.watchers.remove(&mut inner, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ArtifactId;
    use crate::identity::PrivateKey;

    fn watchers(backlog: usize) -> Arc<Watchers> {
        let caps = Caps { per_caller: 2, total: 3, backlog };
        Arc::new(Watchers::new(caps, ServerEpoch(1), Gauge::default()))
    }

    fn node(seed: u8) -> NodeId {
        PrivateKey::from_seed(seed).node_id()
    }

    fn identity(n: u8) -> IdentityId {
        IdentityId::from_array([n; 32])
    }

    fn event(n: u8) -> Event {
        Event { identity: identity(n), artifact: ArtifactId::from_array([n; 32]), node: node(9), added: true }
    }

    #[tokio::test]
    async fn a_watcher_hears_of_its_identities_only() {
        let watchers = watchers(8);
        let mut one = watchers.open(node(1), vec![identity(1), identity(2)]).unwrap();
        watchers.tell(&[event(3), event(2)]);
        let WatchKind::HolderAdded { identity: heard, .. } = one.next().await.unwrap().kind else { panic!() };
        assert_eq!(heard, identity(2));
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_that_it_lags_and_goes_on() {
        let watchers = watchers(2);
        let mut slow = watchers.open(node(1), vec![identity(1)]).unwrap();
        watchers.tell(&[event(1); 5]);
        assert_eq!(slow.next().await.unwrap().kind, WatchKind::Lagged);
        assert!(matches!(slow.next().await.unwrap().kind, WatchKind::HolderAdded { .. }));
        assert!(matches!(slow.next().await.unwrap().kind, WatchKind::HolderAdded { .. }));
        watchers.close();
        assert_eq!(slow.next().await, None);
    }

    #[test]
    fn caps_hold_for_each_caller_and_in_all_and_dropped_watches_make_room() {
        let watchers = watchers(2);
        let open = |seed| watchers.open(node(seed), vec![identity(seed)]);
        let first = open(1).unwrap();
        let _second = open(1).unwrap();
        assert_eq!(open(1).unwrap_err(), WatchError::PerCaller(2));
        let _third = open(2).unwrap();
        assert_eq!(open(3).unwrap_err(), WatchError::Total(3));
        drop(first);
        let _again = open(1).unwrap();
        assert_eq!(watchers.open.get(), 3);
        watchers.close();
        assert_eq!(open(3).unwrap_err(), WatchError::Closed);
        assert_eq!(watchers.open.get(), 0);
        assert!(watchers.lock().by_identity.is_empty() && watchers.lock().by_caller.is_empty());
    }
}
