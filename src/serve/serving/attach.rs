//! An engine that somebody else runs: asked whether it is there, never started or stopped.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::engine::lora::{Client, Deadlines};
use crate::engine::{Address, Secret};
use crate::proxy::Upstream;
use crate::serve::Say;

/// Between two questions whether it is there.
const EVERY: Duration = Duration::from_secs(1);

/// Questions in a row that are not answered before it counts as gone.
const FAILURES: u32 = 3;

pub(super) struct Attached {
    address: Address,
    key: Option<Secret>,
    say: Say,
}

impl Attached {
    pub(super) fn new(address: Address, key: Option<Secret>, say: Say) -> Self {
        Self { address, key, say }
    }

    /// Each time that it is there again counts as another engine: nobody knows whether it remembers anything.
    pub(super) async fn follow(self, upstream: watch::Sender<Option<Upstream>>) {
        let (mut epoch, mut failures) = (0, FAILURES);
        (self.say)(&format!("waiting for the engine at {}", self.address));
        loop {
            match self.healthy().await {
                Ok(()) if failures >= FAILURES => {
                    (epoch, failures) = (epoch + 1, 0);
                    (self.say)(&format!("the engine at {} is there", self.address));
                    let (address, key) = (self.address.clone(), self.key.clone());
                    upstream.send_replace(Some(Upstream { address, key, epoch }));
                }
                Ok(()) => failures = 0,
                Err(reason) => {
                    failures = failures.saturating_add(1);
                    if failures == FAILURES {
                        (self.say)(&format!("the engine at {} is gone: {reason}", self.address));
                        upstream.send_replace(None);
                    }
                }
            }
            sleep(EVERY).await;
        }
    }

    async fn healthy(&self) -> Result<(), String> {
        let client = Client::open(self.address.clone(), self.key.clone(), Deadlines::default());
        let client = client.await.map_err(|error| error.to_string())?;
        client.healthy().await.map_err(|error| error.to_string())
    }
}
