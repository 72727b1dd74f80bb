//! The pod's side: brings what the agent fetched into the pod's own cache roots, with the pod's uid, mounts and policy, runs
//! the engine on them, and hands over what it added.

pub mod adapters;
mod admin;
mod admissions;
mod audit;
pub mod difference;
pub mod doctor;
pub mod exec;
pub mod finetunes;
pub mod hook;
pub mod last_start;
pub mod outlook;
mod publishing;
pub mod push;
pub mod quarantine;
mod received;
mod records;
pub mod serving;
pub mod start;
pub mod target;
pub mod trust;
pub mod warm;
mod warming;
mod worth;

pub use publishing::Unpublished;
pub use target::{Say, Target};
