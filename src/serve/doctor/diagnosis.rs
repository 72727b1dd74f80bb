//! From what this node is and what others have, what of it would hit. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use crate::caches::IdentityError;
use crate::digest::{ArtifactId, IdentityId, KeyId};
use crate::identity::{Policy, UnixTime};
use crate::serve::difference::{Difference, differences, launch_of};
use crate::serve::outlook::{Outlook, Prospect};
use crate::serve::quarantine::{Quarantine, Release};

/// An artifact of one of this node's identities.
#[derive(Debug, Clone)]
pub struct Offered {
    pub artifact: ArtifactId,
    pub identity: IdentityId,
    pub subject: String,
    pub generation: u64,
    pub created: UnixTime,
    /// Decoded bytes of its files.
    pub bytes: u64,
    /// As the directory says.
    pub signer: KeyId,
    pub holders: u32,
}

/// An artifact of another identity, or a variant of one of this node's.
#[derive(Debug, Clone)]
pub struct Neighbour {
    pub family: String,
    pub identity: IdentityId,
    pub subject: String,
    pub created: UnixTime,
    pub holders: u32,
    /// Of its identity.
    pub artifacts: u32,
    /// What its manifest says; else why nothing of it can be told.
    pub described: Result<Described, String>,
}

/// What a manifest says that the node's policy has accepted.
#[derive(Debug, Clone, Default)]
pub struct Described {
    pub facts: BTreeMap<String, String>,
    pub attributes: BTreeMap<String, String>,
    pub signers: Vec<String>,
}

/// What the agent knows.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    pub offered: Vec<Offered>,
    pub neighbours: Vec<Neighbour>,
}

impl Answers {
    /// The signers of its manifest, where that was looked at: it is of the newest of each subject.
    fn accepted(&self, offered: &Offered) -> &[String] {
        let key = |one: &Neighbour| (one.identity, one.created) == (offered.identity, offered.created);
        let manifest = self.neighbours.iter().find(|one| key(one) && one.subject == offered.subject);
        manifest.and_then(|one| one.described.as_ref().ok()).map_or(&[], |described| &described.signers)
    }
}

/// What keeps an artifact out although somebody has it. Absent: nothing is known of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules<'a> {
    pub policy: Option<&'a Policy>,
    pub quarantine: Option<&'a Quarantine>,
}

/// What an offered artifact comes to.
enum Fate {
    Installed,
    Stranger,
    Revoked,
    Quarantined(String),
}

impl Rules<'_> {
    /// `accepted` are the signers of its manifest that a policy has accepted, where that is known: the directory says one,
    /// and there may be others.
    fn fate(&self, prospect: &Prospect, offered: &Offered, accepted: &[String]) -> Fate {
        let mut signers = Vec::new();
        if let Some(policy) = self.policy {
            let accepted = Some(policy.keys_of(accepted)).filter(|keys| !keys.is_empty());
            let keys = accepted.unwrap_or_else(|| vec![offered.signer]);
            if policy.is_revoked(&offered.artifact, &keys) {
                return Fate::Revoked;
            }
            let in_force = policy.signers_in_force().filter(|signer| keys.contains(&signer.key.id()));
            signers.extend(in_force.map(|signer| signer.name.clone()));
            if signers.is_empty() {
                return Fate::Stranger;
            }
        }
        let release = Release {
            artifact: offered.artifact,
            family: prospect.family.name.to_owned(),
            identity: offered.identity,
            subject: offered.subject.clone(),
            generation: offered.generation,
            signers,
        };
        match self.quarantine.and_then(|quarantine| quarantine.refuses(&release)) {
            Some(quarantined) => Fate::Quarantined(quarantined.to_string()),
            None => Fate::Installed,
        }
    }
}

/// Of one family.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    pub family: &'static str,
    pub root: Option<PathBuf>,
    pub identity: Option<IdentityId>,
    pub facts: BTreeMap<String, String>,
    /// Entries that are in the root already.
    pub entries: usize,
    #[serde(flatten)]
    pub finding: Finding,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "finding")]
