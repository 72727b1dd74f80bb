//! The last starts, and what became of each family in all of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Weak;

use super::{FamilyStart, Outcome, Start};
use crate::artifact::Family;
use crate::digest::{ArtifactId, KeyId};
use crate::identity::Policy;
use crate::protocol::report::{
    self, End, MAX_START_FAMILIES, MAX_STARTS, MissReason, StartedFamily, UnixMillis, Warmth,
};
use crate::telemetry::Label;

/// Bounded: the last starts, and sums of all.
#[derive(Debug, Default)]
pub(in crate::agent) struct History {
    starts: VecDeque<report::Start>,
    hits: u64,
    misses: BTreeMap<MissReason, u64>,
    /// What the engines may read of the last start, and of those whose pods are still connected.
    read: Vec<Read>,
}

/// By the engine of one start.
#[derive(Debug)]
struct Read {
    /// There for as long as its pod is connected.
    open: Weak<()>,
    /// And whose signatures let each of them in.
    artifacts: Vec<(ArtifactId, Vec<KeyId>)>,
}

impl History {
    pub(in crate::agent) fn add(&mut self, start: &Start, at: UnixMillis, open: Weak<()>) {
        for family in &start.families {
            match family.miss() {
                None => self.hits += 1,
                Some(reason) => *self.misses.entry(reason).or_default() += 1,
            }
        }
        if self.starts.len() == MAX_STARTS {
            self.starts.pop_front();
        }
        self.starts.push_back(start.told(at));
        self.read.retain(|other| other.open.strong_count() > 0 && !other.open.ptr_eq(&open));
        self.read.push(Read { open, artifacts: start.artifacts.clone() });
    }

    /// What an engine may read, as far as it is revoked. Those that a pod started and does not stay with are known until there
    /// is another start.
    pub(in crate::agent) fn revoked(&self, policy: &Policy) -> Vec<ArtifactId> {
        let last = self.read.len().saturating_sub(1);
        let read = self.read.iter().enumerate().filter(|(at, read)| *at == last || read.open.strong_count() > 0);
        let read = read.flat_map(|(_, read)| &read.artifacts);
        let revoked: BTreeSet<ArtifactId> =
            read.filter(|(id, signers)| policy.is_revoked(id, signers)).map(|(id, _)| *id).collect();
        revoked.into_iter().collect()
    }

    /// Newest last.
    pub(in crate::agent) fn starts(&self) -> Vec<report::Start> {
        self.starts.iter().cloned().collect()
    }

    pub(in crate::agent) fn hits(&self) -> u64 {
        self.hits
    }

    pub(in crate::agent) fn misses(&self) -> BTreeMap<MissReason, u64> {
        self.misses.clone()
    }
}

impl Start {
    fn told(&self, at: UnixMillis) -> report::Start {
        let families: Vec<StartedFamily> =
            self.families.iter().take(MAX_START_FAMILIES).filter_map(FamilyStart::told).collect();
        report::Start {
            at,
            outcome: self.warmth(),
            end: match self.outcome {
                Outcome::Ready => End::Ready,
                Outcome::Crashed => End::Crashed,
                Outcome::Clean => End::Clean,
                Outcome::Unknown => End::Unknown,
            },
            ready: self.ready,
            saved: families.iter().map(|family| family.saved).sum(),
            families,
        }
    }

    fn warmth(&self) -> Warmth {
        let hits = self.families.iter().filter(|family| family.miss().is_none()).count();
        let made = self.families.iter().any(|family| family.made() > 0);
        match hits {
            0 => Warmth::Cold,
            hits if hits == self.families.len() && !made => Warmth::Warm,
            _ => Warmth::Partly,
        }
    }
}

impl FamilyStart {
    fn offered(&self) -> u32 {
        self.artifacts[0].1
    }

    fn quarantined(&self) -> u32 {
        self.artifacts[1].1
    }

    /// Entries that came, and those that were there before.
    fn there(&self) -> u32 {
        self.entries[0].1.saturating_add(self.entries[1].1)
    }

    fn made(&self) -> u32 {
        self.entries[2].1
    }

    fn used(&self) -> u32 {
        self.entries[3].1
    }

    /// Where neither log nor files tell what was used, what was there and not made again counts as used.
    fn miss(&self) -> Option<MissReason> {
        if self.used() > 0 || (self.there() > 0 && self.made() == 0) {
            None
        } else if self.there() > 0 {
            Some(MissReason::NotUsed)
        } else if self.quarantined() > 0 {
            Some(MissReason::Quarantined)
        } else if self.offered() > 0 {
            Some(MissReason::NotInstalled)
        } else {
            Some(MissReason::NobodyHasIt)
        }
    }

