//! The runtime that containerd starts (see the library).

use std::process::ExitCode;

fn main() -> ExitCode {
    containerd_shim_wasmvm_v1::main()
}
