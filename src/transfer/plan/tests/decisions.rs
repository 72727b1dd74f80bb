use super::*;

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

fn busy(ms: u64) -> Failure {
    Failure::Busy { retry_after: Duration::from_millis(ms) }
}

#[test]
fn the_rarest_chunks_are_asked_for_first() {
    for seed in 0..20 {
        let mut driver = Driver::new(PlanConfig::default(), vec![64 * KIB; 40], &Bitmap::empty(40), seed);
        let origin = driver.holder(0, 0..40);
        driver.holder(1, 0..30);
        driver.holder(2, 0..20);
        for (_, open) in driver.drain() {
            let rarest = if open.node == origin { 30..40 } else { 20..30 };
            let common = open.left.iter().filter(|index| !rarest.contains(*index)).count();
            assert!(common == 0 || open.node == node(2), "seed {seed}: {open:?}");
        }
    }
}

#[test]
fn nodes_begin_at_different_places() {
    let firsts: BTreeSet<u32> = (0..32)
        .map(|seed| {
            let mut driver = Driver::new(PlanConfig::default(), vec![MIB; 1000], &Bitmap::empty(1000), seed);
            driver.holder(0, 0..1000);
            driver.drain()[0].1.left[0]
        })
        .collect();
    assert!(firsts.len() > 24, "{firsts:?}");
}

#[test]
fn of_two_holders_the_nearer_is_asked_first() {
    for seed in 0..20 {
        let mut driver = Driver::new(PlanConfig::default(), vec![MIB; 100], &Bitmap::empty(100), seed);
        for (number, locality) in [(0, Locality::Other), (1, Locality::SameRack)] {
            driver.plan.add_holder(node(number), locality, driver.now);
            driver.tell(node(number), 0..100);
        }
        assert_eq!(driver.drain()[0].1.node, node(1), "seed {seed}");
    }
}

#[test]
fn of_two_holders_the_faster_gets_more() {
    let mut driver = Driver::of(400, MIB);
    let slow = driver.holder(0, 0..400);
    driver.holder(1, 0..400);
    let mut brought = BTreeMap::new();
    for round in 0..200 {
        driver.drain();
        driver.pass(2);
        let open: Vec<(RequestId, NodeId)> = driver.open.iter().map(|(id, open)| (*id, open.node)).collect();
        for (request, from) in open {
            // The slow one needs four times as long for each chunk.
            if (from != slow || round % 4 == 0) && driver.deliver(request).is_some() {
                *brought.entry(from).or_insert(0) += 1;
            }
        }
    }
    assert!(brought[&node(1)] > 2 * brought[&slow], "{brought:?}");
}

#[test]
fn small_chunks_are_asked_for_in_batches_and_two_requests_ahead() {
    let mut driver = Driver::of(5000, KIB);
    driver.holder(0, 0..5000);
    let first = driver.drain();
    assert_eq!(first[0].1.left.len(), 64);
    driver.pass(1);
    driver.plan.on_bytes(first[0].0, 16 << 10, driver.now);
    let more = driver.drain();
    assert!(!more.is_empty() && more.iter().all(|(_, open)| open.left.len() == 64), "{more:?}");
}

#[test]
fn the_pipe_of_a_distant_fast_holder_is_kept_full() {
    let mut driver = Driver::of(200, MIB);
    driver.holder(0, 0..200);
    let first = driver.drain()[0].0;
    driver.pass(20);
    driver.plan.on_first_byte(first, driver.now);
    driver.pass(1);
    // About 1 GB/s behind 20 ms: 20 MB are under way at any time.
    driver.plan.on_bytes(first, 1_000_000, driver.now);
    let ahead: usize = driver.drain().iter().map(|(_, open)| open.left.len()).sum();
    assert!(ahead >= 20, "{ahead}");
}

#[test]
fn near_the_end_no_holder_takes_more_than_its_part() {
    let mut driver = Driver::of(60, MIB);
    for number in 0..3 {
        driver.holder(number, 0..60);
    }
    let mut largest_late = 0;
    while !driver.plan.is_complete() {
        for (_, open) in driver.drain() {
            if driver.done.len() > 40 {
                largest_late = largest_late.max(open.left.len());
            }
        }
        driver.pass(1);
        let open: Vec<RequestId> = driver.open.keys().copied().collect();
        open.into_iter().for_each(|request| drop(driver.deliver(request)));
    }
    assert!((1..=3).contains(&largest_late), "{largest_late}");
}

