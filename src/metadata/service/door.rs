//! What each request passes before a handler has it.

use std::sync::Arc;

use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::{Directory, ServiceError};
use crate::metadata::server::Peer;

/// In front of every handler, also of those that are still to be written: no stranger passes, and no more than there is
/// room for.
#[derive(Debug, Clone)]
pub(in crate::metadata) struct Door(pub(in crate::metadata) Arc<Directory>);

impl Interceptor for Door {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = peer(&request)?;
        let place = self.0.room.enter(peer.node).ok_or_else(|| {
            self.0.metrics.turned_away.inc();
            ServiceError::Crowded
        })?;
        // Dropped with the request.
        request.extensions_mut().insert(place);
        Ok(request)
    }
}

/// Who calls, by the certificate of the connection.
pub(super) fn peer<T>(request: &Request<T>) -> Result<Peer, ServiceError> {
    request.extensions().get::<Peer>().copied().ok_or(ServiceError::NoCaller)
}
