//! Who is at the other end of the socket, and what is read for it.

use std::path::Path;

use tonic::{Request, Status};

use crate::agent::AgentConfig;
use crate::agent::publish::Grant;
use crate::agent::reload::{self, Effective};
use crate::artifact::{Bounds, Inode, Tree, TreeError};
use crate::local::Caller;
use crate::protocol::pb;

/// The user of the process at the other end of the socket.
pub(super) fn caller<T>(request: &Request<T>) -> Result<u32, Status> {
    connected(request).map(|caller| caller.uid)
}

/// And for how long.
pub(super) fn connected<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.ok_or_else(|| Status::permission_denied("caller without credentials"))
}

/// For calls that change what others have; `what` follows "may not".
pub(super) fn operator<T>(request: &Request<T>, config: &Effective, what: &str) -> Result<u32, Status> {
    let uid = caller(request)?;
    match reload::now(config).local.is_operator(uid) {
        true => Ok(uid),
        false => Err(Status::permission_denied(format!(
            "uid {uid} may not {what}: root, the agent's user and those in `local.operator_uids` of the agent may"
        ))),
    }
}

/// For calls that have something signed.
pub(super) fn grant<T>(request: &Request<T>, config: &Effective) -> Result<Grant, Status> {
    let (uid, local) = (caller(request)?, reload::now(config).local);
    match local.may_publish(uid) {
        false => Err(Status::permission_denied(format!(
            "uid {uid} may not publish: add it to `local.publish_uids` of the agent"
        ))),
        true if local.is_operator(uid) => Ok(Grant::of_operator(uid)),
        true => Ok(Grant { uid, class: local.publish_class, push_bytes: local.push_bytes }),
    }
}

/// The directory that the caller means. The agent may read more than its callers: for others than its own user it reads
/// only what belongs to them, for nobody what it keeps for itself. Blocking.
pub(super) fn tree(caller: u32, request: &pb::PublishRequest, config: &AgentConfig) -> Result<Tree, Status> {
    let pb::PublishRequest { directory, device, inode, .. } = request;
    let is_own = caller == rustix::process::geteuid().as_raw();
    let private = config.private().iter().filter_map(|path| Inode::of(path)).collect();
    let bounds = Bounds { owner: (!is_own).then_some(caller), private };
    let tree = Tree::open_within(Path::new(directory), bounds).map_err(|error| unread(&error))?;
    let seen = tree.inode().map_err(|error| unread(&error))?;
    let meant = Inode { device: *device, inode: *inode };
    match meant == (Inode { device: 0, inode: 0 }) || meant == seen {
        true => Ok(tree),
        false => Err(Status::not_found(format!("the agent sees another directory as {directory}"))),
    }
}

/// NOT_FOUND where the caller may read itself what the agent does not read for it.
pub(super) fn unread(error: &TreeError) -> Status {
    let message = crate::local::chain(error);
    match error {
        TreeError::Private(_) => Status::permission_denied(message),
        TreeError::Foreign { .. } | TreeError::NotADirectory(_) => Status::not_found(message),
        TreeError::Read { path, source } => {
            Status::not_found(format!("the agent does not see {}: {source}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(directory: &Path) -> pb::PublishRequest {
        pb::PublishRequest { directory: directory.to_str().unwrap().to_owned(), ..Default::default() }
    }

    #[test]
    fn the_agent_reads_only_what_belongs_to_who_asks_and_never_what_it_keeps_for_itself() {
        let own = rustix::process::geteuid().as_raw();
        let directory = tempfile::tempdir().unwrap();
        let (state, keys) = (directory.path().join("state"), directory.path().join("keys"));
        let caches = directory.path().join("caches");
        [state.join("store"), keys.clone(), caches.clone()].iter().for_each(|at| std::fs::create_dir_all(at).unwrap());
        std::fs::write(keys.join("signer.key"), "no PEM").unwrap();
        let signer = Some(keys.join("signer.key"));
        let config = AgentConfig { state_dir: state.clone(), signer, ..AgentConfig::default() };

        assert!(tree(own, &asks(&caches), &config).is_ok());
        let foreign = tree(own + 1, &asks(&caches), &config).unwrap_err();
        assert_eq!(foreign.code(), tonic::Code::NotFound, "it may read it itself");
        for private in [state.join("store"), state] {
            assert_eq!(tree(own, &asks(&private), &config).unwrap_err().code(), tonic::Code::PermissionDenied);
        }
        let around = tree(own, &asks(directory.path()), &config).unwrap();
        assert!(matches!(around.list("state"), Err(TreeError::Private(_))));
        assert!(matches!(around.open_file("keys/signer.key"), Err(TreeError::Private(_))));
    }

    #[test]
    fn another_directory_than_the_caller_means_is_not_read() {
        let own = rustix::process::geteuid().as_raw();
        let directory = tempfile::tempdir().unwrap();
        let seen = Inode::of(directory.path()).unwrap();
        let meant = |inode| pb::PublishRequest { device: seen.device, inode, ..asks(directory.path()) };
        assert!(tree(own, &meant(seen.inode), &AgentConfig::default()).is_ok());
        let other = tree(own, &meant(seen.inode + 1), &AgentConfig::default()).unwrap_err();
        assert!(other.message().contains("sees another directory"), "{other}");
    }
}
