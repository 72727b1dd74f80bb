//! What the plan does when holders are late, busy, gone or lying.

use super::*;

const KIB: u32 = 1 << 10;

fn busy(ms: u64) -> Failure {
    Failure::Busy { retry_after: Duration::from_millis(ms) }
}

#[test]
fn no_first_byte_in_time_ends_the_request_and_its_chunks_go_elsewhere() {
    let mut driver = Driver::of(1, MIB);
    driver.holder(0, 0..1);
    let request = driver.drain()[0].0;
    driver.holder(1, []);
    driver.drain();
    driver.tell(node(1), 0..1);
    driver.now += PlanConfig::default().first_byte;
    assert!(driver.plan.next_deadline() <= Some(driver.now));
    let again = driver.drain();
    assert!(driver.cancelled.contains(&request));
    assert_eq!(again[0].1.node, node(1));
}

#[test]
fn one_byte_a_second_is_no_progress() {
    let mut driver = Driver::of(1, MIB);
    driver.holder(0, 0..1);
    let request = driver.drain()[0].0;
    for _ in 0..6 {
        driver.pass(1000);
        driver.plan.on_bytes(request, 1, driver.now);
        driver.drain();
    }
    assert_eq!(driver.cancelled, [request]);
}

#[test]
fn steady_progress_is_limited_by_the_total_deadline_only() {
    let mut driver = Driver::of(1, 4 * MIB);
    driver.holder(0, 0..1);
    let request = driver.drain()[0].0;
    for second in 1..=60 {
        driver.pass(1000);
        driver.plan.on_bytes(request, 33 << 10, driver.now);
        driver.drain();
        assert_eq!(driver.cancelled.len(), usize::from(second == 60), "after {second} s");
    }
}

#[test]
fn a_silent_holder_is_given_up_after_a_few_attempts() {
    let mut driver = Driver::of(4, MIB);
    driver.holder(0, 0..4);
    for _ in 0..100 {
        driver.drain();
        driver.now = driver.plan.next_deadline().unwrap_or(driver.now);
    }
    assert_eq!(driver.plan.gone(node(0)), Some(Gone::Unreachable));
    assert_eq!(driver.plan.is_stuck(driver.now), Some(Stuck::Unreachable));
    assert!(driver.cancelled.len() <= 8, "{}", driver.cancelled.len());
}

#[test]
fn a_busy_holder_is_left_alone_for_as_long_as_it_says() {
    let mut driver = Driver::of(10, MIB);
    driver.holder(0, 0..10);
    let request = driver.drain()[0].0;
    driver.fail(request, busy(400));
    assert!(driver.drain().is_empty());
    assert_eq!(driver.plan.is_stuck(driver.now), None);
    let wake = driver.plan.next_deadline().unwrap() - driver.now;
    assert!((300..=500).contains(&wake.as_millis()), "{wake:?}");
    driver.now += wake;
    assert_eq!(driver.drain()[0].1.node, node(0));
    driver.holder(1, 0..10);
    driver.fail(driver.plan.requests.keys().next().copied().unwrap(), busy(60_000));
    assert!(driver.drain().iter().all(|(_, open)| open.node == node(1)));
    let wake = driver.plan.holder_deadline(0).unwrap() - driver.now;
    assert!(wake < Duration::from_secs(7), "nobody sends us away for ever: {wake:?}");
}

#[test]
fn a_holder_without_a_second_slot_is_asked_for_one_stream() {
    let mut driver = Driver::of(200, MIB);
    driver.holder(0, 0..200);
    let mut most_late = 0;
    for round in 0..60 {
        driver.drain();
        let open: Vec<RequestId> = driver.open.keys().copied().collect();
        if round > 2 {
            most_late = most_late.max(open.len());
        }
        open.iter().skip(1).for_each(|request| driver.fail(*request, busy(1)));
        driver.pass(2);
        driver.bring(open[0]);
    }
    assert_eq!(most_late, 1);
}

#[test]
fn a_broken_stream_loses_only_what_did_not_arrive() {
    let mut driver = Driver::of(64, KIB);
    driver.holder(0, 0..64);
    let (request, open) = driver.drain()[0].clone();
    let arrived = open.left.len() / 2;
    (0..arrived).for_each(|_| driver.bring(request));
    driver.fail(request, Failure::Disconnected);
    driver.holder(1, 0..64);
    driver.run_to_the_end(1000);
    assert_eq!(driver.plan.progress().bytes_done, 64 << 10);
}