    fn told(&self) -> Option<StartedFamily> {
        Some(StartedFamily {
            family: self.family.text().parse::<Family>().ok()?,
            offered: self.offered(),
            installed: self.there(),
            used: self.used(),
            recompiled: self.made(),
            saved: self.saved,
            reason: Some(self.reason.clone()).filter(|reason| !reason.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::pb;

    /// Offered, quarantined, installed, existing, made, used.
    fn start(families: &[[u32; 6]]) -> Start {
        let family = |[offered, quarantined, installed, existing, made, used]: &[u32; 6]| pb::FamilyStart {
            family: "triton".to_owned(),
            offered: *offered,
            quarantined: *quarantined,
            installed: *installed,
            existing: *existing,
            made: *made,
            used: *used,
            saved_seconds: 2.5,
            verdict: pb::StartVerdict::Unspecified.into(),
            remembered: false,
            reason: "because\u{1b}".to_owned(),
        };
        let report = pb::StartReport {
            outcome: pb::StartOutcome::Ready.into(),
            ready_seconds: 9.0,
            hook_seconds: 1.0,
            budget_seconds: 2.0,
            families: families.iter().map(family).collect(),
            artifacts: Vec::new(),
        };
        Start::try_from(report).unwrap()
    }

    #[test]
    fn every_miss_has_one_reason_and_the_start_a_warmth() {
        let miss = |family| start(&[family]).families[0].miss();
        assert_eq!(miss([1, 0, 9, 0, 0, 9]), None);
        assert_eq!(miss([1, 0, 9, 0, 0, 0]), None, "nothing tells, and nothing was made again");
        assert_eq!(miss([0, 0, 0, 9, 2, 0]), Some(MissReason::NotUsed));
        assert_eq!(miss([2, 2, 0, 0, 9, 0]), Some(MissReason::Quarantined));
        assert_eq!(miss([1, 0, 0, 0, 9, 0]), Some(MissReason::NotInstalled));
        assert_eq!(miss([0, 0, 0, 0, 9, 0]), Some(MissReason::NobodyHasIt));
        let warmth = |families: &[[u32; 6]]| start(families).warmth();
        assert_eq!(warmth(&[[1, 0, 9, 0, 0, 9]]), Warmth::Warm);
        assert_eq!(warmth(&[[1, 0, 9, 0, 1, 9]]), Warmth::Partly);
        assert_eq!(warmth(&[[1, 0, 9, 0, 0, 9], [0, 0, 0, 0, 9, 0]]), Warmth::Partly);
        assert_eq!((warmth(&[[0, 0, 0, 0, 9, 0]]), warmth(&[])), (Warmth::Cold, Warmth::Cold));
    }

    #[test]
    fn what_the_last_start_had_is_told_once_it_is_revoked_until_there_is_another_start() {
        let (bad, good, key) = (ArtifactId::of(b"bad"), ArtifactId::of(b"good"), KeyId::of(b"key"));
        let head = "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[revoked]\n";
        let policy = |revoked: String| Policy::parse(&format!("{head}{revoked}\n")).unwrap();
        let mut history = History::default();
        let artifacts = vec![(bad, vec![key]), (good, vec![KeyId::of(b"another")])];
        history.add(&Start { artifacts, ..start(&[]) }, UnixMillis(1), Weak::new());
        assert_eq!(history.revoked(&policy(String::new())), []);
        for revoked in [format!("artifacts = [\"{bad}\"]"), format!("keys = [\"{key}\"]")] {
            assert_eq!(history.revoked(&policy(revoked)), [bad]);
        }
        history.add(&start(&[]), UnixMillis(2), Weak::new());
        assert_eq!(history.revoked(&policy(format!("keys = [\"{key}\"]"))), []);
    }

    #[test]
    fn what_each_of_several_engines_may_read_is_known_until_its_pod_goes_or_starts_another() {
        let ids = [ArtifactId::of(b"one"), ArtifactId::of(b"two")];
        let policy = format!(
            "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[revoked]\nartifacts = [\"{}\", \"{}\"]\n",
            ids[0], ids[1]
        );
        let (policy, pods) = (Policy::parse(&policy).unwrap(), [Arc::new(()), Arc::new(())]);
        let mut history = History::default();
        let add = |history: &mut History, pod: usize, read: &[ArtifactId]| {
            let artifacts = read.iter().map(|id| (*id, vec![KeyId::of(b"key")])).collect();
            history.add(&Start { artifacts, ..start(&[]) }, UnixMillis(1), Arc::downgrade(&pods[pod]));
        };
        add(&mut history, 0, &ids[..1]);
        add(&mut history, 1, &ids[1..]);
        assert_eq!(history.revoked(&policy).len(), 2);
        add(&mut history, 1, &[]);
        assert_eq!(history.revoked(&policy), ids[..1]);
        drop(pods);
        assert_eq!(history.revoked(&policy), []);
    }

    #[test]
    fn the_last_starts_are_kept_and_all_are_counted() {
        let mut history = History::default();
        for at in 0..20 {
            history.add(&start(&[[1, 0, 9, 0, 0, 9], [0, 0, 0, 0, 9, 0]]), UnixMillis(at), Weak::new());
        }
        let starts = history.starts();
        assert_eq!(starts.iter().map(|start| start.at.0).collect::<Vec<_>>(), (12..20).collect::<Vec<_>>());
        assert_eq!(starts[0].saved.as_secs(), 5);
        assert_eq!(starts[0].families[0].reason.as_ref().unwrap().as_str(), "because?");
        assert_eq!((history.hits(), history.misses()), (20, [(MissReason::NobodyHasIt, 20)].into()));
    }
}
