use super::*;
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::{PrivateKey, TrustConfig};
use crate::serve::trust::Trust;

const HEAD: &str = "version = 1\nexpires = \"2050-01-01T00:00:00Z\"\n";

fn policy(more: &str) -> Policy {
    Policy::parse(&policy_text(more)).unwrap()
}

fn policy_text(more: &str) -> String {
    let signer = |seed| {
        let key = PrivateKey::from_seed(seed).public();
        format!("[[signer]]\nname = \"{seed}\"\nkey = \"{key}\"\nfamilies = [\"*\"]\nclass = \"data\"\n")
    };
    format!("{HEAD}{}{}{more}", signer(1), signer(2))
}

fn revoking(seed: u8) -> String {
    policy_text(&format!("[revoked]\nkeys = [\"{}\"]\n", key(seed)))
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

fn withdrawn(root: &tempfile::TempDir, policy: &Policy) -> usize {
    withdraw_now(root.path(), policy, Whose::Everybodys).unwrap().withdrawn.len()
}

#[test]
fn what_a_revoked_key_has_signed_is_taken_away_and_nothing_else() {
    let root = root(&["a", "b", "c", "own"]);
    add(root.path(), admission("one", 1, &["a", "b"])).unwrap();
    add(root.path(), admission("two", 2, &["c"])).unwrap();
    assert!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().withdrawn.is_empty());
    let revoking = policy(&format!("[revoked]\nkeys = [\"{}\"]\n", key(1)));
    let withdrawn = withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap().withdrawn;
    assert_eq!((withdrawn.len(), withdrawn[0].entries), (1, 2));
    assert!(matches!(withdrawn[0].reason, Refusal::KeyRevoked { .. }));
    assert_eq!(left(&root), ["c", "own"]);
    assert!(withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap().withdrawn.is_empty(), "once");
}

#[test]
fn a_signer_that_left_the_policy_is_as_one_that_is_revoked_and_an_expired_policy_withdraws_nothing() {
    let root = root(&["a"]);
    add(root.path(), admission("one", 3, &["a"])).unwrap();
    let expired = Policy::parse(&format!(
        "version = 1\nexpires = \"2001-01-01T00:00:00Z\"\n[[signer]]\nname = \"3\"\nkey = \"{}\"\nfamilies = [\"x\"]\nclass = \"data\"\n",
        PrivateKey::from_seed(3).public()
    ));
    assert!(withdraw_now(root.path(), &expired.unwrap(), Whose::Everybodys).unwrap().withdrawn.is_empty());
    assert_eq!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().withdrawn.len(), 1);
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
    assert_eq!(withdraw_now(root.path(), &revoking, Whose::NobodyUsed).unwrap().withdrawn.len(), 1);
    assert_eq!(left(&root), ["a"]);
    assert_eq!(withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap().withdrawn.len(), 1);
    assert!(left(&root).is_empty());
}

#[test]
fn a_root_that_nothing_came_to_is_left_as_it_is() {
    let root = root(&["own"]);
    mark_used(root.path()).unwrap();
    assert!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().withdrawn.is_empty());
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

/// Where records lie.
fn control(root: &tempfile::TempDir) -> PathBuf {
    root.path().join(crate::caches::CONTROL)
}

#[test]
fn however_much_came_none_of_it_is_forgotten() {
    let root = root(&["a"]);
    // About 10 MB each: more than one record holds.
    let entries: Vec<String> = (0..50_000).map(|n| format!("{n:0200}")).collect();
    let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
    add(root.path(), admission("first", 1, &["a"])).unwrap();
    for name in ["one", "two"] {
        add(root.path(), admission(name, 2, &entries)).unwrap();
    }
    let used: Vec<ArtifactId> = mark_used(root.path()).unwrap().into_iter().map(|(artifact, _)| artifact).collect();
    assert_eq!(used, ["first", "one", "two"].map(|name| ArtifactId::of(name.as_bytes())));
    let revoking = policy(&format!("[revoked]\nkeys = [\"{}\"]\n", key(1)));
    assert_eq!(withdrawn(&root, &revoking), 1);
    assert!(left(&root).is_empty());
}

#[test]
fn what_an_earlier_version_has_kept_is_known() {
    let root = root(&["a", "b"]);
    let records = crate::serve::records::Records::make(root.path()).unwrap();
    let used = Admission { used: true, ..admission("one", 1, &["a"]) };
    records.write("admitted.json", &[used, admission("two", 1, &["b"])]).unwrap();
    let revoking = policy(&format!("[revoked]\nkeys = [\"{}\"]\n", key(1)));
    assert_eq!(withdraw_now(root.path(), &revoking, Whose::NobodyUsed).unwrap().withdrawn.len(), 1);
    assert_eq!((left(&root), control(&root).join("admitted.json").exists()), (vec!["a".to_owned()], false));
    assert_eq!(withdrawn(&root, &revoking), 1);
}

