//! What the families' own tests use, and what holds for all of them.

use std::collections::HashSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::caches::survey;

pub(super) const HOME: (&str, &str) = ("HOME", "/home/u");

/// What a survey found, as texts.
pub(super) struct Found {
    pub(super) subjects: Vec<String>,
    pub(super) entries: Vec<String>,
    pub(super) files: Vec<String>,
    /// Without the reasons.
    pub(super) left: Vec<String>,
    pub(super) why: String,
}

/// Of a tree that holds `files`; groups of Triton list what lies beside them.
pub(super) fn surveyed(family: &'static CacheFamily, files: &[impl AsRef<str>]) -> Found {
    let root = tempfile::tempdir().unwrap();
    let path = |file: &str| root.path().join(file);
    for file in files.iter().map(AsRef::as_ref) {
        std::fs::create_dir_all(path(file).parent().unwrap()).unwrap();
        std::fs::write(path(file), file).unwrap();
    }
    for file in files.iter().map(AsRef::as_ref).filter(|file| file.contains("/__grp__")) {
        std::fs::write(path(file), group_of(path(file).parent().unwrap())).unwrap();
    }
    look_at(family, root.path())
}

/// Triton's list of what lies in `directory`.
fn group_of(directory: &Path) -> String {
    let names = std::fs::read_dir(directory).unwrap().map(|item| item.unwrap());
    let members: BTreeMap<String, String> = names
        .filter(|item| item.file_type().unwrap().is_file())
        .map(|item| (item.file_name().into_string().unwrap(), item.path().to_str().unwrap().to_owned()))
        .filter(|(name, _)| !name.starts_with("__grp__"))
        .collect();
    serde_json::json!({ "child_paths": members }).to_string()
}

/// Of what a real engine left, below `tests/data`.
pub(super) fn recorded(family: &'static CacheFamily, directory: &str) -> Found {
    look_at(family, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(directory))
}

fn look_at(family: &'static CacheFamily, root: &Path) -> Found {
    let found = survey(root, family).unwrap();
    let path = |reason: &String| reason.split(": ").next().unwrap().to_owned();
    Found {
        subjects: found.subjects.iter().map(|subject| subject.name.clone()).collect(),
        entries: found.subjects.iter().flat_map(|s| &s.entries).map(|entry| entry.path.to_string()).collect(),
        files: found.subjects.iter().flat_map(|s| &s.files).map(|file| file.path.to_string()).collect(),
        left: found.left.iter().map(path).collect(),
        why: found.left.join("\n"),
    }
}

/// The root in each of some environments; `none` where nothing can be told.
pub(super) fn roots(family: &CacheFamily, environments: &[&[(&str, &str)]]) -> Vec<String> {
    let root = |variables: &&[(&str, &str)]| {
        let environment: Environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        (family.root)(&environment).map_or_else(|| "none".to_owned(), |root| root.to_str().unwrap().to_owned())
    };
    environments.iter().map(root).collect()
}

fn all_known() -> Facts {
    let mut facts = Facts::default();
    Fact::ALL.iter().for_each(|fact| facts.set(*fact, Known::Value(format!("{fact} here"))));
    facts
}

#[test]
fn names_are_unique_and_lead_to_their_family() {
    let names: HashSet<&str> = CacheFamily::all().iter().map(|family| family.name).collect();
    assert_eq!(names.len(), CacheFamily::all().len());
    assert!(names.iter().all(|name| CacheFamily::by_name(name).unwrap().name == *name));
    assert!(CacheFamily::by_name("unheard-of").is_none());
}

#[test]
fn roots_are_apart_so_that_each_holds_its_own_control_directory() {
    let environment = Environment::from_iter([HOME, ("USER", "u")].map(|(n, v)| (n.to_owned(), v.to_owned())));
    let roots: Vec<PathBuf> = CacheFamily::all().iter().filter_map(|family| (family.root)(&environment)).collect();
    // Directories that the user names, and adapters.
    assert_eq!(roots.len(), CacheFamily::all().len() - 2);
    assert_eq!(roots.iter().collect::<HashSet<_>>().len(), roots.len());
}

#[test]
fn no_family_publishes_locks_logs_keys_or_our_own_directory() {
    for family in CacheFamily::all() {
        for name in [".warmd", ".WARMD", "lock", "x.lock", "x.log", ".7.8.tmp", "gpu_p2p_access_cache_for_0.json"] {
            for path in [name.to_owned(), format!("a/{name}"), format!("a/b/{name}"), format!("{name}/a/b")] {
                assert!(matches!(family.place(&path), Place::Left(_)), "{}: {path}", family.name);
            }
            assert!(!family.enters(name));
        }
    }
}

#[test]
fn whoever_can_run_code_on_the_host_is_bound_to_the_instruction_set() {
    for family in CacheFamily::all().iter().filter(|family| family.name != "directory") {
        let host = family.class == TrustClass::HostCode;
        assert_eq!(family.facts.contains(&Fact::CpuIsa), host, "{}", family.name);
        assert_eq!(family.facts.contains(&Fact::Machine), host, "{}", family.name);
    }
}

