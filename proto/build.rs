//! Compiles the `.proto` files with protox, so that no protoc has to be installed.

use std::path::PathBuf;

type BoxError = Box<dyn std::error::Error>;

fn main() -> Result<(), BoxError> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["trust.proto", "artifact.proto", "peer.proto", "agent.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".warmd.v1").bytes(".warmd.trust.v1").compile_fds(descriptors)?;

    // Apart, because their codec checks messages of strangers before it allocates for them.
    for (directory, files) in
        [("metadata", &["metadata.proto", "discovery.proto"][..]), ("model_express", &["model_express.proto"])]
    {
        let out = PathBuf::from(std::env::var("OUT_DIR")?).join(directory);
        std::fs::create_dir_all(&out)?;
        tonic_prost_build::configure()
            .bytes(".")
            .codec_path("crate::protocol::metadata::BoundedCodec")
            .out_dir(out)
            .compile_fds(protox::compile(files, ["proto"])?)?;
    }
    Ok(())
}
