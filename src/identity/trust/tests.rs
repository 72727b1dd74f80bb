use std::time::Duration;

use bytes::Bytes;

use super::documents::{FRESHNESS_TYPE, ROOT_TYPE};
use super::*;
use crate::digest::{ArtifactId, Digest};
use crate::identity::envelope::Envelope;
use crate::identity::key::{PrivateKey, PublicKey};
use crate::identity::policy::{POLICY_TYPE, Policy, Refusal};

mod file;
mod model;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> UnixTime {
    UnixTime::from_seconds(NOW + seconds)
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(seed)
}

fn public(seeds: &[u8]) -> Vec<PublicKey> {
    seeds.iter().map(|seed| key(*seed).public()).collect()
}

fn signed(payload_type: &'static str, text: String, seeds: &[u8]) -> Envelope {
    let keys: Vec<PrivateKey> = seeds.iter().map(|seed| key(*seed)).collect();
    Envelope::sign(payload_type, Bytes::from(text), &keys.iter().collect::<Vec<_>>())
}

/// Two of the roots 1, 2, 3; policies by 11; no freshness.
fn root(version: u64) -> Root {
    Root {
        version,
        expires: at(1_000_000),
        root: Role { keys: public(&[1, 2, 3]), threshold: 2 },
        policy: PolicyRole { keys: public(&[11]), threshold: 1, least: 1 },
        freshness: None,
    }
}

fn with_freshness(version: u64) -> Root {
    let role = FreshnessRole { keys: public(&[21]), threshold: 1, max_age: Duration::from_secs(60) };
    Root { freshness: Some(role), ..root(version) }
}

fn sign_root(root: &Root, seeds: &[u8]) -> Envelope {
    signed(ROOT_TYPE, root.to_toml().unwrap(), seeds)
}

fn policy_text(version: u64, more: &str) -> String {
    format!("version = {version}\nexpires = \"2030-01-01T00:00:00Z\"\n{more}")
}

fn sign_policy(version: u64, seeds: &[u8]) -> Envelope {
    signed(POLICY_TYPE, policy_text(version, ""), seeds)
}

fn freshness(seconds: u64, root: u64, policy: u64) -> Envelope {
    Freshness { issued: at(seconds), root, policy }.sign(&[&key(21)])
}

fn begun(root: &Root) -> Trusted {
    Trusted::new(&sign_root(root, &[1, 2])).unwrap()
}

fn roots(roots: &[Envelope]) -> Documents {
    Documents { roots: roots.to_vec(), ..Documents::default() }
}

fn policy(envelope: Envelope) -> Documents {
    Documents { policy: Some(envelope), ..Documents::default() }
}

fn fresh(envelope: Envelope) -> Documents {
    Documents { freshness: Some(envelope), ..Documents::default() }
}

fn lapse(trusted: &Trusted, seconds: u64) -> Option<Refusal> {
    trusted.policy().unwrap().lapse(at(seconds))
}

#[test]
fn golden_bytes_of_each_document() {
    let root = with_freshness(2);
    let text = root.to_toml().unwrap();
    let keys = |seeds: &[u8]| public(seeds).iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ");
    let expected = format!(
        "version = 2\nexpires = \"{}\"\n\n[root]\nkeys = [{}]\nthreshold = 2\n\n\
         [policy]\nkeys = [{}]\nthreshold = 1\nleast = 1\n\n[freshness]\nkeys = [{}]\nthreshold = 1\nmax_age = \"1m\"\n",
        root.expires,
        keys(&[1, 2, 3]),
        keys(&[11]),
        keys(&[21])
    );
    assert_eq!(text, expected);
    assert_eq!(Root::parse(&text).unwrap(), root);
    let statement = freshness(0, 2, 41);
    assert_eq!(&statement.payload()[..], b"issued = \"2027-01-15T08:00:00Z\"\nroot = 2\npolicy = 41\n");
    // ed25519 signatures are deterministic, so whole envelopes are.
    let digests = [sign_root(&root, &[1, 2]), sign_policy(41, &[11]), statement]
        .map(|envelope| Digest::of(&envelope.encode()).short());
    assert_eq!(digests, GOLDEN);
}

const GOLDEN: [&str; 3] = ["8482e28c", "316ac992", "6ca8c576"];

