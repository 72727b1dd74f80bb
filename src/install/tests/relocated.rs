use super::*;
use crate::caches::GroupError;

const NORMAL: &str = r#"{"child_paths":{"k.cubin":"[WARMD_ROOT]/KEY/k.cubin","k.json":"[WARMD_ROOT]/KEY/k.json"}}"#;

/// An artifact of Triton's family with one kernel, whose group is `group`.
fn kernel(group: &str) -> Fixture {
    of_triton(&[("KEY/k.cubin", "cubin"), ("KEY/k.json", "{}"), ("KEY/__grp__k.json", group)], |_| ())
}

fn of_triton(files: &[(&str, &str)], alter: impl FnOnce(&mut Draft)) -> Fixture {
    let tree = files.iter().map(|(path, text)| ((*path).to_owned(), plain(text.as_bytes().to_vec()))).collect();
    Fixture::altered(tree, |draft| {
        draft.identity = SourceIdentity::new("triton".parse().unwrap(), BTreeMap::new()).unwrap();
        alter(draft);
    })
}

fn group(root: &CacheRoot) -> String {
    std::fs::read_to_string(root.path().join("KEY/__grp__k.json")).unwrap()
}

#[test]
fn a_group_names_the_directory_that_it_is_installed_into() {
    let fixture = kernel(NORMAL);
    for _ in 0..2 {
        let (_dir, root) = root();
        fixture.install(&root).unwrap();
        let text = group(&root);
        assert_eq!(text, NORMAL.replace("[WARMD_ROOT]", root.path().to_str().unwrap()));
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cubin = parsed["child_paths"]["k.cubin"].as_str().unwrap();
        assert_eq!(std::fs::read_to_string(cubin).unwrap(), "cubin");
    }
}

#[test]
fn an_installed_group_is_as_signed_until_somebody_changes_it() {
    let (_dir, root) = root();
    let fixture = kernel(NORMAL);
    fixture.install(&root).unwrap();
    let verify = || verify_installed(&root, fixture.manifest()).unwrap();
    assert!(verify().is_whole());
    let here = group(&root);
    let path = root.path().join("KEY/__grp__k.json");
    let redirected = here.replace(root.path().to_str().unwrap(), "/tmp/evil");
    for text in [&redirected, NORMAL, "{}", "", &format!("{here}{}", " ".repeat(100_000))] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(verify().different, [RelPath::new("KEY/__grp__k.json").unwrap()], "{text}");
    }
    std::fs::write(&path, here).unwrap();
    assert!(verify().is_whole());
}

#[test]
fn a_signed_group_that_leads_elsewhere_installs_nothing() {
    for target in ["/etc/passwd", "[WARMD_ROOT]/OTHER/k.cubin", "[WARMD_ROOT]/KEY/../../k.cubin", "k.cubin"] {
        let (_dir, root) = root();
        let error = kernel(&NORMAL.replace("[WARMD_ROOT]/KEY/k.cubin", target)).install(&root).unwrap_err();
        assert!(
            matches!(&error, InstallError::Group { source: GroupError::Elsewhere(to), .. } if to == target),
            "{error}"
        );
        assert_eq!(error.class(), NegativeClass::Incompatible);
        assert!(visible(root.path()).is_empty() && staging_is_empty(root.path()));
    }
}

#[test]
fn a_group_of_files_that_the_manifest_does_not_list_is_refused() {
    let (_dir, root) = root();
    // What lies in the root already is not what was signed.
    std::fs::create_dir(root.path().join("OLD")).unwrap();
    let fixture = of_triton(&[("KEY/k.json", "{}"), ("KEY/__grp__k.json", NORMAL)], |_| ());
    let error = fixture.install(&root).unwrap_err();
    assert!(matches!(error, InstallError::Group { source: GroupError::Missing(name), .. } if name == "k.cubin"));
}

#[test]
fn groups_that_cannot_be_expanded_are_refused_before_anything_is_transferred() {
    let large = " ".repeat(crate::caches::MAX_GROUP as usize + 1);
    for (text, alone) in [(&*large, false), ("", false), (NORMAL, true)] {
        let files = [("KEY/k.cubin", "cubin"), ("KEY/k.json", "{}"), ("KEY/__grp__k.json", text)];
        let fixture = of_triton(&files, |draft| {
            if alone {
                draft.entries = draft.files.iter().map(|file| file.path.clone()).collect();
            }
        });
        let (_dir, root) = root();
        let lock = lock(&root);
        let begun = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS);
        assert!(matches!(begun.err(), Some(InstallError::Group { .. } | InstallError::Kind(_))));
        assert!(staging_is_empty(root.path()));
    }
}

#[test]
fn two_files_with_the_bytes_of_a_group_are_told_apart() {
    let (_dir, root) = root();
    let files =
        [("KEY/k.cubin", "cubin"), ("KEY/k.json", "{}"), ("KEY/__grp__k.json", NORMAL), ("KEY/copy.json", NORMAL)];
    of_triton(&files, |_| ()).install(&root).unwrap();
    assert_ne!(group(&root), NORMAL);
    assert_eq!(std::fs::read_to_string(root.path().join("KEY/copy.json")).unwrap(), NORMAL);
}

#[test]
fn a_directory_that_the_user_named_is_installed_as_it_is() {
    let (_dir, root) = root();
    let anything = r#"{"child_paths":{"k.cubin":"/elsewhere/k.cubin"}}"#;
    let fixture = Fixture::new(Tree::from([("KEY/__grp__k.json".into(), plain(anything.as_bytes().to_vec()))]));
    fixture.install(&root).unwrap();
    assert_eq!(group(&root), anything);
    assert!(verify_installed(&root, fixture.manifest()).unwrap().is_whole());
}

#[test]
fn what_is_none_of_its_family_is_refused() {
    let (_dir, root) = root();
    let error = of_triton(&[("KEY/k.so", "x")], |draft| draft.class = TrustClass::Data).install(&root).unwrap_err();
    assert!(matches!(error, InstallError::Kind(_)));
    let error = of_triton(&[("KEY/k.so", "x"), ("KEY/x.lock", "")], |_| ()).install(&root).unwrap_err();
    assert!(error.to_string().contains("KEY/x.lock"), "{error}");
    assert!(visible(root.path()).is_empty());
}
