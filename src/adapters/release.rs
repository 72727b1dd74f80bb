//! An adapter as an artifact: what identifies it, and what its publisher signs of it.
//!
//! An artifact of family `lora` holds exactly the two files of an adapter. It is looked up by what a request names: the
//! base model and the alias. Versions of an alias are its generations; which one is meant is its content id. Its subject is
//! the alias, too, so that a trust policy can give signers their own names. All else are signed attributes.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::config::MAX_RANK;
use super::safetensors::Limits;
use super::source::{CONFIG, WEIGHTS};
use super::{Address, Alias, BaseModel, MAX_CONFIG, Source};
use crate::artifact::{Family, Manifest, SourceIdentity, SourceIdentityError};
use crate::caches::{KindError, check_kind};
use crate::digest::ContentId;
use crate::identity::TrustClass;

/// The family's name.
pub const FAMILY: &str = "lora";

/// Names of facts.
pub const FACT_BASE_MODEL: &str = "base_model";
pub const FACT_ALIAS: &str = "alias";

/// Names of attributes.
pub const ALIAS: &str = "alias";
pub const BASE_MODEL: &str = "base_model";
pub const OWNER: &str = "owner";
pub const PROVENANCE: &str = "provenance";
pub const RANK: &str = "rank";
pub const DORA: &str = "dora";

const MAX_PROVENANCE: usize = 2048;

/// A manifest is no release of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    #[error("family `{0}`, expected `{FAMILY}`")]
    Family(String),
    #[error(transparent)]
    Kind(#[from] KindError),
    #[error("class {0}: an adapter is data")]
    Class(TrustClass),
    #[error("it lacks {0}")]
    Missing(&'static str),
    #[error("`{path}` has {bytes} bytes, allowed are {limit}")]
    TooLarge { path: String, bytes: u64, limit: u64 },
    #[error("its alias is `{attribute}`, its identity says `{fact}`")]
    Alias { attribute: Alias, fact: String },
    #[error("it is for `{attribute}`, its identity says `{fact}`")]
    Base { attribute: BaseModel, fact: String },
    #[error("its subject is `{subject}`, its alias `{alias}`: they must be equal, because policies judge the subject")]
    Subject { subject: String, alias: Alias },
    #[error("attribute `{0}` is missing")]
    NoAttribute(&'static str),
    #[error("attribute `{name}`: {why}")]
    Attribute { name: &'static str, why: String },
}

/// What a publisher says of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub alias: Alias,
    pub base: BaseModel,
    pub content: ContentId,
    pub rank: u32,
    pub dora: bool,
    pub owner: Option<Address>,
    /// Where it comes from, such as a training job or a revision on a hub; for people.
    pub provenance: Option<String>,
}

/// The lookup key of an adapter.
pub fn identity(base: &BaseModel, alias: &Alias) -> Result<SourceIdentity, SourceIdentityError> {
    let facts = [(FACT_BASE_MODEL, base.canonical()), (FACT_ALIAS, alias.to_string())];
    SourceIdentity::new(FAMILY.parse()?, facts.map(|(name, value)| (name.to_owned(), value)).into())
}

impl Release {
    /// Of a directory that is about to be published. `base` counts only where the adapter itself names no model.
    pub fn of(source: &Source, alias: Alias, base: BaseModel) -> Self {
        let config = source.config();
        Self {
            alias,
            base: config.base_model.clone().unwrap_or(base),
            content: source.content(),
            rank: config.rank,
            dora: config.use_dora,
            owner: None,
            provenance: None,
        }
    }

    pub fn identity(&self) -> Result<SourceIdentity, SourceIdentityError> {
        identity(&self.base, &self.alias)
    }

    /// To be signed. The subject is the alias.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let owner = self.owner.map(|owner| owner.to_string());
        let attributes = [
            (ALIAS, Some(self.alias.to_string())),
            (BASE_MODEL, Some(self.base.to_string())),
            (RANK, Some(self.rank.to_string())),
            (DORA, Some(self.dora.to_string())),
            (OWNER, owner),
            (PROVENANCE, self.provenance.clone()),
        ];
        attributes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// Whatever a trusted signer signed; that its parts fit together is judged here.
    pub fn read(manifest: &Manifest) -> Result<Self, ReleaseError> {
        let family: &Family = manifest.identity.family();
        if family.as_str() != FAMILY {
            return Err(ReleaseError::Family(family.to_string()));
        }
        check_kind(manifest)?;
        if manifest.class != TrustClass::Data {
            return Err(ReleaseError::Class(manifest.class));
        }
        check_files(manifest)?;
        let attributes = Attributes(&manifest.attributes);
        let release = Self {
            alias: attributes.required(ALIAS)?,
            base: attributes.required(BASE_MODEL)?,
            content: manifest.content_id(),
            rank: attributes.required(RANK)?,
            dora: attributes.required(DORA)?,
            owner: attributes.optional(OWNER)?,
            provenance: attributes.optional(PROVENANCE)?,
        };
        release.check(manifest)?;
        Ok(release)
    }

    fn check(&self, manifest: &Manifest) -> Result<(), ReleaseError> {
        let fact = |name| manifest.identity.facts().get(name).cloned().unwrap_or_default();
        let (alias, base) = (fact(FACT_ALIAS), fact(FACT_BASE_MODEL));
        if alias != self.alias.as_str() {
            return Err(ReleaseError::Alias { attribute: self.alias.clone(), fact: alias });
        }
        if base != self.base.canonical() {
            return Err(ReleaseError::Base { attribute: self.base.clone(), fact: base });
        }
        if manifest.subject != self.alias.as_str() {
            return Err(ReleaseError::Subject { subject: manifest.subject.clone(), alias: self.alias.clone() });
        }
        let wrong = |name, why: String| Err(ReleaseError::Attribute { name, why });
        if !(1..=MAX_RANK).contains(&self.rank) {
            return wrong(RANK, format!("{}, expected 1 to {MAX_RANK}", self.rank));
        }
        if self.provenance.as_ref().is_some_and(|text| text.len() > MAX_PROVENANCE) {
            return wrong(PROVENANCE, format!("longer than {MAX_PROVENANCE} bytes"));
        }
        Ok(())
    }
}

fn check_files(manifest: &Manifest) -> Result<(), ReleaseError> {
    for (name, limit) in [(CONFIG, MAX_CONFIG), (WEIGHTS, Limits::ADAPTER.file)] {
        let file = manifest.files.iter().find(|file| file.path.as_str() == name);
        let file = file.ok_or(ReleaseError::Missing(name))?;
        if file.size > limit {
            return Err(ReleaseError::TooLarge { path: name.to_owned(), bytes: file.size, limit });
        }
    }
    Ok(())
}

struct Attributes<'a>(&'a BTreeMap<String, String>);

impl Attributes<'_> {
    fn optional<T: FromStr<Err: std::fmt::Display>>(&self, name: &'static str) -> Result<Option<T>, ReleaseError> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        let value = text.parse().map_err(|error: T::Err| ReleaseError::Attribute { name, why: error.to_string() });
        value.map(Some)
    }

    fn required<T: FromStr<Err: std::fmt::Display>>(&self, name: &'static str) -> Result<T, ReleaseError> {
        self.optional(name)?.ok_or(ReleaseError::NoAttribute(name))
    }
}

#[cfg(test)]
mod tests;
