//! An artifact as people name it: its id, or enough of its beginning to tell it from the others.

use std::str::FromStr;

use anyhow::bail;

use super::artifacts::list;
use crate::digest::{ArtifactId, DIGEST_LEN};
use crate::local::Client;

/// Fewer hex digits are a slip rather than a name.
const FEWEST: usize = 4;

/// The beginning of an id, or all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen(String);

impl FromStr for Chosen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match digits && (FEWEST..=2 * DIGEST_LEN).contains(&text.len()) {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => Err(format!("not an artifact's id, nor its first {FEWEST} hex digits or more")),
        }
    }
}

impl Chosen {
    /// The id, with the agent's help where only a part of it is known.
    pub(super) async fn of(&self, client: &Client) -> anyhow::Result<ArtifactId> {
        match self.0.parse() {
            Ok(id) => Ok(id),
            Err(_) => self.among(list(client).await?.into_iter().map(|info| info.artifact), "`warmd ls`"),
        }
    }

    /// The one that begins so; `all` is what `listed` shows.
    pub(super) fn among(&self, all: impl IntoIterator<Item = ArtifactId>, listed: &str) -> anyhow::Result<ArtifactId> {
        if let Ok(id) = self.0.parse() {
            return Ok(id);
        }
        let mut found: Vec<ArtifactId> = all.into_iter().filter(|id| id.to_string().starts_with(&self.0)).collect();
        found.dedup();
        match found[..] {
            [id] => Ok(id),
            [] => bail!("no artifact here begins with {}: {listed} has them", self.0),
            [one, other, ..] => {
                bail!("{} artifacts begin with {}, so {one} and {other}: write more", found.len(), self.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> [ArtifactId; 3] {
        [[0xab; 32], [0xac; 32], [0x12; 32]].map(ArtifactId::from_array)
    }

    #[test]
    fn the_beginning_of_an_id_names_the_only_artifact_that_has_it() {
        let chosen: Chosen = "ACAC".parse().unwrap();
        assert_eq!(chosen.among(ids(), "the list").unwrap(), ids()[1]);
        let whole: Chosen = ArtifactId::from_array([7; 32]).to_string().parse().unwrap();
        assert_eq!(whole.among([], "the list").unwrap(), ArtifactId::from_array([7; 32]));
    }

    #[test]
    fn a_beginning_of_none_or_of_several_is_refused_with_what_there_is() {
        let of =
            |text: &str, all: &[ArtifactId]| text.parse::<Chosen>().unwrap().among(all.iter().copied(), "the list");
        assert_eq!(of("ffff", &ids()).unwrap_err().to_string(), "no artifact here begins with ffff: the list has them");
        let alike = [[0xab; 32], {
            let mut other = [0xab; 32];
            other[31] = 0;
            other
        }]
        .map(ArtifactId::from_array);
        assert!(of("abab", &alike).unwrap_err().to_string().starts_with("2 artifacts begin with abab"));
        for wrong in ["abc", "ghij", "", &"a".repeat(65)] {
            assert!(wrong.parse::<Chosen>().is_err(), "{wrong}");
        }
    }
}
