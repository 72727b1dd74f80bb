//! Wallets: texts that are signed for a session or for one request. Order of checks: form, times, audience, signature and
//! its malleability, signer, request, nonce, revocation. Nothing is remembered of a text before its signature was verified.

mod nonces;
mod sessions;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;

pub use sessions::{SessionError, Sessions, TokenId};
pub use text::{SignIn, Use};

use super::AuthError;
use super::caller::{Caller, Method};
use super::config::{AddressConfig, WalletConfig};
use super::denied::Denied;
use super::scope::{Scope, Scopes, Tenant};
use super::signature::WalletSignature;
use crate::adapters::Address;
use crate::identity::UnixTime;
use nonces::{Nonces, Standing};

/// Session texts whose signature need not be verified again.
const MAX_VERIFIED: usize = 8192;

/// No text for a session that cannot be revoked by itself lives longer.
const EPHEMERAL_TTL: Duration = Duration::from_secs(24 * 3600);

/// What a text that is signed for one request must name.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    /// Upper case, as in HTTP.
    pub method: &'r str,
    /// With the query, as it came.
    pub path: &'r str,
    /// As it came, before anything is changed.
    pub body: &'r [u8],
}

#[derive(Debug)]
pub(super) struct Wallets {
    config: WalletConfig,
    known: HashMap<Address, AddressConfig>,
    sessions: Sessions,
    nonces: Mutex<Nonces>,
    /// By the BLAKE3 of text and signature.
    verified: Mutex<HashMap<[u8; 32], Arc<SignIn>>>,
}

impl Wallets {
    pub(super) fn open(config: WalletConfig, state: &Path) -> Result<Self, AuthError> {
        if config.insecure_static_text.is_some() {
            tracing::warn!(
                "[auth] wallet.insecure_static_text: signatures of a fixed text are accepted; whoever sees one can use it for ever"
            );
        }
        let known = config.addresses.iter().map(|known| (known.address, known.clone())).collect();
        let sessions = Sessions::open(&state.join("wallet-sessions.json"))?;
        Ok(Self { config, known, sessions, nonces: Mutex::default(), verified: Mutex::default() })
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(super) fn takes_static(&self) -> bool {
        self.config.insecure_static_text.is_some()
    }

    /// `token` is what follows `eip191.`: the text in base64url, a dot, the signature.
    pub(super) fn verify(&self, token: &str, request: Option<&Request<'_>>, now: UnixTime) -> Result<Caller, Denied> {
        let digest = *blake3::hash(token.as_bytes()).as_bytes();
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        let sign_in = match known {
            Some(sign_in) => {
                self.check_times(&sign_in, now)?;
                sign_in
            }
            None => Arc::new(self.verify_signature(token, now)?),
        };
        let method = match &sign_in.purpose {
            Use::Request { .. } => {
                self.check_request(&sign_in, request, now)?;
                Method::WalletRequest
            }
            Use::Session { token, generation } => {
                self.sessions.check(&sign_in.address, *generation, *token)?;
                Method::WalletSession
            }
        };
        let caller = self.admit(sign_in.address, method, Some(sign_in.scopes.clone()))?;
        if method == Method::WalletSession {
            self.remember(digest, &sign_in, now);
        }
        Ok(caller.until(Some(sign_in.expires)))
    }

    /// `signature` counts whoever sends it and as often as they like: only for addresses that are listed, because every
    /// well-formed signature is that of *some* address.
    pub(super) fn verify_static(&self, signature: &str) -> Result<Caller, Denied> {
        let text = self.config.insecure_static_text.as_deref().ok_or(Denied::MethodOff)?;
        let signature: WalletSignature = signature.parse().map_err(|_| Denied::Signature)?;
        let address = signature.signer(text.as_bytes()).ok_or(Denied::Signature)?;
        if !self.known.contains_key(&address) {
            return Err(Denied::Stranger);
        }
        self.admit(address, Method::WalletStatic, None)
    }

    fn verify_signature(&self, token: &str, now: UnixTime) -> Result<SignIn, Denied> {
        let (text, signature) = token.split_once('.').ok_or(Denied::Malformed)?;
        if text.len() > text::MAX_TEXT * 4 / 3 + 3 {
            return Err(Denied::TooLong);
        }
        let text = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| Denied::Malformed)?;
        let text = std::str::from_utf8(&text).map_err(|_| Denied::Malformed)?;
        let sign_in = SignIn::parse(text).ok_or(Denied::Malformed)?;
        self.check_times(&sign_in, now)?;
        if !self.config.audiences.contains(&sign_in.domain)
            || self.config.chain.is_some_and(|chain| chain != sign_in.chain)
        {
            return Err(Denied::Audience);
        }
        let signature: WalletSignature = signature.parse().map_err(|_| Denied::Signature)?;
        match signature.signer(text.as_bytes()) {
            Some(address) if address == sign_in.address => Ok(sign_in),
            _ => Err(Denied::Signature),
        }
    }