#[test]
fn roots_that_contradict_themselves_or_have_unknown_keys_are_refused() {
    let good = root(1).to_toml().unwrap();
    assert!(Root::parse(&good).is_ok());
    for (from, to) in [
        ("version = 1", "version = 0"),
        ("threshold = 2", "threshold = 0"),
        ("threshold = 2", "threshold = 4"),
        ("least = 1", "least = 0"),
        ("least = 1", "lest = 1"),
        ("least = 1", "least = 1\n[freshness]\nkeys = []\nthreshold = 0\nmax_age = \"1m\""),
        ("version = 1", "version = 1\nversion = 2"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert!(matches!(Root::parse(&bad), Err(TrustError::Content { .. })), "{bad}");
    }
    let twice = Root { root: Role { keys: public(&[1, 1]), threshold: 2 }, ..root(1) };
    assert!(twice.to_toml().is_err(), "one key does not make a threshold of two");
    let hasty = FreshnessRole { keys: public(&[21]), threshold: 1, max_age: Duration::from_secs(1) };
    assert!(Root { freshness: Some(hasty), ..root(1) }.to_toml().is_err());
}

#[test]
fn a_configured_root_needs_its_own_threshold() {
    let alone = Trusted::new(&sign_root(&root(1), &[1])).unwrap_err();
    assert!(matches!(alone, TrustError::Unsigned { document: Document::Root, valid: 1, needed: 2, .. }), "{alone}");
    assert!(Trusted::new(&sign_root(&root(1), &[1, 1])).is_err());
    assert!(Trusted::new(&sign_root(&root(1), &[1, 9])).is_err(), "a stranger's signature does not count");
    assert!(Trusted::new(&sign_root(&root(1), &[3, 1])).is_ok());
}

#[test]
fn the_next_root_is_signed_by_the_old_and_by_the_new_keys() {
    let next = Root { root: Role { keys: public(&[3, 4, 5]), threshold: 2 }, ..root(2) };
    for (seeds, taken) in [
        (&[1, 2, 3, 4][..], true),
        (&[2, 3, 5], true),
        (&[1, 2], false),
        (&[4, 5], false),
        (&[3, 4], false),
        (&[1, 2, 4], false),
    ] {
        let mut trusted = begun(&root(1));
        let result = trusted.take(&roots(&[sign_root(&next, seeds)]), at(0));
        assert_eq!(result.is_ok(), taken, "{seeds:?}");
        assert_eq!(trusted.root().version, if taken { 2 } else { 1 });
    }
}

#[test]
fn a_chain_of_roots_is_walked_one_by_one_and_a_gap_or_a_step_back_is_refused() {
    let chain: Vec<Envelope> = (1..=4).map(|version| sign_root(&root(version), &[1, 2])).collect();
    let mut trusted = Trusted::new(&chain[0]).unwrap();
    let gap = trusted.take(&roots(&chain[2..]), at(0)).unwrap_err();
    assert!(matches!(gap, TrustError::Gap { found: 3, current: 1 }), "{gap}");
    trusted.take(&roots(&chain), at(0)).unwrap();
    trusted.take(&roots(&chain[1..2]), at(0)).unwrap();
    assert_eq!(trusted.root().version, 4, "what was walked already is no step back");
    let other = |version| sign_root(&Root { expires: at(5), ..root(version) }, &[1, 2]);
    let back = trusted.take(&roots(&[other(2)]), at(0)).unwrap_err();
    assert!(matches!(back, TrustError::Rollback { found: 2, seen: 4, .. }), "{back}");
    let twin = trusted.take(&roots(&[other(4)]), at(0)).unwrap_err();
    assert!(matches!(twin, TrustError::OtherContent { version: 4, .. }), "{twin}");
}

#[test]
fn roots_are_bounded() {
    let mut trusted = begun(&root(1));
    let chain: Vec<Envelope> = (2..=MAX_ROOTS as u64 + 1).map(|version| sign_root(&root(version), &[1, 2])).collect();
    assert!(matches!(trusted.take(&roots(&chain), at(0)), Err(TrustError::TooManyRoots)));
    assert_eq!(trusted.documents().roots.len(), MAX_ROOTS);
}

#[test]
fn a_policy_needs_the_threshold_of_policy_keys_and_the_root_keys_are_none() {
    let two = Root { policy: PolicyRole { keys: public(&[11, 12]), threshold: 2, least: 1 }, ..root(1) };
    let mut trusted = begun(&two);
    for seeds in [&[11][..], &[11, 11], &[1, 2], &[11, 13]] {
        let refused = trusted.take(&policy(sign_policy(1, seeds)), at(0)).unwrap_err();
        assert!(matches!(refused, TrustError::Unsigned { document: Document::Policy, .. }), "{seeds:?}: {refused}");
    }
    trusted.take(&policy(sign_policy(1, &[12, 11])), at(0)).unwrap();
    assert_eq!(trusted.known().policy, 1);
}

#[test]
fn an_older_policy_does_not_come_back_nor_does_the_same_version_change() {
    let mut trusted = begun(&root(1));
    trusted.take(&policy(sign_policy(5, &[11])), at(0)).unwrap();
    trusted.take(&policy(sign_policy(5, &[11])), at(0)).unwrap();
    let back = trusted.take(&policy(sign_policy(4, &[11])), at(0)).unwrap_err();
    assert!(matches!(back, TrustError::Rollback { found: 4, seen: 5, .. }), "{back}");
    let twin = signed(POLICY_TYPE, policy_text(5, "threshold = 1\n"), &[11]);
    assert!(matches!(trusted.take(&policy(twin), at(0)), Err(TrustError::OtherContent { version: 5, .. })));
    assert_eq!(trusted.policy().unwrap().version, 5);
}

#[test]
fn a_policy_that_jumps_ahead_is_refused() {
    let mut trusted = begun(&root(1));
    trusted.take(&policy(sign_policy(7, &[11])), at(0)).unwrap();
    let jump = trusted.take(&policy(sign_policy(8 + MAX_STEP, &[11])), at(0)).unwrap_err();
    assert!(matches!(jump, TrustError::FastForward { seen: 7, .. }), "{jump}");
    trusted.take(&policy(sign_policy(7 + MAX_STEP, &[11])), at(0)).unwrap();
}

#[test]
fn a_root_that_raises_the_least_version_ends_what_a_thief_began() {
    let mut trusted = begun(&root(1));
    trusted.take(&policy(sign_policy(7, &[11])), at(0)).unwrap();
    trusted.take(&policy(sign_policy(900, &[11])), at(0)).unwrap();
    let least = PolicyRole { keys: public(&[12]), threshold: 1, least: 8 };
    trusted.take(&roots(&[sign_root(&Root { policy: least, ..root(2) }, &[1, 2])]), at(0)).unwrap();
    assert!(trusted.policy().is_none(), "the thief's policy went with the key");
    assert!(trusted.take(&policy(sign_policy(901, &[11])), at(0)).is_err());
    assert!(matches!(
        trusted.take(&policy(sign_policy(7, &[12])), at(0)),
        Err(TrustError::Rollback { found: 7, seen: 8, .. })
    ));
    trusted.take(&policy(sign_policy(8, &[12])), at(0)).unwrap();
}

#[test]
fn other_policy_keys_alone_are_no_way_back() {
    let mut trusted = begun(&root(1));
    trusted.take(&policy(sign_policy(7, &[11])), at(0)).unwrap();
    let role = PolicyRole { keys: public(&[12]), threshold: 1, least: 1 };
    trusted.take(&roots(&[sign_root(&Root { policy: role, ..root(2) }, &[1, 2])]), at(0)).unwrap();
    assert_eq!(trusted.known().policy, 0);
    assert!(matches!(trusted.take(&policy(sign_policy(6, &[12])), at(0)), Err(TrustError::Rollback { .. })));
    let twin = signed(POLICY_TYPE, policy_text(7, "threshold = 1\n"), &[12]);
    assert!(matches!(trusted.take(&policy(twin), at(0)), Err(TrustError::OtherContent { .. })));
    trusted.take(&policy(sign_policy(7, &[12])), at(0)).unwrap();
    assert_eq!(trusted.known().policy, 7, "the same policy, signed anew");
}

#[test]
fn an_expired_policy_or_root_installs_nothing() {
    let mut trusted = begun(&Root { expires: at(100), ..root(1) });
    trusted.take(&policy(sign_policy(1, &[11])), at(0)).unwrap();
    let leeway = UnixTime::LEEWAY.as_secs();
    assert_eq!(lapse(&trusted, 100 + leeway), None);
    assert_eq!(lapse(&trusted, 101 + leeway), Some(Refusal::PolicyExpired(at(100))));
    trusted.take(&roots(&[sign_root(&root(2), &[1, 2])]), at(5_000)).unwrap();
    assert_eq!(lapse(&trusted, 5_000), None, "a successor ends it");
}

#[test]
fn a_server_that_hands_out_nothing_new_is_noticed_within_the_age() {
    let mut trusted = begun(&with_freshness(1));
    trusted.take(&policy(sign_policy(1, &[11])), at(0)).unwrap();
    assert_eq!(lapse(&trusted, 0), Some(Refusal::PolicyUnconfirmed(1)));
    trusted.take(&fresh(freshness(0, 1, 1)), at(0)).unwrap();
    assert_eq!(lapse(&trusted, 60), None);
    assert_eq!(lapse(&trusted, 61), Some(Refusal::PolicyStale(at(60))));
    trusted.take(&fresh(freshness(50, 1, 1)), at(61)).unwrap();
    assert_eq!(lapse(&trusted, 110), None);
    let back = trusted.take(&fresh(freshness(40, 1, 1)), at(61)).unwrap_err();
    assert!(matches!(back, TrustError::Rollback { document: Document::Freshness, .. }), "{back}");
}

#[test]
fn news_that_are_confirmed_and_withheld_stop_installs_at_once() {
    let mut trusted = begun(&with_freshness(1));
    trusted.take(&policy(sign_policy(1, &[11])), at(0)).unwrap();
    for withheld in [freshness(1, 1, 2), freshness(2, 2, 1)] {
        trusted.take(&fresh(withheld), at(2)).unwrap();
        assert_eq!(lapse(&trusted, 2), Some(Refusal::PolicySuperseded(1)));
    }
    trusted.take(&fresh(freshness(3, 1, 2)), at(3)).unwrap();
    trusted.take(&policy(sign_policy(2, &[11])), at(3)).unwrap();
    assert_eq!(lapse(&trusted, 3), None);
    // Published a moment ago, and not yet in the statement: newer is as good.
    trusted.take(&policy(sign_policy(3, &[11])), at(4)).unwrap();
    assert_eq!(lapse(&trusted, 4), None);
}

#[test]
fn a_statement_from_the_future_by_others_or_where_none_is_asked_for_has_no_effect() {
    let mut trusted = begun(&with_freshness(1));
    trusted.take(&policy(sign_policy(1, &[11])), at(0)).unwrap();
    let leeway = UnixTime::LEEWAY.as_secs();
    let future = trusted.take(&fresh(freshness(leeway + 1, 1, 1)), at(0)).unwrap_err();
    assert!(matches!(future, TrustError::Future(_)), "{future}");
    let stranger = Freshness { issued: at(0), root: 1, policy: 1 }.sign(&[&key(11)]);
    assert!(matches!(trusted.take(&fresh(stranger), at(0)), Err(TrustError::Unsigned { .. })));
    assert_eq!(lapse(&trusted, 0), Some(Refusal::PolicyUnconfirmed(1)));
    let mut without = begun(&root(1));
    without.take(&fresh(freshness(0, 1, 9)), at(0)).unwrap();
    assert_eq!(without.freshness(), None);
}

#[test]
fn a_stolen_freshness_key_ends_with_the_next_root() {
    let mut trusted = begun(&with_freshness(1));
    trusted.take(&policy(sign_policy(1, &[11])), at(0)).unwrap();
    trusted.take(&fresh(freshness(0, 1, u64::MAX)), at(0)).unwrap();
    assert_eq!(lapse(&trusted, 0), Some(Refusal::PolicySuperseded(1)));
    let role = FreshnessRole { keys: public(&[22]), threshold: 1, max_age: Duration::from_secs(60) };
    let next = sign_root(&Root { freshness: Some(role), ..root(2) }, &[1, 2]);
    trusted.take(&roots(&[next]), at(1)).unwrap();
    assert_eq!(lapse(&trusted, 1), Some(Refusal::PolicyUnconfirmed(1)));
    let confirmed = Freshness { issued: at(1), root: 2, policy: 1 }.sign(&[&key(22)]);
    trusted.take(&fresh(confirmed), at(1)).unwrap();
    assert_eq!(lapse(&trusted, 1), None);
}

#[test]
fn documents_that_are_too_long_are_refused_whoever_signed_them() {
    let mut trusted = begun(&with_freshness(1));
    let padding = "#".repeat(MAX_ROOT_BYTES);
    let long_root = signed(ROOT_TYPE, root(2).to_toml().unwrap() + &padding, &[1, 2]);
    assert!(matches!(trusted.take(&roots(&[long_root]), at(0)), Err(TrustError::Content { .. })));
    let padding = "#".repeat(crate::identity::policy::MAX_POLICY_BYTES as usize);
    let long_policy = signed(POLICY_TYPE, policy_text(1, "") + &padding, &[11]);
    assert!(matches!(trusted.take(&policy(long_policy), at(0)), Err(TrustError::Content { .. })));
    let long = signed(FRESHNESS_TYPE, "#".repeat(MAX_FRESHNESS_BYTES + 1), &[21]);
    assert!(matches!(trusted.take(&fresh(long), at(0)), Err(TrustError::Content { .. })));
}

#[test]
fn what_is_handed_on_is_what_the_other_lacks() {
    let mut trusted = begun(&with_freshness(1));
    let next = sign_root(&with_freshness(2), &[1, 3]);
    trusted.take(&roots(std::slice::from_ref(&next)), at(0)).unwrap();
    trusted.take(&policy(sign_policy(3, &[11])), at(0)).unwrap();
    let stamp = trusted.stamp();
    trusted.take(&fresh(freshness(0, 2, 3)), at(0)).unwrap();
    assert_ne!(trusted.stamp(), stamp);
    assert!(trusted.after(trusted.known()).is_empty());
    let fresh = Some(freshness(0, 2, 3));
    let behind = Known { issued: 0, ..trusted.known() };
    assert_eq!(trusted.after(behind), Documents { freshness: fresh.clone(), ..Documents::default() });
    // By the newer root, what they have may not stand any more.
    let behind = Known { root: 1, policy: 1_000, ..trusted.known() };
    let expected = Documents { roots: vec![next], policy: Some(sign_policy(3, &[11])), freshness: fresh };
    assert_eq!(trusted.after(behind), expected);
    let mut other = begun(&with_freshness(1));
    other.take(&trusted.documents(), at(0)).unwrap();
    assert_eq!((other.known(), other.stamp()), (trusted.known(), trusted.stamp()));
}

#[test]
fn what_was_admitted_is_confirmed_until_its_artifact_or_its_signers_are_revoked() {
    let [builder, other, stranger] = [11, 12, 13].map(|seed| key(seed).public());
    let signer = |name: &str, key: PublicKey| {
        format!("[[signer]]\nname = \"{name}\"\nkey = \"{key}\"\nfamilies = [\"*\"]\nclass = \"data\"\n")
    };
    let both = signer("builder", builder) + &signer("other", other);
    let parse = |more: String| Policy::parse(&policy_text(1, &(both.clone() + &more))).unwrap();
    let artifact = ArtifactId::of(b"artifact");
    let by_builder = [builder.id()];
    let policy = parse(String::new());
    assert_eq!(policy.keys_of(&["builder".to_owned(), "nobody".to_owned()]), by_builder);
    assert_eq!(policy.confirm(&artifact, &by_builder), Ok(()));
    assert!(matches!(policy.confirm(&artifact, &[stranger.id()]), Err(Refusal::UnknownSigner(_))));
    assert!(!policy.is_revoked(&artifact, &[stranger.id()]), "whom nobody knows is not revoked, either");
    let policy = parse(format!("[revoked]\nkeys = [\"{}\"]\n", builder.id()));
    assert!(matches!(policy.confirm(&artifact, &by_builder), Err(Refusal::KeyRevoked { .. })));
    assert!(policy.is_revoked(&artifact, &by_builder));
    assert_eq!(policy.confirm(&artifact, &[builder.id(), other.id()]), Ok(()), "another signer stands for it");
    assert!(!policy.is_revoked(&artifact, &[builder.id(), other.id()]));
    let policy = parse(format!("[revoked]\nartifacts = [\"{artifact}\"]\n"));
    assert_eq!(policy.confirm(&artifact, &by_builder), Err(Refusal::ArtifactRevoked(artifact)));
    assert!(policy.is_revoked(&artifact, &[]) && !policy.is_revoked(&ArtifactId::of(b"x"), &[]));
}
