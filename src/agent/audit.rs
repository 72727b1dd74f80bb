//! The audit log of this node: one task writes what the agent does and what pods tell.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::metrics::ActionLabel;
use crate::lifecycle::Tasks;
use crate::protocol::pb;
use crate::telemetry::audit::{Action, AuditError, Event, Log};

/// Events that wait to be written: what a few users may tell in a minute comes at once, and leaves room for others.
const QUEUE: usize = 2048;

/// Events of one user in a minute: nobody writes so much that what others did is lost or forgotten.
const PER_MINUTE: u32 = 600;
const MINUTE: Duration = Duration::from_secs(60);

/// In one call of a pod.
const MAX_EVENTS: usize = crate::protocol::agent::MAX_AUDIT_EVENTS;

/// Takes events; clones write the same log.
#[derive(Clone)]
pub(super) struct Audit {
    events: mpsc::Sender<Event>,
    lost: Arc<AtomicU64>,
    /// Since when, and how many events of each user since.
    told: Arc<Mutex<(Instant, HashMap<u32, u32>)>>,
    counts: Family<ActionLabel, Counter>,
}

/// A pod has told what the log does not hold.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untold {
    #[error("more than {MAX_EVENTS} events in one call")]
    TooMany,
    #[error("`{0}` is no action of a pod")]
    Action(String),
}