#[test]
fn a_resumed_fetch_asks_for_the_rest_only() {
    let have = bitmap(100, (0..100).filter(|index| index % 3 != 0));
    let mut driver = Driver::new(PlanConfig::default(), vec![MIB; 100], &have, 7);
    assert_eq!(driver.plan.progress().chunks_done, 66);
    driver.holder(0, 0..100);
    driver.run_to_the_end(1000);
    let mut whole = Driver::new(PlanConfig::default(), vec![MIB; 100], &Bitmap::full(100), 7);
    assert!(whole.plan.is_complete() && whole.drain().is_empty());
    assert_eq!((whole.plan.next_deadline(), whole.plan.is_stuck(whole.now)), (None, None));
}

#[test]
fn an_artifact_without_chunks_is_complete() {
    let plan = Plan::new(PlanConfig::default(), Vec::new(), &Bitmap::empty(0), 1);
    assert!(plan.is_complete());
}

#[test]
fn one_bad_chunk_ends_the_holder_for_good() {
    let mut driver = Driver::of(100, MIB);
    let liar = driver.holder(0, 0..100);
    let request = driver.drain()[0].0;
    driver.deliver(request);
    driver.pass(1);
    driver.drain();
    let open: BTreeSet<RequestId> = driver.open.keys().copied().collect();
    driver.lie(*open.first().unwrap());
    driver.drain();
    assert_eq!(driver.cancelled.iter().copied().collect::<BTreeSet<_>>(), open);
    assert_eq!(driver.plan.gone(liar), Some(Gone::Bad));
    assert_eq!(driver.plan.is_stuck(driver.now), Some(Stuck::Refused));
    assert!(!driver.plan.add_holder(liar, Locality::SameRack, driver.now));
    driver.holder(1, 0..100);
    driver.run_to_the_end(1000);
}

#[test]
fn a_chunk_of_a_cancelled_request_counts_and_a_bad_one_still_bars() {
    let (mut driver, slow) = silent_and_idle();
    driver.now += Duration::from_secs(5);
    driver.drain();
    assert!(driver.cancelled.contains(&slow));
    let missing = driver.all().find(|index| !driver.done.contains(index)).unwrap();
    assert_eq!(driver.plan.on_chunk(slow, missing, driver.now), ChunkOutcome::New);
    driver.plan.on_bad_chunk(slow, driver.now);
    assert_eq!(driver.plan.gone(node(0)), Some(Gone::Bad));
}

#[test]
fn a_draining_holder_is_back_when_it_is_added_again_and_a_forbidding_one_is_not() {
    for (failure, gone, back) in [
        (Failure::Draining, Gone::Draining, true),
        (Failure::NotFound, Gone::NotFound, true),
        (Failure::Forbidden, Gone::Forbidden, false),
    ] {
        let mut driver = Driver::of(4, MIB);
        let holder = driver.holder(0, 0..4);
        let request = driver.drain()[0].0;
        driver.fail(request, failure);
        assert!(driver.drain().is_empty());
        assert_eq!(driver.plan.gone(holder), Some(gone));
        assert_eq!(driver.plan.add_holder(holder, Locality::Other, driver.now), back);
        driver.drain();
        assert_eq!(driver.asked.contains_key(&holder), back);
    }
}

#[test]
fn a_refusal_outlives_later_failures_of_the_same_holder() {
    let mut driver = Driver::of(200, MIB);
    let holder = driver.holder(0, 0..200);
    for failure in
        [Failure::Forbidden, Failure::Reset, Failure::Reset, Failure::Reset, Failure::Reset, Failure::Draining]
    {
        driver.plan.on_have_failed(holder, failure, driver.now);
        let slot = driver.plan.slot(holder).unwrap();
        driver.plan.fail(slot, failure, driver.now);
        driver.pass(10_000);
    }
    assert_eq!(driver.plan.gone(holder), Some(Gone::Forbidden));
}

#[test]
fn a_request_that_ended_by_itself_is_not_cancelled_afterwards() {
    let (mut driver, slow) = silent_and_idle();
    driver.drain();
    driver.pass(200);
    driver.drain();
    let copy = *driver.open.last_key_value().unwrap().0;
    driver.deliver(slow);
    driver.fail(copy, Failure::Reset);
    driver.drain();
    assert_eq!(driver.cancelled, []);
}

#[test]
fn failures_of_streams_that_were_open_together_count_once() {
    let mut driver = Driver::of(200, MIB);
    driver.holder(0, 0..200);
    let first = driver.drain()[0].0;
    driver.pass(1);
    driver.plan.on_bytes(first, 1_000_000, driver.now);
    driver.drain();
    let open: Vec<RequestId> = driver.open.keys().copied().collect();
    assert!(open.len() >= 2);
    open.into_iter().for_each(|request| driver.fail(request, Failure::Disconnected));
    assert_eq!(driver.plan.gone(node(0)), None);
    driver.pass(100);
    assert!(!driver.drain().is_empty());
}

