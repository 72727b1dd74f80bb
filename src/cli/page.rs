//! The page that a role serves beside its work.

use std::time::SystemTime;

use serde_json::json;

use crate::web::{Document, LiveBoard, Server, WebSection};

/// Serves what is on `board` until it is dropped. None if no address is configured.
pub(super) async fn serve(section: &WebSection, board: &LiveBoard) -> anyhow::Result<Option<Server>> {
    let Some(addr) = section.listen else { return Ok(None) };
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let about = json!({"version": env!("CARGO_PKG_VERSION"), "started_at": started});
    board.set(&"server".parse()?, Document::new(&about)?)?;
    let server = Server::bind(addr, section, board.clone()).await?;
    tracing::info!(addr = %server.addr(), "page ready");
    Ok(Some(server))
}
