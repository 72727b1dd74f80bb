//! Logs, traces, metrics, and the audit log. Each module defines its own metrics struct; here is what it is registered with, and
//! where it is exposed.

pub mod audit;
mod http;
mod log;
mod metrics;
mod reloads;
pub mod trace;

pub use http::{MetricsSection, MetricsServer};
pub use log::{InitError, LogConfig, LogFormat, escaped, init, set_level};
pub use metrics::{Bounded, Described, Description, Format, Label, LabelSet, Registry};
pub(crate) use metrics::{label, labels, parts, snake};
pub use reloads::ReloadResult;
pub use trace::TracingConfig;

/// What OpenMetrics scrapers get.
pub fn encode(registry: &Registry) -> String {
    Format::OpenMetrics.encode(registry)
}
