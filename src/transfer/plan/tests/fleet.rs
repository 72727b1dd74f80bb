use super::super::sim::{Node, Setup, run};
use super::*;

const MIB: u64 = 1 << 20;

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
        config: PlanConfig::default(),
        seed,
    }
}

#[test]
#[ignore = "tuning table"]
fn table() {
    let cases: [(u64, u64, u64, f64, usize, u64); 15] = [
        (1024 * MIB, 4 * MIB, 100, 10.0, 1, 20),
        (1024 * MIB, 4 * MIB, 20_000, 10.0, 1, 20),
        (1024 * MIB, 4 * MIB, 5_000, 25.0, 1, 20),
        (16 * MIB, 1024, 100, 10.0, 1, 20),
        (16 * MIB, 1024, 10_000, 10.0, 1, 20),
        (1024 * MIB, 4 * MIB, 100, 10.0, 8, 20),
        (256 * MIB, MIB, 100, 10.0, 8, 20),
        (256 * MIB, MIB, 100, 10.0, 8, 300),
        (64 * MIB, 4 * MIB, 100, 10.0, 8, 20),
        (64 * MIB, 4 * MIB, 100, 1.0, 8, 20),
        (16 * MIB, 1024, 100, 10.0, 8, 20),
        (16 * MIB, 1024, 1000, 1.0, 8, 20),
        (256 * MIB, MIB, 100, 10.0, 64, 20),
        (256 * MIB, MIB, 100, 25.0, 64, 300),
        (64 * MIB, 4 * MIB, 1000, 10.0, 64, 20),
    ];
    for (size, chunk, latency, rate, pullers, discovery) in cases {
        let (mut time, mut spread, mut origin, mut waste, mut left, mut requests) = (0.0, 0.0, Vec::new(), 0.0, 0, 0);
        let seeds = if pullers == 64 { 3 } else { 8 };
        for seed in 0..seeds {
            let r = gbit(rate);
            let mut nodes = vec![holder(r)];
            nodes.extend((0..pullers).map(|i| puller(r, (i * 7 % 20) as u64)));
            let mut s = setup(chunks(size, chunk), nodes, latency, seed);
            s.discovery = Duration::from_millis(discovery);
            let o = run(&s, node);
            time += o.mean() / (o.size as f64 / r) / seeds as f64;
            spread = f64::max(spread, o.slowest() / o.mean());
            origin.push(o.copies(0));
            waste += (o.received.iter().sum::<u64>() as f64 / o.size as f64 / pullers as f64 - 1.0) / seeds as f64;
            left += o.finished.iter().filter(|f| f.is_none()).count();
            requests += o.requests / seeds as usize / pullers;
        }
        origin.sort_by(f64::total_cmp);
        eprintln!("{size:4}MiB/{chunk:4}K {latency:5}us {rate:4}G x{pullers:2} d{discovery:3}: time {time:5.2} spread {spread:4.2} origin {:4.2}..{:4.2} waste {waste:5.3} requests {requests:5} unfinished {left}",
            origin[0], origin[origin.len() - 1], size = size / MIB, chunk = chunk / 1024);
    }
}

#[test]
#[ignore = "tuning table"]
fn cost() {
    for (partial, len) in [(false, 4096u32), (true, 4096), (false, 1 << 20), (true, 1 << 20)] {
        let n = 131_072;
        let t0 = Instant::now();
        let mut plan = Plan::new(PlanConfig::default(), vec![len; n], &Bitmap::empty(n), 1);
        let built = t0.elapsed();
        let mut now = t0;
        for h in 0..64 {
            plan.add_holder(node(h), Locality::Other, now);
            let mut bits = Bitmap::empty(n);
            (0..n).filter(|i| !partial || (i * 7919 + h * 31) % 8 == 0).for_each(|i| bits.set(i, true));
            plan.set_have(node(h), Have::Some(bits), now);
        }
        let set = t0.elapsed() - built;
        let mut queue = std::collections::VecDeque::new();
        let (mut events, mut nexts, mut worst) = (0u64, 0u64, Duration::ZERO);
        let start = Instant::now();
        while !plan.is_complete() {
            now += Duration::from_micros(20);
            let t = Instant::now();
            while let Some(action) = plan.next(now) {
                nexts += 1;
                match action {
                    Action::Request { request, indices, .. } => queue.push_back((request, VecDeque::from(indices))),
                    Action::AskHave { node } => plan.on_have_failed(node, Failure::Busy { retry_after: Duration::from_secs(5) }, now),
                    _ => (),
                }
            }
            worst = worst.max(t.elapsed());
            let Some((request, mut left)) = queue.pop_front() else { now += Duration::from_millis(1); continue };
            let Some(index) = left.pop_front() else { plan.on_finished(request, now); continue };
            plan.on_bytes(request, u64::from(len), now);
            plan.on_chunk(request, index, now);
            events += 1;
            queue.push_back((request, left));
        }
        let took = start.elapsed();
        eprintln!("partial {partial} len {len}: build {built:?} 64 haves {set:?}; {events} chunks, {nexts} actions, {:?} a chunk, worst next loop {worst:?}", took / events as u32);
    }
}
