//! Random histories; [`Driver`] checks each action against its own small model.

use proptest::prelude::*;

use super::*;

const HOLDERS: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    Add { holder: usize },
    Have { holder: usize, bits: u64 },
    HaveAll { holder: usize },
    HaveFails { holder: usize, failure: Failure },
    Deliver { which: usize },
    Trickle { which: usize, bytes: u64 },
    Fail { which: usize, failure: Failure },
    Given { which: usize, bits: u64 },
    EndEarly { which: usize },
    Lie { which: usize },
    Pass { ms: u64 },
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        (0u64..10_000).prop_map(|ms| Failure::Busy { retry_after: Duration::from_millis(ms) }),
        Just(Failure::NotFound),
        Just(Failure::Draining),
        Just(Failure::Forbidden),
        Just(Failure::Reset),
        Just(Failure::Disconnected),
        Just(Failure::TimedOut),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (holder, which) = (0..HOLDERS, 0usize..16);
    prop_oneof![
        2 => holder.clone().prop_map(|holder| Step::Add { holder }),
        2 => (holder.clone(), any::<u64>()).prop_map(|(holder, bits)| Step::Have { holder, bits }),
        1 => holder.clone().prop_map(|holder| Step::HaveAll { holder }),
        1 => (holder, failure()).prop_map(|(holder, failure)| Step::HaveFails { holder, failure }),
        8 => which.clone().prop_map(|which| Step::Deliver { which }),
        2 => (which.clone(), 1u64..200_000).prop_map(|(which, bytes)| Step::Trickle { which, bytes }),
        2 => (which.clone(), failure()).prop_map(|(which, failure)| Step::Fail { which, failure }),
        2 => (which.clone(), any::<u64>()).prop_map(|(which, bits)| Step::Given { which, bits }),
        1 => which.clone().prop_map(|which| Step::EndEarly { which }),
        1 => which.prop_map(|which| Step::Lie { which }),
        3 => (0u64..3_000).prop_map(|ms| Step::Pass { ms }),
    ]
}

fn lens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![Just(1024), Just(65_536), Just(1 << 20), Just(4 << 20), 1u32..100_000], 1..60)
}

fn take(driver: &mut Driver, step: Step) {
    let nth = |driver: &Driver, which: usize| {
        let count = driver.open.len().max(1);
        driver.open.keys().nth(which % count).copied()
    };
    let known = |driver: &Driver, holder: usize| driver.plan.slot(node(holder)).is_some();
    match step {
        Step::Add { holder } => {
            let taken = driver.plan.add_holder(node(holder), Locality::Other, driver.now);
            assert_eq!(taken, !driver.barred.contains(&node(holder)));
        }
        Step::Have { holder, bits } if known(driver, holder) => {
            let set: Vec<u32> = driver.all().filter(|index| bits >> (index % 64) & 1 == 1).collect();
            driver.tell(node(holder), set);
        }
        Step::HaveAll { holder } if known(driver, holder) => driver.tell(node(holder), driver.all()),
        Step::HaveFails { holder, failure } if driver.asked.remove(&node(holder)).is_some() => {
            if failure == Failure::Forbidden {
                driver.barred.insert(node(holder));
            }
            driver.plan.on_have_failed(node(holder), failure, driver.now);
        }
        Step::Have { .. } | Step::HaveAll { .. } | Step::HaveFails { .. } => (),
        Step::Pass { ms } => driver.pass(ms),
        Step::Given { which, bits } => {
            let request = nth(driver, which).filter(|request| driver.fresh.contains(request));
            let set: Vec<u32> = driver.all().filter(|index| bits >> (index % 64) & 1 == 1).collect();
            request.into_iter().for_each(|request| driver.given(request, set.clone()));
        }
        Step::Deliver { which } => nth(driver, which).into_iter().for_each(|request| driver.bring(request)),
        Step::Trickle { which, bytes } => {
            nth(driver, which).into_iter().for_each(|request| driver.plan.on_bytes(request, bytes, driver.now));
        }
        Step::Fail { which, failure } => {
            nth(driver, which).into_iter().for_each(|request| driver.fail(request, failure));
        }
        Step::EndEarly { which } => nth(driver, which).into_iter().for_each(|request| {
            driver.open.remove(&request);
            driver.plan.on_finished(request, driver.now);
        }),
        Step::Lie { which } => nth(driver, which).into_iter().for_each(|request| driver.lie(request)),
    }
}

/// Runs the steps; after each one the plan either has something to wait for or says that it is stuck.
fn history(lens: Vec<u32>, have: u64, seed: u64, steps: Vec<Step>) -> Driver {
    let config = PlanConfig { max_in_flight_bytes: 9 << 20, max_streams_per_holder: 3, ..PlanConfig::default() };
    let have = bitmap(lens.len(), (0..lens.len() as u32).filter(|index| have >> (index % 64) & 1 == 1));
    let mut driver = Driver::new(config, lens, &have, seed);
    for step in steps {
        take(&mut driver, step);
        driver.drain();
        // A holder that lost or was given back its place is asked again, whatever is still open.
        driver.asked.retain(|asked, _| driver.plan.gone(*asked).is_none());
        let plan = &driver.plan;
        assert_eq!(plan.is_complete(), driver.done.len() == driver.lens.len());
        assert_eq!(plan.progress().chunks_done, driver.done.len());
        let waits = plan.next_deadline().is_some_and(|deadline| deadline > driver.now);
        assert!(plan.is_complete() || waits || plan.is_stuck(driver.now).is_some(), "hangs: {:?}", plan.progress());
    }
    driver
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn after_any_history_an_honest_holder_completes_it(
        lens in lens(), have: u64, seed: u64, steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut driver = history(lens, have, seed, steps);
        driver.holder(100, driver.all());
        driver.run_to_the_end(10_000);
        prop_assert_eq!(driver.done.len(), driver.lens.len());
    }

    #[test]
    fn after_every_holder_refused_it_is_stuck_and_asks_nobody(
        lens in lens(), have: u64, seed: u64, steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut driver = history(lens, have, seed, steps);
        driver.asked.clear();
        for holder in 0..HOLDERS {
            driver.plan.add_holder(node(holder), Locality::Other, driver.now);
            driver.plan.on_have_failed(node(holder), Failure::Forbidden, driver.now);
            driver.barred.insert(node(holder));
        }
        let open: Vec<RequestId> = driver.open.keys().copied().collect();
        open.into_iter().for_each(|request| driver.fail(request, Failure::Reset));
        prop_assert!(driver.drain().is_empty());
        prop_assert!(driver.asked.is_empty());
        prop_assert_eq!(driver.plan.next_deadline(), None);
        let stuck = if driver.plan.is_complete() { None } else { Some(Stuck::Refused) };
        prop_assert_eq!(driver.plan.is_stuck(driver.now), stuck);
    }
}
