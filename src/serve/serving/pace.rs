//! Tells the agent how fast the engine answers, so that uploads yield to it.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::local::Client;
use crate::proxy::Proxy;

const EVERY: Duration = Duration::from_secs(1);

/// Until the proxy is gone.
pub(super) async fn tell(proxy: Weak<Proxy>, socket: PathBuf) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut agent = None;
    loop {
        every.tick().await;
        let Some(proxy) = proxy.upgrade() else { return };
        let Some(pace) = proxy.take_pace() else { continue };
        drop(proxy);
        if agent.is_none() {
            agent = timeout(EVERY, Client::connect(&socket)).await.ok().and_then(Result::ok);
        }
        let Some(client) = &agent else { continue };
        if !matches!(timeout(EVERY, client.report_serving(pace)).await, Ok(Ok(()))) {
            // It may have been started again.
            agent = None;
        }
    }
}
