//! Whose an adapter is, by what its publisher has signed.

use std::sync::Arc;

use hyper::StatusCode;

use crate::adapters::{Address, Alias};
use crate::proxy::auth::{Caller, Owner};
use crate::serve::adapters::{self, Denied};

/// By the same credentials that let callers in.
pub(super) struct Ownership(pub(super) Arc<crate::proxy::Access>);

impl adapters::Access for Ownership {
    fn permits(&self, caller: &Caller, alias: &Alias, owner: Option<Address>) -> Result<(), Denied> {
        // Before anybody has seen what is signed, it is asked for as if it were everybody's.
        let owner = owner.map_or(Owner::Everybody, Owner::Address);
        self.0.authenticator().authorize(caller, alias.as_str(), Some(&owner)).map_err(|refused| Denied {
            status: StatusCode::from_u16(refused.status()).unwrap_or(StatusCode::FORBIDDEN),
            reason: refused.to_string(),
        })
    }

    fn max_adapters(&self, caller: &Caller) -> usize {
        self.0.limits().max_adapters(caller.tenant())
    }
}
