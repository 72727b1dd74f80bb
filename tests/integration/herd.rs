//! The herd of bench/herd.rs, small: what its figures rest on.

#[path = "../../bench/herd.rs"]
mod model;

use std::time::Duration;

use model::{Fate, Setup, run};

const MIB: u32 = 1 << 20;

fn setup(pullers: usize, seed: u64) -> Setup {
    Setup {
        chunk_lens: vec![MIB; 64],
        manifest: 64 << 10,
        pullers,
        card: 1.25e9,
        machine: None,
        within: Duration::ZERO,
        zones: 2,
        racks_per_zone: 2,
        deaths: 0.0,
        stragglers: 0.0,
        swarming: true,
        seed,
    }
}

#[test]
fn a_seed_gives_the_same_run_each_time_and_another_one_another() {
    let herd = Setup { deaths: 0.1, stragglers: 0.1, ..setup(16, 1) };
    let first = run(&herd);
    assert_eq!(first, run(&herd));
    assert_ne!(first, run(&Setup { seed: 2, ..herd }));
}

#[test]
fn manifest_first_chunk_and_half_come_before_the_whole() {
    let outcome = run(&setup(16, 1));
    let marks = [
        outcome.last(|marks| marks.manifest),
        outcome.last(|marks| marks.first_chunk),
        outcome.last(|marks| marks.half),
        outcome.quantile(1.0),
    ];
    assert!(marks[0] > 0.0 && marks.is_sorted() && marks[3].is_finite(), "{marks:?}");
}

#[test]
fn one_puller_takes_as_long_as_its_card_needs() {
    let herd = setup(1, 1);
    let outcome = run(&herd);
    let ratio = outcome.quantile(1.0) / herd.ideal().as_secs_f64();
    assert!((1.0..1.2).contains(&ratio), "{ratio:.2} of the ideal time");
    assert_eq!(outcome.sent[0], herd.size() as f64);
    assert_eq!(outcome.manifests, herd.manifest);
    assert!(outcome.calls >= 1 && outcome.events > 64);
}

#[test]
fn every_puller_has_the_manifest_before_a_chunk_and_half_before_all() {
    let outcome = run(&setup(32, 3));
    let marks = [outcome.last(|at| at.manifest), outcome.last(|at| at.first_chunk), outcome.last(|at| at.half)];
    assert!(marks.is_sorted() && marks[0] > 0.0 && marks[2] < outcome.quantile(1.0), "{marks:?}");
    assert!(outcome.seeded.as_secs_f64() >= setup(1, 0).size() as f64 / 1.25e9);
}

#[test]
fn a_herd_costs_the_first_holder_two_copies_at_most_and_without_swarming_one_each() {
    let together = run(&setup(32, 3));
    let copies = |outcome: &model::Outcome| outcome.sent[0] / setup(1, 0).size() as f64;
    assert_eq!(together.failed(), 0);
    assert!(copies(&together) <= 2.0, "{:.2} copies", copies(&together));
    let alone = run(&Setup { swarming: false, ..setup(32, 3) });
    assert!(alone.failed() == 0 && copies(&alone) >= 32.0, "{:.2} copies", copies(&alone));
    assert!(together.quantile(1.0) < alone.quantile(1.0) / 4.0);
    assert!(alone.busy > 0 && alone.sent[1..].iter().all(|sent| *sent == 0.0));
}

#[test]
fn the_dead_and_the_slow_keep_nobody_from_finishing() {
    let herd = Setup { deaths: 0.1, stragglers: 0.1, ..setup(32, 5) };
    let outcome = run(&herd);
    let count = |fate| outcome.pullers.iter().filter(|(is, _)| *is == fate).count();
    assert!(count(Fate::Dies) > 0 && count(Fate::Straggles) > 0, "the seed has both");
    assert_eq!(outcome.failed(), 0);
    assert!(outcome.slowest_straggler() >= 10.0 * herd.size() as f64 / herd.card);
}

#[test]
fn fewer_bytes_cross_zones_than_without_labels() {
    let between = |zones| run(&Setup { zones, racks_per_zone: 1, ..setup(32, 7) }).between_zones;
    assert_eq!(between(1), 0.0);
    let total = 32.0 * setup(1, 0).size() as f64;
    assert!(between(2) < 0.45 * total, "{:.2} of all bytes", between(2) / total);
}

#[test]
fn one_machine_for_all_bounds_the_sum_of_all_rates() {
    let herd = Setup { machine: Some(1e9), ..setup(16, 9) };
    let outcome = run(&herd);
    let least = 16.0 * herd.size() as f64 / 1e9;
    assert!((least..1.5 * least).contains(&outcome.quantile(1.0)), "{:.3} s", outcome.quantile(1.0));
}
