//! Signers of the policy, and what each of them may sign.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Claim, Refusal, TrustClass};
use crate::identity::key::PublicKey;
use crate::identity::time::UnixTime;

/// What a signer may sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    pub families: Vec<String>,
    pub class: TrustClass,
    #[serde(default = "everything", skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<UnixTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<UnixTime>,
}

fn everything() -> Vec<String> {
    vec!["*".to_owned()]
}

/// One `[[signer]]` of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signer {
    pub name: String,
    pub key: PublicKey,
    #[serde(flatten)]
    pub scope: Scope,
}

/// As in the file. `flatten` and `deny_unknown_fields` do not go together in serde, hence the repetition of [`Scope`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignerFields {
    name: String,
    key: PublicKey,
    families: Vec<String>,
    class: TrustClass,
    #[serde(default = "everything")]
    subjects: Vec<String>,
    #[serde(default)]
    facts: BTreeMap<String, String>,
    not_before: Option<UnixTime>,
    not_after: Option<UnixTime>,
}

impl From<SignerFields> for Signer {
    fn from(f: SignerFields) -> Self {
        let SignerFields { name, key, families, class, subjects, facts, not_before, not_after } = f;
        Self { name, key, scope: Scope { families, class, subjects, facts, not_before, not_after } }
    }
}

impl Signer {
    pub(super) fn judge(&self, claim: &Claim<'_>, now: UnixTime) -> Result<(), Refusal> {
        let name = || self.name.clone();
        let scope = &self.scope;
        if let Some(from) = scope.not_before.filter(|from| !from.has_come(now)) {
            return Err(Refusal::SignerTooEarly { name: name(), from });
        }
        if let Some(until) = scope.not_after.filter(|until| until.has_passed(now)) {
            return Err(Refusal::SignerExpired { name: name(), until });
        }
        if !scope.families.iter().any(|pattern| matches(pattern, claim.family)) {
            return Err(Refusal::Family { name: name(), family: claim.family.to_owned() });
        }
        if claim.class > scope.class {
            return Err(Refusal::Class { name: name(), allowed: scope.class, class: claim.class });
        }
        if !scope.subjects.iter().any(|pattern| matches(pattern, claim.subject)) {
            return Err(Refusal::Subject { name: name(), subject: claim.subject.to_owned() });
        }
        for (fact, pattern) in &scope.facts {
            let value = claim.facts.get(fact);
            if !value.is_some_and(|value| matches(pattern, value)) {
                let found = value.map_or_else(|| "no such fact".to_owned(), |value| format!("`{value}`"));
                return Err(Refusal::Fact { name: name(), fact: fact.clone(), pattern: pattern.clone(), found });
            }
        }
        Ok(())
    }
}

/// `*` matches any run of characters, everything else itself.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut rest = rest;
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
