use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;

use super::*;
use crate::artifact::{Codec, Decoder, Draft, Family, Provenance, SourceIdentity, content_id};
use crate::identity::{TrustClass, UnixTime};

#[derive(Default)]
struct Chunks(Mutex<HashMap<Digest, Vec<u8>>>);

impl Chunks {
    fn build(&self, files: &[SourceFile], base: Option<&Base<'_>>) -> Result<Built, BuildError> {
        let store = |chunk: &Chunk, bytes: &[u8]| {
            self.0.lock().unwrap().insert(chunk.digest, bytes.to_vec());
            Ok(())
        };
        build(files, base, &Outputs { store: &store, progress: &|_| () })
    }

    /// The content of a file, put together as an installer would.
    fn content(&self, manifest: &Manifest, file: &File) -> Vec<u8> {
        let chunks = self.0.lock().unwrap();
        let mut out = Vec::new();
        for span in manifest.spans(file) {
            let chunk = manifest.chunks[span.chunk];
            let mut decoder = Decoder::new().unwrap();
            let decoded = decoder.decode(chunk.codec, &chunks[&chunk.digest], chunk.decoded_len as usize).unwrap();
            assert_eq!(span.in_file, out.len() as u64);
            out.extend_from_slice(&decoded[span.in_chunk]);
        }
        out
    }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(path, content)| tree.write(path, content));
        tree
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn sources(&self, paths: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<SourceFile> {
        let tree = Tree::open(self.0.path()).unwrap();
        let mut sources: Vec<SourceFile> = paths
            .into_iter()
            .map(|path| {
                let source = self.0.path().join(path.as_ref());
                let stamp = Stamp::of(&source.metadata().unwrap());
                let path = RelPath::new(path.as_ref()).unwrap();
                SourceFile { path, tree: tree.clone(), executable: false, mtime_ns: 0, stamp, content: None }
            })
            .collect();
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        sources
    }
}

fn manifest(built: &Built) -> Manifest {
    let entries: HashSet<RelPath> = built.files.iter().map(|file| file.path.prefix(1)).collect();
    let mut entries: Vec<RelPath> = entries.into_iter().collect();
    entries.sort();
    Manifest::new(Draft {
        identity: SourceIdentity::new(Family::directory(), BTreeMap::new()).unwrap(),
        class: TrustClass::HostCode,
        subject: String::new(),
        generation: 1,
        created: UnixTime::from_seconds(1),
        expires: None,
        provenance: Provenance::default(),
        files: built.files.clone(),
        chunks: built.chunks.clone(),
        entries,
        attributes: BTreeMap::new(),
    })
    .unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn many(count: u64, len: usize) -> BTreeMap<String, Vec<u8>> {
    (0..count).map(|i| (format!("kernels/{:04x}/cubin", i * 7919 % 65_536), noise(i, len))).collect()
}

#[test]
fn the_chunks_do_not_depend_on_how_many_threads_read_the_files() {
    let contents = (0..60u32).map(|i| {
        let len = [3_000, 400_000, 1_500_000, 0, 5_000_000, 70_000][i as usize % 6] + i as usize % 7;
        let mut content = vec![0; if i % 11 == 0 { 0 } else { len }];
        blake3::Hasher::new().update(&(i / 2).to_le_bytes()).finalize_xof().fill(&mut content);
        (format!("d{}/f{i:02}", i % 5), content)
    });
    let tree = Files::new(&contents.collect());
    let files = tree.sources((0..60).map(|i| format!("d{}/f{i:02}", i % 5)));
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Chunks::default().build(&files, None).unwrap())
    };
    let one = with(1);
    assert!(one.chunks.len() > 20);
    assert_eq!(one, with(2));
    assert_eq!(one, with(8));
}

#[test]
fn every_size_of_file_comes_back_byte_for_byte() {
    let sizes =
        [0, 1, 1000, (LARGE_FILE - 1) as usize, LARGE_FILE as usize, MAX_CHUNK, MAX_CHUNK + 1, 9_000_000, 40_000_000];
    let files: BTreeMap<String, Vec<u8>> =
        sizes.iter().map(|size| (format!("f{size:09}"), noise(*size as u64, *size))).collect();
    let tree = Files::new(&files);
    let chunks = Chunks::default();
    let built = chunks.build(&tree.sources(files.keys()), None).unwrap();
    let manifest = manifest(&built);
    for file in &manifest.files {
        assert_eq!(chunks.content(&manifest, file), files[file.path.as_str()], "{}", file.path);
    }
}

#[test]
fn a_file_with_content_of_its_own_travels_with_that_and_counts_as_changed_all_the_same() {
    let files = BTreeMap::from([("a".to_owned(), noise(1, 3000)), ("group".to_owned(), b"on this node".to_vec())]);
    let tree = Files::new(&files);
    let mut sources = tree.sources(files.keys());
    sources[1].content = Some(Bytes::from_static(b"anywhere"));
    let chunks = Chunks::default();
    let first = chunks.build(&sources, None).unwrap();
    let manifest = manifest(&first);
    assert_eq!((manifest.files[1].size, chunks.content(&manifest, &manifest.files[1])), (8, b"anywhere".to_vec()));
    let base = Base { manifest: &manifest, has_chunk: &|_| true };
    assert_eq!(chunks.build(&sources, Some(&base)).unwrap().files, first.files);
    tree.write("group", b"rewritten on this node");
    assert!(matches!(chunks.build(&sources, None), Err(BuildError::Changed(path)) if path.as_str() == "group"));
}

