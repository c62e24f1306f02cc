//! The one engine configuration: an artifact loads only where it equals the compiler's.

use std::sync::Arc;

use wasmtime::{Config, CustomCodeMemory, ModuleVersionStrategy, WasmBacktraceDetails};

/// Stack for WebAssembly frames, bytes; wasmtime's own default is half of it.
pub const WASM_STACK_BYTES_MAX: usize = 1 << 20;
/// Stack of the fibre that a program runs on, bytes: Wasm's part and as much for host calls.
/// Touched on demand.
pub const FIBRE_STACK_BYTES: usize = 2 << 20;

/// Written into every artifact. wasmtime's own is the major version alone, and a patch can change what
/// compiled code relies on.
pub const ARTIFACT_VERSION: &str = "wasmvm 0.1.0, wasmtime 48.0.8";

/// Granularity of code mappings, bytes.
const PAGE_BYTES: usize = 4096;

/// The configuration of both the compiler and the runner: the proposals that wasmtime's command line enables by
/// default (those of `Config::new()`, with `gc`, `exceptions` and `threads` compiled in), traps by
/// signals, no fuel, no epochs, as a signal ends a runner.
///
/// # Errors
/// If [`ARTIFACT_VERSION`] were too long for wasmtime.
pub fn engine_config() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config.module_version(ModuleVersionStrategy::Custom(ARTIFACT_VERSION.to_owned()))?;
    config
        .max_wasm_stack(WASM_STACK_BYTES_MAX)
        .async_stack_size(FIBRE_STACK_BYTES)
        // Nobody unwinds natively through Wasm here, and registering the tables can be quadratic.
        .native_unwind_info(false)
        // A backtrace shows names and offsets; parsing DWARF would want its sections in the artifact.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // The slot is no file that data segments could be mapped from; with copy-on-write images
        // wasmtime would first copy them into a memfd, and a task would pay for them twice.
        .memory_init_cow(false);
    Ok(config)
}

/// [`engine_config`] for code that lies in the slot: it is executable already.
///
/// # Errors
/// As [`engine_config`].
pub fn runner_config() -> wasmtime::Result<Config> {
    let mut config = engine_config()?;
    config.with_custom_code_memory(Some(Arc::new(SlotCode)));
    Ok(config)
}

/// Code in the slot is mapped read-only and executable for good.
struct SlotCode;

impl CustomCodeMemory for SlotCode {
    fn required_alignment(&self) -> usize {
        PAGE_BYTES
    }

    fn publish_executable(&self, _ptr: *const u8, _len: usize) -> wasmtime::Result<()> {
        Ok(())
    }

    fn unpublish_executable(&self, _ptr: *const u8, _len: usize) -> wasmtime::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_artifact_version_names_our_own_and_wasmtimes() {
        let [ours, wasmtimes] = ["wasmvm ", "wasmtime "].map(|name| {
            let start = ARTIFACT_VERSION.find(name).unwrap() + name.len();
            ARTIFACT_VERSION[start..].split(',').next().unwrap()
        });
        assert_eq!(ours, env!("CARGO_PKG_VERSION"));
        let manifest = include_str!("../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"={wasmtimes}\"")));
        assert!(engine_config().is_ok() && runner_config().is_ok());
    }
}
