use proptest::prelude::*;

use super::*;
use crate::digest::{ArtifactId, IdentityId};

fn now(seconds: u64) -> UnixTime {
    UnixTime::from_seconds(NOW + seconds)
}

fn identity() -> IdentityId {
    IdentityId::of(b"identity")
}

fn negative(marker: Marker) -> NegativeMarker {
    match marker {
        Marker::Negative(negative) => negative,
        Marker::Installed(installed) => panic!("{installed:?}"),
    }
}

const BOOT: &str = "6f1bd1a4-3f2c-4c70-9f6a-0c8c5d7a1b2e";

#[test]
fn golden_bytes_of_both_markers() {
    let installed = Marker::Installed(InstalledMarker {
        artifacts: vec![ArtifactId::of(b"artifact")],
        boot: BOOT.parse().unwrap(),
        scope: "pod-1".into(),
    });
    let negative = Marker::Negative(NegativeMarker {
        class: NegativeClass::NoSpace,
        until: Some(UnixTime::from_seconds(NOW)),
        detail: "no room".into(),
        attempts: 3,
        policy_version: 7,
    });
    for (marker, golden) in [(installed, GOLDEN_INSTALLED), (negative, GOLDEN_NEGATIVE)] {
        assert_eq!(marker.to_record(), golden);
        assert_eq!(Marker::from_record(golden), Some(marker));
    }
}

// CRC32C of the rest, the rest, a line end.
const GOLDEN_INSTALLED: &str = concat!(
    r#"db3274ce {"state":"installed","#,
    r#""artifacts":["e068dc010bf492707f7e8d896457770f24703784cfe76bd785f8b76cc010bbf3"],"#,
    r#""boot":"6f1bd1a4-3f2c-4c70-9f6a-0c8c5d7a1b2e","scope":"pod-1"}"#,
    "\n"
);
const GOLDEN_NEGATIVE: &str = concat!(
    r#"4adc8717 {"state":"negative","class":"no-space","until":"2027-01-15T08:00:00Z","#,
    r#""detail":"no room","attempts":3,"policy_version":7}"#,
    "\n"
);

#[test]
fn a_marker_that_is_torn_damaged_or_of_a_later_version_counts_as_none() {
    for end in 0..GOLDEN_NEGATIVE.len() {
        assert_eq!(Marker::from_record(&GOLDEN_NEGATIVE[..end]), None, "cut at {end}");
    }
    for json in [r#"{"state":"future"}"#, r#"{"state":"installed","artifacts":[],"boot":"x","scope":""}"#] {
        assert_eq!(Marker::from_record(&crate::durable::frame_record(json)), None, "{json}");
    }
    let (_dir, root) = root();
    std::fs::write(root.path().join(".warmd/markers").join(format!("{}.json", identity())), b"\xff\xfe garbage")
        .unwrap();
    assert_eq!(root.marker(&identity()).unwrap(), None);
}

#[test]
fn an_install_leaves_a_marker_with_artifact_boot_and_scope() {
    let (dir, _) = root();
    let root = CacheRoot::open(&dir.path().join("cache")).unwrap().with_scope("pod-1");
    let fixture = small();
    let id = fixture.manifest().identity.id();
    root.write_negative(&id, NegativeClass::NoneFound, "nobody", now(0), 1).unwrap();
    fixture.install(&root).unwrap();
    let expected = InstalledMarker {
        artifacts: vec![fixture.admitted.id()],
        boot: BootId::current().unwrap(),
        scope: "pod-1".into(),
    };
    assert_eq!(root.marker(&id).unwrap(), Some(Marker::Installed(expected.clone())));

    let second = Fixture::altered(Tree::from([("other".into(), plain(noise(5, 50)))]), |draft| draft.generation = 2);
    second.install(&root).unwrap();
    let artifacts = vec![fixture.admitted.id(), second.admitted.id()];
    assert_eq!(root.marker(&id).unwrap(), Some(Marker::Installed(InstalledMarker { artifacts, ..expected })));
}

