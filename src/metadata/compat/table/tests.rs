use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::protocol::model_express::{Identity, pb};

const LIMITS: Limits =
    Limits { lease: Duration::from_secs(90), forget: Duration::from_secs(3600), max_workers: 4, max_bytes: 8 * 1024 };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn identity(model: u8) -> Identity {
    let extra_parameters = [("training_step".to_owned(), model.to_string())].into();
    let identity = pb::SourceIdentity { model_name: format!("m{model}"), extra_parameters, ..Default::default() };
    Identity::try_from(identity).unwrap()
}

fn key(model: u8, worker: u8) -> Registration {
    Registration { source: identity(model).source_id(), worker: format!("w{worker}").parse().unwrap() }
}

fn told(model: u8, worker: u8, status: SourceStatus, len: usize) -> Publication {
    Publication {
        key: key(model, worker),
        identity: identity(model),
        rank: worker.into(),
        status,
        accelerator: "cuda".to_owned(),
        topology: HashMap::new(),
        metadata: vec![worker; len].into(),
    }
}

fn beat(model: u8, worker: u8, status: SourceStatus) -> StatusUpdate {
    StatusUpdate { key: key(model, worker), rank: worker.into(), status, load: None }
}

fn of_model(model: u8) -> Query {
    Query { source: Some(key(model, 0).source), ..Query::default() }
}

fn ready(query: Query) -> Query {
    Query { status: Some(SourceStatus::Ready), ..query }
}

fn workers(listed: &[Listed]) -> Vec<String> {
    listed.iter().map(|listed| listed.key.worker.to_string()).collect()
}

#[test]
fn a_worker_is_listed_as_ready_from_its_first_heartbeat_until_90_s_after_the_last() {
    let mut table = Table::new(LIMITS);
    table.publish(told(1, 1, SourceStatus::Initializing, 10), seconds(100)).unwrap();
    assert_eq!(table.list(&ready(of_model(1)), seconds(100)), []);
    assert_eq!(table.list(&of_model(1), seconds(100)).len(), 1);
    table.update(beat(1, 1, SourceStatus::Ready), seconds(110)).unwrap();
    let listed = table.list(&ready(of_model(1)), seconds(200));
    assert_eq!((workers(&listed), listed[0].updated_at), (vec!["w1".to_owned()], 110_000));
    let late = seconds(200) + Duration::from_millis(1);
    assert_eq!(table.list(&ready(of_model(1)), late), []);
    assert_eq!(table.get(&key(1, 1), late).unwrap().status, SourceStatus::Stale);
}

#[test]
fn a_stale_worker_comes_back_with_a_heartbeat_and_is_forgotten_after_an_hour_without() {
    let mut table = Table::new(LIMITS);
    table.publish(told(1, 1, SourceStatus::Ready, 10), seconds(0)).unwrap();
    table.update(beat(1, 1, SourceStatus::Stale), seconds(10)).unwrap();
    assert_eq!(table.list(&ready(of_model(1)), seconds(10)), [], "not a second after it said so");
    table.update(beat(1, 1, SourceStatus::Ready), seconds(40)).unwrap();
    assert_eq!(table.list(&ready(of_model(1)), seconds(40)).len(), 1);

    let end = seconds(40) + LIMITS.lease + LIMITS.forget;
    assert!(table.get(&key(1, 1), end - seconds(1)).is_some());
    assert!(table.get(&key(1, 1), end).is_none(), "before anything has removed it");
    let refused = table.update(beat(1, 1, SourceStatus::Ready), end).unwrap_err();
    assert_eq!(refused, TableError::Unknown { key: key(1, 1), rank: 1 });
    assert_eq!(table.counts(end), Counts::default());

    table.publish(told(1, 2, SourceStatus::Stale, 10), seconds(0)).unwrap();
    table.expire(LIMITS.forget);
    assert_eq!(table.counts(LIMITS.forget), Counts::default(), "STALE by its own word needs no lease to run out");
}

#[test]
fn a_heartbeat_for_another_rank_or_source_is_refused() {
    let mut table = Table::new(LIMITS);
    table.publish(told(1, 1, SourceStatus::Ready, 10), seconds(0)).unwrap();
    for wrong in [
        StatusUpdate { rank: 2, ..beat(1, 1, SourceStatus::Stale) },
        beat(2, 1, SourceStatus::Stale),
        beat(1, 2, SourceStatus::Stale),
    ] {
        assert!(matches!(table.update(wrong, seconds(1)), Err(TableError::Unknown { .. })));
    }
    assert_eq!(table.list(&ready(of_model(1)), seconds(1)).len(), 1);
}

