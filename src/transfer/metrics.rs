//! What transfers count.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::transport::{Carried, Carrier, PathStats};

/// How a request ended, on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    Served,
    Busy,
    Given,
    NotFound,
    Draining,
    Forbidden,
    BadRequest,
    TooSlow,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    pub outcome: Outcome,
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum FetchOutcome {
    Complete,
    NoHolder,
    Deadline,
    NoSpace,
    Refused,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FetchLabel {
    pub outcome: FetchOutcome,
}

/// What a connection goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum CarrierName {
    Quic,
    Tcp,
}

impl From<Carrier> for CarrierName {
    fn from(carrier: Carrier) -> Self {
        match carrier {
            Carrier::Quic => Self::Quic,
            Carrier::Tcp => Self::Tcp,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CarrierLabel {
    pub carrier: CarrierName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Direction {
    Sent,
    Received,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CarriedLabel {
    pub carrier: CarrierName,
    pub direction: Direction,
}

/// Of one node, both directions.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub uploads: Gauge,
    pub requests: Family<OutcomeLabel, Counter>,
    pub sent_bytes: Counter,
    pub rate_limit: Gauge,
    pub yields: Counter,
    pub engine_pace: Gauge<f64, AtomicU64>,
    pub received_bytes: Counter,
    pub received_chunks: Counter,
    pub duplicate_chunks: Counter,
    pub bad_chunks: Counter,
    pub bad_manifests: Counter,
    pub fetches: Family<FetchLabel, Counter>,
    pub fetch_seconds: Histogram,
    pub first_byte_seconds: Histogram,
    pub connections: Family<CarrierLabel, Gauge>,
    pub carried: Family<CarriedLabel, Counter>,
    pub handshakes_refused: Counter,
    pub path: PathMetrics,
}

/// QUIC path statistics over all connections.
#[derive(Debug, Clone)]
pub struct PathMetrics {
    pub rtt_seconds: Histogram,
    pub mtu_bytes: Gauge,
    pub lost_packets: Counter,
    pub sent_packets: Counter,
    pub sent_datagrams: Counter,
    pub sent_datagram_bytes: Counter,
    pub sends: Counter,
    pub received_datagrams: Counter,
    pub received_datagram_bytes: Counter,
    pub black_holes: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let mut part = Part(registry);
        Self {
            uploads: part.gauge("transfer_uploads", "Chunk requests being served"),
            requests: part.family("transfer_requests", "Requests of peers by outcome"),
            sent_bytes: part.bytes("transfer_sent", "Chunk bytes handed to peers"),
            rate_limit: part.gauge(
                "transfer_upload_limit_bytes_per_second",
                "Cap on uploads when the engine was last heard of; 0: none",
            ),
            yields: part.counter("transfer_yields", "Times that the cap went down because the engine was slow"),
            engine_pace: part.pace(),
            received_bytes: part.bytes("transfer_received", "Chunk bytes received and verified"),
            received_chunks: part.counter("transfer_received_chunks", "Chunks received and verified"),
            duplicate_chunks: part.counter("transfer_duplicate_chunks", "Verified chunks that had arrived before"),
            bad_chunks: part
                .counter("transfer_bad_chunks", "Chunks whose digest did not match: a lying or broken holder"),
            bad_manifests: part
                .counter("transfer_bad_manifests", "Manifests that were malformed or refused by the policy"),
            fetches: part.family("transfer_fetches", "Fetches of artifacts by outcome"),
            fetch_seconds: part.seconds("transfer_fetch", "Time of a fetch, from plan to sealed", 0.001, 20),
            first_byte_seconds: part.seconds(
                "transfer_first_byte",
                "Time from a request to its first byte",
                0.0001,
                18,
            ),
            connections: part
                .gauges("transfer_connections", "Open connections with peers, both directions, by carrier"),
            carried: part.byte_family("transfer_carried", "Payload of UDP datagrams and of TLS over TCP, by carrier"),
            handshakes_refused: part.counter("transfer_handshakes_refused", "Connections refused at the TLS handshake"),
            path: PathMetrics {
                rtt_seconds: part.seconds("quic_rtt", "Round-trip time of a connection, once a second", 0.00001, 20),
                mtu_bytes: part.gauge("quic_mtu_bytes", "UDP payload size of the connection seen last"),
                lost_packets: part.counter("quic_lost_packets", "Packets declared lost"),
                sent_packets: part.counter("quic_sent_packets", "Packets sent"),
                sent_datagrams: part.counter("quic_sent_datagrams", "UDP datagrams sent"),
                sent_datagram_bytes: part.bytes("quic_sent_datagram", "Bytes of UDP datagrams sent"),
                sends: part.counter("quic_sends", "Send calls; fewer than datagrams when segmentation offload works"),
                received_datagrams: part.counter("quic_received_datagrams", "UDP datagrams received"),
                received_datagram_bytes: part.bytes("quic_received_datagram", "Bytes of UDP datagrams received"),
                black_holes: part.counter("quic_black_holes", "Paths on which large datagrams got lost"),
            },
        }
    }
}

/// Registers under one prefix.
struct Part<'r>(&'r mut Registry);

impl Part<'_> {
    fn counter(&mut self, name: &str, help: &str) -> Counter {
        let metric = Counter::default();
        self.0.register(format!("warmd_{name}"), help, metric.clone());
        metric
    }

    fn bytes(&mut self, name: &str, help: &str) -> Counter {
        let metric = Counter::default();
        self.0.register_with_unit(format!("warmd_{name}"), help, Unit::Bytes, metric.clone());
        metric
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let metric = Gauge::default();
        self.0.register(format!("warmd_{name}"), help, metric.clone());
        metric
    }

    fn pace(&mut self) -> Gauge<f64, AtomicU64> {
        let metric = Gauge::<f64, AtomicU64>::default();
        let help = "Median time between tokens when the engine was last heard of";
        self.0.register_with_unit("warmd_transfer_engine_between_tokens", help, Unit::Seconds, metric.clone());
        metric
    }

    fn gauges(&mut self, name: &str, help: &str) -> Family<CarrierLabel, Gauge> {
        let metric = Family::<CarrierLabel, Gauge>::default();
        self.0.register(format!("warmd_{name}"), help, metric.clone());
        metric
    }

    fn byte_family(&mut self, name: &str, help: &str) -> Family<CarriedLabel, Counter> {
        let metric = Family::<CarriedLabel, Counter>::default();
        self.0.register_with_unit(format!("warmd_{name}"), help, Unit::Bytes, metric.clone());
        metric
    }

    /// Buckets double from `first` seconds on.
    fn seconds(&mut self, name: &str, help: &str, first: f64, buckets: u16) -> Histogram {
        let metric = Histogram::new(exponential_buckets(first, 2.0, buckets));
        self.0.register_with_unit(format!("warmd_{name}"), help, Unit::Seconds, metric.clone());
        metric
    }

    fn family<L>(&mut self, name: &str, help: &str) -> Family<L, Counter>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
    {
        let metric = Family::<L, Counter>::default();
        self.0.register(format!("warmd_{name}"), help, metric.clone());
        metric
    }
}

impl Metrics {
    /// Open connections over QUIC and over TCP.
    pub fn open_connections(&self) -> [u32; 2] {
        let open = |carrier| self.connections.get_or_create(&CarrierLabel { carrier }).get();
        [CarrierName::Quic, CarrierName::Tcp].map(|carrier| u32::try_from(open(carrier)).unwrap_or(0))
    }

