//! Publishing what an engine has added to its caches, once it is ready and nothing is being written, for as long as it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, sleep_until};

use super::admissions;
use super::difference::{LAUNCH, encode};
use super::outlook::Prospect;
use super::push::{PushError, push};
use super::target::Say;
use super::trust::Trust;
use super::warming::{Entries, Warmed};
use crate::artifact::{COMPILE_SECONDS, Provenance, RelPath};
use crate::caches::{Subject, survey};
use crate::engine::{AotSlot, StartLog};
use crate::lifecycle::Doubling;
use crate::local::{Client, ClientError, Content, Publication, builder, chain};
use crate::protocol::pb::Published;

/// Beside [`COMPILE_SECONDS`], which is of `torch.compile` where the engine tells it: seconds of the whole initialisation
/// around it.
pub(super) const INIT_SECONDS: &str = "init_seconds";

/// Between two looks at the roots: soon after something changed, seldom when nothing does.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LAST_LOOK: Duration = Duration::from_secs(30);

/// Before what the agent did not take is brought again: taking it costs a reading of all its files.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(10 * 60);

pub(super) struct Publishing<'a> {
    client: Client,
    families: Vec<Watched<'a>>,
    log: &'a Mutex<StartLog>,
    image: Option<String>,
    /// The engine's command in canonical form.
    launch: &'a BTreeMap<String, String>,
    quiet: Duration,
    /// Whose entries may be signed anew. Absent: nobody has said whom this pod trusts.
    trust: Option<Trust>,
    /// Artifacts.
    published: usize,
}

/// A family, and what is known of it.
struct Watched<'a> {
    prospect: &'a Prospect,
    known: Entries,
    /// By subject.
    failing: BTreeMap<String, Failing>,
}

impl Watched<'_> {
    fn failed(&mut self, subject: String, reason: String, say: &Say) {
        let now = Instant::now();
        let line = format!("{}: not published, will try again: {reason}", self.prospect.family.name);
        if self.failing.entry(subject).or_insert_with(|| Failing::new(now)).failed(reason, now) {
            say(&line);
        }
    }
}

/// A subject that the agent did not take.
struct Failing {
    reason: String,
    pauses: Doubling,
    again: Instant,
}

impl Failing {
    fn new(now: Instant) -> Self {
        Self { reason: String::new(), pauses: Doubling::new(FIRST_RETRY, LAST_RETRY), again: now }
    }

    /// Whether it is another reason than before.
    fn failed(&mut self, reason: String, now: Instant) -> bool {
        self.again = now + self.pauses.step();
        std::mem::replace(&mut self.reason, reason) != self.reason
    }
}

/// Why publishing ended.
#[derive(Debug, thiserror::Error)]
pub enum Unpublished {
    #[error("the caches were still being written to, or the agent did not take them; see --publish-timeout")]
    Busy,
    /// It will say the same next time.
    #[error(transparent)]
    Refused(#[from] PushError),
}

/// What a look at the roots came to.
#[derive(Debug, Clone, Copy, Default)]
struct Going {
    /// Something was published or is being written: there may be more soon.
    on: bool,
    /// Something is not published yet, or may not be.
    left: bool,
}

impl Going {
    fn is_over(self) -> bool {
        !self.left
    }
}

/// What a look at one root found.
struct Look {
    fresh: Vec<Fresh>,
    /// Something is still being written.
    busy: bool,
}

/// What of a root may not be signed anew, or why that is not known.
struct Disowned(Result<BTreeSet<RelPath>, String>);

impl Disowned {
    /// Why no artifact is made of these.
    fn of(&self, entries: &BTreeSet<RelPath>) -> Option<String> {
        match &self.0 {
            Err(reason) => Some(reason.clone()),
            Ok(disowned) => disowned.intersection(entries).next().map(|entry| {
                format!(
                    "{entry} is of a signer or an artifact that is not trusted any more, and goes before the next start"
                )
            }),
        }
    }
}

/// A subject with entries that no known artifact has.
struct Fresh {
    subject: String,
    entries: BTreeSet<RelPath>,
}

impl<'a> Publishing<'a> {
    pub(super) fn new(
        client: Client,
        warmed: &'a [Warmed],
        log: &'a Mutex<StartLog>,
        image: Option<String>,
        launch: &'a BTreeMap<String, String>,
        quiet: Duration,
        trust: Option<Trust>,
    ) -> Self {
        let watched =
            |one: &'a Warmed| Watched { prospect: &one.prospect, known: one.known(), failing: BTreeMap::new() };
        let families = warmed.iter().map(watched).collect();
        Self { client, families, log, image, launch, quiet, trust, published: 0 }
    }

