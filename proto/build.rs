//! Compiles the `.proto` files with protox, so that no protoc has to be installed.

use std::path::PathBuf;

type BoxError = Box<dyn std::error::Error>;

fn main() -> Result<(), BoxError> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["trust.proto", "artifact.proto", "peer.proto", "agent.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".warmd.v1").bytes(".warmd.trust.v1").compile_fds(descriptors)?;

    // Apart, because their codec checks messages of strangers before it allocates for them.
    for name in ["metadata", "model_express"] {
        let out = PathBuf::from(std::env::var("OUT_DIR")?).join(name);
        std::fs::create_dir_all(&out)?;
        tonic_prost_build::configure()
            .bytes(".")
            .codec_path("crate::protocol::metadata::BoundedCodec")
            .out_dir(out)
            .compile_fds(protox::compile([format!("{name}.proto")], ["proto"])?)?;
    }
    Ok(())
}
