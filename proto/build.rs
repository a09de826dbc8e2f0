//! Compiles the .proto files with protox, so that no protoc is needed.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "inference/open_inference.proto",
        "palimpsest/v1/inference.proto",
        "palimpsest/v1/sessions.proto",
        "palimpsest/internal/v1/session.proto",
        "palimpsest/internal/v1/worker.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    // Engine, evaluation and training take the messages and leave the services.
    let has_services = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(has_services)
        .build_server(has_services)
        .bytes(".")
        .btree_map(".")
        // Conversations have many messages, most of them without.
        .boxed(".palimpsest.v1.ChatMessage.details")
        .compile_fds(descriptors)?;
    Ok(())
}
