use super::*;
use crate::artifact::SourceIdentity;
use crate::caches::{CacheFamily, Fact};
use crate::identity::PrivateKey;
use crate::serve::difference::{LAUNCH, encode, in_words};
use crate::serve::quarantine::Quarantined;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn identity(facts: &[(&str, &str)]) -> SourceIdentity {
    SourceIdentity::new("vllm-aot".parse().unwrap(), map(facts)).unwrap()
}

const HERE: &[(&str, &str)] = &[("torch", "2.14.0"), ("model", "./m")];

fn here() -> Outlook {
    let family = CacheFamily::by_name("vllm-aot").unwrap();
    let prospect = Prospect { family, root: "/cache".into(), identity: identity(HERE) };
    Outlook { prospects: vec![prospect], ..Outlook::default() }
}

fn neighbour(facts: &[(&str, &str)], created: u64) -> Neighbour {
    Neighbour {
        family: "vllm-aot".to_owned(),
        identity: identity(facts).id(),
        subject: "key".to_owned(),
        created: UnixTime::from_seconds(created),
        holders: 2,
        artifacts: 3,
        described: Ok(Described { facts: map(facts), ..Described::default() }),
    }
}

fn offered(subject: &str, created: u64, bytes: u64, signer: KeyId) -> Offered {
    let (identity, created) = (identity(HERE).id(), UnixTime::from_seconds(created));
    let (artifact, holders) = (ArtifactId::of(subject.as_bytes()), created.seconds() as u32);
    Offered { artifact, identity, subject: subject.to_owned(), generation: 1, created, bytes, signer, holders }
}

fn finding(answers: &Answers, launch: &BTreeMap<String, String>, policy: Option<&Policy>) -> Finding {
    by_rules(answers, launch, Rules { policy, quarantine: None })
}

fn by_rules(answers: &Answers, launch: &BTreeMap<String, String>, rules: Rules<'_>) -> Finding {
    let mut found = diagnose(&here(), launch, Some(answers), rules);
    assert_eq!(found.len(), 1);
    found.remove(0).finding
}

#[test]
fn a_near_miss_names_every_fact_that_differs_and_the_nearest_is_first() {
    let far = neighbour(&[("torch", "2.13.1"), ("model", "./m/"), ("revision", "main")], 9);
    let close = neighbour(&[("torch", "2.13.1"), ("model", "./m")], 5);
    let unread = Neighbour { described: Err("signed by nobody".to_owned()), ..neighbour(&[("torch", "1")], 7) };
    let answers = Answers { neighbours: vec![far, unread, close], ..Answers::default() };
    let Finding::NearMiss { near } = finding(&answers, &BTreeMap::new(), None) else { panic!("no near miss") };
    let told: Vec<Option<String>> = near.iter().map(|one| one.differences.as_deref().map(in_words)).collect();
    let expected = [
        Some("torch 2.14.0 here, 2.13.1 there"),
        Some("model ./m here, ./m/ there; revision absent here, main there; torch 2.14.0 here, 2.13.1 there"),
        None,
    ];
    assert_eq!(told, expected.map(|text| text.map(str::to_owned)));
    assert_eq!(near[2].unknown.as_deref(), Some("signed by nobody"));
}

#[test]
fn a_hit_counts_each_subject_once_and_names_the_argument_that_makes_another_key() {
    let launch = |tokens: &str| map(&[("--model", "./m"), ("--max-num-batched-tokens", tokens)]);
    let signer = KeyId::of(b"signer");
    let other = launch("4096");
    let mut variant = neighbour(HERE, 5);
    variant.described =
        Ok(Described { attributes: map(&[(LAUNCH, &encode(&other).unwrap())]), ..Described::default() });
    let silent = neighbour(HERE, 6);
    let answers = Answers {
        offered: vec![offered("a", 1, 10, signer), offered("a", 2, 20, signer), offered("b", 1, 5, signer)],
        neighbours: vec![silent, variant, neighbour(&[("torch", "2.13.1")], 1)],
    };
    let Finding::Hit { artifacts, holders, bytes, newest, variants } = finding(&answers, &launch("2048"), None) else {
        panic!("no hit")
    };
    assert_eq!((artifacts, holders, bytes, newest.seconds()), (3, 2, 25, 2));
    assert_eq!(variants.len(), 2);
    let differing = variants[0].differences.as_deref().map(in_words);
    assert_eq!(differing.as_deref(), Some("--max-num-batched-tokens 2048 here, 4096 there"));
    assert!(variants[1].unknown.as_deref().is_some_and(|why| why.contains("did not say")));
}

