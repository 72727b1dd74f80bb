use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::artifact::{Chunk, Codec, Decoder};
use crate::caches::Built;

struct Root {
    directory: tempfile::TempDir,
    tree: Tree,
}

impl Root {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::open(directory.path()).unwrap();
        Self { directory, tree }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A kernel whose group lists its members below `root`.
    fn kernel(&self, key: &str, root: &Path) {
        let members: BTreeMap<&str, String> =
            ["k.cubin", "k.json"].map(|name| (name, root.join(key).join(name).to_str().unwrap().to_owned())).into();
        members.keys().for_each(|name| drop(self.write(&format!("{key}/{name}"), format!("{key} {name}"))));
        self.write(&format!("{key}/__grp__k.json"), serde_json::json!({ "child_paths": members }).to_string());
    }

    fn survey(&self, family: &str) -> Survey {
        survey(self.path(), CacheFamily::by_name(family).unwrap()).unwrap()
    }
}

fn entries(survey: &Survey) -> Vec<String> {
    survey.subjects.iter().flat_map(|subject| &subject.entries).map(|entry| entry.path.to_string()).collect()
}

/// The content of every file of a snapshot, by path.
struct Capture {
    snapshot: Snapshot,
    contents: BTreeMap<String, Vec<u8>>,
}

fn take(selection: &Selection<'_>) -> Result<Capture, SnapshotError> {
    take_while(selection, &|| ())
}

/// `meanwhile` happens as each chunk is stored.
fn take_while(selection: &Selection<'_>, meanwhile: &(dyn Fn() + Sync)) -> Result<Capture, SnapshotError> {
    let chunks = Mutex::new(BTreeMap::new());
    let store = |chunk: &Chunk, bytes: &[u8]| {
        meanwhile();
        chunks.lock().unwrap().insert(chunk.digest, bytes.to_vec());
        Ok(())
    };
    let snapshot = snapshot_subject(selection, None, &Outputs { store: &store, progress: &|_| () })?;
    let contents = contents(&snapshot.built, &chunks.into_inner().unwrap());
    Ok(Capture { snapshot, contents })
}

fn contents(built: &Built, chunks: &BTreeMap<crate::digest::Digest, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let mut stream = Vec::new();
    for chunk in &built.chunks {
        let (encoded, len) = (&chunks[&chunk.digest], chunk.decoded_len as usize);
        assert!(matches!(chunk.codec, Codec::Raw | Codec::Zstd));
        stream.extend_from_slice(Decoder::new().unwrap().decode(chunk.codec, encoded, len).unwrap());
    }
    let content = |file: &crate::artifact::File| stream[file.offset as usize..][..file.size as usize].to_vec();
    built.files.iter().map(|file| (file.path.to_string(), content(file))).collect()
}

fn whole<'a>(root: &'a Root, family: &str) -> Selection<'a> {
    let family = CacheFamily::by_name(family).unwrap();
    Selection { root: &root.tree, family, subject: "", settled_by: None }
}

#[test]
fn a_root_that_does_not_exist_or_is_empty_holds_nothing() {
    let root = Root::new();
    assert!(root.survey("triton").subjects.is_empty());
    let gone = root.path().join("gone");
    let nothing = survey(&gone, CacheFamily::by_name("triton").unwrap()).unwrap();
    assert!(nothing.subjects.is_empty() && nothing.left.is_empty());
    assert!(matches!(take(&whole(&root, "triton")), Err(SnapshotError::Scan(ScanError::Empty(_)))));
}

