//! Speaks for a node: one task sends all that is said, in order, so that nothing can follow STALE.
//!
//! The agent says what is true now; [`plan`] (pure) decides what to send when. A missing server costs nothing but time: what
//! was not told is told later.

mod plan;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::client::{Client, ClientError};
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::lifecycle::Tasks;
use crate::protocol::metadata::{AnnounceReply, Endpoint, Epoch, Held, Load, Locality, NodeState};
use plan::{Answer, Message, Plan};

/// Times of an announcer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceConfig {
    /// Until the server says otherwise.
    pub heartbeat: Duration,
    /// At least this long between two announcements of changes.
    pub spacing: Duration,
    /// First and longest wait after a failure; the waits between double, with jitter.
    pub retry: Duration,
    pub max_retry: Duration,
    /// How long a server that has no room, or finds an artifact invalid, hears heartbeats only.
    pub hold_back: Duration,
}

impl Default for AnnounceConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            spacing: Duration::from_millis(50),
            retry: Duration::from_secs(1),
            max_retry: Duration::from_secs(10),
            hold_back: Duration::from_secs(60),
        }
    }
}

/// What does not change during the life of an agent's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncedNode {
    pub node: NodeId,
    /// Must be higher than in any earlier life of this node, whatever the clock did: keep the last one on disk.
    pub epoch: Epoch,
    pub endpoints: Arc<[Endpoint]>,
    pub locality: Arc<Locality>,
}

/// More artifacts than a node can announce. The others are told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most {0} artifacts can be announced by one node")]
pub struct TooManyArtifacts(pub usize);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Status {
    /// The last message was taken.
    connected: bool,
    /// All that was said has been taken.
    settled: bool,
    /// STALE has been taken.
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    wake: Notify,
    status: watch::Sender<Status>,
    /// What the server said last of its documents of trust.
    trust: watch::Sender<u64>,
}

/// A node's voice. It begins as INITIALIZING.
#[derive(Debug)]
pub struct Announcer {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Announcer {
    pub fn spawn(client: Client, node: AnnouncedNode, config: AnnounceConfig, tasks: &Tasks) -> Self {
        let shared = Arc::new(Shared {
            plan: Mutex::new(Plan::new(node, config, Instant::now())),
            wake: Notify::new(),
            status: watch::Sender::default(),
            trust: watch::Sender::default(),
        });
        let tasks = tasks.child();
        tasks.spawn("announcer", speak(client, shared.clone()));
        Self { shared, tasks }
    }

    /// The node holds this artifact, or more or less of it than before.
    pub fn hold(&self, held: Held) -> Result<(), TooManyArtifacts> {
        self.shared.say(|plan| plan.hold(held))
    }

    /// The node no longer holds this artifact.
    pub fn drop_artifact(&self, artifact: ArtifactId) {
        self.shared.say(|plan| plan.drop_artifact(artifact));
    }

    /// Ignored if the node cannot become so: nothing follows STALE.
    pub fn set_state(&self, state: NodeState) {
        self.shared.say(|plan| plan.set_state(state, Instant::now()));
    }

    /// Told with the next message.
    pub fn set_load(&self, load: Load) {
        self.shared.say(|plan| plan.set_load(load));
    }

    /// The last message was taken by a server.
    pub fn is_connected(&self) -> bool {
        self.shared.status.borrow().connected
    }

    /// No server has answered for two heartbeats.
    pub fn is_silent(&self) -> bool {
        self.shared.plan().is_silent(Instant::now())
    }

    /// A number that is another one whenever the documents of trust at the server are, as of the last heartbeat; 0 without.
    pub fn trust(&self) -> watch::Receiver<u64> {
        self.shared.trust.subscribe()
    }

    /// Waits until a server has taken all that was said; false at the deadline.
    pub async fn settled(&self, deadline: Duration) -> bool {
        self.shared.wait(deadline, |status| status.settled).await
    }

    /// Says STALE, which is the last word; false if no server had taken it at the deadline.
    pub async fn close(&self, deadline: Duration) -> bool {
        self.set_state(NodeState::Stale);
        let ended = self.shared.wait(deadline, |status| status.ended).await;
        self.tasks.token().cancel();
        ended
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say<T>(&self, say: impl FnOnce(&mut Plan) -> T) -> T {
        let mut plan = self.plan();
        let result = say(&mut plan);
        // Under the lock, so that the task's own report cannot be overwritten by an older one.
        self.status.send_modify(|status| status.settled = plan.is_settled());
        drop(plan);
        self.wake.notify_one();
        result
    }

    async fn wait(&self, deadline: Duration, reached: impl Fn(&Status) -> bool) -> bool {
        let mut status = self.status.subscribe();
        let reached = tokio::time::timeout(deadline, status.wait_for(reached)).await;
        matches!(reached, Ok(Ok(_)))
    }

    fn heard(&self, reply: AnnounceReply) -> Answer {
        self.trust.send_if_modified(|trust| std::mem::replace(trust, reply.trust) != reply.trust);
        reply.into()
    }

    fn take(&self, answer: Result<Answer, ClientError>) -> bool {
        let mut plan = self.plan();
        let now = Instant::now();
        let connected = answer.is_ok();
        match answer {
            Ok(answer) => plan.answered(answer, now, &mut rand::rng()),
            Err(error) => {
                let refusal = if let ClientError::Refused { refusal, .. } = &error { Some(*refusal) } else { None };
                if self.status.borrow().connected || refusal.is_some() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "announce: will try again");
                }
                plan.failed(refusal, now, &mut rand::rng());
            }
        }
        let status = Status { connected, settled: plan.is_settled(), ended: plan.is_ended() };
        self.status.send_replace(status);
        connected
    }
}

async fn speak(client: Client, shared: Arc<Shared>) {
    loop {
        let due = shared.plan().due();
        let Some(due) = due else { break };
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = shared.wake.notified() => continue,
        }
        let message = shared.plan().message(Instant::now());
        let answer = match message {
            None => continue,
            Some(Message::Announce(announcement)) => {
                client.announce(&announcement).await.map(|reply| shared.heard(reply))
            }
            Some(Message::Withdraw(withdrawal)) => client.withdraw(withdrawal).await.map(Answer::Withdrawn),
        };
        let connected = shared.take(answer);
        client.metrics().announced(connected);
    }
    client.metrics().announced(false);
}
