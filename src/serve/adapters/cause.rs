//! Which request an adapter is loaded for, as far as it is traced: a load belongs to nobody who waits for it, but its trace
//! is the first one's who asked.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::adapters::Alias;
use crate::telemetry::trace::{self, TraceParent};

/// Adapters of which it is known; the loads of others are traces of their own.
const MAX_CAUSES: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Causes(Mutex<HashMap<Alias, TraceParent>>);

impl Causes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Alias, TraceParent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request that is being served has asked for it.
    pub(super) fn asked(&self, alias: &Alias) {
        let Some(context) = trace::current().filter(|context| context.is_recorded()) else { return };
        let mut causes = self.lock();
        if causes.len() < MAX_CAUSES {
            causes.entry(alias.clone()).or_insert(context);
        }
    }

    /// As a span's field `traceparent`.
    pub(super) fn of(&self, alias: &Alias) -> Option<String> {
        self.lock().get(alias).map(ToString::to_string)
    }

    /// It is in the engine, or will not come: who asks next asks anew.
    pub(super) fn over(&self, alias: &Alias) {
        self.lock().remove(alias);
    }
}
