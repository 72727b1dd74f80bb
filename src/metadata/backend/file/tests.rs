use std::sync::Arc;

use super::*;
use crate::metadata::registry::tests::{announcement, held, node};
use crate::protocol::metadata::NodeState;

fn rows(seed: u8, artifacts: u8) -> Vec<(Key, Option<Value>)> {
    let mut told = announcement(seed, 1, 1, NodeState::Ready);
    told.full = false;
    let mut rows = vec![(Key { node: node(seed), artifact: None }, Some(Value::Node(told)))];
    for n in 0..artifacts {
        let held = held(n, 1, 4, 4);
        rows.push((Key { node: node(seed), artifact: Some(held.artifact.artifact) }, Some(Value::Holding(held))));
    }
    rows
}

fn reopen(directory: &Path) -> Vec<Announcement> {
    FileStore::open(directory).unwrap().1
}

#[test]
fn what_was_written_is_there_once_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, nodes) = FileStore::open(dir.path()).unwrap();
    assert_eq!(nodes, []);
    store.write(&rows(1, 3)).unwrap();
    let gone = Key { node: node(1), artifact: Some(held(0, 1, 4, 4).artifact.artifact) };
    store.write(&[(gone, None)]).unwrap();
    drop(store);
    let nodes = reopen(dir.path());
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].node, node(1));
    assert_eq!(nodes[0].held.len(), 2);
    assert_eq!(reopen(dir.path()), [], "taken over means written again by whoever took it");
}

#[test]
fn a_store_in_use_or_out_of_reach_is_an_error_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_open, _) = FileStore::open(dir.path()).unwrap();
    assert!(matches!(FileStore::open(dir.path()), Err(BackendError::InUse { .. })));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(FileStore::open(&file.join("below")), Err(BackendError::Directory { .. })));
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(other.path().join(FILE)).unwrap();
    assert!(matches!(FileStore::open(other.path()), Err(BackendError::Open { .. })));
}

#[test]
fn a_damaged_file_is_moved_aside_and_the_store_is_empty() {
    for content in [b"not a database".as_slice(), &[0u8; 8192], &[0xffu8; 100_000]] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), content).unwrap();
        assert_eq!(reopen(dir.path()), []);
        assert!(dir.path().join("metadata.damaged").exists());
    }
}

#[test]
fn damage_anywhere_never_invents_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = FileStore::open(dir.path()).unwrap();
    store.write(&rows(1, 20)).unwrap();
    drop(store);
    let whole = std::fs::read(dir.path().join(FILE)).unwrap();
    let known: Vec<_> = rows(1, 20).into_iter().filter_map(|(key, _)| key.artifact).collect();
    for at in (0..whole.len()).step_by(whole.len() / 97) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        let end = bytes.len().min(at + 16);
        bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
        std::fs::write(dir.path().join(FILE), bytes).unwrap();
        for found in reopen(dir.path()) {
            assert_eq!(found.node, node(1));
            assert!(found.held.iter().all(|held| known.contains(&held.artifact.artifact)), "damage at {at}");
        }
    }
}

#[test]
fn golden_bytes_of_a_row() {
    // CRC32C of the rest, big endian, then the message as on the wire.
    assert_eq!(frame(b"123456789"), b"\xe3\x06\x92\x83123456789");
    assert_eq!(unframe(b"\xe3\x06\x92\x83123456789"), Some(b"123456789".as_slice()));
    assert_eq!(unframe(b"\xe3\x06\x92\x83123456780"), None);
    assert_eq!(unframe(b"\xe3"), None);
    let key = Key { node: node(1), artifact: Some(held(0, 1, 4, 4).artifact.artifact) };
    assert_eq!(encode_key(&key), [*node(1).as_bytes(), *key.artifact.unwrap().as_bytes()].concat());
    let held = Arc::new(held(0, 1, 4, 4));
    assert_eq!(unframe(&frame(&held.encode())), Some(held.encode().as_slice()));
}
