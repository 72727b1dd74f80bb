//! A fluid network: streams share the network cards of their two ends by max-min fairness.
//!
//! Time goes on in steps. Within a step rates do not change; a stream that begins in it gets a rate at the next one. That is
//! wrong by half a step per request, always to the disadvantage of the swarm, and saves a recomputation for each event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

/// Bytes between two reports of progress within a chunk, as `transfer` has it.
const REPORT_EVERY: f64 = 256.0 * 1024.0;

/// What a stream brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cargo {
    /// From that node.
    Manifest(usize),
    /// The request of that number.
    Chunks(u64),
}

/// Names a stream: who receives, and what.
pub(crate) type Key = (usize, Cargo);

#[derive(Debug)]
struct Stream {
    from: usize,
    /// Index and bytes of what is still to be sent; the first part may be sent in part.
    parts: VecDeque<(u32, f64)>,
    rate: f64,
    unreported: f64,
}

/// What a step brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    pub(crate) at: Duration,
    pub(crate) from: usize,
    pub(crate) key: Key,
    pub(crate) what: Arrived,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arrived {
    Bytes(u64),
    Part { index: u32, last: bool },
}

pub(crate) struct Network {
    /// Bytes per second: two for each node, out and in, and one that all share.
    links: Vec<f64>,
    streams: BTreeMap<Key, Stream>,
}

impl Network {
    /// `cards` are bytes per second of each node, both ways; `machine` bounds all of them together.
    pub(crate) fn new(cards: &[f64], machine: Option<f64>) -> Self {
        let mut links: Vec<f64> = cards.iter().flat_map(|card| [*card, *card]).collect();
        links.push(machine.unwrap_or(f64::INFINITY));
        Self { links, streams: BTreeMap::new() }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    pub(crate) fn open(&mut self, from: usize, key: Key, parts: impl IntoIterator<Item = (u32, u64)>) {
        let parts = parts.into_iter().map(|(index, bytes)| (index, bytes as f64)).collect();
        self.streams.insert(key, Stream { from, parts, rate: 0.0, unreported: 0.0 });
    }

    /// The sender, if the stream was open.
    pub(crate) fn close(&mut self, key: Key) -> Option<usize> {
        self.streams.remove(&key).map(|stream| stream.from)
    }

    /// Streams from or to a node that is gone.
    pub(crate) fn cut(&mut self, node: usize) {
        self.streams.retain(|key, stream| stream.from != node && key.0 != node);
    }

    /// Sets the rates for the next step: again and again, the link with the least for each of its streams settles these.
    pub(crate) fn share(&mut self) {
        let machine = self.links.len() - 1;
        let ends: Vec<[usize; 3]> =
            self.streams.iter().map(|(key, stream)| [2 * stream.from, 2 * key.0 + 1, machine]).collect();
        let (mut of_link, mut left) = (vec![Vec::new(); self.links.len()], self.links.clone());
        let mut open = vec![0u32; self.links.len()];
        for (stream, ends) in ends.iter().enumerate() {
            ends.iter().for_each(|link| of_link[*link].push(stream));
        }
        of_link.iter().enumerate().for_each(|(link, streams)| open[link] = streams.len() as u32);
        // Positive floats are ordered like their bits.
        let part = |left: f64, open: u32| (left.max(0.0) / f64::from(open)).to_bits();
        let used = (0..self.links.len()).filter(|link| open[*link] > 0);
        let mut order: BinaryHeap<Reverse<(u64, usize)>> =
            used.map(|link| Reverse((part(left[link], open[link]), link))).collect();
        let mut rates = vec![f64::NAN; ends.len()];
        while let Some(Reverse((bits, link))) = order.pop() {
            if open[link] == 0 {
                continue;
            }
            let now = part(left[link], open[link]);
            if now > bits {
                order.push(Reverse((now, link)));
                continue;
            }
            let rate = f64::from_bits(now);
            for stream in &of_link[link] {
                if rates[*stream].is_nan() {
                    rates[*stream] = rate;
                    for end in ends[*stream] {
                        left[end] -= rate;
                        open[end] -= 1;
                    }
                }
            }
        }
        self.streams.values_mut().zip(rates).for_each(|(stream, rate)| stream.rate = rate);
    }

    /// What arrives from `now` on within `step`.
    pub(crate) fn advance(&mut self, now: Duration, step: Duration) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for (key, stream) in &mut self.streams {
            let mut bytes = stream.rate * step.as_secs_f64();
            stream.unreported += bytes;
            let mut used = 0.0;
            let arrival = |used: f64, what| Arrival {
                at: now + Duration::from_secs_f64(used / stream.rate).min(step),
                from: stream.from,
                key: *key,
                what,
            };
            while let Some((index, left)) = stream.parts.front_mut() {
                if *left > bytes {
                    *left -= bytes;
                    break;
                }
                let index = *index;
                (used, bytes) = (used + *left, bytes - *left);
                stream.parts.pop_front();
                let last = stream.parts.is_empty();
                arrivals.push(arrival(used, Arrived::Part { index, last }));
            }
            if stream.unreported >= REPORT_EVERY && !stream.parts.is_empty() {
                arrivals.push(arrival(stream.rate * step.as_secs_f64(), Arrived::Bytes(stream.unreported as u64)));
                stream.unreported = 0.0;
            }
        }
        self.streams.retain(|_, stream| !stream.parts.is_empty());
        arrivals
    }
}
