//! The pod's side: brings what the agent fetched into the pod's own cache root, with the pod's uid, mounts and policy.

pub mod warm;
