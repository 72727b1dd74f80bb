//! Texts from other machines that end in a terminal or on a page.

use std::fmt;

use serde::{Deserialize, Serialize};

/// At most `N` bytes; no control characters, no line breaks, nothing that is invisible or turns the direction of writing.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const N: usize>(String);

/// The text is too long, or has characters that could mislead whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a plain text of at most {0} bytes")]
pub struct InvalidText(usize);

impl<const N: usize> Text<N> {
    /// Cut at a character's end where it is too long; a `?` for what it must not have.
    pub fn cut(text: &str) -> Self {
        let mut cut = String::with_capacity(text.len().min(N));
        for c in text.chars().map(|c| if is_plain(c) { c } else { '?' }) {
            if cut.len() + c.len_utf8() > N {
                break;
            }
            cut.push(c);
        }
        Self(cut)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn is_plain(c: char) -> bool {
    let misleads = matches!(c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !misleads
}

impl<const N: usize> TryFrom<String> for Text<N> {
    type Error = InvalidText;
    fn try_from(text: String) -> Result<Self, InvalidText> {
        if text.len() <= N && text.chars().all(is_plain) { Ok(Self(text)) } else { Err(InvalidText(N)) }
    }
}

impl<const N: usize> From<Text<N>> for String {
    fn from(text: Text<N>) -> Self {
        text.0
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An empty text is none.
pub(super) mod option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Text;

    pub(in super::super) fn serialize<S: Serializer, const N: usize>(
        text: &Option<Text<N>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        text.as_ref().filter(|text| !text.is_empty()).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<Option<Text<N>>, D::Error> {
        Ok(Option::<Text<N>>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
    }
}
