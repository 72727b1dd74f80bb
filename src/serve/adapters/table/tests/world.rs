//! The fleet, the engine and the disk around a table, and what may happen to them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::*;
use crate::adapters::{Address, Release};
use crate::digest::{ContentId, Digest};
use crate::identity::UnixTime;
use crate::proxy::Caller;
use crate::serve::adapters::entry::Loaded;
use crate::serve::adapters::models::{Access, Denied};
use crate::serve::adapters::registry::{Registered, RegistryError};
use crate::serve::adapters::source::{LookError, Offer};

pub(super) const ALIASES: usize = 3;

/// Generations of an alias share so many contents: weights come back.
const CONTENTS: u64 = 3;

pub(super) fn alias(number: usize) -> Alias {
    format!("a{number}").parse().unwrap()
}

pub(super) const TENANTS: usize = 2;

/// Adapters that each of them may have here.
pub(super) const FEW: usize = 2;

struct Few;

impl Access for Few {
    fn permits(&self, _: &Caller, _: &Alias, _: Option<Address>) -> Result<(), Denied> {
        Ok(())
    }

    fn max_adapters(&self, _: &Caller) -> usize {
        FEW
    }
}

pub(super) fn caller(tenant: usize) -> Caller {
    Caller::at_socket(format!("t{tenant}").parse().unwrap(), 0)
}

pub(super) fn signed(number: usize, generation: u64) -> Arc<Signed> {
    let release = Release {
        alias: alias(number),
        base: "acme/tiny".parse().unwrap(),
        // Two of the aliases share their weights.
        content: ContentId::of(format!("{} {}", number / 2, generation % CONTENTS).as_bytes()),
        rank: 8,
        dora: false,
        owner: None,
        provenance: None,
    };
    Arc::new(Signed {
        release,
        artifact: ArtifactId::of(format!("{number} {generation}").as_bytes()),
        generation,
        created: UnixTime::from_seconds(generation),
        size: 40,
        signers: Vec::new(),
        keys: Vec::new(),
        envelope: Bytes::from_static(b"signed"),
    })
}

fn offer(signed: &Signed) -> Offer {
    let Signed { artifact, generation, created, size, .. } = *signed;
    Offer { artifact, content: None, generation, created, size, holders: 1 }
}

fn prepared(signed: &Signed) -> PreparationId {
    PreparationId { content: signed.release.content, policy: Digest::of(b"policy") }
}

/// What an engine is asked about which of its adapters.
fn asked(work: &Work) -> Option<(u64, &ServedName)> {
    match work {
        Work::Register { epoch, name, .. } | Work::Unregister { epoch, name } => Some((*epoch, name)),
        _ => None,
    }
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    /// For an adapter, by a tenant.
    Request(usize, usize),
    EndOfRequest(usize),
    Publish(usize),
    /// One of the pieces of work that are under way ends, in one of several ways.
    Done(usize, u8),
    /// Another life of the engine begins, or the one that is ends.
    Engine(bool),
    /// The engine forgets one of its adapters, and says so to a request.
    Lose(usize),
    Pass(u64),
    Load(usize),
    Unload(usize),
    Pin(usize, bool),
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let number = 0..ALIASES;
    prop_oneof![
        6 => (number.clone(), 0..TENANTS).prop_map(|(number, tenant)| Event::Request(number, tenant)),
        4 => (0usize..8).prop_map(Event::EndOfRequest),
        3 => number.clone().prop_map(Event::Publish),
        20 => (0usize..8, 0u8..12).prop_map(|(which, how)| Event::Done(which, how)),
        1 => any::<bool>().prop_map(Event::Engine),
        1 => number.clone().prop_map(Event::Lose),
        6 => prop_oneof![Just(1u64), Just(3), Just(11), Just(61), Just(700)].prop_map(Event::Pass),
        1 => number.clone().prop_map(Event::Load),
        1 => number.clone().prop_map(Event::Unload),
        1 => (number, any::<bool>()).prop_map(|(number, pin)| Event::Pin(number, pin)),
    ]
}

/// The fleet, the engine and the disk around a table.
pub(super) struct World {
    pub(super) table: Table,
    pub(super) now: Instant,
    pub(super) published: [u64; ALIASES],
    pending: Vec<Work>,
    pub(super) leases: Vec<ServedName>,
    lives: u64,
    epoch: Option<u64>,
    pub(super) engine: BTreeMap<ServedName, PathBuf>,
    pub(super) disk: BTreeSet<PreparationId>,
    /// Since when the engine and all requests have let go of it.
    free: BTreeMap<PreparationId, Instant>,
    /// Gone from the engine, and nobody has noticed.
    lost: BTreeSet<ServedName>,
}

