//! Turns `schema/*.proto` into Rust at build time, without protoc; nothing generated is committed.

use std::{env, error::Error, path::Path, path::PathBuf};

const FILES: [&str; 10] = [
    "grpc/health/v1/health.proto",
    "services/content/v1/content.proto",
    "services/diff/v1/diff.proto",
    "services/images/v1/images.proto",
    "services/introspection/v1/introspection.proto",
    "services/leases/v1/leases.proto",
    "services/namespaces/v1/namespace.proto",
    "services/snapshots/v1/snapshots.proto",
    "services/version/v1/version.proto",
    "soci/control/v1/control.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=schema");
    let schema = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("schema");
    let descriptors = protox::compile(FILES, [schema])?;
    tonic_prost_build::configure()
        .include_file("containerd.rs")
        .out_dir(PathBuf::from(env::var("OUT_DIR")?))
        .bytes(".containerd.services.content.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
