//! A start-up hook in front of any engine command: warm, start, wait until it is ready, tell what was used, publish what is
//! new, for as long as the engine lives.
//!
//! ```text
//! facts -> identities -> find -> warm, all families side by side -> engine -> ready -> proof -> publish, again and again
//! ```
//!
//! Nothing here fails the engine: whatever goes wrong before it is a cold start with the reason told, within the budget (I6).

mod proof;
mod reporting;
mod signals;
mod starts;
mod trial;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

pub use self::proof::{FamilyProof, Proof};
use self::reporting::Reporting;
use self::signals::Signals;
use self::starts::{Current, History};
use self::trial::{End, Start};
use super::last_start::LastStart;
use super::outlook::Prospect;
use super::publishing::Publishing;
use super::target::{Say, Site, Target};
use super::warming::{self, Looked, Terms, Warmed};
use crate::engine::{self, Command, Engine, Exit, Output, Readiness, Signal, StartError, StartLog};
use crate::identity::Policy;
use crate::install::Limits;
use crate::local::Client;
use crate::protocol::pb::StartOutcome;

/// What to run, and how long what may take.
#[derive(Debug, Clone)]
pub struct Exec {
    pub target: Target,
    /// Absent, nothing is installed: the reason why.
    pub policy: Result<Arc<Policy>, String>,
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

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    /// Present if the engine was ready.
    pub proof: Option<Proof>,
}

/// Runs the engine to its end. The only error is that there is no engine to run.
pub async fn run(exec: Exec, say: Say) -> Result<Ended, StartError> {
    let begun = Instant::now();
    let mut signals = Signals::listen()?;
    let mut plan = Plan::new(&exec, &say);
    tokio::select! {
        () = plan.warm(&exec, begun, &say) => {}
        // Whoever wants us to end wants no engine any more.
        signal = signals.ends() => return Ok(Ended { exit: Exit::Signal(signal), proof: None }),
    }
    plan.look_at_roots(exec.budget.saturating_sub(begun.elapsed()), warming::look, &say).await;
    let start = plan.history.start;
    let current = std::mem::take(&mut plan.history).begin(&plan.warmed, &say).await;
    let reporting = Reporting::new(plan.client.clone(), start, begun.elapsed(), exec.budget);
    say(&format!("starting the engine after {:.2} s", begun.elapsed().as_secs_f64()));
    let log = Arc::new(Mutex::new(StartLog::default()));
    let seen = log.clone();
    let observer = move |_, line: &str| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).line(line);
    };
    let command = plan.command(&exec);
    let started = Engine::start(command.clone(), Output::inherited(Arc::new(observer))).await;
    let engine = match started {
        Ok(engine) => engine,
        Err(error) => {
            current.end(End::Unknown, &say).await;
            let StartError::Unwatchable(_) = error else { return Err(error) };
            say(&format!("{error}: until then it runs without warmd, and nothing is proven or published"));
            return Err(engine::replace_by(&command));
        }
    };
    let following =
        Following { exec: &exec, plan: &plan, log: &log, current: &current, reporting: &reporting, say: &say };
    Ok(supervise(engine, &following, &mut signals).await)
}

/// Everything that is known before the engine starts.
struct Plan {
    site: Site,
    warmed: Vec<Warmed>,
    client: Option<Client>,
    history: History,
}

impl Plan {
    fn new(exec: &Exec, say: &Say) -> Self {
        let site = Site::of(&exec.target, say);
        Self { site, warmed: Vec::new(), client: None, history: History::default() }
    }

