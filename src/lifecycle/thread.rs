//! A thread with a runtime of its own, for tasks that mostly wake each other: no wake-up crosses threads, and nothing else
//! that the process does gets in between.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Tasks;

/// Ends when dropped, and its tasks with it.
#[derive(Debug)]
pub struct Thread {
    runtime: Handle,
    ending: CancellationToken,
    ended: TaskTracker,
}

impl Thread {
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, ending, ended) = (runtime.handle().clone(), CancellationToken::new(), TaskTracker::new());
        let (running, end) = (ended.token(), ending.clone());
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _running = running;
            runtime.block_on(end.cancelled());
            // Whoever waits for the thread does not wait for work that blocks.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, ending, ended })
    }

    /// A group as [`Tasks::child`] makes it, whose tasks run here, whoever spawns them.
    pub fn child_of(&self, tasks: &Tasks) -> Tasks {
        Tasks { token: tasks.token.child_token(), tracker: TaskTracker::new(), runtime: Some(self.runtime.clone()) }
    }

    /// Ends it, and waits until its tasks are gone and all that they held. False if one of them held it up for longer than
    /// `deadline`.
    pub async fn end(self, deadline: Duration) -> bool {
        self.ending.cancel();
        self.ended.close();
        tokio::time::timeout(deadline, self.ended.wait()).await.is_ok()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn tasks_run_on_the_thread_of_their_group_and_are_gone_with_it() {
        let thread = Thread::start("a lane").unwrap();
        let (all, held) = (Tasks::new(), Arc::new(()));
        let tasks = thread.child_of(&all);
        let (tell, name) = oneshot::channel();
        let mine = held.clone();
        tasks.spawn("test", async move {
            let _mine = mine;
            tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(name.await.unwrap().as_deref(), Some("a lane"));
        assert!(thread.end(Duration::from_secs(20)).await);
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn a_thread_that_a_task_holds_up_is_not_waited_for_longer_than_the_deadline() {
        let (thread, all) = (Thread::start("a lane").unwrap(), Tasks::new());
        let tasks = thread.child_of(&all);
        let (go_on, held_up) = std::sync::mpsc::channel::<()>();
        let (tell, begun) = oneshot::channel();
        tasks.spawn("test", async move {
            tell.send(()).unwrap();
            let _ = held_up.recv();
        });
        begun.await.unwrap();
        assert!(!thread.end(Duration::from_millis(1)).await);
        drop(go_on);
    }

    #[tokio::test]
    async fn a_group_that_was_made_elsewhere_stays_there() {
        let (thread, elsewhere) = (Thread::start("a lane").unwrap(), Tasks::new());
        let (tell, name) = oneshot::channel();
        thread.child_of(&elsewhere).spawn_finishing("test", async move {
            elsewhere.spawn_finishing("test", async move {
                tell.send(std::thread::current().name() == Some("a lane")).unwrap();
            });
        });
        assert!(!name.await.unwrap());
    }
}
