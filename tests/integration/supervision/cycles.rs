//! Starts and ends in any order leave nothing behind.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use warmd::engine::{Command, State, SupervisionConfig};

use super::script::{Script, Supervised, config, shell};
use crate::harness::engine::{kill, own_proc};

/// How many, instead of the usual number.
const CYCLES: &str = "WARMD_TEST_CYCLES";

/// Every eighth leaves a child in its session and one outside of it.
fn engine(epoch: u64) -> Command {
    match epoch % 8 {
        3 => shell("sleep 1000 & setsid sleep 1000 & wait"),
        5 => shell("exit 1"),
        6 => shell("trap '' TERM; exec sleep 1000"),
        _ => shell("exec sleep 1000"),
    }
}

async fn cycle(cycles: u64) {
    let seed: u64 = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let config = SupervisionConfig { grace: Duration::from_millis(20), ..config() };
    let mut supervised = Supervised::start(config, Script::by_epoch(engine)).await;
    let mut epoch = 0;
    for _ in 0..cycles {
        let up = |state| matches!(state, State::Starting | State::Ready);
        let status =
            supervised.until(|status| status.epoch > epoch && status.leader.is_some() && up(status.state)).await;
        epoch = status.epoch;
        for _ in 0..rng.random_range(0..20) {
            tokio::task::yield_now().await;
        }
        let crashes = epoch % 8 != 5 && rng.random_bool(0.5);
        if crashes {
            kill(status.leader.unwrap());
        }
        match rng.random_range(0..4) {
            0 => supervised.supervisor.restart(),
            1 => {
                supervised.supervisor.stop();
                supervised.until(|status| status.state == State::Stopped).await;
                supervised.supervisor.run();
            }
            2 => {
                supervised.supervisor.stop();
                supervised.supervisor.run();
            }
            _ if crashes => {}
            _ => supervised.supervisor.restart(),
        }
    }
    let status = supervised.until(|status| status.epoch > epoch).await;
    assert!(status.epoch >= cycles, "seed {seed}: {status:?}");
    supervised.shutdown().await;
}

#[tokio::test]
async fn after_forty_starts_and_ends_in_random_order_nothing_is_left() {
    if own_proc() {
        cycle(40).await;
    }
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn after_a_thousand_starts_and_ends_in_random_order_nothing_is_left() {
    if own_proc() {
        cycle(std::env::var(CYCLES).map_or(1_000, |cycles| cycles.parse().unwrap())).await;
    }
}
