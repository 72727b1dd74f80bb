//! Provider records that this node keeps for others, within bounds; and its own. The library's store keeps twenty providers
//! of a key and drops the next ones without a word; here the record that ends first makes room.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use rand::seq::SliceRandom;

/// Bytes of a key.
const KEY: usize = 32;

/// What is kept at most: connections, records in all, of one key, and of one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: u32,
    pub(super) records: usize,
    pub(super) per_key: usize,
    pub(super) per_node: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1_024, records: 100_000, per_key: 256, per_node: 1_024 }
    }
}

#[derive(Debug)]
pub(super) struct Providers {
    node: PeerId,
    limits: Limits,
    others: HashMap<RecordKey, Vec<ProviderRecord>>,
    own: BTreeMap<Vec<u8>, ProviderRecord>,
    /// Records of each other node.
    per_node: HashMap<PeerId, usize>,
    len: usize,
}

impl Providers {
    pub(super) fn new(node: PeerId, limits: Limits) -> Self {
        Self { node, limits, others: HashMap::new(), own: BTreeMap::new(), per_node: HashMap::new(), len: 0 }
    }

    /// Records of other nodes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn remove_expired(&mut self, now: Instant) {
        let Self { others, per_node, len, .. } = self;
        others.retain(|_, records| {
            let expired = records.extract_if(.., |record| record.is_expired(now));
            *len -= expired.map(|record| forget(per_node, &record.provider)).count();
            !records.is_empty()
        });
    }

    fn add_other(&mut self, record: ProviderRecord) -> Result<()> {
        if record.key.as_ref().len() != KEY {
            return Err(Error::ValueTooLarge);
        }
        let kept = self.others.get_mut(&record.key).map_or(&mut [][..], Vec::as_mut_slice);
        if let Some(known) = kept.iter_mut().find(|known| known.provider == record.provider) {
            *known = record;
            return Ok(());
        }
        let first = kept.iter().enumerate().min_by_key(|(_, record)| record.expires).map(|(at, _)| at);
        let gives_way = first.filter(|_| kept.len() >= self.limits.per_key);
        if self.count(&record.provider) >= self.limits.per_node
            || (gives_way.is_none() && self.len >= self.limits.records)
        {
            return Err(Error::MaxProvidedKeys);
        }
        *self.per_node.entry(record.provider).or_default() += 1;
        let records = self.others.entry(record.key.clone()).or_default();
        match gives_way {
            Some(at) => forget(&mut self.per_node, &std::mem::replace(&mut records[at], record).provider),
            None => {
                records.push(record);
                self.len += 1;
            }
        }
        Ok(())
    }

    fn count(&self, node: &PeerId) -> usize {
        self.per_node.get(node).copied().unwrap_or(0)
    }
}

fn forget(per_node: &mut HashMap<PeerId, usize>, node: &PeerId) {
    if let Some(keys) = per_node.get_mut(node) {
        *keys -= 1;
        if *keys == 0 {
            per_node.remove(node);
        }
    }
}