#[test]
fn what_only_strangers_signed_is_no_hit() {
    let known = PrivateKey::generate().unwrap().public();
    let policy = format!(
        "version = 1\nexpires = \"2050-01-01T00:00:00Z\"\n[[signer]]\nname = \"b\"\nkey = \"{known}\"\n\
         families = [\"*\"]\nclass = \"host-code\"\n"
    );
    let policy = Policy::parse(&policy).unwrap();
    let stranger = KeyId::of(b"stranger");
    let mut answers = Answers { offered: vec![offered("a", 1, 10, stranger)], ..Answers::default() };
    let untrusted = Finding::Untrusted { artifacts: 1, signers: vec![stranger] };
    assert_eq!(finding(&answers, &BTreeMap::new(), Some(&policy)), untrusted);
    answers.offered.push(offered("a", 1, 10, known.id()));
    let hit = finding(&answers, &BTreeMap::new(), Some(&policy));
    assert!(matches!(hit, Finding::Hit { artifacts: 1, .. }), "{hit:?}");
}

#[test]
fn whoever_else_has_signed_counts_where_the_manifest_was_looked_at() {
    let [first, second] = [1, 2].map(|seed| PrivateKey::from_seed(seed).public());
    let policy = |revoked: &str| {
        let signer = |name, key| {
            format!("[[signer]]\nname = \"{name}\"\nkey = \"{key}\"\nfamilies = [\"*\"]\nclass = \"host-code\"\n")
        };
        let head = "version = 1\nexpires = \"2050-01-01T00:00:00Z\"\n";
        let signers = signer("one", first) + &signer("two", second);
        Policy::parse(&format!("{head}{signers}[revoked]\nkeys = [{revoked}]\n")).unwrap()
    };
    let by_second = Described { signers: vec!["two".to_owned()], ..Described::default() };
    let manifest = Neighbour { described: Ok(by_second), ..neighbour(HERE, 1) };
    for claimed in [first.id(), KeyId::of(b"stranger")] {
        let offered = vec![offered("key", 1, 10, claimed)];
        let answers = Answers { offered, neighbours: vec![manifest.clone()] };
        let found = |revoked| finding(&answers, &BTreeMap::new(), Some(&policy(revoked)));
        assert!(matches!(found("\"one\""), Finding::Hit { .. }), "{:?}", found("\"one\""));
        assert_eq!(found("\"two\""), Finding::Revoked { artifacts: 1 });
    }
}

#[test]
fn what_is_revoked_or_in_quarantine_is_no_hit() {
    let key = PrivateKey::generate().unwrap().public();
    let policy = |revoked: &str| {
        let signer = format!("[[signer]]\nname = \"b\"\nkey = \"{key}\"\nfamilies = [\"*\"]\nclass = \"host-code\"\n");
        let head = "version = 1\nexpires = \"2050-01-01T00:00:00Z\"\n";
        Policy::parse(&format!("{head}{signer}[revoked]\n{revoked}\n")).unwrap()
    };
    let answers = Answers { offered: vec![offered("a", 1, 10, key.id())], ..Answers::default() };
    let artifact = answers.offered[0].artifact;
    for revoked in ["keys = [\"b\"]".to_owned(), format!("artifacts = [\"{artifact}\"]")] {
        let found = finding(&answers, &BTreeMap::new(), Some(&policy(&revoked)));
        assert_eq!(found, Finding::Revoked { artifacts: 1 }, "{revoked}");
    }
    let release = Release {
        artifact,
        family: "vllm-aot".to_owned(),
        identity: identity(HERE).id(),
        subject: "a".to_owned(),
        generation: 1,
        signers: vec!["b".to_owned()],
    };
    let since = UnixTime::from_seconds(1);
    let quarantined = Quarantined { release, since, reason: "it crashed".to_owned() };
    let (policy, quarantine) = (policy(""), Quarantine::from_iter([quarantined]));
    let rules = Rules { policy: Some(&policy), quarantine: Some(&quarantine) };
    let found = by_rules(&answers, &BTreeMap::new(), rules);
    let Finding::Quarantined { artifacts: 1, reason } = &found else { panic!("{found:?}") };
    assert!(reason.contains("it crashed") && reason.contains("warmd quarantine clear"), "{reason}");
    assert!(matches!(finding(&answers, &BTreeMap::new(), Some(&policy)), Finding::Hit { artifacts: 1, .. }));
}

#[test]
fn without_an_agent_nothing_is_claimed_and_problems_come_first() {
    let mut outlook = here();
    let fact = Fact::Triton;
    outlook.absent.push(IdentityError::NotHere { family: "quack", fact, why: "not installed".to_owned() });
    outlook.failed.push(IdentityError::Failed { family: "triton", fact, why: "damaged".to_owned() });
    let told: Vec<(&str, Finding)> = diagnose(&outlook, &BTreeMap::new(), None, Rules::default())
        .into_iter()
        .map(|one| (one.family, one.finding))
        .collect();
    let expected = [
        ("triton", Finding::Failed { reason: "triton could not be read: damaged".to_owned() }),
        ("vllm-aot", Finding::NotAsked),
        ("quack", Finding::NotHere { reason: "triton is absent (not installed)".to_owned() }),
    ];
    assert_eq!(told, expected);
    assert_eq!(finding(&Answers::default(), &BTreeMap::new(), None), Finding::NobodyHasAny);
}