#[test]
fn equal_files_are_stored_once_and_small_ones_share_chunks() {
    let mut files = many(200, 2000);
    for copy in 0..28 {
        files.insert(format!("artifact_{copy:02}"), noise(1, 1 << 20));
    }
    let tree = Files::new(&files);
    let built = Chunks::default().build(&tree.sources(files.keys()), None).unwrap();
    let decoded: u64 = built.chunks.iter().map(|chunk| u64::from(chunk.decoded_len)).sum();
    assert_eq!(decoded, 200 * 2000 + (1 << 20));
    assert_eq!(built.chunks.len(), 2);
}

#[test]
fn the_content_id_does_not_depend_on_place_order_of_creation_or_packing() {
    let files = many(300, 5000);
    let (here, there) = (Files::new(&files), Files::new(&files));
    let chunks = Chunks::default();
    let first = chunks.build(&here.sources(files.keys()), None).unwrap();
    let again = chunks.build(&there.sources(files.keys().rev()), None).unwrap();
    assert_eq!(first, again);
    let manifest = manifest(&first);
    let base = Base { manifest: &manifest, has_chunk: &|digest| chunks.0.lock().unwrap().contains_key(digest) };
    let repacked = chunks.build(&here.sources(files.keys()), Some(&base)).unwrap();
    assert_eq!(content_id(&repacked.files), content_id(&first.files));
    assert_eq!(repacked.chunks, first.chunks);
}

#[test]
fn a_new_generation_costs_its_difference() {
    let mut files = many(2000, 5000);
    let tree = Files::new(&files);
    let chunks = Chunks::default();
    let first = manifest(&chunks.build(&tree.sources(files.keys()), None).unwrap());
    let changed: Vec<String> = files.keys().step_by(20).cloned().collect();
    for (seed, path) in changed.iter().enumerate() {
        files.insert(path.clone(), noise(1_000_000 + seed as u64, 5000));
        tree.write(path, &files[path]);
    }
    let base = Base { manifest: &first, has_chunk: &|digest| chunks.0.lock().unwrap().contains_key(digest) };
    let built = chunks.build(&tree.sources(files.keys()), Some(&base)).unwrap();
    let second = manifest(&built);
    let before: HashSet<Digest> = first.chunks.iter().map(|chunk| chunk.digest).collect();
    let new: u64 = second.chunks.iter().filter(|c| !before.contains(&c.digest)).map(|c| u64::from(c.encoded_len)).sum();
    assert_eq!(new, changed.len() as u64 * 5000, "exactly what changed, incompressible");
    assert_eq!(built.reused_bytes + new, second.wire_size());
    for file in &second.files {
        assert_eq!(chunks.content(&second, file), files[file.path.as_str()], "{}", file.path);
    }
}

#[test]
fn chunks_that_are_mostly_dead_or_gone_are_packed_anew() {
    let files = many(1000, 5000);
    let tree = Files::new(&files);
    let chunks = Chunks::default();
    let first = manifest(&chunks.build(&tree.sources(files.keys()), None).unwrap());
    let few: Vec<&String> = files.keys().step_by(10).collect();
    let base = Base { manifest: &first, has_chunk: &|_| true };
    let built = chunks.build(&tree.sources(&few), Some(&base)).unwrap();
    assert_eq!(built.reused_bytes, 0);
    let gone = Base { manifest: &first, has_chunk: &|_| false };
    let built = chunks.build(&tree.sources(files.keys()), Some(&gone)).unwrap();
    assert_eq!(built.reused_bytes, 0);
    let manifest = manifest(&built);
    assert_eq!(chunks.content(&manifest, &manifest.files[7]), files[manifest.files[7].path.as_str()]);
}

#[test]
fn a_file_that_changes_grows_vanishes_or_becomes_a_link_is_told() {
    let files = BTreeMap::from([("a".to_owned(), noise(1, 1000)), ("b".to_owned(), noise(2, 1000))]);
    let changes: [fn(&std::path::Path); 4] = [
        |path| std::fs::write(path, b"other").unwrap(),
        |path| std::fs::write(path, vec![0; 2000]).unwrap(),
        |path| std::fs::remove_file(path).unwrap(),
        |path| {
            std::fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("b", path).unwrap();
        },
    ];
    for change in changes {
        let tree = Files::new(&files);
        let sources = tree.sources(files.keys());
        change(&tree.0.path().join("a"));
        let error = Chunks::default().build(&sources, None).unwrap_err();
        assert!(matches!(&error, BuildError::Changed(path) if path.as_str() == "a"), "{error}");
    }
}

#[test]
fn text_is_stored_compressed() {
    let files = BTreeMap::from([("kernel.ptx".to_owned(), b"ld.global.b32 %r1, [%rd4];\n".repeat(5000))]);
    let tree = Files::new(&files);
    let built = Chunks::default().build(&tree.sources(files.keys()), None).unwrap();
    assert_eq!(built.chunks[0].codec, Codec::Zstd);
    assert!(built.chunks[0].encoded_len * 10 < built.chunks[0].decoded_len);
}
