//! What transfers count.

mod udp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::artifact;
use crate::caches::FamilyName;
use crate::telemetry::{Label, Registry, label, labels};
use crate::transport::{Buffers, Carried, Carrier, PathStats};

label! {
    /// How a request ended, on either side.
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
}

label! {
    /// How a fetch ended.
    pub enum FetchOutcome {
        Complete,
        NoHolder,
        Deadline,
        NoSpace,
        Failed,
    }
}

label! {
    /// What a connection goes over.
    pub enum CarrierName {
        Quic,
        Tcp,
    }
}

label! {
    pub enum Direction {
        Sent,
        Received,
    }
}

label! {
    /// Where received chunks were, and where sent ones are.
    pub enum Holder {
        /// A node that has the whole artifact: the other one if chunks are received, this one if they are sent.
        Peer,
        /// A node that has a part of it.
        Partial,
        /// The object store behind all nodes.
        Origin,
        /// This node itself: what a fetch found here, and what its pods read.
        Local,
    }
}

label! {
    /// Why a peer's connection was refused.
    pub(super) enum Refusal {
        /// There are too many.
        Full,
        /// No certificate of this cluster, or not in time.
        Handshake,
    }
}

labels! {
    pub struct OutcomeLabel {
        pub outcome: Outcome,
    }
}

labels! {
    pub struct FetchLabel {
        pub outcome: FetchOutcome,
    }
}

labels! {
    pub struct CarrierLabel {
        pub carrier: CarrierName,
    }
}

labels! {
    pub struct CarriedLabel {
        pub carrier: CarrierName,
        pub direction: Direction,
    }
}

labels! {
    struct ChunkLabels {
        family: FamilyName,
        direction: Direction,
        holder: Holder,
    }
}

labels! {
    struct RefusalLabel {
        reason: Refusal,
    }
}

labels! {
    pub struct DirectionLabel {
        pub direction: Direction,
    }
}

impl From<Carrier> for CarrierName {
    fn from(carrier: Carrier) -> Self {
        match carrier {
            Carrier::Quic => Self::Quic,
            Carrier::Tcp => Self::Tcp,
        }
    }
}

/// Of one node, both directions.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub uploads: Gauge,
    pub upload_slots: Gauge,
    pub requests: Family<OutcomeLabel, Counter>,
    pub rate_limit: Gauge,
    pub yields: Counter,
    pub engine_pace: Gauge<f64, AtomicU64>,
    pub received_chunks: Counter,
    pub duplicate_chunks: Counter,
    pub bad_chunks: Counter,
    pub bad_manifests: Counter,
    pub fetches: Family<FetchLabel, Counter>,
    pub fetch_seconds: Histogram,
    pub first_byte_seconds: Histogram,
    pub connections: Family<CarrierLabel, Gauge>,
    pub carried: Family<CarriedLabel, Counter>,
    refused: Family<RefusalLabel, Counter>,
    pub path: PathMetrics,
    chunk_bytes: Family<ChunkLabels, Counter>,
}

/// QUIC path statistics over all connections.
#[derive(Debug, Clone)]
pub struct PathMetrics {
    pub rtt_seconds: Histogram,
    pub mtu_bytes: Histogram,
    pub lost_packets: Counter,
    pub sent_packets: Counter,
    pub datagrams: Family<DirectionLabel, Counter>,
    pub datagram_bytes: Family<DirectionLabel, Counter>,
    pub sends: Counter,
    pub black_holes: Counter,
    socket_buffers: Family<DirectionLabel, Gauge>,
    /// Of the connection that was looked at last, in bytes.
    last_mtu: Arc<AtomicU16>,
}

