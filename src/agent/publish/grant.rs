//! What a caller may have published in this agent's name: whoever reads it trusts the signer, and knows of no caller.

use super::PublishError;
use crate::artifact::Family;
use crate::caches::CacheFamily;
use crate::identity::TrustClass;

#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Grant {
    pub(in crate::agent) uid: u32,
    /// Highest class of directories and of families that warmd does not know; those that it knows have their own.
    pub(in crate::agent) class: TrustClass,
    /// Most bytes in pushes that are not complete.
    pub(in crate::agent) push_bytes: u64,
}

impl Grant {
    pub(in crate::agent) fn of_operator(uid: u32) -> Self {
        Self { uid, class: TrustClass::HostCode, push_bytes: u64::MAX }
    }

    pub(super) fn check(&self, family: &Family, class: TrustClass) -> Result<(), PublishError> {
        match CacheFamily::known(family).is_some() || class <= self.class {
            true => Ok(()),
            false => Err(PublishError::Class { uid: self.uid, family: family.clone(), class, highest: self.class }),
        }
    }
}
