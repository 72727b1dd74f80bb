//! What a running server takes from another configuration.

use std::sync::{Arc, PoisonError, RwLock};

use super::{ServeConfig, Serving};
use crate::proxy::auth::{AuthError, FreshKeys};

/// The configuration in force; clones are the same.
#[derive(Debug, Clone)]
pub(in crate::serve) struct Effective(Arc<RwLock<ServeConfig>>);

impl Effective {
    pub(super) fn new(config: ServeConfig) -> Self {
        Self(Arc::new(RwLock::new(config)))
    }

    /// Every key at its value.
    pub(in crate::serve) fn as_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&*self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Serving {
    /// Reads the files of API keys and key sets again, and changes nothing.
    pub async fn read_again(&self) -> Result<FreshKeys, AuthError> {
        self.access.authenticator().read_again().await
    }

    /// Takes these keys, and limits; everything else of `config` must be as it is.
    pub fn take(&self, keys: FreshKeys, config: &ServeConfig) {
        self.access.authenticator().take(keys);
        self.access.limits().set(config.limits.clone());
        *self.effective.0.write().unwrap_or_else(PoisonError::into_inner) = config.clone();
    }
}
