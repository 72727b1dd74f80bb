//! Caches of real engines, captured, signed and installed elsewhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use warmd::artifact::{Admitted, Chunk, Draft, Outputs, Provenance, SignedManifest, SourceIdentity, Tree};
use warmd::caches::{CacheFamily, Selection, snapshot_subject, survey};
use warmd::digest::Digest;
use warmd::identity::{Policy, PrivateKey, UnixTime};
use warmd::install::{CacheRoot, Installation, Installed, Limits, verify_installed};

/// One signed artifact with its chunks.
struct Published {
    admitted: Arc<Admitted>,
    chunks: BTreeMap<Digest, Vec<u8>>,
}

fn publish(root: &Path, family: &str, subject: &str) -> Published {
    let family = CacheFamily::by_name(family).unwrap();
    let chunks = Mutex::new(BTreeMap::new());
    let store = |chunk: &Chunk, bytes: &[u8]| {
        chunks.lock().unwrap().insert(chunk.digest, bytes.to_vec());
        Ok(())
    };
    let root = Tree::open(root).unwrap();
    let selection = Selection { root: &root, family, subject, settled_by: None };
    let taken = snapshot_subject(&selection, None, &Outputs { store: &store, progress: &|_| () }).unwrap();
    let key = PrivateKey::generate().unwrap();
    let draft = Draft {
        identity: SourceIdentity::new(family.name.parse().unwrap(), BTreeMap::new()).unwrap(),
        class: family.class,
        subject: subject.to_owned(),
        generation: 1,
        created: UnixTime::now(),
        expires: None,
        provenance: Provenance::default(),
        files: taken.built.files,
        chunks: taken.built.chunks,
        entries: taken.entries,
        attributes: BTreeMap::new(),
    };
    let signed = SignedManifest::sign(draft, &key).unwrap();
    let policy = Policy::parse(&format!(
        "version = 1\nexpires = \"2100-01-01T00:00:00Z\"\n[[signer]]\nname = \"builder\"\nkey = \"{}\"\n\
         families = [\"*\"]\nclass = \"host-code\"\n",
        key.public()
    ));
    let admitted = SignedManifest::admit(signed.envelope().clone(), &policy.unwrap(), UnixTime::now()).unwrap();
    Published { admitted: Arc::new(admitted), chunks: chunks.into_inner().unwrap() }
}

impl Published {
    fn install(&self, root: &Path) -> Installed {
        let root = CacheRoot::open(root).unwrap();
        let lock = root.lock(Instant::now() + Duration::from_secs(1)).unwrap();
        let limits = Limits { reserve_bytes: 0, max_bytes: u64::MAX };
        let installation = Installation::begin(&root, &lock, self.admitted.clone(), limits).unwrap();
        for index in installation.needed().ones() {
            let chunk = self.admitted.manifest().chunks[index];
            installation.chunk(index, &self.chunks[&chunk.digest]).unwrap();
        }
        let installed = installation.commit().unwrap();
        assert!(verify_installed(&root, self.admitted.manifest()).unwrap().is_whole());
        installed
    }
}

#[test]
fn what_a_real_engine_left_comes_back_in_another_root() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let scratch = tempfile::tempdir().unwrap();
    for (family, below) in [
        ("vllm-aot", "vllm-cpu-aot/torch_compile_cache/torch_aot_compile"),
        ("modelinfos", "vllm-cpu-aot/modelinfos"),
        ("inductor", "vllm-cpu-inductor/inductor"),
    ] {
        let found = survey(&data.join(below), CacheFamily::by_name(family).unwrap()).unwrap();
        let subject = &found.subjects[0];
        let root = scratch.path().join(family);
        let installed = publish(&data.join(below), family, &subject.name).install(&root);
        assert_eq!(installed.installed.len(), subject.entries.len());
        for file in &subject.files {
            let (here, there) = (data.join(below).join(file.path.as_str()), root.join(file.path.as_str()));
            assert_eq!(std::fs::read(here).unwrap(), std::fs::read(there).unwrap(), "{}", file.path);
        }
    }
}

/// What a run of Triton said, on the last line that it wrote.
fn compile(command: &str, cache: &Path) -> serde_json::Value {
    let run = Command::new("sh").args(["-c", command]).env("TRITON_CACHE_DIR", cache).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_str(String::from_utf8(run.stdout).unwrap().lines().last().unwrap()).unwrap()
}

/// `WARMD_TEST_TRITON` is a command that compiles some kernels below `TRITON_CACHE_DIR` and says on its last line, as JSON,
/// how many there are (`kernels`) and how many came from the cache (`hits`).
#[test]
#[ignore = "needs Triton: set WARMD_TEST_TRITON"]
fn triton_finds_every_kernel_in_a_root_that_it_did_not_write() {
    let command = std::env::var("WARMD_TEST_TRITON").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("somewhere/else"));
    let cold = compile(&command, &from);
    assert_eq!(cold["hits"], 0);
    std::fs::create_dir(scratch.path().join("somewhere")).unwrap();
    let installed = publish(&from, "triton", "").install(&to);
    // Nothing is found by the paths of old.
    std::fs::remove_dir_all(&from).unwrap();
    let warm = compile(&command, &to);
    assert_eq!(warm["hits"], cold["kernels"], "{warm}");
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), installed.installed.len() + 1);
}
