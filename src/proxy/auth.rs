//! Who calls. Everything comes as `Authorization: Bearer <token>`, because that is all that OpenAI's clients can send:
//!
//! | token | method |
//! | --- | --- |
//! | `eip191.<base64url of the signed text>.<0x and 130 hex digits>` | a text signed by an Ethereum wallet, see [`SignIn`] |
//! | three parts, the first begins with `eyJ` | JWT (RFC 7519) of the configured issuer |
//! | `0x` and 130 hex digits | the static signature of 0G's first release, if it is switched on |
//! | anything else | an API key |
//!
//! Smart-contract wallets (EIP-1271, EIP-6492) need a call to a chain and are not supported. A session text, a JWT and an
//! API key are worth their owner's rights to whoever sees them: the listener needs TLS or a private network.

mod api_keys;
mod caller;
mod config;
mod denied;
mod jwt;
mod metrics;
mod scope;
mod signature;
#[cfg(test)]
mod tests;
mod wallet;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

pub use api_keys::{ApiKeys, ApiKeysError, NewKey};
pub use caller::{Caller, Method};
pub use config::{AddressConfig, AnonymousConfig, AuthConfig, Concealment, JwtConfig, KeysConfig, WalletConfig};
pub use denied::{Denied, Refused};
pub use jwt::{Algorithm, KeySet, KeySetError};
pub use metrics::Metrics;
pub use scope::{InvalidScope, InvalidTenant, MAX_SCOPES, Owner, Pattern, Scope, Scopes, Tenant};
pub use signature::{InvalidSignature, WalletSignature};
pub use wallet::{Request, SessionError, Sessions, SignIn, TokenId, Use};

use crate::identity::UnixTime;
use jwt::JwtVerifier;
use wallet::Wallets;

/// A longer header is refused unread.
const MAX_HEADER: usize = 16 * 1024;

