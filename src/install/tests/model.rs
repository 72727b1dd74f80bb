use proptest::prelude::*;

use super::*;

fn content() -> impl Strategy<Value = Content> {
    let bytes = prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (0..5u64, 1..50_000usize).prop_map(|(seed, len)| noise(seed, len)),
        1 => (0..4u8, 1..100_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    (bytes, any::<bool>(), prop_oneof![Just(0), 1..u64::MAX / 4]).prop_map(|(bytes, executable, mtime_ns)| Content {
        bytes,
        executable,
        mtime_ns,
    })
}

/// Depths 1 to 5; leaves have other names than directories, so that no file is a directory at once.
fn tree(size: usize) -> impl Strategy<Value = Tree> {
    let path = (prop::sample::select(vec!["", "d/", "e/", "deep/"]), "([a-c]/){2,3}", "[f-j]{1,2}")
        .prop_map(|(top, middle, leaf)| if top.is_empty() { leaf } else { format!("{top}{middle}{leaf}") });
    prop::collection::btree_map(path, content(), 1..size)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_install_is_the_union_of_what_was_there_and_the_missing_entries(tree in tree(24), before in tree(8), seed in any::<u64>()) {
        let fixture = Fixture::new(tree);
        let (_dir, root) = root();
        for (path, content) in &before {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &content.bytes).unwrap();
        }
        let mut model: BTreeMap<String, Vec<u8>> = before.iter().map(|(path, c)| (path.clone(), c.bytes.clone())).collect();
        let taken = |entry: &RelPath| before.keys().any(|path| RelPath::new(path).unwrap().is_within(entry));
        let mut expected = Vec::new();
        for entry in fixture.manifest().entries.iter().filter(|entry| !taken(entry)) {
            expected.push(entry.clone());
            let within = |path: &&String| RelPath::new(path).unwrap().is_within(entry);
            model.extend(fixture.tree.keys().filter(within).map(|path| (path.clone(), fixture.tree[path].bytes.clone())));
        }

        let lock = lock(&root);
        let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
        let mut order: Vec<usize> = installation.needed().ones().collect();
        order.sort_by_key(|index| blake3::hash(&[seed.to_le_bytes(), (*index as u64).to_le_bytes()].concat()).as_bytes()[0]);
        for index in order {
            installation.chunk(index, &fixture.chunks[index]).unwrap();
        }
        let done = installation.commit().unwrap();
        prop_assert_eq!(done.installed, expected);
        prop_assert_eq!(visible(root.path()), model);
        prop_assert!(staging_is_empty(root.path()));
    }
}
