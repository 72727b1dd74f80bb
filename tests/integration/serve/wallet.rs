//! Ethereum wallets that sign in.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use k256::ecdsa::SigningKey;
use sha3::{Digest, Keccak256};
use warmd::identity::UnixTime;
use warmd::proxy::auth::{Scope, SignIn, TokenId, Use};

pub const AUDIENCE: &str = "llm.example.com";

/// The first two accounts of the well-known development phrase "test test ... junk": key and address.
pub const WALLETS: [(&str, &str); 2] = [
    ("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80", "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
    ("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d", "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"),
];

/// A bearer token of a session of ten minutes.
pub fn session((key, address): (&str, &str)) -> String {
    let now = UnixTime::now();
    let text = SignIn {
        domain: AUDIENCE.to_owned(),
        address: address.parse().unwrap(),
        statement: None,
        chain: 1,
        nonce: "4f1c9a7be02d6358".to_owned(),
        issued: now,
        expires: now.after(std::time::Duration::from_secs(600)),
        not_before: None,
        scopes: vec![Scope::Infer],
        purpose: Use::Session { token: TokenId::EPHEMERAL, generation: 0 },
    }
    .to_string();
    format!("eip191.{}.{}", BASE64URL_NOPAD.encode(text.as_bytes()), sign(key, &text))
}

/// As EIP-191, version 0x45, says.
fn sign(key: &str, text: &str) -> String {
    let key = SigningKey::from_slice(&HEXLOWER.decode(key.as_bytes()).unwrap()).unwrap();
    let hash = Keccak256::digest(format!("\x19Ethereum Signed Message:\n{}{text}", text.len()));
    let (signature, id) = key.sign_prehash_recoverable(&hash);
    format!("0x{}{:02x}", HEXLOWER.encode(&signature.to_bytes()), 27 + id.to_byte())
}