const GRACE: Duration = Duration::from_secs(10);

impl World {
    pub(super) fn new(quota_bytes: u64) -> Self {
        let config = AdaptersConfig {
            grace: GRACE,
            quota_bytes,
            max_cpu_loras: 2,
            offload_after: Duration::from_secs(300),
            ..AdaptersConfig::default()
        };
        let metrics = Metrics::register(&mut crate::telemetry::Registry::default(), 2);
        let now = Instant::now();
        Self {
            table: Table::new(config, metrics, now),
            now,
            published: [1; ALIASES],
            pending: Vec::new(),
            leases: Vec::new(),
            lives: 0,
            epoch: None,
            engine: BTreeMap::new(),
            disk: BTreeSet::new(),
            free: BTreeMap::new(),
            lost: BTreeSet::new(),
        }
    }

    fn number(alias: &Alias) -> usize {
        alias.as_str()[1..].parse().unwrap()
    }

    pub(super) fn ready(&self) -> Vec<Alias> {
        let ready = |entry: &Entry| entry.want == Want::Yes && self.table.is_ready(entry);
        self.table.entries().filter(|(_, entry)| ready(entry)).map(|(alias, _)| alias.clone()).collect()
    }

    fn engine_lets_go(&mut self, names: Vec<ServedName>) {
        for name in names {
            self.engine.remove(&name);
            for id in self.disk.iter().filter(|id| name.serves(id)) {
                self.free.insert(*id, self.now);
            }
        }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Request(number, tenant) => {
                let caller = caller(*tenant);
                let found = self.table.resolve(&alias(*number), &caller, &Few, self.now);
                if found == Found::Full {
                    assert_eq!(self.table.brought_by(caller.tenant()), FEW, "there is room");
                }
                if let Found::Ready(Granted { name, prepared }) = found {
                    assert!(
                        self.engine.contains_key(&name) || self.lost.contains(&name),
                        "{name} is not in the engine"
                    );
                    assert!(self.disk.contains(&prepared));
                    self.leases.push(name);
                }
            }
            Event::EndOfRequest(which) if !self.leases.is_empty() => {
                let name = self.leases.remove(which % self.leases.len());
                self.table.release(&name);
            }
            Event::Publish(number) => self.published[*number] += 1,
            Event::Done(which, how) if !self.pending.is_empty() => {
                let work = self.pending.remove(which % self.pending.len());
                self.finish(work, *how);
            }
            Event::Engine(is_ready) => {
                self.lives += 1;
                self.epoch = is_ready.then_some(self.lives);
                self.engine_lets_go(self.engine.keys().cloned().collect());
                self.lost.clear();
                self.table.engine(self.epoch, self.now);
            }
            Event::Lose(number) => {
                let ours = |name: &&ServedName| *name.alias() == alias(*number);
                let Some(name) = self.engine.keys().find(ours).cloned() else { return };
                // What it forgets by itself it does not read again.
                self.engine.remove(&name);
                self.table.lost(&name, self.epoch.unwrap(), self.now);
                self.lost.insert(name);
            }
            Event::Pass(seconds) => self.now += Duration::from_secs(*seconds),
            Event::Load(number) => self.table.load(&alias(*number), self.now).unwrap(),
            Event::Unload(number) => drop(self.table.unload(&alias(*number))),
            Event::Pin(number, pin) => self.table.pin(&alias(*number), *pin, self.now).unwrap(),
            _ => {}
        }
    }

    /// `how`: 0 to 7 is success.
    fn finish(&mut self, work: Work, how: u8) {
        let now = self.now;
        match work {
            Work::Look(batch) if how == 8 => self.table.looked(&batch, Err(LookError("down".into())), now),
            Work::Look(batch) => {
                let offers = batch.iter().map(|alias| {
                    let number = Self::number(alias);
                    Ok(Some(offer(&signed(number, self.published[number]))))
                });
                let offers = offers.collect();
                self.table.looked(&batch, Ok(offers), now);
            }
            Work::Compare(batch) => self.table.compared(&batch, Ok(Vec::new()), now),
            Work::Load { alias, job } => self.load(&alias, &job, how),
            Work::Register { epoch, name, directory } => {
                let result = match how {
                    _ if self.epoch != Some(epoch) => Err(RegistryError::Unavailable),
                    8 => Err(RegistryError::Refused { reason: "no memory".to_owned() }),
                    9 => Err(RegistryError::Unavailable),
                    10 | 11 => Err(RegistryError::Unknown),
                    _ => Ok(()),
                };
                if result.is_ok() || (how == 10 && self.epoch == Some(epoch)) {
                    assert!(self.disk.iter().any(|id| name.serves(id)), "{name} has no files");
                    self.engine.insert(name.clone(), directory);
                    self.lost.remove(&name);
                }
                self.table.was_registered(epoch, &name, result, now);
            }
            Work::Unregister { epoch, name } => {
                let result = match how {
                    _ if self.epoch != Some(epoch) => Err(RegistryError::Unavailable),
                    8 | 9 => Err(RegistryError::Unavailable),
                    10 | 11 => Err(RegistryError::Unknown),
                    _ => Ok(()),
                };
                if result.is_ok() || (how == 10 && self.epoch == Some(epoch)) {
                    if result.is_err() && self.engine.contains_key(&name) {
                        self.lost.insert(name.clone());
                    }
                    self.engine_lets_go(vec![name.clone()]);
                }
                self.table.was_unregistered(epoch, &name, result, now);
            }
            Work::List { epoch, begun } => {
                let lines = self.engine.iter();
                let lines = lines.map(|(name, path)| Registered { name: name.to_string(), directory: path.clone() });
                let found = if how >= 9 { Err(RegistryError::Unknown) } else { Ok(lines.collect()) };
                self.table.listed(epoch, begun, found, now);
            }
            Work::AskElsewhere { alias, artifact } => self.table.elsewhere(&alias, &artifact, how < 8, now),
            Work::Delete(id) => {
                let is_gone = how < 8;
                if is_gone {
                    self.disk.remove(&id);
                }
                self.table.deleted(&id, is_gone, now);
            }
            Work::Save(aliases) => self.table.saved(if how < 8 { Vec::new() } else { aliases }),
        }
    }

    fn load(&mut self, alias: &Alias, job: &crate::serve::adapters::entry::Job, how: u8) {
        let number = Self::number(alias);
        let generation = (1..=self.published[number]).find(|g| signed(number, *g).artifact == job.artifact).unwrap();
        let signed = signed(number, generation);
        let id = prepared(&signed);
        if !self.table.saw(alias, &signed, &Few, self.now) {
            return self.table.unwanted(alias);
        }
        if let Err(reason) = self.table.accepts(alias, &signed) {
            return self.table.failed(alias, Kind::Refused, reason, self.now);
        }
        if how >= 8 || !self.table.claim(alias, id) {
            let kind = if how == 8 { Kind::Refused } else { Kind::Failed };
            return self.table.failed(alias, kind, "it did not come".to_owned(), self.now);
        }
        if !self.disk.contains(&id) {
            if let Err(reason) = self.table.reserve(alias, 40, self.now) {
                return self.table.failed(alias, Kind::Failed, reason, self.now);
            }
            self.disk.insert(id);
            self.free.insert(id, self.now);
        }
        let loaded = Loaded { signed, prepared: id, directory: PathBuf::from(format!("/p/{id}")), bytes: 40 };
        self.table.loaded(alias, loaded, self.now);
    }

    pub(super) fn take(&mut self) {
        for work in self.table.take(self.now) {
            if let Work::Delete(id) = &work {
                self.check_deletion(id);
            }
            let is_same = |other: &Work| match (&work, other) {
                (Work::Load { alias, .. }, Work::Load { alias: other, .. }) => alias == other,
                _ => asked(&work).is_some() && asked(&work) == asked(other),
            };
            assert!(!self.pending.iter().any(is_same), "{work:?} is under way already");
            self.pending.push(work);
        }
    }

    fn check_deletion(&self, id: &PreparationId) {
        assert!(!self.engine.keys().any(|name| name.serves(id)), "the engine has {id}");
        assert!(!self.leases.iter().any(|name| name.serves(id)), "a request uses {id}");
        let free = self.free.get(id).copied().unwrap_or(self.now);
        assert!(free + GRACE <= self.now, "{id} goes before its grace is over");
    }

    /// Everything works from here on.
    pub(super) fn settle(&mut self) {
        self.apply(&Event::Engine(true));
        for _ in 0..60 {
            self.now += Duration::from_secs(11);
            self.take();
            while let Some(work) = self.pending.pop() {
                self.finish(work, 0);
                self.take();
            }
        }
    }
}
