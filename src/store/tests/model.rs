//! Reference counting against a model that keeps no counts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const CHUNKS: usize = 8;
const LEN: usize = 10;

#[derive(Debug, Clone)]
enum Step {
    Begin(BTreeSet<usize>),
    Put(usize),
    Seal(usize),
    Remove(usize),
    Damage(usize),
    Gc,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        3 => prop::collection::btree_set(0..CHUNKS, 1..5).prop_map(Step::Begin),
        8 => (0..CHUNKS).prop_map(Step::Put),
        3 => (0..10usize).prop_map(Step::Seal),
        2 => (0..10usize).prop_map(Step::Remove),
        1 => (0..CHUNKS).prop_map(Step::Damage),
        1 => Just(Step::Gc),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(one, 0..40)
}

/// Which chunks exist, and for each artifact its chunks and whether it is complete.
#[derive(Default)]
struct Model {
    chunks: BTreeSet<usize>,
    artifacts: BTreeMap<ArtifactId, (BTreeSet<usize>, bool)>,
}

impl Model {
    fn used(&self) -> BTreeSet<usize> {
        self.artifacts.values().flat_map(|(chunks, _)| chunks.iter().copied()).collect()
    }

    fn nth(&self, n: usize) -> Option<ArtifactId> {
        self.artifacts.keys().nth(n % self.artifacts.len().max(1)).copied()
    }

    fn step(&mut self, directory: &Path, mut store: Store, step: Step, all: &[Vec<u8>]) -> Store {
        match step {
            Step::Begin(set) => {
                let chosen: Vec<Vec<u8>> = set.iter().map(|index| all[*index].clone()).collect();
                let held = store.begin(admitted(&chosen, 1)).unwrap();
                self.artifacts.entry(held.id()).or_insert((set, false));
            }
            Step::Put(index) => {
                let new = store.put_chunk(&Digest::of(&all[index]), &all[index]).unwrap();
                assert_eq!(new, self.chunks.insert(index));
            }
            Step::Seal(n) => {
                if let Some(id) = self.nth(n) {
                    let (chunks, complete) = self.artifacts.get_mut(&id).unwrap();
                    *complete = chunks.is_subset(&self.chunks);
                    assert_eq!(store.seal(&id).is_ok(), *complete);
                }
            }
            Step::Remove(n) => {
                if let Some(id) = self.nth(n) {
                    let (chunks, _) = self.artifacts.remove(&id).unwrap();
                    let used = self.used();
                    let gone = |index: &&usize| self.chunks.contains(index) && !used.contains(index);
                    let gone: BTreeSet<usize> = chunks.iter().filter(gone).copied().collect();
                    assert_eq!(store.remove(&id).unwrap(), (gone.len() * LEN) as u64);
                    self.chunks.retain(|index| !gone.contains(index));
                }
            }
            Step::Damage(index) => {
                let chunk = raw(&all[index]);
                if self.chunks.remove(&index) {
                    std::fs::remove_file(store.shared.layout.chunk(&chunk.digest)).unwrap();
                    self.artifacts.values_mut().for_each(|(chunks, complete)| *complete &= !chunks.contains(&index));
                }
                assert!(matches!(store.read_chunk(&chunk), Err(StoreError::Missing(_))));
            }
            Step::Gc => {
                store.gc(UnixTime::now().after(Duration::from_secs(2 * 3600))).unwrap();
                let used = self.used();
                self.chunks.retain(|index| used.contains(index));
            }
            Step::Reopen => {
                drop(store);
                store = open(directory);
            }
        }
        store
    }

    fn check(&self, store: &Store, all: &[Vec<u8>]) {
        let there = (0..CHUNKS).filter(|index| store.has_chunk(&Digest::of(&all[*index]))).collect::<BTreeSet<_>>();
        assert_eq!(there, self.chunks);
        assert_eq!(store.usage(), (self.chunks.len() * LEN) as u64);
        assert_eq!(store.shared.index.chunks(), self.chunks.len() as u64);
        assert_eq!(store.list().len(), self.artifacts.len());
        for artifact in store.list() {
            let (chunks, complete) = &self.artifacts[&artifact.id()];
            let have: Vec<bool> = (0..chunks.len()).map(|index| artifact.has(index)).collect();
            let expected: Vec<bool> = chunks.iter().map(|index| self.chunks.contains(index)).collect();
            assert_eq!(have, expected);
            assert_eq!(artifact.progress().bytes, (expected.iter().filter(|had| **had).count() * LEN) as u64);
            assert_eq!(artifact.state() == State::Complete, *complete);
        }
        let files: usize =
            store.shared.layout.chunk_directories().map(|path| std::fs::read_dir(path).unwrap().count()).sum();
        assert_eq!(files, self.chunks.len(), "files and index agree");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn chunks_live_exactly_as_long_as_an_artifact_uses_them(steps in steps()) {
        let all = contents(9, CHUNKS as u64, LEN);
        let (directory, mut store) = store();
        let mut model = Model::default();
        for step in steps {
            store = model.step(directory.path(), store, step, &all);
            model.check(&store, &all);
        }
    }
}