pub enum Finding {
    Hit {
        artifacts: usize,
        /// Of the artifact with most.
        holders: u32,
        /// Of the newest artifact of each subject.
        bytes: u64,
        newest: UnixTime,
        /// Where the engine's key says more than the facts: by which commands the variants were made, the most like this
        /// one first.
        variants: Vec<Near>,
    },
    /// There is some, and the policy knows none of its signers.
    Untrusted {
        artifacts: usize,
        signers: Vec<KeyId>,
    },
    /// There is some, and all of it is revoked: by its signer's key, or itself.
    Revoked {
        artifacts: usize,
    },
    /// There is some, and this cache root does not take it again; of the newest, why and the way out.
    Quarantined {
        artifacts: usize,
        reason: String,
    },
    /// Others have it under other facts; those with the fewest differences first.
    NearMiss {
        near: Vec<Near>,
    },
    NobodyHasAny,
    /// There is nobody to ask.
    NotAsked,
    /// Nothing is wrong: there is nothing of this kind here.
    NotHere {
        reason: String,
    },
    /// A fact could not be read.
    Failed {
        reason: String,
    },
}

/// What differs from something that others have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Near {
    /// `None` where it is not known; then `unknown` tells why.
    pub differences: Option<Vec<Difference>>,
    pub unknown: Option<String>,
    pub subject: String,
    pub holders: u32,
    /// Of the same identity.
    pub artifacts: u32,
    pub newest: UnixTime,
    pub signers: Vec<String>,
}

/// What is wrong first, then hits, near misses, what nobody has, and what does not exist here. `launch` is the canonical
/// command; `answers` are absent if no agent answered.
pub fn diagnose(
    outlook: &Outlook,
    launch: &BTreeMap<String, String>,
    answers: Option<&Answers>,
    rules: Rules<'_>,
) -> Vec<Diagnosis> {
    let failed = outlook.failed.iter().map(|error| without_identity(error, |reason| Finding::Failed { reason }));
    let absent = outlook.absent.iter().map(|error| without_identity(error, |reason| Finding::NotHere { reason }));
    let prospects = outlook.prospects.iter().map(|prospect| Diagnosis {
        family: prospect.family.name,
        root: Some(prospect.root.clone()),
        identity: Some(prospect.identity.id()),
        facts: prospect.identity.facts().clone(),
        entries: 0,
        finding: answers.map_or(Finding::NotAsked, |answers| find(prospect, launch, answers, rules)),
    });
    let mut all: Vec<Diagnosis> = failed.chain(prospects).chain(absent).collect();
    all.sort_by_key(|diagnosis| diagnosis.finding.rank());
    all
}

impl Finding {
    fn rank(&self) -> u8 {
        match self {
            Self::Failed { .. } => 0,
            Self::Untrusted { .. } | Self::Revoked { .. } | Self::Quarantined { .. } => 1,
            Self::Hit { .. } => 2,
            Self::NearMiss { .. } => 3,
            Self::NobodyHasAny | Self::NotAsked => 4,
            Self::NotHere { .. } => 5,
        }
    }
}

fn without_identity(error: &IdentityError, finding: impl Fn(String) -> Finding) -> Diagnosis {
    let (family, reason) = match error {
        IdentityError::NotHere { family, fact, why } => (*family, format!("{fact} is absent ({why})")),
        IdentityError::Failed { family, fact, why } => (*family, format!("{fact} could not be read: {why}")),
        IdentityError::Unknown { family, fact } => (*family, format!("{fact} was not looked for")),
        IdentityError::Source { family, source } => (*family, source.to_string()),
    };
    Diagnosis { family, root: None, identity: None, facts: BTreeMap::new(), entries: 0, finding: finding(reason) }
}

