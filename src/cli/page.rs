//! The page that a role serves beside its work, and what is put on its board.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::agent::View;
use crate::config;
use crate::lifecycle::Tasks;
use crate::metadata::fleet::{Changes, Fleet};
use crate::protocol::report::UnixMillis;
use crate::web::{Board, BoardError, Document, LiveBoard, Metrics, Server, WebSection};

/// Between two looks at what has changed: a large fleet changes all the time, and no eye follows faster.
const EVERY: Duration = Duration::from_millis(250);

/// Between two looks at one node.
const OF_A_NODE: Duration = Duration::from_secs(1);

/// What is told of the process itself.
const SERVER: &str = "server";

const SHUTDOWN: Duration = Duration::from_millis(500);

/// Ends when it is shut down or dropped.
pub(super) struct Page {
    server: Server,
    board: LiveBoard,
    tasks: Tasks,
}

impl Page {
    /// What a metadata server knows. `None` if no address is configured.
    pub(super) async fn of_fleet(section: &WebSection, fleet: Fleet, metrics: Metrics) -> anyhow::Result<Option<Self>> {
        let board = LiveBoard::default();
        let feeding = feed_fleet(fleet, board.clone());
        Self::serve(section, board, metrics, feeding).await
    }

    /// One node, as it tells of itself. `None` if no address is configured.
    pub(super) async fn of_node(section: &WebSection, node: View, metrics: Metrics) -> anyhow::Result<Option<Self>> {
        let board = LiveBoard::default();
        let about = json!({"version": env!("CARGO_PKG_VERSION"), "started_at": UnixMillis::now()});
        board.set(&SERVER.parse()?, Document::new(&about)?)?;
        let feeding = feed_node(node, board.clone());
        Self::serve(section, board, metrics, feeding).await
    }

    async fn serve(
        section: &WebSection,
        board: LiveBoard,
        metrics: Metrics,
        feeding: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<Option<Self>> {
        let Some(addr) = section.listen else { return Ok(None) };
        let server = Server::bind(addr, section, board.clone(), metrics).await?;
        tracing::info!(addr = %server.addr(), "page ready");
        let tasks = Tasks::new();
        tasks.spawn("page", feeding);
        Ok(Some(Self { server, board, tasks }))
    }

    /// Tells the configuration in force.
    pub(super) fn configured<T: Serialize>(&self, config: &T) {
        self.board.configured(config::render(config));
    }

    pub(super) async fn shutdown(self) {
        tokio::join!(self.server.shutdown(SHUTDOWN), self.tasks.shutdown(SHUTDOWN));
    }
}

async fn feed_fleet(fleet: Fleet, board: LiveBoard) {
    let (mut versions, mut since) = (fleet.subscribe(), 0);
    loop {
        versions.borrow_and_update();
        let (fleet, board) = (fleet.clone(), board.clone());
        // Thousands of documents are written here at times.
        let put = tokio::task::spawn_blocking(move || {
            let changes = fleet.changes(since);
            put(&board, &changes);
            changes.version
        });
        let Ok(version) = put.await else { return };
        since = version;
        tokio::time::sleep(EVERY).await;
        if versions.changed().await.is_err() {
            return;
        }
    }
}

async fn feed_node(node: View, board: LiveBoard) {
    loop {
        let documents = node.documents().await;
        let documents = documents.into_iter().map(|document| (document.key, Some(document.json)));
        put(&board, &Changes { version: 0, all: true, documents: documents.collect() });
        tokio::time::sleep(OF_A_NODE).await;
    }
}

/// What does not fit is left out, and told once a look.
fn put(board: &LiveBoard, changes: &Changes) {
    let put = board.update(|board| {
        if changes.all {
            let there: HashSet<String> = changes.documents.iter().map(|(key, _)| key.to_string()).collect();
            board.retain(|key| there.contains(key.as_str()) || key.as_str() == SERVER);
        }
        changes.documents.iter().map(|(key, json)| one(board, &key.to_string(), json.clone())).fold(Ok(()), Result::and)
    });
    if let Err(error) = put {
        tracing::warn!(%error, "not everything is on the page");
    }
}

fn one(board: &mut Board, key: &str, json: Option<Bytes>) -> Result<(), BoardError> {
    let key = key.parse()?;
    match json {
        Some(json) => board.set(&key, Document::from_json(json)?).map(drop),
        None => {
            board.remove(&key);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::IdentityId;
    use crate::protocol::fleet;

    fn told(all: bool, documents: &[(u8, Option<&'static str>)]) -> Changes {
        let key = |n| fleet::Key::Identity(IdentityId::from_array([n; 32]));
        let documents = documents.iter().map(|(n, json)| (key(*n), json.map(Bytes::from))).collect();
        Changes { version: 1, all, documents }
    }

    fn shown(board: &LiveBoard) -> Vec<Vec<u8>> {
        board.update(|board| board.documents().map(|(_, document)| document.as_bytes().to_vec()).collect())
    }

    #[test]
    fn a_change_touches_what_it_names_and_a_whole_view_takes_away_what_it_does_not() {
        let board = LiveBoard::default();
        put(&board, &told(true, &[(1, Some("1")), (2, Some("2"))]));
        put(&board, &told(false, &[(3, Some("3")), (1, None)]));
        assert_eq!(shown(&board), [b"2", b"3"]);
        put(&board, &told(true, &[(3, Some("3"))]));
        assert_eq!(shown(&board), [b"3"]);
    }

    #[test]
    fn what_is_no_json_is_left_out_and_the_rest_is_shown() {
        let board = LiveBoard::default();
        put(&board, &told(false, &[(1, Some("{")), (2, Some("2"))]));
        assert_eq!(shown(&board), [b"2"]);
    }
}
