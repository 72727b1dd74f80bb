//! What commands on the pod's side take: where the agent is, whom to trust, and which engine on which caches.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::identity::{Policy, PublicKey, TrustConfig, UnixTime};

#[derive(Debug, Args)]
pub(super) struct Pod {
    /// Unix socket of the agent
    #[arg(long, env = "WARMD_SOCKET", default_value = "/run/warmd/agent.sock", value_name = "PATH")]
    pub(super) socket: PathBuf,
    /// Trust policy of this pod; without one nothing is installed
    #[arg(long, env = "WARMD_TRUST_POLICY", value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Public key that must have signed the policy; may be repeated
    #[arg(long = "policy-root", value_name = "KEY")]
    roots: Vec<PublicKey>,
    /// Directory below which all caches are, unless the environment says where; absent: vLLM's own
    #[arg(long, env = "WARMD_CACHE_ROOT", value_name = "DIR")]
    pub(super) cache_root: Option<PathBuf>,
    /// Python interpreter that runs the engine; absent: the one that the command names
    #[arg(long, env = "WARMD_PYTHON", value_name = "PATH")]
    pub(super) python: Option<PathBuf>,
    /// Digest of the image that this runs in
    #[arg(long, env = "WARMD_IMAGE_DIGEST", value_name = "DIGEST")]
    pub(super) image_digest: Option<String>,
}

impl Pod {
    /// The policy, or why there is none and nothing can be installed.
    pub(super) fn policy(&self) -> Result<Arc<Policy>, String> {
        let Some(path) = &self.policy else {
            return Err("no trust policy: pass --policy (or WARMD_TRUST_POLICY)".to_owned());
        };
        let trust = TrustConfig { policy: Some(path.clone()), roots: self.roots.clone(), threshold: 1 };
        let policy = trust.load(None).map_err(|error| format!("trust policy: {}", super::sentence(&error.into())))?;
        let policy = policy.ok_or_else(|| "no trust policy".to_owned())?;
        match policy.is_expired(UnixTime::now()) {
            true => Err(format!("the trust policy expired at {}: put a newer one in place", policy.expires)),
            false => Ok(Arc::new(policy)),
        }
    }
}