    /// Ends only when the agent will never take anything.
    pub(super) async fn run(&mut self, say: &Say) -> Unpublished {
        let mut pause = FIRST_LOOK;
        loop {
            sleep(pause).await;
            match self.look_at_all(say).await {
                Ok(Going { on: true, .. }) => pause = FIRST_LOOK,
                Ok(_) => pause = (pause * 2).min(LAST_LOOK),
                Err(refused) => return refused.into(),
            }
        }
    }

    /// Ends when there is nothing new in any root and nothing is being written: how many artifacts were published.
    pub(super) async fn once(&mut self, ends: Instant, say: &Say) -> Result<usize, Unpublished> {
        let before = self.published;
        while !self.look_at_all(say).await?.is_over() {
            if Instant::now() >= ends {
                return Err(Unpublished::Busy);
            }
            sleep_until(ends.min(Instant::now() + FIRST_LOOK)).await;
        }
        Ok(self.published - before)
    }

    async fn look_at_all(&mut self, say: &Say) -> Result<Going, PushError> {
        let mut all = Going::default();
        if let Some(trust) = &self.trust
            && let Err(reason) = trust.ask(&self.client, Duration::MAX).await
        {
            tracing::debug!(reason, "no news of the trust policy");
        }
        for at in 0..self.families.len() {
            let Going { on, left } = self.look_after(at, say).await?;
            all = Going { on: all.on | on, left: all.left | left };
        }
        Ok(all)
    }

    /// One look at one family. Fails when trying again makes no sense.
    async fn look_after(&mut self, at: usize, say: &Say) -> Result<Going, PushError> {
        let Watched { prospect, known, .. } = &self.families[at];
        let (prospect, look) = (*prospect, look(prospect, known.clone(), self.quiet).await);
        if look.busy {
            // Half a set that is being written is no use to anybody.
            return Ok(Going { on: true, left: true });
        }
        let mut going = Going::default();
        let disowned = self.disowned(prospect).await;
        self.families[at].failing.retain(|subject, _| look.fresh.iter().any(|fresh| fresh.subject == *subject));
        for fresh in look.fresh {
            let failing = &self.families[at].failing;
            if failing.get(&fresh.subject).is_some_and(|failing| Instant::now() < failing.again) {
                going.left = true;
                continue;
            }
            if let Some(reason) = disowned.of(&fresh.entries) {
                self.families[at].failed(fresh.subject, reason, say);
                continue;
            }
            match self.publish(prospect, &fresh).await {
                Ok(published) => {
                    say(&told(prospect, &fresh, &published));
                    self.published += usize::from(!published.unchanged);
                    let watched = &mut self.families[at];
                    watched.failing.remove(&fresh.subject);
                    watched.known.entry(fresh.subject).or_default().extend(fresh.entries);
                    going = Going { on: true, left: true };
                }
                Err(refused) if is_final(&refused) => return Err(refused),
                Err(refused) => {
                    going.left = true;
                    self.families[at].failed(fresh.subject, chain(&refused), say);
                }
            }
        }
        Ok(going)
    }

    async fn disowned(&self, prospect: &Prospect) -> Disowned {
        let Some(trust) = self.trust.clone() else { return Disowned(Ok(BTreeSet::new())) };
        let root = prospect.root.clone();
        let looking = tokio::task::spawn_blocking(move || admissions::disowned(&root, &trust));
        Disowned(
            looking.await.unwrap_or_else(|_| Err("the thread that looks at what was installed panicked".to_owned())),
        )
    }

