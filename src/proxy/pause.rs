//! Gates: requests for one adapter can be held back, and those under way be cut off.
//!
//! A gate is open or paused. A pause is a lease: it ends by itself when its holder does not renew it, so that a controller
//! which died holds nobody up for ever. Whether a gate is open is asked, and the request counted, under one lock: after
//! [`Gates::pause`] returns, every request that passed is in the count and [`Gates::abort`] finds it. What was cut off is
//! told as such: its `finish_reason` is [`ABORTED`], never `length` or `stop`.
//!
//! `table` is the pure part; here are those who wait.

mod command;
mod seconds;
mod table;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use command::{BadCommand, Command, MAX_BODY, Reply};
pub use seconds::{InvalidSeconds, MAX_SECONDS, Seconds};
pub use table::{GateError, Pause};

use table::{Table, Ticket, Verdict};

/// The `finish_reason` of an answer that was cut off by [`Gates::abort`].
pub const ABORTED: &str = "abort";

/// All adapters' gates. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Gates {
    table: Arc<Mutex<Table>>,
}

/// Whether a request may go on.
#[derive(Debug)]
pub enum Admission {
    Admitted(Permit),
    Paused(Paused),
}

/// A request that is counted at its gate as long as this lives: hold it until the answer has ended.
#[derive(Debug)]
#[must_use = "the request is no longer counted as soon as the permit is dropped"]
pub struct Permit {
    gates: Gates,
    ticket: Ticket,
    abort: CancellationToken,
}

impl Permit {
    /// Cancelled when the request is to be cut off.
    pub fn aborted(&self) -> &CancellationToken {
        &self.abort
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gates.lock().release(&self.ticket);
    }
}

/// A gate that was found paused. To drop it is to stop waiting; nothing is left behind.
#[derive(Debug)]
pub struct Paused {
    pub pause: Pause,
    changes: watch::Receiver<Option<Pause>>,
}

impl Paused {
    /// Waits until the gate opens: because it is resumed, or because the lease ends. False if it is still paused at
    /// `deadline`. Another pause may follow at once, so ask for admission again.
    pub async fn opened(&mut self, deadline: Instant) -> bool {
        loop {
            let Some(pause) = self.changes.borrow_and_update().clone() else { return true };
            let ends = pause.until.min(deadline);
            if tokio::time::Instant::now().into_std() >= ends {
                return pause.until <= deadline;
            }
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() { return true },
                () = tokio::time::sleep_until(ends.into()) => {}
            }
        }
    }
}

impl Gates {
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for `adapter`, and counts `request` (its id) if the gate is open.
    pub fn admit(&self, adapter: &str, request: &str, now: Instant) -> Admission {
        match self.lock().admit(adapter, request, now) {
            Verdict::Admitted(ticket, abort) => Admission::Admitted(Permit { gates: self.clone(), ticket, abort }),
            Verdict::Paused(pause, changes) => Admission::Paused(Paused { pause, changes }),
        }
    }

    /// As [`Gates::admit`], and waits for the gate until `deadline`. Whoever drops the future has left the queue.
    pub async fn admit_by(&self, adapter: &str, request: &str, deadline: Instant) -> Result<Permit, Pause> {
        loop {
            let now = tokio::time::Instant::now().into_std();
            match self.admit(adapter, request, now) {
                Admission::Admitted(permit) => return Ok(permit),
                Admission::Paused(mut paused) => {
                    if !paused.opened(deadline).await {
                        return Err(paused.pause);
                    }
                }
            }
        }
    }

    /// Holds requests for `adapter` back until `lease` has passed. The same holder renews its pause; another one is
    /// refused while it lasts.
    pub fn pause(&self, adapter: &str, by: &str, lease: Duration, now: Instant) -> Result<Pause, GateError> {
        self.lock().pause(adapter, by, lease, now)
    }

    /// Opens the gate; true if it was paused. With an `epoch` only if that pause is still the one in force, so that who
    /// lost its lease does not end somebody else's.
    pub fn resume(&self, adapter: &str, epoch: Option<u64>, now: Instant) -> Result<bool, GateError> {
        self.lock().resume(adapter, epoch, now)
    }

    /// Cuts off every request for `adapter` that is under way and gives their ids. The gate stays as it is: pause it
    /// first, and no other request takes their place.
    pub fn abort(&self, adapter: &str) -> Vec<String> {
        self.lock().abort(adapter)
    }

    /// Waits until `adapter` is not paused; the pause if it still is at `deadline`. Does not wait where it is open.
    pub async fn wait(&self, adapter: &str, deadline: Instant) -> Option<Pause> {
        loop {
            let now = tokio::time::Instant::now().into_std();
            let (pause, changes) = self.lock().paused(adapter, now)?;
            let mut paused = Paused { pause, changes };
            if !paused.opened(deadline).await {
                return Some(paused.pause);
            }
        }
    }

    /// The pause in force.
    pub fn paused(&self, adapter: &str, now: Instant) -> Option<Pause> {
        self.lock().paused(adapter, now).map(|(pause, _)| pause)
    }

    /// Requests for `adapter` that were admitted and have not ended.
    pub fn in_flight(&self, adapter: &str) -> usize {
        self.lock().in_flight(adapter)
    }
}
