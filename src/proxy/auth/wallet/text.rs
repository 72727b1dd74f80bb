//! The text that a wallet signs: EIP-4361 ("Sign-In with Ethereum"), so that wallets show it and libraries make it. What
//! it is for stands among its resources:
//!
//! ```text
//! llm.example.com wants you to sign in with your Ethereum account:
//! 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266
//!
//! <an optional line of text>
//!
//! URI: https://llm.example.com
//! Version: 1
//! Chain ID: 1
//! Nonce: 4f1c9a7be02d6358
//! Issued At: 2027-01-15T08:00:00Z
//! Expiration Time: 2027-01-15T20:00:00Z
//! Resources:
//! - urn:warmd:scope:infer
//! - urn:warmd:session:255:0
//! ```
//!
//! The last resource is `urn:warmd:session:<token id>:<generation>`, or for one request
//! `urn:warmd:request:<method>:<SHA-256 of the body in hex>:<path and query>`.

use std::fmt;
use std::str::{FromStr, Split};
use std::time::UNIX_EPOCH;

use data_encoding::HEXLOWER;

use super::super::scope::{MAX_SCOPES, Scope};
use super::{Request, TokenId};
use crate::adapters::Address;
use crate::identity::UnixTime;

/// Bytes.
pub(super) const MAX_TEXT: usize = 4096;

const GREETING: &str = " wants you to sign in with your Ethereum account:";

/// What a text is signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// Every request until it expires or is revoked.
    Session { token: TokenId, generation: u64 },
    /// One request, once.
    Request {
        method: String,
        path: String,
        /// SHA-256.
        body: [u8; 32],
    },
}

impl Use {
    /// The text for `request`.
    pub fn once(request: &Request<'_>) -> Self {
        let (method, path) = (request.method.to_owned(), request.path.to_owned());
        Self::Request { method, path, body: sha256(request.body) }
    }

    pub(super) fn is_for(&self, request: &Request<'_>) -> bool {
        *self == Self::once(request)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

/// A text as it was signed. `Display` writes it; clients may write it in other ways, which [`SignIn::parse`] takes as far
/// as EIP-4361 does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    /// The audience: host, with the port if it is not the usual one.
    pub domain: String,
    pub address: Address,
    pub statement: Option<String>,
    /// EIP-155 id.
    pub chain: u64,
    /// 8 to 64 letters and digits.
    pub nonce: String,
    pub issued: UnixTime,
    pub expires: UnixTime,
    pub not_before: Option<UnixTime>,
    /// 1 to [`MAX_SCOPES`].
    pub scopes: Vec<Scope>,
    pub purpose: Use,
}

impl SignIn {
    /// `None` if it is no such text, or says something that is not understood: who signed it relied on that.
    pub fn parse(text: &str) -> Option<Self> {
        let printable = |byte: u8| byte == b'\n' || byte == b' ' || byte.is_ascii_graphic();
        if text.len() > MAX_TEXT || !text.bytes().all(printable) {
            return None;
        }
        let mut lines = Lines(text.split('\n'));
        let domain = lines.next()?.strip_suffix(GREETING)?.to_owned();
        let address = lines.next()?.parse().ok()?;
        let statement = lines.statement()?;
        if !is_below(lines.field("URI: ")?, &domain) || lines.field("Version: ")? != "1" {
            return None;
        }
        let chain = decimal(lines.field("Chain ID: ")?)?;
        let nonce = lines.field("Nonce: ")?.to_owned();
        if !(8..=64).contains(&nonce.len()) || !nonce.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let issued = time(lines.field("Issued At: ")?)?;
        let expires = time(lines.field("Expiration Time: ")?)?;
        let not_before = lines.optional("Not Before: ").map(time);
        if not_before == Some(None) {
            return None;
        }
        lines.optional("Request ID: ");
        let (scopes, purpose) = lines.resources()?;
        let not_before = not_before.flatten();
        Some(Self { domain, address, statement, chain, nonce, issued, expires, not_before, scopes, purpose })
    }
}

struct Lines<'t>(Split<'t, char>);

