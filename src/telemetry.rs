//! Logs and metrics. Each module defines its own metrics struct; here is where they are exposed.

mod http;
mod log;

pub use http::{MetricsSection, MetricsServer, encode};
pub use log::{LogConfig, LogFormat, init};