    fn check_times(&self, sign_in: &SignIn, now: UnixTime) -> Result<(), Denied> {
        let skew = self.config.skew;
        if sign_in.expires.after(skew) <= now || sign_in.expires <= sign_in.issued {
            return Err(Denied::Expired);
        }
        let begins = sign_in.not_before.map_or(sign_in.issued, |not_before| not_before.max(sign_in.issued));
        if begins > now.after(skew) {
            return Err(Denied::NotYetValid);
        }
        let longest = match &sign_in.purpose {
            Use::Request { .. } => self.config.request_ttl,
            Use::Session { token, .. } if token.is_ephemeral() => self.config.session_ttl.min(EPHEMERAL_TTL),
            Use::Session { .. } => self.config.session_ttl,
        };
        if sign_in.expires > sign_in.issued.after(longest) { Err(Denied::TooLongLived) } else { Ok(()) }
    }

    fn check_request(&self, sign_in: &SignIn, request: Option<&Request<'_>>, now: UnixTime) -> Result<(), Denied> {
        let standing = match (self.known.contains_key(&sign_in.address), self.config.strangers) {
            (true, _) => Standing::Known,
            (false, true) => Standing::Stranger,
            // Else anybody could fill the memory of nonces.
            (false, false) => return Err(Denied::Stranger),
        };
        let request = request.ok_or(Denied::NeedsRequest)?;
        if !sign_in.purpose.is_for(request) {
            return Err(Denied::OtherRequest);
        }
        let until = sign_in.expires.after(self.config.skew);
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.insert(sign_in.address, &sign_in.nonce, standing, until, now)
    }

    fn remember(&self, digest: [u8; 32], sign_in: &Arc<SignIn>, now: UnixTime) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.contains_key(&digest) {
            return;
        }
        if verified.len() >= MAX_VERIFIED {
            verified.retain(|_, known| known.expires.after(self.config.skew) > now);
        }
        // Full of texts that are still valid: any of them can be verified again.
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(digest, Arc::clone(sign_in));
    }

    fn admit(&self, address: Address, method: Method, asked: Option<Vec<Scope>>) -> Result<Caller, Denied> {
        let known = self.known.get(&address);
        let granted = match known {
            Some(known) => known.scopes.clone(),
            None if self.config.strangers => vec![Scope::Infer],
            None => return Err(Denied::Stranger),
        };
        let text = address.to_string();
        let tenant = match known.and_then(|known| known.tenant.clone()) {
            Some(tenant) => tenant,
            None => text.parse::<Tenant>().map_err(|_| Denied::NoTenant)?,
        };
        let scopes = Scopes::new(granted);
        let scopes = match asked {
            Some(asked) => scopes.narrowed(asked),
            None => scopes,
        };
        Ok(Caller::new(tenant, &text, method, scopes).with_address(address))
    }
}