#[test]
fn what_another_boot_or_scope_installed_is_not_carried_over() {
    let marker = |boot: &str, scope: &str| InstalledMarker {
        artifacts: vec![ArtifactId::of(b"old")],
        boot: boot.parse().unwrap(),
        scope: scope.into(),
    };
    let adding = |before: InstalledMarker| {
        let boot = BOOT.parse().unwrap();
        InstalledMarker::adding(ArtifactId::of(b"new"), boot, "pod-1", Some(Marker::Installed(before))).artifacts
    };
    assert_eq!(adding(marker(BOOT, "pod-1")), [ArtifactId::of(b"old"), ArtifactId::of(b"new")]);
    assert_eq!(adding(marker(BOOT, "pod-2")), [ArtifactId::of(b"new")]);
    assert_eq!(adding(marker(&BOOT.replace('6', "7"), "pod-1")), [ArtifactId::of(b"new")]);
}

#[test]
fn failures_in_a_row_are_counted_and_an_announcement_clears_them() {
    let (_dir, root) = root();
    for attempt in 1..=3 {
        let marker = root.write_negative(&identity(), NegativeClass::Transient, "peer died", now(0), 1).unwrap();
        assert_eq!(root.marker(&identity()).unwrap(), Some(marker.clone()));
        assert_eq!(negative(marker).attempts, attempt);
    }
    assert!(root.clear_negative(&identity()).unwrap());
    assert!(!root.clear_negative(&identity()).unwrap());
    assert_eq!(root.marker(&identity()).unwrap(), None);
    let again = root.write_negative(&identity(), NegativeClass::Transient, "peer died", now(0), 1).unwrap();
    assert_eq!(negative(again).attempts, 1);
    assert!(staging_is_empty(root.path()));
}

#[test]
fn a_failure_after_an_install_does_not_hide_what_is_installed() {
    let (_dir, root) = root();
    let fixture = small();
    fixture.install(&root).unwrap();
    let id = fixture.manifest().identity.id();
    let kept = root.write_negative(&id, NegativeClass::Transient, "newer one failed", now(0), 1).unwrap();
    assert!(matches!(kept, Marker::Installed(_)));
    assert!(!root.clear_negative(&id).unwrap());
    assert_eq!(root.marker(&id).unwrap(), Some(kept));
}

#[test]
fn untrusted_holds_until_the_policy_changes_and_others_until_their_time() {
    let (_dir, root) = root();
    let untrusted = negative(root.write_negative(&identity(), NegativeClass::Untrusted, "", now(0), 4).unwrap());
    assert!(untrusted.holds(now(1_000_000), 4));
    assert!(!untrusted.holds(now(0), 5));
    root.clear_negative(&identity()).unwrap();
    let transient = negative(root.write_negative(&identity(), NegativeClass::Transient, "", now(0), 4).unwrap());
    assert!(transient.holds(now(0), 5) && transient.holds(now(3), 4));
    assert!(!transient.holds(now(5), 4));
    // Written by a clock that ran an hour ahead of ours.
    assert!(!transient.holds(UnixTime::from_seconds(NOW - 3600), 4));
}

#[test]
fn a_long_detail_is_cut_at_a_character() {
    let (_dir, root) = root();
    let marker = root.write_negative(&identity(), NegativeClass::Transient, &"é".repeat(5000), now(0), 1).unwrap();
    assert_eq!(negative(marker).detail, "é".repeat(512));
}

proptest! {
    #[test]
    fn ttl_grows_with_attempts_stays_in_bounds_and_jitter_only_shortens_it(
        attempts in any::<u32>(), jitter in 0.0..=1.0f64, other in prop::num::f64::ANY,
    ) {
        let ttl = |attempts, jitter| negative_ttl(NegativeClass::Transient, attempts, jitter).unwrap();
        let full = ttl(attempts, 0.0);
        prop_assert!(ttl(attempts, jitter) <= ttl(attempts.saturating_add(1), jitter));
        prop_assert!(full >= Duration::from_secs(5) && full <= Duration::from_secs(60));
        for jitter in [jitter, other] {
            prop_assert!(ttl(attempts, jitter) <= full && ttl(attempts, jitter) >= full.mul_f64(0.799));
        }
        prop_assert_eq!(negative_ttl(NegativeClass::Untrusted, attempts, jitter), None);
    }
}

#[test]
fn ttl_is_5_10_20_40_60_seconds() {
    let full = |attempts| negative_ttl(NegativeClass::NoneFound, attempts, 0.0).unwrap().as_secs();
    assert_eq!([1, 2, 3, 4, 5, 6, 1000].map(full), [5, 10, 20, 40, 60, 60, 60]);
}
