//! The agent's socket: a file that only its owner and those who are named may use.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

/// `[local]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketConfig {
    /// Path of the Unix socket. Its directory must exist; [`chunk_socket`](super::chunk_socket) is in it too.
    pub socket: PathBuf,
    /// User ids that may use the socket, besides root and the agent's own.
    pub allow_uids: Vec<u32>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/warmd/agent.sock"), allow_uids: Vec::new() }
    }
}

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another warmd answers on {path}: stop it, or choose another socket", path = .0.display())]
    InUse(PathBuf),
    #[error("{path} is no socket: remove it, or choose another path", path = .0.display())]
    NotASocket(PathBuf),
    #[error("open socket {path}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A bound socket; the file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: Option<UnixListener>,
    path: PathBuf,
    allowed: Vec<u32>,
}

impl Listener {
    pub async fn bind(config: &SocketConfig) -> Result<Self, SocketError> {
        let path = config.socket.clone();
        let failed = |source| SocketError::Io { path: path.clone(), source };
        remove_stale(&path).await?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // Others may be named by `allow_uids`: who connects is decided by credentials, not by the mode.
        let mode = if config.allow_uids.is_empty() { 0o600 } else { 0o666 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        let mut allowed = config.allow_uids.clone();
        allowed.extend([0, rustix::process::geteuid().as_raw()]);
        Ok(Self { listener: Some(listener), path, allowed })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connections of allowed callers. Call once.
    pub fn incoming(&mut self) -> impl Stream<Item = io::Result<UnixStream>> + use<> {
        let allowed = self.allowed.clone();
        let stream = self.listener.take().map(UnixListenerStream::new);
        futures_util::stream::iter(stream).flatten().filter_map(move |stream| {
            let stream = stream.and_then(|stream| admit(stream, &allowed)).transpose();
            std::future::ready(stream)
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Left behind, it is recognised as stale at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn admit(stream: UnixStream, allowed: &[u32]) -> io::Result<Option<UnixStream>> {
    let caller = stream.peer_cred()?;
    if allowed.contains(&caller.uid()) {
        return Ok(Some(stream));
    }
    tracing::warn!(uid = caller.uid(), pid = caller.pid(), "caller refused: add its uid to `local.allow_uids`");
    Ok(None)
}

async fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(SocketError::InUse(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_kept_a_stale_one_replaced_and_a_file_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = SocketConfig { socket: dir.path().join("agent.sock"), allow_uids: vec![] };
        let first = Listener::bind(&config).await.unwrap();
        assert!(matches!(Listener::bind(&config).await, Err(SocketError::InUse(_))));
        assert_eq!(config.socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(first);
        assert!(!config.socket.exists());
        drop(std::os::unix::net::UnixListener::bind(&config.socket).unwrap());
        drop(Listener::bind(&config).await.unwrap());
        std::fs::write(&config.socket, "x").unwrap();
        assert!(matches!(Listener::bind(&config).await, Err(SocketError::NotASocket(_))));
    }

    #[tokio::test]
    async fn callers_are_admitted_by_their_credentials() {
        let (here, there) = UnixStream::pair().unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert!(admit(here, &[me]).unwrap().is_some());
        assert!(admit(there, &[me + 1]).unwrap().is_none());
    }
}