/// The section cannot be used, or a file that it names. `Display` names the key or the file.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error(
        "no way to authenticate is configured: set `keys`, `wallet` or `jwt` in [auth], or say `anonymous` explicitly"
    )]
    NoMethod,
    #[error("[auth] {key}: {reason}")]
    Config { key: &'static str, reason: String },
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is larger than {max} bytes", path = path.display())]
    TooLarge { path: PathBuf, max: u64 },
    #[error("{path}: {source}", path = path.display())]
    ApiKeys { path: PathBuf, source: ApiKeysError },
    #[error("{path}: {source}", path = path.display())]
    KeySet { path: PathBuf, source: KeySetError },
    #[error(transparent)]
    Sessions(#[from] SessionError),
    #[error("the thread that reads the files of keys: {0}")]
    Thread(#[source] tokio::task::JoinError),
}

/// Tells who calls, by all configured methods. Shared by all connections; [`Authenticator::take`] swaps the keys in one
/// step while requests go on.
#[derive(Debug)]
pub struct Authenticator {
    config: AuthConfig,
    anonymous: Option<Caller>,
    api_keys: Option<RwLock<Arc<ApiKeys>>>,
    jwt: Option<JwtVerifier>,
    wallets: Option<Wallets>,
}

/// Keys as their files have them now.
#[derive(Debug)]
pub struct FreshKeys {
    api_keys: Option<Arc<ApiKeys>>,
    jwt: Option<KeySet>,
}

impl Authenticator {
    /// Reads the files that `config` names. `state` is where the revocations of wallets' sessions are kept.
    pub fn open(config: AuthConfig, state: &Path) -> Result<Self, AuthError> {
        config.check()?;
        let api_keys = config.keys.as_ref().map(|keys| read_api_keys(&keys.file)).transpose()?;
        let jwt = config.jwt.clone().map(JwtVerifier::open).transpose()?;
        let wallets = config.wallet.clone().map(|wallet| Wallets::open(wallet, state)).transpose()?;
        if config.anonymous.is_some() {
            tracing::warn!("[auth] anonymous: requests without credentials are served");
        }
        let anonymous = config.anonymous.as_ref().map(Caller::anonymous);
        let api_keys = api_keys.map(|keys| RwLock::new(Arc::new(keys)));
        Ok(Self { anonymous, api_keys, jwt, wallets, config })
    }

    /// Who sends `authorization`, the header's value. Texts that are signed for one request are told
    /// [`Denied::NeedsRequest`] after their signature was verified: then the body is worth reading.
    pub fn authenticate(&self, authorization: Option<&[u8]>, now: UnixTime) -> Result<Caller, Denied> {
        self.decide(authorization, None, now)
    }

    /// As [`Authenticator::authenticate`], and takes texts that are signed for this very request, once each.
    pub fn authenticate_request(
        &self,
        authorization: Option<&[u8]>,
        request: &Request<'_>,
        now: UnixTime,
    ) -> Result<Caller, Denied> {
        self.decide(authorization, Some(request), now)
    }

    fn decide(
        &self,
        authorization: Option<&[u8]>,
        request: Option<&Request<'_>>,
        now: UnixTime,
    ) -> Result<Caller, Denied> {
        if let Some(anonymous) = &self.anonymous {
            // Clients send some placeholder even where nothing asks for a key.
            let nothing_else = self.api_keys.is_none() && self.jwt.is_none() && self.wallets.is_none();
            if authorization.is_none() || nothing_else {
                return Ok(anonymous.clone());
            }
        }
        let token = bearer(authorization.ok_or(Denied::Missing)?)?;
        if let Some(text) = token.strip_prefix("eip191.") {
            return self.wallets.as_ref().ok_or(Denied::MethodOff)?.verify(text, request, now);
        }
        if token.starts_with("eyJ") && token.split('.').count() == 3 {
            return self.jwt.as_ref().ok_or(Denied::MethodOff)?.verify(token, now);
        }
        if let Some(wallets) =
            self.wallets.as_ref().filter(|wallets| wallets.takes_static() && is_bare_signature(token))
        {
            return wallets.verify_static(token);
        }
        let keys = self.api_keys.as_ref().ok_or(Denied::MethodOff)?;
        let keys = keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        keys.find(token, now)
    }

    /// Whether `caller` may use the adapter `name`; `owner` is `None` if there is no such adapter. With concealment "not
    /// yours" and "does not exist" are one answer.
    pub fn authorize(&self, caller: &Caller, name: &str, owner: Option<&Owner>) -> Result<(), Refused> {
        match owner {
            Some(owner) if caller.scopes().permit_adapter(name, caller.owns(owner)) => Ok(()),
            None => Err(Refused::NotFound),
            Some(_) => Err(match self.config.others_adapters {
                Concealment::Forbidden => Refused::Forbidden,
                Concealment::NotFound => Refused::NotFound,
            }),
        }
    }

    /// Reads the files of API keys and of JWT keys again, for [`Authenticator::take`]: aside, for they may be large. If one
    /// of them cannot be used, what was there stays.
    pub async fn read_again(self: &Arc<Self>) -> Result<FreshKeys, AuthError> {
        let authenticator = self.clone();
        let reading = tokio::task::spawn_blocking(move || authenticator.read());
        reading.await.map_err(AuthError::Thread)?
    }

    fn read(&self) -> Result<FreshKeys, AuthError> {
        let api_keys = self.config.keys.as_ref().map(|keys| read_api_keys(&keys.file)).transpose()?;
        let jwt = self.jwt.as_ref().map(JwtVerifier::read_again).transpose()?.flatten();
        Ok(FreshKeys { api_keys: api_keys.map(Arc::new), jwt })
    }

    pub fn take(&self, fresh: FreshKeys) {
        if let (Some(keys), Some(current)) = (fresh.api_keys, &self.api_keys) {
            *current.write().unwrap_or_else(PoisonError::into_inner) = keys;
        }
        if let Some(keys) = fresh.jwt {
            self.set_key_set(keys);
        }
    }

    /// Replaces the JWT keys by what somebody fetched from the issuer. Nothing happens if JWT is not configured.
    pub fn set_key_set(&self, keys: KeySet) {
        if let Some(jwt) = &self.jwt {
            jwt.set_keys(keys);
        }
    }

    /// Revocation of wallets' sessions; `None` if wallets are not configured.
    pub fn sessions(&self) -> Option<&Sessions> {
        self.wallets.as_ref().map(Wallets::sessions)
    }
}

fn bearer(header: &[u8]) -> Result<&str, Denied> {
    if header.len() > MAX_HEADER {
        return Err(Denied::TooLong);
    }
    let text = std::str::from_utf8(header).map_err(|_| Denied::Scheme)?;
    let (scheme, token) = text.split_once(' ').ok_or(Denied::Scheme)?;
    let token = token.trim_matches(' ');
    // RFC 6750: the scheme's name has no case, the token neither spaces nor controls.
    let whole = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && whole).then_some(token).ok_or(Denied::Scheme)
}

fn is_bare_signature(token: &str) -> bool {
    let digits = token.strip_prefix("0x").unwrap_or(token);
    digits.len() == 130 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn read_api_keys(path: &Path) -> Result<ApiKeys, AuthError> {
    let text = read_bounded(path, api_keys::MAX_FILE)?;
    ApiKeys::parse(&text).map_err(|source| AuthError::ApiKeys { path: path.to_owned(), source })
}

/// A file that only its owner can write; whoever can change it decides who is let in.
fn read_bounded(path: &Path, max: u64) -> Result<String, AuthError> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let failed = |source| AuthError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    if mode & 0o022 != 0 {
        let text = format!("others can write it (mode {:04o}): run `chmod go-w {}`", mode & 0o7777, path.display());
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, text)));
    }
    let mut text = String::new();
    file.take(max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > max {
        return Err(AuthError::TooLarge { path: path.to_owned(), max });
    }
    Ok(text)
}
