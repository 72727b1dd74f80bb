//! Publishing what an engine has added to its caches, once it is ready and nothing is being written, for as long as it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, sleep_until};

use super::difference::{LAUNCH, encode};
use super::outlook::Prospect;
use super::push::{PushError, push};
use super::target::Say;
use super::warming::{Entries, Warmed};
use crate::artifact::{COMPILE_SECONDS, Provenance, RelPath};
use crate::caches::{Subject, survey};
use crate::engine::{AotSlot, StartLog};
use crate::local::{Client, ClientError, Content, Publication, builder, chain};
use crate::protocol::pb::Published;

/// Beside [`COMPILE_SECONDS`], which is of `torch.compile` where the engine tells it: seconds of the whole initialisation
/// around it.
pub(super) const INIT_SECONDS: &str = "init_seconds";

/// Between two looks at the roots: soon after something changed, seldom when nothing does.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LAST_LOOK: Duration = Duration::from_secs(30);

pub(super) struct Publishing<'a> {
    client: Client,
    families: Vec<(&'a Prospect, Entries)>,
    log: &'a Mutex<StartLog>,
    image: Option<String>,
    /// The engine's command in canonical form.
    launch: &'a BTreeMap<String, String>,
    quiet: Duration,
    /// Artifacts.
    published: usize,
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

/// What a look at one root found.
struct Look {
    fresh: Vec<Fresh>,
    /// Something is still being written.
    busy: bool,
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
    ) -> Self {
        let families = warmed.iter().map(|one| (&one.prospect, one.known())).collect();
        Self { client, families, log, image, launch, quiet, published: 0 }
    }

    /// Ends only when the agent will never take anything.
    pub(super) async fn run(&mut self, say: &Say) -> Unpublished {
        let mut pause = FIRST_LOOK;
        loop {
            sleep(pause).await;
            match self.look_at_all(say).await {
                Ok(active) => pause = if active { FIRST_LOOK } else { (pause * 2).min(LAST_LOOK) },
                Err(refused) => return refused.into(),
            }
        }
    }

    /// Ends when there is nothing new in any root and nothing is being written: how many artifacts were published.
    pub(super) async fn once(&mut self, ends: Instant, say: &Say) -> Result<usize, Unpublished> {
        let before = self.published;
        while self.look_at_all(say).await? {
            if Instant::now() >= ends {
                return Err(Unpublished::Busy);
            }
            sleep_until(ends.min(Instant::now() + FIRST_LOOK)).await;
        }
        Ok(self.published - before)
    }

    /// Whether anything is going on.
    async fn look_at_all(&mut self, say: &Say) -> Result<bool, PushError> {
        let mut active = false;
        for at in 0..self.families.len() {
            active |= self.look_after(at, say).await?;
        }
        Ok(active)
    }

    /// One look at one family; whether anything is going on there. Fails when trying again makes no sense.
    async fn look_after(&mut self, at: usize, say: &Say) -> Result<bool, PushError> {
        let (prospect, known) = &self.families[at];
        let look = look(prospect, known.clone(), self.quiet).await;
        if look.busy {
            // Half a set that is being written is no use to anybody.
            return Ok(true);
        }
        let active = !look.fresh.is_empty();
        for fresh in look.fresh {
            let prospect = self.families[at].0;
            match self.publish(prospect, &fresh).await {
                Ok(published) => {
                    say(&told(prospect, &fresh, &published));
                    self.published += usize::from(!published.unchanged);
                    self.families[at].1.entry(fresh.subject).or_default().extend(fresh.entries);
                }
                Err(refused) if is_final(&refused) => return Err(refused),
                Err(refused) => {
                    say(&format!("{}: not published, will try again: {}", prospect.family.name, chain(&refused)))
                }
            }
        }
        Ok(active)
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
