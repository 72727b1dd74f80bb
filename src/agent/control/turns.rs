//! Calls that keep a thread and the disk busy: so many at a time, and so many of one user, whoever else is there.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::lifecycle::{Share, Shares};

/// Far fewer than the runtime has threads that may block, a few for each.
const TOGETHER: usize = 64;

/// A node has few pods, and each of them publishes one thing at a time.
const OF_ONE_USER: usize = 16;

pub(in crate::agent) struct Turns {
    together: Arc<Semaphore>,
    each: Shares<u32>,
}

/// Held until the work is done, whether or not its caller is still there.
pub(super) struct Turn {
    _one: OwnedSemaphorePermit,
    _own: Share<u32>,
}

impl Turns {
    pub(in crate::agent) fn new() -> Self {
        Self { together: Arc::new(Semaphore::new(TOGETHER)), each: Shares::new(OF_ONE_USER) }
    }

    /// Calls that wait would wait for others that may stall.
    pub(super) fn take(&self, uid: u32) -> Result<Turn, Status> {
        let busy = |whose: &str| Status::resource_exhausted(format!("{whose} too many long calls going on: try again"));
        let own = self.each.take(uid).ok_or_else(|| busy(&format!("uid {uid} has")))?;
        let one = self.together.clone().try_acquire_owned().map_err(|_| busy("this agent has"))?;
        Ok(Turn { _one: one, _own: own })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_takes_no_turn_of_another_and_all_together_leave_threads() {
        let turns = Turns::new();
        let of = |uid| -> Vec<Turn> { std::iter::from_fn(|| turns.take(uid).ok()).collect() };
        let first = of(1);
        assert_eq!(first.len(), OF_ONE_USER);
        assert_eq!(turns.take(1).err().unwrap().code(), tonic::Code::ResourceExhausted);
        assert!(turns.take(2).is_ok());
        let all: Vec<Vec<Turn>> = (2..20).map(of).collect();
        assert_eq!(first.len() + all.iter().map(Vec::len).sum::<usize>(), TOGETHER);
        drop(first);
        assert!(turns.take(1).is_ok());
    }
}
