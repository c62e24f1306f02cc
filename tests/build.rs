//! Generates the messages of the Container Runtime Interface; no `protoc` is needed.

use std::path::PathBuf;
use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/cri.proto"])
        .include("proto")
        .rust_protobuf()
        .run()?;
    // The generated file starts with inner attributes, which `include!` inside a module refuses.
    let text = fs::read_to_string(out.join("cri.rs"))?;
    let body: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .collect();
    fs::write(out.join("cri.rs"), body.join("\n"))?;
    Ok(())
}
