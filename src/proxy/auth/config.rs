//! `[auth]` of the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::AuthError;
use super::jwt::Algorithm;
use super::scope::{MAX_SCOPES, Scope, Tenant};
use crate::adapters::Address;

/// Clocks may differ by at most this much (lora-serving, signed texts).
const MAX_SKEW: Duration = Duration::from_secs(60);

/// No signed text lives longer, but sessions that can be revoked one by one.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Who is let in. A method that has no table is off; at least one must be on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    pub others_adapters: Concealment,
    pub keys: Option<KeysConfig>,
    pub wallet: Option<WalletConfig>,
    pub jwt: Option<JwtConfig>,
    pub anonymous: Option<AnonymousConfig>,
}

/// What is answered to those who ask for an adapter that is not theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concealment {
    /// 403.
    #[default]
    Forbidden,
    /// 404, as if it did not exist: names stay private.
    NotFound,
}

/// API keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// TOML with a `[[key]]` for each key, see [`ApiKeys`](super::ApiKeys).
    pub file: PathBuf,
}

/// Ethereum wallets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalletConfig {
    /// Domains that signed texts may be for, such as `llm.example.com`. At least one.
    pub audiences: Vec<String>,
    /// EIP-155 id that signed texts must name. Absent: any.
    #[serde(default)]
    pub chain: Option<u64>,
    /// Longest life of a text for a session that can be revoked by its id (0 to 254).
    #[serde(default = "day", with = "humantime_serde")]
    pub session_ttl: Duration,
    /// Longest life of a text for one request; its nonce is remembered for as long.
    #[serde(default = "five_minutes", with = "humantime_serde")]
    pub request_ttl: Duration,
    #[serde(default = "skew", with = "humantime_serde")]
    pub skew: Duration,
    /// Whether addresses that are not listed are let in, each as its own tenant with the scope `infer`.
    #[serde(default)]
    pub strangers: bool,
    #[serde(default)]
    pub addresses: Vec<AddressConfig>,
    /// Accepts the signature of this fixed text, for ever and for every request, as the first release of 0G did with
    /// `0g-serving-inference-auth`. Whoever sees such a signature once has it for good. Listed addresses only.
    #[serde(default)]
    pub insecure_static_text: Option<String>,
}

/// A wallet that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressConfig {
    pub address: Address,
    /// Absent: the address is its own tenant.
    #[serde(default)]
    pub tenant: Option<Tenant>,
    #[serde(default = "infer")]
    pub scopes: Vec<Scope>,
}

/// JSON Web Tokens of one issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    pub issuer: String,
    /// One of these must be among the token's audiences. At least one.
    pub audiences: Vec<String>,
    #[serde(default = "Algorithm::all")]
    pub algorithms: Vec<Algorithm>,
    /// The issuer's key set (RFC 7517). Absent: somebody else brings it, and until then every token is refused.
    #[serde(default)]
    pub keys: Option<PathBuf>,
    /// The claim whose text is the tenant.
    #[serde(default = "subject")]
    pub tenant_claim: String,
    /// The most that a token can give. What it does give is in its claim `scope`; without one, `infer`.
    #[serde(default = "infer")]
    pub scopes: Vec<Scope>,
    #[serde(default = "skew", with = "humantime_serde")]
    pub skew: Duration,
}

/// Those who bring no credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnonymousConfig {
    pub tenant: Tenant,
    #[serde(default = "infer")]
    pub scopes: Vec<Scope>,
}

impl Default for AnonymousConfig {
    fn default() -> Self {
        Self { tenant: Tenant::everybody(), scopes: infer() }
    }
}

fn infer() -> Vec<Scope> {
    vec![Scope::Infer]
}

fn subject() -> String {
    "sub".to_owned()
}

fn day() -> Duration {
    DAY
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

fn skew() -> Duration {
    MAX_SKEW
}

impl AuthConfig {
    /// What the types do not say.
    pub fn check(&self) -> Result<(), AuthError> {
        if self.keys.is_none() && self.wallet.is_none() && self.jwt.is_none() && self.anonymous.is_none() {
            return Err(AuthError::NoMethod);
        }
        self.wallet.as_ref().map_or(Ok(()), WalletConfig::check)?;
        self.jwt.as_ref().map_or(Ok(()), JwtConfig::check)?;
        let Some(anonymous) = &self.anonymous else { return Ok(()) };
        scopes("anonymous.scopes", &anonymous.scopes)?;
        let administers = anonymous.scopes.contains(&Scope::Admin);
        require(!administers, "anonymous.scopes", "nobody administers without credentials")
    }
}

impl AuthConfig {
    /// What is wrong with the methods that are on: the key within `[auth]`, and why. At most one of each method.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let alone = |config: Self| (config != Self::default()).then(|| config.check());
        let methods = [
            Self { wallet: self.wallet.clone(), ..Self::default() },
            Self { jwt: self.jwt.clone(), ..Self::default() },
            Self { anonymous: self.anonymous.clone(), ..Self::default() },
        ];
        let told = methods.into_iter().filter_map(alone).filter_map(|checked| match checked {
            Err(AuthError::Config { key, reason }) => Some((key, reason)),
            _ => None,
        });
        told.collect()
    }
}

impl WalletConfig {
    fn check(&self) -> Result<(), AuthError> {
        let domain = |text: &String| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
        };
        let named = !self.audiences.is_empty() && self.audiences.iter().all(domain);
        require(named, "wallet.audiences", "expected at least one domain, with a port if it is not the usual one")?;
        require(self.skew <= MAX_SKEW, "wallet.skew", "at most 60 s")?;
        require(self.request_ttl <= DAY, "wallet.request_ttl", "at most 24 h")?;
        let listed = self.strangers || !self.addresses.is_empty();
        require(listed, "wallet.addresses", "list at least one address, or let `strangers` in")?;
        for known in &self.addresses {
            scopes("wallet.addresses.scopes", &known.scopes)?;
        }
        let mut addresses: Vec<_> = self.addresses.iter().map(|known| known.address).collect();
        addresses.sort_unstable();
        require(addresses.windows(2).all(|pair| pair[0] != pair[1]), "wallet.addresses", "one is listed twice")
    }
}

impl JwtConfig {
    fn check(&self) -> Result<(), AuthError> {
        require(!self.issuer.is_empty(), "jwt.issuer", "expected the text of the claim `iss`")?;
        require(!self.audiences.is_empty(), "jwt.audiences", "expected at least one")?;
        require(!self.algorithms.is_empty(), "jwt.algorithms", "expected at least one")?;
        require(self.skew <= MAX_SKEW, "jwt.skew", "at most 60 s")?;
        scopes("jwt.scopes", &self.scopes)
    }
}

fn scopes(key: &'static str, scopes: &[Scope]) -> Result<(), AuthError> {
    require(!scopes.is_empty() && scopes.len() <= MAX_SCOPES, key, "expected 1 to 32 scopes")
}

fn require(holds: bool, key: &'static str, reason: &str) -> Result<(), AuthError> {
    if holds { Ok(()) } else { Err(AuthError::Config { key, reason: reason.to_owned() }) }
}
