//! Whose an adapter is, by what its publisher has signed.

use std::sync::Arc;

use hyper::StatusCode;

use crate::adapters::{Alias, Release};
use crate::proxy::auth::{Caller, Owner};
use crate::serve::adapters::{self, Denied};

/// By the same credentials that let callers in.
pub(super) struct Ownership(pub(super) Arc<crate::proxy::Access>);

impl adapters::Access for Ownership {
    fn permits(&self, caller: &Caller, alias: &Alias, release: Option<&Release>) -> Result<(), Denied> {
        // Before anybody has seen what is signed, it is asked for as if it were everybody's.
        let owner = release.and_then(|release| release.owner).map_or(Owner::Everybody, Owner::Address);
        self.0.authenticator().authorize(caller, alias.as_str(), Some(&owner)).map_err(|refused| Denied {
            status: StatusCode::from_u16(refused.status()).unwrap_or(StatusCode::FORBIDDEN),
            reason: refused.to_string(),
        })
    }
}
