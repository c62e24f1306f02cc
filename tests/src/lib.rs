//! End-to-end tests of wasmvm through a real containerd.
