//! The pod's side: brings what the agent fetched into the pod's own cache roots, with the pod's uid, mounts and policy, runs
//! the engine on them, and hands over what it added.

pub mod difference;
pub mod doctor;
pub mod exec;
pub mod last_start;
pub mod outlook;
pub mod push;
pub mod quarantine;
mod records;
pub mod warm;
