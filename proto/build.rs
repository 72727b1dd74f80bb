//! Compiles the `.proto` files with protox, so that no protoc has to be installed.

type BoxError = Box<dyn std::error::Error>;

fn main() -> Result<(), BoxError> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["trust.proto", "artifact.proto", "peer.proto", "metadata.proto", "agent.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".warmd.v1").bytes(".warmd.trust.v1").compile_fds(descriptors)?;
    Ok(())
}
