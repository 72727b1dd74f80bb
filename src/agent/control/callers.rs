//! Who is at the other end of the socket, and what it may have read for it.

use rustix::fs::{Mode, OFlags};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

use crate::protocol::pb;

/// The user of the process at the other end of the socket.
pub(super) fn caller<T>(request: &Request<T>) -> Result<u32, Status> {
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    caller.map(|cred| cred.uid()).ok_or_else(|| Status::permission_denied("caller without credentials"))
}

/// The directory must be the one that the caller means, and, because the agent may read more than its callers, one of its
/// own.
pub(super) fn may_read(request: &Request<pb::PublishRequest>) -> Result<(), Status> {
    let caller = caller(request)?;
    let pb::PublishRequest { directory, device, inode, .. } = request.get_ref();
    // Opened, because some that can be looked at cannot be read.
    let open = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let seen = open.and_then(rustix::fs::fstat);
    let seen = seen.map_err(|error| Status::not_found(format!("the agent does not see {directory}: {error}")))?;
    if (*device, *inode) != (0, 0) && (*device, *inode) != (seen.st_dev, seen.st_ino) {
        return Err(Status::not_found(format!("the agent sees another directory as {directory}")));
    }
    let may_read_all = caller == 0 || caller == rustix::process::geteuid().as_raw();
    match may_read_all || seen.st_uid == caller {
        true => Ok(()),
        false => Err(Status::permission_denied(format!("{directory} does not belong to the caller (uid {caller})"))),
    }
}
