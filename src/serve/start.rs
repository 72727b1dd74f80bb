//! One start of an engine: what is brought before it, when it is ready, what was used of it, and what it adds.
//!
//! ```text
//! facts -> identities -> find -> warm, all families side by side -> engine -> ready -> proof -> publish, again and again
//! ```
//!
//! Nothing here fails the engine: whatever goes wrong before it is a cold start with the reason told, within the budget (I6).

mod history;
mod proof;
mod reporting;
mod trial;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::{Instrument, Span};

use self::history::{Current, History};
pub use self::proof::{FamilyProof, Proof};
use self::reporting::Reporting;
use self::trial::{End, Kind};
use super::admissions::{self, Used};
use super::last_start::LastStart;
use super::outlook::Prospect;
use super::publishing::Publishing;
use super::target::{Say, Site, Target};
use super::trust::{self, Trust};
use super::warming::{self, Looked, Terms, Warmed};
use crate::engine::{self, Command, Exit, Observer, Readiness, StartLog};
use crate::install::Limits;
use crate::local::Client;
use crate::protocol::pb::StartOutcome;
use crate::telemetry::trace;

/// What to run, and how long what may take.
#[derive(Debug, Clone)]
pub struct Spec {
    pub target: Target,
    pub trust: Trust,
    /// From the beginning until the engine is started.
    pub budget: Duration,
    pub limits: Limits,
    /// Asked instead of the engine's own address.
    pub ready_url: Option<String>,
    /// The engine is given up on as a publisher after this time.
    pub ready_timeout: Duration,
    /// Whether new entries are published, once nothing was written for this long.
    pub publish_after: Option<Duration>,
    /// From a signal to end until the engine is killed.
    pub grace: Duration,
}

/// For a look at what is in the caches, even if the budget is spent: thousands of entries take milliseconds.
const LEAST_LOOK: Duration = Duration::from_secs(1);

/// Everything that is known before the engine starts.
pub(super) struct Plan {
    /// Of the whole start, until it is proven what was used.
    span: Span,
    site: Site,
    warmed: Vec<Warmed>,
    client: Option<Client>,
    history: History,
}

impl Plan {
    pub(super) fn new(spec: &Spec, say: &Say) -> Self {
        let site = Site::of(&spec.target, say);
        let start = format!("{:016x}", rand::random::<u64>());
        let span = tracing::debug_span!(target: trace::OPERATIONS, "start", start);
        Self { span, site, warmed: Vec::new(), client: None, history: History::default() }
    }

    /// Every way out of it tells why the start is cold, if it is. To drop it is to want no engine any more.
    pub(super) async fn warm(&mut self, spec: &Spec, begun: Instant, say: &Say) {
        let span = tracing::debug_span!(target: trace::OPERATIONS, parent: &self.span, "warm");
        self.bring(spec, begun, say).instrument(span).await;
    }

    async fn bring(&mut self, spec: &Spec, begun: Instant, say: &Say) {
        if let Some(root) = &self.site.root {
            self.history = History::of(root, &self.site.environment, spec.budget, say).await;
        }
        let left = spec.budget.saturating_sub(begun.elapsed());
        if let Err(reason) = self.site.identify(&spec.target, left, say).await {
            return say(&format!("cold start: {reason}"));
        }
        let left = spec.budget.saturating_sub(begun.elapsed());
        let client = match timeout(left, Client::connect(&spec.target.socket)).await {
            Ok(Ok(client)) => self.client.insert(client).clone(),
            Ok(Err(error)) => return say(&format!("cold start: {error}")),
            Err(_) => return say(&format!("cold start: {}", warming::silent(spec.budget))),
        };
        if let Err(reason) = spec.trust.ask(&client, spec.budget.saturating_sub(begun.elapsed())).await {
            say(&format!("no news of the trust policy: {reason}"));
        }
        match &spec.trust.policy() {
            // Why was told.
            _ if self.history.start == Kind::Clean => {}
            Ok(policy) => {
                let left = spec.budget.saturating_sub(begun.elapsed());
                let terms = Terms {
                    policy: policy.clone(),
                    quarantine: self.history.quarantine.clone(),
                    witness: self.history.witness(),
                    limits: spec.limits,
                    budget: left,
                    ignore_markers: false,
                };
                // Each family keeps the time itself; this is for a file system that hangs.
                let last = left + Duration::from_secs(1);
                match timeout(last, warming::all(&client, &self.site.outlook.prospects, &terms, say)).await {
                    Ok(warmed) => self.warmed = warmed,
                    Err(_) => say(&format!("the budget of {:?} is over: the engine starts as it is", spec.budget)),
                }
            }
            Err(reason) => say(&format!("cold start: {reason}")),
        }
    }

