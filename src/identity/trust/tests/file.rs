//! What survives a restart.

use super::*;

fn sample() -> Trusted {
    let mut trusted = begun(&with_freshness(1));
    trusted.take(&roots(&[sign_root(&with_freshness(2), &[1, 2])]), at(0)).unwrap();
    trusted.take(&policy(sign_policy(5, &[11])), at(0)).unwrap();
    trusted.take(&fresh(freshness(9, 2, 5)), at(9)).unwrap();
    trusted
}

#[test]
fn a_restart_is_no_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = TrustFile::new(dir.path());
    let first = sign_root(&with_freshness(1), &[1, 2]);
    assert_eq!(file.load(&first).unwrap().known().policy, 0);
    file.save(&sample()).unwrap();
    let mut again = file.load(&first).unwrap();
    assert_eq!((again.known(), again.stamp()), (sample().known(), sample().stamp()));
    assert!(matches!(again.take(&policy(sign_policy(4, &[11])), at(9)), Err(TrustError::Rollback { .. })));
    assert!(matches!(again.take(&fresh(freshness(8, 2, 5)), at(9)), Err(TrustError::Rollback { .. })));
}

#[test]
fn what_was_seen_is_remembered_without_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let file = TrustFile::new(dir.path());
    let mut trusted = sample();
    let role = PolicyRole { keys: public(&[12]), threshold: 1, least: 1 };
    let next = sign_root(&Root { policy: role, ..with_freshness(3) }, &[1, 2]);
    trusted.take(&roots(&[next]), at(9)).unwrap();
    file.save(&trusted).unwrap();
    let mut again = file.load(&sign_root(&with_freshness(1), &[1, 2])).unwrap();
    assert!(again.policy().is_none());
    assert!(matches!(again.take(&policy(sign_policy(4, &[12])), at(9)), Err(TrustError::Rollback { .. })));
}

#[test]
fn a_damaged_record_is_an_error_and_not_a_new_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let file = TrustFile::new(dir.path());
    file.save(&sample()).unwrap();
    let path = dir.path().join("trust.state");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    let error = file.load(&sign_root(&with_freshness(1), &[1, 2])).unwrap_err();
    assert!(error.to_string().contains("trust.state"), "{error}");
}

#[test]
fn the_configured_root_decides_which_chain_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let file = TrustFile::new(dir.path());
    file.save(&sample()).unwrap();
    let load = |root: &Root, seeds: &[u8]| file.load(&sign_root(root, seeds)).unwrap();
    // An older image of the configuration, and one that is ahead of what any server told.
    assert_eq!(load(&with_freshness(1), &[1, 2]).known(), sample().known());
    let mut ahead = load(&with_freshness(7), &[1, 2]);
    assert_eq!((ahead.known().root, ahead.known().policy), (7, 5));
    assert!(ahead.take(&policy(sign_policy(4, &[11])), at(9)).is_err());
    // Other keys for the same version: somebody has begun again.
    let other = Root { root: Role { keys: public(&[7]), threshold: 1 }, ..with_freshness(1) };
    let mut anew = load(&other, &[7]);
    assert_eq!((anew.known().root, anew.known().policy), (1, 0));
    anew.take(&policy(sign_policy(1, &[11])), at(0)).unwrap();
}
