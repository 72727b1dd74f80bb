//! The rpc handlers. What goes wrong is said in the reply where the reply has a place for it, as existing clients expect; a
//! listing has none, and answers with a status.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tonic::{Request, Response, Status};

use super::metrics::{Method, Metrics, Outcome};
use super::table::{Table, TableError};
use crate::protocol::ProtocolError;
use crate::protocol::model_express::pb::p2p_service_server::P2pService;
use crate::protocol::model_express::{Publication, Query, Registration, StatusUpdate, pb};

/// The time since 1970. Leases do not follow when somebody sets this machine's clock.
#[derive(Clone)]
pub(super) struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    pub(super) fn system() -> Self {
        let begun = Instant::now();
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::new(move || since_1970 + begun.elapsed())
    }

    pub(super) fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", (self.0)())
    }
}

/// What handlers and upkeep share.
#[derive(Debug)]
pub(super) struct Sources {
    table: RwLock<Table>,
    clock: Clock,
    metrics: Metrics,
}

impl Sources {
    pub(super) fn new(table: Table, clock: Clock, metrics: Metrics) -> Self {
        Self { table: RwLock::new(table), clock, metrics }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table, Duration) -> T) -> T {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut table, (self.clock.0)())
    }

    fn read<T>(&self, read: impl FnOnce(&Table, Duration) -> T) -> T {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        read(&table, (self.clock.0)())
    }

    /// Forgets whose time has come, and sets the gauges.
    pub(super) fn tidy(&self) {
        let counts = self.change(|table, now| {
            table.expire(now);
            table.counts(now)
        });
        self.metrics.set(counts);
    }

    fn publish(&self, request: pb::PublishMetadataRequest) -> Result<Registration, Refusal> {
        let told = Publication::try_from(request)?;
        let key = told.key.clone();
        let (model, status) = (told.identity.model().to_owned(), told.status);
        self.change(|table, now| table.publish(told, now))?;
        tracing::debug!(source_id = %key.source, worker = %key.worker, model, ?status, "weights published");
        Ok(key)
    }

    fn update(&self, request: pb::UpdateStatusRequest) -> Result<(), Refusal> {
        let update = StatusUpdate::try_from(request)?;
        Ok(self.change(|table, now| table.update(update, now))?)
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Refusal {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Protocol(_) => Outcome::Invalid,
            Self::Table(TableError::Full { .. }) => Outcome::Full,
            Self::Table(TableError::Unknown { .. }) => Outcome::Unknown,
        }
    }
}

/// The handlers.
#[derive(Debug, Clone)]
pub(super) struct Service(pub(super) Arc<Sources>);

impl Service {
    fn count(&self, method: Method, outcome: Outcome) {
        self.0.metrics.request(method, outcome);
    }

    /// Counts, and tells what the operator may have to do something about.
    fn refused(&self, method: Method, refusal: &Refusal) -> String {
        self.count(method, refusal.outcome());
        match refusal.outcome() {
            Outcome::Full => tracing::warn!(?method, %refusal, "refused: raise the limits of [compatibility]"),
            _ => tracing::debug!(?method, %refusal, "refused"),
        }
        refusal.to_string()
    }
}

#[tonic::async_trait]
impl P2pService for Service {
    async fn publish_metadata(
        &self,
        request: Request<pb::PublishMetadataRequest>,
    ) -> Result<Response<pb::PublishMetadataResponse>, Status> {
        let reply = match self.0.publish(request.into_inner()) {
            Ok(Registration { source, worker }) => {
                self.count(Method::PublishMetadata, Outcome::Ok);
                let (mx_source_id, worker_id) = (source.to_string(), worker.to_string());
                pb::PublishMetadataResponse { success: true, message: "published".to_owned(), mx_source_id, worker_id }
            }
            Err(refusal) => {
                let message = self.refused(Method::PublishMetadata, &refusal);
                pb::PublishMetadataResponse { message, ..Default::default() }
            }
        };
        Ok(Response::new(reply))
    }

    async fn list_sources(
        &self,
        request: Request<pb::ListSourcesRequest>,
    ) -> Result<Response<pb::ListSourcesResponse>, Status> {
        let query = match Query::try_from(request.into_inner()) {
            Ok(query) => query,
            Err(error) => {
                let message = self.refused(Method::ListSources, &error.into());
                return Err(Status::invalid_argument(message));
            }
        };
        let listed = self.0.read(|table, now| table.list(&query, now));
        self.count(Method::ListSources, Outcome::Ok);
        Ok(Response::new(pb::ListSourcesResponse { instances: listed.into_iter().map(Into::into).collect() }))
    }

    async fn get_metadata(
        &self,
        request: Request<pb::GetMetadataRequest>,
    ) -> Result<Response<pb::GetMetadataResponse>, Status> {
        let request = request.into_inner();
        let key = match Registration::try_from(&request) {
            Ok(key) => key,
            Err(error) => {
                self.refused(Method::GetMetadata, &error.into());
                return Ok(Response::new(pb::GetMetadataResponse::default()));
            }
        };
        let Some(known) = self.0.read(|table, now| table.get(&key, now)) else {
            self.count(Method::GetMetadata, Outcome::Unknown);
            let pb::GetMetadataRequest { mx_source_id, worker_id } = request;
            return Ok(Response::new(pb::GetMetadataResponse { mx_source_id, worker_id, ..Default::default() }));
        };
        self.count(Method::GetMetadata, Outcome::Ok);
        Ok(Response::new(known.reply(&key)))
    }

    async fn update_status(
        &self,
        request: Request<pb::UpdateStatusRequest>,
    ) -> Result<Response<pb::UpdateStatusResponse>, Status> {
        let reply = match self.0.update(request.into_inner()) {
            Ok(()) => {
                self.count(Method::UpdateStatus, Outcome::Ok);
                pb::UpdateStatusResponse { success: true, message: "updated".to_owned() }
            }
            Err(refusal) => {
                let message = self.refused(Method::UpdateStatus, &refusal);
                pb::UpdateStatusResponse { success: false, message }
            }
        };
        Ok(Response::new(reply))
    }
}
