//! Moving artifacts between nodes.
//!
//! [`Plan`] decides which chunk is asked of which holder and when: it is pure, and it is the only place where such
//! decisions are made. What carries them out reports every event back and adds no policy of its own.

mod plan;

pub use plan::{
    Action, ChunkOutcome, Failure, Gone, Have, Locality, MAX_HOLDERS, Plan, PlanConfig, Progress, RequestId, Stuck,
};
