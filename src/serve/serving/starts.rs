//! What there is to do around each start of the engine: the same as a hook in the foreground does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::arguments::Arguments;
use crate::engine::{End, Launch, Output, Probe, Secret, Starter, SupervisionConfig, unhealthy};
use crate::proxy::{BoxFuture, Upstream};
use crate::serve::Say;
use crate::serve::start::{Plan, Spec, Start};

pub(super) struct Starts {
    spec: Arc<Spec>,
    arguments: Arguments,
    /// Where it listens; the file is in the way of the next one.
    socket: PathBuf,
    probe: Probe,
    supervision: SupervisionConfig,
    say: Say,
    current: Mutex<BTreeMap<u64, Current>>,
}

#[derive(Clone)]
struct Current {
    start: Arc<Start>,
    /// What this engine asks for.
    key: Option<Secret>,
    /// How long it took.
    ready: Option<Duration>,
}

impl Starts {
    pub(super) fn new(
        spec: Spec,
        arguments: Arguments,
        socket: PathBuf,
        probe: Probe,
        supervision: SupervisionConfig,
        say: Say,
    ) -> Self {
        Self { spec: Arc::new(spec), arguments, socket, probe, supervision, say, current: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, epoch: u64) -> Option<Current> {
        self.lock().get(&epoch).cloned()
    }

    /// Where the engine of this epoch is to be asked, and with which key; absent once it has ended.
    pub(super) fn upstream(&self, epoch: u64) -> Option<Upstream> {
        let Current { key, .. } = self.of(epoch)?;
        Some(Upstream { address: self.arguments.address.clone(), key, epoch })
    }

    async fn launch(&self, epoch: u64) -> Result<Launch, String> {
        let begun = Instant::now();
        // Whatever has learned the key of one engine can do nothing with the next one.
        let key = self.arguments.key.for_launch().map_err(|error| format!("make a key for the engine: {error}"))?;
        let mut plan = Plan::new(&self.spec, &self.say);
        plan.warm(&self.spec, begun, &self.say).await;
        let start = plan.begin(self.spec.clone(), begun, self.say.clone()).await;
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                start.excused().await;
                return Err(format!("remove {}: {error}", self.socket.display()));
            }
            _ => {}
        }
        let mut command = start.command();
        command.set.extend(self.arguments.variables(key.as_ref()));
        command.unset.clone_from(&self.arguments.unset);
        let output = Output::inherited(start.observer());
        self.lock().insert(epoch, Current { start: Arc::new(start), key, ready: None });
        Ok(Launch { command, output })
    }
}

impl Starter for Starts {
    fn prepare(&self, epoch: u64) -> BoxFuture<'_, Result<Launch, String>> {
        Box::pin(self.launch(epoch))
    }

    fn ready(&self, epoch: u64) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let Some(Current { start, .. }) = self.of(epoch) else { return Err("it was not prepared".to_owned()) };
            let after = start.ready(std::future::pending()).await;
            let after = after.ok_or_else(|| format!("not ready within {:?}", self.spec.ready_timeout))?;
            if let Some(current) = self.lock().get_mut(&epoch) {
                current.ready = Some(after);
            }
            Ok(())
        })
    }

    fn running(&self, epoch: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(Current { start, ready: Some(after), .. }) = self.of(epoch) {
                start.follow(after).await;
            }
        })
    }

    fn dead(&self, _: u64) -> BoxFuture<'_, String> {
        Box::pin(unhealthy(&self.probe, self.supervision.health_every, self.supervision.health_failures))
    }

    fn ended<'a>(&'a self, epoch: u64, end: &'a End) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(Current { start, .. }) = self.lock().remove(&epoch) else { return };
            match end.asked {
                true => start.excused().await,
                false => start.crashed().await,
            }
            start.over(end.asked).await;
        })
    }
}
