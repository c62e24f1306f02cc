//! `containerd-shim-wasmvm-v1`: the containerd runtime `io.containerd.wasmvm.v1`.
fn main() {}
