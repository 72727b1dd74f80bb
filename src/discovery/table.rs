//! What this node says of itself: what it holds, and where and how busy it is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::digest::{ArtifactId, IdentityId};
use crate::protocol::metadata::{Endpoint, Held, Holdings, Load, Locality, MAX_HOLDINGS, NodeState, Question};

/// Identities that a node announces. Artifacts of others are found only by those who ask this node anyway.
pub(super) const MAX_ANNOUNCED: usize = 1_000;

/// Bytes of an answer, roughly.
const MAX_ANSWER: usize = super::exchange::MAX_ANSWER / 2;

#[derive(Debug)]
pub(super) struct Table {
    endpoints: Arc<[Endpoint]>,
    locality: Arc<Locality>,
    load: Load,
    state: NodeState,
    held: HashMap<IdentityId, BTreeMap<ArtifactId, Held>>,
    identity_of: HashMap<ArtifactId, IdentityId>,
    /// Grows with every change of what is announced.
    version: u64,
}

impl Table {
    pub(super) fn new(endpoints: Arc<[Endpoint]>, locality: Arc<Locality>) -> Self {
        let (held, identity_of) = (HashMap::new(), HashMap::new());
        let (load, state) = (Load::default(), NodeState::Initializing);
        Self { endpoints, locality, load, state, held, identity_of, version: 0 }
    }

    /// True if the identity is new.
    pub(super) fn hold(&mut self, held: Held) -> bool {
        let (id, identity) = (held.artifact.artifact, held.artifact.identity);
        self.identity_of.insert(id, identity);
        let of_identity = self.held.entry(identity).or_default();
        let is_new = of_identity.is_empty();
        of_identity.insert(id, held);
        self.changed(is_new)
    }

    /// True if it was the last of its identity.
    pub(super) fn drop_artifact(&mut self, id: &ArtifactId) -> bool {
        let Some(identity) = self.identity_of.remove(id) else { return false };
        let Some(of_identity) = self.held.get_mut(&identity) else { return false };
        of_identity.remove(id);
        let last = of_identity.is_empty();
        if last {
            self.held.remove(&identity);
        }
        self.changed(last)
    }

    fn changed(&mut self, is_changed: bool) -> bool {
        self.version += u64::from(is_changed);
        is_changed
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// True if it changes what is announced.
    pub(super) fn set_state(&mut self, state: NodeState) -> bool {
        let may = self.state != state && self.state.may_become(state);
        if may {
            self.state = state;
        }
        self.changed(may)
    }

    /// And the version that this is. Nothing unless the node is ready.
    pub(super) fn announced(&self) -> (HashSet<IdentityId>, u64) {
        let identities = match self.state {
            NodeState::Ready => self.held.keys().copied().take(MAX_ANNOUNCED).collect(),
            NodeState::Initializing | NodeState::Draining | NodeState::Stale => HashSet::new(),
        };
        (identities, self.version)
    }

    /// Newest first; nothing unless the node is ready.
    pub(super) fn answer(&self, question: &Question) -> Holdings {
        let mut held: Vec<&Held> = match self.state {
            NodeState::Ready => {
                question.identities.iter().filter_map(|id| self.held.get(id)).flat_map(|h| h.values()).collect()
            }
            NodeState::Initializing | NodeState::Draining | NodeState::Stale => Vec::new(),
        };
        held.sort_by_key(|held| std::cmp::Reverse((held.artifact.created, held.artifact.generation)));
        let mut bytes = 0;
        let fits = |held: &&Held| {
            bytes += 400 + held.artifact.subject.len();
            bytes <= MAX_ANSWER
        };
        let held = held.into_iter().take(MAX_HOLDINGS).take_while(fits).cloned().collect();
        Holdings { endpoints: self.endpoints.clone(), load: self.load, locality: self.locality.clone(), held }
    }

    /// Reached under addresses of this machine only.
    pub(super) fn is_loopback(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::samples::held;

    fn table() -> Table {
        Table::new(Arc::from(["127.0.0.1:1".parse().unwrap()]), Arc::default())
    }

    #[test]
    fn only_a_ready_node_announces_and_answers() {
        let mut table = table();
        assert!(table.hold(held(1, 7, 10)));
        assert!(!table.hold(held(2, 7, 20)));
        let question = Question { identities: vec![IdentityId::from_array([7; 32]), IdentityId::from_array([8; 32])] };
        assert_eq!((table.announced().0.len(), table.answer(&question).held.len()), (0, 0));
        assert!(table.set_state(NodeState::Ready) && !table.set_state(NodeState::Ready));
        let artifacts: Vec<u8> =
            table.answer(&question).held.iter().map(|h| h.artifact.artifact.as_bytes()[0]).collect();
        assert_eq!((table.announced().0.len(), artifacts), (1, vec![2, 1]));
        table.set_state(NodeState::Draining);
        assert_eq!((table.announced().0.len(), table.answer(&question).held.len()), (0, 0));
    }

    #[test]
    fn an_identity_is_withdrawn_with_its_last_artifact() {
        let mut table = table();
        table.set_state(NodeState::Ready);
        table.hold(held(1, 7, 10));
        table.hold(held(2, 7, 10));
        assert!(!table.drop_artifact(&ArtifactId::from_array([1; 32])));
        assert!(table.drop_artifact(&ArtifactId::from_array([2; 32])));
        assert!(!table.drop_artifact(&ArtifactId::from_array([2; 32])));
        assert!(table.announced().0.is_empty());
    }

    #[test]
    fn an_answer_stays_within_what_the_other_side_reads() {
        let mut table = table();
        table.set_state(NodeState::Ready);
        for n in 0..1_000u64 {
            let mut one = held(1, 7, n);
            let artifact = Arc::make_mut(&mut one.artifact);
            artifact.artifact = ArtifactId::of(&n.to_be_bytes());
            artifact.subject = "s".repeat(4_000).into();
            table.hold(one);
        }
        let answer = table.answer(&Question { identities: vec![IdentityId::from_array([7; 32])] });
        let bytes = answer.encode();
        assert!(!answer.held.is_empty() && bytes.len() <= super::super::exchange::MAX_ANSWER);
        assert_eq!(Holdings::decode(&bytes).unwrap(), answer);
    }
}