#[test]
fn a_damaged_record_is_told_until_somebody_has_seen_to_it_and_hides_no_other() {
    for of_all in [false, true] {
        let root = root(&["a", "b"]);
        add(root.path(), admission("good", 1, &["a"])).unwrap();
        add(root.path(), admission("bad", 1, &["b"])).unwrap();
        let name = match of_all {
            true => "admitted.json".to_owned(),
            false => format!("admitted/{}.json", ArtifactId::of(b"bad")),
        };
        std::fs::write(control(&root).join(&name), "torn").unwrap();
        let aside = control(&root).join(format!("{name}.damaged"));
        let revoking = policy(&format!("[revoked]\nartifacts = [\"{}\"]\n", ArtifactId::of(b"good")));
        let told = withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap();
        assert_eq!((told.withdrawn.len(), told.damaged), (1, vec![aside.clone()]));
        add(root.path(), admission("bad", 1, &["b"])).unwrap();
        assert_eq!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().damaged.len(), 1);
        std::fs::remove_file(aside).unwrap();
        assert!(withdraw_now(root.path(), &policy(""), Whose::Everybodys).unwrap().damaged.is_empty());
    }
}

#[test]
fn an_entry_that_cannot_be_taken_away_keeps_nothing_else() {
    let root = root(&["a/x", "b", "c"]);
    add(root.path(), admission("one", 1, &["a/x", "b"])).unwrap();
    add(root.path(), admission("two", 1, &["c"])).unwrap();
    // Somebody has put a link in the place of its directory.
    std::fs::rename(root.path().join("a"), root.path().join("moved")).unwrap();
    std::os::unix::fs::symlink("moved", root.path().join("a")).unwrap();
    let revoking = Policy::parse(&revoking(1)).unwrap();
    for goes in [1, 0] {
        let withdrawal = withdraw_now(root.path(), &revoking, Whose::Everybodys).unwrap();
        assert_eq!((withdrawal.withdrawn.len(), withdrawal.failed.len()), (goes, 1), "it is tried again");
        assert_eq!(left(&root), ["a", "moved"]);
    }
    std::fs::remove_file(root.path().join("a")).unwrap();
    std::fs::rename(root.path().join("moved"), root.path().join("a")).unwrap();
    assert_eq!(withdrawn(&root, &revoking), 1);
}

#[test]
fn what_came_from_others_is_signed_anew_only_while_they_are_trusted() {
    let (dir, root) = (tempfile::tempdir().unwrap(), root(&["a", "b", "own"]));
    add(root.path(), admission("one", 1, &["a"])).unwrap();
    add(root.path(), admission("two", 2, &["b"])).unwrap();
    let path = dir.path().join("policy.toml");
    let of = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Trust::file(TrustConfig { policy: Some(path.clone()), ..TrustConfig::default() })
    };
    for (trust, expected) in [
        (of(&policy_text("")), &[][..]),
        (of(&revoking(1)), &["a"]),
        (of(&revoking(1).replace("2050", "2001")), &["a"]),
        (Trust::nobody("no trust policy"), &["a", "b"]),
    ] {
        let disowned = disowned(root.path(), &trust).unwrap();
        assert_eq!(disowned.iter().map(RelPath::as_str).collect::<Vec<_>>(), expected);
    }
}

/// What is said of a root of a revoked key's entry `a`, before a start by `trust`.
async fn said_before_a_start(trust: Trust) -> (Vec<String>, String) {
    let root = root(&["a"]);
    add(root.path(), admission("one", 1, &["a"])).unwrap();
    let told = Arc::new(std::sync::Mutex::new(String::new()));
    let log = told.clone();
    let say: Say = Arc::new(move |line| log.lock().unwrap().push_str(line));
    trust.withdraw_all(&[root.path().to_owned()], None, &say).await;
    (left(&root), told.lock().unwrap().clone())
}

#[tokio::test]
async fn what_is_revoked_goes_by_a_policy_that_expired_too_and_where_transfers_are_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let file = || Trust::file(TrustConfig { policy: Some(path.clone()), ..TrustConfig::default() });
    std::fs::write(&path, revoking(1).replace("2050", "2001")).unwrap();
    let (left, told) = said_before_a_start(file()).await;
    assert!(
        file().policy().unwrap_err().contains("expired") && left.is_empty() && told.contains("taken away"),
        "{told}"
    );
    std::fs::write(&path, revoking(1)).unwrap();
    let off = file().switched_off("off");
    assert_eq!(off.policy().unwrap_err(), "off");
    assert!(said_before_a_start(off).await.0.is_empty());
    for unknown in [Trust::nobody("no trust policy"), Trust::file(TrustConfig::default())] {
        let (left, told) = said_before_a_start(unknown).await;
        assert!(left == ["a"] && told.contains("REVOKED") && told.contains("no trust policy"), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_file_that_changes_takes_away_what_no_engine_has_used() {
    let (dir, root) = (tempfile::tempdir().unwrap(), root(&["a", "b"]));
    add(root.path(), admission("one", 1, &["a"])).unwrap();
    mark_used(root.path()).unwrap();
    add(root.path(), admission("two", 1, &["b"])).unwrap();
    let path = dir.path().join("policy.toml");
    std::fs::write(&path, policy_text("")).unwrap();
    let trust = Trust::file(TrustConfig { policy: Some(path.clone()), ..TrustConfig::default() });
    std::fs::write(dir.path().join("new"), revoking(1)).unwrap();
    std::fs::rename(dir.path().join("new"), &path).unwrap();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let say: Say = Arc::new(move |line| told.send(line.to_owned()).unwrap());
    let (socket, roots) = (dir.path().join("none"), [root.path().to_owned()]);
    let line = tokio::select! {
        () = trust.watch(&socket, &roots, &say) => None,
        line = heard.recv() => line,
    };
    assert!(line.unwrap().contains("1 entries of"));
    assert_eq!(left(&root), ["a"]);
}