/// Buckets double from `first` seconds on.
fn seconds(first: f64, buckets: u16) -> Histogram {
    Histogram::new(exponential_buckets(first, 2.0, buckets))
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        udp::register(r);
        Self {
            uploads: r.add("warmd_transfer_uploads", "Chunk requests being served"),
            upload_slots: r.add("warmd_transfer_upload_slots", "Chunk requests that can be served at once"),
            requests: r.add("warmd_transfer_requests_total", "Requests of peers by outcome"),
            rate_limit: r.add(
                "warmd_transfer_upload_limit_bytes_per_second",
                "Cap on uploads when the engine was last heard of; 0: none",
            ),
            yields: r.add("warmd_transfer_yields_total", "Times that the cap went down because the engine was slow"),
            engine_pace: r.add(
                "warmd_transfer_engine_between_tokens_seconds",
                "Median time between tokens when the engine was last heard of; 0: never",
            ),
            received_chunks: r.add("warmd_transfer_received_chunks_total", "Chunks received from peers and verified"),
            duplicate_chunks: r
                .add("warmd_transfer_duplicate_chunks_total", "Verified chunks that had arrived before"),
            bad_chunks: r.add(
                "warmd_transfer_bad_chunks_total",
                "Chunks whose digest did not match: a lying or broken holder",
            ),
            bad_manifests: r.add(
                "warmd_transfer_bad_manifests_total",
                "Manifests from peers that were not taken; warmd_manifests_refused_total has the reasons",
            ),
            fetches: r.add("warmd_transfer_fetches_total", "Fetches of artifacts from peers by outcome"),
            fetch_seconds: r.insert(
                "warmd_transfer_fetch_seconds",
                "Time of a fetch from peers, from plan to sealed",
                seconds(0.001, 20),
            ),
            first_byte_seconds: r.insert(
                "warmd_transfer_first_byte_seconds",
                "Time from a request for chunks to its first byte",
                seconds(0.0001, 18),
            ),
            connections: r
                .add("warmd_transfer_connections", "Open connections with peers, both directions, by carrier"),
            carried: r.add(
                "warmd_transfer_carried_bytes_total",
                "Payload of UDP datagrams and of TLS over TCP, by carrier and direction",
            ),
            refused: r.add("warmd_transfer_refused_connections_total", "Connections of peers that were refused"),
            path: PathMetrics::register(r),
            chunk_bytes: r.add(
                "warmd_transfer_bytes_total",
                "Verified chunk bytes by family, direction, and who had them: a peer with the whole artifact, one with a \
                 part of it, the origin, or this node",
            ),
        }
    }

    /// To be had once for a transfer, and counted with often.
    pub fn bytes(&self, family: &artifact::Family, direction: Direction, holder: Holder) -> Counter {
        let family = FamilyName::of(family.as_str());
        self.chunk_bytes.get_or_create_owned(&ChunkLabels { family, direction, holder })
    }

    /// Bytes of chunks that other nodes have sent, or were sent.
    pub fn with_peers(&self, direction: Direction) -> u64 {
        let labels = |family| [Holder::Peer, Holder::Partial].map(|holder| ChunkLabels { family, direction, holder });
        let series = FamilyName::all().into_iter().flat_map(labels);
        series.filter_map(|labels| self.chunk_bytes.get(&labels).map(|bytes| bytes.get())).sum()
    }

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

    pub(super) fn refuse(&self, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabel { reason }).inc();
    }
}

impl PathMetrics {
    fn register(r: &mut Registry) -> Self {
        Self {
            rtt_seconds: r.insert(
                "warmd_quic_rtt_seconds",
                "Round-trip time of every open connection, once a second",
                seconds(0.000_01, 20),
            ),
            mtu_bytes: r.insert(
                "warmd_quic_mtu_bytes",
                "UDP payload size that every open connection sends, once a second",
                Histogram::new([1200.0, 1350.0, 1472.0, 4096.0, 8972.0]),
            ),
            lost_packets: r.add("warmd_quic_lost_packets_total", "Packets declared lost"),
            sent_packets: r.add("warmd_quic_sent_packets_total", "Packets sent"),
            datagrams: r.add("warmd_quic_datagrams_total", "UDP datagrams by direction"),
            datagram_bytes: r.add("warmd_quic_datagram_bytes_total", "Payload of UDP datagrams by direction"),
            sends: r.add(
                "warmd_quic_sends_total",
                "Calls that send datagrams; fewer than datagrams where segmentation offload works",
            ),
            black_holes: r.add("warmd_quic_black_holes_total", "Paths on which large datagrams got lost"),
            socket_buffers: r.add(
                "warmd_quic_socket_buffer_bytes",
                "What the kernel gave the accepting UDP socket, by direction; 0 without QUIC",
            ),
            last_mtu: Arc::default(),
        }
    }

    /// UDP payload in bytes that the connection looked at last sends; `None` before there was one.
    pub fn mtu(&self) -> Option<u16> {
        Some(self.last_mtu.load(Ordering::Relaxed)).filter(|mtu| *mtu > 0)
    }

    pub fn has_buffers(&self, buffers: Buffers) {
        let set = |direction, bytes| {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.socket_buffers.get_or_create(&DirectionLabel { direction }).set(bytes);
        };
        set(Direction::Sent, buffers.send);
        set(Direction::Received, buffers.receive);
    }

    /// Counts what has changed since `before`.
    pub fn observe(&self, before: &PathStats, now: &PathStats) {
        self.rtt_seconds.observe(now.rtt.as_secs_f64());
        self.mtu_bytes.observe(f64::from(now.mtu));
        self.last_mtu.store(now.mtu, Ordering::Relaxed);
        self.lost_packets.inc_by(now.lost_packets - before.lost_packets);
        self.sent_packets.inc_by(now.sent_packets - before.sent_packets);
        self.sends.inc_by(now.sends - before.sends);
        self.black_holes.inc_by(now.black_holes - before.black_holes);
        let add = |direction, datagrams, bytes| {
            let label = DirectionLabel { direction };
            self.datagrams.get_or_create(&label).inc_by(datagrams);
            self.datagram_bytes.get_or_create(&label).inc_by(bytes);
        };
        let (sent, bytes) = (now.sent_datagrams - before.sent_datagrams, now.sent_bytes - before.sent_bytes);
        add(Direction::Sent, sent, bytes);
        let received = now.received_datagrams - before.received_datagrams;
        add(Direction::Received, received, now.received_bytes - before.received_bytes);
    }
}
