use super::super::sim::{Fault, Node, Outcome, Setup, run};
use super::*;

const MIB: u64 = 1 << 20;

fn gbit(rate: f64) -> f64 {
    rate * 1e9 / 8.0
}

fn chunks(size: u64, chunk: u64) -> Vec<u32> {
    (0..size.div_ceil(chunk)).map(|index| chunk.min(size - index * chunk) as u32).collect()
}

fn holder(rate: f64) -> Node {
    Node { up: rate, down: rate, slots: 16, full: true, starts: Duration::ZERO, fault: None }
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
        config: PlanConfig::default(),
        seed,
    }
}

#[test]
#[ignore = "tuning table"]
fn table() {
    let print = |what: &str, outcome: &Outcome, rate: f64| {
        let ideal = outcome.size as f64 / rate;
        let wasted = outcome.received.iter().sum::<u64>() as f64 / outcome.size as f64
            - outcome.received.iter().filter(|r| **r > 0).count() as f64;
        eprintln!(
            "{what:40} finished {:3}/{:3} mean/ideal {:6.2} slowest/mean {:5.2} origin copies {:5.2} wasted {:5.2} requests {:6} indices {:7} streams {}",
            outcome.finished.iter().flatten().count(),
            outcome.finished.len(),
            outcome.mean() / ideal,
            outcome.slowest() / outcome.mean(),
            outcome.copies(0),
            wasted,
            outcome.requests,
            outcome.indices,
            outcome.most_streams
        );
    };
    for (size, chunk) in [(1024 * MIB, 4 * MIB), (256 * MIB, MIB), (16 * MIB, 1024), (64 * MIB, 4 * MIB)] {
        for latency in [100, 1000, 20_000] {
            for rate in [1.0, 10.0, 25.0] {
                for pullers in [1, 8, 64] {
                    if pullers == 64 && (size == 1024 * MIB && rate != 10.0) {
                        continue;
                    }
                    for seed in 0..2 {
                        let r = gbit(rate);
                        let mut nodes = vec![holder(r)];
                        nodes.extend((0..pullers).map(|i| puller(r, (i * 7 % 20) as u64)));
                        let s = setup(chunks(size, chunk), nodes, latency, seed);
                        let o = run(&s, node);
                        print(
                            &format!("{}MiB/{}K {}us {}G x{pullers} #{seed}", size / MIB, chunk / 1024, latency, rate),
                            &o,
                            r,
                        );
                    }
                }
            }
        }
    }
}
