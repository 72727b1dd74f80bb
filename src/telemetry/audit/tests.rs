use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn event(result: &str) -> Event {
    Event {
        action: Action::Installed,
        by: "uid 1000".to_owned(),
        artifact: "a1".to_owned(),
        family: "triton".to_owned(),
        subject: String::new(),
        from: "builder".to_owned(),
        rule: "policy 3".to_owned(),
        result: result.to_owned(),
    }
}

fn at() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn written(directory: &Path, events: u64) {
    let mut log = Log::open(directory).unwrap();
    (0..events).for_each(|n| log.append(at(), event(&n.to_string())).unwrap());
}

fn check(directory: &Path) -> Result<Verified, AuditError> {
    verify(directory, |_| ())
}

#[test]
fn golden_bytes_of_a_line() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 1);
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    let expected = concat!(
        r#"{"number":1,"at":"2027-01-15T08:00:00Z","#,
        r#""before":"af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262","#,
        r#""action":"installed","by":"uid 1000","artifact":"a1","family":"triton","from":"builder","#,
        r#""rule":"policy 3","result":"0"}"#,
        "\n"
    );
    assert_eq!(text, expected);
    assert_eq!(check(dir.path()).unwrap().head.digest, Digest::of(expected.trim_end().as_bytes()));
}

#[test]
fn the_chain_goes_on_after_a_restart_and_after_a_crash_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 2);
    let path = dir.path().join(FILE);
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(br#"{"number":3,"at"#);
    std::fs::write(&path, text).unwrap();
    assert_eq!(check(dir.path()).unwrap().lines, 2, "a torn line does not count");
    written(dir.path(), 2);
    assert_eq!(check(dir.path()).unwrap().lines, 4);
}

#[test]
fn a_line_that_is_changed_left_out_moved_or_put_in_is_found() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 4);
    let path = dir.path().join(FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let changed = text.replacen(r#""result":"1""#, r#""result":"9""#, 1);
    let left_out = [lines[0], lines[2], lines[3]].join("\n") + "\n";
    let moved = [lines[0], lines[2], lines[1], lines[3]].join("\n") + "\n";
    let put_in = [lines[0], lines[1], lines[1], lines[2], lines[3]].join("\n") + "\n";
    let nonsense = text.replacen("{", "", 1);
    for (tampered, at) in [(changed, 3), (left_out, 2), (moved, 2), (put_in, 3), (nonsense, 1)] {
        std::fs::write(&path, &tampered).unwrap();
        match check(dir.path()).unwrap_err() {
            AuditError::Broken { line, .. } | AuditError::Malformed { line, .. } => assert_eq!(line, at, "{tampered}"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn files_that_have_grown_long_are_bounded_in_number_and_chained() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log { max_file: 600, ..Log::open(dir.path()).unwrap() };
    (0..50).for_each(|n| log.append(at(), event(&n.to_string())).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), KEPT + 1);
    let verified = check(dir.path()).unwrap();
    assert_eq!(verified.head.number, 50);
    assert_eq!(verified.first, 51 - verified.lines);
    std::fs::remove_file(dir.path().join(older(2))).unwrap();
    assert!(matches!(check(dir.path()), Err(AuditError::Broken { .. })), "a file in between is missed");
}

#[test]
fn texts_are_cut_where_a_character_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path()).unwrap();
    log.append(at(), event(&"é".repeat(2_000))).unwrap();
    let mut read = Vec::new();
    verify(dir.path(), |line| read.push(line)).unwrap();
    assert_eq!(read[0].event.result, "é".repeat(MAX_TEXT / 2));
}

#[test]
fn a_directory_that_no_agent_writes_to_is_not_a_log_without_lines() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(check(&dir.path().join("audit")), Err(AuditError::Missing(_))));
}

#[test]
fn what_follows_a_break_is_read_all_the_same_and_each_break_is_marked_once() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 5);
    let path = dir.path().join(FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let found = |text: String| {
        std::fs::write(&path, text).unwrap();
        let mut found = Vec::new();
        read(dir.path(), |one| found.push(one.map(|line| line.number).map_err(|_| ()))).unwrap();
        found
    };
    let left_out = [lines[0], lines[2], lines[3], lines[4]].join("\n") + "\n";
    assert_eq!(found(left_out), [Ok(1), Err(()), Ok(3), Ok(4), Ok(5)]);
    let nonsense = [lines[0], "nonsense", lines[2], lines[3]].join("\n") + "\n";
    assert_eq!(found(nonsense), [Ok(1), Err(()), Ok(3), Ok(4)]);
    let long = [lines[0], &"x".repeat(2 * MAX_LINE as usize), lines[1], lines[2]].join("\n") + "\n";
    assert_eq!(found(long), [Ok(1), Err(()), Ok(2), Ok(3)]);
}
