use bytes::Bytes;

use super::signer::matches;
use super::*;
use crate::identity::PrivateKey;

const NOW: u64 = 1_800_000_000;

fn now() -> UnixTime {
    UnixTime::from_seconds(NOW)
}

fn policy(signer: &str) -> Policy {
    let key = PrivateKey::from_seed(1).public();
    Policy::parse(&format!(
        "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[[signer]]\nname = \"builder\"\nkey = \"{key}\"\n{signer}"
    ))
    .unwrap()
}

fn facts() -> BTreeMap<String, String> {
    BTreeMap::from([("gpu_name".to_owned(), "NVIDIA H100 80GB HBM3".to_owned())])
}

fn claim(facts: &BTreeMap<String, String>) -> Claim<'_> {
    Claim {
        artifact: ArtifactId::of(b"artifact"),
        family: "vllm-aot",
        class: TrustClass::HostCode,
        subject: "team-a/model",
        facts,
        created: now(),
        expires: None,
    }
}

fn envelope(seed: u8) -> Envelope {
    Envelope::sign("application/x", Bytes::from_static(b"body"), &[&PrivateKey::from_seed(seed)])
}

fn decide(policy: &Policy, claim: &Claim<'_>) -> Result<Vec<String>, Refusal> {
    policy.admit(&policy.verify(&envelope(1))?, claim, now())
}

const WIDE: &str = "families = [\"*\"]\nclass = \"host-code\"\n";

#[test]
fn a_signer_in_scope_is_accepted_by_name() {
    assert_eq!(decide(&policy(WIDE), &claim(&facts())), Ok(vec!["builder".to_owned()]));
}

#[test]
fn an_empty_policy_accepts_nothing() {
    let empty = Policy::parse("version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n").unwrap();
    assert!(matches!(empty.verify(&envelope(1)), Err(Refusal::UnknownSigner(_))));
}

#[test]
fn each_bound_of_the_scope_refuses_by_its_own_name() {
    let facts = facts();
    let claim = claim(&facts);
    let refused = |signer: &str| decide(&policy(signer), &claim).unwrap_err();
    assert!(matches!(refused("families = [\"lora\"]\nclass = \"host-code\""), Refusal::Family { .. }));
    assert!(matches!(refused("families = [\"*\"]\nclass = \"data\""), Refusal::Class { .. }));
    assert!(matches!(refused(&format!("{WIDE}subjects = [\"team-b/*\"]")), Refusal::Subject { .. }));
    assert!(matches!(refused(&format!("{WIDE}facts = {{ gpu_name = \"NVIDIA A100*\" }}")), Refusal::Fact { .. }));
    assert!(matches!(refused(&format!("{WIDE}facts = {{ torch = \"*\" }}")), Refusal::Fact { .. }));
    assert!(matches!(refused(&format!("{WIDE}not_after = \"2026-01-01T00:00:00Z\"")), Refusal::SignerExpired { .. }));
    assert!(matches!(refused(&format!("{WIDE}not_before = \"2029-01-01T00:00:00Z\"")), Refusal::SignerTooEarly { .. }));
}

#[test]
fn every_pair_of_signer_class_and_manifest_class_follows_the_order() {
    let classes = [TrustClass::Data, TrustClass::DeviceCode, TrustClass::HostCode];
    let facts = facts();
    for allowed in classes {
        for class in classes {
            let policy = policy(&format!("families = [\"*\"]\nclass = \"{allowed}\""));
            let claim = Claim { class, ..claim(&facts) };
            assert_eq!(decide(&policy, &claim).is_ok(), class <= allowed, "{allowed} key, {class} manifest");
        }
    }
}

#[test]
fn unknown_keys_and_forged_signatures_are_told_apart() {
    let policy = policy(WIDE);
    assert!(matches!(policy.verify(&envelope(2)), Err(Refusal::UnknownSigner(_))));
    let forged = Envelope::sign("application/x", Bytes::from_static(b"other"), &[&PrivateKey::from_seed(1)]);
    let json = forged.to_json().replace("b3RoZXI=", "Ym9keQ==");
    let forged = Envelope::from_json("application/x", &json).unwrap();
    assert!(matches!(policy.verify(&forged), Err(Refusal::BadSignature(_))));
}

#[test]
fn revoked_keys_and_artifacts_are_refused() {
    let key = PrivateKey::from_seed(1).public().id();
    let revoked = policy(&format!("{WIDE}[revoked]\nkeys = [\"{key}\"]\n"));
    assert!(matches!(revoked.verify(&envelope(1)), Err(Refusal::KeyRevoked { .. })));
    let facts = facts();
    let claim = claim(&facts);
    let revoked = policy(&format!("{WIDE}[revoked]\nartifacts = [\"{}\"]\n", claim.artifact));
    assert!(matches!(decide(&revoked, &claim), Err(Refusal::ArtifactRevoked(_))));
}