#[test]
fn the_newest_heartbeat_is_listed_first_and_filters_apply_together() {
    let mut table = Table::new(LIMITS);
    for (worker, at) in [(1, 10), (2, 30), (3, 20)] {
        table.publish(told(1, worker, SourceStatus::Ready, 10), seconds(at)).unwrap();
    }
    table.publish(told(2, 1, SourceStatus::Ready, 10), seconds(40)).unwrap();
    let list = |query: &Query| workers(&table.list(query, seconds(40)));
    assert_eq!(list(&of_model(1)), ["w2", "w3", "w1"]);
    assert_eq!(list(&Query { limit: Some(2), ..of_model(1) }), ["w2", "w3"]);
    assert_eq!(list(&Query { rank: Some(3), ..of_model(1) }), ["w3"]);
    assert_eq!(list(&Query { min_updated_at: Some(20_000), ..of_model(1) }), ["w2", "w3"]);
    assert_eq!(list(&Query { min_step: Some(2), ..Query::default() }), ["w1"]);
    assert_eq!(list(&Query { model: Some("m2".to_owned()), ..Query::default() }), ["w1"]);
    assert_eq!(list(&Query { model: Some("M2".to_owned()), ..Query::default() }), [""; 0]);
    assert_eq!(list(&Query::default()).len(), 4);
}

#[test]
fn a_page_is_bounded_in_workers_and_in_bytes() {
    let mut table = Table::new(Limits { max_workers: usize::MAX, max_bytes: usize::MAX, ..LIMITS });
    let model = told(1, 1, SourceStatus::Ready, 0);
    for n in 0..MAX_LISTED + 10 {
        let key = Registration { worker: n.to_string().parse().unwrap(), ..model.key.clone() };
        table.publish(Publication { key, ..model.clone() }, seconds(n as u64)).unwrap();
    }
    let listed = table.list(&Query::default(), seconds(0));
    assert_eq!((listed.len(), workers(&listed)[0].as_str()), (MAX_LISTED, "1009"));
    let topology: HashMap<_, _> = (0..16).map(|n| (n.to_string(), "x".repeat(16_000))).collect();
    for n in 0..100 {
        let key = Registration { worker: n.to_string().parse().unwrap(), ..model.key.clone() };
        table.publish(Publication { key, topology: topology.clone(), ..model.clone() }, seconds(5_000)).unwrap();
    }
    let count = table.list(&Query::default(), seconds(5_000)).len();
    assert!((10..=MAX_PAGE / 256_000).contains(&count), "{count}");
}