    async fn publish(&self, prospect: &Prospect, fresh: &Fresh) -> Result<Published, PushError> {
        let facts = prospect.identity.facts();
        let publication = Publication {
            directory: prospect.root.clone(),
            identity: prospect.identity.clone(),
            class: prospect.family.class,
            subject: fresh.subject.clone(),
            attributes: self.attributes(&fresh.subject),
            provenance: Provenance {
                image_digest: self.image.clone().unwrap_or_default(),
                engine_version: facts.get("vllm").or_else(|| facts.get("sglang")).cloned().unwrap_or_default(),
                builder: builder(),
            },
            content: Content::Family { family: prospect.family, settled_by: SystemTime::now().checked_sub(self.quiet) },
            expires: None,
        };
        push(&self.client, publication, |_| ()).await
    }

    /// What it took, and by which command, for a model that was compiled here.
    fn attributes(&self, subject: &str) -> BTreeMap<String, String> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if !log.aot_saved().filter_map(AotSlot::of).any(|slot| slot.key == subject) {
            return BTreeMap::new();
        }
        let measured = [(COMPILE_SECONDS, log.compiling()), (INIT_SECONDS, log.initialized())];
        let measured = measured.into_iter().filter_map(|(name, spent)| Some((name.to_owned(), spent?)));
        let measured = measured.map(|(name, spent)| (name, format!("{:.1}", spent.as_secs_f64())));
        measured.chain(encode(self.launch).map(|launch| (LAUNCH.to_owned(), launch))).collect()
    }
}

/// The agent will say the same next time.
fn is_final(error: &PushError) -> bool {
    matches!(error, PushError::Client(ClientError::Refused(status))
        if matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied))
}

async fn look(prospect: &Prospect, known: Entries, quiet: Duration) -> Look {
    let (family, root) = (prospect.family, prospect.root.clone());
    let looked = tokio::task::spawn_blocking(move || survey(&root, family)).await;
    match looked {
        Ok(Ok(survey)) => Look {
            busy: survey.subjects.iter().any(|subject| !has_settled(subject, quiet)),
            fresh: survey.subjects.iter().filter_map(|subject| fresh(subject, &known)).collect(),
        },
        Ok(Err(error)) => {
            tracing::warn!(family = family.name, error = %chain(&error), "look at a cache");
            Look { fresh: Vec::new(), busy: false }
        }
        Err(_) => Look { fresh: Vec::new(), busy: false },
    }
}

/// Nothing of it was written for a while. A file from the future, by a clock that was set back, has waited long enough.
fn has_settled(subject: &Subject, quiet: Duration) -> bool {
    subject.newest().is_none_or(|newest| newest.elapsed().map_or(true, |age| age >= quiet))
}

fn fresh(subject: &Subject, known: &Entries) -> Option<Fresh> {
    let entries: BTreeSet<RelPath> = subject.entries.iter().map(|entry| entry.path.clone()).collect();
    let is_known = known.get(&subject.name).is_some_and(|known| entries.is_subset(known));
    (!is_known).then(|| Fresh { subject: subject.name.clone(), entries })
}

fn told(prospect: &Prospect, fresh: &Fresh, published: &Published) -> String {
    let about = if fresh.subject.is_empty() { String::new() } else { format!(" {}", short(&fresh.subject)) };
    let what = if published.unchanged { "was published before as" } else { "published as" };
    format!(
        "{}{about}: {what} generation {}: {} files, {:.1} MB ({:.1} MB on the wire)",
        prospect.family.name,
        published.generation,
        published.files,
        published.size as f64 / 1e6,
        published.wire_size as f64 / 1e6,
    )
}

pub(super) fn short(subject: &str) -> String {
    subject.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_is_tried_ever_later_and_told_when_the_reason_is_another() {
        let start = Instant::now();
        let mut failing = Failing::new(start);
        assert!(failing.again <= start && failing.failed("full".to_owned(), start));
        assert_eq!(failing.again, start + FIRST_RETRY);
        assert!(!failing.failed("full".to_owned(), start));
        assert_eq!(failing.again, start + 2 * FIRST_RETRY);
        assert!(failing.failed("changed".to_owned(), start));
        (0..20).for_each(|_| _ = failing.failed("changed".to_owned(), start));
        assert_eq!(failing.again, start + LAST_RETRY);
    }
}
