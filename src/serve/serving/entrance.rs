//! Where clients come in, who they may be where nobody says, and where this server keeps what outlives it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::ServeError;
use crate::caches::{Directories, Environment};
use crate::engine::arguments::Wish;
use crate::proxy::auth::{AnonymousConfig, AuthConfig};

/// Where vLLM listens unless it is told.
const PORT: u16 = 8000;

/// Bits of a mode that let others in.
const OTHERS: u32 = 0o077;

/// The configured directory, or one beside the caches below `root`; made if it is not there. The engine's socket is in it,
/// and not all of the engine's routes ask for a key: only this user may enter.
pub(super) fn state_directory(
    configured: Option<&Path>,
    root: Option<&Path>,
    environment: &Environment,
) -> Result<PathBuf, ServeError> {
    let beside = || Some(Directories::choose(root, environment).ok()?.root().join("serve"));
    let path = configured.map(Path::to_owned).or_else(beside).ok_or(ServeError::NoState)?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
    let found = made.and_then(|()| Ok((std::path::absolute(&path)?, path.metadata()?)));
    let (absolute, found) = found.map_err(|source| ServeError::Directory { path, source })?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & OTHERS != 0 {
        return Err(ServeError::NotPrivate(absolute));
    }
    Ok(absolute)
}

/// As vLLM reads `--host` and `--port`, but for a name, which is resolved here.
pub(super) fn listen(configured: Option<SocketAddr>, wish: &Wish) -> Result<SocketAddr, ServeError> {
    if let Some(addr) = configured {
        return Ok(addr);
    }
    let port = wish.port.unwrap_or(PORT);
    let Some(host) = &wish.host else { return Ok((Ipv4Addr::UNSPECIFIED, port).into()) };
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok((ip, port).into());
    }
    let mut resolved = (host.as_str(), port).to_socket_addrs().map_err(|_| ServeError::Host(host.clone()))?;
    resolved.next().ok_or_else(|| ServeError::Host(host.clone()))
}

/// Everybody is let in only if somebody says so, or where nobody but this machine's users can come.
pub(super) fn auth(configured: &AuthConfig, addr: SocketAddr, anonymous: bool) -> Result<AuthConfig, ServeError> {
    let mut auth = configured.clone();
    if anonymous {
        auth.anonymous.get_or_insert_default();
    }
    let is_said = auth.keys.is_some() || auth.wallet.is_some() || auth.jwt.is_some() || auth.anonymous.is_some();
    if is_said {
        return Ok(auth);
    }
    if !addr.ip().is_loopback() {
        return Err(ServeError::Open(addr));
    }
    // Whoever is on this machine reaches the engine of any other user's vLLM, too.
    auth.anonymous = Some(AnonymousConfig::default());
    Ok(auth)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_address_is_the_configured_one_or_what_the_engines_command_says() {
        let at = |host: Option<&str>, port| listen(None, &Wish { host: host.map(str::to_owned), port }).unwrap();
        assert_eq!(at(None, None), addr("0.0.0.0:8000"));
        assert_eq!(at(None, Some(9000)), addr("0.0.0.0:9000"));
        assert_eq!(at(Some("127.0.0.1"), None), addr("127.0.0.1:8000"));
        assert_eq!((at(Some("::1"), None), at(Some("[::1]"), Some(1))), (addr("[::1]:8000"), addr("[::1]:1")));
        assert!(at(Some("localhost"), Some(7)).ip().is_loopback());
        let wish = Wish { host: Some("10.0.0.1".to_owned()), port: Some(9000) };
        assert_eq!(listen(Some(addr("127.0.0.1:1")), &wish).unwrap(), addr("127.0.0.1:1"));
        let nowhere = Wish { host: Some("not a host".to_owned()), port: None };
        assert!(matches!(listen(None, &nowhere), Err(ServeError::Host(host)) if host == "not a host"));
    }

    #[test]
    fn everybody_comes_in_only_on_loopback_or_where_somebody_says_so() {
        let nothing = AuthConfig::default();
        for open in ["0.0.0.0:8000", "[::]:8000", "192.0.2.1:80"] {
            assert!(
                matches!(auth(&nothing, addr(open), false), Err(ServeError::Open(at)) if at == addr(open)),
                "{open}"
            );
            assert_eq!(auth(&nothing, addr(open), true).unwrap().anonymous, Some(AnonymousConfig::default()));
        }
        assert!(auth(&nothing, addr("127.0.0.1:1"), false).unwrap().anonymous.is_some());
        assert!(auth(&nothing, addr("[::1]:1"), false).unwrap().anonymous.is_some());
        let keys: AuthConfig = toml::from_str("[keys]\nfile = \"k\"").unwrap();
        for at in ["0.0.0.0:1", "127.0.0.1:1"] {
            assert_eq!(auth(&keys, addr(at), false).unwrap(), keys, "whoever has no key stays out");
        }
        let both = auth(&keys, addr("0.0.0.0:1"), true).unwrap();
        assert!(both.keys.is_some() && both.anonymous.is_some());
        let theirs: AuthConfig = toml::from_str("[anonymous]\ntenant = \"guests\"").unwrap();
        assert_eq!(auth(&theirs, addr("0.0.0.0:1"), true).unwrap(), theirs);
    }

    #[test]
    fn the_state_directory_is_made_for_this_user_alone_and_no_other_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("caches");
        let beside = state_directory(None, Some(&root), &Environment::default()).unwrap();
        assert!(beside.starts_with(&root) && beside.ends_with("serve"));
        let named = dir.path().join("a/b");
        assert_eq!(state_directory(Some(&named), Some(&root), &Environment::default()).unwrap(), named);
        for made in [&beside, &named] {
            assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o700, "{}", made.display());
        }
        std::fs::set_permissions(&named, std::fs::Permissions::from_mode(0o750)).unwrap();
        let refused = state_directory(Some(&named), None, &Environment::default());
        assert!(matches!(refused, Err(ServeError::NotPrivate(path)) if path == named));
        std::fs::write(dir.path().join("file"), "").unwrap();
        let refused = state_directory(Some(&dir.path().join("file")), None, &Environment::default());
        assert!(matches!(refused, Err(ServeError::Directory { .. })));
    }
}
