//! The signatures that wallets make of texts (EIP-191, version 0x45), and whose they are.

use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use sha3::{Digest, Keccak256};

use crate::adapters::Address;

/// The last 20 bytes of the Keccak-256 of the public key.
fn address_of(key: &VerifyingKey) -> Option<Address> {
    let point = key.to_sec1_point(false);
    // The first byte says only that the point is not compressed.
    let digest = Keccak256::digest(point.as_bytes().get(1..)?);
    digest.get(12..)?.try_into().ok().map(Address::from_array)
}

/// What a wallet really signs for `text` (EIP-191).
fn prehash(text: &[u8]) -> [u8; 32] {
    let mut hasher = Keccak256::new();
    hasher.update(b"\x19Ethereum Signed Message:\n");
    hasher.update(text.len().to_string());
    hasher.update(text);
    hasher.finalize().into()
}

/// 65 bytes `r || s || v` with `v` one of 0, 1, 27, 28 and `s` in the lower half of the order, so that nobody can make
/// a second signature of the same text from the first (EIP-2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalletSignature {
    scalars: Signature,
    parity: RecoveryId,
}

/// The text is no signature of a wallet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSignature {
    #[error("expected 0x and 130 hex digits")]
    Length,
    #[error("v is none of 0, 1, 27 and 28")]
    Parity,
    #[error("r or s is out of range")]
    Range,
    #[error("s is in the upper half of the order: such a signature can be made from another one")]
    HighS,
}

impl WalletSignature {
    fn from_bytes(bytes: &[u8; 65]) -> Result<Self, InvalidSignature> {
        let odd = match bytes[64] {
            0 | 27 => false,
            1 | 28 => true,
            _ => return Err(InvalidSignature::Parity),
        };
        let scalars = Signature::from_slice(&bytes[..64]).map_err(|_| InvalidSignature::Range)?;
        if scalars.normalize_s() != scalars {
            return Err(InvalidSignature::HighS);
        }
        Ok(Self { scalars, parity: RecoveryId::new(odd, false) })
    }

    /// Whose key made this of `text`; `None` if no key can have made it.
    ///
    /// A signature of some other text gives some other address, so the result says nothing until it is compared with
    /// the address that the text itself names.
    pub fn signer(&self, text: &[u8]) -> Option<Address> {
        let key = VerifyingKey::recover_from_prehash(&prehash(text), &self.scalars, self.parity).ok()?;
        address_of(&key)
    }
}

impl FromStr for WalletSignature {
    type Err = InvalidSignature;
    fn from_str(text: &str) -> Result<Self, InvalidSignature> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        if digits.len() != 130 {
            return Err(InvalidSignature::Length);
        }
        let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| InvalidSignature::Length)?;
        Self::from_bytes(&bytes.try_into().map_err(|_| InvalidSignature::Length)?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use data_encoding::HEXLOWER;
    use k256::ecdsa::SigningKey;

    use super::*;

    /// The first two accounts of the well-known development phrase "test test ... junk".
    pub(crate) const DEV_KEYS: [(&str, &str); 2] = [
        (
            "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
            "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        ),
        (
            "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
            "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        ),
    ];

    pub(crate) fn sign(key: &str, text: &str) -> String {
        let key = SigningKey::from_slice(&HEXLOWER.decode(key.as_bytes()).unwrap()).unwrap();
        let (signature, id) = key.sign_prehash_recoverable(&prehash(text.as_bytes()));
        format!("0x{}{:02x}", HEXLOWER.encode(&signature.to_bytes()), 27 + id.to_byte())
    }

    /// (r, n - s, v xor 1), which verifies wherever nobody asks for the lower half.
    pub(crate) fn mirrored(signature: &str) -> String {
        let bytes = HEXLOWER_PERMISSIVE.decode(&signature.as_bytes()[2..]).unwrap();
        let twin = Signature::from_slice(&bytes[..64]).unwrap();
        let (r, s) = twin.split_scalars();
        let twin = Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
        format!("0x{}{:02x}", HEXLOWER.encode(&twin.to_bytes()), bytes[64] ^ 7)
    }

    /// From the documentation of web3.js, `eth.accounts.sign`.
    const TEXT: &str = "Some data";
    const SIGNATURE: &str = "0xb91467e570a6466aa9e9876cbcd013baba02900b8979d43fe208a4a4f339f5fd\
                             6007e74cd82e037b800186422fc2da167c747ef045e5d18a5f5d4300f8e1a0291c";
    const SIGNER: &str = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23";

    #[test]
    fn golden_hash_and_signer_of_a_published_signature() {
        let hash = HEXLOWER.encode(&prehash(TEXT.as_bytes()));
        assert_eq!(hash, "1da44b586eb0729ff70a73c326926f6ed5a25f5b056e7f47fbc6e58d86871655");
        let signature: WalletSignature = SIGNATURE.parse().unwrap();
        assert_eq!(signature.signer(TEXT.as_bytes()), Some(SIGNER.parse().unwrap()));
    }

    #[test]
    fn golden_addresses_of_published_keys_in_every_form_of_v() {
        for (key, address) in DEV_KEYS {
            let text = sign(key, "hello");
            let v = u8::from_str_radix(&text[130..], 16).unwrap();
            for v in [v, v - 27] {
                let signature: WalletSignature = format!("{}{v:02x}", &text[..130]).parse().unwrap();
                assert_eq!(signature.signer(b"hello"), Some(address.parse().unwrap()));
            }
        }
    }

    #[test]
    fn a_signature_of_another_text_recovers_to_some_address_but_not_to_the_signers() {
        let signature: WalletSignature = SIGNATURE.parse().unwrap();
        let other = signature.signer(b"Some date").unwrap();
        assert_ne!(other, SIGNER.parse().unwrap());
    }

    #[test]
    fn the_mirrored_signature_recovers_to_the_same_address_and_is_refused() {
        let mirrored = mirrored(SIGNATURE);
        assert_eq!(mirrored.parse::<WalletSignature>(), Err(InvalidSignature::HighS));
        let bytes = HEXLOWER.decode(&mirrored.as_bytes()[2..]).unwrap();
        let unchecked = WalletSignature {
            scalars: Signature::from_slice(&bytes[..64]).unwrap(),
            parity: RecoveryId::new(bytes[64] == 28, false),
        };
        // Without the check the same text would have two valid signatures.
        assert_eq!(unchecked.signer(TEXT.as_bytes()), Some(SIGNER.parse().unwrap()));
    }

    #[test]
    fn signatures_of_wrong_length_range_or_v_are_refused() {
        let parse = |text: &str| text.parse::<WalletSignature>().unwrap_err();
        assert_eq!(parse(""), InvalidSignature::Length);
        assert_eq!(parse(&SIGNATURE[..130]), InvalidSignature::Length);
        assert_eq!(parse(&format!("{SIGNATURE}00")), InvalidSignature::Length);
        assert_eq!(parse(&SIGNATURE.replace("b9", "zz")), InvalidSignature::Length);
        for v in [2, 3, 26, 29, 200] {
            assert_eq!(parse(&format!("{}{v:02x}", &SIGNATURE[..130])), InvalidSignature::Parity);
        }
        assert_eq!(parse(&format!("0x{}1b", "0".repeat(128))), InvalidSignature::Range);
        assert_eq!(parse(&format!("0x{}1b", "f".repeat(128))), InvalidSignature::Range);
    }
}
