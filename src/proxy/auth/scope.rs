//! What a caller may do, and whose an adapter is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::adapters::Address;

/// No list of scopes is longer.
pub const MAX_SCOPES: usize = 32;

/// One permission. Text form: `infer`, `admin`, `adapter:<pattern>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The base model, the tenant's own adapters and those of everybody.
    Infer,
    /// The admin routes. Gives no inference.
    Admin,
    /// Adapters of these names, whoever owns them.
    Adapter(Pattern),
}

/// Names of adapters: letters, digits, `.`, `_`, `-` and at most one `*`, which stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    prefix: String,
    /// What follows the `*`; without one the pattern is a name.
    suffix: Option<String>,
}

/// The text names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a scope: expected `infer`, `admin` or `adapter:<name>`, where the name may hold one `*`")]
pub struct InvalidScope;

impl Pattern {
    pub fn matches(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.prefix.as_str());
        match &self.suffix {
            None => rest == Some(""),
            Some(suffix) => rest.is_some_and(|rest| rest.ends_with(suffix.as_str())),
        }
    }
}

impl FromStr for Pattern {
    type Err = InvalidScope;
    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let (prefix, suffix) = match text.split_once('*') {
            Some((prefix, suffix)) => (prefix, Some(suffix)),
            None => (text, None),
        };
        let whole = prefix.bytes().chain(suffix.unwrap_or_default().bytes());
        if text.is_empty() || text.len() > 128 || !whole.clone().all(plain) {
            return Err(InvalidScope);
        }
        Ok(Self { prefix: prefix.to_owned(), suffix: suffix.map(str::to_owned) })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        self.suffix.as_ref().map_or(Ok(()), |suffix| write!(f, "*{suffix}"))
    }
}

impl FromStr for Scope {
    type Err = InvalidScope;
    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        match text {
            "infer" => Ok(Self::Infer),
            "admin" => Ok(Self::Admin),
            _ => text.strip_prefix("adapter:").ok_or(InvalidScope)?.parse().map(Self::Adapter),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Infer => f.write_str("infer"),
            Self::Admin => f.write_str("admin"),
            Self::Adapter(pattern) => write!(f, "adapter:{pattern}"),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What somebody was granted, and what of it the credential at hand asks for: both must permit. So a signed text can
/// narrow what its signer may do, and never widen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes {
    granted: Vec<Scope>,
    asked: Option<Vec<Scope>>,
}

impl Scopes {
    pub fn new(granted: Vec<Scope>) -> Self {
        Self { granted, asked: None }
    }

    pub fn narrowed(self, asked: Vec<Scope>) -> Self {
        Self { asked: Some(asked), ..self }
    }

    fn both(&self, permits: impl Fn(&[Scope]) -> bool) -> bool {
        permits(&self.granted) && self.asked.as_deref().is_none_or(permits)
    }

    pub fn permit_admin(&self) -> bool {
        self.both(|scopes| scopes.contains(&Scope::Admin))
    }

    /// The base model.
    pub fn permit_inference(&self) -> bool {
        self.both(|scopes| scopes.contains(&Scope::Infer))
    }

    /// The adapter called `name`, `shared` if it is the caller's own or everybody's.
    pub(super) fn permit_adapter(&self, name: &str, shared: bool) -> bool {
        self.both(|scopes| {
            scopes.iter().any(|scope| match scope {
                Scope::Infer => shared,
                Scope::Adapter(pattern) => pattern.matches(name),
                Scope::Admin => false,
            })
        })
    }
}

/// Whose an adapter is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    Tenant(Tenant),
    Address(Address),
    /// All who may infer.
    Everybody,
}

/// A group of callers that share adapters and limits: 1 to 128 printable ASCII characters without spaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(std::sync::Arc<str>);

/// The text cannot name a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a tenant: expected 1 to 128 printable characters without spaces")]
pub struct InvalidTenant;

impl Tenant {
    /// Of those who did not say who they are.
    pub fn everybody() -> Self {
        Self("everybody".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = InvalidTenant;
    fn from_str(text: &str) -> Result<Self, InvalidTenant> {
        let valid = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        valid.then(|| Self(text.into())).ok_or(InvalidTenant)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Tenant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Tenant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn texts_of_scopes_round_trip_and_others_are_refused() {
        for text in ["infer", "admin", "adapter:a", "adapter:*", "adapter:team-*", "adapter:*-v1", "adapter:a*b"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for text in ["", "Infer", "adapter:", "adapter:a/b", "adapter:a@b", "adapter:a**", "adapter:a b", "root"] {
            assert_eq!(text.parse::<Scope>(), Err(InvalidScope), "{text}");
        }
        assert_eq!(format!("adapter:{}", "a".repeat(129)).parse::<Scope>(), Err(InvalidScope));
    }

    #[test]
    fn a_pattern_does_not_match_where_its_ends_would_overlap() {
        let pattern: Pattern = "ab*ba".parse().unwrap();
        assert!(pattern.matches("abba") && pattern.matches("ab-x-ba"));
        assert!(!pattern.matches("aba"));
    }

    #[test]
    fn the_scope_infer_gives_what_is_ones_own_and_no_administration() {
        let infer = Scopes::new(scopes(&["infer"]));
        assert!(infer.permit_inference() && infer.permit_adapter("a", true));
        assert!(!infer.permit_adapter("a", false) && !infer.permit_admin());
        let admin = Scopes::new(scopes(&["admin"]));
        assert!(admin.permit_admin() && !admin.permit_inference() && !admin.permit_adapter("a", true));
    }

    #[test]
    fn what_a_credential_asks_for_narrows_and_never_widens() {
        let granted = Scopes::new(scopes(&["infer"]));
        let widened = granted.clone().narrowed(scopes(&["infer", "admin", "adapter:*"]));
        assert!(!widened.permit_admin() && !widened.permit_adapter("others", false));
        let narrow = granted.narrowed(scopes(&["adapter:mine"]));
        assert!(narrow.permit_adapter("mine", true) && !narrow.permit_adapter("my-second", true));
        assert!(!narrow.permit_inference());
        let nothing = Scopes::new(scopes(&["infer", "admin"])).narrowed(Vec::new());
        assert!(!nothing.permit_inference() && !nothing.permit_admin());
    }
}
