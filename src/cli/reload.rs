//! A role reads its configuration again at each SIGHUP, and takes all of it or nothing.

use std::sync::Arc;

use anyhow::Context;

use crate::config::reload::{self, Reloadable};
use crate::config::{self, ConfigFile};
use crate::lifecycle::Hangups;
use crate::telemetry::trace::set_sampling;
use crate::telemetry::{self, LogConfig, ReloadResult, TracingConfig};

/// Reads a role's configuration from where it is.
pub(super) type Load<T> = Arc<dyn Fn() -> anyhow::Result<T> + Send + Sync>;

/// A role that can change while it runs.
pub(super) struct Reloading<T> {
    pub(super) hangups: Hangups,
    pub(super) load: Load<T>,
    /// What is in force.
    pub(super) current: T,
    pub(super) reloadable: Reloadable,
}

impl<T: ConfigFile + Clone + Send + 'static> Reloading<T> {
    /// For as long as it is polled. `take` puts a configuration in force, or fails and changes nothing.
    pub(super) async fn follow(mut self, take: impl AsyncFn(&T) -> anyhow::Result<()>) {
        loop {
            self.hangups.next().await;
            let result = match self.again(&take).await {
                Ok(changed) => {
                    tracing::info!(changed, "SIGHUP: the configuration was read again");
                    ReloadResult::Taken
                }
                Err(error) => {
                    let reason = super::sentence(&error);
                    tracing::error!(reason, "SIGHUP: the configuration is not taken, and the one before stays");
                    ReloadResult::Refused
                }
            };
            result.count();
        }
    }

    /// The keys that are different now.
    async fn again(&mut self, take: &impl AsyncFn(&T) -> anyhow::Result<()>) -> anyhow::Result<String> {
        let load = self.load.clone();
        let new = tokio::task::spawn_blocking(move || load()).await.context("read the configuration")??;
        let changes = reload::plan(&config::table(&self.current), &config::table(&new), self.reloadable)?;
        take(&new).await?;
        self.current = new;
        Ok(changes.0.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(", "))
    }
}

/// What every role takes. The level was checked when the file was read.
pub(super) fn take_telemetry(log: &LogConfig, tracing: &TracingConfig) -> anyhow::Result<()> {
    telemetry::set_level(&log.level).context("log.level")?;
    set_sampling(tracing);
    Ok(())
}
