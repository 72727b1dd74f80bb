//! Whom the plan asks for what.

use super::*;

const KIB: u32 = 1 << 10;
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
fn what_a_complete_holder_gave_to_others_is_asked_of_it_last_and_without_a_condition() {
    let mut driver = Driver::of(4, MIB);
    driver.complete(0);
    let (first, open) = driver.drain()[0].clone();
    let left = (open.left[0] + 1) % 4;
    driver.given(first, (0..4).filter(|index| *index != left));
    let (second, other) = driver.drain()[0].clone();
    assert!(other.left == [left] && driver.fresh.contains(&second));
    assert_eq!(driver.plan.gone(node(0)), None);
    driver.deliver(second);
    let (third, _) = driver.drain()[0].clone();
    assert!(!driver.fresh.contains(&third), "nobody else is known");
}

#[test]
fn what_was_given_to_others_is_waited_for_while_they_grow_and_asked_for_when_nothing_comes() {
    let mut driver = Driver::of(12, MIB);
    driver.complete(0);
    driver.holder(1, [0]);
    driver.holder(2, [1]);
    driver.drain();
    for request in driver.fresh.clone() {
        let all = driver.all();
        driver.given(request, all);
    }
    assert!(driver.drain().is_empty(), "the others bring something, and will have the rest");
    while let Some(request) = driver.open.keys().next().copied() {
        driver.bring(request);
    }
    let (request, open) = driver.drain()[0].clone();
    assert!(open.node == node(0) && !driver.fresh.contains(&request));
}

#[test]
fn a_holder_that_refuses_fresh_chunks_without_a_reason_is_not_asked_again() {
    let mut driver = Driver::of(4, MIB);
    driver.complete(0);
    let first = driver.drain()[0].0;
    driver.given(first, []);
    assert_eq!(driver.plan.gone(node(0)), Some(Gone::Forbidden));
    assert!(driver.drain().is_empty());
}

#[test]
fn a_chunk_given_to_somebody_who_never_tells_of_it_becomes_fresh_again() {
    let mut driver = Driver::of(4, MIB);
    driver.complete(0);
    let first = driver.drain()[0].0;
    let all = driver.all();
    driver.given(first, all);
    let insisted = driver.drain()[0].0;
    driver.pass(6_000);
    driver.fail(insisted, Failure::Reset);
    driver.pass(200);
    let again = driver.drain()[0].0;
    assert!(!driver.fresh.contains(&insisted) && driver.fresh.contains(&again));
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
        open.into_iter().for_each(|request| driver.bring(request));
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
fn a_holder_that_was_fast_and_is_silent_is_not_waited_for() {
    let mut driver = Driver::of(40, 64 << 10);
    driver.holder(0, 0..40);
    driver.holder(1, 0..40);
    let of = |driver: &Driver, number: usize| {
        let open = driver.open.iter().find(|(_, open)| open.node == node(number));
        open.map(|(request, _)| *request)
    };
    while driver.plan.chunks.wanted() > 0 {
        driver.drain();
        driver.pass(1);
        for number in 0..2 {
            of(&driver, number).into_iter().for_each(|request| driver.bring(request));
        }
    }
    while let Some(request) = of(&driver, 1) {
        driver.pass(1);
        driver.bring(request);
    }
    let owed: BTreeSet<u32> = driver.open.values().flat_map(|open| open.left.clone()).collect();
    assert!(!owed.is_empty());
    driver.pass(30);
    let copied: BTreeSet<u32> = driver.drain().into_iter().flat_map(|(_, open)| open.left).collect();
    assert_eq!(copied, owed);
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
fn a_chunk_that_is_asked_of_three_is_asked_of_more_once_they_are_all_silent() {
    let (mut driver, _) = silent_and_idle();
    for number in 2..6 {
        driver.holder(number, 0..8);
    }
    let asked = |driver: &Driver| driver.open.values().map(|open| open.node).collect::<BTreeSet<_>>().len();
    let mut times = Vec::new();
    for step in 0..200 {
        driver.drain();
        times.resize(asked(&driver), 10 * step);
        driver.pass(10);
    }
    assert_eq!(times.len(), 6, "{times:?}");
    assert!(times.windows(4).all(|four| four[3] - four[0] >= 30), "{times:?}");
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
        open.into_iter().filter(|(_, from)| served.insert(*from)).for_each(|(request, _)| driver.bring(request));
    }
    assert_eq!(asked, 64);
}
