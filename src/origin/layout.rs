//! Every name in the store, below the prefix of the URL.
//!
//! ```text
//! artifacts/<artifact id>                                   the signed envelope
//! chunks/ab/<digest>                                        encoded bytes of one chunk, as in a node's store
//! index/<identity id>/<created>-<generation>-<artifact id>  message `Summary` of proto/metadata.proto
//! ```
//!
//! `created` (Unix seconds) and `generation` are subtracted from 2^64 - 1 and written as 16 hex digits, so that the newest
//! comes first in every listing by name, and one bounded listing finds it.

use object_store::path::Path;

use crate::digest::{ArtifactId, Digest, IdentityId};
use crate::protocol::metadata::Summary;

const INDEX: &str = "index";

pub(super) fn artifact(id: &ArtifactId) -> Path {
    Path::from_iter(["artifacts".to_owned(), id.to_string()])
}

pub(super) fn chunk(digest: &Digest) -> Path {
    let name = digest.to_string();
    Path::from_iter(["chunks", &name[..2], &name])
}

pub(super) fn index() -> Path {
    Path::from(INDEX)
}

pub(super) fn entries(identity: &IdentityId) -> Path {
    Path::from_iter([INDEX.to_owned(), identity.to_string()])
}

pub(super) fn entry(summary: &Summary) -> Path {
    let (created, generation) = (u64::MAX - summary.created.seconds(), u64::MAX - summary.generation);
    entries(&summary.identity).join(format!("{created:016x}-{generation:016x}-{}", summary.artifact))
}

/// A listing may name anything.
pub(super) fn is_entry_of(path: &Path, identity: Option<&IdentityId>) -> bool {
    let parts: Vec<_> = path.parts().collect();
    let [index, owner, name] = parts.as_slice() else { return false };
    let owner = owner.as_ref().parse::<IdentityId>();
    let mut fields = name.as_ref().splitn(3, '-');
    let mut number = || fields.next().is_some_and(|text| text.len() == 16 && u64::from_str_radix(text, 16).is_ok());
    index.as_ref() == INDEX
        && owner.is_ok_and(|owner| identity.is_none_or(|identity| *identity == owner))
        && number()
        && number()
        && fields.next().is_some_and(|id| id.parse::<ArtifactId>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ContentId, KeyId};
    use crate::identity::UnixTime;

    fn summary(created: u64, generation: u64) -> Summary {
        Summary {
            artifact: ArtifactId::of(b"artifact"),
            identity: IdentityId::of(b"identity"),
            content: ContentId::of(b"content"),
            family: "lora".parse().unwrap(),
            subject: "".into(),
            generation,
            created: UnixTime::from_seconds(created),
            size: 3,
            wire_size: 2,
            files: 1,
            chunks: 1,
            signer: KeyId::of(b"signer"),
            compile_ms: 0,
        }
    }

    #[test]
    fn the_names_are_these() {
        let id = ArtifactId::of(b"artifact");
        assert_eq!(
            artifact(&id).as_ref(),
            "artifacts/e068dc010bf492707f7e8d896457770f24703784cfe76bd785f8b76cc010bbf3"
        );
        assert_eq!(
            chunk(&Digest::of(b"")).as_ref(),
            "chunks/af/af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        assert_eq!(
            entry(&summary(1_800_000_000, 7)).as_ref(),
            "index/78556dc9bafdbe46049cacf3dc16fe70f259d220b9d2898771bf3a6c56d7d0a6/\
             ffffffff94b62dff-fffffffffffffff8-e068dc010bf492707f7e8d896457770f24703784cfe76bd785f8b76cc010bbf3"
        );
    }

    #[test]
    fn the_newest_comes_first_by_name() {
        let order = [summary(20, 1), summary(10, 12), summary(10, 2), summary(9, 99)];
        let names: Vec<Path> = order.iter().map(entry).collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn only_names_of_this_layout_are_entries() {
        let name = entry(&summary(1, 1));
        let identity = IdentityId::of(b"identity");
        assert!(is_entry_of(&name, None) && is_entry_of(&name, Some(&identity)));
        assert!(!is_entry_of(&name, Some(&IdentityId::of(b"other"))));
        let entries = entries(&identity);
        for other in [&entries, &entries.clone().join("README"), &name.clone().join("below"), &index()] {
            assert!(!is_entry_of(other, None), "{other}");
        }
    }
}
