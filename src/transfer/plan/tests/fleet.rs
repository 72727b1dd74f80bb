//! Fleets of plans in the simulation.

use rand::RngExt;

use super::super::sim::{Fault, Node, Outcome, Setup, run};
use super::*;

const MIB: u64 = super::MIB as u64;

fn gbit(rate: f64) -> f64 {
    rate * 1e9 / 8.0
}

fn chunks(size: u64, chunk: u64) -> Vec<u32> {
    (0..size.div_ceil(chunk)).map(|index| chunk.min(size - index * chunk) as u32).collect()
}

fn holder(rate: f64) -> Node {
    Node { up: rate, down: rate, slots: 8, full: true, starts: Duration::ZERO, fault: None }
}

fn puller(rate: f64, starts_ms: u64) -> Node {
    Node { full: false, starts: Duration::from_millis(starts_ms), ..holder(rate) }
}

fn setup(chunk_lens: Vec<u32>, nodes: Vec<Node>, latency_us: u64, seed: u64) -> Setup {
    Setup {
        chunk_lens,
        nodes,
        latency: Duration::from_micros(latency_us),
        discovery: Duration::from_millis(20),
        fan_out: 24,
        retry_after: Duration::from_millis(50),
        // Holders of this simulation answer at once, also when they have nothing new to tell.
        config: PlanConfig { have_retry: Duration::from_millis(20), ..PlanConfig::default() },
        seed,
    }
}

/// One holder and `pullers` that begin within 20 ms.
fn swarm(size: u64, chunk: u64, pullers: u64, rate: f64, latency_us: u64, seed: u64) -> Setup {
    let mut nodes = vec![holder(rate)];
    nodes.extend((0..pullers).map(|number| puller(rate, number * 7 % 20)));
    setup(chunks(size, chunk), nodes, latency_us, seed)
}

/// Holders with these uplinks and one puller.
fn pull(size: u64, chunk: u64, uplinks: &[f64], downlink: f64, seed: u64) -> Setup {
    let mut nodes: Vec<Node> = uplinks.iter().map(|rate| holder(*rate)).collect();
    nodes.push(puller(downlink, 0));
    setup(chunks(size, chunk), nodes, 500, seed)
}

fn wasted(outcome: &Outcome) -> u64 {
    outcome.received.iter().max().unwrap() - outcome.size
}

#[test]
fn eight_pullers_cost_the_first_holder_little_more_than_one_copy_and_none_is_left_behind() {
    for (size, chunk, rate, latency_us) in [
        (256 * MIB, MIB, 10.0, 100),
        (256 * MIB, MIB, 25.0, 1_000),
        (64 * MIB, MIB, 1.0, 1_000),
        (512 * MIB, 4 * MIB, 10.0, 20_000),
        (8 * MIB, 8 << 10, 1.0, 200),
    ] {
        for seed in 0..3 {
            let outcome = run(&swarm(size, chunk, 8, gbit(rate), latency_us, seed), node);
            let what = format!("{size} B in {chunk} B at {rate} Gbit/s, {latency_us} us, seed {seed}");
            assert!(outcome.all_finished(), "{what}: {:?}", outcome.finished);
            assert!(outcome.copies(0) <= 1.6, "{what}: {:.2} copies", outcome.copies(0));
            assert!(outcome.slowest() <= 1.5 * outcome.mean(), "{what}: {:?}", outcome.times());
        }
    }
}

#[test]
fn a_first_holder_with_a_larger_uplink_than_its_eight_pullers_is_spared_too() {
    for (chunk, rate, discovery_ms, most) in [(4 * MIB, 0.6, 100, 1.6), (MIB, 10.0, 30, 3.2)] {
        for seed in 0..1 {
            let mut swarm = swarm(256 * MIB, chunk, 8, gbit(rate), 300, seed);
            swarm.nodes[0].up *= 8.0;
            swarm.discovery = Duration::from_millis(discovery_ms);
            let outcome = run(&swarm, node);
            let what = format!("{chunk} B at {rate} Gbit/s, seed {seed}");
            assert!(outcome.all_finished() && outcome.copies(0) <= most, "{what}: {:.2} copies", outcome.copies(0));
            assert!(outcome.slowest() <= 1.4 * 256.0 * MIB as f64 / gbit(rate), "{what}: {:?}", outcome.times());
        }
    }
}

#[test]
fn pullers_that_hear_of_each_other_late_learn_it_from_the_busy_holder() {
    for seed in 0..1 {
        let mut late = swarm(256 * MIB, MIB, 16, gbit(10.0), 100, seed);
        late.discovery = Duration::from_secs(30);
        let outcome = run(&late, node);
        assert!(outcome.all_finished() && outcome.copies(0) <= 3.0, "seed {seed}: {:.2} copies", outcome.copies(0));
    }
}

#[test]
fn sixty_four_pullers_cost_the_first_holder_one_and_a_half_copies_at_most() {
    for seed in 0..1 {
        let outcome = run(&swarm(96 * MIB, MIB, 64, gbit(10.0), 200, seed), node);
        assert!(outcome.all_finished(), "seed {seed}: {:?}", outcome.finished);
        assert!(outcome.copies(0) <= 1.5, "seed {seed}: {:.2} copies", outcome.copies(0));
        assert!(outcome.slowest() <= 1.5 * outcome.mean(), "seed {seed}: {:?}", outcome.times());
    }
}

