//! After an engine is ready: what of the caches it was offered it really used, and what it had to make itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::artifact::COMPILE_SECONDS;
use crate::engine::{AotSlot, StartLog};
use crate::serve::difference::{differences, in_words, launch_of};
use crate::serve::publishing::INIT_SECONDS;
use crate::serve::quarantine::LeftOut;
use crate::serve::warming::{Entries, Looked, Warmed, look};

/// What one family brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FamilyProof {
    pub family: String,
    /// Artifacts that there were.
    pub offered: usize,
    /// Entries that came, and those that were in the root before.
    pub installed: usize,
    pub existing: usize,
    /// Entries that the engine added: it compiled them again, or nobody had them.
    pub made: usize,
    /// Whether the engine used what was in the root; `None` where neither its log nor its files tell.
    pub used: Option<bool>,
    /// Seconds that the publisher of what was used had spent on compiling it, less what was spent here.
    pub saved_seconds: Option<f64>,
    /// Why something was made although it was there, or why nothing came.
    pub reason: Option<String>,
}

/// What a start was like.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proof {
    /// From the start of the engine until it was ready.
    pub ready_seconds: f64,
    /// Spent on `torch.compile`, as far as the engine says.
    pub compile_seconds: Option<f64>,
    /// Those with anything to tell.
    pub families: Vec<FamilyProof>,
    /// Artifacts that this start went without because engines crashed with them, those that it has convicted included.
    #[serde(default)]
    pub quarantined: Vec<LeftOut>,
}

impl Proof {
    /// `launch` is the canonical form of the engine's command, `convicted` what this start's success put in quarantine.
    pub(super) async fn of(
        warmed: &[Warmed],
        log: &Mutex<StartLog>,
        launch: &BTreeMap<String, String>,
        ready: Duration,
        convicted: Vec<LeftOut>,
    ) -> Self {
        let mut families = Vec::new();
        for one in warmed {
            let now = look(&one.prospect).await.unwrap_or_else(|error| {
                tracing::warn!(family = one.prospect.family.name, error, "look at a cache");
                Looked::default()
            });
            let log = log.lock().unwrap_or_else(PoisonError::into_inner);
            families.push(prove(one, &now.entries, &log, launch));
        }
        families.retain(|family| family.offered + family.existing + family.made > 0);
        let reports = warmed.iter().filter_map(|one| one.report.as_ref());
        let quarantined = reports.flat_map(|report| report.quarantined.clone()).chain(convicted).collect();
        let compile_seconds = seconds(log.lock().unwrap_or_else(PoisonError::into_inner).compiling());
        Self { ready_seconds: ready.as_secs_f64(), compile_seconds, families, quarantined }
    }

    /// A short table.
    pub fn lines(&self) -> Vec<String> {
        let compiled = self.compile_seconds.map(|spent| format!(", {spent:.1} s of it compiling")).unwrap_or_default();
        let mut lines = vec![format!("ready after {:.1} s{compiled}", self.ready_seconds)];
        if !self.families.is_empty() {
            let head = ["family", "offered", "installed", "there", "used", "made", "saved"].map(str::to_owned);
            let rows: Vec<[String; 7]> =
                std::iter::once(head).chain(self.families.iter().map(FamilyProof::row)).collect();
            let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            let widths: [usize; 7] = std::array::from_fn(width);
            for row in &rows {
                let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
                lines.push(cells.collect::<Vec<_>>().join("  ").trim_end().to_owned());
            }
        }
        let reasons = self.families.iter().filter_map(|family| Some((&family.family, family.reason.as_ref()?)));
        lines.extend(reasons.map(|(family, reason)| format!("{family}: {reason}")));
        lines
    }
}

impl FamilyProof {
    fn row(&self) -> [String; 7] {
        let used = match self.used {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        [
            self.family.clone(),
            self.offered.to_string(),
            self.installed.to_string(),
            self.existing.to_string(),
            used.to_owned(),
            self.made.to_string(),
            self.saved_seconds.map_or_else(|| "-".to_owned(), |saved| format!("{saved:.1} s")),
        ]
    }
}

fn seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64())
}