    /// What is there before the engine adds to it. A root that `look` cannot look through in time is left out of what
    /// follows: nobody could tell what the engine made there.
    async fn look_at_roots(
        &mut self,
        left: Duration,
        look: impl AsyncFn(&Prospect) -> Result<Looked, String>,
        say: &Say,
    ) {
        warming::add_unoffered(&mut self.warmed, &self.site.outlook.prospects);
        let limit = left.max(LEAST_LOOK);
        let looking = self.warmed.drain(..).map(async |mut warmed| {
            let root = warmed.prospect.root.display();
            let late = || format!("{root} was not looked through within {limit:?}: remove what no engine needs");
            let looked = timeout(limit, look(&warmed.prospect)).await.unwrap_or_else(|_| Err(late()));
            match looked {
                Ok(looked) => {
                    warmed.saw(looked);
                    Some(warmed)
                }
                Err(trouble) => {
                    say(&format!("{}: {trouble}; nothing of it is proven or published", warmed.prospect.family.name));
                    None
                }
            }
        });
        self.warmed = join_all(looking).await.into_iter().flatten().collect();
    }

    /// Whatever was installed, now or before: what the newest policy revokes is taken away. If the agent does not answer in
    /// time, the newest policy that is known decides.
    ///
    /// What is left, and the engine may read.
    async fn ask_again(&self, spec: &Spec, left: Duration, say: &Say) -> Vec<Used> {
        let asked = match &self.client {
            Some(client) => spec.trust.ask(client, left).await,
            // A cold start may find what an earlier one has brought.
            None => timeout(left, spec.trust.refresh(&spec.target.socket))
                .await
                .map(drop)
                .map_err(|_| "no agent".to_owned()),
        };
        if let Err(reason) = asked {
            say(&format!("the trust policy was not asked again before the start: {reason}"));
        }
        let roots = trust::roots(&self.site.environment);
        spec.trust.withdraw_all(&roots, self.client.as_ref(), say).await;
        admissions::use_all(roots).await
    }

    /// The engine is about to be started.
    pub(super) async fn begin(mut self, spec: Arc<Spec>, begun: Instant, say: Say) -> Start {
        let left = spec.budget.saturating_sub(begun.elapsed()).max(LEAST_LOOK);
        let used = self.ask_again(&spec, left, &say).await;
        self.look_at_roots(spec.budget.saturating_sub(begun.elapsed()), warming::look, &say).await;
        let kind = self.history.start;
        let current = std::mem::take(&mut self.history).begin(&self.warmed, &say).await;
        let reporting = Reporting::new(self.client.clone(), kind, begun.elapsed(), spec.budget, used);
        say(&format!("starting the engine after {:.2} s", begun.elapsed().as_secs_f64()));
        let start = std::mem::replace(&mut self.span, Span::none());
        let engine = tracing::debug_span!(target: trace::OPERATIONS, parent: &start, "engine start");
        let spans = Mutex::new(Spans { engine, start });
        Start { spec, plan: self, log: Arc::default(), current, reporting, proof: Mutex::default(), spans, say }
    }
}

/// A start that has begun.
pub(super) struct Start {
    spec: Arc<Spec>,
    plan: Plan,
    log: Arc<Mutex<StartLog>>,
    current: Current,
    reporting: Reporting,
    proof: Mutex<Option<Proof>>,
    spans: Mutex<Spans>,
    say: Say,
}

/// Those that go on while the engine starts.
struct Spans {
    engine: Span,
    start: Span,
}

