//! Places that are taken for a while: counted for each tenant and for the replica, given back by dropping.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Limit, Limited};
use crate::proxy::auth::Tenant;

/// Nobody knows when a place will be free.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// With the engine.
    Request,
    /// Waiting for an adapter or a gate.
    Waiter,
}

/// Entries exist only while a place is taken, so there are no more of them than places.
#[derive(Debug, Default)]
pub(super) struct Places {
    of_tenant: HashMap<(Tenant, Place), usize>,
    total: HashMap<Place, usize>,
}

impl Places {
    pub(super) fn enter(
        shared: &Arc<Mutex<Self>>,
        tenant: &Tenant,
        place: Place,
        of_tenant: usize,
        of_replica: usize,
    ) -> Result<Permit, Limited> {
        let full = |limit| Err(Limited { limit, retry_after: RETRY_AFTER });
        let mut places = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tenant.clone(), place);
        if places.of_tenant.get(&key).copied().unwrap_or_default() >= of_tenant {
            return full(Limit::TenantPlaces);
        }
        if places.total(place) >= of_replica {
            return full(Limit::ReplicaPlaces);
        }
        *places.of_tenant.entry(key.clone()).or_default() += 1;
        *places.total.entry(place).or_default() += 1;
        Ok(Permit { places: Arc::clone(shared), key })
    }

    pub(super) fn total(&self, place: Place) -> usize {
        self.total.get(&place).copied().unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn tenants(&self) -> usize {
        self.of_tenant.len()
    }

    fn leave(&mut self, key: &(Tenant, Place)) {
        if let Some(taken) = self.of_tenant.get_mut(key) {
            *taken -= 1;
            if *taken == 0 {
                self.of_tenant.remove(key);
            }
        }
        if let Some(total) = self.total.get_mut(&key.1) {
            *total -= 1;
        }
    }
}

/// A place that is taken as long as this lives.
#[derive(Debug)]
#[must_use = "the place is free again as soon as the permit is dropped"]
pub struct Permit {
    places: Arc<Mutex<Places>>,
    key: (Tenant, Place),
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).leave(&self.key);
    }
}
