//! Who owns which task, and how a role ends.
//!
//! Every task is spawned through a [`Tasks`]. Dropping it cancels them; [`Tasks::shutdown`] also waits, up to a deadline.
//! They run on the runtime on which the group was made: that of the process, or that of a [`Thread`].
//! Roles end in one order: stop accepting, let work finish, cancel the rest, close.

pub mod child;
mod doubling;
mod shares;
mod thread;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

pub use self::doubling::Doubling;
pub use self::shares::{Share, Shares};
pub use self::thread::Thread;

/// A group of tasks that live no longer than their owner.
#[derive(Debug)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
    /// None: that of whoever spawns.
    runtime: Option<Handle>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    pub fn new() -> Self {
        Self { token: CancellationToken::new(), tracker: TaskTracker::new(), runtime: Handle::try_current().ok() }
    }

    /// A group that is cancelled with this one and can end before it.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: TaskTracker::new(), runtime: self.runtime.clone() }
    }

    /// Cancelled when the owner wants the tasks to end.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tasks not yet ended.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Runs `task` until it ends or the group is cancelled, whichever comes first. A panic ends only this task and is
    /// logged under `name`.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let cancelled = Cancelled::of(&self.token);
        self.spawn_finishing(name, async move {
            tokio::select! {
                biased;
                () = cancelled => {}
                () = task => {}
            }
        });
    }

    /// As [`Tasks::spawn`], but cancellation does not cut the task off: it watches [`Tasks::token`] itself.
    #[expect(clippy::disallowed_methods, reason = "this is the owner of tasks")]
    pub fn spawn_finishing(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let guarded = async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(task = name, "task panicked");
            }
        };
        let task = self.tracker.track_future(guarded);
        match &self.runtime {
            Some(runtime) => runtime.spawn(task),
            None => tokio::spawn(task),
        };
    }

    /// Cancels all tasks and waits for them; false if some had not ended at the deadline.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

/// Completes when a token is cancelled. Whoever polls it often, beside something else, takes no lock of the token's: it is
/// looked at again only when it was woken.
#[derive(Debug)]
pub struct Cancelled(FuturesUnordered<WaitForCancellationFutureOwned>);

impl Cancelled {
    pub fn of(token: &CancellationToken) -> Self {
        Self(FuturesUnordered::from_iter([token.clone().cancelled_owned()]))
    }
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_next_unpin(cx).map(|_| ())
    }
}

/// Completes at the first SIGTERM or SIGINT after it was called, awaited or not: whoever says that it is ready calls it
/// before.
pub fn termination() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        }
    })
}

/// SIGHUPs from now on; before, one ends the process.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// The next one. Several that come at once are one.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Completes at the first SIGTERM or SIGINT from its first poll on.
pub async fn terminated() -> std::io::Result<()> {
    termination()?.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cancellation_is_heard_before_and_while_somebody_waits_for_it() {
        let token = CancellationToken::new();
        let mut waiting = Cancelled::of(&token);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        let (heard, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(1), waiting), async { token.cancel() });
        assert!(heard.is_ok());
        Cancelled::of(&token).await;
    }

    #[tokio::test]
    async fn shutdown_cancels_and_waits() {
        let tasks = Tasks::new();
        tasks.spawn("endless", std::future::pending());
        assert_eq!(tasks.len(), 1);
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
        assert!(tasks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_told_at_the_deadline() {
        let tasks = Tasks::new();
        tasks.spawn_finishing("stubborn", std::future::pending());
        assert!(!tasks.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_task() {
        let tasks = Tasks::new();
        let ran = Arc::new(AtomicBool::new(false));
        let flag = ran.clone();
        tasks.spawn("panics", async { panic!("on purpose") });
        tasks.spawn_finishing("runs", async move { flag.store(true, Ordering::SeqCst) });
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
        assert!(ran.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn dropping_a_parent_cancels_its_children() {
        let parent = Tasks::new();
        let child = parent.child();
        drop(parent);
        assert!(child.token().is_cancelled());
    }
}
