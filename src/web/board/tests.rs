use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn document(value: u32) -> Document {
    Document::new(&json!({ "value": value })).unwrap()
}

#[test]
fn keys_are_what_stands_unescaped_in_json_and_in_an_event() {
    assert_eq!(key("node/0a1b-2_c.d:e@f+g=").as_str(), "node/0a1b-2_c.d:e@f+g=");
    for wrong in ["", "a b", "a\nb", "a\"b", "a\\b", "\u{e9}", &"k".repeat(MAX_KEY + 1)] {
        assert!(matches!(wrong.parse::<Key>(), Err(BoardError::Key(_))), "{wrong:?}");
    }
}

#[test]
fn a_document_is_json_on_one_line_and_bounded() {
    let lines = Bytes::from_static(b"{\n  \"a\": [1,\r\n 2]\n}");
    assert_eq!(Document::from_json(lines).unwrap().as_bytes(), &b"{\"a\":[1,2]}"[..]);
    assert!(matches!(Document::from_json(Bytes::from_static(b"{} {}")), Err(BoardError::Json(_))));
    assert!(matches!(Document::new(&"x".repeat(MAX_DOCUMENT)), Err(BoardError::TooLarge(_))));
    let large = Bytes::from(vec![b' '; MAX_DOCUMENT + 1]);
    assert!(matches!(Document::from_json(large), Err(BoardError::TooLarge(_))));
    let text = Document::new(&json!({"name": "a\nb\r\u{2028}"})).unwrap();
    assert!(!text.as_bytes().iter().any(|byte| matches!(byte, b'\n' | b'\r')));
}

#[test]
fn the_same_document_again_is_no_change() {
    let mut board = Board::new(Limits::default());
    assert!(board.set(&key("a"), document(1)).unwrap());
    let version = board.version();
    assert!(!board.set(&key("a"), document(1)).unwrap());
    assert!(!board.remove(&key("b")));
    assert_eq!(board.version(), version);
}

#[test]
fn a_full_board_keeps_what_it_has_and_takes_less() {
    let size = document(1).as_bytes().len();
    let mut board = Board::new(Limits { documents: 2, bytes: 2 * size, removed: 1 });
    board.set(&key("a"), document(1)).unwrap();
    board.set(&key("b"), document(2)).unwrap();
    assert!(matches!(board.set(&key("c"), document(3)), Err(BoardError::Full { documents: 2, .. })));
    assert!(matches!(board.set(&key("a"), document(10)), Err(BoardError::Full { .. })));
    assert_eq!(board.get(&key("a")), Some(&document(1)));
    board.set(&key("a"), document(4)).unwrap();
    board.remove(&key("b"));
    board.set(&key("c"), document(10)).unwrap_err();
    board.set(&key("c"), document(3)).unwrap();
    assert_eq!(board.len(), 2);
}

#[test]
fn who_looks_seldom_gets_the_latest_of_each_key_once() {
    let mut board = Board::new(Limits::default());
    let seen = board.since(Cursor::START, usize::MAX).cursor;
    for value in 0..1000 {
        board.set(&key("a"), document(value)).unwrap();
    }
    let changes = board.since(seen, usize::MAX);
    assert_eq!((changes.reset, changes.set.len(), &changes.set[0].1), (false, 1, &document(999)));
    assert!(board.since(changes.cursor, usize::MAX).is_empty());
}

#[test]
fn who_missed_more_removals_than_are_remembered_starts_over() {
    let mut board = Board::new(Limits { removed: 1, ..Limits::default() });
    for name in ["a", "b", "c"] {
        board.set(&key(name), document(1)).unwrap();
    }
    let seen = board.since(Cursor::START, usize::MAX).cursor;
    board.remove(&key("a"));
    assert_eq!(board.since(seen, usize::MAX).removed, [key("a")]);
    board.remove(&key("b"));
    let changes = board.since(seen, usize::MAX);
    assert_eq!((changes.reset, changes.set.len(), changes.removed.len()), (true, 1, 0));
    assert!(board.since(Cursor::resume(board.version() + 1), usize::MAX).reset, "of another board");
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, u32),
    Remove(u8),
    /// Reader, bytes.
    Read(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..12_u8, 0..4_u32).prop_map(|(name, value)| Step::Set(name, value)),
        2 => (0..12_u8).prop_map(Step::Remove),
        2 => (0..3_usize, 0..60_usize).prop_map(|(reader, bytes)| Step::Read(reader, bytes)),
    ]
}

struct Reader {
    cursor: Cursor,
    known: BTreeMap<Key, Document>,
}

impl Reader {
    /// Whether there is more.
    fn read(&mut self, board: &Board, bytes: usize) -> bool {
        let changes = board.since(self.cursor, bytes);
        if changes.reset {
            self.known.clear();
        }
        self.known.extend(changes.set);
        for key in &changes.removed {
            self.known.remove(key);
        }
        assert!(changes.cursor.at() >= self.cursor.at() || changes.reset);
        self.cursor = changes.cursor;
        changes.more
    }
}

proptest! {
    #[test]
    fn readers_of_any_pace_come_to_know_what_the_board_has(
        steps in proptest::collection::vec(step(), 0..200),
        removed in 0..6_usize,
    ) {
        let limits = Limits { documents: 10, removed, ..Limits::default() };
        let mut board = Board::new(limits);
        let mut model = BTreeMap::new();
        let mut readers: Vec<_> =
            (0..3).map(|_| Reader { cursor: Cursor::START, known: BTreeMap::new() }).collect();
        for step in steps {
            match step {
                Step::Set(name, value) => {
                    let name = key(&format!("node/{name}"));
                    let is_room = model.contains_key(&name) || model.len() < limits.documents;
                    prop_assert_eq!(board.set(&name, document(value)).is_ok(), is_room);
                    if is_room {
                        model.insert(name, document(value));
                    }
                }
                Step::Remove(name) => {
                    let name = key(&format!("node/{name}"));
                    prop_assert_eq!(board.remove(&name), model.remove(&name).is_some());
                }
                Step::Read(reader, bytes) => {
                    readers[reader].read(&board, bytes);
                }
            }
            prop_assert!(board.removed.len() <= removed && board.changes.len() == board.versions.len());
            prop_assert_eq!(board.bytes, model.values().map(|document| document.as_bytes().len()).sum::<usize>());
        }
        for reader in &mut readers {
            // Each reading brings a key at least.
            let mut readings = 0;
            while reader.read(&board, 1) {
                readings += 1;
                prop_assert!(readings <= limits.documents + removed);
            }
            prop_assert_eq!(&reader.known, &model);
        }
    }
}
