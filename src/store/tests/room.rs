//! What is removed, and what has to be, so that there is room.

use super::*;

#[test]
fn pinned_and_held_artifacts_are_not_removed() {
    let (directory, store) = store();
    let artifact = fetched(&store, &contents(1, 2, 100), 1);
    let id = artifact.id();
    store.pin(&id).unwrap();
    assert!(matches!(store.remove(&id), Err(StoreError::Pinned(_))));
    drop(store);
    let store = open(directory.path());
    assert!(store.get(&id).unwrap().is_pinned(), "pins survive a restart");
    store.unpin(&id).unwrap();
    store.unpin(&id).unwrap();
    let held = store.hold(&id).unwrap();
    let again = held.clone();
    drop(held);
    assert!(matches!(store.remove(&id), Err(StoreError::InUse(_))));
    drop(again);
    assert_eq!(store.remove(&id).unwrap(), 200);
}

#[test]
fn gc_removes_orphans_and_abandoned_partials_after_their_time() {
    let (_directory, store) = store();
    put(&store, &contents(1, 2, 100));
    let two = contents(2, 2, 100);
    let held = store.begin(admitted(&two, 1)).unwrap();
    put(&store, &two[..1]);
    let complete = fetched(&store, &contents(3, 2, 100), 1);
    let now = UnixTime::now();
    assert_eq!(store.gc(now).unwrap(), Swept::default());
    let swept = store.gc(now.after(Duration::from_secs(2 * 3600))).unwrap();
    assert_eq!((swept.orphans, swept.freed_bytes), (2, 200));
    let later = now.after(Duration::from_secs(4 * 24 * 3600));
    assert_eq!(store.gc(later).unwrap(), Swept::default(), "it is still being fetched");
    let partial = held.id();
    drop(held);
    let swept = store.gc(later).unwrap();
    assert_eq!((swept.abandoned, swept.freed_bytes), (vec![partial], 100));
    assert_readable(&store, &complete);
}

#[test]
fn gc_removes_what_is_revoked_unless_it_is_pinned() {
    let (_directory, store) = store();
    let [bad, kept, good] = [1, 2, 3].map(|seed| fetched(&store, &contents(seed, 2, 100), 1));
    store.pin(&kept.id()).unwrap();
    let policy = format!(
        "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[revoked]\nartifacts = [\"{}\", \"{}\"]\n",
        bad.id(),
        kept.id()
    );
    let policy = Policy::parse(&policy).unwrap();
    assert_eq!([&bad, &kept, &good].map(|artifact| artifact.judge(&policy, 1)), [true, true, false]);
    let swept = store.gc(UnixTime::now()).unwrap();
    assert_eq!((swept.revoked, swept.freed_bytes), (vec![bad.id()], 200));
    assert_eq!(
        [&bad, &kept, &good].map(|artifact| artifact.state()),
        [State::Removed, State::Complete, State::Complete]
    );
    assert_readable(&store, &good);
}

#[test]
fn room_is_made_by_evicting_what_was_used_least_recently() {
    let directory = scratch();
    let config = Config { max_bytes: Some(10_000), ..config(directory.path()) };
    let store = Store::open(&config, Metrics::default()).unwrap();
    let artifacts: Vec<_> = (1..=3).map(|seed| fetched(&store, &contents(seed, 3, 1000), 1)).collect();
    let now = UnixTime::now();
    for (artifact, seconds) in artifacts.iter().zip([20, 10, 30]) {
        store.touch(artifact, now.after(Duration::from_secs(seconds)));
    }
    let held = store.begin(admitted(&contents(4, 3, 1000), 1)).unwrap();
    let states: Vec<State> = artifacts.iter().map(|artifact| artifact.state()).collect();
    assert_eq!(states, [State::Complete, State::Removed, State::Complete]);
    store.pin(&artifacts[0].id()).unwrap();
    let refused = store.begin(admitted(&contents(5, 5, 1000), 1)).unwrap_err();
    assert!(matches!(refused, StoreError::OverLimit { .. }) && refused.is_no_space(), "{refused}");
    assert_eq!(artifacts[2].state(), State::Complete, "nothing is evicted where that would not be enough");
    assert_eq!(store.list().len(), 3, "nothing is left of the one refused");
    put(&store, &contents(4, 3, 1000));
    assert_readable(&store, &held);
    let metrics = &store.shared.metrics;
    assert_eq!((metrics.evictions.get(), metrics.bytes.get(), metrics.chunks.get()), (1, 9000, 9));
    assert_eq!((metrics.complete.get(), metrics.partial.get()), (2, 1));
}