#[test]
fn a_fact_that_is_absent_is_left_out_and_one_that_is_essential_ends_the_offer() {
    let family = CacheFamily::by_name("vllm-aot").unwrap();
    let mut facts = all_known();
    let whole = family.identity(&facts).unwrap();
    assert_eq!(whole.facts()["gpu_name"], "gpu_name here");
    facts.set(Fact::GpuName, Known::Absent("no GPU".to_owned()));
    let without = family.identity(&facts).unwrap();
    assert!(!without.facts().contains_key("gpu_name") && without.id() != whole.id());
    facts.set(Fact::Vllm, Known::Absent("not installed".to_owned()));
    let error = family.identity(&facts).unwrap_err();
    assert!(matches!(error, IdentityError::NotHere { fact: Fact::Vllm, .. }));
    assert!(error.to_string().contains("vllm") && error.to_string().contains("not installed"));
}

#[test]
fn an_essential_fact_can_be_outside_of_the_identity() {
    let family = CacheFamily::by_name("sglang-deep-gemm").unwrap();
    assert!(!family.identity(&all_known()).unwrap().facts().contains_key("sglang"));
}

fn known() -> impl Strategy<Value = Option<Known>> {
    prop_oneof![
        4 => "[a-z0-9.]{1,6}".prop_map(|value| Some(Known::Value(value))),
        2 => Just(Some(Known::Absent("none".to_owned()))),
        1 => Just(Some(Known::Failed("broken".to_owned()))),
        1 => Just(None),
    ]
}

fn facts_of(list: &[Option<Known>]) -> Facts {
    let mut facts = Facts::default();
    for (fact, known) in Fact::ALL.iter().zip(list) {
        known.iter().for_each(|known| facts.set(*fact, known.clone()));
    }
    facts
}

proptest! {
    #[test]
    fn an_identity_is_exactly_the_known_values_of_its_own_facts(
        list in prop::collection::vec(known(), Fact::ALL.len()),
        family in 0..ALL.len(),
    ) {
        let (family, facts) = (ALL[family], facts_of(&list));
        let named = || family.facts.iter().chain(family.essential);
        match family.identity(&facts) {
            Ok(identity) => {
                let values = family.facts.iter().filter_map(|fact| Some((fact.name(), facts.value(*fact)?)));
                let expected: BTreeMap<String, String> =
                    values.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
                prop_assert_eq!(identity.facts(), &expected);
                prop_assert!(family.essential.iter().all(|fact| facts.value(*fact).is_some()));
            }
            Err(IdentityError::NotHere { fact, .. }) => {
                prop_assert!(family.essential.contains(&fact));
                prop_assert!(matches!(facts.get(fact), Some(Known::Absent(_))));
            }
            Err(IdentityError::Failed { fact, .. }) => {
                prop_assert!(named().any(|named| *named == fact));
                prop_assert!(matches!(facts.get(fact), Some(Known::Failed(_))));
            }
            Err(IdentityError::Unknown { fact, .. }) => {
                prop_assert!(named().any(|named| *named == fact) && facts.get(fact).is_none());
            }
            Err(error @ IdentityError::Source { .. }) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    #[test]
    fn what_is_not_among_a_familys_facts_changes_nothing(family in 0..ALL.len(), other in 0..Fact::ALL.len()) {
        let (family, other, facts) = (ALL[family], Fact::ALL[other], all_known());
        let mut changed = facts.clone();
        changed.set(other, Known::Value("another".to_owned()));
        let same = family.identity(&facts).unwrap() == family.identity(&changed).unwrap();
        prop_assert_eq!(same, !family.facts.contains(&other));
    }

    #[test]
    fn entries_never_lie_in_each_other_and_their_directories_are_entered(
        family in 0..ALL.len(),
        paths in prop::collection::vec(path(), 1..12),
    ) {
        let family = ALL[family];
        let entry = |path: &'_ String| match family.place(path) {
            Place::Entry { entry, subject, .. } => Some((entry.to_owned(), subject.to_owned())),
            Place::Left(_) => None,
        };
        let entries: Vec<(String, String)> = paths.iter().filter_map(entry).collect();
        for (a, subject) in &entries {
            prop_assert!(a.starts_with(subject.as_str()));
            prop_assert!(entries.iter().all(|(b, _)| !b.starts_with(&format!("{a}/"))), "{:?}", entries);
        }
        for path in paths.iter().filter(|path| entry(path).is_some()) {
            let above = path.match_indices('/').map(|(at, _)| &path[..at]);
            prop_assert!(above.into_iter().all(|directory| family.enters(directory)), "{}", path);
        }
    }
}

/// Of names that mean something to one family or another. No two of a test are a file and a directory of one name.
fn path() -> impl Strategy<Value = String> {
    let key = "f985d4c2590825d558b07caa7a963d3404c0bfd601b549d8f7929056e4e05d77".to_owned();
    let directory = prop_oneof![
        3 => Just(key),
        2 => Just("0123456789".to_owned()),
        3 => prop::sample::select(vec!["inductor_cache", "triton", "fxgraph", "aotautograd", "cache", "quack", "rank_0_0"])
            .prop_map(str::to_owned),
        3 => prop::sample::select(vec!["cached_ops", "generated", "kernels", "launcher", "kernel.a", "entries", "locks"])
            .prop_map(str::to_owned),
        2 => "[ab]{1,2}",
    ];
    let file = prop::sample::select(vec!["x.json", "x.so", "x.o", "x.cpp", "x.mlir", "x.h", "manifest.json", "x.lock"]);
    (prop::collection::vec(directory, 0..6), file).prop_map(|(mut names, file)| {
        names.push(file.to_owned());
        names.join("/")
    })
}