    /// Counts what `carrier` has carried since `before`.
    pub fn carried(&self, carrier: Carrier, before: Carried, now: Carried) {
        let carrier = carrier.into();
        let add = |direction, bytes| {
            self.carried.get_or_create(&CarriedLabel { carrier, direction }).inc_by(bytes);
        };
        add(Direction::Sent, now.sent - before.sent);
        add(Direction::Received, now.received - before.received);
    }
}

impl PathMetrics {
    /// Counts what has changed since `before`.
    pub fn observe(&self, before: &PathStats, now: &PathStats) {
        self.rtt_seconds.observe(now.rtt.as_secs_f64());
        self.mtu_bytes.set(i64::from(now.mtu));
        self.lost_packets.inc_by(now.lost_packets - before.lost_packets);
        self.sent_packets.inc_by(now.sent_packets - before.sent_packets);
        self.sent_datagrams.inc_by(now.sent_datagrams - before.sent_datagrams);
        self.sent_datagram_bytes.inc_by(now.sent_bytes - before.sent_bytes);
        self.sends.inc_by(now.sends - before.sends);
        self.received_datagrams.inc_by(now.received_datagrams - before.received_datagrams);
        self.received_datagram_bytes.inc_by(now.received_bytes - before.received_bytes);
        self.black_holes.inc_by(now.black_holes - before.black_holes);
    }
}
