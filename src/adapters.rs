//! LoRA adapters: what one is, whether an engine can serve it, and what is made of it before the engine sees it. No
//! network and no engine here.
//!
//! ```text
//! directory --Source--> two files, read with bounds --check--> verdict --Preparer--> <root>/<content>-<policy>/
//! manifest --Release::read--> alias, base model, owner, ... --check_release--> verdict, before anything is fetched
//! ```
//!
//! # Checks
//!
//! A stranger wrote both files. [`safetensors`] and [`AdapterConfig`] read them with limits: a claimed length is compared
//! with the file before anything is allocated, JSON is bounded in size and depth and says nothing twice, names are
//! printable. Pickles in place of weights are refused by name, because engines fall back to them. [`check()`] then judges what was read by
//! what the engine serves; a [`Refusal`] names the thing, both values and the way out. The adapter's own
//! `adapter_config.json` says which base model it is for; what a registry or a request says is a [`Claim`], whose
//! disagreement is a [`Warning`].
//!
//! # Preparation
//!
//! A [`Preparer`] makes of an adapter what the engine can load, by a [`Policy`]:
//!
//! - keys are renamed by a template, where the engine has other names for its layers;
//! - tensors of the vision tower are dropped if they do nothing: a `lora_B` whose L2 norm is above the threshold was
//!   trained, and the adapter is refused;
//! - a DoRA adapter is refused, stripped of its magnitudes, or approximated: the exact change of each weight is computed
//!   from the base weights on this node, projected to the rank, stored, and compared with the exact change again;
//! - `target_modules` becomes what tensors exist for; settings that engines stumble over go, `use_rslora` stays;
//! - numbers that are not finite are refused.
//!
//! The result is deterministic, and its directory is named by the content id *and* the policy's digest, which covers the
//! engine's limits and, for an approximation, the base weights: no change of settings can find the output of other ones.
//! It appears by one rename, with a report, is verified whenever it is found again, and is never changed.
//!
//! # Names
//!
//! An [`Alias`] is what clients say, and never a path. A [`ServedName`] is what the engine knows: alias and digest of
//! content and policy, so that no two different weights ever share a name.

mod address;
mod base;
mod check;
mod config;
mod dora;
mod json;
mod keys;
mod linalg;
mod name;
mod policy;
mod prepare;
pub mod release;
pub mod safetensors;
mod source;

pub use address::{Address, AddressError};
pub use base::{BaseError, BaseModel, BaseWeights, InvalidBaseModel};
pub use check::{Claim, Claimant, Refusal, Requirements, Verdict, Warning, check, check_release};
pub use config::{AdapterConfig, ConfigError, MAX_CONFIG, MAX_RANK, TargetModules};
pub use name::{Alias, NameError, ServedName};
pub use policy::{Dora, Engine, Policy, PolicyError, Remap, Template, Vision};
pub use prepare::{
    AdapterRoot, DoraReport, Dropped, FileReport, Loss, PreparationId, PrepareError, Prepared, Preparer, Report,
    Settings,
};
pub use release::{Release, ReleaseError};
pub use source::{CONFIG, Source, SourceError, WEIGHTS};
