//! The metadata server and its client: who holds which artifact, for which source identity.
//!
//! The [`Server`] keeps a soft-state directory ([`registry`], pure) and answers over gRPC with mutual TLS. Everything that
//! it says is a hint (I10): it can send a node to the wrong holder, never make it accept a byte. Each start has a new server
//! epoch, by which agents notice that its knowledge may be gone and announce everything again. What the backend keeps on disk
//! only bridges the time until they did.
//!
//! Several servers can share one store instead (`backend::shared`); each has all of the directory in memory.
//!
//! [`Compatibility`] stands beside it, for clients of another system.
//!
//! An agent has a [`Client`], and one [`Announcer`] whose task alone speaks for the node, so that nothing is said after STALE.

mod announcer;
mod backend;
mod client;
mod compat;
pub mod fleet;
mod metrics;
pub mod registry;
mod room;
mod server;
mod service;
mod trust;
mod watch;

pub use announcer::{AnnounceConfig, AnnouncedNode, Announcer, TooManyArtifacts};
pub use backend::BackendError;
pub use backend::shared::{Difference, Drift, Drifted, InvalidStoreUrl, RedisConfig, StoreError, StoreUrl};
pub use client::{
    Client, ClientConfig, ClientError, ClientMetrics, InvalidServerAddr, Refusal, ServerAddr, Watch, Words,
};
pub use compat::{Compatibility, CompatibilityConfig, ExplicitAddr, Metrics as CompatibilityMetrics, NotExplicit};
pub use metrics::Metrics as ServerMetrics;
pub use server::{Config, Server, ServerError, Store};

#[cfg(test)]
mod tests;