fn find(prospect: &Prospect, launch: &BTreeMap<String, String>, answers: &Answers, rules: Rules<'_>) -> Finding {
    let identity = prospect.identity.id();
    let offered = answers.offered.iter().filter(|offered| offered.identity == identity);
    let judge = |offered| (offered, rules.fate(prospect, offered, answers.accepted(offered)));
    let judged: Vec<(&Offered, Fate)> = offered.map(judge).collect();
    let trusted: Vec<&Offered> =
        judged.iter().filter(|(_, fate)| matches!(fate, Fate::Installed)).map(|(offered, _)| *offered).collect();
    let neighbours = answers.neighbours.iter().filter(|other| other.family == prospect.family.name);
    let (variants, strangers): (Vec<_>, Vec<_>) = neighbours.partition(|other| other.identity == identity);
    if let Some(newest) = trusted.iter().map(|offered| offered.created).max() {
        let mut subjects: BTreeMap<&str, &Offered> = BTreeMap::new();
        for offered in &trusted {
            let latest = subjects.entry(&offered.subject).or_insert(offered);
            if offered.created > latest.created {
                *latest = offered;
            }
        }
        return Finding::Hit {
            artifacts: trusted.len(),
            holders: trusted.iter().map(|offered| offered.holders).max().unwrap_or(0),
            bytes: subjects.values().map(|offered| offered.bytes).sum(),
            newest,
            variants: ranked(variants.into_iter().map(|other| near(other, |described| of_launch(launch, described)))),
        };
    }
    if let Some(kept_out) = kept_out(&judged) {
        return kept_out;
    }
    let of_facts = |described: &Described| Ok(differences(prospect.identity.facts(), &described.facts));
    let near = ranked(strangers.into_iter().map(|other| near(other, of_facts)));
    if near.is_empty() { Finding::NobodyHasAny } else { Finding::NearMiss { near } }
}

/// Why nothing of what is offered would be installed, if anything is. What can be mended on this node is told first.
fn kept_out(judged: &[(&Offered, Fate)]) -> Option<Finding> {
    let quarantined = judged.iter().filter_map(|(offered, fate)| match fate {
        Fate::Quarantined(reason) => Some((offered.created, reason)),
        _ => None,
    });
    if let Some((_, reason)) = quarantined.clone().max_by_key(|(created, _)| *created) {
        return Some(Finding::Quarantined { artifacts: quarantined.count(), reason: reason.clone() });
    }
    let revoked = judged.iter().filter(|(_, fate)| matches!(fate, Fate::Revoked)).count();
    if revoked > 0 {
        return Some(Finding::Revoked { artifacts: revoked });
    }
    let signers: BTreeSet<KeyId> = judged.iter().map(|(offered, _)| offered.signer).collect();
    (!judged.is_empty()).then(|| Finding::Untrusted { artifacts: judged.len(), signers: signers.into_iter().collect() })
}

fn of_launch(launch: &BTreeMap<String, String>, described: &Described) -> Result<Vec<Difference>, String> {
    match launch_of(&described.attributes) {
        Some(other) => Ok(differences(launch, &other)),
        None => Err("its publisher did not say by which command it was made".to_owned()),
    }
}

fn near(other: &Neighbour, compare: impl Fn(&Described) -> Result<Vec<Difference>, String>) -> Near {
    let compared = other.described.as_ref().map_err(String::clone).and_then(compare);
    let (differences, unknown) = match compared {
        Ok(differences) => (Some(differences), None),
        Err(reason) => (None, Some(reason)),
    };
    Near {
        differences,
        unknown,
        subject: other.subject.clone(),
        holders: other.holders,
        artifacts: other.artifacts,
        newest: other.created,
        signers: other.described.as_ref().map(|described| described.signers.clone()).unwrap_or_default(),
    }
}

/// Fewest differences first, newest first among equals; what is not known last.
fn ranked(near: impl Iterator<Item = Near>) -> Vec<Near> {
    let mut near: Vec<Near> = near.collect();
    near.sort_by_key(|one| (one.differences.as_ref().map_or(usize::MAX, Vec::len), std::cmp::Reverse(one.newest)));
    near
}

#[cfg(test)]
mod tests;
