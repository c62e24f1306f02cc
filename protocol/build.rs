//! Generates the messages and services of the agent and of `wasmvm inspect`; no `protoc` is needed.

use std::path::{Path, PathBuf};
use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    for (feature, name) in [("AGENT", "agent"), ("INSPECT", "inspect")] {
        println!("cargo::rerun-if-changed=proto/{name}.proto");
        if env::var_os(format!("CARGO_FEATURE_{feature}")).is_some() {
            generate(&out, name)?;
        }
    }
    Ok(())
}

fn generate(out: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    ttrpc_codegen::Codegen::new()
        .out_dir(out)
        .inputs([format!("proto/{name}.proto")])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    // The generated files start with inner attributes, which `include!` inside a module refuses.
    for name in [format!("{name}.rs"), format!("{name}_ttrpc.rs")] {
        let text = fs::read_to_string(out.join(&name))?;
        let body: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .collect();
        fs::write(out.join(name), body.join("\n"))?;
    }
    Ok(())
}