impl RecordStore for Providers {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Map<
        std::collections::btree_map::Values<'a, Vec<u8>, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    /// Nothing but provider records is kept.
    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider != self.node {
            return self.add_other(record);
        }
        let key = record.key.to_vec();
        if !self.own.contains_key(&key) && self.own.len() >= self.limits.per_node {
            return Err(Error::MaxProvidedKeys);
        }
        self.own.insert(key, record);
        Ok(())
    }

    /// In another order each time: an answer takes the first twenty.
    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let others = self.others.get(key).into_iter().flatten();
        let mut records: Vec<_> = others.chain(self.own.get(key.as_ref())).cloned().collect();
        records.shuffle(&mut rand::rng());
        records
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.own.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.node {
            self.own.remove(key.as_ref());
            return;
        }
        let Some(records) = self.others.get_mut(key) else { return };
        let before = records.len();
        records.retain(|record| record.provider != *provider);
        if records.len() < before {
            forget(&mut self.per_node, provider);
            self.len -= 1;
        }
        if records.is_empty() {
            self.others.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { connections: 1, records: 8, per_key: 3, per_node: 4 };

    fn key(n: u8) -> RecordKey {
        RecordKey::new(&[n; KEY])
    }

    fn record(n: u8, provider: PeerId, expires: Instant) -> ProviderRecord {
        ProviderRecord { key: key(n), provider, expires: Some(expires), addresses: Vec::new() }
    }

    fn providers(store: &Providers, n: u8) -> Vec<PeerId> {
        let mut nodes: Vec<_> = store.providers(&key(n)).into_iter().map(|record| record.provider).collect();
        nodes.sort();
        nodes
    }

    #[test]
    fn the_record_that_ends_first_makes_room_for_a_new_one() {
        let now = Instant::now();
        let mut store = Providers::new(PeerId::random(), LIMITS);
        let nodes: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        for (second, node) in [5, 2, 9, 7].into_iter().zip(&nodes) {
            store.add_provider(record(1, *node, now + Duration::from_secs(second))).unwrap();
        }
        let mut left = vec![nodes[0], nodes[2], nodes[3]];
        left.sort();
        assert_eq!(providers(&store, 1), left);
        assert_eq!(store.count(&nodes[1]), 0);
    }

    #[test]
    fn what_has_expired_goes_and_what_was_renewed_stays() {
        let now = Instant::now();
        let (a, b) = (PeerId::random(), PeerId::random());
        let mut store = Providers::new(PeerId::random(), LIMITS);
        store.add_provider(record(1, a, now + Duration::from_secs(1))).unwrap();
        store.add_provider(record(1, b, now + Duration::from_secs(1))).unwrap();
        store.add_provider(record(1, b, now + Duration::from_secs(60))).unwrap();
        store.remove_expired(now + Duration::from_secs(30));
        assert_eq!(providers(&store, 1), [b]);
        assert_eq!((store.len(), store.count(&a), store.count(&b)), (1, 0, 1));
    }

    #[test]
    fn values_and_keys_of_another_length_are_refused() {
        let node = PeerId::random();
        let mut store = Providers::new(PeerId::random(), LIMITS);
        let mut odd = record(1, node, Instant::now());
        odd.key = RecordKey::new(b"short");
        assert!(store.add_provider(odd).is_err());
        assert!(store.put(Record::new(key(1), b"anything".to_vec())).is_err());
        assert_eq!((store.len(), store.per_node.len()), (0, 0));
    }

    #[test]
    fn own_records_are_found_and_published_and_withdrawn() {
        let node = PeerId::random();
        let mut store = Providers::new(node, LIMITS);
        store.add_provider(record(1, node, Instant::now())).unwrap();
        assert_eq!(providers(&store, 1), [node]);
        assert_eq!(store.provided().count(), 1);
        store.remove_provider(&key(1), &node);
        assert_eq!(store.provided().count(), 0);
    }

    #[test]
    fn a_flood_of_peer_ids_leaves_the_tables_bounded() {
        let now = Instant::now();
        let mut store = Providers::new(PeerId::random(), LIMITS);
        for n in 0..10_000u32 {
            let _ = store.add_provider(record((n % 97) as u8, PeerId::random(), now + Duration::from_millis(n.into())));
        }
        assert_eq!((store.len(), store.per_node.len()), (LIMITS.records, LIMITS.records));
    }

    proptest! {
        #[test]
        fn counts_and_bounds_hold_after_any_history(steps in prop::collection::vec((0u8..12, 0usize..6, 0u64..20, 0u8..4), 1..200)) {
            let now = Instant::now();
            let nodes: Vec<PeerId> = (0..6).map(|_| PeerId::random()).collect();
            let mut store = Providers::new(PeerId::random(), LIMITS);
            for (n, node, second, action) in steps {
                let at = now + Duration::from_secs(second);
                match action {
                    0 => store.remove_provider(&key(n), &nodes[node]),
                    1 => store.remove_expired(at),
                    _ => { let _ = store.add_provider(record(n, nodes[node], at)); }
                }
                prop_assert_eq!(store.len(), store.others.values().map(Vec::len).sum::<usize>());
                prop_assert!(store.len() <= LIMITS.records);
                prop_assert!(store.others.values().all(|records| !records.is_empty() && records.len() <= LIMITS.per_key));
                for node in &nodes {
                    let kept = store.others.values().flatten().filter(|record| record.provider == *node).count();
                    prop_assert_eq!(store.count(node), kept);
                    prop_assert!(kept <= LIMITS.per_node);
                }
            }
        }
    }
}