#[test]
fn links_pipes_keys_and_impossible_names_are_left_and_the_rest_is_published() {
    let root = Root::new();
    root.write("0a1b/c.o", "object");
    symlink("/etc/passwd", root.path().join("0a1b/link.o")).unwrap();
    symlink("/etc", root.path().join("linked")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.path().join("0a1b/pipe.o"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    root.write("0a1b/back\\slash.o", "x");
    let key = root.path().join("0a1b/key.o");
    crate::identity::PrivateKey::from_seed(1).save_new(&key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let found = root.survey("quack");
    assert_eq!(entries(&found), ["0a1b/c.o"]);
    let left = found.left.join("\n");
    for (path, why) in
        [("link.o", "symbolic link"), ("pipe.o", "pipe"), ("key.o", "private key"), ("slash.o", "backslash")]
    {
        assert!(left.lines().any(|line| line.contains(path) && line.contains(why)), "{path}: {left}");
    }
    assert_eq!(take(&whole(&root, "quack")).unwrap().contents.len(), 1);
}

#[test]
fn a_directory_deeper_than_any_artifact_is_not_walked() {
    let root = Root::new();
    let deep = vec!["d"; 400].join("/");
    root.write(&format!("KEY/{deep}/x.so"), "x");
    root.write("KEY/k.so", "x");
    let found = root.survey("triton");
    assert_eq!(found.subjects[0].files.len(), 1);
    assert!(found.left[0].ends_with("path is deeper than 32 components"), "{:?}", found.left);
}

#[test]
fn a_private_key_that_everybody_may_read_stays_and_keeps_nothing_else_back() {
    let root = Root::new();
    root.write("0a1b/c.o", "object");
    let pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    ["0a1b/one.o", "0a1b/two.o"].iter().for_each(|key| drop(root.write(key, pem)));
    let taken = take(&whole(&root, "quack")).unwrap();
    assert_eq!(taken.contents.keys().collect::<Vec<_>>(), ["0a1b/c.o"]);
    let told = |key| taken.snapshot.skipped.iter().any(|why| why.contains(key) && why.contains("private key"));
    assert!(told("one.o") && told("two.o"), "{:?}", taken.snapshot.skipped);
}

#[test]
fn a_root_with_too_many_names_ends_with_the_reason() {
    let root = Root::new();
    (0..10).for_each(|number| drop(root.write(&format!("{number}/x.lock"), "")));
    let family = CacheFamily::by_name("quack").unwrap();
    let rules = ScanRules { special: Special::Skip, ..ScanRules::default() };
    let look = |most_names| {
        walk(&root.tree, &rules, Some(&Named { family, subject: None, most_names, reads_for_keys: false }))
    };
    assert!(look(20).unwrap().0.is_empty());
    let error = look(19).unwrap_err();
    assert!(matches!(error, ScanError::Overgrown { limit: 19, .. }) && error.to_string().contains("19 files"));
}

#[test]
fn reasons_are_told_of_some_and_not_of_all() {
    let root = Root::new();
    root.write("0a1b/c.o", "object");
    (0..1500).for_each(|number| drop(root.write(&format!("0a1b/{number}.lock"), "")));
    let found = root.survey("quack");
    assert_eq!((entries(&found).len(), found.left.len()), (1, 1000));
}

#[test]
fn entries_that_differ_in_case_only_are_not_published_together() {
    let root = Root::new();
    root.write("0a1b/c.o", "x");
    root.write("0a1b/C.o", "y");
    let found = root.survey("quack");
    assert_eq!(entries(&found), ["0a1b/C.o"]);
    assert!(found.left[0].contains("0a1b/c.o") && found.left[0].contains("case"), "{:?}", found.left);
}

#[test]
fn entries_are_sorted_by_their_own_paths() {
    let root = Root::new();
    ["a/x.so", "a-b/x.so", "a.b/x.so"].iter().for_each(|file| drop(root.write(file, "x")));
    assert_eq!(entries(&root.survey("triton")), ["a", "a-b", "a.b"]);
}

#[test]
fn a_subject_is_captured_alone() {
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let root = Root::new();
    for key in [&a, &b] {
        root.write(&format!("{key}/rank_0_0/model"), key);
        root.write(&format!("{key}/inductor_cache/yu/c.py"), "code");
    }
    let selection = Selection { subject: &b, ..whole(&root, "vllm-aot") };
    let taken = take(&selection).unwrap();
    assert_eq!(taken.contents.len(), 2);
    assert_eq!(taken.contents[&format!("{b}/rank_0_0/model")], b.as_bytes());
    assert_eq!(taken.snapshot.entries.len(), 2);
    assert!(taken.snapshot.skipped.is_empty(), "other subjects are nothing that was left out");
    let gone = Selection { subject: "cc", ..selection };
    assert!(matches!(take(&gone), Err(SnapshotError::Scan(ScanError::Empty(_)))));
}

#[test]
fn entries_younger_than_asked_are_left_out_with_the_reason() {
    let root = Root::new();
    let old = root.write("0a1b/old.o", "x");
    root.write("0a1b/young.o", "y");
    let past = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    std::fs::File::options().write(true).open(old).unwrap().set_modified(past).unwrap();
    let found = root.survey("quack");
    assert_eq!(found.subjects[0].entries[0].newest, past);
    assert!(found.subjects[0].newest().unwrap() > past);
    let taken = take(&Selection { settled_by: Some(past), ..whole(&root, "quack") }).unwrap();
    assert_eq!(taken.contents.keys().collect::<Vec<_>>(), ["0a1b/old.o"]);
    assert!(taken.snapshot.skipped[0].contains("young.o"), "{:?}", taken.snapshot.skipped);
}

#[test]
fn times_travel_only_where_the_family_needs_them() {
    let root = Root::new();
    for name in ["build.ninja", ".ninja_log", ".ninja_deps", "m.so"] {
        root.write(&format!("m_0a/{name}"), name);
    }
    let built = take(&whole(&root, "tvm-ffi")).unwrap().snapshot.built;
    assert!(built.files.iter().all(|file| file.mtime_ns > 1_000_000_000_000_000_000));
    let built = take(&whole(&root, "triton")).unwrap().snapshot.built;
    assert!(built.files.iter().all(|file| file.mtime_ns == 0));
}

#[test]
fn a_kernel_has_the_same_bytes_wherever_it_was_compiled() {
    let roots = [Root::new(), Root::new()];
    let ids = roots.each_ref().map(|root| {
        root.kernel("KEY", root.path());
        let taken = take(&whole(root, "triton")).unwrap();
        let group = String::from_utf8(taken.contents["KEY/__grp__k.json"].clone()).unwrap();
        assert!(group.contains(r#""[WARMD_ROOT]/KEY/k.cubin""#) && !group.contains(root.path().to_str().unwrap()));
        assert_eq!(taken.contents["KEY/k.cubin"], b"KEY k.cubin");
        crate::artifact::content_id(&taken.snapshot.built.files)
    });
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn a_root_that_the_engine_knew_by_a_link_is_the_same_root() {
    let root = Root::new();
    let alias = Root::new();
    symlink(root.path(), alias.path().join("cache")).unwrap();
    root.kernel("KEY", &alias.path().join("cache"));
    assert_eq!(entries(&root.survey("triton")), ["KEY"]);
}

#[test]
fn a_kernel_whose_group_points_elsewhere_or_to_nothing_stays() {
    let root = Root::new();
    root.kernel("GOOD", root.path());
    root.kernel("MOVED", Path::new("/old/root"));
    root.kernel("TORN", root.path());
    std::fs::remove_file(root.path().join("TORN/k.cubin")).unwrap();
    root.kernel("ODD", root.path());
    root.write("ODD/__grp__k.json", "[]");
    root.kernel("LARGE", root.path());
    root.write("LARGE/__grp__k.json", vec![b' '; MAX_GROUP as usize + 1]);
    let found = root.survey("triton");
    assert_eq!(entries(&found), ["GOOD"]);
    let expected = ["LARGE: __grp__k.json is larger", "MOVED: __grp__k.json points to `/old/root/MOVED/k.cubin`"];
    let expected =
        expected.into_iter().chain(["ODD: __grp__k.json is no group", "TORN: __grp__k.json lists `k.cubin`"]);
    for (left, start) in found.left.iter().zip(expected) {
        assert!(left.starts_with(start), "{left}");
    }
    assert_eq!(found.left.len(), 4);
}

#[test]
fn a_group_that_changes_during_the_reading_is_read_again() {
    let root = Root::new();
    root.kernel("KEY", root.path());
    let stored = AtomicU32::new(0);
    let grow = || {
        if stored.fetch_add(1, Ordering::SeqCst) == 0 {
            root.write("KEY/more.json", "{}");
            let members = ["k.cubin", "k.json", "more.json"].map(|name| (name, root.path().join("KEY").join(name)));
            let members: BTreeMap<&str, &str> = members.iter().map(|(n, path)| (*n, path.to_str().unwrap())).collect();
            root.write("KEY/__grp__k.json", serde_json::json!({ "child_paths": members }).to_string());
        }
    };
    let taken = take_while(&whole(&root, "triton"), &grow).unwrap();
    assert_eq!(taken.contents.len(), 4);
    assert!(String::from_utf8_lossy(&taken.contents["KEY/__grp__k.json"]).contains("[WARMD_ROOT]/KEY/more.json"));
}

#[test]
fn our_own_directory_and_what_another_family_keeps_inside_stay() {
    let root = Root::new();
    root.write(".warmd/markers/x.so", "x");
    root.write("KEY/.warmd/x.so", "x");
    root.write("KEY/k.so", "x");
    let found = root.survey("triton");
    assert_eq!(found.subjects[0].files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["KEY/k.so"]);
}
