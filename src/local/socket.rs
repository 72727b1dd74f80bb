//! The agent's socket: a file that only its owner and those who are named may use.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

use super::{Connection, MAX_SOCKET_PATH};
use crate::identity::TrustClass;
use crate::lifecycle::Shares;

/// After a connection could not be accepted: where descriptors are short, that says so again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// `[local]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketConfig {
    /// Path of the Unix socket. Its directory must exist; [`chunk_socket`](super::chunk_socket) is in it too.
    pub socket: PathBuf,
    /// User ids that may use the socket, besides root and the agent's own.
    pub allow_uids: Vec<u32>,
    /// User ids that may also change what others have, and have anything signed, besides root and the agent's own.
    pub operator_uids: Vec<u32>,
    /// User ids that may publish, besides operators. Absent: all that may use the socket.
    pub publish_uids: Option<Vec<u32>>,
    /// Highest class of what others than operators publish as a directory, or as a family that warmd does not know. Families
    /// that it knows have their own.
    pub publish_class: TrustClass,
    /// Most bytes that the pushes of one user id may have sent while they are not complete. Operators: any.
    pub push_bytes: u64,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/warmd/agent.sock"),
            allow_uids: Vec::new(),
            operator_uids: Vec::new(),
            publish_uids: None,
            publish_class: TrustClass::Data,
            push_bytes: 32 << 30,
        }
    }
}

impl SocketConfig {
    pub fn is_operator(&self, uid: u32) -> bool {
        uid == 0 || uid == rustix::process::geteuid().as_raw() || self.operator_uids.contains(&uid)
    }

    pub fn may_publish(&self, uid: u32) -> bool {
        self.is_operator(uid) || self.publish_uids.as_ref().is_none_or(|uids| uids.contains(&uid))
    }
}

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another warmd answers on {path}: stop it, or choose another socket", path = .0.display())]
    InUse(PathBuf),
    #[error("{path} is no socket: remove it, or choose another path", path = .0.display())]
    NotASocket(PathBuf),
    #[error("{path} is too long for a socket: use at most {MAX_SOCKET_PATH} bytes", path = .0.display())]
    TooLong(PathBuf),
    #[error("open socket {path}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Connections of one user: each may have windows of memory, and a descriptor is one of the process's. Far more than the pods
/// of a node have.
const CONNECTIONS: usize = 128;

/// A bound socket; the file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: Option<UnixListener>,
    path: PathBuf,
    callers: Callers,
    places: Shares<u32>,
}

/// Who may use a socket; clones are the same. Root and the agent's own user always may.
#[derive(Debug, Clone)]
pub struct Callers {
    path: PathBuf,
    uids: Arc<RwLock<Vec<u32>>>,
}

impl Callers {
    fn of(config: &SocketConfig) -> Self {
        Self { path: config.socket.clone(), uids: Arc::default() }
    }

    /// Of callers that come from now on; a connection that is open goes on.
    pub fn allow(&self, config: &SocketConfig) -> Result<(), SocketError> {
        let uids = [&config.allow_uids[..], &config.operator_uids[..]].concat();
        // Others may be named: who connects is decided by credentials, not by the mode.
        let mode = if uids.is_empty() { 0o600 } else { 0o666 };
        *self.uids.write().unwrap_or_else(PoisonError::into_inner) = uids;
        let set = std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode));
        set.map_err(|source| SocketError::Io { path: self.path.clone(), source })
    }

    fn include(&self, uid: u32) -> bool {
        let named = || self.uids.read().unwrap_or_else(PoisonError::into_inner).contains(&uid);
        uid == 0 || uid == rustix::process::geteuid().as_raw() || named()
    }
}

