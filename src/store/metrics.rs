//! What the store tells about itself.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Metrics of the store.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Bytes of all chunk files.
    pub bytes: Gauge,
    pub chunks: Gauge,
    /// Complete artifacts.
    pub complete: Gauge,
    /// Artifacts that lack chunks.
    pub partial: Gauge,
    /// Bytes that the file system had free at the last look.
    pub free_bytes: Gauge,
    /// Bytes of new chunks.
    pub written_bytes: Counter,
    /// Bytes of chunks handed out.
    pub read_bytes: Counter,
    /// Chunks that were deleted because they did not hold what their name says.
    pub damaged_chunks: Counter,
    /// Artifacts that were removed to make room.
    pub evictions: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("warmd_store_bytes", "Bytes of all chunk files", &metrics.bytes);
        gauge("warmd_store_chunks", "Chunk files", &metrics.chunks);
        gauge("warmd_store_complete_artifacts", "Artifacts with all their chunks", &metrics.complete);
        gauge("warmd_store_partial_artifacts", "Artifacts that lack chunks", &metrics.partial);
        gauge("warmd_store_free_bytes", "Bytes free on the store's file system", &metrics.free_bytes);
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("warmd_store_written_bytes", "Bytes of new chunks", &metrics.written_bytes);
        counter("warmd_store_read_bytes", "Bytes of chunks handed out", &metrics.read_bytes);
        counter(
            "warmd_store_damaged_chunks",
            "Chunks deleted because their content was wrong",
            &metrics.damaged_chunks,
        );
        counter("warmd_store_evictions", "Artifacts removed to make room", &metrics.evictions);
        metrics
    }
}
