//! Documents of trust: fetched by every agent, handed in by an operator.

use super::metrics::Call;
use super::{Client, ClientError, Rpc};
use crate::identity::trust::{Documents, Known};
use crate::protocol::metadata::pb;

impl Client {
    /// What is newer than `known`, as the server that answers has it. Nothing of it is verified.
    pub async fn trust(&self, known: Known) -> Result<Documents, ClientError> {
        let request = pb::TrustKnown::from(known);
        let rpc = |mut rpc: Rpc| async move { rpc.get_trust(request).await };
        self.call(Call::Trust, rpc, |_, documents| documents.try_into()).await
    }

    /// Hands documents to the server that answers; what it has then.
    pub async fn put_trust(&self, documents: &Documents) -> Result<Known, ClientError> {
        let request = pb::TrustDocuments::from(documents);
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.put_trust(request).await }
        };
        self.call(Call::PutTrust, rpc, |_, known| known.try_into()).await
    }
}