#[test]
fn a_partial_holder_is_asked_again_for_its_bitmap_but_not_all_the_time() {
    let mut driver = Driver::of(10, MIB);
    driver.holder(0, []);
    let mut asked = 0;
    for _ in 0..10_000 {
        driver.drain();
        if driver.asked.contains_key(&node(0)) {
            asked += 1;
            driver.tell(node(0), []);
        }
        driver.pass(1);
    }
    assert!((30..60).contains(&asked), "{asked}");
    assert_eq!(driver.plan.is_stuck(driver.now), Some(Stuck::NotHeld { chunks: 10 }));
    driver.tell(node(0), 0..3);
    assert_eq!(driver.plan.is_stuck(driver.now), None);
    assert_eq!(driver.drain()[0].1.node, node(0));
}

#[test]
fn a_bitmap_of_the_wrong_length_is_a_failure() {
    let mut driver = Driver::of(10, MIB);
    driver.holder(0, []);
    for _ in 0..4 {
        driver.pass(10_000);
        driver.plan.set_have(node(0), Have::Some(Bitmap::full(11)), driver.now);
    }
    assert_eq!(driver.plan.gone(node(0)), Some(Gone::Unreachable));
}

#[test]
fn a_holder_that_never_tells_what_it_has_is_given_up() {
    let mut driver = Driver::of(10, MIB);
    driver.plan.add_holder(node(0), Locality::Other, driver.now);
    for _ in 0..20 {
        driver.drain();
        driver.asked.clear();
        driver.now = driver.plan.next_deadline().unwrap_or(driver.now);
    }
    assert_eq!(driver.plan.is_stuck(driver.now), Some(Stuck::Unreachable));
}

#[test]
fn without_holders_it_is_stuck_at_once() {
    let driver = Driver::of(10, MIB);
    assert_eq!(driver.plan.is_stuck(driver.now), Some(Stuck::NoHolders));
}

#[test]
fn the_place_of_a_holder_that_is_gone_goes_to_another_and_a_liar_stays_barred() {
    let mut driver = Driver::of(400, MIB);
    for number in 0..MAX_HOLDERS {
        driver.holder(number, 0..400);
    }
    assert!(!driver.plan.add_holder(node(200), Locality::Other, driver.now));
    let (request, open) = driver.drain()[0].clone();
    driver.lie(request);
    driver.drain();
    driver.fail(request, Failure::Reset);
    driver.holder(200, 0..400);
    assert!(driver.plan.slot(open.node).is_none());
    assert!(!driver.plan.add_holder(open.node, Locality::Other, driver.now));
    driver.run_to_the_end(1000);
}

/// Whoever is asked brings what it is asked for, but `busy_node` and the complete holder send us away, until they have done
/// so often enough.
fn sent_away_by(driver: &mut Driver, busy_node: NodeId, complete: NodeId) {
    let mut times = 0;
    while times < SENT_AWAY {
        driver.drain();
        let open: Vec<(RequestId, NodeId)> = driver.open.iter().map(|(request, open)| (*request, open.node)).collect();
        for (request, node) in open {
            times += u32::from(node == busy_node);
            match node == busy_node || node == complete {
                true => driver.fail(request, busy(1)),
                false => driver.bring(request),
            }
        }
        driver.pass(2);
    }
    driver.drain();
    let open: Vec<RequestId> = driver.open.keys().copied().collect();
    open.into_iter().for_each(|request| driver.fail(request, busy(1)));
}

#[test]
fn a_neighbour_that_always_sends_us_away_gives_its_place_to_one_that_is_named_and_a_complete_holder_keeps_its_own() {
    let mut driver = Driver::of(4000, 64 * KIB);
    driver.complete(0);
    for number in 1..MAX_NEIGHBOURS {
        assert!(driver.plan.add_neighbour(node(number), driver.now));
        driver.tell(node(number), 0..3999);
    }
    assert!(!driver.plan.add_neighbour(node(100), driver.now), "all bring something");
    sent_away_by(&mut driver, node(1), node(0));
    assert!(driver.plan.add_neighbour(node(100), driver.now));
    assert!(!driver.plan.knows(node(1)) && driver.plan.knows(node(0)) && driver.plan.knows(node(100)));
    assert!(!driver.plan.add_neighbour(node(1), driver.now), "all others bring something");
    driver.tell(node(100), 0..3999);
    driver.run_to_the_end(5000);
}
