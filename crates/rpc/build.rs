//! Compiles the protos with protox, so that no `protoc` is needed, and keeps their descriptors for reflection.

use std::{error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 7] = [
    "carillon/auth/v1/account.proto",
    "carillon/auth/v1/auth.proto",
    "carillon/message/v1/message.proto",
    "carillon/presence/v1/presence.proto",
    "carillon/media/v1/media.proto",
    "carillon/notification/v1/notification.proto",
    "carillon/people/v1/people.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        // Uploads and downloads are handed on without a copy.
        .bytes(".carillon.media.v1")
        .compile_fds(descriptors.clone())?;
    // Comments are in the generated code already; reflection has no use for them.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    fs::write(out.join("carillon.bin"), descriptors.encode_to_vec())?;
    Ok(())
}
