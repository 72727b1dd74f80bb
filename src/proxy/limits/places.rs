//! Places that are taken for a while: counted for each tenant and for the replica, given back by dropping.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Limit, Limited};
use crate::proxy::auth::Tenant;

/// Nobody knows when a place will be free.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// With the engine.
    Request,
    /// Waiting for an adapter or a gate.
    Waiter,
}

/// How many are taken, by [`Place`].
type Taken = [usize; 2];

/// Entries exist only while a place is taken, so there are no more of them than places.
#[derive(Debug, Default)]
pub(super) struct Places {
    of_tenant: HashMap<Tenant, Taken>,
    total: Taken,
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
        let theirs = places.of_tenant.get(tenant).map_or(0, |taken| taken[place as usize]);
        if theirs >= of_tenant {
            return full(Limit::TenantPlaces);
        }
        if places.total(place) >= of_replica {
            return full(Limit::ReplicaPlaces);
        }
        places.of_tenant.entry(tenant.clone()).or_default()[place as usize] += 1;
        places.total[place as usize] += 1;
        Ok(Permit { places: Arc::clone(shared), tenant: tenant.clone(), place })
    }

    pub(super) fn total(&self, place: Place) -> usize {
        self.total[place as usize]
    }

    #[cfg(test)]
    pub(super) fn tenants(&self) -> usize {
        self.of_tenant.len()
    }

    fn leave(&mut self, tenant: &Tenant, place: Place) {
        if let Some(taken) = self.of_tenant.get_mut(tenant) {
            taken[place as usize] -= 1;
            if *taken == Taken::default() {
                self.of_tenant.remove(tenant);
            }
        }
        self.total[place as usize] -= 1;
    }
}

/// A place that is taken as long as this lives.
#[derive(Debug)]
#[must_use = "the place is free again as soon as the permit is dropped"]
pub struct Permit {
    places: Arc<Mutex<Places>>,
    tenant: Tenant,
    place: Place,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).leave(&self.tenant, self.place);
    }
}