#[test]
fn chunks_that_a_new_artifact_shares_are_not_evicted_to_make_room_for_it() {
    let directory = scratch();
    let config = Config { max_bytes: Some(10_000), ..config(directory.path()) };
    let store = Store::open(&config, Metrics::default()).unwrap();
    let all = contents(1, 14, 1000);
    let old = fetched(&store, &all[..9], 1);
    let held = store.begin(admitted(&all[4..], 2)).unwrap();
    assert_eq!(old.state(), State::Removed);
    assert_eq!(held.progress().bytes, 5000);
    put(&store, &all[4..]);
    store.seal(&held.id()).unwrap();
    assert_readable(&store, &held);
}

#[test]
fn artifacts_that_only_share_chunks_with_each_other_can_be_evicted() {
    let directory = scratch();
    let config = Config { max_bytes: Some(10_000), ..config(directory.path()) };
    let store = Store::open(&config, Metrics::default()).unwrap();
    let all = contents(1, 9, 1000);
    let same = [fetched(&store, &all, 1), fetched(&store, &all, 2)];
    store.make_room(5000).unwrap();
    assert!(same.iter().all(|artifact| artifact.state() == State::Removed));
    assert_eq!(store.usage(), 0);
}

#[test]
fn the_reserve_is_never_crossed() {
    let directory = scratch();
    let config = Config { reserve_bytes: Some(u64::MAX / 2), ..config(directory.path()) };
    let store = Store::open(&config, Metrics::default()).unwrap();
    let contents = contents(1, 1, 100);
    assert!(matches!(store.begin(admitted(&contents, 1)), Err(StoreError::NoSpace { needed: 100, .. })));
    let put = store.put_chunk(&Digest::of(&contents[0]), &contents[0]);
    assert!(matches!(put, Err(StoreError::NoSpace { .. })));
    assert!(store.list().is_empty());
    assert_eq!(std::fs::read_dir(store.shared.layout.partials()).unwrap().count(), 0);
}

#[test]
fn room_promised_to_one_fetch_is_not_promised_to_another() {
    let directory = scratch();
    let config = Config { max_bytes: Some(10_000), ..config(directory.path()) };
    let store = Store::open(&config, Metrics::default()).unwrap();
    let held = store.begin(admitted(&contents(1, 6, 1000), 1)).unwrap();
    assert!(store.begin(admitted(&contents(2, 6, 1000), 1)).unwrap_err().is_no_space());
    drop(held);
    store.begin(admitted(&contents(2, 6, 1000), 1)).unwrap();
}

#[test]
fn a_chunk_that_somebody_brought_again_is_not_abandoned_with_the_first() {
    let (_directory, store) = store();
    let content = contents(1, 1, 100).remove(0);
    let digest = Digest::of(&content);
    let first = store.put_new_chunk(&digest, &content).unwrap().unwrap();
    assert!(store.put_new_chunk(&digest, &content).unwrap().is_none());
    store.abandon(&[(digest, first)]);
    assert_eq!(store.gc(UnixTime::now()).unwrap().orphans, 0, "both within one second");
    let other = noise(7, 100);
    let brought = store.put_new_chunk(&Digest::of(&other), &other).unwrap().unwrap();
    store.abandon(&[(Digest::of(&other), brought)]);
    assert_eq!(store.gc(UnixTime::now()).unwrap().orphans, 1);
}

#[test]
fn what_the_limits_are_is_told_when_they_change() {
    let (_directory, store) = store();
    let told = || (store.shared.metrics.limit_bytes.get(), store.shared.metrics.reserve_bytes.get());
    assert_eq!(told(), (0, 0));
    store.set_limits(store.limits_of(Some(7000), Some(500)).unwrap());
    assert_eq!(told(), (7000, 500));
}
