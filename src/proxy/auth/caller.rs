//! Somebody whose credentials were verified.

use std::sync::Arc;

use super::config::AnonymousConfig;
use super::scope::{Owner, Scope, Scopes, Tenant};
use crate::adapters::Address;
use crate::identity::UnixTime;
use crate::telemetry::label;

label! {
    /// How a caller proved who they are.
    pub enum Method {
        ApiKey,
        Jwt,
        /// A signed text that counts for every request until it ends.
        WalletSession,
        /// A signed text that counts for one request.
        WalletRequest,
        /// The replayable signature of a fixed text.
        WalletStatic,
        Anonymous,
        /// Peer credentials of the admin socket.
        Socket,
    }
}

/// Who calls, and what they may do. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(Arc<Known>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    tenant: Tenant,
    key: Box<str>,
    method: Method,
    address: Option<Address>,
    scopes: Scopes,
    expires: Option<UnixTime>,
}

impl Caller {
    pub(super) fn new(tenant: Tenant, key: &str, method: Method, scopes: Scopes) -> Self {
        Self(Arc::new(Known { tenant, key: key.into(), method, address: None, scopes, expires: None }))
    }

    pub(super) fn with_address(mut self, address: Address) -> Self {
        Arc::make_mut(&mut self.0).address = Some(address);
        self
    }

    pub(super) fn until(mut self, expires: Option<UnixTime>) -> Self {
        Arc::make_mut(&mut self.0).expires = expires;
        self
    }

    /// Somebody without credentials, where that is allowed.
    pub fn anonymous(config: &AnonymousConfig) -> Self {
        Self::new(config.tenant.clone(), "anonymous", Method::Anonymous, Scopes::new(config.scopes.clone()))
    }

    /// Somebody at the admin socket whose `uid` the kernel vouches for. Who may connect is the socket's business.
    pub fn at_socket(tenant: Tenant, uid: u32) -> Self {
        Self::new(tenant, &format!("uid:{uid}"), Method::Socket, Scopes::new(vec![Scope::Infer, Scope::Admin]))
    }

    pub fn tenant(&self) -> &Tenant {
        &self.0.tenant
    }

    /// What rates are counted by: the id of the API key, the address, or the JWT's tenant.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    pub fn method(&self) -> Method {
        self.0.method
    }

    /// Of the wallet that signed, if one did.
    pub fn address(&self) -> Option<Address> {
        self.0.address
    }

    pub fn scopes(&self) -> &Scopes {
        &self.0.scopes
    }

    /// When the credentials end; a stream that began before goes on.
    pub fn expires(&self) -> Option<UnixTime> {
        self.0.expires
    }

    /// Whether an adapter of `owner` is this caller's or everybody's.
    pub fn owns(&self, owner: &Owner) -> bool {
        match owner {
            Owner::Tenant(tenant) => *tenant == self.0.tenant,
            Owner::Address(address) => Some(*address) == self.0.address,
            Owner::Everybody => true,
        }
    }
}