#[test]
fn a_full_table_refuses_the_last_and_keeps_the_others() {
    let mut table = Table::new(LIMITS);
    for worker in 0..4 {
        table.publish(told(1, worker, SourceStatus::Ready, 10), seconds(0)).unwrap();
    }
    let full = table.publish(told(1, 4, SourceStatus::Ready, 10), seconds(0)).unwrap_err();
    assert_eq!(full, TableError::Full { what: "workers", limit: 4 });
    table.publish(told(1, 3, SourceStatus::Ready, 20), seconds(0)).unwrap();
    let large = table.publish(told(1, 3, SourceStatus::Ready, LIMITS.max_bytes), seconds(0)).unwrap_err();
    assert!(matches!(large, TableError::Full { limit, .. } if limit == LIMITS.max_bytes));
    assert_eq!(table.get(&key(1, 3), seconds(0)).unwrap().metadata.len(), 20, "what was there is still there");
    // When the others are forgotten there is room again, without anybody tidying up.
    let later = LIMITS.lease + LIMITS.forget;
    table.publish(told(1, 4, SourceStatus::Ready, 10), later).unwrap();
    assert_eq!(table.counts(later).ready, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Publish { model: u8, worker: u8, status: SourceStatus, len: usize },
    Beat { model: u8, worker: u8, rank: u8, status: SourceStatus },
    Pass(u64),
    Expire,
}

fn arb_step() -> impl Strategy<Value = Step> {
    let status = || prop_oneof![Just(SourceStatus::Initializing), Just(SourceStatus::Ready), Just(SourceStatus::Stale)];
    prop_oneof![
        4 => (0u8..2, 0u8..4, status(), prop_oneof![0usize..100, Just(6_000), Just(20_000)])
            .prop_map(|(model, worker, status, len)| Step::Publish { model, worker, status, len }),
        4 => (0u8..2, 0u8..4, prop_oneof![8 => Just(None), 1 => (0u8..4).prop_map(Some)], status()).prop_map(
            |(model, worker, rank, status)| Step::Beat { model, worker, rank: rank.unwrap_or(worker), status }
        ),
        3 => prop_oneof![0u64..40, Just(90), Just(91), Just(3_600), Just(3_690)].prop_map(Step::Pass),
        1 => Just(Step::Expire),
    ]
}

/// The plainest table: what was said last by whom, and when.
#[derive(Debug, Default)]
struct Model {
    said: BTreeMap<Registration, (Publication, Duration)>,
    now: Duration,
}

impl Model {
    fn status(&self, key: &Registration) -> Option<SourceStatus> {
        let (told, at) = self.said.get(key)?;
        let silent = self.now - *at;
        let is_stale = told.status == SourceStatus::Stale;
        let remembered = LIMITS.forget + if is_stale { Duration::ZERO } else { LIMITS.lease };
        let status = if silent > LIMITS.lease { SourceStatus::Stale } else { told.status };
        (silent < remembered).then_some(status)
    }

    fn forget(&mut self) {
        let gone: Vec<_> = self.said.keys().filter(|key| self.status(key).is_none()).cloned().collect();
        gone.iter().for_each(|key| drop(self.said.remove(key)));
    }

    fn bytes(&self) -> usize {
        self.said.values().map(|(told, _)| size(told)).sum()
    }

    /// Whether the step is done.
    fn step(&mut self, step: &Step) -> bool {
        match *step {
            Step::Publish { model, worker, status, len } => {
                self.forget();
                let told = told(model, worker, status, len);
                let before = self.said.insert(told.key.clone(), (told.clone(), self.now));
                let fits = self.said.len() <= LIMITS.max_workers && self.bytes() <= LIMITS.max_bytes;
                if !fits {
                    self.said.remove(&told.key);
                    self.said.extend(before.map(|before| (told.key, before)));
                }
                fits
            }
            Step::Beat { model, worker, rank, status } => {
                self.forget();
                match self.said.get_mut(&key(model, worker)) {
                    Some((told, at)) if rank == worker => {
                        (told.status, *at) = (status, self.now);
                        true
                    }
                    _ => false,
                }
            }
            Step::Pass(passed) => {
                self.now += seconds(passed);
                true
            }
            Step::Expire => {
                self.forget();
                true
            }
        }
    }
}

fn apply(table: &mut Table, step: &Step, now: Duration) -> bool {
    match *step {
        Step::Publish { model, worker, status, len } => table.publish(told(model, worker, status, len), now).is_ok(),
        Step::Beat { model, worker, rank, status } => {
            table.update(StatusUpdate { rank: rank.into(), ..beat(model, worker, status) }, now).is_ok()
        }
        Step::Pass(_) => true,
        Step::Expire => {
            table.expire(now);
            true
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_table_says_what_was_said_last_and_counts_it(
        steps in prop::collection::vec(arb_step(), 1..80)
    ) {
        let (mut table, mut model) = (Table::new(LIMITS), Model::default());
        for step in &steps {
            let done = model.step(step);
            prop_assert_eq!(apply(&mut table, step, model.now), done, "{:?}", step);
            for (n, worker) in (0u8..2).flat_map(|n| (0u8..4).map(move |worker| (n, worker))) {
                let known = table.get(&key(n, worker), model.now);
                prop_assert_eq!(known.as_ref().map(|known| known.status), model.status(&key(n, worker)));
                let told = model.said.get(&key(n, worker)).filter(|_| known.is_some());
                prop_assert_eq!(known.map(|known| known.metadata), told.map(|(told, _)| told.metadata.clone()));
            }
            for n in 0u8..2 {
                let listed = table.list(&ready(of_model(n)), model.now);
                prop_assert!(listed.is_sorted_by_key(|listed| Reverse(listed.updated_at)));
                let mut names = workers(&listed);
                names.sort();
                let is_ready = |key: &&Registration| {
                    key.source == of_model(n).source.unwrap() && model.status(key) == Some(SourceStatus::Ready)
                };
                let expected: Vec<_> = model.said.keys().filter(is_ready).map(|key| key.worker.to_string()).collect();
                prop_assert_eq!(names, expected);
            }
            let mut counted = 0;
            prop_assert!(table.workers().inspect(|worker| counted += size(&worker.told)).count() <= LIMITS.max_workers);
            prop_assert_eq!((table.bytes, table.ends.len()), (counted, table.workers().count()));
            prop_assert!(table.bytes <= LIMITS.max_bytes);
        }
    }
}
