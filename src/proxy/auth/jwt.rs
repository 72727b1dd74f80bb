//! JSON Web Tokens (RFC 7519) with a signature (RFC 7515) of one issuer's keys (RFC 7517). Algorithms are pinned by the
//! configuration and by the key's own type, never by the token alone.

mod keys;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use keys::{KeySet, KeySetError};

use super::caller::{Caller, Method};
use super::config::JwtConfig;
use super::denied::Denied;
use super::scope::{MAX_SCOPES, Scope, Scopes, Tenant};
use super::{AuthError, read_bounded};
use crate::identity::UnixTime;

/// Of signatures (RFC 7518, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA over P-256 with SHA-256.
    ES256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, keys of 2048 to 8192 bits.
    RS256,
}

impl Algorithm {
    pub fn all() -> Vec<Self> {
        vec![Self::EdDSA, Self::ES256, Self::RS256]
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    aud: Option<Audience>,
    exp: Option<Seconds>,
    nbf: Option<Seconds>,
    scope: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// RFC 7519 "NumericDate": seconds since 1970, possibly with a fraction.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
struct Seconds(UnixTime);

impl TryFrom<f64> for Seconds {
    type Error = &'static str;
    fn try_from(seconds: f64) -> Result<Self, &'static str> {
        // Beyond 2^53 not every second is a number; UnixTime ends before.
        let valid = seconds.is_finite() && (0.0..9.0e15).contains(&seconds);
        valid.then(|| Self(UnixTime::from_seconds(seconds as u64))).ok_or("not a time")
    }
}

#[derive(Debug)]
pub(super) struct JwtVerifier {
    config: JwtConfig,
    keys: RwLock<Arc<KeySet>>,
}

impl JwtVerifier {
    pub(super) fn open(config: JwtConfig) -> Result<Self, AuthError> {
        let verifier = Self { config, keys: RwLock::default() };
        if let Some(keys) = verifier.read_again()? {
            verifier.set_keys(keys);
        }
        Ok(verifier)
    }

    /// `None` where no file has the keys.
    pub(super) fn read_again(&self) -> Result<Option<KeySet>, AuthError> {
        let Some(path) = &self.config.keys else { return Ok(None) };
        let text = read_bounded(path, keys::MAX_SET)?;
        let failed = |source| AuthError::KeySet { path: path.clone(), source };
        KeySet::parse(text.as_bytes()).map(Some).map_err(failed)
    }

    pub(super) fn set_keys(&self, keys: KeySet) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    pub(super) fn verify(&self, token: &str, now: UnixTime) -> Result<Caller, Denied> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Denied::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Denied::Malformed)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Denied::Malformed)?;
        let algorithm = self.algorithm(&header)?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let key = keys.find(algorithm, header.kid.as_deref()).ok_or(Denied::Signature)?;
        if !key.verify(signed.as_bytes(), &decode(signature)?) {
            return Err(Denied::Signature);
        }
        let payload = decode(payload)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| Denied::Malformed)?;
        self.check(&claims, now)?;
        let tenant = self.tenant(&payload)?;
        let scopes = Scopes::new(self.config.scopes.clone()).narrowed(asked(claims.scope.as_deref()));
        let caller = Caller::new(tenant.clone(), tenant.as_str(), Method::Jwt, scopes);
        Ok(caller.until(claims.exp.map(|exp| exp.0)))
    }

    fn algorithm(&self, header: &Header) -> Result<Algorithm, Denied> {
        if header.crit.is_some() {
            return Err(Denied::Malformed);
        }
        let named = match header.alg.as_str() {
            "EdDSA" => Algorithm::EdDSA,
            "ES256" => Algorithm::ES256,
            "RS256" => Algorithm::RS256,
            _ => return Err(Denied::Algorithm),
        };
        self.config.algorithms.contains(&named).then_some(named).ok_or(Denied::Algorithm)
    }

    fn check(&self, claims: &Claims, now: UnixTime) -> Result<(), Denied> {
        if claims.iss.as_deref() != Some(self.config.issuer.as_str()) {
            return Err(Denied::Issuer);
        }
        let ours = |audience: &String| self.config.audiences.contains(audience);
        match &claims.aud {
            Some(Audience::One(audience)) if ours(audience) => {}
            Some(Audience::Many(audiences)) if audiences.iter().any(ours) => {}
            _ => return Err(Denied::Audience),
        }
        let skew = self.config.skew;
        // A token that never ends is not accepted.
        if claims.exp.ok_or(Denied::TooLongLived)?.0.after(skew) <= now {
            return Err(Denied::Expired);
        }
        match claims.nbf {
            Some(begins) if begins.0 > now.after(skew) => Err(Denied::NotYetValid),
            _ => Ok(()),
        }
    }

    fn tenant(&self, payload: &[u8]) -> Result<Tenant, Denied> {
        let claims: Map<String, Value> = serde_json::from_slice(payload).map_err(|_| Denied::Malformed)?;
        let text = claims.get(&self.config.tenant_claim).and_then(Value::as_str).ok_or(Denied::NoTenant)?;
        text.parse().map_err(|_| Denied::NoTenant)
    }
}

/// Words that are not ours, such as `openid`, give nothing.
fn asked(claim: Option<&str>) -> Vec<Scope> {
    match claim {
        None => vec![Scope::Infer],
        Some(words) => words.split(' ').filter_map(|word| word.parse().ok()).take(MAX_SCOPES).collect(),
    }
}

fn decode(part: &str) -> Result<Vec<u8>, Denied> {
    BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| Denied::Malformed)
}
