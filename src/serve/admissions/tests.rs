use super::*;
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::PrivateKey;

const HEAD: &str = "version = 1\nexpires = \"2050-01-01T00:00:00Z\"\n";

fn policy(more: &str) -> Policy {
    let signer = |seed| {
        let key = PrivateKey::from_seed(seed).public();
        format!("[[signer]]\nname = \"{seed}\"\nkey = \"{key}\"\nfamilies = [\"*\"]\nclass = \"data\"\n")
    };
    Policy::parse(&format!("{HEAD}{}{}{more}", signer(1), signer(2))).unwrap()
}

fn key(seed: u8) -> KeyId {
    PrivateKey::from_seed(seed).public().id()
}

fn admission(name: &str, seed: u8, entries: &[&str]) -> Admission {
    let release = Release {
        artifact: ArtifactId::of(name.as_bytes()),
        family: "triton".to_owned(),
        identity: IdentityId::of(b"identity"),
        subject: String::new(),
        generation: 1,
        signers: vec![seed.to_string()],
    };
    Admission::new(release, vec![key(seed)], entries.iter().map(|entry| RelPath::new(entry).unwrap()).collect())
}

/// A cache root with entries, each a directory with a file.
fn root(entries: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for entry in entries {
        std::fs::create_dir_all(root.path().join(entry)).unwrap();
        std::fs::write(root.path().join(entry).join("file"), entry).unwrap();
    }
    root
}

fn left(root: &tempfile::TempDir) -> Vec<String> {
    let names = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != crate::caches::CONTROL).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_a_revoked_key_has_signed_is_taken_away_and_nothing_else() {
    let root = root(&["a", "b", "c", "own"]);
    add(root.path(), admission("one", 1, &["a", "b"])).unwrap();
    add(root.path(), admission("two", 2, &["c"])).unwrap();
    assert!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().is_empty());
    let revoking = policy(&format!("[revoked]\nkeys = [\"{}\"]\n", key(1)));
    let withdrawn = withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap();
    assert_eq!((withdrawn.len(), withdrawn[0].entries), (1, 2));
    assert!(matches!(withdrawn[0].reason, Refusal::KeyRevoked { .. }));
    assert_eq!(left(&root), ["c", "own"]);
    assert!(withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap().is_empty(), "once");
}

#[test]
fn a_signer_that_left_the_policy_is_as_one_that_is_revoked_and_an_expired_policy_withdraws_nothing() {
    let root = root(&["a"]);
    add(root.path(), admission("one", 3, &["a"])).unwrap();
    let expired = Policy::parse(&format!(
        "version = 1\nexpires = \"2001-01-01T00:00:00Z\"\n[[signer]]\nname = \"3\"\nkey = \"{}\"\nfamilies = [\"x\"]\nclass = \"data\"\n",
        PrivateKey::from_seed(3).public()
    ));
    assert!(withdraw_now(root.path(), &expired.unwrap(), Whose::Everybodys).unwrap().is_empty());
    assert_eq!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().len(), 1);
    assert!(left(&root).is_empty());
}

#[test]
fn what_an_engine_has_used_stays_while_it_runs_and_goes_before_the_next_start() {
    let root = root(&["a", "b"]);
    add(root.path(), admission("one", 1, &["a"])).unwrap();
    let told = mark_used(root.path()).unwrap();
    assert_eq!(told.iter().map(|(artifact, _)| *artifact).collect::<Vec<_>>(), [ArtifactId::of(b"one")]);
    assert_eq!(mark_used(root.path()).unwrap(), told, "also what an earlier start has used");
    let late = admission("two", 1, &["b"]);
    let artifacts = format!("\"{}\", \"{}\"", late.release.artifact, ArtifactId::of(b"one"));
    add(root.path(), late).unwrap();
    let revoking = policy(&format!("[revoked]\nartifacts = [{artifacts}]\n"));
    assert_eq!(withdraw_now(root.path(), &revoking, Whose::NobodyUsed).unwrap().len(), 1);
    assert_eq!(left(&root), ["a"]);
    assert_eq!(withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap().len(), 1);
    assert!(left(&root).is_empty());
}

#[test]
fn a_root_that_nothing_came_to_is_left_as_it_is() {
    let root = root(&["own"]);
    mark_used(root.path()).unwrap();
    assert!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn the_oldest_leave_a_record_that_is_full() {
    let root = root(&[]);
    let records = Records::make(root.path()).unwrap();
    let many: Vec<Admission> = (0..MAX_ADMISSIONS).map(|n| admission(&n.to_string(), 1, &["a"])).collect();
    records.write(FILE, &many).unwrap();
    add(root.path(), admission("last", 1, &["b"])).unwrap();
    let all: Vec<Admission> = records.read(FILE).unwrap().unwrap();
    assert_eq!((all.len(), &all[0]), (MAX_ADMISSIONS, &many[1]));
    assert_eq!(all[MAX_ADMISSIONS - 1].release.artifact, ArtifactId::of(b"last"));
}

#[test]
fn of_more_than_a_record_holds_the_newest_stay() {
    let root = root(&[]);
    // About 10 MB each.
    let entries: Vec<String> = (0..50_000).map(|n| format!("{n:0200}")).collect();
    let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
    for name in ["one", "two"] {
        add(root.path(), admission(name, 1, &entries)).unwrap();
    }
    let records = Records::find(root.path()).unwrap().unwrap();
    let kept: Vec<Admission> = records.read(FILE).unwrap().unwrap();
    assert_eq!(kept.iter().map(|one| one.release.artifact).collect::<Vec<_>>(), [ArtifactId::of(b"two")]);
}