#[test]
fn a_key_is_revoked_by_its_id_by_itself_and_by_its_signers_name() {
    let key = PrivateKey::from_seed(1).public();
    for name in [key.id().to_string(), key.to_string(), "builder".to_owned()] {
        let revoked = policy(&format!("{WIDE}[revoked]\nkeys = [\"{name}\"]\n"));
        assert!(matches!(revoked.verify(&envelope(1)), Err(Refusal::KeyRevoked { .. })), "{name}");
        assert_eq!(revoked.revoked_keys(), [key.id()]);
        assert_eq!(revoked.signers_in_force().count(), 0);
    }
    for name in [&key.id().short(), "bulider", ""] {
        let text = format!("version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[revoked]\nkeys = [\"{name}\"]\n");
        let refused = Policy::parse(&text).unwrap_err().to_string();
        assert!(refused.contains(&format!("`{name}`")) && refused.contains("policy check"), "{refused}");
    }
}

#[test]
fn times_of_manifest_and_policy_have_five_minutes_of_leeway() {
    let facts = facts();
    let policy = policy(WIDE);
    let at = |seconds: u64| UnixTime::from_seconds(seconds);
    let expired = |expires| decide(&policy, &Claim { expires: Some(at(expires)), ..claim(&facts) });
    assert!(expired(NOW - 299).is_ok());
    assert!(matches!(expired(NOW - 301), Err(Refusal::ManifestExpired(_))));
    let created = |created| decide(&policy, &Claim { created: at(created), ..claim(&facts) });
    assert!(created(NOW + 299).is_ok());
    assert!(matches!(created(NOW + 301), Err(Refusal::ManifestFromFuture(_))));
    let verified = policy.verify(&envelope(1)).unwrap();
    let late = at(policy.expires.seconds() + 301);
    assert!(matches!(policy.admit(&verified, &claim(&facts), late), Err(Refusal::PolicyExpired(_))));
}

#[test]
fn a_threshold_of_two_needs_two_different_keys() {
    let (one, two) = (PrivateKey::from_seed(1), PrivateKey::from_seed(2));
    let text = format!(
        "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\nthreshold = 2\n\
         [[signer]]\nname = \"a\"\nkey = \"{}\"\n{WIDE}[[signer]]\nname = \"b\"\nkey = \"{}\"\n{WIDE}",
        one.public(),
        two.public()
    );
    let policy = Policy::parse(&text).unwrap();
    let facts = facts();
    let decide = |keys: &[&PrivateKey]| {
        let envelope = Envelope::sign("application/x", Bytes::from_static(b"body"), keys);
        policy.admit(&policy.verify(&envelope)?, &claim(&facts), now())
    };
    assert_eq!(decide(&[&one]), Err(Refusal::Threshold { valid: 1, needed: 2 }));
    assert_eq!(decide(&[&one, &one]), Err(Refusal::Threshold { valid: 1, needed: 2 }));
    assert!(decide(&[&one, &two]).is_ok());
}

#[test]
fn documents_that_contradict_themselves_or_have_unknown_keys_are_refused() {
    let head = "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n";
    for bad in ["treshold = 1", "threshold = 0", "expiry = 1"] {
        assert!(Policy::parse(&format!("{head}{bad}\n")).is_err(), "{bad}");
    }
    assert!(Policy::parse("version = 0\nexpires = \"2030-01-01T00:00:00Z\"\n").is_err());
    assert!(Policy::parse("version = 1\nexpires = \"tomorrow\"\n").is_err());
}

#[test]
fn a_signed_policy_needs_the_roots() {
    let (root, stranger) = (PrivateKey::from_seed(8), PrivateKey::from_seed(9));
    let text = "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n";
    let signed = |key: &PrivateKey| Envelope::sign(POLICY_TYPE, Bytes::from_static(text.as_bytes()), &[key]).to_json();
    assert!(Policy::parse_signed(&signed(&root), &[root.public()], 1).is_ok());
    let error = Policy::parse_signed(&signed(&stranger), &[root.public()], 1).unwrap_err();
    assert!(matches!(error, PolicyError::Unsigned { valid: 0, needed: 1 }));
    assert!(Policy::parse_signed(&signed(&root), &[root.public()], 0).is_ok());
    assert!(Policy::parse_signed(&signed(&stranger), &[], 0).is_err());
}

#[test]
fn an_older_or_altered_policy_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let history = PolicyHistory::new(dir.path());
    let text = |version: u64| format!("version = {version}\nexpires = \"2030-01-01T00:00:00Z\"\n");
    let accept = |text: &str| history.accept(&Policy::parse(text).unwrap(), text.as_bytes());
    accept(&text(5)).unwrap();
    accept(&text(5)).unwrap();
    let rollback = accept(&text(4)).unwrap_err();
    assert!(matches!(rollback, PolicyError::Rollback { found: 4, seen: 5, .. }));
    assert!(rollback.to_string().contains("policy.seen"), "the way out: {rollback}");
    assert!(matches!(accept(&(text(5) + "threshold = 1\n")), Err(PolicyError::SameVersion(5))));
    accept(&text(6)).unwrap();
}

#[test]
fn patterns_match_whole_texts() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("*", "anything", true),
        ("lora", "lora", true),
        ("lora", "lora2", false),
        ("vllm-*", "vllm-aot", true),
        ("vllm-*", "xvllm-aot", false),
        ("a*b*c", "a-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("*aot", "vllm-aot", true),
        ("a*a", "a", false),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
    }
}
