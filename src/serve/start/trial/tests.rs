use proptest::prelude::*;

use super::*;
use crate::digest::{ArtifactId, IdentityId};

fn release(n: u8) -> Release {
    Release {
        artifact: ArtifactId::of(&[n]),
        family: "triton".to_owned(),
        identity: IdentityId::of(b"identity"),
        subject: String::new(),
        generation: u64::from(n),
        signers: vec!["ci".to_owned()],
    }
}

fn suspect(n: u8) -> Suspect {
    let entries = [RelPath::new(&format!("entry-{n}")).unwrap()].into();
    Suspect { release: release(n), root: "/cache/triton".into(), entries, crashes: 0 }
}

fn boot(n: u8) -> BootId {
    format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
}

/// Nothing is there of what was expected.
fn nothing(_: &Path, _: &RelPath) -> bool {
    false
}

/// One whole start.
fn start(trial: &mut Trial, installed: &[u8], end: End) -> Verdict {
    trial.begin(boot(0), installed.iter().copied().map(suspect).collect(), nothing);
    trial.end(end)
}

/// Two crashes with artifact 1.
fn crashed_twice() -> Trial {
    let mut trial = Trial::default();
    assert_eq!(start(&mut trial, &[1], End::Crashed), Verdict::Nothing);
    assert_eq!(trial.start(), Kind::Warm);
    assert_eq!(start(&mut trial, &[], End::Crashed), Verdict::Nothing);
    assert_eq!(trial.start(), Kind::Clean);
    trial
}

#[test]
fn a_clean_start_that_works_after_two_crashes_quarantines_what_was_installed() {
    let mut trial = crashed_twice();
    assert_eq!(start(&mut trial, &[], End::Ready), Verdict::Quarantine(vec![release(1)]));
    assert!(trial.is_empty());
    assert_eq!(trial.start(), Kind::Warm);
}

#[test]
fn a_clean_start_that_crashes_as_well_exonerates_and_counting_starts_over() {
    let mut trial = crashed_twice();
    assert_eq!(start(&mut trial, &[], End::Crashed), Verdict::Exonerated(vec![release(1)]));
    assert!(trial.is_empty());
    start(&mut trial, &[1], End::Crashed);
    assert_eq!(trial.start(), Kind::Warm);
}

#[test]
fn a_clean_start_that_is_ended_from_outside_decides_nothing_and_is_not_repeated() {
    let mut trial = crashed_twice();
    assert_eq!(start(&mut trial, &[], End::Unknown), Verdict::Nothing);
    assert_eq!(trial, Trial::default());
}

#[test]
fn a_start_that_becomes_ready_ends_every_suspicion() {
    let mut trial = Trial::default();
    start(&mut trial, &[1], End::Crashed);
    assert_eq!(start(&mut trial, &[], End::Ready), Verdict::Nothing);
    assert_eq!(trial, Trial::default());
    assert_eq!(trial.end(End::Crashed), Verdict::Nothing, "a crash after readiness does not count");
    assert!(trial.is_empty());
}

#[test]
fn a_start_that_is_ended_from_outside_does_not_count() {
    let mut trial = Trial::default();
    start(&mut trial, &[1], End::Crashed);
    assert_eq!(start(&mut trial, &[], End::Unknown), Verdict::Nothing);
    assert_eq!(trial.start(), Kind::Warm);
    start(&mut trial, &[], End::Crashed);
    assert_eq!(trial.start(), Kind::Clean);
}

#[test]
fn crashes_without_anything_installed_are_nobodys_fault() {
    let mut trial = Trial::default();
    for _ in 0..5 {
        assert_eq!(start(&mut trial, &[], End::Crashed), Verdict::Nothing);
        assert_eq!(trial.start(), Kind::Warm);
    }
    assert!(trial.is_empty());
}

#[test]
fn what_came_after_the_first_crash_is_withdrawn_but_not_quarantined() {
    let mut trial = Trial::default();
    start(&mut trial, &[1], End::Crashed);
    start(&mut trial, &[2], End::Crashed);
    assert_eq!(trial.start(), Kind::Clean);
    assert_eq!(trial.suspects().len(), 2);
    assert_eq!(start(&mut trial, &[], End::Ready), Verdict::Quarantine(vec![release(1)]));
}

#[test]
fn entries_that_come_later_join_those_of_the_same_artifact() {
    let mut trial = Trial::default();
    start(&mut trial, &[1], End::Crashed);
    let more = Suspect { entries: [RelPath::new("more").unwrap()].into(), ..suspect(1) };
    trial.begin(boot(0), vec![more, Suspect { root: "/cache/other".into(), ..suspect(1) }], nothing);
    trial.end(End::Crashed);
    let [known, elsewhere] = trial.suspects() else { panic!("{trial:?}") };
    assert_eq!((known.entries.len(), known.crashes), (2, 2));
    assert_eq!((elsewhere.entries.len(), elsewhere.crashes), (1, 1));
}

#[test]
fn an_artifact_in_two_roots_is_quarantined_once() {
    let mut trial = Trial::default();
    trial.begin(boot(0), vec![suspect(1), Suspect { root: "/cache/other".into(), ..suspect(1) }], nothing);
    trial.end(End::Crashed);
    start(&mut trial, &[], End::Crashed);
    assert_eq!(start(&mut trial, &[], End::Ready), Verdict::Quarantine(vec![release(1)]));
}

