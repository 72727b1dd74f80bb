//! The engine's side of adapters.

use std::path::{Path, PathBuf};

use crate::adapters::ServedName;
use crate::proxy::BoxFuture;

/// The engine did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It looked at the adapter and does not serve it.
    #[error("the engine refuses it: {reason}")]
    Refused { reason: String },
    #[error("the engine misses files in the adapter's directory")]
    MissingFiles,
    /// It was not reached, or is not of that epoch any more. Nothing happened.
    #[error("the engine is not there")]
    Unavailable,
    /// It was asked and did not answer in time, or not in words that are understood: it may have done it.
    #[error("the engine did not say whether it did it")]
    Unknown,
}

/// A line of the engine's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub name: String,
    pub directory: PathBuf,
}

/// The engine's registry of adapters. `epoch` names one life of the engine: a call for another one is
/// [`RegistryError::Unavailable`].
pub trait Registry: Send + Sync + 'static {
    /// `directory` is absolute. `Ok` also if the engine has exactly this already. Never in place of another one.
    fn load<'a>(
        &'a self,
        epoch: u64,
        name: &'a ServedName,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<(), RegistryError>>;

    /// `Ok` also if the engine does not know it.
    fn unload<'a>(&'a self, epoch: u64, name: &'a ServedName) -> BoxFuture<'a, Result<(), RegistryError>>;

    /// All adapters that it knows, ours or not.
    fn list(&self, epoch: u64) -> BoxFuture<'_, Result<Vec<Registered>, RegistryError>>;
}
