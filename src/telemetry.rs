//! Logs, metrics, and the audit log. Each module defines its own metrics struct; here is where they are exposed.

pub mod audit;
mod http;
mod log;

pub use http::{MetricsSection, MetricsServer, encode};
pub use log::{LogConfig, LogFormat, init};