impl Audit {
    /// Blocking. The log is below the state directory, for the agent's user alone.
    pub(super) fn open(state: &Path, tasks: &Tasks, counts: Family<ActionLabel, Counter>) -> Result<Self, AuditError> {
        let directory = state.join("audit");
        let io = |source| AuditError::Io { path: directory.clone(), source };
        std::fs::create_dir_all(&directory).map_err(io)?;
        let log = Log::open(&directory)?;
        let (events, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        tasks.spawn_finishing("audit log", write(log, queue, lost.clone(), tasks.token().clone()));
        Ok(Self { events, lost, told: Arc::new(Mutex::new(nothing_told())), counts })
    }

    /// Writes nothing.
    #[cfg(test)]
    pub(super) fn nowhere() -> Self {
        let (events, _) = mpsc::channel(1);
        Self { events, lost: Arc::default(), told: Arc::new(Mutex::new(nothing_told())), counts: Family::default() }
    }

    /// Never waits: what does not fit is counted, and the number is written.
    pub(super) fn tell(&self, event: Event) {
        self.counts.get_or_create(&ActionLabel { action: event.action }).inc();
        if self.events.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What a process of user `uid` says that it did.
    pub(super) fn tell_of_pod(&self, uid: u32, request: pb::AuditRequest) -> Result<(), Untold> {
        if request.events.len() > MAX_EVENTS {
            return Err(Untold::TooMany);
        }
        let events = request.events.into_iter().map(|told| event_of_pod(uid, told));
        for event in events.collect::<Result<Vec<_>, _>>()? {
            if self.may_tell(uid) {
                self.tell(event);
            } else {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn may_tell(&self, uid: u32) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.0.elapsed() >= MINUTE {
            *told = nothing_told();
        }
        let count = told.1.entry(uid).or_default();
        *count = count.saturating_add(1);
        *count <= PER_MINUTE
    }
}

fn nothing_told() -> (Instant, HashMap<u32, u32>) {
    (Instant::now(), HashMap::new())
}

fn event_of_pod(uid: u32, told: pb::AuditEvent) -> Result<Event, Untold> {
    let action = match told.action.as_str() {
        "installed" => Action::Installed,
        "refused" => Action::Refused,
        "withdrawn" => Action::Withdrawn,
        other => return Err(Untold::Action(other.chars().take(32).collect())),
    };
    let pb::AuditEvent { artifact, family, subject, from, rule, result, .. } = told;
    Ok(Event { action, by: format!("uid {uid}"), artifact, family, subject, from, rule, result })
}

/// An event of the agent itself.
pub(super) fn of_agent(action: Action, rule: Option<u64>, result: impl Into<String>) -> Event {
    Event {
        action,
        by: "agent".to_owned(),
        artifact: String::new(),
        family: String::new(),
        subject: String::new(),
        from: String::new(),
        rule: rule.map(|version| format!("policy {version}")).unwrap_or_default(),
        result: result.into(),
    }
}

/// Until the agent ends; what was told before that is written.
async fn write(mut log: Log, mut queue: mpsc::Receiver<Event>, lost: Arc<AtomicU64>, token: CancellationToken) {
    loop {
        let event = match token.run_until_cancelled(queue.recv()).await {
            Some(event) => event,
            None => queue.try_recv().ok(),
        };
        let missed = lost.swap(0, Ordering::Relaxed);
        let missed = (missed > 0).then(|| of_agent(Action::Lost, None, format!("{missed} events")));
        if event.is_none() && missed.is_none() {
            return;
        }
        let now = SystemTime::now();
        let written = tokio::task::spawn_blocking(move || {
            let written = [event, missed].into_iter().flatten().try_for_each(|event| log.append(now, event));
            (log, written)
        });
        match written.await {
            Ok((kept, written)) => {
                log = kept;
                if let Err(error) = written {
                    tracing::error!(error = %crate::local::chain(&error), "the audit log lacks an event");
                }
            }
            Err(_) => return tracing::error!("the audit log ends: its thread panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::audit::verify;

    fn told(action: &str) -> pb::AuditEvent {
        pb::AuditEvent { action: action.to_owned(), artifact: "a".to_owned(), ..pb::AuditEvent::default() }
    }

    #[tokio::test]
    async fn how_many_were_lost_last_is_written_at_the_end() {
        let state = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let audit = Audit::open(state.path(), &tasks, Family::default()).unwrap();
        audit.lost.fetch_add(3, Ordering::Relaxed);
        assert!(tasks.shutdown(Duration::from_secs(30)).await);
        let mut lines = Vec::new();
        verify(&state.path().join("audit"), |line| lines.push(line.event)).unwrap();
        let last = lines.pop().unwrap();
        assert_eq!((last.action, last.result.as_str()), (Action::Lost, "3 events"));
    }

    #[tokio::test]
    async fn what_was_told_before_the_end_is_written_and_pods_are_bounded() {
        let state = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let audit = Audit::open(state.path(), &tasks, Family::default()).unwrap();
        let of = |events| audit.tell_of_pod(1000, pb::AuditRequest { events });
        assert!(matches!(of(vec![told("fetched")]), Err(Untold::Action(_))), "only the agent fetches");
        assert!(matches!(of(vec![told("installed"); MAX_EVENTS + 1]), Err(Untold::TooMany)));
        of(vec![told("installed")]).unwrap();
        for _ in 0..=PER_MINUTE as usize / MAX_EVENTS {
            of(vec![told("refused"); MAX_EVENTS]).unwrap();
        }
        audit.tell(of_agent(Action::Policy, Some(3), "in force"));
        assert!(tasks.shutdown(Duration::from_secs(30)).await);
        let mut lines = Vec::new();
        verify(&state.path().join("audit"), |line| lines.push(line.event)).unwrap();
        assert_eq!((lines[0].by.as_str(), lines[0].action), ("uid 1000", Action::Installed));
        assert!(lines.iter().any(|event| event.action == Action::Lost));
        assert!(lines.len() <= PER_MINUTE as usize + 3, "{}", lines.len());
    }

    #[test]
    fn a_user_that_tells_too_much_loses_its_own_events_and_nobody_elses() {
        let audit = Audit::nowhere();
        (0..PER_MINUTE).for_each(|_| assert!(audit.may_tell(1000)));
        assert!(!audit.may_tell(1000));
        assert!(audit.may_tell(1001));
    }
}
