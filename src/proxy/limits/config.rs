//! `[limits]` of the configuration file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::places::Place;
use crate::proxy::auth::Tenant;

/// The number is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a rate: expected a number above 0 and at most 1e12; leave the key out for no limit")]
pub struct InvalidRate;

/// Above zero and finite.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Rate(f64);

impl Rate {
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Rate {
    type Error = InvalidRate;
    fn try_from(rate: f64) -> Result<Self, InvalidRate> {
        let valid = rate.is_finite() && rate > 0.0 && rate <= 1e12;
        valid.then_some(Self(rate)).ok_or(InvalidRate)
    }
}

impl From<Rate> for f64 {
    fn from(rate: Rate) -> Self {
        rate.0
    }
}

/// What this replica can take, and what everybody may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Requests that the engine works on, of all tenants.
    pub max_requests: usize,
    /// Requests that wait for an adapter or a gate, of all tenants.
    pub max_waiters: usize,
    /// For tenants that have no table of their own.
    pub default: Allowance,
    /// By name.
    pub tenants: BTreeMap<String, Allowance>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let (default, tenants) = (Allowance::default(), BTreeMap::new());
        Self { max_requests: 1024, max_waiters: 1024, default, tenants }
    }
}

/// What one tenant may ask for. A rate that is absent has no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowance {
    /// Of each key.
    pub requests_per_second: Option<Rate>,
    /// Of each key; those of prompt and answer together.
    pub tokens_per_second: Option<Rate>,
    /// What may come at once after a pause, in seconds of the rate.
    pub burst_seconds: Rate,
    /// Requests for adapters that are not known here.
    pub unknown_adapters_per_minute: Option<Rate>,
    /// Adapters that are being loaded or are in the engine because this tenant has asked for them. One that others have
    /// asked for, or an operator, costs nothing.
    pub max_adapters: usize,
    /// Requests that the engine works on.
    pub max_requests: usize,
    /// Requests that wait for an adapter or a gate.
    pub max_waiters: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            requests_per_second: None,
            tokens_per_second: None,
            burst_seconds: Rate(2.0),
            unknown_adapters_per_minute: Some(Rate(60.0)),
            max_adapters: 1024,
            max_requests: 512,
            max_waiters: 64,
        }
    }
}

impl Allowance {
    /// What a bucket of `rate` holds.
    pub(super) fn burst(&self, rate: Rate) -> f64 {
        rate.0 * self.burst_seconds.0
    }

    pub(super) fn places(&self, place: Place) -> usize {
        match place {
            Place::Request => self.max_requests,
            Place::Waiter => self.max_waiters,
        }
    }
}

impl LimitsConfig {
    pub(super) fn of(&self, tenant: &Tenant) -> &Allowance {
        self.tenants.get(tenant.as_str()).unwrap_or(&self.default)
    }

    pub(super) fn places(&self, place: Place) -> usize {
        match place {
            Place::Request => self.max_requests,
            Place::Waiter => self.max_waiters,
        }
    }
}
