//! Deadlines that move with every request. To move one costs nothing: the runtime's timer is behind it, and is set again
//! only when it rings too early.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

/// One timer for one deadline after another.
#[derive(Debug, Default)]
pub(super) struct Alarm(Option<Pin<Box<tokio::time::Sleep>>>);

impl Alarm {
    /// Ready once `due` has passed; until then the task is woken at `due`, and perhaps before.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// For the deadlines of one connection, of which only the last counts.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionTimer(Arc<Mutex<Alarm>>);

/// One of them.
struct Deadline {
    alarm: Arc<Mutex<Alarm>>,
    due: Instant,
}

impl Future for Deadline {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.lock().unwrap_or_else(PoisonError::into_inner).poll(cx, self.due)
    }
}

impl Sleep for Deadline {}

impl Timer for ConnectionTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until((Instant::now() + duration).into_std())
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Deadline { alarm: self.0.clone(), due: deadline.into() })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wait(alarm: &mut Alarm, due: Instant) -> Duration {
        let begun = Instant::now();
        std::future::poll_fn(|cx| alarm.poll(cx, due)).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_at_the_deadline_that_was_asked_for_last() {
        let (mut alarm, second) = (Alarm::default(), Duration::from_secs(1));
        let later = Instant::now() + second * 10;
        assert!(std::future::poll_fn(|cx| Poll::Ready(alarm.poll(cx, later))).await.is_pending());
        let sooner = Instant::now() + second * 3;
        assert_eq!(wait(&mut alarm, sooner).await, second * 3);
        assert_eq!(wait(&mut alarm, later).await, second * 7);
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_of_a_connection_ring_one_after_another() {
        let (timer, second) = (ConnectionTimer::default(), Duration::from_secs(1));
        let begun = Instant::now();
        let given_up = timer.sleep(second * 2);
        drop(given_up);
        timer.sleep(second * 5).await;
        assert_eq!(begun.elapsed(), second * 5);
        timer.sleep(second * 2).await;
        assert_eq!(begun.elapsed(), second * 7);
    }
}
