//! Compiles the `.proto` files with protox, so that no protoc has to be installed, and says which commit this is.

use std::path::{Path, PathBuf};

type BoxError = Box<dyn std::error::Error>;

fn main() -> Result<(), BoxError> {
    println!("cargo:rerun-if-changed=proto");
    name_version()?;
    // Of every service: messages of strangers are checked before anything is allocated for them.
    let codec = "crate::protocol::metadata::BoundedCodec";
    let files = ["trust.proto", "artifact.proto", "peer.proto", "agent.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let common = tonic_prost_build::configure().codec_path(codec);
    common.bytes(".warmd.v1").bytes(".warmd.trust.v1").compile_fds(descriptors)?;

    // Apart, because they have packages and names in common with the others.
    for (directory, files) in
        [("metadata", &["metadata.proto", "discovery.proto"][..]), ("model_express", &["model_express.proto"])]
    {
        let out = PathBuf::from(std::env::var("OUT_DIR")?).join(directory);
        std::fs::create_dir_all(&out)?;
        tonic_prost_build::configure()
            .bytes(".")
            .codec_path(codec)
            .out_dir(out)
            .compile_fds(protox::compile(files, ["proto"])?)?;
    }
    Ok(())
}

/// `BUILD_COMMIT` and `BUILD_VERSION` for `env!`. Of a debug build no commit is known: each one would build all anew.
fn name_version() -> Result<(), BoxError> {
    println!("cargo:rerun-if-env-changed=BUILD_COMMIT");
    let told = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let is_release = std::env::var("PROFILE")? == "release";
    let commit = told.or_else(|| is_release.then(|| commit(Path::new(".git"))).flatten());
    let commit = commit.map(|commit| commit.chars().filter(char::is_ascii_alphanumeric).take(12).collect::<String>());
    let version = std::env::var("CARGO_PKG_VERSION")?;
    let version = commit.as_ref().map_or_else(|| version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo:rustc-env=BUILD_VERSION={version}");
    Ok(())
}

/// What is checked out, by the files of `.git`; none in an archive of the sources.
fn commit(dot_git: &Path) -> Option<String> {
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        println!("cargo:rerun-if-changed={}", path.display());
        Some(text.trim().to_owned())
    };
    // In a linked worktree `.git` is a file that names the directory, which names the one with the branches.
    let directory = match dot_git.is_dir() {
        true => dot_git.to_owned(),
        false => PathBuf::from(read(dot_git.to_owned())?.strip_prefix("gitdir: ")?),
    };
    let head = read(directory.join("HEAD"))?;
    let Some(branch) = head.strip_prefix("ref: ") else { return Some(head) };
    let common = read(directory.join("commondir")).map_or_else(|| directory.clone(), |path| directory.join(path));
    read(common.join(branch)).or_else(|| {
        let packed = read(common.join("packed-refs"))?;
        let line = packed.lines().find_map(|line| line.strip_suffix(branch))?;
        Some(line.trim().to_owned())
    })
}