#[test]
fn one_holder_and_one_puller_keep_the_pipe_full() {
    for (size, chunk, rate, latency_us, most) in [
        (512 * MIB, 4 * MIB, 1.0, 100, 1.02),
        (512 * MIB, 4 * MIB, 25.0, 100, 1.05),
        (512 * MIB, MIB, 10.0, 2_000, 1.1),
        (1024 * MIB, 4 * MIB, 10.0, 10_000, 1.2),
        (16 * MIB, 1 << 10, 1.0, 100, 1.05),
    ] {
        for seed in 0..3 {
            let outcome = run(&pull_alone(size, chunk, gbit(rate), latency_us, seed), node);
            let time = outcome.slowest() / (size as f64 / gbit(rate));
            assert!(time <= most, "{rate} Gbit/s, {latency_us} us, seed {seed}: {time:.2} of the ideal time");
            assert!(wasted(&outcome) == 0, "seed {seed}");
        }
    }
}

fn pull_alone(size: u64, chunk: u64, rate: f64, latency_us: u64, seed: u64) -> Setup {
    setup(chunks(size, chunk), vec![holder(rate), puller(rate, 0)], latency_us, seed)
}

#[test]
fn several_holders_are_used_by_what_they_can() {
    for seed in 0..5 {
        let outcome = run(&pull(256 * MIB, MIB, &[gbit(4.0), gbit(2.0), gbit(1.0)], gbit(25.0), seed), node);
        let time = outcome.slowest() / (256.0 * MIB as f64 / gbit(7.0));
        assert!(time < 1.15, "seed {seed}: {time:.2} of the ideal time");
        assert!(wasted(&outcome) <= 2 * MIB, "seed {seed}: {} bytes twice", wasted(&outcome));
    }
}

#[test]
fn when_the_fastest_of_three_dies_half_way_only_chunks_in_the_middle_are_lost() {
    for (seed, chunk) in (0..10).map(|seed| (seed, if seed % 2 == 0 { MIB } else { 4 * MIB })) {
        let mut setup = pull(256 * MIB, chunk, &[gbit(4.0), gbit(1.0), gbit(1.0)], gbit(10.0), seed);
        setup.nodes[0].fault = Some(Fault::Dies { after: 80 * MIB });
        let outcome = run(&setup, node);
        assert!(outcome.all_finished(), "seed {seed}");
        let most = outcome.most_streams as u64 * chunk;
        assert!(wasted(&outcome) <= most, "seed {seed}: {} of {most} bytes twice", wasted(&outcome));
    }
}

#[test]
fn one_byte_a_second_from_one_of_three_costs_less_than_a_third_more_time() {
    for seed in 0..10 {
        let rate = gbit(10.0);
        let healthy = run(&pull(256 * MIB, MIB, &[rate, rate, rate], rate, seed), node);
        let limping = run(&pull(256 * MIB, MIB, &[rate, rate, 1.0], rate, seed), node);
        let ratio = limping.slowest() / healthy.slowest();
        assert!(limping.all_finished() && ratio <= 1.3, "seed {seed}: {ratio:.2}");
        let two = run(&pull(256 * MIB, MIB, &[gbit(1.0), gbit(1.0)], rate, seed), node);
        let limping = run(&pull(256 * MIB, MIB, &[gbit(1.0), gbit(1.0), 1.0], rate, seed), node);
        let ratio = limping.slowest() / two.slowest();
        assert!(ratio <= 1.3, "seed {seed}, slow links: {ratio:.2}");
    }
}

#[test]
fn a_holder_that_stalls_or_lies_half_way_costs_little() {
    for seed in 0..10 {
        for fault in [Fault::Stalls { after: 20 * MIB }, Fault::Lies { after: 20 * MIB }] {
            let rate = gbit(10.0);
            let healthy = run(&pull(256 * MIB, MIB, &[rate, rate, rate], rate, seed), node);
            let mut setup = pull(256 * MIB, MIB, &[rate, rate, rate], rate, seed);
            setup.nodes[1].fault = Some(fault);
            let faulty = run(&setup, node);
            assert!(faulty.all_finished(), "seed {seed}, {fault:?}");
            let ratio = faulty.slowest() / healthy.slowest();
            assert!(ratio <= 1.3, "seed {seed}, {fault:?}: {ratio:.2}");
        }
    }
}

#[test]
fn whatever_the_network_everybody_finishes() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rate = gbit(rng.random_range(1.0..25.0));
        let chunk = 1 << rng.random_range(10..22);
        let size = chunk * rng.random_range(1..200);
        let mut setup = swarm(size, chunk, rng.random_range(1..12), rate, rng.random_range(100..20_000), seed);
        setup.nodes.push(holder(gbit(1.0)));
        setup.nodes.push(holder(rate));
        let after = rng.random_range(0..size);
        let faults = [Fault::Dies { after }, Fault::Stalls { after }, Fault::Lies { after }];
        let last = setup.nodes.len() - 1;
        setup.nodes[last].fault = Some(faults[rng.random_range(0..3)]);
        setup.nodes[0].slots = rng.random_range(1..9);
        let outcome = run(&setup, node);
        assert!(outcome.all_finished(), "seed {seed}: {:?}", outcome.finished);
    }
}