impl Listener {
    pub async fn bind(config: &SocketConfig) -> Result<Self, SocketError> {
        let path = config.socket.clone();
        let failed = |source| SocketError::Io { path: path.clone(), source };
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(SocketError::TooLong(path));
        }
        remove_stale(&path).await?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let callers = Callers::of(config);
        callers.allow(config)?;
        Ok(Self { listener: Some(listener), path, callers, places: Shares::new(CONNECTIONS) })
    }

    /// So many of one user at a time, in place of 128.
    pub fn at_most(mut self, connections: usize) -> Self {
        self.places = Shares::new(connections);
        self
    }

    pub fn callers(&self) -> &Callers {
        &self.callers
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connections of allowed callers; those of a user that has enough of them are closed. Call once.
    pub fn incoming(&mut self) -> impl Stream<Item = Connection> + use<> {
        let (callers, places) = (self.callers.clone(), self.places.clone());
        let stream = self.listener.take().map(UnixListenerStream::new);
        futures_util::stream::iter(stream).flatten().filter_map(move |accepted| {
            let admitted = accepted.map(|stream| admit(stream, &callers, &places));
            async move {
                match admitted {
                    Ok(connection) => connection,
                    Err(error) => {
                        tracing::warn!(%error, "no connection is accepted");
                        tokio::time::sleep(PAUSE).await;
                        None
                    }
                }
            }
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Left behind, it is recognised as stale at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn admit(stream: UnixStream, callers: &Callers, places: &Shares<u32>) -> Option<Connection> {
    let caller = stream
        .peer_cred()
        .inspect_err(|error| tracing::warn!(%error, "caller refused: nobody knows who it is"))
        .ok()?;
    if !callers.include(caller.uid()) {
        tracing::warn!(uid = caller.uid(), pid = caller.pid(), "caller refused: add its uid to `local.allow_uids`");
        return None;
    }
    let place = places.take(caller.uid());
    if place.is_none() {
        tracing::warn!(uid = caller.uid(), pid = caller.pid(), "caller refused: its user has too many connections");
    }
    place.map(|place| Connection::new(stream, caller.uid(), place))
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
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_kept_a_stale_one_replaced_and_a_file_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = SocketConfig { socket: dir.path().join("agent.sock"), ..SocketConfig::default() };
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
    async fn callers_are_admitted_by_their_credentials_and_by_the_list_of_the_moment() {
        let dir = tempfile::tempdir().unwrap();
        let config = SocketConfig { socket: dir.path().join("agent.sock"), ..SocketConfig::default() };
        let listener = Listener::bind(&config).await.unwrap();
        let (here, _there) = UnixStream::pair().unwrap();
        assert!(admit(here, listener.callers(), &Shares::new(1)).is_some());
        let (other, mode) = (rustix::process::geteuid().as_raw() + 1, || config.socket.metadata().unwrap().mode());
        assert!(!listener.callers().include(other) && mode() & 0o777 == 0o600);
        for uids in [vec![other], vec![]] {
            let operators = SocketConfig { operator_uids: uids.clone(), ..config.clone() };
            listener.callers().allow(&operators).unwrap();
            let some = !uids.is_empty();
            assert!(listener.callers().include(other) == some && mode() & 0o777 == if some { 0o666 } else { 0o600 });
        }
        listener.callers().allow(&SocketConfig { allow_uids: vec![other], ..config.clone() }).unwrap();
        assert!(listener.callers().include(other) && mode() & 0o777 == 0o666);
        listener.callers().allow(&config).unwrap();
        assert!(!listener.callers().include(other) && mode() & 0o777 == 0o600);
    }

    #[test]
    fn operators_may_publish_and_others_if_nobody_or_they_are_named() {
        let other = rustix::process::geteuid().as_raw() + 4711;
        let config = SocketConfig { allow_uids: vec![other], ..SocketConfig::default() };
        assert!(!config.is_operator(other) && config.may_publish(other) && config.is_operator(0));
        let named = SocketConfig { publish_uids: Some(vec![other + 1]), ..config.clone() };
        assert!(!named.may_publish(other) && named.may_publish(other + 1) && !named.is_operator(other + 1));
        let operator = SocketConfig { operator_uids: vec![other], publish_uids: Some(vec![]), ..config };
        assert!(operator.is_operator(other) && operator.may_publish(other));
    }

    #[tokio::test]
    async fn a_user_has_so_many_connections_and_one_more_when_one_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let config = SocketConfig { socket: dir.path().join("agent.sock"), ..SocketConfig::default() };
        let (callers, places) = (Callers::of(&config), Shares::new(2));
        let connect = || admit(UnixStream::pair().unwrap().0, &callers, &places);
        let (first, second) = (connect().unwrap(), connect().unwrap());
        assert!(connect().is_none());
        drop(first);
        let (stream, place) = second.into_parts();
        let third = connect().unwrap();
        drop(stream);
        assert!(connect().is_none(), "its share is still held");
        drop((third, place));
        assert!(connect().is_some());
    }
}
