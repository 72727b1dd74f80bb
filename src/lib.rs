//! warmd keeps vLLM nodes warm. (The map of the code; see the design.)

pub mod artifact;
pub mod digest;
pub mod durable;
pub mod identity;
pub mod lifecycle;
pub mod protocol;
pub mod telemetry;
pub mod transfer;
