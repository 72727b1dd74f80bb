//! The gates' states. Pure: time comes from the caller, and whoever wants to wait gets a channel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::MAX_SECONDS;

/// Gates that are paused at once. The names come from outside.
pub(super) const MAX_PAUSED: usize = 1024;

/// Bytes in a holder's name.
const MAX_HOLDER: usize = 128;

/// Why a gate did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    #[error("{by} has paused this adapter: wait until its lease ends, or resume it first")]
    Held { by: String, until: Instant },
    /// The pause of that epoch has ended, and another may have begun.
    #[error("this pause is over: the lease had ended, or somebody resumed")]
    Stale { current: Option<u64> },
    #[error("{MAX_PAUSED} adapters are paused already: resume some of them")]
    Full,
    #[error("a lease lasts longer than 0 s and at most {MAX_SECONDS} s")]
    Lease,
    #[error("a holder is named by 1 to {MAX_HOLDER} bytes")]
    Holder,
}

/// A pause in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Differs from that of every other pause of this process.
    pub epoch: u64,
    /// When the gate opens by itself.
    pub until: Instant,
    /// Who paused.
    pub by: String,
}

/// Counts one request at a gate.
#[derive(Debug)]
pub(super) struct Ticket {
    adapter: Arc<str>,
    number: u64,
}

pub(super) enum Verdict {
    Admitted(Ticket, CancellationToken),
    Paused(Pause, watch::Receiver<Option<Pause>>),
}

#[derive(Debug)]
struct InFlight {
    request: Box<str>,
    abort: CancellationToken,
}

#[derive(Debug, Default)]
struct Gate {
    in_flight: BTreeMap<u64, InFlight>,
    /// `Some` while paused; the lease may have ended. Those who wait see `None` when it opens.
    pause: Option<watch::Sender<Option<Pause>>>,
}

impl Gate {
    fn pause_at(&self, now: Instant) -> Option<Pause> {
        self.pause.as_ref()?.borrow().clone().filter(|pause| now < pause.until)
    }

    fn is_unused(&self) -> bool {
        self.pause.is_none() && self.in_flight.is_empty()
    }

    fn open(&mut self) {
        if let Some(pause) = self.pause.take() {
            pause.send_replace(None);
        }
    }
}

/// A gate has an entry only while requests are under way or a pause lasts.
#[derive(Debug, Default)]
pub(super) struct Table {
    gates: HashMap<Arc<str>, Gate>,
    paused: usize,
    /// Of the last pause, and of the last request.
    epoch: u64,
    number: u64,
}

impl Table {
    pub(super) fn admit(&mut self, adapter: &str, request: &str, now: Instant) -> Verdict {
        if let Some((pause, changes)) = self.paused(adapter, now) {
            return Verdict::Paused(pause, changes);
        }
        self.number += 1;
        let (number, abort) = (self.number, CancellationToken::new());
        let in_flight = InFlight { request: request.into(), abort: abort.clone() };
        let adapter = self.gates.get_key_value(adapter).map_or_else(|| adapter.into(), |(adapter, _)| adapter.clone());
        self.gates.entry(Arc::clone(&adapter)).or_default().in_flight.insert(number, in_flight);
        Verdict::Admitted(Ticket { adapter, number }, abort)
    }

    pub(super) fn release(&mut self, ticket: &Ticket) {
        let Some(gate) = self.gates.get_mut(&ticket.adapter) else { return };
        gate.in_flight.remove(&ticket.number);
        if gate.is_unused() {
            self.gates.remove(&ticket.adapter);
        }
    }

    pub(super) fn pause(&mut self, adapter: &str, by: &str, lease: Duration, now: Instant) -> Result<Pause, GateError> {
        if by.is_empty() || by.len() > MAX_HOLDER {
            return Err(GateError::Holder);
        }
        if lease.is_zero() || lease > Duration::from_secs(MAX_SECONDS.into()) {
            return Err(GateError::Lease);
        }
        let until = now + lease;
        match self.paused(adapter, now) {
            Some((pause, _)) if pause.by != by => return Err(GateError::Held { by: pause.by, until: pause.until }),
            Some((pause, _)) => {
                let pause = Pause { until, ..pause };
                if let Some(sender) = self.gates.get(adapter).and_then(|gate| gate.pause.as_ref()) {
                    sender.send_replace(Some(pause.clone()));
                }
                return Ok(pause);
            }
            None => {}
        }
        if self.paused >= MAX_PAUSED {
            self.expire(now);
        }
        if self.paused >= MAX_PAUSED {
            return Err(GateError::Full);
        }
        self.epoch += 1;
        let pause = Pause { epoch: self.epoch, until, by: by.to_owned() };
        self.gates.entry(adapter.into()).or_default().pause = Some(watch::Sender::new(Some(pause.clone())));
        self.paused += 1;
        Ok(pause)
    }

    pub(super) fn resume(&mut self, adapter: &str, epoch: Option<u64>, now: Instant) -> Result<bool, GateError> {
        let current = self.paused(adapter, now).map(|(pause, _)| pause.epoch);
        if epoch.is_some() && epoch != current {
            return Err(GateError::Stale { current });
        }
        self.open(adapter);
        Ok(current.is_some())
    }

    pub(super) fn abort(&mut self, adapter: &str) -> Vec<String> {
        let Some(gate) = self.gates.get(adapter) else { return Vec::new() };
        gate.in_flight
            .values()
            .filter(|one| !one.abort.is_cancelled())
            .map(|one| {
                one.abort.cancel();
                one.request.to_string()
            })
            .collect()
    }

    /// The pause in force; one whose lease has ended is taken away.
    pub(super) fn paused(&mut self, adapter: &str, now: Instant) -> Option<(Pause, watch::Receiver<Option<Pause>>)> {
        let gate = self.gates.get(adapter)?;
        let sender = gate.pause.as_ref()?;
        match gate.pause_at(now) {
            Some(pause) => Some((pause, sender.subscribe())),
            None => {
                self.open(adapter);
                None
            }
        }
    }

    pub(super) fn in_flight(&self, adapter: &str) -> usize {
        self.gates.get(adapter).map_or(0, |gate| gate.in_flight.len())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.gates.len()
    }

    fn open(&mut self, adapter: &str) {
        if let Some(gate) = self.gates.get_mut(adapter)
            && gate.pause.is_some()
        {
            gate.open();
            self.paused -= 1;
        }
        self.tidy(adapter);
    }

    fn expire(&mut self, now: Instant) {
        for gate in self.gates.values_mut() {
            if gate.pause.is_some() && gate.pause_at(now).is_none() {
                gate.open();
                self.paused -= 1;
            }
        }
        self.gates.retain(|_, gate| !gate.is_unused());
    }

    fn tidy(&mut self, adapter: &str) {
        if self.gates.get(adapter).is_some_and(Gate::is_unused) {
            self.gates.remove(adapter);
        }
    }
}
