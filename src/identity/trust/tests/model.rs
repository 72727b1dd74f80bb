//! Whatever is handed over, in whatever order, nothing goes back and nothing is taken that was not signed.

use proptest::prelude::*;

use super::*;

/// Something that a server may hand over; `by` says which keys signed it.
#[derive(Debug, Clone)]
enum Handed {
    Root { version: u64, least: u64, policy_key: u8, by: Vec<u8> },
    Policy { version: u64, expires: u64, by: Vec<u8> },
    Freshness { issued: u64, root: u64, policy: u64, by: Vec<u8> },
    Restart,
}

fn handed() -> impl Strategy<Value = Handed> {
    let by = |seeds: &'static [u8]| prop::collection::vec(prop::sample::select(seeds), 1..4);
    prop_oneof![
        (1u64..5, 1u64..20, 11u8..13, by(&[1, 2, 3, 9])).prop_map(|(version, least, policy_key, by)| Handed::Root {
            version,
            least,
            policy_key,
            by
        }),
        (1u64..30, 0u64..2, by(&[11, 12])).prop_map(|(version, expires, by)| Handed::Policy { version, expires, by }),
        (0u64..10, 1u64..4, 1u64..30, by(&[21, 9])).prop_map(|(issued, root, policy, by)| Handed::Freshness {
            issued,
            root,
            policy,
            by
        }),
        Just(Handed::Restart),
    ]
}

fn documents(handed: &Handed) -> Documents {
    match handed {
        Handed::Root { version, least, policy_key, by } => {
            let role = PolicyRole { keys: public(&[*policy_key]), threshold: 1, least: *least };
            roots(&[sign_root(&Root { policy: role, ..with_freshness(*version) }, by)])
        }
        Handed::Policy { version, expires, by } => policy(signed(
            POLICY_TYPE,
            format!("version = {version}\nexpires = \"203{expires}-01-01T00:00:00Z\"\n"),
            by,
        )),
        Handed::Freshness { issued, root, policy, by } => {
            let keys: Vec<PrivateKey> = by.iter().map(|seed| key(*seed)).collect();
            let statement = Freshness { issued: at(*issued), root: *root, policy: *policy };
            fresh(statement.sign(&keys.iter().collect::<Vec<_>>()))
        }
        Handed::Restart => Documents::default(),
    }
}

proptest! {
    #[test]
    fn nothing_goes_back_and_all_that_is_taken_is_signed(all in prop::collection::vec(handed(), 1..40)) {
        let first = sign_root(&with_freshness(1), &[1, 2]);
        let dir = tempfile::tempdir().unwrap();
        let file = TrustFile::new(dir.path());
        let mut trusted = Trusted::new(&first).unwrap();
        let (mut highest, mut issued, mut digest) = (0u64, 0u64, None);
        for one in &all {
            let (root, least) = (trusted.root().version, trusted.root().policy.least);
            if let Handed::Restart = one {
                file.save(&trusted).unwrap();
                trusted = file.load(&first).unwrap();
            }
            let taken = trusted.take(&documents(one), at(10)).is_ok();
            let now = trusted.known();
            prop_assert!(now.root == root || now.root == root + 1);
            if trusted.root().policy.least > least {
                (highest, digest) = (0, None);
            }
            if let Some(policy) = trusted.policy() {
                prop_assert!(policy.version >= highest.max(trusted.root().policy.least));
                let bytes = trusted.documents().policy.unwrap();
                let now = Digest::of(bytes.payload());
                prop_assert!(policy.version > highest || digest.is_none_or(|before| before == now));
                prop_assert_eq!(bytes.verify(trusted.root().policy.keys.iter()).len(), 1);
                (highest, digest) = (policy.version, Some(now));
            }
            if now.issued > 0 {
                prop_assert!(now.issued >= issued);
                issued = now.issued;
            }
            prop_assert!(taken || now.root == root);
            if let (Handed::Root { by, .. }, true) = (one, now.root > root) {
                let mut by: Vec<u8> = by.iter().copied().filter(|seed| *seed < 9).collect();
                by.sort_unstable();
                by.dedup();
                prop_assert!(by.len() >= 2);
            }
        }
        // Another node that gets all of it at once ends at the same place.
        let mut other = Trusted::new(&first).unwrap();
        prop_assert!(other.take(&trusted.documents(), at(10)).is_ok());
        prop_assert_eq!(other.stamp(), trusted.stamp());
    }
}
