//! What commands on the pod's side take: where the agent is, whom to trust, and which engine on which caches.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use clap::builder::BoolishValueParser;

use super::aliases;
use crate::caches::{Directories, Environment, Probe};
use crate::identity::trust::read_root;
use crate::identity::{PublicKey, TrustConfig};
use crate::serve::Target;
use crate::serve::trust::Trust;

#[derive(Debug, Args)]
pub(super) struct Pod {
    /// Unix socket of the agent
    #[arg(long, env = "WARMD_SOCKET", default_value = "/run/warmd/agent.sock", value_name = "PATH")]
    socket: PathBuf,
    /// Trust policy of this pod; without one nothing is installed
    #[arg(long, env = "WARMD_TRUST_POLICY", value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Signed root document of this pod: the policy is what the agent hands on, verified with this, and --policy is not used
    #[arg(long, env = "WARMD_TRUST_ROOT", value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// Public key that must have signed the policy; may be repeated
    #[arg(long = "policy-root", value_name = "KEY")]
    roots: Vec<PublicKey>,
    #[command(flatten)]
    pub(super) caches: Caches,
    /// Digest of the image that this runs in
    #[arg(long, env = "WARMD_IMAGE_DIGEST", value_name = "DIGEST")]
    image_digest: Option<String>,
}

/// Which engine on which caches, beside its command.
#[derive(Debug, Args)]
pub(super) struct Caches {
    /// Directory below which all caches are, unless the environment says where; absent: vLLM's own
    #[arg(long, env = "WARMD_CACHE_ROOT", value_name = "DIR")]
    cache_root: Option<PathBuf>,
    /// Python interpreter that runs the engine; absent: the one that the command names
    #[arg(long, env = "WARMD_PYTHON", value_name = "PATH")]
    python: Option<PathBuf>,
    /// `false`: nothing is brought, nothing is published [default: true]
    #[arg(long, env = "WARMD_TRANSFER", value_name = "BOOL", value_parser = BoolishValueParser::new())]
    transfer: Option<bool>,
}

/// Why nothing is brought and nothing published.
pub(super) const SWITCHED_OFF: &str = "transfers are switched off (--transfer, WARMD_TRANSFER)";

impl Caches {
    /// As a configuration file says.
    pub(super) fn new(cache_root: Option<PathBuf>, python: Option<PathBuf>) -> Self {
        Self { cache_root, python, transfer: None }
    }

    /// Once, before anything is looked at.
    pub(super) fn take_aliases(&mut self) {
        self.transfer = aliases::TRANSFER.or(self.transfer);
    }

    pub(super) fn cache_root(&self) -> Option<&Path> {
        self.cache_root.as_deref()
    }

    pub(super) fn is_off(&self) -> bool {
        self.transfer == Some(false)
    }

    pub(super) fn target(&self, socket: PathBuf, image: Option<String>, command: Vec<String>) -> Target {
        Target {
            command,
            python: self.python.clone(),
            root: self.cache_root.clone(),
            socket,
            facts_cache: Probe::default_cache(&Environment::of_this_process()),
            image,
            changes: Vec::new(),
        }
    }
}

impl Pod {
    pub(super) fn target(&self, command: Vec<String>) -> Target {
        self.caches.target(self.socket.clone(), self.image_digest.clone(), command)
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Fails if a policy is named and cannot be looked at: what runs for days does not do so without what it was given.
    pub(super) fn check_policy(&self) -> anyhow::Result<()> {
        if self.caches.is_off() {
            return Ok(());
        }
        if let Some(root) = &self.trust_root {
            return read_root(root).map(drop).context("--trust-root, WARMD_TRUST_ROOT");
        }
        let Some(path) = &self.policy else { return Ok(()) };
        let found = path.metadata();
        found.map(drop).with_context(|| format!("trust policy {} (--policy, WARMD_TRUST_POLICY)", path.display()))
    }

    /// Whom this pod trusts, or why nothing can be installed.
    pub(super) fn trust(&self) -> Trust {
        let trust = self.trusted();
        if self.caches.is_off() { trust.switched_off(SWITCHED_OFF) } else { trust }
    }

    fn trusted(&self) -> Trust {
        if self.policy.is_none() && self.trust_root.is_none() {
            return Trust::nobody(
                "no trust policy: pass --policy or --trust-root (or WARMD_TRUST_POLICY, WARMD_TRUST_ROOT)",
            );
        }
        let config = TrustConfig {
            root: self.trust_root.clone(),
            policy: self.policy.clone(),
            roots: self.roots.clone(),
            threshold: 1,
        };
        trust(&config, self.caches.cache_root.as_deref())
    }
}

/// As a configuration says, for caches below `root`.
pub(super) fn trust(config: &TrustConfig, root: Option<&Path>) -> Trust {
    let Some(document) = &config.root else { return Trust::file(config.clone()) };
    let caches = Directories::choose(root, &Environment::of_this_process()).ok();
    match Trust::documents(document, caches.as_ref().map(Directories::root)) {
        Ok(trust) => trust,
        Err(error) => Trust::nobody(format!("trust: {}", super::sentence(&error.into()))),
    }
}