#[test]
fn slow_and_untried_holders_fill_only_a_quarter_of_the_memory() {
    let mut driver = Driver::of(400, 4 * MIB);
    driver.holder(0, 0..400);
    let first = driver.drain()[0].0;
    driver.pass(1);
    driver.plan.on_bytes(first, 1_000_000, driver.now);
    for number in 1..20 {
        driver.holder(number, 0..400);
    }
    driver.drain();
    let untried: usize = driver.open.values().filter(|open| open.node != node(0)).map(|open| open.left.len()).sum();
    assert_eq!(untried, 3);
    assert!(driver.open.values().filter(|open| open.node == node(0)).count() > 1);
}

/// Node 0 got a request and is silent since then; node 1 has brought everything else and has nothing to do.
fn silent_and_idle() -> (Driver, RequestId) {
    let mut driver = Driver::of(8, MIB);
    driver.holder(0, 0..4);
    let slow = driver.drain()[0].0;
    let kept = driver.open[&slow].left.len();
    driver.holder(1, 0..8);
    while driver.done.len() < 8 - kept {
        driver.drain();
        let fast = driver.open.iter().find(|(_, open)| open.node == node(1)).map(|(request, _)| *request);
        drop(driver.deliver(fast.expect("the fast one is asked")));
    }
    (driver, slow)
}

#[test]
fn an_idle_holder_duplicates_what_a_silent_one_owes_and_the_loser_is_stopped() {
    let (mut driver, slow) = silent_and_idle();
    assert!(driver.drain().is_empty(), "not at once");
    driver.now = driver.plan.next_deadline().expect("another look").max(driver.now);
    driver.pass(200);
    let (copy, open) = driver.drain()[0].clone();
    assert_eq!((open.node, open.left.last()), (node(1), driver.open[&slow].left.last()));
    driver.pass(1);
    (0..open.left.len()).for_each(|_| assert_eq!(driver.deliver(copy), Some(ChunkOutcome::New)));
    driver.drain();
    assert!(driver.plan.is_complete());
    assert_eq!(driver.cancelled, [slow]);
    assert_eq!(driver.plan.gone(node(0)), None);
    assert_eq!(driver.plan.on_chunk(slow, open.left[0], driver.now), ChunkOutcome::Duplicate);
}

#[test]
fn the_owner_may_win_against_the_copy() {
    let (mut driver, slow) = silent_and_idle();
    driver.drain();
    driver.pass(200);
    driver.drain();
    let (copy, open) = driver.open.last_key_value().map(|(request, open)| (*request, open.clone())).unwrap();
    assert_eq!((open.node, &open.left), (node(1), &driver.open[&slow].left));
    assert_eq!(driver.deliver(slow), Some(ChunkOutcome::New));
    driver.drain();
    assert!(driver.plan.is_complete());
    assert_eq!(driver.cancelled, [copy]);
}

#[test]
fn steady_equal_holders_do_not_duplicate() {
    let mut driver = Driver::of(64, MIB);
    for number in 0..3 {
        driver.holder(number, 0..64);
    }
    let mut asked = 0;
    while !driver.plan.is_complete() {
        asked += driver.drain().iter().map(|(_, open)| open.left.len()).sum::<usize>();
        driver.pass(2);
        let mut served = BTreeSet::new();
        let open: Vec<(RequestId, NodeId)> = driver.open.iter().map(|(id, open)| (*id, open.node)).collect();
        open.into_iter()
            .filter(|(_, from)| served.insert(*from))
            .for_each(|(request, _)| drop(driver.deliver(request)));
    }
    assert_eq!(asked, 64);
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
        let requests = driver.drain();
        let open: Vec<RequestId> = driver.open.keys().copied().collect();
        if round > 2 {
            most_late = most_late.max(open.len());
        }
        open.iter().skip(1).for_each(|request| driver.fail(*request, busy(1)));
        driver.pass(2);
        drop((requests, open.first().and_then(|request| driver.deliver(*request))));
    }
    assert_eq!(most_late, 1);
}

#[test]
fn a_broken_stream_loses_only_what_did_not_arrive() {
    let mut driver = Driver::of(64, KIB);
    driver.holder(0, 0..64);
    let (request, open) = driver.drain()[0].clone();
    let arrived = open.left.len() / 2;
    (0..arrived).for_each(|_| drop(driver.deliver(request)));
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
    driver.plan.on_bad_chunk(slow, missing, driver.now);
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