impl Start {
    pub(super) fn command(&self) -> Command {
        let mut words = self.spec.target.command.iter().map(Into::into);
        let program = words.next().unwrap_or_default();
        let set = self.plan.site.changes.clone().into_iter().collect();
        Command { program, args: words.collect(), set, unset: Vec::new(), directory: None }
    }

    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the engine prints.
    pub(super) fn observer(&self) -> Observer {
        let seen = self.log.clone();
        Arc::new(move |_, line: &str| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).line(line);
        })
    }

    /// Waits until the engine is ready, and how long that took; `None` if it exited before, or nobody will know.
    pub(super) async fn ready(&self, exited: impl Future<Output = Exit>) -> Option<Duration> {
        let Self { spec, plan, say, .. } = self;
        let probe = match plan.site.readiness(spec.ready_url.as_deref()) {
            Ok(probe) => probe,
            Err(error) => {
                say(&format!("nothing will be proven or published: {error}"));
                self.nobody_knows().await;
                return None;
            }
        };
        match engine::wait(&probe, spec.ready_timeout, exited).await {
            Readiness::Ready { after } => {
                self.spans().engine = Span::none();
                self.reporting.ready();
                Some(after)
            }
            Readiness::Exited(_) => None,
            Readiness::Deadline(last) => {
                let last = last.map(|failure| format!(": {failure}")).unwrap_or_default();
                let budget = spec.ready_timeout;
                say(&format!(
                    "not ready within {budget:?} at {probe}{last}; nothing will be published. See --ready-url, --ready-timeout"
                ));
                self.nobody_knows().await;
                None
            }
        }
    }

    /// From the moment when it was ready, `after` its start: proof, then publishing for as long as this is polled.
    pub(super) async fn follow(&self, after: Duration) {
        let Self { spec, plan, log, say, .. } = self;
        let convicted = self.current.end(End::Ready, say).await;
        let launch = plan.site.canonical();
        let proven = Proof::of(&plan.warmed, log, &launch, after, convicted).await;
        *self.proof.lock().unwrap_or_else(PoisonError::into_inner) = Some(proven.clone());
        let lines = proven.lines();
        // Kept before it is told: who reads the last line may end us.
        if let Some(root) = plan.site.root.clone() {
            LastStart::new(&launch, proven.clone()).keep(root).await;
        }
        let span = std::mem::replace(&mut self.spans().start, Span::none());
        self.reporting.tell(StartOutcome::Ready, &plan.warmed, Some(&proven)).instrument(span).await;
        lines.iter().for_each(|line| say(line));
        let (Some(quiet), Some(client)) = (spec.publish_after, &plan.client) else { return };
        let image = spec.target.image.clone();
        let trust = Some(spec.trust.clone());
        let ended = Publishing::new(client.clone(), &plan.warmed, log, image, &launch, quiet, trust).run(say).await;
        say(&format!("nothing is published: {ended}"));
    }

    /// While it runs: what is revoked and was not used yet is taken away.
    pub(super) async fn watch_trust(&self) {
        let Self { spec, plan, say, .. } = self;
        spec.trust.watch(&spec.target.socket, &trust::roots(&plan.site.environment), say).await;
    }

    /// It was told to end: however it ends now is not its fault.
    pub(super) async fn excused(&self) {
        self.current.end(End::Unknown, &self.say).await;
    }

    /// It has ended by itself; a crash unless it was ready, or excused.
    pub(super) async fn crashed(&self) {
        self.current.end(End::Crashed, &self.say).await;
    }

    /// Nothing of it is left.
    pub(super) async fn over(&self, was_excused: bool) {
        let outcome = if was_excused { StartOutcome::Unknown } else { StartOutcome::Crashed };
        self.reporting.tell(outcome, &self.plan.warmed, None).await;
    }

    /// Present once it was ready.
    pub(super) fn proof(&self) -> Option<Proof> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn nobody_knows(&self) {
        self.current.end(End::Unknown, &self.say).await;
        self.reporting.tell(StartOutcome::Unknown, &self.plan.warmed, None).await;
    }
}

#[cfg(test)]
mod tests;
