//! Generates the agent's messages and service; no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/agent.proto");
    if env::var_os("CARGO_FEATURE_AGENT").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    // The generated files start with inner attributes, which `include!` inside a module refuses.
    for name in ["agent.rs", "agent_ttrpc.rs"] {
        let text = fs::read_to_string(out.join(name))?;
        let body: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .collect();
        fs::write(out.join(name), body.join("\n"))?;
    }
    Ok(())
}