    /// Every way out of it tells why the start is cold, if it is.
    async fn warm(&mut self, exec: &Exec, begun: Instant, say: &Say) {
        if let Some(root) = &self.site.root {
            self.history = History::of(root, &self.site.environment, exec.budget, say).await;
        }
        let left = exec.budget.saturating_sub(begun.elapsed());
        if let Err(reason) = self.site.identify(&exec.target, left, say).await {
            return say(&format!("cold start: {reason}"));
        }
        let left = exec.budget.saturating_sub(begun.elapsed());
        let client = match timeout(left, Client::connect(&exec.target.socket)).await {
            Ok(Ok(client)) => self.client.insert(client).clone(),
            Ok(Err(error)) => return say(&format!("cold start: {error}")),
            Err(_) => return say(&format!("cold start: {}", warming::silent(exec.budget))),
        };
        match &exec.policy {
            // Why was told.
            _ if self.history.start == Start::Clean => {}
            Ok(policy) => {
                let left = exec.budget.saturating_sub(begun.elapsed());
                let terms = Terms {
                    policy: policy.clone(),
                    quarantine: self.history.quarantine.clone(),
                    witness: self.history.witness(),
                    limits: exec.limits,
                    budget: left,
                    ignore_markers: false,
                };
                // Each family keeps the time itself; this is for a file system that hangs.
                let last = left + Duration::from_secs(1);
                match timeout(last, warming::all(&client, &self.site.outlook.prospects, &terms, say)).await {
                    Ok(warmed) => self.warmed = warmed,
                    Err(_) => say(&format!("the budget of {:?} is over: the engine starts as it is", exec.budget)),
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

    fn command(&self, exec: &Exec) -> Command {
        let mut words = exec.target.command.iter().map(Into::into);
        let program = words.next().unwrap_or_default();
        let set = self.site.changes.clone().into_iter().collect();
        Command { program, args: words.collect(), set, ..Command::default() }
    }
}

/// What there is to do while an engine runs.
struct Following<'a> {
    exec: &'a Exec,
    plan: &'a Plan,
    log: &'a Mutex<StartLog>,
    current: &'a Current,
    reporting: &'a Reporting,
    say: &'a Say,
}

async fn supervise(mut engine: Engine, following: &Following<'_>, signals: &mut Signals) -> Ended {
    let &Following { exec, plan, current, reporting, say, .. } = following;
    let proof = Mutex::new(None);
    let mut follow = std::pin::pin!(following.follow(engine.exited(), &proof));
    let mut grace = std::pin::pin!(sleep(Duration::MAX));
    let (mut followed, mut ending) = (false, false);
    loop {
        tokio::select! {
            _ = engine.exited() => {
                // Unless it was ready, or told to end.
                current.end(End::Crashed, say).await;
                break;
            }
            signal = signals.next() => {
                engine.signal(signal);
                if signal != Signal::User1 {
                    // Now: whoever ends us may not wait until the engine is gone.
                    current.end(End::Unknown, say).await;
                }
                if matches!(signal, Signal::Terminate | Signal::Interrupt) && !ending {
                    ending = true;
                    grace.set(sleep(exec.grace));
                }
            }
            () = &mut grace, if ending => {
                say(&format!("the engine did not end within {:?}", exec.grace));
                break;
            }
            () = &mut follow, if !followed && !ending => followed = true,
        }
    }
    let stopped = engine.stop(Duration::ZERO).await;
    if !stopped.killed.is_empty() {
        let names: Vec<String> =
            stopped.killed.iter().map(|member| format!("{} ({})", member.name, member.pid)).collect();
        say(&format!("killed what the engine left behind: {}", names.join(", ")));
    }
    let outcome = if ending { StartOutcome::Unknown } else { StartOutcome::Crashed };
    reporting.tell(outcome, &plan.warmed, None).await;
    let proof = proof.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ended { exit: stopped.exit, proof }
}

impl Following<'_> {
    /// From the start of the engine on: readiness, proof, publishing.
    async fn follow(&self, exited: impl Future<Output = Exit>, proof: &Mutex<Option<Proof>>) {
        let &Self { exec, plan, log, current, reporting, say } = self;
        let Some(after) = self.ready(exited).await else { return };
        reporting.ready();
        let convicted = current.end(End::Ready, say).await;
        let launch = plan.site.canonical();
        let proven = Proof::of(&plan.warmed, log, &launch, after, convicted).await;
        *proof.lock().unwrap_or_else(PoisonError::into_inner) = Some(proven.clone());
        let lines = proven.lines();
        // Kept before it is told: who reads the last line may end us.
        if let Some(root) = plan.site.root.clone() {
            LastStart::new(&launch, proven.clone()).keep(root).await;
        }
        reporting.tell(StartOutcome::Ready, &plan.warmed, Some(&proven)).await;
        lines.iter().for_each(|line| say(line));
        let (Some(quiet), Some(client)) = (exec.publish_after, &plan.client) else { return };
        let image = exec.target.image.clone();
        let ended = Publishing::new(client.clone(), &plan.warmed, log, image, &launch, quiet).run(say).await;
        say(&format!("nothing is published: {ended}"));
    }

    /// How long it took; `None` if it exited before, or nobody will know.
    async fn ready(&self, exited: impl Future<Output = Exit>) -> Option<Duration> {
        let &Self { exec, plan, current, reporting, say, .. } = self;
        let probe = match plan.site.readiness(exec.ready_url.as_deref()) {
            Ok(probe) => probe,
            Err(error) => {
                say(&format!("nothing will be proven or published: {error}"));
                current.end(End::Unknown, say).await;
                reporting.tell(StartOutcome::Unknown, &plan.warmed, None).await;
                return None;
            }
        };
        match engine::wait(&probe, exec.ready_timeout, exited).await {
            Readiness::Ready { after } => Some(after),
            Readiness::Exited(_) => None,
            Readiness::Deadline(last) => {
                let last = last.map(|failure| format!(": {failure}")).unwrap_or_default();
                let budget = exec.ready_timeout;
                say(&format!(
                    "not ready within {budget:?} at {probe}{last}; nothing will be published. See --ready-url, --ready-timeout"
                ));
                current.end(End::Unknown, say).await;
                reporting.tell(StartOutcome::Unknown, &plan.warmed, None).await;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