/// `now` is what is in the root after the start.
fn prove(warmed: &Warmed, now: &Entries, log: &StartLog, launch: &BTreeMap<String, String>) -> FamilyProof {
    let artifacts = || warmed.report.iter().flat_map(|report| &report.artifacts);
    let before = &warmed.before;
    let had: usize = before.values().map(std::collections::BTreeSet::len).sum();
    let installed: usize = artifacts().map(|artifact| artifact.installed).sum();
    let made = now
        .iter()
        .map(|(subject, entries)| match before.get(subject) {
            Some(before) => entries.difference(before).count(),
            None => entries.len(),
        })
        .sum();
    let (used, reason) = match warmed.prospect.family.name {
        "vllm-aot" => used_models(warmed, log, launch),
        // Of a content-keyed cache a hit leaves no trace; a miss leaves a new entry.
        _ if made > 0 || had == 0 => (None, None),
        _ => (Some(true), None),
    };
    let reason = reason.or_else(|| warmed.trouble.clone());
    let saved_seconds = if used == Some(true) { saved(warmed, log) } else { None };
    FamilyProof {
        family: warmed.prospect.family.name.to_owned(),
        offered: warmed.offered,
        installed,
        existing: had.saturating_sub(installed),
        made,
        used,
        saved_seconds,
        reason,
    }
}

/// What the publisher of a loaded model had spent, less what was spent here, both by the same measure.
fn saved(warmed: &Warmed, log: &StartLog) -> Option<f64> {
    let loaded: Vec<String> = log.aot_loaded().filter_map(AotSlot::of).map(|slot| slot.key).collect();
    let artifacts = warmed.report.iter().flat_map(|report| &report.artifacts);
    let used = artifacts.filter(|artifact| loaded.contains(&artifact.subject));
    let measures = [(COMPILE_SECONDS, log.compiling()), (INIT_SECONDS, log.initialized())];
    let saved = used.filter_map(|artifact| {
        measures.iter().find_map(|(name, here)| {
            let there: f64 = artifact.attributes.get(*name)?.parse().ok()?;
            Some((there - (*here)?.as_secs_f64()).max(0.0))
        })
    });
    saved.reduce(f64::max)
}

/// The engine says which compiled models it loaded, and why it did not load one that was there.
fn used_models(warmed: &Warmed, log: &StartLog, launch: &BTreeMap<String, String>) -> (Option<bool>, Option<String>) {
    if let Some((path, reason)) = log.aot_failed().next() {
        let key = AotSlot::of(path).map_or_else(|| path.display().to_string(), |slot| slot.key);
        return (Some(false), Some(format!("{key} was there and could not be loaded: {reason}")));
    }
    let loaded = log.aot_loaded().count();
    let saved: Vec<String> = log.aot_saved().filter_map(AotSlot::of).map(|slot| slot.key).collect();
    match (loaded, saved.first()) {
        (0, Some(key)) if warmed.before.is_empty() => {
            (Some(false), Some(format!("compiled {key}: nobody had any variant")))
        }
        (0, Some(key)) => {
            let variants = warmed.before.len();
            let artifacts = warmed.report.iter().flat_map(|report| &report.artifacts);
            let why = nearest(artifacts.map(|artifact| &artifact.attributes), launch);
            let reason = format!("compiled {key}: {variants} other variants of this stack and model are here; {why}");
            (Some(false), Some(reason))
        }
        (0, None) => (None, None),
        _ => (Some(true), None),
    }
}

/// Which arguments differ from those of the variant that is most like this start.
fn nearest<'a>(
    variants: impl Iterator<Item = &'a BTreeMap<String, String>>,
    launch: &BTreeMap<String, String>,
) -> String {
    let others = variants.filter_map(launch_of);
    match others.map(|other| differences(launch, &other)).min_by_key(Vec::len) {
        Some(differing) if differing.is_empty() => {
            "one was made by the same arguments and variables, so something else is in the engine's key".to_owned()
        }
        Some(differing) => format!("the nearest was made with {}", in_words(&differing)),
        None => "an argument or a hashed variable differs; their publishers did not say which they had".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::difference::{LAUNCH, encode};

    #[test]
    fn the_argument_that_differs_from_the_nearest_variant_is_named() {
        let launch = |tokens: &str, dtype: &str| {
            let pairs = [("--max-num-batched-tokens", tokens), ("--dtype", dtype)];
            BTreeMap::from(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())))
        };
        let made_by = |tokens, dtype| BTreeMap::from([(LAUNCH.to_owned(), encode(&launch(tokens, dtype)).unwrap())]);
        let here = launch("2048", "auto");
        let variants = [made_by("1024", "float16"), made_by("4096", "auto"), BTreeMap::new()];
        let told = nearest(variants.iter(), &here);
        assert_eq!(told, "the nearest was made with --max-num-batched-tokens 2048 here, 4096 there");
        assert!(nearest([made_by("2048", "auto")].iter(), &here).contains("something else"));
        assert!(nearest([BTreeMap::new()].iter(), &here).contains("did not say"));
    }
}
