//! What the fleet is and does: as a metadata server tells, or as far as this node can see.

use bytes::Bytes;
use tonic::Status;

use super::Parts;
use crate::protocol::fleet::{Document, Key};
use crate::protocol::pb;

pub(super) async fn page(parts: &Parts, request: pb::FleetRequest) -> Result<pb::FleetReply, Status> {
    let after: Option<Key> = match request.after.as_str() {
        "" => None,
        key => Some(key.parse().map_err(|_| Status::invalid_argument("`after` is no key of a document"))?),
    };
    if request.here {
        return alone(parts, String::new()).await;
    }
    let Some(server) = parts.directory.server() else {
        let limited = format!(
            "discovery is serverless, where no node knows the others: this is this node alone, and {} other agents are \
             connected. Ask on each of them, or give the fleet a metadata server (`metadata.servers`)",
            parts.directory.connected_agents()
        );
        return alone(parts, limited).await;
    };
    match server.fleet(after).await {
        Ok(page) => Ok(pb::FleetReply {
            documents: page.documents.into_iter().map(document).collect(),
            more: page.more,
            limited: String::new(),
        }),
        Err(error) if after.is_none_or(|after| after == Key::LAST_IDENTITY) => {
            alone(parts, format!("this node tells of itself alone: no metadata server tells of the fleet: {error}"))
                .await
        }
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

async fn alone(parts: &Parts, limited: String) -> Result<pb::FleetReply, Status> {
    let own = parts.reporter.document().await;
    let json = serde_json::to_vec(&own).map_err(|error| Status::internal(error.to_string()))?;
    let own = document(Document { key: Key::Node(parts.node), json: Bytes::from(json) });
    Ok(pb::FleetReply { documents: vec![own], more: false, limited })
}

fn document(document: Document) -> pb::FleetDocument {
    pb::FleetDocument { key: document.key.to_string(), json: document.json }
}