impl<'t> Lines<'t> {
    fn next(&mut self) -> Option<&'t str> {
        self.0.next()
    }

    fn field(&mut self, name: &str) -> Option<&'t str> {
        self.next()?.strip_prefix(name).filter(|value| !value.is_empty())
    }

    /// Takes the next line only if it is that field.
    fn optional(&mut self, name: &str) -> Option<&'t str> {
        let value = self.0.clone().next()?.strip_prefix(name)?;
        self.0.next();
        Some(value)
    }

    /// An empty line, a statement or nothing, an empty line.
    fn statement(&mut self) -> Option<Option<String>> {
        if !self.next()?.is_empty() {
            return None;
        }
        match self.next()? {
            "" => Some(None),
            statement => self.next()?.is_empty().then(|| Some(statement.to_owned())),
        }
    }

    fn resources(&mut self) -> Option<(Vec<Scope>, Use)> {
        if self.next()? != "Resources:" {
            return None;
        }
        let mut scopes = Vec::new();
        loop {
            let resource = self.field("- urn:warmd:")?;
            let Some(scope) = resource.strip_prefix("scope:") else {
                let purpose = purpose(resource)?;
                return (self.next().is_none() && !scopes.is_empty()).then_some((scopes, purpose));
            };
            scopes.push(scope.parse().ok()?);
            if scopes.len() > MAX_SCOPES {
                return None;
            }
        }
    }
}

fn purpose(resource: &str) -> Option<Use> {
    let (kind, rest) = resource.split_once(':')?;
    match kind {
        "session" => {
            let (token, generation) = rest.split_once(':')?;
            Some(Use::Session { token: TokenId::new(decimal(token)?), generation: decimal(generation)? })
        }
        "request" => {
            let (method, rest) = rest.split_once(':')?;
            let (body, path) = rest.split_once(':')?;
            let body = HEXLOWER.decode(body.as_bytes()).ok()?.try_into().ok()?;
            let valid = method.bytes().all(|byte| byte.is_ascii_uppercase()) && path.starts_with('/');
            valid.then(|| Use::Request { method: method.to_owned(), path: path.to_owned(), body })
        }
        _ => None,
    }
}

/// Digits only: no sign, no space, no leading zero.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|_| canonical)
}

fn time(text: &str) -> Option<UnixTime> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(UnixTime::from_seconds(since.as_secs()))
}

/// Whether `uri` is a page of `domain`.
fn is_below(uri: &str, domain: &str) -> bool {
    let rest = uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://"));
    let path = rest.and_then(|rest| rest.strip_prefix(domain));
    !domain.is_empty() && path.is_some_and(|path| path.is_empty() || path.starts_with('/'))
}

