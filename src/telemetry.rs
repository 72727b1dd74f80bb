//! Logs, traces, metrics, and the audit log. Each module defines its own metrics struct; here is where they are exposed.

pub mod audit;
mod http;
mod log;
mod reloads;
pub mod trace;

pub use http::{MetricsSection, MetricsServer, encode};
pub use log::{InitError, LogConfig, LogFormat, escaped, init, set_level};
pub use reloads::{ReloadMetrics, ReloadResult};
pub use trace::TracingConfig;
