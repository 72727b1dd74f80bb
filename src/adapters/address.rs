//! Ethereum addresses: who an adapter belongs to, and who signed a request.

use std::fmt;
use std::str::FromStr;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha3::{Digest, Keccak256};

/// The text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("`{0}` is no address: expected `0x` and 40 hex digits")]
    Form(String),
    #[error(
        "`{found}` is mistyped: its upper and lower case (EIP-55) fit no address of these digits, which is `{expected}`"
    )]
    Checksum { found: String, expected: Address },
}

/// An account: 20 bytes, compared as such. Text form: `0x` and 40 hex digits, whose case is a checksum (EIP-55); read also
/// in one case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address([u8; 20]);

impl Address {
    pub const fn from_array(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// <https://eips.ethereum.org/EIPS/eip-55>: a letter is upper case where the digit of the hash at its place is 8 or more.
    fn checksummed(&self) -> String {
        let digits = HEXLOWER.encode(&self.0);
        let hash = HEXLOWER.encode(&Keccak256::digest(digits.as_bytes()));
        let cased = digits.chars().zip(hash.chars()).map(|(c, h)| if h >= '8' { c.to_ascii_uppercase() } else { c });
        cased.collect()
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let form = || AddressError::Form(super::json::shown(text));
        let digits = text.strip_prefix("0x").ok_or_else(form)?;
        let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| form())?;
        let address = Self(bytes.try_into().map_err(|_| form())?);
        let has = |of: fn(&u8) -> bool| digits.as_bytes().iter().any(of);
        let mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
        if mixed && address.checksummed() != digits {
            return Err(AddressError::Checksum { found: text.to_owned(), expected: address });
        }
        Ok(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", self.checksummed())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of EIP-55.
    const EXAMPLES: [&str; 4] = [
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ];

    #[test]
    fn the_standards_own_examples_round_trip_in_every_case() {
        for text in EXAMPLES {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(text.to_lowercase().parse(), Ok(address));
            assert_eq!(format!("0x{}", text[2..].to_uppercase()).parse(), Ok(address));
        }
    }

    #[test]
    fn one_letter_of_the_wrong_case_is_a_mistyped_address() {
        let wrong = EXAMPLES[0].replacen('A', "a", 1);
        let error = wrong.parse::<Address>().unwrap_err();
        assert!(error.to_string().contains(&wrong) && error.to_string().contains(EXAMPLES[0]));
    }

    #[test]
    fn what_has_not_forty_digits_is_no_address() {
        let bare = &EXAMPLES[0][2..];
        for text in ["", "0x", bare, &format!("0x{}", &bare[1..]), &format!("0x{bare}0"), "0xzz", "0X00"] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::Form(_))), "{text}");
        }
    }
}
