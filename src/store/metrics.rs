//! What the store tells about itself.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::Limits;
use crate::telemetry::Registry;

/// Metrics of the store.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub bytes: Gauge,
    pub chunks: Gauge,
    pub complete: Gauge,
    pub partial: Gauge,
    pub free_bytes: Gauge,
    pub reserve_bytes: Gauge,
    pub limit_bytes: Gauge,
    pub written_bytes: Counter,
    pub read_bytes: Counter,
    pub damaged_chunks: Counter,
    pub evictions: Counter,
    pub evicted_bytes: Counter,
    pub full: Counter,
}

impl Metrics {
    pub(super) fn limited(&self, limits: Limits) {
        let gauge = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.reserve_bytes.set(gauge(limits.reserve));
        self.limit_bytes.set(gauge(limits.max_bytes.unwrap_or(0)));
    }

    pub fn register(r: &mut Registry) -> Self {
        Self {
            bytes: r.add("warmd_store_bytes", "All chunk files"),
            chunks: r.add("warmd_store_chunks", "Chunk files"),
            complete: r.add("warmd_store_complete_artifacts", "Artifacts with all their chunks"),
            partial: r.add("warmd_store_partial_artifacts", "Artifacts that lack chunks"),
            free_bytes: r.add("warmd_store_free_bytes", "Free on the store's file system at the last look"),
            reserve_bytes: r.add("warmd_store_reserve_bytes", "What the store leaves free on its file system"),
            limit_bytes: r.add("warmd_store_limit_bytes", "Most bytes of chunk files; 0: only the disk bounds them"),
            written_bytes: r.add("warmd_store_written_bytes_total", "New chunks"),
            read_bytes: r.add("warmd_store_read_bytes_total", "Chunks handed out"),
            damaged_chunks: r.add("warmd_store_damaged_chunks_total", "Chunks deleted because their content was wrong"),
            evictions: r.add("warmd_store_evictions_total", "Artifacts removed to make room"),
            evicted_bytes: r.add("warmd_store_evicted_bytes_total", "Chunks removed to make room"),
            full: r.add("warmd_store_full_total", "Times that there was no room, and none could be made"),
        }
    }
}
