//! Directories to publish, and their comparison.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Path below the tree -> (executable, content).
pub type Tree = BTreeMap<String, (bool, Vec<u8>)>;

/// Bytes that no codec makes smaller.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A few large files, many small ones, equal ones, an executable one and an empty one.
pub fn sample() -> Tree {
    let mut tree = Tree::new();
    tree.insert("model/rank_0".to_owned(), (false, noise(1, 9_000_000)));
    tree.insert("model/rank_1".to_owned(), (false, noise(1, 9_000_000)));
    tree.insert("bin/tool.so".to_owned(), (true, noise(2, 70_000)));
    tree.insert("empty".to_owned(), (false, Vec::new()));
    for n in 0..300u64 {
        let text = format!("kernel {n} ld.global st.shared\n").repeat(n as usize + 1);
        tree.insert(format!("triton/K{n:03}/kernel.ptx"), (false, text.into_bytes()));
        tree.insert(format!("triton/K{n:03}/kernel.cubin"), (false, noise(100 + n, 3000)));
    }
    tree
}

pub fn write(root: &Path, tree: &Tree) {
    for (path, (executable, content)) in tree {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        let mode = if *executable { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// What is below `root`, without warmd's own directory.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut directories: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let relative = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if relative == ".warmd" {
                continue;
            }
            if meta.is_dir() {
                directories.push(path);
            } else {
                assert!(meta.is_file(), "{relative} is no regular file");
                tree.insert(relative, (meta.permissions().mode() & 0o111 != 0, std::fs::read(&path).unwrap()));
            }
        }
    }
    tree
}

/// Fails with names, not with megabytes.
pub fn assert_same(found: &Tree, expected: &Tree) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (path, content) in expected {
        assert!(found[path] == *content, "{path} differs");
    }
}
