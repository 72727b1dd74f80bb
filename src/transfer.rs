//! Moving artifacts between nodes.
//!
//! [`plan::Plan`] decides which chunk is asked of which holder and when: it is pure, and it is the only place where such
//! decisions are made; [`Search`] does the same for manifests, and [`Desk`] for a holder. [`Fetcher`] carries them out and reports every event back; [`Provider`] serves. What a fetch has
//! verified is in the store at once, where the provider of the same node serves it onward.

mod buffers;
mod cap;
mod connections;
mod fetch;
mod metrics;
pub mod plan;
mod provide;
mod request;
mod wanted;

pub use cap::EngineId;
pub use connections::Connections;
pub use fetch::{Accept, FIND_AGAIN, FetchError, Fetched, Fetcher, Find, Holds, Progress, Search, Source};
pub use metrics::{Direction, Holder, Metrics};
pub use plan::{Locality, PlanConfig};
pub use provide::{Ask, Desk, MANIFEST_WAIT, MayServe, NotNow, ProvideConfig, Provider, Slot, What};
pub use wanted::Wanted;

#[cfg(test)]
mod tests;
