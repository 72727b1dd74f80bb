//! Values of a command line that others may read: neither secrets nor long texts.

use crate::digest::Digest;

/// Bytes of a value that is told as it is.
const MAX_VALUE: usize = 256;

/// Parts of names whose values nobody else may see.
const SECRET: &[&str] = &[
    "accesskey",
    "apikey",
    "auth",
    "authorization",
    "authtoken",
    "bearer",
    "credential",
    "credentials",
    "key",
    "keys",
    "passphrase",
    "passwd",
    "password",
    "passwords",
    "secret",
    "secretkey",
    "secrets",
    "token",
];

/// By its parts: `max-num-batched-tokens` is a setting.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| SECRET.contains(&part))
}

/// What of a value is told. Nothing is told of one that holds what looks like a secret, not even a digest: that of a short
/// one can be guessed.
pub(super) fn shown(value: &str) -> String {
    if is_secret(value) || has_credentials(value) {
        return "(not shown)".to_owned();
    }
    if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
        return format!("({} bytes, {})", value.len(), Digest::of(value.as_bytes()).short());
    }
    value.to_owned()
}

/// `https://user:password@host`, and the tokens that are known by how they begin.
fn has_credentials(value: &str) -> bool {
    let begins = |word: &str| word.starts_with("hf_") || word.starts_with("sk-");
    let user_of = |at: usize| value[at + 3..].split('/').next().is_some_and(|host| host.contains('@'));
    value.split(|c: char| c.is_whitespace() || "\"'=:,".contains(c)).any(begins)
        || value.match_indices("://").any(|(at, _)| user_of(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names_and_by_how_they_look() {
        for name in ["api-key", "VLLM_GATEWAY_TOKEN", "hf-token", "kv.auth", "ADMIN_PASSWORD", "secretKey"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["max-num-batched-tokens", "tokenizer", "kv-transfer-config", "keyboard"] {
            assert!(!is_secret(name), "{name}");
        }
        for value in [
            r#"{"extra": {"auth_token": "x"}}"#,
            "\n  endpoint: a\n  password: b",
            "s3://user:pass@bucket/model",
            "hf_abcdefgh",
            r#"{"x": "sk-abc"}"#,
        ] {
            assert_eq!(shown(value), "(not shown)", "{value}");
        }
    }

    #[test]
    fn long_texts_are_told_apart_by_their_digest() {
        let (a, b) = (shown(&"a".repeat(300)), shown(&"b".repeat(300)));
        assert!(a.starts_with("(300 bytes, ") && a != b);
        assert!(shown("\n  mode: 3").starts_with("(10 bytes, "));
        assert_eq!(shown("./model"), "./model");
    }
}
