use std::future::{pending, ready};
use std::sync::Mutex;

use proptest::prelude::*;
use tokio::io::duplex;

use super::*;

fn lines(pieces: &[&[u8]]) -> Vec<String> {
    let mut seen = Vec::new();
    let mut lines = Lines::default();
    let mut keep = |line: &str| seen.push(line.to_owned());
    for piece in pieces {
        lines.feed(piece, &mut keep);
    }
    lines.end(&mut keep);
    seen
}

#[test]
fn lines_end_at_line_feeds_and_carriage_returns_wherever_the_pieces_are_cut() {
    assert_eq!(lines(&[b"a\nb", b"c\r\nd", b"\r10%\r", b"20%"]), ["a", "bc", "d", "10%", "20%"]);
    assert_eq!(lines(&[b"\n\r\n  \n\t\n"]), [""; 0]);
}

#[test]
fn colours_links_and_bytes_that_are_no_text_do_not_reach_the_observer_as_such() {
    let coloured = b"\x1b[0;36m(EngineCore pid=7)\x1b[0;0m \x1b[32mINFO\x1b[0m [x.py:1] done \x1b[0m";
    assert_eq!(lines(&[coloured]), ["(EngineCore pid=7) INFO [x.py:1] done"]);
    assert_eq!(lines(&[b"\x1b]8;;http://x\x07link\x1b]8;;\x1b\\ \xff\x1b[1"]), ["link \u{fffd}"]);
}

#[test]
fn of_a_line_without_end_only_its_beginning_is_kept() {
    let long = [b'x'; 3 * MAX_LINE];
    let seen = lines(&[&long, &long, b"\nnext\n"]);
    assert_eq!((seen[0].len(), seen[1].as_str()), (MAX_LINE, "next"));
    assert_eq!(seen.len(), 2);
}

proptest! {
    #[test]
    fn what_the_observer_sees_does_not_depend_on_how_the_bytes_arrive(
        bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(0x1b), Just(b'['), any::<u8>()], 0..300),
        cuts in prop::collection::vec(0..300usize, 0..5),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(lines(&pieces), lines(&[&bytes]));
    }
}

#[tokio::test]
async fn megabytes_pass_a_slow_reader_unchanged_and_the_writer_waits_for_it() {
    let sent: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).take(5_000_000).collect();
    let (mut engine, from) = duplex(4096);
    let (to, mut reader) = duplex(512);
    let mut got = Vec::new();
    let write = async {
        engine.write_all(&sent).await.unwrap();
        drop(engine);
    };
    let read = reader.read_to_end(&mut got);
    let ((), read, ()) = tokio::join!(write, read, pump(from, to, pending::<()>(), |_| ()));
    read.unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

#[tokio::test(start_paused = true)]
async fn a_pipe_that_somebody_holds_open_is_left_soon_after_the_engine_is_gone() {
    let (mut engine, from) = duplex(4096);
    let (to, mut reader) = duplex(4096);
    engine.write_all(b"last words\nunfinished").await.unwrap();
    let seen = Mutex::new(Vec::new());
    pump(from, to, ready(()), |line| seen.lock().unwrap().push(line.to_owned())).await;
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last words\nunfinished");
    assert_eq!(*seen.lock().unwrap(), ["last words", "unfinished"]);
    drop(engine);
}

/// Always has more to say.
struct Flood;

impl AsyncRead for Flood {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        buffer.put_slice(&vec![b'x'; buffer.remaining()]);
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_who_floods_the_pipe_after_the_engines_end_does_not_hold_us() {
    let (to, mut reader) = duplex(4096);
    let drain = async {
        let mut sink = tokio::io::sink();
        tokio::io::copy(&mut reader, &mut sink).await.unwrap();
    };
    let time_passes = async {
        tokio::task::yield_now().await;
        tokio::time::advance(LINGER * 2).await;
    };
    tokio::join!(pump(Flood, to, ready(()), |_| ()), drain, time_passes);
}

#[tokio::test]
async fn when_nobody_reads_any_more_the_engine_goes_on_and_its_lines_are_still_seen() {
    let (mut engine, from) = duplex(4096);
    let (to, reader) = duplex(16);
    drop(reader);
    let seen = Mutex::new(0);
    let write = async {
        for _ in 0..1000 {
            engine.write_all(b"one more line of the log\n").await.unwrap();
        }
        drop(engine);
    };
    tokio::join!(write, pump(from, to, pending::<()>(), |_| *seen.lock().unwrap() += 1));
    assert_eq!(*seen.lock().unwrap(), 1000);
}
