//! Who may look: whoever has the token, by header or by a session that it opened.

mod attempts;

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use self::attempts::Attempts;
use super::{WebError, WebSection};
use crate::durable;

/// Characters of a token: a shorter one can be guessed, a longer one is none.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 16..=512;

/// What keys of sessions are derived for.
const CONTEXT: &str = "warmd 2026-11 sessions of the web page";

/// Seconds since 1970.
type Seconds = u64;

pub(super) fn now() -> Seconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The door of the page.
#[derive(Debug)]
pub(super) enum Door {
    /// Whoever runs programs on this machine.
    Loopback,
    Token(Box<Lock>),
}

impl Door {
    /// For what is configured: without a token only where nobody else reaches the page.
    pub(super) fn new(section: &WebSection, listen: SocketAddr) -> Result<Self, WebError> {
        match &section.token_file {
            Some(path) => Ok(Self::Token(Box::new(Lock::new(&Token::read(path)?, section.session)))),
            None if listen.ip().is_loopback() => Ok(Self::Loopback),
            None => Err(WebError::NoToken(listen)),
        }
    }
}

/// How somebody was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entrance {
    Loopback,
    Bearer,
    /// Until then.
    Session(Seconds),
}

/// Why somebody was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No token, or a session that is over.
    Unknown,
    WrongToken,
    /// Too many wrong ones from there: ask again after this.
    Locked(Duration),
}

/// The secret as it was configured.
struct Token(String);

impl Token {
    fn read(path: &Path) -> Result<Self, WebError> {
        let failed = |source| WebError::TokenFile { path: path.to_owned(), source };
        let mut text = String::new();
        let most = *TOKEN_LENGTH.end() as u64 + 2;
        let file = std::fs::File::open(path).map_err(failed)?;
        if let Some(mode) = durable::exposed(&file.metadata().map_err(failed)?) {
            return Err(WebError::Exposed { path: path.to_owned(), mode });
        }
        file.take(most).read_to_string(&mut text).map_err(failed)?;
        let token = text.trim_end_matches(['\r', '\n']);
        let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic());
        match TOKEN_LENGTH.contains(&token.len()) && is_plain {
            true => Ok(Self(token.to_owned())),
            false => Err(WebError::Token { path: path.to_owned() }),
        }
    }
}

/// For a client on this machine.
pub(super) fn read_token(path: &Path) -> Result<String, WebError> {
    Token::read(path).map(|token| token.0)
}

/// What opens for the token. The token itself is not kept. Comparisons take the same time whatever is compared: those of
/// `blake3::Hash` do.
#[derive(Debug)]
pub(super) struct Lock {
    token: blake3::Hash,
    key: SessionKey,
    session: Duration,
    attempts: Attempts,
}

/// Signs sessions. Another token is another key: it ends all sessions.
struct SessionKey([u8; 32]);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey")
    }
}

impl Lock {
    fn new(token: &Token, session: Duration) -> Self {
        let token = token.0.as_bytes();
        let key = SessionKey(blake3::derive_key(CONTEXT, token));
        Self { token: blake3::hash(token), key, session, attempts: Attempts::default() }
    }

    /// Whether `token` is the one. Wrong ones are counted by where they come from.
    pub(super) fn try_token(&self, token: &[u8], from: SocketAddr, now: std::time::Instant) -> Result<(), Refusal> {
        self.attempts.guard(from.ip(), now, blake3::hash(token) == self.token)
    }

    /// A new session's cookie value: its end, and our signature on that.
    pub(super) fn open_session(&self, now: Seconds) -> String {
        let ends = now.saturating_add(self.session.as_secs());
        format!("{ends}.{}", self.sign(ends).to_hex())
    }

    /// Seconds that a session lasts.
    pub(super) fn session_seconds(&self) -> Seconds {
        self.session.as_secs()
    }

    /// When the session ends, if it is one of ours and not over.
    pub(super) fn session(&self, cookie: &str, now: Seconds) -> Option<Seconds> {
        let (ends, signature) = cookie.split_once('.')?;
        let ends: Seconds = ends.parse().ok()?;
        let signature = blake3::Hash::from_hex(signature).ok()?;
        (signature == self.sign(ends) && now < ends).then_some(ends)
    }

    fn sign(&self, ends: Seconds) -> blake3::Hash {
        blake3::keyed_hash(&self.key.0, &ends.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn lock(token: &str) -> Lock {
        Lock::new(&Token(token.to_owned()), Duration::from_secs(100))
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_session_is_good_until_its_end_and_for_its_token_only() {
        let (ours, other) = (lock(TOKEN), lock("another token, longer"));
        let cookie = ours.open_session(1000);
        assert!(!cookie.contains(TOKEN));
        assert_eq!(ours.session(&cookie, 1099), Some(1100));
        assert_eq!((ours.session(&cookie, 1100), other.session(&cookie, 1050)), (None, None));
        let (ends, signature) = cookie.split_once('.').unwrap();
        let forged = [format!("9999.{signature}"), format!("{ends}."), ends.to_owned(), String::new(), ".".into()];
        for forged in forged {
            assert_eq!(ours.session(&forged, 1050), None, "{forged}");
        }
    }

    #[test]
    fn only_the_token_opens_and_too_many_wrong_ones_do_not_lock_it_out() {
        let (lock, now) = (lock(TOKEN), Instant::now());
        let from = "10.0.0.1:5".parse().unwrap();
        assert_eq!(lock.try_token(TOKEN.as_bytes(), from, now), Ok(()));
        let refusals: Vec<_> = (0..20).map(|_| lock.try_token(b"0123456789abcdeg", from, now).unwrap_err()).collect();
        assert_eq!(refusals[0], Refusal::WrongToken);
        assert!(matches!(refusals[19], Refusal::Locked(_)), "{refusals:?}");
        assert_eq!(lock.try_token(TOKEN.as_bytes(), from, now), Ok(()));
    }

    #[test]
    fn a_token_that_can_be_guessed_or_typed_by_nobody_is_refused() {
        for wrong in ["", "short", "with spaces in the middle", &"x".repeat(513), "0123456789abcd\u{e9}f"] {
            let file = written(wrong);
            assert!(matches!(Token::read(file.path()), Err(WebError::Token { .. })), "{wrong:?}");
        }
        assert_eq!(Token::read(written("0123456789abcdef\r\n").path()).ok().unwrap().0, TOKEN);
        let missing = Token::read(Path::new("/nonexistent/token"));
        assert!(matches!(missing, Err(WebError::TokenFile { .. })));
    }

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let file = written(TOKEN);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = Token::read(file.path()).map(drop).unwrap_err();
        assert!(matches!(refused, WebError::Exposed { mode: 0o640, .. }), "{refused}");
    }

    #[test]
    fn without_a_token_only_this_machine_is_served() {
        let section = WebSection::default();
        for local in ["127.0.0.1:1", "[::1]:1", "127.8.0.1:1"] {
            assert!(matches!(Door::new(&section, local.parse().unwrap()), Ok(Door::Loopback)), "{local}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            let refused = Door::new(&section, open.parse().unwrap()).unwrap_err();
            assert!(matches!(refused, WebError::NoToken(_)) && refused.to_string().contains("token_file"), "{refused}");
        }
    }
}
