//! How much each caller may ask for. Rates are counted for each key, places for each tenant. Pure but for one lock: the
//! caller brings the time and waits as long as it is told.

mod bucket;
mod config;
mod places;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

pub use config::{Allowance, InvalidRate, LimitsConfig, Rate};
pub use places::{Permit, Place};

use super::auth::Tenant;
use crate::telemetry::label;
use bucket::Bucket;
use places::Places;

label! {
    /// What there was too much of. As a label of metrics: a closed set.
    pub enum Limit {
        Requests,
        Tokens,
        /// Asking for adapters that nobody knows.
        UnknownAdapters,
        /// Adapters that are here because one tenant has asked for them.
        Adapters,
        /// One tenant's places.
        TenantPlaces,
        /// This replica's places: the tenant did nothing wrong.
        ReplicaPlaces,
        /// More callers at once than are counted.
        Callers,
    }
}

/// Too much for now. `Display` is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}; try again in {} s", limit.text(), self.retry_after_seconds())]
pub struct Limited {
    pub limit: Limit,
    pub retry_after: Duration,
}

impl Limit {
    fn text(self) -> &'static str {
        match self {
            Self::Requests => "too many requests a second",
            Self::Tokens => "too many tokens a second",
            Self::UnknownAdapters => "too many requests for models that do not exist",
            Self::Adapters => "too many of your adapters are in use here",
            Self::TenantPlaces => "too many requests at once",
            Self::ReplicaPlaces => "this server is full",
            Self::Callers => "too many callers at once",
        }
    }
}

impl Limited {
    /// HTTP status: 503 where another replica may have room.
    pub fn status(self) -> u16 {
        match self.limit {
            Limit::ReplicaPlaces | Limit::Callers => 503,
            _ => 429,
        }
    }

    /// For the header `Retry-After`: whole seconds, at least 1.
    pub fn retry_after_seconds(self) -> u64 {
        let part = u64::from(self.retry_after.subsec_nanos() > 0);
        self.retry_after.as_secs().saturating_add(part).max(1)
    }
}

/// Callers whose buckets are not full. Those that are idle need no entry.
const MAX_CALLERS: usize = 64 * 1024;

/// What a full table answers, and how often it is looked through.
const TABLE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Rates {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// All callers' buckets and places. Shared by all connections.
#[derive(Debug)]
pub struct Limits {
    config: RwLock<LimitsConfig>,
    keys: Mutex<Table<(Tenant, Box<str>), Rates>>,
    unknown: Mutex<Table<Tenant, Bucket>>,
    places: Arc<Mutex<Places>>,
}

impl Limits {
    pub fn new(config: LimitsConfig) -> Self {
        Self { config: RwLock::new(config), keys: Mutex::default(), unknown: Mutex::default(), places: Arc::default() }
    }

    fn config(&self) -> RwLockReadGuard<'_, LimitsConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on. Every key begins with a full bucket, and nobody loses the place that he has.
    pub fn set(&self, config: LimitsConfig) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Table::default();
        *self.unknown.lock().unwrap_or_else(PoisonError::into_inner) = Table::default();
    }

    /// Counts one request of `key`. Refused if it has none left, or has tokens to make up for.
    pub fn admit(&self, tenant: &Tenant, key: &str, now: Instant) -> Result<(), Limited> {
        let config = self.config();
        let allowance = config.of(tenant);
        if allowance.requests_per_second.is_none() && allowance.tokens_per_second.is_none() {
            return Ok(());
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let rates = keys.entry((tenant.clone(), key.into()), now, || Rates::new(allowance, now))?;
        // Tokens first: a request that is refused for them costs no request.
        limited(Limit::Tokens, rates.tokens.as_mut().map(|bucket| bucket.debt(now)))?;
        limited(Limit::Requests, rates.requests.as_mut().map(|bucket| bucket.take(1.0, now)))
    }

    /// Counts what a request of `key` has used. It may be more than is left: the next requests wait for it.
    pub fn account(&self, tenant: &Tenant, key: &str, tokens: u64, now: Instant) {
        let config = self.config();
        let allowance = config.of(tenant);
        if allowance.tokens_per_second.is_none() {
            return;
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        // No room means that more callers than can be counted are active; they are refused at `admit`.
        if let Ok(rates) = keys.entry((tenant.clone(), key.into()), now, || Rates::new(allowance, now))
            && let Some(bucket) = &mut rates.tokens
        {
            bucket.owe(tokens as f64, now);
        }
    }

    /// Counts a request of `tenant` for an adapter that is not known here, before anybody is asked for it.
    pub fn unknown_adapter(&self, tenant: &Tenant, now: Instant) -> Result<(), Limited> {
        let Some(rate) = self.config().of(tenant).unknown_adapters_per_minute else { return Ok(()) };
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = unknown.entry(tenant.clone(), now, || Bucket::new(rate.get() / 60.0, rate.get(), now))?;
        limited(Limit::UnknownAdapters, Some(bucket.take(1.0, now)))
    }

    /// Adapters that may be here at a time because `tenant` has asked for them. Counted by whoever has them.
    pub fn max_adapters(&self, tenant: &Tenant) -> usize {
        self.config().of(tenant).max_adapters
    }

    /// Takes one of `tenant`'s places, and of the replica's, until the permit is dropped.
    pub fn enter(&self, tenant: &Tenant, place: Place) -> Result<Permit, Limited> {
        let config = self.config();
        Places::enter(&self.places, tenant, place, config.of(tenant).places(place), config.places(place))
    }

    /// Places taken by all tenants.
    pub fn taken(&self, place: Place) -> usize {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).total(place)
    }
}

impl Rates {
    fn new(allowance: &Allowance, now: Instant) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate.get(), allowance.burst(rate), now));
        Self { requests: bucket(allowance.requests_per_second), tokens: bucket(allowance.tokens_per_second) }
    }
}

fn limited(limit: Limit, wait: Option<Duration>) -> Result<(), Limited> {
    match wait {
        Some(retry_after) if !retry_after.is_zero() => Err(Limited { limit, retry_after }),
        _ => Ok(()),
    }
}

/// What may be forgotten because a fresh one is the same.
trait Idle {
    fn is_idle(&self, now: Instant) -> bool;
}

impl Idle for Bucket {
    fn is_idle(&self, now: Instant) -> bool {
        self.is_full(now)
    }
}

impl Idle for Rates {
    fn is_idle(&self, now: Instant) -> bool {
        [&self.requests, &self.tokens].into_iter().flatten().all(|bucket| bucket.is_full(now))
    }
}

/// At most [`MAX_CALLERS`] entries; idle ones make room.
#[derive(Debug)]
struct Table<K, V> {
    entries: HashMap<K, V>,
    swept: Option<Instant>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), swept: None }
    }
}

impl<K: Eq + std::hash::Hash, V: Idle> Table<K, V> {
    fn entry(&mut self, key: K, now: Instant, fresh: impl FnOnce() -> V) -> Result<&mut V, Limited> {
        if self.entries.len() >= MAX_CALLERS && !self.entries.contains_key(&key) {
            self.sweep(now);
            if self.entries.len() >= MAX_CALLERS {
                return Err(Limited { limit: Limit::Callers, retry_after: TABLE_PAUSE });
            }
        }
        Ok(self.entries.entry(key).or_insert_with(fresh))
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= TABLE_PAUSE) {
            self.swept = Some(now);
            self.entries.retain(|_, value| !value.is_idle(now));
        }
    }
}