impl fmt::Display for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}{GREETING}\n{}\n", self.domain, self.address)?;
        if let Some(statement) = &self.statement {
            writeln!(f, "{statement}")?;
        }
        writeln!(f, "\nURI: https://{}\nVersion: 1\nChain ID: {}", self.domain, self.chain)?;
        writeln!(f, "Nonce: {}\nIssued At: {}\nExpiration Time: {}", self.nonce, self.issued, self.expires)?;
        if let Some(not_before) = self.not_before {
            writeln!(f, "Not Before: {not_before}")?;
        }
        writeln!(f, "Resources:")?;
        for scope in &self.scopes {
            writeln!(f, "- urn:warmd:scope:{scope}")?;
        }
        match &self.purpose {
            Use::Session { token, generation } => write!(f, "- urn:warmd:session:{token}:{generation}"),
            Use::Request { method, path, body } => {
                write!(f, "- urn:warmd:request:{method}:{}:{path}", HEXLOWER.encode(body))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::signature::WalletSignature;
    use super::*;

    const TEXT: &str = "llm.example.com wants you to sign in with your Ethereum account:\n\
        0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266\n\nTo use our models.\n\nURI: https://llm.example.com/v1\n\
        Version: 1\nChain ID: 1\nNonce: 4f1c9a7be02d6358\nIssued At: 2027-01-15T08:00:00.250Z\n\
        Expiration Time: 2027-01-15T20:00:00Z\nNot Before: 2027-01-15T09:00:00Z\nRequest ID: 7\nResources:\n\
        - urn:warmd:scope:infer\n- urn:warmd:scope:adapter:team-*\n- urn:warmd:session:255:3";

    #[test]
    fn a_text_of_a_library_is_read_with_every_field() {
        let sign_in = SignIn::parse(TEXT).unwrap();
        assert_eq!(sign_in.domain, "llm.example.com");
        assert_eq!(sign_in.statement.as_deref(), Some("To use our models."));
        assert_eq!((sign_in.issued.seconds(), sign_in.expires.seconds()), (1_800_000_000, 1_800_043_200));
        assert_eq!(sign_in.not_before.unwrap().seconds(), 1_800_003_600);
        assert_eq!(sign_in.scopes, ["infer".parse().unwrap(), "adapter:team-*".parse().unwrap()]);
        assert_eq!(sign_in.purpose, Use::Session { token: TokenId::new(255), generation: 3 });
    }

    #[test]
    fn what_is_written_is_read_again() {
        let request = Request { method: "POST", path: "/v1/chat/completions?a=b:c", body: b"{}" };
        let session = SignIn::parse(TEXT).unwrap();
        let bare = SignIn { statement: None, not_before: None, purpose: Use::once(&request), ..session.clone() };
        for sign_in in [session, bare] {
            assert_eq!(SignIn::parse(&sign_in.to_string()).unwrap(), sign_in);
        }
    }

    #[test]
    fn a_text_that_lacks_doubles_or_reorders_anything_is_refused() {
        let lines: Vec<&str> = TEXT.split('\n').collect();
        let may_go = ["To use our models.", "Not Before: 2027-01-15T09:00:00Z", "Request ID: 7"];
        for (at, line) in lines.iter().enumerate() {
            let mut less = lines.clone();
            less.remove(at);
            // One of two scopes may go too.
            if !may_go.contains(line) && !line.contains("scope:") {
                assert_eq!(SignIn::parse(&less.join("\n")), None, "without line {at}: {line}");
            }
            let mut more = lines.clone();
            more.insert(at, line);
            if !line.contains("scope:") {
                assert_eq!(SignIn::parse(&more.join("\n")), None, "line {at} twice: {line}");
            }
        }
        for (from, to) in [
            ("Version: 1", "Version: 2"),
            ("Chain ID: 1", "Chain ID: 01"),
            ("Chain ID: 1", "Chain ID: +1"),
            ("4f1c9a7be02d6358", "4f1c9a7"),
            ("4f1c9a7be02d6358", "4f1c-9a7be02d6358"),
            ("https://llm.example.com/v1", "https://llm.example.com.evil.net/v1"),
            ("https://llm.example.com/v1", "https://other.example.com"),
            ("2027-01-15T20:00:00Z", "never"),
            ("session:255:3", "session:256:3"),
            ("session:255:3", "session:-1:3"),
            ("session:255:3", "session:255"),
            ("- urn:warmd:scope:infer", "- urn:warmd:scope:all"),
            ("- urn:warmd:scope:infer", "- https://example.com/limits"),
            ("To use our models.", "To use\tour models."),
            ("To use our models.", "f\u{fc}r uns"),
        ] {
            assert_eq!(SignIn::parse(&TEXT.replacen(from, to, 1)), None, "{from} -> {to}");
        }
        assert_eq!(SignIn::parse(&TEXT.replace("To use", &"x".repeat(MAX_TEXT))), None);
        assert_eq!(SignIn::parse(&format!("{TEXT}\n")), None);
    }

    /// From the test vectors of the reference implementation of EIP-4361 (spruceid/siwe, verification_positive.json).
    #[test]
    fn golden_signatures_of_published_sign_in_texts_recover_to_the_addresses_in_them() {
        for (text, signature) in [
            (
                "login.xyz wants you to sign in with your Ethereum account:\n\
                 0x9D85ca56217D2bb651b00f15e694EB7E713637D4\n\nSign-In With Ethereum Example Statement\n\n\
                 URI: https://login.xyz\nVersion: 1\nChain ID: 1\nNonce: bTyXgcQxn2htgkjJn\n\
                 Issued At: 2022-01-27T17:09:38.578Z\nExpiration Time: 2100-01-07T14:31:43.952Z",
                "0xdc35c7f8ba2720df052e0092556456127f00f7707eaa8e3bbff7e56774e7f2e0\
                 5a093cfc9e02964c33d86e8e066e221b7d153d27e5a2e97ccd5ca7d3f2ce06cb1b",
            ),
            (
                "www.tally.xyz wants you to sign in with your Ethereum account:\n\
                 0xc95EB884FE852e241D409234bfC7045CB9E31BD7\n\nSign in with Ethereum to Tally\n\n\
                 URI: https://tally.xyz\nVersion: 1\nChain ID: 1\nNonce: 15050747\n\
                 Issued At: 2022-06-30T14:08:51.382Z",
                "0x8c46b6eb8505939892d8e9b075f89f8277321b17b993151f37810cdda38cce6f\
                 4a85909d2b53e6a14629c74c0ac38bf4becde78ee5b2529812bf6cceaf7b2a2501",
            ),
        ] {
            let signature: WalletSignature = signature.parse().unwrap();
            let address: Address = text.lines().nth(1).unwrap().parse().unwrap();
            assert_eq!(signature.signer(text.as_bytes()), Some(address));
        }
    }
}
