//! Tells the agent that the engine serves: how fast, so that uploads yield to it, and with how many adapters.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::Catalogue;
use crate::local::Client;
use crate::proxy::{Proxy, Upstream};

const EVERY: Duration = Duration::from_secs(1);

/// An engine of which there is nothing new is told of this often: well before the agent takes it for gone.
const IDLE: Duration = Duration::from_secs(10);

/// What the agent was told last.
struct Told {
    at: Instant,
    adapters: Option<u32>,
}

/// Until the proxy is gone.
pub(super) async fn tell(
    proxy: Weak<Proxy>,
    catalogue: Arc<Catalogue>,
    upstream: watch::Receiver<Option<Upstream>>,
    socket: PathBuf,
) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut agent, mut told) = (None, None);
    loop {
        every.tick().await;
        let Some(proxy) = proxy.upgrade() else { return };
        let pace = proxy.take_pace();
        drop(proxy);
        let adapters = catalogue.registered();
        let is_ready = upstream.borrow().is_some();
        if !is_ready || (pace.is_none() && !is_due(told.as_ref(), adapters, Instant::now())) {
            continue;
        }
        if agent.is_none() {
            agent = timeout(EVERY, Client::connect(&socket)).await.ok().and_then(Result::ok);
        }
        let Some(client) = &agent else { continue };
        match timeout(EVERY, client.report_serving(pace, adapters)).await {
            Ok(Ok(())) => told = Some(Told { at: Instant::now(), adapters }),
            // It may have been started again.
            _ => agent = None,
        }
    }
}

fn is_due(told: Option<&Told>, adapters: Option<u32>, now: Instant) -> bool {
    told.is_none_or(|told| told.adapters != adapters || now.saturating_duration_since(told.at) >= IDLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_engine_is_told_of_now_and_then_and_when_its_adapters_change() {
        let at = Instant::now();
        let told = Told { at, adapters: Some(1) };
        assert!(is_due(None, None, at));
        assert!(!is_due(Some(&told), Some(1), at + IDLE / 2) && is_due(Some(&told), Some(1), at + IDLE));
        assert!(is_due(Some(&told), Some(2), at) && is_due(Some(&told), None, at));
    }
}