#[test]
fn a_start_without_an_end_is_a_crash_only_on_the_same_boot() {
    let mut trial = Trial::default();
    start(&mut trial, &[1], End::Crashed);
    trial.begin(boot(0), Vec::new(), nothing);
    let mut rebooted = trial.clone();
    assert_eq!(trial.resume(&boot(0)), Verdict::Nothing);
    assert_eq!(trial.start(), Kind::Clean);
    assert_eq!(rebooted.resume(&boot(1)), Verdict::Nothing);
    assert_eq!(rebooted.start(), Kind::Warm);
    trial.begin(boot(0), Vec::new(), nothing);
    assert_eq!(trial.resume(&boot(0)), Verdict::Exonerated(vec![release(1)]));
    assert_eq!(Trial::default().resume(&boot(0)), Verdict::Nothing);
}

#[test]
fn a_start_with_something_installed_is_not_clean() {
    let mut trial = crashed_twice();
    assert_eq!(start(&mut trial, &[2], End::Ready), Verdict::Nothing);
}

#[test]
fn a_trial_is_the_same_after_it_was_written_and_read() {
    let mut trial = crashed_twice();
    trial.begin(boot(3), vec![suspect(4)], nothing);
    let text = serde_json::to_string(&trial).unwrap();
    assert_eq!(serde_json::from_str::<Trial>(&text).unwrap(), trial);
    assert!(serde_json::from_str::<Trial>(&text.replace("entry-4", "../entry-4")).is_err());
}

#[test]
fn what_was_about_to_be_installed_is_suspect_as_far_as_it_is_there() {
    let mut trial = Trial::default();
    let entry = |n: u8| RelPath::new(&format!("entry-{n}")).unwrap();
    trial.expect(Suspect { entries: [entry(1), entry(2)].into(), ..suspect(1) });
    trial.expect(suspect(3));
    assert!(!trial.is_empty(), "it is written down before it happens");
    // The process is gone; the next one looks what has come.
    assert_eq!(trial.resume(&boot(0)), Verdict::Nothing);
    trial.settle(|root, there| root == Path::new("/cache/triton") && *there == entry(1));
    assert_eq!(trial.suspects(), [suspect(1)]);
    start(&mut trial, &[], End::Crashed);
    start(&mut trial, &[], End::Crashed);
    assert_eq!(trial.start(), Kind::Clean);
}

#[test]
fn what_an_install_told_counts_more_than_what_was_expected_of_it() {
    let mut trial = Trial::default();
    let entry = |n: u8| RelPath::new(&format!("entry-{n}")).unwrap();
    // Somebody else put entry 2 there in the meantime.
    trial.expect(Suspect { entries: [entry(1), entry(2)].into(), ..suspect(1) });
    // Of this install nothing was heard.
    trial.expect(suspect(3));
    trial.begin(boot(0), vec![suspect(1)], |_, _| true);
    assert_eq!(trial.suspects(), [suspect(3), suspect(1)]);
    assert_eq!(trial.end(End::Ready), Verdict::Nothing);
    assert!(trial.is_empty());
}

/// One start of a node: what is installed unless it is clean, how it ends (`None`: without a word), and whether the node
/// boots afterwards.
fn starts() -> impl Strategy<Value = Vec<(Vec<u8>, Option<End>, bool)>> {
    let ends = prop_oneof![
        4 => Just(Some(End::Crashed)),
        2 => Just(Some(End::Ready)),
        1 => Just(Some(End::Unknown)),
        1 => Just(None),
    ];
    prop::collection::vec((prop::collection::vec(0u8..4, 0..3), ends, prop::bool::weighted(0.1)), 0..40)
}

proptest! {
    #[test]
    fn only_a_clean_start_that_worked_quarantines_and_no_two_starts_in_a_row_are_clean(starts in starts()) {
        let mut trial = Trial::default();
        let mut boots = 0;
        let mut before = Kind::Warm;
        // Crashes with each artifact in place since the engine was last ready, by a count of our own.
        let mut crashes: std::collections::BTreeMap<u8, u32> = Default::default();
        for (installed, end, boots_again) in starts {
            let mode = trial.start();
            prop_assert!(!(mode == Kind::Clean && before == Kind::Clean), "two clean starts in a row");
            prop_assert_eq!(mode == Kind::Clean, crashes.values().any(|count| *count >= 2));
            let installed = if mode == Kind::Clean { Vec::new() } else { installed };
            installed.iter().for_each(|n| { crashes.entry(*n).or_insert(0); });
            trial.begin(boot(boots), installed.into_iter().map(suspect).collect(), nothing);
            boots += u8::from(boots_again);
            let (end, verdict) = match end {
                Some(end) => (end, trial.end(end)),
                None if boots_again => (End::Unknown, trial.resume(&boot(boots))),
                None => (End::Crashed, trial.resume(&boot(boots))),
            };
            let guilty: Vec<u8> = crashes.iter().filter(|(_, count)| **count >= 2).map(|(n, _)| *n).collect();
            if let Verdict::Quarantine(releases) = &verdict {
                prop_assert_eq!((mode, end), (Kind::Clean, End::Ready));
                prop_assert!(!releases.is_empty());
                let mut named: Vec<u64> = releases.iter().map(|release| release.generation).collect();
                named.sort_unstable();
                prop_assert_eq!(named, guilty.into_iter().map(u64::from).collect::<Vec<_>>());
            } else {
                prop_assert!((mode, end) != (Kind::Clean, End::Ready));
            }
            match (mode, end) {
                (Kind::Clean, _) | (_, End::Ready) => crashes.clear(),
                (_, End::Crashed) => crashes.values_mut().for_each(|count| *count += 1),
                (_, End::Unknown) => {}
            }
            prop_assert_eq!(trial.end(End::Crashed), Verdict::Nothing, "a start ends once");
            before = mode;
        }
    }
}
