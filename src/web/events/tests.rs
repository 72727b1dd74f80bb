use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::*;
use crate::web::board::{Document, Key};

type Texts = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn set(board: &LiveBoard, name: &str, value: impl serde::Serialize) {
    board.set(&key(name), Document::new(&value).unwrap()).unwrap();
}

fn follow(board: &LiveBoard, cursor: Cursor, seconds: u64) -> Texts {
    let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let ends = Instant::now() + Duration::from_secs(seconds);
    Box::pin(events(board.clone(), cursor, ends, slot, false).unwrap())
}

/// The id and what is said.
async fn next(texts: &mut Texts) -> (String, Value) {
    let text = String::from_utf8(texts.next().await.unwrap().to_vec()).unwrap();
    let lines: Vec<&str> = text.strip_suffix("\n\n").unwrap().split('\n').collect();
    let [id, data] = lines.as_slice() else { panic!("{text}") };
    let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    (id.strip_prefix("id: ").unwrap().to_owned(), data)
}

#[tokio::test(start_paused = true)]
async fn first_comes_everything_and_then_what_changes() {
    let board = LiveBoard::default();
    set(&board, "server", json!({"name": "a\nb"}));
    let mut texts = follow(&board, Cursor::START, 3600);
    let (_, first) = next(&mut texts).await;
    assert_eq!((&first["reset"], &first["set"]), (&json!(true), &json!({"server": {"name": "a\nb"}})));
    set(&board, "node/1", json!({}));
    board.remove(&key("server"));
    let (mark, second) = next(&mut texts).await;
    assert_eq!((&second["reset"], &second["more"]), (&json!(false), &json!(false)));
    assert_eq!((&second["set"], &second["del"]), (&json!({"node/1": {}}), &json!(["server"])));
    set(&board, "node/2", json!({}));
    let (_, resumed) = next(&mut follow(&board, board.resume(&mark), 3600)).await;
    assert_eq!((&resumed["reset"], &resumed["set"]), (&json!(false), &json!({"node/2": {}})));
    let (_, other) = next(&mut follow(&board, LiveBoard::default().resume(&mark), 3600)).await;
    assert_eq!((&other["reset"], other["set"].as_object().unwrap().len()), (&json!(true), 2));
}

#[tokio::test(start_paused = true)]
async fn an_empty_board_says_so_at_once() {
    let begun = Instant::now();
    let (_, first) = next(&mut follow(&LiveBoard::default(), Cursor::START, 3600)).await;
    assert_eq!((&first["reset"], &first["set"], begun.elapsed()), (&json!(true), &json!({}), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_four_times_a_second_at_most_and_the_last_one_counts() {
    let board = LiveBoard::default();
    let mut texts = follow(&board, Cursor::START, 3600);
    next(&mut texts).await;
    let begun = Instant::now();
    for value in 0..1000 {
        set(&board, "a", value);
    }
    assert_eq!(next(&mut texts).await.1["set"], json!({"a": 999}));
    assert_eq!(begun.elapsed(), PACE);
    // Nobody reads for a minute.
    for value in 0..60 {
        tokio::time::advance(Duration::from_secs(1)).await;
        set(&board, "a", value);
        set(&board, "b", value);
    }
    assert_eq!(next(&mut texts).await.1["set"], json!({"a": 59, "b": 59}));
}

#[tokio::test(start_paused = true)]
async fn a_large_board_comes_in_parts_without_a_pause() {
    let board = LiveBoard::default();
    for n in 0..50 {
        set(&board, &format!("node/{n}"), "x".repeat(PAGE / 10));
    }
    let (mut texts, begun, mut keys, mut more) = (follow(&board, Cursor::START, 3600), Instant::now(), 0, true);
    let mut resets = 0;
    while more {
        let (_, part) = next(&mut texts).await;
        keys += part["set"].as_object().unwrap().len();
        resets += usize::from(part["reset"] == true);
        more = part["more"] == true;
    }
    assert_eq!((keys, resets, begun.elapsed()), (50, 1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_and_a_stream_has_an_end() {
    let board = LiveBoard::default();
    let mut texts = follow(&board, Cursor::START, 40);
    next(&mut texts).await;
    let begun = Instant::now();
    assert_eq!(texts.next().await.unwrap(), ":\n\n");
    assert_eq!(begun.elapsed(), SILENCE);
    assert_eq!(texts.next().await.unwrap(), ":\n\n");
    assert_eq!(texts.next().await, None);
    assert_eq!(begun.elapsed().as_secs(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_compressed_stream_can_be_read_up_to_its_last_event() {
    let board = LiveBoard::default();
    let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let ends = Instant::now() + Duration::from_secs(60);
    let mut pieces = Box::pin(events(board.clone(), Cursor::START, ends, slot, true).unwrap());
    let mut decoder = zstd::stream::write::Decoder::new(Vec::new()).unwrap();
    for value in 0..3 {
        set(&board, "a", value);
        decoder.write_all(&pieces.next().await.unwrap()).unwrap();
        decoder.flush().unwrap();
        let text = String::from_utf8(decoder.get_ref().clone()).unwrap();
        assert!(text.ends_with(&format!("\"set\":{{\"a\":{value}}},\"del\":[]}}\n\n")), "{text}");
    }
}
