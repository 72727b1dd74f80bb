//! Where other agents were found, for the next start: a small file in the state directory. A hint like all others: whoever
//! is found there has to be of the cluster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::durable;
use crate::protocol::metadata::Endpoint;

/// Addresses that are remembered.
const MAX: usize = 64;

/// Between two writes.
const PAUSE: Duration = Duration::from_secs(5);

/// Nothing if there is no such file, or a damaged one.
pub(super) fn read(path: &Path) -> Vec<SocketAddr> {
    let text = durable::read_record(path).unwrap_or_else(|error| {
        tracing::warn!(%error, "forget where other agents were found");
        None
    });
    let text = text.unwrap_or_default();
    let addrs = text.split(' ').filter_map(|addr| addr.parse().ok());
    addrs.filter_map(|addr| Endpoint::new(addr).ok()).map(Endpoint::addr).take(MAX).collect()
}

/// The newest first. True if there was news.
pub(super) fn add(known: &mut Vec<SocketAddr>, mut addrs: Vec<SocketAddr>) -> bool {
    addrs.sort_unstable();
    addrs.dedup();
    if addrs.iter().take(MAX).all(|addr| known.contains(addr)) {
        return false;
    }
    addrs.extend(known.iter().filter(|addr| addrs.binary_search(addr).is_err()).copied().collect::<Vec<_>>());
    addrs.truncate(MAX);
    *known = addrs;
    true
}

/// Writes what is new, until nobody can say it any more.
pub(super) async fn run(path: PathBuf, mut met: watch::Receiver<Vec<SocketAddr>>) {
    while met.changed().await.is_ok() {
        let addrs = met.borrow_and_update().clone();
        let path = path.clone();
        let written = tokio::task::spawn_blocking(move || write(&path, &addrs)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "remember where other agents are");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn write(path: &Path, addrs: &[SocketAddr]) -> std::io::Result<()> {
    let text: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
    durable::replace_record(path, &text.join(" "), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(ports: impl IntoIterator<Item = u16>) -> Vec<SocketAddr> {
        ports.into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
    }

    #[test]
    fn what_was_written_is_read_and_a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agents");
        assert!(read(&path).is_empty());
        write(&path, &addrs([1, 2])).unwrap();
        assert_eq!(read(&path), addrs([1, 2]));
        durable::replace_record(&path, "127.0.0.1:1 0.0.0.0:1 nonsense 10.0.0.1:0 169.254.169.254:80", 0o600).unwrap();
        assert_eq!(read(&path), addrs([1]));
        std::fs::write(&path, "127.0.0.1:1").unwrap();
        assert!(read(&path).is_empty());
    }

    #[test]
    fn a_file_of_any_length_gives_a_bounded_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agents");
        write(&path, &addrs(1..10_000)).unwrap();
        assert_eq!(read(&path).len(), MAX);
    }

    #[test]
    fn the_newest_come_first_and_the_oldest_make_room() {
        let mut known = addrs([1, 2]);
        assert!(!add(&mut known, addrs([2])) && !add(&mut known, Vec::new()));
        assert!(add(&mut known, addrs([3, 2, 3])));
        assert_eq!(known, addrs([2, 3, 1]));
        assert!(add(&mut known, addrs(10..10 + MAX as u16)));
        assert_eq!(known, addrs(10..10 + MAX as u16));
        assert!(!add(&mut known, addrs(10..20 + MAX as u16)));
    }
}
