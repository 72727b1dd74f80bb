//! What can be tuned, and the words that the plan and its driver exchange.

use std::time::Duration;

use crate::artifact::Bitmap;
use crate::identity::NodeId;

#[derive(Debug, Clone)]
pub struct PlanConfig {
    /// Most encoded bytes of one request; a single larger chunk is still asked for. 16 MiB.
    pub max_request_bytes: u64,
    /// Most chunks of one request; the peer protocol allows 64.
    pub max_request_chunks: usize,
    /// Most requests at one holder at a time. 8.
    pub max_streams_per_holder: u32,
    /// Most bytes asked for and not yet here, over all holders, duplicates included; one request is always allowed. 48 MiB.
    pub max_in_flight_bytes: u64,
    /// From the request to its first byte, and from asking for a bitmap to its arrival. 5 s.
    pub first_byte: Duration,
    /// Within each such time [`progress_bytes`](Self::progress_bytes) must arrive. 5 s.
    pub progress: Duration,
    /// 64 KiB.
    pub progress_bytes: u64,
    /// One request from beginning to end. 60 s.
    pub total: Duration,
    /// How much one request should keep a holder busy at its measured pace. 25 ms.
    pub batch: Duration,
    /// How old the bitmap of a partial holder may become that has something for us; it decides what counts as rare. 250 ms.
    pub have_age: Duration,
    /// How soon a partial holder that has nothing for us is asked again; doubles up to a quarter of a second while it does
    /// not grow. It answers when it grows, so this is only the least time between two answers. 5 ms.
    pub have_retry: Duration,
    /// Partial holders that did not grow for so long are not expected to. 10 s.
    pub growth: Duration,
    /// Chunks that an idle holder would bring so many times sooner than the one they are asked of are asked of both. 6: with
    /// 3, sixty-four pullers duplicate a tenth of their bytes and gain nothing.
    pub steal_ratio: f64,
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self {
            max_request_bytes: 16 << 20,
            max_request_chunks: 64,
            max_streams_per_holder: 8,
            max_in_flight_bytes: 48 << 20,
            first_byte: Duration::from_secs(5),
            progress: Duration::from_secs(5),
            progress_bytes: 64 << 10,
            total: Duration::from_secs(60),
            batch: Duration::from_millis(25),
            have_age: Duration::from_millis(250),
            have_retry: Duration::from_millis(5),
            growth: Duration::from_secs(10),
            steal_ratio: 6.0,
        }
    }
}

/// Names one request of one plan; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locality {
    SameRack,
    SameZone,
    SameRegion,
    Other,
}

/// What a holder says that it has.
#[derive(Debug, Clone)]
pub enum Have {
    All,
    /// One bit for each chunk of the artifact.
    Some(Bitmap),
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for these chunks in this order; ends with one `on_finished` or `on_failed`, also when it was cancelled. `fresh`
    /// ones only unless they were given to others lately.
    Request { request: RequestId, node: NodeId, indices: Vec<u32>, fresh: bool },
    /// Stop the request; what arrives of it nevertheless may be reported and counts.
    Cancel { request: RequestId, node: NodeId },
    /// Ask what the holder has; ends with `set_have` or `on_have_failed`. The answer may wait a little until there are more
    /// chunks than `known`.
    AskHave { node: NodeId, known: Option<u32> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkOutcome {
    New,
    /// Was here already: the bytes can be dropped.
    Duplicate,
}

/// Why a request ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Busy {
        retry_after: Duration,
    },
    /// What was to be fresh was given to others; [`Plan::set_given`](super::Plan::set_given) was told.
    Given,
    NotFound,
    Draining,
    Forbidden,
    /// The stream broke or ended early, the connection may still be good.
    Reset,
    Disconnected,
    TimedOut,
}

/// Why a holder is not asked any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It sent a chunk with a wrong digest; never asked again by this plan.
    Bad,
    /// Never asked again by this plan.
    Forbidden,
    /// Asked again once it is added again.
    NotFound,
    /// Asked again once it is added again.
    Draining,
    /// Failed several times in a row; asked again once it is added again.
    Unreachable,
}

/// Why the missing chunks cannot come from the known holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// No holder was added.
    NoHolders,
    /// Every holder lied or refuses us: only others can help.
    Refused,
    /// Every holder is gone, some for reasons that pass.
    Unreachable,
    /// So many missing chunks are with no holder that is left, and none of them grows.
    NotHeld { chunks: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub chunks_done: usize,
    pub chunks: usize,
    /// Encoded bytes.
    pub bytes_done: u64,
    pub bytes: u64,
    /// Holders with a request in flight.
    pub holders_active: usize,
}
